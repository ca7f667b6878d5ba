//! The processes of a load: this program run again with a hidden first argument.
//!
//! `__worker supervise` holds a whole load (started by [`super::Workload`]); `__worker churn …`
//! makes small loads in its own process (see [`super::churn`]), `__worker sweep DIR…` removes
//! cgroups after its starter ([`sweeper`]). Lives here: telling such an
//! invocation, and forking a child that dies with its parent and never returns.

pub(super) mod connections;
mod keeper;
pub(super) mod memory;
pub(super) mod network;
mod supervisor;
pub mod sweeper;

use std::{
    env,
    ffi::CStr,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    process::ExitCode,
};

use nix::{
    sys::{
        prctl,
        signal::{SigSet, Signal},
    },
    unistd::{ForkResult, Pid, fork, getpid, getppid},
};

use super::{
    churn::Churn,
    error,
    message::{Channel, Report},
};

/// `argv[1]` of such an invocation.
pub const ARGUMENT: &str = "__worker";
pub(super) const SUPERVISE: &str = "supervise";
const CHURN: &str = "churn";
const SWEEP: &str = "sweep";

/// Exit codes of workers, for the process that waits for them.
const EXIT_REPORTED: i32 = 1;
const EXIT_PARTNER_GONE: i32 = 3;
const EXIT_PANIC: i32 = 101;

/// Whether this process was started to be a worker: then `main` does nothing but return [`main`].
#[must_use]
pub fn is_worker_invocation() -> bool {
    env::args_os()
        .nth(1)
        .is_some_and(|argument| argument == ARGUMENT)
}

/// The whole life of a worker. Call it first in `main`, before there are other threads.
#[must_use]
pub fn main() -> ExitCode {
    let words: Vec<_> = env::args_os().skip(2).collect();
    if let Some((mode, dirs)) = words.split_first()
        && mode == SWEEP
    {
        // Names of cgroups are any bytes.
        let dirs: Vec<_> = dirs.iter().map(Into::into).collect();
        return match sweeper::run(&dirs) {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        };
    }
    let words: Vec<String> = words
        .into_iter()
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    let result = match words.split_first() {
        Some((mode, [])) if mode == SUPERVISE => supervisor::run().map_err(|e| e.to_string()),
        Some((mode, loads)) if mode == CHURN => Churn::from_words(loads)
            .and_then(|churn| churn.run())
            .map_err(|e| e.to_string()),
        _ => Err(format!(
            "{ARGUMENT} takes `{SUPERVISE}` or `{CHURN} LOAD…`; not for people"
        )),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("kmem-trace: {why}");
            ExitCode::FAILURE
        }
    }
}

/// Why a worker cannot go on.
#[derive(Debug)]
pub(super) enum Fault {
    Failed(String),
    /// A child of it failed and said so.
    Reported,
    /// The other half of the pair is gone; whoever waits for it knows why.
    PartnerGone,
}

impl Fault {
    /// For `map_err`: what could not be done, and what the error number suggests.
    fn doing(what: &str) -> impl Fn(io::Error) -> Self {
        move |error| Self::Failed(format!("cannot {what}: {error}{}", error::advice(&error)))
    }
}

/// Forks a child that runs `body` and exits. It gets SIGKILL when this process ends. A fault is
/// reported as of `who`.
fn start(
    channel: &Channel,
    comm: &CStr,
    who: &str,
    body: impl FnOnce() -> Result<(), Fault>,
) -> io::Result<Pid> {
    let parent = getpid();
    // SAFETY: workers are single-threaded, so the child may do anything.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => {
            // A panic must not unwind into the parent's frames.
            let code = catch_unwind(AssertUnwindSafe(|| {
                let result = prepare(parent, comm).and_then(|()| body());
                match result {
                    Ok(()) => 0,
                    Err(Fault::Reported) => EXIT_REPORTED,
                    Err(Fault::PartnerGone) => EXIT_PARTNER_GONE,
                    Err(Fault::Failed(why)) => {
                        let _ = channel.send(&Report::Failed(format!("{who} {why}")));
                        EXIT_REPORTED
                    }
                }
            }))
            .unwrap_or(EXIT_PANIC);
            // SAFETY: ends the process at once; the parent's exit handlers are not ours to run.
            unsafe { libc::_exit(code) }
        }
    }
}

fn prepare(parent: Pid, comm: &CStr) -> Result<(), Fault> {
    let doing = |what| move |errno: nix::Error| Fault::doing(what)(errno.into());
    prctl::set_pdeathsig(Signal::SIGKILL).map_err(doing("tie its life to its parent's"))?;
    if getppid() != parent {
        return Err(Fault::PartnerGone);
    }
    prctl::set_name(comm).map_err(doing("set its name"))?;
    SigSet::empty()
        .thread_set_mask()
        .map_err(doing("unblock signals"))
}

/// Does nothing until killed.
fn hold() -> ! {
    loop {
        std::thread::park();
    }
}
