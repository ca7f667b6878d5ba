//! What a machine said over its result line, turned into verdicts and a report.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::qemu;
use super::session::{Marker, Piece};
use crate::libtest::{self, Tally, Test};

/// What one machine brought.
pub struct Outcome {
    cgroup: String,
    pub notes: Vec<String>,
    pub tests: Vec<Test>,
}

/// What came over the result line of one machine.
#[derive(Default)]
pub struct Talk {
    ready: Option<(String, String, String, Duration)>,
    refused: Option<String>,
    /// Name, output and exit code of each program.
    programs: Vec<(String, Vec<u8>, Option<i32>)>,
}

impl Talk {
    pub fn hear(&mut self, piece: Piece, start: Instant) {
        match piece {
            Piece::Output(bytes) => {
                if let Some((_, output, None)) = self.programs.last_mut() {
                    output.extend(bytes);
                }
            }
            Piece::Marker(Marker::Ready {
                cgroup,
                release,
                uptime_s,
            }) => self.ready = Some((cgroup, release, uptime_s, start.elapsed())),
            Piece::Marker(Marker::Refused(why)) => self.refused = Some(why),
            Piece::Marker(Marker::Begin(name)) => self.programs.push((name, Vec::new(), None)),
            Piece::Marker(Marker::End(code)) => {
                if let Some((_, _, exit)) = self.programs.last_mut() {
                    *exit = Some(code);
                }
            }
        }
    }

    /// Verdicts on all `expected` programs; `cut` says why the machine was ended, `death` is
    /// asked why it ended by itself too early.
    pub fn outcome(
        self,
        expected: &[(String, PathBuf)],
        cut: Option<String>,
        death: impl Fn() -> String,
    ) -> Outcome {
        let mut notes = Vec::new();
        let mut tests = Vec::new();
        let mut cgroup = "boot".to_owned();
        if let Some((version, release, uptime_s, elapsed)) = self.ready {
            notes.push(format!(
                "Linux {release}, cgroup {version}, ready after {:.1} s (kernel's clock {uptime_s} s)",
                elapsed.as_secs_f64()
            ));
            cgroup = version;
        }
        let why = || cut.clone().unwrap_or_else(&death);
        if let Some(refused) = self.refused {
            tests.push(Test::failed("boot", refused));
        }
        for (name, output, exit) in &self.programs {
            let end = match exit {
                Some(code) => libtest::End::Exit(*code),
                None => libtest::End::Cut(why()),
            };
            tests.extend(libtest::read(name, &String::from_utf8_lossy(output), &end));
        }
        for (name, _) in expected {
            if !self.programs.iter().any(|(other, _, _)| other == name) {
                tests.push(Test::failed(name, format!("was not started: {}", why())));
            }
        }
        // All programs ended, but the machine then had to be killed.
        if let Some(why) = &cut
            && self.programs.iter().all(|(_, _, exit)| exit.is_some())
            && !self.programs.is_empty()
        {
            tests.push(Test::failed("poweroff", why));
        }
        Outcome {
            cgroup,
            notes,
            tests,
        }
    }
}

impl Outcome {
    pub fn without_machine(test: Test) -> Self {
        Self {
            cgroup: "boot".into(),
            notes: Vec::new(),
            tests: vec![test],
        }
    }

    pub fn report(&self, label: &str) -> String {
        let mut report = String::new();
        // Writing to a string cannot fail.
        let mut line = |text: &str| {
            let _ = writeln!(report, "{text}");
        };
        for note in &self.notes {
            line(&format!("# {label}: {note}"));
        }
        for test in &self.tests {
            line(&format!(
                "test {label}/{}/{} ... {}",
                self.cgroup, test.name, test.verdict
            ));
            if test.verdict != libtest::Verdict::Passed {
                for detail in test.detail.trim().lines() {
                    line(&format!("    {detail}"));
                }
            }
        }
        line(&format!("# {label}: {}", Tally::of(&self.tests)));
        report
    }
}

/// Why a machine that ended by itself did not finish its work.
pub fn death(console: &Path) -> String {
    match qemu::complaints(console).first() {
        Some(complaint) => format!("the machine died: {complaint}"),
        None => "the machine ended before its work did".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(pieces: Vec<Piece>, cut: Option<&str>) -> Outcome {
        let mut talk = Talk::default();
        for piece in pieces {
            talk.hear(piece, Instant::now());
        }
        let expected = [("kernel".to_owned(), PathBuf::new())];
        talk.outcome(&expected, cut.map(str::to_owned), || "it died".into())
    }

    fn ready() -> Piece {
        Piece::Marker(Marker::Ready {
            cgroup: "v1".into(),
            release: "6.1.0-1-amd64".into(),
            uptime_s: "3.00".into(),
        })
    }

    fn begin() -> Piece {
        Piece::Marker(Marker::Begin("kernel".into()))
    }

    #[test]
    fn a_machine_that_says_nothing_has_failed_its_tests() {
        for cut in [None, Some("timeout")] {
            let outcome = outcome(Vec::new(), cut);
            assert_eq!(Tally::of(&outcome.tests).failed, 1);
            let why = cut.unwrap_or("it died");
            assert_eq!(outcome.tests[0].detail, format!("was not started: {why}"));
        }
    }

    #[test]
    fn a_machine_that_dies_in_a_test_fails_that_test_by_name() {
        let output = Piece::Output(b"test one ... ok\ntest two ... ".to_vec());
        let outcome = outcome(vec![ready(), begin(), output], None);
        let report = outcome.report("6.1");
        assert!(report.contains("test 6.1/v1/one ... ok\n"), "{report}");
        assert!(
            report.contains("test 6.1/v1/two ... FAILED\n    did not finish: it died\n"),
            "{report}"
        );
        assert!(report.ends_with("# 6.1: 1 passed, 1 failed, 0 skipped\n"));
    }

    #[test]
    fn a_machine_that_does_not_power_off_is_a_failure_beside_its_passed_tests() {
        let output = b"test one ... ok\n\ntest result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out\n";
        let pieces = || {
            vec![
                ready(),
                begin(),
                Piece::Output(output.to_vec()),
                Piece::Marker(Marker::End(0)),
            ]
        };
        assert_eq!(Tally::of(&outcome(pieces(), None).tests).failed, 0);
        let cut = outcome(pieces(), Some("timeout"));
        assert_eq!(
            Tally::of(&cut.tests).to_string(),
            "1 passed, 1 failed, 0 skipped"
        );
    }
}
