//! The program under test, running: what it prints as it prints it, and how it ends.

use std::{
    io::{BufRead as _, BufReader, Read},
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, OnceLock, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, geteuid},
};
use serde_json::Value;

use super::{cgroup, lines, machine, soon};

const PATIENCE: Duration = Duration::from_secs(60);

/// A trace with `--format json`.
pub struct Tracer {
    child: Child,
    lines: Arc<Mutex<Vec<Value>>>,
    readers: Vec<JoinHandle<()>>,
    error: Arc<Mutex<String>>,
    start: Instant,
}

/// How it ended, and all it said.
#[derive(Debug)]
pub struct Ended {
    pub status: ExitStatus,
    pub lines: Vec<Value>,
    pub error: String,
}

/// What was printed in plain text by a call that ended by itself.
#[derive(Debug)]
pub struct Answer {
    pub status: ExitStatus,
    pub out: String,
    pub error: String,
}

impl Tracer {
    /// Starts a trace with these words; returns when it is in force.
    #[track_caller]
    pub fn start(words: &str) -> Self {
        let arguments: Vec<&str> = words.split_whitespace().collect();
        Self::start_with(&arguments)
    }

    #[track_caller]
    pub fn start_with(arguments: &[&str]) -> Self {
        let tracer = Self::spawn(arguments);
        let ready = soon(PATIENCE, || {
            tracer.found(|line| lines::is(line, "plan")).is_some() || tracer.readers_done()
        });
        let error = lock(&tracer.error).clone();
        let said = !lock(&tracer.lines).is_empty();
        assert!(ready && said, "no trace with {arguments:?}: {error}");
        tracer
    }

    fn spawn(arguments: &[&str]) -> Self {
        let mut child = Command::new(machine::program())
            .args(arguments)
            .args(["--format", "json"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let lines = Arc::new(Mutex::new(Vec::new()));
        let error = Arc::new(Mutex::new(String::new()));
        let out = BufReader::new(child.stdout.take().expect("piped"));
        let collected = Arc::clone(&lines);
        let reader = thread::spawn(move || {
            for line in out.lines() {
                let line = line.expect("the output is text");
                let value = serde_json::from_str(&line)
                    .unwrap_or_else(|error| panic!("no JSON: {error}: {line}"));
                lock(&collected).push(value);
            }
        });
        let mut err = child.stderr.take().expect("piped");
        let said = Arc::clone(&error);
        let complaints = thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = err.read(&mut buffer) {
                lock(&said).push_str(&String::from_utf8_lossy(&buffer[..length]));
            }
        });
        Self {
            child,
            lines,
            readers: vec![reader, complaints],
            error,
            start: Instant::now(),
        }
    }

    fn readers_done(&self) -> bool {
        self.readers.iter().all(JoinHandle::is_finished)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Everything it said so far.
    pub fn all(&self) -> Vec<Value> {
        lock(&self.lines).clone()
    }

    /// Looks at everything it said so far in its place: reports by the thousand are copied for seconds in
    /// an emulated machine.
    pub fn see<T>(&self, look: impl FnOnce(&[Value]) -> T) -> T {
        look(&lock(&self.lines))
    }

    /// The first line that `wanted` accepts.
    fn found(&self, wanted: impl Fn(&Value) -> bool) -> Option<Value> {
        self.see(|lines| lines.iter().find(|line| wanted(line)).cloned())
    }

    /// How many lines there are of a kind.
    pub fn count(&self, kind: &str) -> usize {
        self.see(|lines| lines::of_type(lines, kind).count())
    }

    pub fn plan(&self) -> Value {
        self.found(|line| lines::is(line, "plan"))
            .expect("there is a plan once it started")
    }

    /// Symbol, mechanism and status of a role.
    #[track_caller]
    pub fn role(&self, name: &str) -> Value {
        let plan = self.plan();
        let roles = plan["roles"].as_array().expect("roles are a list");
        roles
            .iter()
            .find(|role| role["role"] == name)
            .cloned()
            .unwrap_or_else(|| panic!("no role {name} in {plan}"))
    }

    /// Waits for the next report on `cgroup` made entirely after this call.
    #[track_caller]
    pub fn next_report(&self, cgroup: &str) -> Value {
        // The clock of the reports starts after ours, so one that is that old began later.
        let now = self.start.elapsed().as_secs_f64();
        let mut found = None;
        let late = |line: &Value| line["elapsed_s"].as_f64().is_some_and(|at| at > now);
        let came = soon(PATIENCE, || {
            found = self.found(|line| lines::is_report(line, cgroup) && late(line));
            found.is_some()
        });
        assert!(came, "no report on {cgroup}: {}", lock(&self.error));
        found.expect("just found")
    }

    /// Waits until figures of slab that were read after this call are all there; how many `node` lines,
    /// which end such figures, there were before.
    #[track_caller]
    pub fn next_node(&self) -> usize {
        // Those under way began before.
        let seen = self.count("node") + 1;
        let came = soon(PATIENCE, || self.count("node") > seen);
        assert!(came, "no more node lines: {}", lock(&self.error));
        seen
    }

    /// Waits for an event that `wanted` accepts.
    #[track_caller]
    pub fn event(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let mut found = None;
        let came = soon(Duration::from_secs(10), || {
            found = self.found(|line| lines::is(line, "event") && wanted(line));
            found.is_some()
        });
        assert!(came, "no event: {what}; events: {:#?}", self.all());
        found.expect("just found")
    }

    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).expect("process ids fit");
        kill(Pid::from_raw(pid), signal).expect("our child can be signalled");
    }

    /// Ctrl-C, and what it says to that.
    #[track_caller]
    pub fn end(self) -> Ended {
        self.signal(Signal::SIGINT);
        self.wait()
    }

    /// Waits until it ends by itself.
    #[track_caller]
    pub fn wait(mut self) -> Ended {
        let mut status = None;
        let ended = soon(PATIENCE, || {
            status = self.child.try_wait().expect("it is our child");
            status.is_some()
        });
        if !ended {
            let _ = self.child.kill();
            panic!("the program does not end");
        }
        for reader in self.readers.drain(..) {
            reader.join().expect("its output could be read");
        }
        Ended {
            status: status.expect("it ended"),
            lines: self.all(),
            error: lock(&self.error).clone(),
        }
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Ended {
    #[track_caller]
    pub fn summary(&self) -> &Value {
        let mut summaries = lines::of_type(&self.lines, "summary");
        let summary = summaries.next();
        summary.unwrap_or_else(|| panic!("no summary; it said: {}", self.error))
    }

    /// Ended well, with a summary and nothing to complain about.
    #[track_caller]
    pub fn assert_fine(&self) -> &Value {
        assert_eq!(self.status.code(), Some(0), "{}", self.error);
        assert_eq!(self.error, "");
        self.summary()
    }
}

impl Answer {
    /// One line on standard error, which begins with the program's name.
    #[track_caller]
    pub fn assert_refused(&self) -> &str {
        assert_eq!(self.status.code(), Some(1), "{self:?}");
        assert_eq!(self.error.lines().count(), 1, "{self:?}");
        assert!(self.error.starts_with("kmem-trace: "), "{self:?}");
        assert!(!self.error.contains("panicked"), "{self:?}");
        assert_eq!(self.out, "", "{self:?}");
        self.error.trim_end()
    }

    /// The exit code, or 128 + the signal.
    pub fn code(&self) -> i32 {
        let status = self.status;
        status
            .code()
            .or_else(|| status.signal().map(|signal| 128 + signal))
            .expect("one of the two")
    }
}

/// Runs the program with these words until it ends by itself.
pub fn ask(words: &str) -> Answer {
    let arguments: Vec<&str> = words.split_whitespace().collect();
    ask_with(&arguments)
}

pub fn ask_with(arguments: &[&str]) -> Answer {
    let mut command = Command::new(machine::program());
    command.args(arguments);
    answer(command)
}

/// The same as user `nobody`, who has no capability.
pub fn ask_as_nobody(words: &str) -> Answer {
    let mut command = Command::new(machine::program());
    command.args(words.split_whitespace());
    command.uid(65_534).gid(65_534);
    answer(command)
}

/// Runs `command` until it ends, or for as long as anybody waits: an emulated machine is slow.
pub fn answer(mut command: Command) -> Answer {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let read = |mut from: Box<dyn Read + Send>| {
        thread::spawn(move || {
            let mut bytes = Vec::new();
            let _ = from.read_to_end(&mut bytes);
            String::from_utf8_lossy(&bytes).into_owned()
        })
    };
    let out = read(Box::new(child.stdout.take().expect("piped")));
    let error = read(Box::new(child.stderr.take().expect("piped")));
    let mut status = None;
    if !soon(PATIENCE, || {
        status = child.try_wait().expect("it is our child");
        status.is_some()
    }) {
        let _ = child.kill();
        let _ = child.wait();
        panic!("the program does not end");
    }
    Answer {
        status: status.expect("it ended"),
        out: out.join().expect("read"),
        error: error.join().expect("read"),
    }
}

/// Whether something can be traced here; says why where not.
pub fn traceable() -> bool {
    if !geteuid().is_root() {
        machine::skip("needs root, to load BPF programs and make cgroups");
        return false;
    }
    if !cgroup::is_there() {
        machine::skip("no memory cgroup hierarchy below /sys/fs/cgroup");
        return false;
    }
    // It takes seconds in an emulated machine.
    static MODE: OnceLock<Value> = OnceLock::new();
    let mode = MODE.get_or_init(|| {
        let doctor = ask("doctor --format json");
        // The plan comes before the doctor's page.
        let line = doctor.out.lines().next().unwrap_or_default();
        let plan: Value =
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {doctor:?}"));
        plan["mode"].clone()
    });
    if mode == "missing" {
        machine::skip("doctor says that this kernel allows no ledger");
        return false;
    }
    true
}

/// What `doctor` says of a role.
pub fn planned(role: &str) -> Value {
    let doctor = ask("doctor --format json");
    let line = doctor.out.lines().next().unwrap_or_default();
    let plan: Value =
        serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {doctor:?}"));
    let mut rows = plan["roles"].as_array().into_iter().flatten();
    rows.find(|row| row["role"] == role)
        .cloned()
        .unwrap_or_else(|| panic!("no role {role} in {plan}"))
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
