//! What loops run under: nothing, us, or others on the same tracepoints. Each is started until it
//! is in force, and stopped by an interrupt as a person would.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::Bench;
use crate::{process, workspace};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tracer {
    Untraced,
    /// Ledger and slab attribution.
    Ours,
    /// The ledger alone.
    OursLedger,
    Bpftrace,
    Perf,
}

impl Tracer {
    pub const ALL: [Self; 5] = [
        Self::Untraced,
        Self::Ours,
        Self::OursLedger,
        Self::Bpftrace,
        Self::Perf,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Untraced => "untraced",
            Self::Ours => "kmem-trace",
            Self::OursLedger => "kmem-trace --no-slab",
            Self::Bpftrace => "bpftrace",
            Self::Perf => "perf kmem record",
        }
    }

    /// Why it cannot be measured here; `None` where it is installed, or ours.
    pub fn missing(self) -> Option<String> {
        let program = match self {
            Self::Bpftrace => "bpftrace",
            Self::Perf => "perf",
            _ => return None,
        };
        let there = Command::new(program)
            .arg("--version")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success());
        (!there)
            .then(|| format!("{program} is not installed: `cargo xtask bench --setup` installs it"))
    }

    /// Its version, in its own words.
    pub fn version(self) -> Option<String> {
        let program = match self {
            Self::Bpftrace => "bpftrace",
            Self::Perf => "perf",
            _ => return None,
        };
        process::output(Command::new(program).arg("--version"))
            .ok()
            .map(|text| text.trim().to_owned())
    }
}

/// The four events in which slab objects come and go, added up by call site: what of our slab
/// attribution can be said in bpftrace. The ticks say that all probes are in place.
const SCRIPT: &str = "\
tracepoint:kmem:kmem_cache_alloc, tracepoint:kmem:kmalloc {
  @allocated[args->call_site] = count(); @bytes[args->call_site] = sum(args->bytes_alloc);
}
tracepoint:kmem:kmem_cache_free, tracepoint:kmem:kfree { @freed[args->call_site] = count(); }
interval:ms:100 { printf(\"tick\\n\"); }";

/// Longest time until a tracer is in force, or has ended.
const PATIENCE: Duration = Duration::from_secs(60);
/// From the first sign of life of a rival until it surely sees events.
const MARGIN: Duration = Duration::from_millis(300);

/// A tracer in force.
pub struct Running {
    tracer: Tracer,
    child: Child,
    /// Lines of its standard output.
    lines: Receiver<String>,
    complaints: JoinHandle<String>,
    data: PathBuf,
}

/// How a tracer ended.
#[derive(Debug, Default)]
pub struct Ended {
    pub lines: Vec<String>,
    pub complaints: String,
    /// Bytes that it wrote to a file.
    pub data_bytes: u64,
}

impl Running {
    /// Starts it, away from the CPU that the loops run on; `None` for no tracer.
    pub fn start(
        tracer: Tracer,
        bench: &Bench,
        cgroup: &str,
        more: &[&str],
    ) -> Result<Option<Self>> {
        let data = workspace::target().join("bench-perf.data");
        let _ = fs::remove_file(&data);
        let mut command = beside_the_loops();
        match tracer {
            Tracer::Untraced => return Ok(None),
            Tracer::Ours | Tracer::OursLedger => {
                command
                    .arg(&bench.kmem_trace)
                    .args(["--cgroup", cgroup, "--format", "json"])
                    .args((tracer == Tracer::OursLedger).then_some("--no-slab"))
                    .args(more);
            }
            Tracer::Bpftrace => {
                command.args(["bpftrace", "-B", "line", "-e", SCRIPT]);
            }
            Tracer::Perf => {
                command.args(["perf", "kmem", "record", "-o"]).arg(&data);
            }
        }
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", tracer.name()))?;
        let (Some(out), Some(mut err)) = (child.stdout.take(), child.stderr.take()) else {
            bail!("{} has no pipes", tracer.name());
        };
        let (send, lines) = channel();
        thread::spawn(move || {
            for line in BufReader::new(out).split(b'\n').map_while(Result::ok) {
                let _ = send.send(String::from_utf8_lossy(&line).into_owned());
            }
        });
        let complaints = thread::spawn(move || {
            let mut said = Vec::new();
            let _ = err.read_to_end(&mut said);
            String::from_utf8_lossy(&said).into_owned()
        });
        let mut running = Self {
            tracer,
            child,
            lines,
            complaints,
            data,
        };
        if let Err(error) = running.wait_until_in_force() {
            let ended = running.stop()?;
            bail!("{error}: {}", ended.complaints.trim());
        }
        Ok(Some(running))
    }

    fn wait_until_in_force(&mut self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        let begins = match self.tracer {
            Tracer::Bpftrace => "tick",
            Tracer::Perf => {
                while fs::metadata(&self.data).map_or(0, |data| data.len()) == 0 {
                    if let Some(status) = self.child.try_wait()? {
                        bail!("{} ended with {status}", self.tracer.name());
                    }
                    if Instant::now() > deadline {
                        bail!("{} wrote nothing", self.tracer.name());
                    }
                    thread::sleep(Duration::from_millis(20));
                }
                thread::sleep(MARGIN);
                return Ok(());
            }
            _ => r#"{"type":"plan""#,
        };
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) if line.starts_with(begins) => break,
                Ok(_) => {}
                Err(_) => bail!("{} did not come into force", self.tracer.name()),
            }
        }
        if self.tracer == Tracer::Bpftrace {
            thread::sleep(MARGIN);
        }
        Ok(())
    }

    /// Interrupts it and waits for its end.
    pub fn stop(mut self) -> Result<Ended> {
        if self.child.try_wait()?.is_none() {
            process::run(Command::new("kill").args(["-INT", &self.child.id().to_string()]))?;
        }
        let deadline = Instant::now() + PATIENCE;
        while self.child.try_wait()?.is_none() {
            if Instant::now() > deadline {
                self.child.kill()?;
                self.child.wait()?;
                bail!("{} did not end when interrupted", self.tracer.name());
            }
            thread::sleep(Duration::from_millis(10));
        }
        let data_bytes = fs::metadata(&self.data).map_or(0, |data| data.len());
        let _ = fs::remove_file(&self.data);
        Ok(Ended {
            lines: self.lines.iter().collect(),
            complaints: self.complaints.join().unwrap_or_default(),
            data_bytes,
        })
    }
}

impl Ended {
    /// The line with which our tracer sums up.
    pub fn summary(&self) -> Result<Value> {
        self.lines
            .iter()
            .rev()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .find(|line| line["type"] == "summary")
            .with_context(|| format!("kmem-trace gave no summary: {}", self.complaints.trim()))
    }

    /// Why what was measured under this tracer says nothing; `None` where it did its work.
    pub fn idle(&self, tracer: Tracer) -> Option<String> {
        let worked = match tracer {
            Tracer::Untraced => true,
            Tracer::Ours | Tracer::OursLedger => self.summary().is_ok(),
            Tracer::Bpftrace => self
                .lines
                .iter()
                .any(|line| line.starts_with("@allocated[")),
            Tracer::Perf => self.data_bytes > 100_000,
        };
        (!worked).then(|| {
            let said = self.complaints.lines().last().unwrap_or("it said nothing");
            format!("{} recorded nothing here: {said}", tracer.name())
        })
    }
}

/// The loops have the first CPU to themselves, where there is another.
pub const LOOP_CPU: usize = 0;

fn beside_the_loops() -> Command {
    let cpus = thread::available_parallelism().map_or(1, usize::from);
    let mut command = Command::new("taskset");
    command.arg("--cpu-list").arg(if cpus > 1 {
        format!("{}-{}", LOOP_CPU + 1, cpus - 1)
    } else {
        LOOP_CPU.to_string()
    });
    command
}

/// Where loops make their files.
pub fn scratch() -> Result<PathBuf> {
    let dir: PathBuf = workspace::target().join("bench-scratch");
    if Path::new(&dir).exists() {
        fs::remove_dir_all(&dir)?;
    }
    fs::create_dir_all(&dir)?;
    Ok(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tracer_that_saw_nothing_is_told_from_one_that_worked() {
        let ended = |lines: &[&str], data_bytes| Ended {
            lines: lines.iter().map(|line| (*line).to_owned()).collect(),
            complaints: "a warning\nno such thing\n".to_owned(),
            data_bytes,
        };
        let bpftrace = ended(&["tick", "@allocated[-5]: 7"], 0);
        assert_eq!(bpftrace.idle(Tracer::Bpftrace), None);
        let why = ended(&["tick"], 0).idle(Tracer::Bpftrace).expect("idle");
        assert!(why.ends_with("no such thing"), "{why}");
        assert_eq!(ended(&[], 1 << 20).idle(Tracer::Perf), None);
        assert!(ended(&[], 10).idle(Tracer::Perf).is_some());
        assert!(
            ended(&[r#"{"type":"plan"}"#], 0)
                .idle(Tracer::Ours)
                .is_some()
        );
        assert_eq!(
            ended(&[r#"{"type":"summary"}"#], 0).idle(Tracer::Ours),
            None
        );
    }
}
