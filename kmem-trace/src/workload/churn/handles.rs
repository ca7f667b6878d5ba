//! Loads that a file descriptor stands for, and processes.

use std::{
    fs::File,
    io::{self, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::{
        fd::{FromRawFd, OwnedFd},
        unix::net::UnixStream,
    },
};

use nix::{
    errno::Errno,
    sys::{
        epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags},
        eventfd::EventFd,
        wait::waitpid,
    },
    unistd::{ForkResult, Pid, fork, pipe},
};

use super::{Held, failed, need_files};
use crate::workload::{WorkloadError, worker::connections::address};

/// Each epoll instance watches this many files.
const EPOLL_FILES: u64 = 1_000;
const FORKS_AT_ONCE: u64 = 32;
const RING_ENTRIES: u32 = 64;

/// `n` loopback connections, both ends held.
///
/// # Errors
/// See [`WorkloadError::DoesNotFit`]; or a socket could not be made.
pub fn tcp(n: u64) -> Result<Held, WorkloadError> {
    need_files("connections", n, 2)?;
    let error = failed("make a connection");
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).map_err(&error)?;
    let port = listener.local_addr().map_err(&error)?.port();
    let mut held = Held::default();
    for index in 0..n {
        held.files.push(
            TcpStream::connect(address(index, port))
                .map_err(&error)?
                .into(),
        );
        held.files.push(listener.accept().map_err(&error)?.0.into());
    }
    held.files.push(listener.into());
    Ok(held)
}

/// `n` empty pipes.
///
/// # Errors
/// As [`tcp`].
pub fn pipes(n: u64) -> Result<Held, WorkloadError> {
    need_files("pipes", n, 2)?;
    let mut held = Held::default();
    for _ in 0..n {
        let (read, write) = pipe().map_err(|e| failed("make a pipe")(e.into()))?;
        held.files.extend([read, write]);
    }
    Ok(held)
}

/// `n` connected pairs of unix sockets.
///
/// # Errors
/// As [`tcp`].
pub fn unix_sockets(n: u64) -> Result<Held, WorkloadError> {
    need_files("socket pairs", n, 2)?;
    let mut held = Held::default();
    for _ in 0..n {
        let (a, b) = UnixStream::pair().map_err(failed("make a socket pair"))?;
        held.files.extend([a.into(), b.into()]);
    }
    Ok(held)
}

/// `n` entries, spread over instances that all watch the same event files: so a hundred thousand
/// take a thousand file descriptors and a bit.
///
/// # Errors
/// As [`tcp`]; above `fs.epoll.max_user_watches` the kernel refuses.
pub fn epoll(n: u64) -> Result<Held, WorkloadError> {
    need_files(
        "epoll files and instances",
        n.min(EPOLL_FILES) + n.div_ceil(EPOLL_FILES),
        1,
    )?;
    let error = |errno: Errno| failed("watch a file with epoll")(errno.into());
    let watched: Vec<EventFd> = (0..n.min(EPOLL_FILES))
        .map(|_| EventFd::new())
        .collect::<Result<_, _>>()
        .map_err(error)?;
    let mut held = Held::default();
    let mut left = n;
    while left > 0 {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(error)?;
        for file in watched
            .iter()
            .take(usize::try_from(left).unwrap_or(usize::MAX))
        {
            epoll
                .add(file, EpollEvent::new(EpollFlags::EPOLLIN, 0))
                .map_err(error)?;
            left -= 1;
        }
        held.files.push(epoll.0);
    }
    held.files.extend(watched.into_iter().map(OwnedFd::from));
    Ok(held)
}

/// `n` memory files of 4096 bytes each.
///
/// # Errors
/// As [`tcp`].
pub fn memfd(n: u64) -> Result<Held, WorkloadError> {
    need_files("memory files", n, 1)?;
    let error = failed("make a memory file");
    let mut held = Held::default();
    for _ in 0..n {
        // SAFETY: the name is a string constant; the result is checked before it is owned.
        let mut file = unsafe {
            let fd = libc::memfd_create(c"kmem-trace".as_ptr(), libc::MFD_CLOEXEC);
            File::from(owned(fd.into()).map_err(&error)?)
        };
        file.write_all(&[0x5a; 4096]).map_err(&error)?;
        held.files.push(file.into());
    }
    Ok(held)
}

/// `n` rings, never entered.
///
/// # Errors
/// As [`tcp`]; ENOSYS or EPERM where the kernel has none or forbids them.
pub fn io_uring(n: u64) -> Result<Held, WorkloadError> {
    need_files("rings", n, 1)?;
    let mut held = Held::default();
    for _ in 0..n {
        // `struct io_uring_params`: 120 bytes, all zero asks for nothing special.
        let mut params = [0_u64; 15];
        // SAFETY: the kernel writes one `io_uring_params`; the result is checked before owned.
        let ring = unsafe {
            let fd = libc::syscall(libc::SYS_io_uring_setup, RING_ENTRIES, params.as_mut_ptr());
            owned(fd).map_err(failed("make a ring"))?
        };
        held.files.push(ring);
    }
    Ok(held)
}

/// `n` processes that end at once, in waves.
///
/// # Errors
/// EAGAIN when there are too many processes.
pub fn forks(n: u64) -> Result<(), WorkloadError> {
    let error = |errno: Errno| failed("fork")(errno.into());
    let mut left = n;
    while left > 0 {
        let mut wave: Vec<Pid> = Vec::new();
        let mut result = Ok(());
        while result.is_ok() && (wave.len() as u64) < left.min(FORKS_AT_ONCE) {
            // SAFETY: the child does nothing but end.
            match unsafe { fork() } {
                Ok(ForkResult::Parent { child }) => wave.push(child),
                Ok(ForkResult::Child) => unsafe { libc::_exit(0) },
                Err(errno) => result = Err(errno),
            }
        }
        left -= wave.len() as u64;
        for child in wave {
            while waitpid(child, None) == Err(Errno::EINTR) {}
        }
        result.map_err(error)?;
    }
    Ok(())
}

/// # Safety
/// A `fd` that is not negative must be new and owned by nobody else.
unsafe fn owned(fd: i64) -> io::Result<OwnedFd> {
    match i32::try_from(fd) {
        // SAFETY: as the caller promised.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::fd::AsRawFd};

    use super::*;

    /// What `/proc/self/fd` says the held files are.
    fn links(held: &Held, kind: &str) -> usize {
        let link = |file: &OwnedFd| fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()));
        held.files
            .iter()
            .filter(|file| link(file).is_ok_and(|link| link.to_string_lossy().contains(kind)))
            .count()
    }

    #[test]
    fn both_ends_of_each_connection_are_held() {
        assert_eq!(links(&tcp(50).unwrap(), "socket:"), 101);
    }

    #[test]
    fn pipes_and_unix_sockets_come_in_pairs() {
        assert_eq!(links(&pipes(7).unwrap(), "pipe:"), 14);
        assert_eq!(links(&unix_sockets(7).unwrap(), "socket:"), 14);
    }

    #[test]
    fn epoll_entries_are_spread_over_instances() {
        let held = epoll(2_500).unwrap();
        let entries: usize = held
            .files
            .iter()
            .map(|file| {
                let path = format!("/proc/self/fdinfo/{}", file.as_raw_fd());
                let info = fs::read_to_string(path).unwrap();
                info.lines().filter(|line| line.starts_with("tfd:")).count()
            })
            .sum();
        assert_eq!(entries, 2_500);
        assert_eq!(links(&held, "eventpoll"), 3);
    }

    #[test]
    fn memory_files_hold_a_page_each() {
        assert_eq!(links(&memfd(5).unwrap(), "memfd:kmem-trace"), 5);
    }

    #[test]
    fn a_storm_of_forks_leaves_no_child() {
        forks(70).unwrap();
        let children = fs::read_to_string("/proc/thread-self/children").unwrap_or_default();
        assert_eq!(children.trim(), "");
    }
}
