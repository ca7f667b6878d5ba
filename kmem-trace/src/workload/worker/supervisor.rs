//! Starts a keeper for each group, waits for the caller to go, ends it all and removes the
//! cgroups. Stays in the caller's cgroup.

use std::{fs, io, os::fd::AsFd, thread, time::Duration};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        prctl,
        signal::{SigHandler, SigSet, Signal, kill, signal},
        signalfd::{SfdFlags, SignalFd},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};

use super::{EXIT_REPORTED, keeper, start};
use crate::workload::{
    groups, limits,
    message::{Channel, Order, Report},
};

pub fn run() -> io::Result<()> {
    let channel = Channel::from(io::stdin().as_fd().try_clone_to_owned()?);
    let order = loop {
        channel.wait(Duration::MAX)?;
        match channel.try_receive::<Order>() {
            Ok(Some(order)) => break order,
            Ok(None) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(error),
        }
    };
    let keepers = Keepers::start(&channel, &order);
    let waited = match &keepers.failure {
        None => keepers.watch(&channel),
        Some(why) => channel.send(&Report::Failed(why.clone())),
    };
    keepers.end();
    for dir in order.tree.remove() {
        eprintln!(
            "kmem-trace: {} is still busy; remove it with rmdir",
            dir.display()
        );
    }
    waited
}

struct Keepers {
    pids: Vec<Pid>,
    children: Option<SignalFd>,
    failure: Option<String>,
}

impl Keepers {
    fn start(channel: &Channel, order: &Order) -> Self {
        let mut keepers = Self {
            pids: Vec::new(),
            children: None,
            failure: None,
        };
        if let Err(error) = keepers.try_start(channel, order) {
            keepers.failure = Some(format!(
                "the supervisor cannot start it: {error}{}",
                crate::workload::error::advice(&error)
            ));
        }
        keepers
    }

    fn try_start(&mut self, channel: &Channel, order: &Order) -> io::Result<()> {
        limits::raise_open_files()?;
        // If memory runs out after all, the load goes first.
        let _ = fs::write("/proc/self/oom_score_adj", "1000");
        // Children of a keeper that died come to us: we wait for all before we remove cgroups.
        prctl::set_child_subreaper(true)?;
        // A caller that ignores SIGCHLD hands that down, and then there is nothing to wait for.
        // SAFETY: the default action runs no code of ours.
        unsafe { signal(Signal::SIGCHLD, SigHandler::SigDfl) }?;
        let mut signals = SigSet::empty();
        signals.add(Signal::SIGCHLD);
        signals.thread_block()?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        self.children = Some(SignalFd::with_flags(&signals, flags)?);
        for group in 0..order.layout.groups {
            let who = format!("the keeper of {}", groups::name(group));
            self.pids.push(start(channel, c"load-keeper", &who, || {
                keeper::run(channel, order, group)
            })?);
        }
        Ok(())
    }

    /// Returns when the caller is gone, wants it to end, or a keeper ended.
    fn watch(&self, channel: &Channel) -> io::Result<()> {
        let Some(children) = &self.children else {
            return Ok(());
        };
        loop {
            if let Some(why) = self.ended()? {
                if let Some(why) = why {
                    channel.send(&Report::Failed(why))?;
                }
                return Ok(());
            }
            let mut ready = [
                PollFd::new(channel.as_fd(), PollFlags::POLLIN),
                PollFd::new(children.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut ready, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
            let caller_said = ready[0].any() == Some(true);
            while children.read_signal()?.is_some() {}
            if caller_said {
                return Ok(());
            }
        }
    }

    /// Whether a keeper has ended, and why if it did not say so itself.
    fn ended(&self) -> io::Result<Option<Option<String>>> {
        loop {
            let status = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(status) => status,
                Err(Errno::ECHILD) => {
                    return Ok(Some(Some("all its processes are gone".into())));
                }
                Err(errno) => return Err(errno.into()),
            };
            match (status, status.pid()) {
                (WaitStatus::StillAlive, _) => return Ok(None),
                (WaitStatus::Exited(_, EXIT_REPORTED), _) => return Ok(Some(None)),
                (status, Some(pid)) => {
                    let group = self.pids.iter().position(|&keeper| keeper == pid);
                    if let Some(group) = group.and_then(|group| u32::try_from(group).ok()) {
                        let name = groups::name(group);
                        return Ok(Some(Some(format!("the keeper of {name} {}", fate(status)))));
                    }
                }
                _ => {}
            }
        }
    }

    fn end(&self) {
        for &pid in &self.pids {
            let _ = kill(pid, Signal::SIGKILL);
        }
        // Their children follow by themselves and come to us; thousands of sockets to close
        // take a while.
        loop {
            match waitpid(None, None) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(Errno::ECHILD) => return,
                Err(_) => thread::sleep(Duration::from_millis(20)),
            }
        }
    }
}

/// How a process ended, as the rest of a sentence.
pub fn fate(status: WaitStatus) -> String {
    match status {
        WaitStatus::Signaled(_, Signal::SIGKILL, _) => {
            "was killed (SIGKILL): by the OOM killer if `dmesg` says so; then ask for less".into()
        }
        WaitStatus::Signaled(_, signal, _) => format!("was killed by {signal}"),
        WaitStatus::Exited(_, code) => format!("ended by itself with code {code}"),
        other => format!("ended: {other:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_killed_process_is_told_from_one_that_ended() {
        let pid = Pid::from_raw(7);
        assert!(fate(WaitStatus::Signaled(pid, Signal::SIGKILL, false)).contains("OOM"));
        assert!(fate(WaitStatus::Signaled(pid, Signal::SIGSEGV, true)).contains("SIGSEGV"));
        assert!(fate(WaitStatus::Exited(pid, 101)).contains("code 101"));
    }
}
