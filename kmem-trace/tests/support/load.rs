//! Loads in a cgroup: the program's own small ones (`__worker churn`), held until let go.

use std::{
    io::{BufRead as _, BufReader, Read as _},
    path::Path,
    process::{Child, Command, Stdio},
};

use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};

use super::{cgroup::Cgroup, machine};

/// A process that stands in its cgroup and holds what it made.
pub struct Load(Child);

/// Starts `words` (as in `tcp=500 anon=50M`) in `cgroup`; returns once all of it is made.
pub fn start(cgroup: &Cgroup, words: &str) -> Load {
    start_in(&cgroup.dir, words)
}

pub fn start_in(dir: &Path, words: &str) -> Load {
    let mut child = Command::new(machine::program())
        .args(["__worker", "churn"])
        .arg(format!("cgroup={}", dir.display()))
        .args(words.split_whitespace())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the load starts");
    let mut line = String::new();
    let out = child.stdout.as_mut().expect("piped");
    BufReader::new(out)
        .read_line(&mut line)
        .expect("the load speaks");
    if line != "ready\n" {
        let mut why = String::new();
        let error = child.stderr.as_mut().expect("piped");
        let _ = error.read_to_string(&mut why);
        panic!("the load {words} did not come up: {why}");
    }
    Load(child)
}

/// As [`start`], by a process that runs on `cpu` alone for as long as there is that CPU.
pub fn start_on(cpu: usize, cgroup: &Cgroup, words: &str) -> Load {
    let this = Pid::from_raw(0);
    let all = sched_getaffinity(this).expect("it can be asked");
    let mut one = CpuSet::new();
    one.set(cpu).expect("the kernel numbers no more CPUs");
    // It is handed down to what this thread starts.
    sched_setaffinity(this, &one).expect("the CPU is there");
    let load = start(cgroup, words);
    sched_setaffinity(this, &all).expect("they were allowed before");
    load
}

/// Makes `words` in `cgroup` and lets go again.
pub fn pass(cgroup: &Cgroup, words: &str) {
    start(cgroup, words).end();
}

impl Load {
    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Lets go of it all; returns when the process is gone.
    pub fn end(mut self) {
        drop(self.0.stdin.take());
        let status = self.0.wait().expect("the load ends");
        assert!(status.success(), "the load ended with {status}");
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
