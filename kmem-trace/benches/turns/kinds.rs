//! The loops. Each turn makes kernel objects and lets them go.

use std::{
    ffi::CString,
    fs::{self, File},
    os::{fd::OwnedFd, unix::ffi::OsStrExt as _},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    errno::Errno,
    fcntl::OFlag,
    sys::{
        socket::{AddressFamily, SockFlag, SockType, socketpair},
        wait::waitpid,
    },
    unistd::{ForkResult, fork, pipe2},
};

/// Runs `turns` of a kind; what has to be made before, and removed after, is not timed.
pub fn run(kind: &str, turns: u64, dir: &Path) -> Result<Duration> {
    match kind {
        "pipe" => timed(turns, || {
            pipe2(OFlag::O_CLOEXEC)
                .map(drop::<(OwnedFd, OwnedFd)>)
                .context("pipe")
        }),
        "socketpair" => timed(turns, || {
            socketpair(
                AddressFamily::Unix,
                SockType::Stream,
                None,
                SockFlag::SOCK_CLOEXEC,
            )
            .map(drop)
            .context("socketpair")
        }),
        "open" => {
            let path = dir.join("opened");
            File::create(&path)?;
            let took = timed(turns, || File::open(&path).map(drop).context("open"));
            fs::remove_file(&path)?;
            took
        }
        "stat" => {
            // Names that were looked up in vain stay in the directory until it goes.
            let scratch = dir.join("looked-up");
            fs::create_dir(&scratch)?;
            let mut number = 0_u64;
            let took = timed(turns, || {
                number += 1;
                stat(&scratch, number)
            });
            fs::remove_dir(&scratch)?;
            took
        }
        "fork" => timed(turns, || {
            // SAFETY: one thread; the child does nothing but end.
            match unsafe { fork() }? {
                ForkResult::Child => unsafe { libc::_exit(0) },
                ForkResult::Parent { child } => {
                    while waitpid(child, None) == Err(Errno::EINTR) {}
                    Ok(())
                }
            }
        }),
        _ => bail!("no such loop: {kind}"),
    }
}

/// A name that is not there, without an allocation but the path's.
fn stat(dir: &Path, number: u64) -> Result<()> {
    let mut name = dir.as_os_str().as_bytes().to_vec();
    name.extend_from_slice(format!("/{number}").as_bytes());
    let name = CString::new(name)?;
    // SAFETY: a C string; F_OK asks for existence alone.
    match unsafe { libc::access(name.as_ptr(), libc::F_OK) } {
        0 => bail!("{name:?} is there"),
        _ => Ok(()),
    }
}

fn timed(turns: u64, mut turn: impl FnMut() -> Result<()>) -> Result<Duration> {
    let begun = Instant::now();
    for _ in 0..turns {
        turn()?;
    }
    Ok(begun.elapsed())
}
