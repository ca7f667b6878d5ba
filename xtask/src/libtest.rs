//! Reads what Rust's test harness prints, and counts. Pure text in, verdicts out; a program that
//! crashed, hung or contradicts itself comes out as a failed test, never as silence.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::AddAssign;

/// How a test ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Passed,
    Failed,
    Skipped,
}

impl fmt::Display for Verdict {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Passed => "ok",
            Self::Failed => "FAILED",
            Self::Skipped => "ignored",
        })
    }
}

/// One test, and what it had to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Test {
    pub name: String,
    pub verdict: Verdict,
    pub detail: String,
}

impl Test {
    pub fn passed(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            verdict: Verdict::Passed,
            detail: String::new(),
        }
    }

    pub fn failed(name: impl Into<String>, detail: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            verdict: Verdict::Failed,
            detail: detail.into(),
        }
    }

    pub fn skipped(name: impl Into<String>, detail: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            verdict: Verdict::Skipped,
            detail: detail.into(),
        }
    }
}

/// How many tests ended in which way.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Tally {
    pub passed: usize,
    pub failed: usize,
    pub skipped: usize,
}

impl Tally {
    pub fn of(tests: &[Test]) -> Self {
        let count = |verdict| tests.iter().filter(|test| test.verdict == verdict).count();
        Self {
            passed: count(Verdict::Passed),
            failed: count(Verdict::Failed),
            skipped: count(Verdict::Skipped),
        }
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{} passed, {} failed, {} skipped",
            self.passed, self.failed, self.skipped
        )
    }
}

/// How the program whose output is read came to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// It ended by itself, with this exit code.
    Exit(i32),
    /// It never ended, for this reason.
    Cut(String),
}

/// Reads the output of one or several test programs, run one after the other as `program`.
///
/// A passing test that printed a line `skipped: REASON` counts as skipped (the harness itself
/// knows no skipping at run time); it needs `--show-output` to be seen here.
pub fn read(program: &str, output: &str, end: &End) -> Vec<Test> {
    let mut tests = Vec::new();
    let mut lines = Vec::new();
    let mut programs = 0;
    for line in output.lines() {
        if let Some(summary) = line.strip_prefix("test result: ") {
            let section = Section::read(&lines);
            tests.extend(section.with_summary(program, summary));
            lines.clear();
            programs += 1;
        } else {
            lines.push(line);
        }
    }
    let failed = Tally::of(&tests).failed;
    let rest = Section::read(&lines);
    match end {
        Exit(0) if programs > 0 && rest.tests.is_empty() => {}
        // Failed tests make a non-zero exit code; that is no failure of its own.
        Exit(code) if *code != 0 && failed > 0 && rest.tests.is_empty() => {}
        Exit(code) => {
            let why = format!("{program} ended with exit code {code} before its summary");
            tests.extend(rest.without_summary(program, &why, &lines));
        }
        Cut(why) if programs == 0 || !rest.tests.is_empty() => {
            tests.extend(rest.without_summary(program, why, &lines));
        }
        Cut(why) => tests.push(Test::failed(program, why)),
    }
    tests
}

use End::{Cut, Exit};

/// What stands between two summaries.
#[derive(Default)]
struct Section {
    /// Name, and verdict if its line was clean, in the order in which they ran.
    tests: Vec<(String, Option<Verdict>)>,
    /// Reasons of ignored tests, and what tests printed.
    details: BTreeMap<String, String>,
    /// The harness's own closing list.
    failures: Vec<String>,
}

impl Section {
    fn read(lines: &[&str]) -> Self {
        let mut section = Self::default();
        // The test whose printed output, or the list whose names, the lines belong to.
        let mut printing: Option<String> = None;
        let mut listing = false;
        for line in lines {
            if *line == "failures:" || *line == "successes:" {
                printing = None;
                listing = *line == "failures:";
            } else if let Some(name) = line
                .strip_prefix("---- ")
                .and_then(|rest| rest.strip_suffix(" stdout ----"))
            {
                printing = Some(name.to_owned());
                listing = false;
            } else if let Some(name) = &printing {
                let detail = section.details.entry(name.clone()).or_default();
                detail.push_str(line);
                detail.push('\n');
            } else if let (true, Some(name)) = (listing, line.strip_prefix("    ")) {
                section.failures.push(name.to_owned());
            } else if let Some((name, rest)) = line
                .strip_prefix("test ")
                .and_then(|rest| rest.split_once(" ... "))
            {
                let name = name.trim_end_matches(" - should panic").to_owned();
                if let Some(reason) = rest.strip_prefix("ignored, ") {
                    section.details.insert(name.clone(), reason.to_owned());
                }
                section.tests.push((name, verdict(rest)));
            } else if let Some((_, open @ None)) = section.tests.last_mut() {
                // The verdict of a test whose output came between.
                *open = verdict(line);
            }
        }
        section
    }

    /// Verdicts by the harness's own list and summary, which output of the tests cannot garble.
    fn with_summary(mut self, program: &str, summary: &str) -> Vec<Test> {
        let tests: Vec<_> = self
            .tests
            .iter()
            .map(|(name, verdict)| {
                let detail = self.details.remove(name).unwrap_or_default();
                let skipped = detail.lines().any(|line| line.starts_with("skipped: "));
                let verdict = match verdict {
                    _ if self.failures.contains(name) => Verdict::Failed,
                    Some(Verdict::Skipped) => Verdict::Skipped,
                    _ if skipped => Verdict::Skipped,
                    _ => Verdict::Passed,
                };
                Test {
                    name: name.clone(),
                    verdict,
                    detail,
                }
            })
            .collect();
        let tally = Tally::of(&tests);
        let count = |what: &str| {
            summary
                .split([';', '.'])
                .find_map(|part| part.trim().strip_suffix(what)?.trim().parse::<usize>().ok())
        };
        let agrees = count("failed") == Some(tally.failed)
            && count("passed").zip(count("ignored")).is_some_and(
                // Tests that skipped themselves are passed ones to the harness.
                |(passed, ignored)| passed + ignored == tally.passed + tally.skipped,
            );
        let mut tests = tests;
        if !agrees {
            tests.push(Test::failed(
                program,
                format!("its lines add up to \"{tally}\", its summary says \"{summary}\""),
            ));
        }
        tests
    }

    /// Verdicts of a program that never came to its summary.
    fn without_summary(self, program: &str, why: &str, lines: &[&str]) -> Vec<Test> {
        let mut tests: Vec<_> = self
            .tests
            .into_iter()
            .map(|(name, verdict)| match verdict {
                Some(verdict) => Test {
                    name,
                    verdict,
                    detail: String::new(),
                },
                None => Test::failed(name, format!("did not finish: {why}")),
            })
            .collect();
        if tests.iter().all(|test| test.verdict != Verdict::Failed) {
            let last = lines.iter().rev().take(20).rev();
            let output: String = last.map(|line| format!("{line}\n")).collect();
            tests.push(Test::failed(program, format!("{why}\n{output}")));
        }
        tests
    }
}

fn verdict(text: &str) -> Option<Verdict> {
    match text {
        "ok" => Some(Verdict::Passed),
        "FAILED" => Some(Verdict::Failed),
        _ if text == "ignored" || text.starts_with("ignored, ") => Some(Verdict::Skipped),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIXED: &str = "
running 4 tests
test a ... ok
test b ... noise of a child
ok
FAILED
test c ... ignored, needs fentry
test d - should panic ... ok

successes:

---- a stdout ----
skipped: this kernel has no v1

successes:
    a
    d

failures:

---- b stdout ----
thread 'b' panicked at x.rs:1:
left != right

failures:
    b

test result: FAILED. 2 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s
";

    fn verdicts(tests: &[Test]) -> Vec<(&str, Verdict)> {
        tests
            .iter()
            .map(|test| (test.name.as_str(), test.verdict))
            .collect()
    }

    #[test]
    fn each_test_gets_its_verdict_even_when_output_stands_between() {
        let tests = read("kernel", MIXED, &End::Exit(101));
        assert_eq!(
            verdicts(&tests),
            [
                ("a", Verdict::Skipped),
                ("b", Verdict::Failed),
                ("c", Verdict::Skipped),
                ("d", Verdict::Passed)
            ]
        );
        assert!(tests[1].detail.contains("left != right"));
        assert_eq!(tests[2].detail, "needs fentry");
        assert_eq!(
            Tally::of(&tests).to_string(),
            "1 passed, 1 failed, 2 skipped"
        );
    }

    #[test]
    fn a_machine_that_stops_in_a_test_fails_that_test() {
        let output = "running 2 tests\ntest a ... ok\ntest b ... ";
        let tests = read("kernel", output, &End::Cut("timeout".into()));
        assert_eq!(
            verdicts(&tests),
            [("a", Verdict::Passed), ("b", Verdict::Failed)]
        );
        assert_eq!(tests[1].detail, "did not finish: timeout");
    }

    #[test]
    fn a_program_that_prints_nothing_is_a_failure() {
        for end in [End::Exit(0), End::Exit(139), End::Cut("panic".into())] {
            let tests = read("kernel", "", &end);
            assert_eq!(verdicts(&tests), [("kernel", Verdict::Failed)], "{end:?}");
        }
    }

    #[test]
    fn a_crash_after_all_tests_passed_is_a_failure() {
        let output = "test a ... ok\n\ntest result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; \
                      0 filtered out; finished in 0.00s\n";
        assert_eq!(Tally::of(&read("kernel", output, &End::Exit(0))).failed, 0);
        assert_eq!(
            Tally::of(&read("kernel", output, &End::Exit(139))).failed,
            1
        );
        let cut = End::Cut("timeout".into());
        assert_eq!(Tally::of(&read("kernel", output, &cut)).failed, 1);
    }

    #[test]
    fn a_summary_that_disagrees_with_the_lines_is_a_failure() {
        let output = "test a ... ok\n\ntest result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; \
                      0 filtered out; finished in 0.00s\n";
        let tests = read("kernel", output, &End::Exit(0));
        assert_eq!(
            verdicts(&tests),
            [("a", Verdict::Passed), ("kernel", Verdict::Failed)]
        );
    }

    #[test]
    fn several_programs_in_one_output_are_read_one_by_one() {
        let one = "running 1 test\ntest a ... ok\n\ntest result: ok. 1 passed; 0 failed; 0 ignored; \
                   0 measured; 0 filtered out; finished in 0.00s\n";
        let tests = read("cargo test", &format!("{one}\n{one}"), &End::Exit(0));
        assert_eq!(
            Tally::of(&tests).to_string(),
            "2 passed, 0 failed, 0 skipped"
        );
    }
}
