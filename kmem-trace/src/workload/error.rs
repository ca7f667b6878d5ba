//! What can go wrong with a load, each in one line: what, why, what to do next.

use std::{io, path::PathBuf};

#[derive(Debug, thiserror::Error)]
pub enum WorkloadError {
    /// The machine's limits do not allow it; the text is the arithmetic and a way out.
    #[error("the load does not fit: {0}")]
    DoesNotFit(String),
    #[error("{path}: {source}")]
    Read { path: PathBuf, source: io::Error },
    #[error("{path}: expected {expected}, found {found:?}")]
    Parse {
        path: PathBuf,
        expected: &'static str,
        found: String,
    },
    #[error("cannot {what} {path}: {source}{hint}")]
    Cgroup {
        what: &'static str,
        path: PathBuf,
        source: io::Error,
        hint: &'static str,
    },
    #[error("{path} is not in a cgroup hierarchy with memory: {why}")]
    NotACgroup { path: PathBuf, why: &'static str },
    #[error(
        "another load runs in {path} ({why}): wait for it or stop it, or give another parent cgroup"
    )]
    Busy { path: PathBuf, why: String },
    #[error("cannot start the load's processes: {0}")]
    Spawn(io::Error),
    /// A process of the load failed; the text says which, why, and what to do.
    #[error("the load failed: {0}")]
    Worker(String),
    #[error(
        "the load is not ready after {waited_s} s: {progress}; give it more time or less to do"
    )]
    NotReady { waited_s: u64, progress: String },
    #[error("the load is stopped, but {0}")]
    LeftBehind(String),
    #[error("`{text}` is not a load: {why}")]
    Syntax { text: String, why: String },
}

/// What to do about an error number that a worker meets.
pub(super) fn advice(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EMFILE) => "; the process is out of file descriptors: raise `ulimit -Hn`",
        Some(libc::ENFILE) => "; the node is out of open files: raise sysctl fs.file-max",
        Some(libc::EADDRNOTAVAIL) => {
            "; no local port is free: widen sysctl net.ipv4.ip_local_port_range"
        }
        Some(libc::ENOMEM) => "; out of memory: ask for fewer connections or bytes",
        Some(libc::ENOSPC) => "; a kernel limit or the disk is full: see sysctl user.* and df",
        Some(libc::EAGAIN) => "; out of processes: see `ulimit -u`, pids.max, kernel.pid_max",
        Some(libc::EPERM | libc::EACCES) => "; run as root",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_is_one_line() {
        let errors = [
            WorkloadError::DoesNotFit("1 + 1 = 2 of 1".into()),
            WorkloadError::Busy {
                path: "/a".into(),
                why: "group-00 has process 7".into(),
            },
            WorkloadError::NotReady {
                waited_s: 3,
                progress: "1 of 2 connections".into(),
            },
        ];
        for error in errors {
            assert!(!error.to_string().contains('\n'), "{error}");
        }
    }

    #[test]
    fn running_out_of_descriptors_says_which_limit_to_raise() {
        let error = io::Error::from_raw_os_error(libc::EMFILE);
        assert!(advice(&error).contains("ulimit -Hn"));
    }
}
