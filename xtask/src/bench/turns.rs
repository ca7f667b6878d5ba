//! The program that runs loops and keeps empty programs (`kmem-trace/benches/turns`), running.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context as _, Result, bail};

pub struct Turns {
    child: Child,
    questions: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Turns {
    /// One that runs loops in a cgroup, on a CPU.
    pub fn loops(program: &Path, cgroup: &Path, cpu: usize, dir: &Path) -> Result<Self> {
        Self::start(
            Command::new(program)
                .arg("loop")
                .arg(cgroup)
                .arg(cpu.to_string())
                .arg(dir),
        )
    }

    /// One that keeps an empty program on each of these raw tracepoints.
    pub fn empty(program: &Path, tracepoints: &[&str]) -> Result<Self> {
        let mut started = Self::start(Command::new(program).arg("empty").args(tracepoints))?;
        started.answer()?;
        Ok(started)
    }

    fn start(command: &mut Command) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start the loops")?;
        let (Some(questions), Some(answers)) = (child.stdin.take(), child.stdout.take()) else {
            bail!("the loops have no pipes");
        };
        Ok(Self {
            child,
            questions: Some(questions),
            answers: BufReader::new(answers),
        })
    }

    /// Nanoseconds that so many turns took.
    pub fn run(&mut self, kind: &str, turns: u64) -> Result<f64> {
        let answer = self.ask(&format!("{kind} {turns}"))?;
        answer
            .parse()
            .with_context(|| format!("the loops answered {answer:?}"))
    }

    /// Runs and nanoseconds of each empty program so far.
    pub fn runs(&mut self) -> Result<Vec<(f64, f64)>> {
        let answer = self.ask("runs")?;
        let numbers = answer
            .split_whitespace()
            .map(str::parse)
            .collect::<Result<Vec<f64>, _>>()
            .with_context(|| format!("the empty programs answered {answer:?}"))?;
        Ok(numbers
            .chunks_exact(2)
            .map(|pair| (pair[0], pair[1]))
            .collect())
    }

    fn ask(&mut self, question: &str) -> Result<String> {
        let questions = self.questions.as_mut().context("already ended")?;
        writeln!(questions, "{question}").context("the loops ended")?;
        self.answer()
    }

    fn answer(&mut self) -> Result<String> {
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        if line.is_empty() {
            bail!("the loops ended before they answered");
        }
        Ok(line.trim().to_owned())
    }
}

impl Drop for Turns {
    fn drop(&mut self) {
        // The end of its input ends it.
        self.questions = None;
        let _ = self.child.wait();
    }
}
