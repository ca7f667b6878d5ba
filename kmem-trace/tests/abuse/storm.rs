//! Loads that cost no more than they must to make, in the tests' own process or in one of theirs.

use std::{
    os::unix::process::CommandExt as _,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use crate::support::{cgroup::Cgroup, machine};

/// Makes and closes pipes, on all CPUs: about 20 slab events each.
pub fn pipes(count: u64) {
    let threads = thread::available_parallelism().map_or(1, |it| it.get() as u64);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(move || {
                for _ in 0..count / threads {
                    drop(nix::unistd::pipe().expect("there are descriptors"));
                }
            });
        }
    });
}

/// The same until `time` is over.
pub fn pipes_for(time: Duration) -> u64 {
    let start = Instant::now();
    let mut made = 0;
    while start.elapsed() < time {
        pipes(2000);
        made += 2000;
    }
    made
}

/// Charges and gives back memory in `cgroup` until `time` is over, a process after the other.
pub fn processes_for(cgroup: &Cgroup, time: Duration) -> u64 {
    let start = Instant::now();
    let mut made = 0;
    while start.elapsed() < time {
        process(cgroup);
        made += 1;
    }
    made
}

/// A process that lives and ends in `cgroup`.
pub fn process(cgroup: &Cgroup) {
    let procs = cgroup.dir.join("cgroup.procs");
    let mut command = Command::new(machine::program());
    command
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    // SAFETY: between fork and exec it opens a file and writes to it; no other thread's lock is
    // needed for either but the allocator's, which glibc makes safe.
    unsafe {
        command.pre_exec(move || std::fs::write(&procs, "0"));
    }
    let status = command.status().expect("it starts");
    assert!(status.success(), "{status}");
}
