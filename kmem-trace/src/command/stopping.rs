//! A command that is stopped, with all that it started.
//!
//! Its descendants are found by the cgroup they are in: a process may leave its parent, its session
//! and its group, but no cgroup of ours without root.

use std::{
    fs, io,
    process::ExitStatus,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::process::Child;

use crate::kernel::cgroupfs::{self, CgroupDir};

/// Longest that processes may take to end by themselves.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest wait for those that are killed: one in uninterruptible sleep may take any time.
const KILLED: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(20);

/// How it went.
pub struct Stopped {
    pub status: ExitStatus,
    /// The last signal that was needed; `None`: all had ended by themselves.
    pub signal: Option<Signal>,
}

/// Stops `child` and, where there is a cgroup of ours, all that is in it or below; cgroups that were
/// made below go too, as nobody is left to remove them.
///
/// # Errors
/// Where the command's end cannot be waited for.
pub async fn stop(child: &mut Child, ours: Option<&CgroupDir>) -> Result<Stopped> {
    let mut used = None;
    let mut told: Vec<Pid> = Vec::new();
    for (signal, patience) in [(Signal::SIGTERM, PATIENCE), (Signal::SIGKILL, KILLED)] {
        let until = Instant::now() + patience;
        loop {
            let _ = child.try_wait();
            let running = running(child, ours);
            if running.is_empty() {
                break;
            }
            for pid in running {
                // Once is enough to be asked; a new one has not been.
                let again = signal == Signal::SIGKILL || !told.contains(&pid);
                if again && kill(pid, signal).is_ok() {
                    told.push(pid);
                    used = Some(signal);
                }
            }
            if Instant::now() >= until {
                break;
            }
            tokio::time::sleep(LOOK).await;
        }
    }
    if let Some(top) = ours {
        remove_below(top);
    }
    let status = child.wait().await;
    Ok(Stopped {
        status: status.context("cannot wait for the command")?,
        signal: used,
    })
}

/// What still runs of it.
fn running(child: &Child, ours: Option<&CgroupDir>) -> Vec<Pid> {
    let mut all: Vec<Pid> = ours.map(processes).unwrap_or_default();
    // It may have moved itself elsewhere.
    let own = child.id().and_then(|pid| i32::try_from(pid).ok());
    if let Some(own) = own.map(Pid::from_raw).filter(|own| !all.contains(own)) {
        all.push(own);
    }
    all.retain(|pid| *pid != Pid::this());
    all
}

/// All processes of a cgroup and of those below.
fn processes(top: &CgroupDir) -> Vec<Pid> {
    let mut found = Vec::new();
    for cgroup in cgroupfs::walk(top) {
        let text = fs::read_to_string(cgroup.dir.join("cgroup.procs")).unwrap_or_default();
        let pids = text.lines().filter_map(|line| line.parse().ok());
        // 0: of another PID namespace, out of our reach; to signal 0 is to signal ourselves.
        found.extend(pids.filter(|pid| *pid > 0).map(Pid::from_raw));
    }
    found
}

/// Lowest first.
fn remove_below(top: &CgroupDir) {
    for below in cgroupfs::walk(top).iter().skip(1).rev() {
        if let Err(error) = fs::remove_dir(&below.dir)
            && error.kind() != io::ErrorKind::NotFound
        {
            log::debug!("{}: {error}", below.dir.display());
        }
    }
}
