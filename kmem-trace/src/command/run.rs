//! `kmem-trace run`: a command in a cgroup of its own, traced from its first instruction.

use std::{
    ffi::CString,
    io::Write as _,
    os::unix::{ffi::OsStrExt as _, process::ExitStatusExt as _},
    path::Path,
    process::{ExitStatus, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;
use tokio::process::Command;

use super::{
    cli::RunArgs,
    made::Made,
    stopping::{self, Stopped},
    trace::{Outcome, Trace},
};
use crate::kernel::cgroupfs::{self, MemoryMount};

/// The command's exit code, or that the trace went beyond its bound.
pub struct Ended {
    pub outcome: Outcome,
    pub status: ExitStatus,
}

impl Ended {
    /// As a shell gives it: the code, or 128 + the signal.
    pub fn code(&self) -> u8 {
        let code = self
            .status
            .code()
            .or_else(|| self.status.signal().map(|signal| 128 + signal));
        code.and_then(|code| u8::try_from(code & 0xff).ok())
            .unwrap_or(1)
    }
}

/// `kmem-trace run [-c NAME] -- CMD…`.
///
/// # Errors
/// Where the cgroup cannot be made, the command not started, or the kernel not traced.
pub async fn main(args: RunArgs) -> Result<Ended> {
    let mount = MemoryMount::find()?;
    let name = args
        .cgroup
        .clone()
        .unwrap_or_else(|| format!("kmem-trace-run-{}", std::process::id()));
    let cgroup = Made::new(&mount, &name)?;
    let target = cgroupfs::find(&mount, &name)?;
    let mut trace = Trace::start(&mount, vec![target.clone()], &args.common).await?;
    let mut child = spawn(&cgroup.dir, &args)?;
    let begun = Instant::now();
    let mut status = None;
    let outcome = trace
        .follow(async {
            status = child.wait().await.ok();
        })
        .await;
    let status = match status {
        Some(status) => status,
        // The command goes with the trace, whatever ended that.
        None => {
            let after = begun.elapsed();
            let stopped = stopping::stop(&mut child, cgroup.is_ours().then_some(&target)).await;
            if let (
                Ok(Stopped {
                    signal: Some(signal),
                    ..
                }),
                Some(why),
            ) = (&stopped, trace.cut_short())
            {
                say_stopped(*signal, after, why);
            }
            stopped?.status
        }
    };
    let outcome = outcome?;
    cgroup.remove().await;
    Ok(Ended { outcome, status })
}

/// Nothing else on the screen tells a command that was stopped from one that came to its end.
fn say_stopped(signal: Signal, after: Duration, why: &str) {
    let _ = writeln!(
        std::io::stderr(),
        "kmem-trace: the command was stopped ({signal}) after {:.1} s: {why}",
        after.as_secs_f64()
    );
}

/// Starts the command inside the cgroup: it moves itself there before it becomes the command.
fn spawn(dir: &Path, args: &RunArgs) -> Result<tokio::process::Child> {
    let (program, rest) = args.command.split_first().context("no command")?;
    let procs = CString::new(dir.join("cgroup.procs").as_os_str().as_bytes())?;
    let mut command = Command::new(program);
    command
        .args(rest)
        .stdin(Stdio::inherit())
        .kill_on_drop(true);
    // SAFETY: only async-signal-safe calls between fork and exec.
    unsafe {
        command.pre_exec(move || {
            let file = libc::open(procs.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
            if file < 0 {
                return Err(std::io::Error::last_os_error());
            }
            let written = libc::write(file, c"0".as_ptr().cast(), 1);
            let result = if written == 1 {
                Ok(())
            } else {
                Err(std::io::Error::last_os_error())
            };
            libc::close(file);
            result
        });
    }
    command
        .spawn()
        .with_context(|| format!("cannot start {}", program.display()))
}
