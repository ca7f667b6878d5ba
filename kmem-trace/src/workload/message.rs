//! What the caller, the supervisor and the workers say to each other: one JSON value a packet on
//! a `SOCK_SEQPACKET` pair. All workers inherit the supervisor's end and write to it themselves;
//! packets keep them apart. An end that closes is a message too: the caller is gone, or all of
//! the load is.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    time::Duration,
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{Layout, groups::Tree};

/// A packet never is larger: paths and texts are short, groups are named by number.
const PACKET_BYTES: usize = 64 * 1024;

/// Caller to supervisor, once; closing the socket then means "stop".
#[derive(Debug, Serialize, Deserialize)]
pub struct Order {
    pub layout: Layout,
    pub tree: Tree,
}

/// Supervisor and workers to the caller.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Report {
    /// Connections accepted, and bytes made, by this worker so far. May get lost: the next one
    /// makes up for it.
    Progress {
        worker: u32,
        connections: u64,
        bytes: u64,
    },
    /// This worker made all of its share.
    Ready {
        worker: u32,
        connections: u64,
        bytes: u64,
    },
    /// The load cannot go on; which process, why, what to do.
    Failed(String),
}

/// One end.
#[derive(Debug)]
pub struct Channel(OwnedFd);

impl Channel {
    /// Both ends, closed on exec.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (a, b) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )?;
        Ok((Self(a), Self(b)))
    }

    pub fn into_fd(self) -> OwnedFd {
        self.0
    }

    /// Sends, waiting for room.
    pub fn send(&self, message: &impl Serialize) -> io::Result<()> {
        let bytes = serde_json::to_vec(message)?;
        send(self.0.as_raw_fd(), &bytes, MsgFlags::MSG_NOSIGNAL)?;
        Ok(())
    }

    /// Sends if there is room; a full queue or a gone reader is no error.
    pub fn offer(&self, message: &impl Serialize) {
        if let Ok(bytes) = serde_json::to_vec(message) {
            let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
            let _ = send(self.0.as_raw_fd(), &bytes, flags);
        }
    }

    /// The next message if one is there: `Ok(None)` when not, `UnexpectedEof` when the other end
    /// is closed.
    pub fn try_receive<T: DeserializeOwned>(&self) -> io::Result<Option<T>> {
        let mut bytes = vec![0; PACKET_BYTES];
        match recv(self.0.as_raw_fd(), &mut bytes, MsgFlags::MSG_DONTWAIT) {
            Ok(0) | Err(Errno::ECONNRESET) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(length) => Ok(Some(serde_json::from_slice(&bytes[..length])?)),
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Waits until there is something to receive (or the other end closed) or time is up.
    pub fn wait(&self, timeout: Duration) -> io::Result<()> {
        let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
        match poll(
            &mut [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)],
            timeout,
        ) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

impl From<OwnedFd> for Channel {
    fn from(fd: OwnedFd) -> Self {
        Self(fd)
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_arrive_whole_and_in_order() {
        let (a, b) = Channel::pair().unwrap();
        a.send(&Report::Progress {
            worker: 1,
            connections: 2,
            bytes: 3,
        })
        .unwrap();
        a.offer(&Report::Failed("no".into()));
        assert_eq!(
            b.try_receive::<Report>().unwrap(),
            Some(Report::Progress {
                worker: 1,
                connections: 2,
                bytes: 3
            })
        );
        assert_eq!(
            b.try_receive::<Report>().unwrap(),
            Some(Report::Failed("no".into()))
        );
        assert_eq!(b.try_receive::<Report>().unwrap(), None);
    }

    #[test]
    fn a_closed_end_is_told_after_the_last_message() {
        let (a, b) = Channel::pair().unwrap();
        a.send(&Report::Failed("last".into())).unwrap();
        drop(a);
        assert!(b.try_receive::<Report>().unwrap().is_some());
        let error = b.try_receive::<Report>().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn an_offer_to_a_full_queue_does_not_block() {
        let (a, _b) = Channel::pair().unwrap();
        for _ in 0..10_000 {
            a.offer(&Report::Failed("again".into()));
        }
    }
}
