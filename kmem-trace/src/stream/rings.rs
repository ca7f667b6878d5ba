//! The ring buffers as a source of batches: one or, where many CPUs would wait for one another,
//! several, whose records are put in order.

use std::os::fd::{AsFd as _, OwnedFd};

use aya::maps::{MapData, RingBuf};
use bytes::BytesMut;
use kmem_trace_ebpf::record::Header;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use tokio::io::{Interest, unix::AsyncFd};
use zerocopy::FromBytes as _;

use super::{
    decode::Batch,
    turns::{Turns, settled_at, settled_now},
};

/// A batch is handed on when it has grown to this many bytes, so that a flood cannot keep the
/// reader from ever handing anything on.
const BATCH_BYTES: usize = 256 * 1024;

/// The consuming end of the rings.
pub struct Rings {
    rings: Vec<RingBuf<MapData>>,
    /// Of records that found theirs busy; few, and never a reason to wake.
    spare: RingBuf<MapData>,
    /// Readable when one of the rings is.
    any: AsyncFd<OwnedFd>,
    /// Where the next batch of a single ring goes: the memory of the last one, if nobody kept it.
    bytes: BytesMut,
    /// Records of several, in order.
    turns: Turns,
    settled_ns: u64,
    /// More waits than was taken last.
    more: bool,
}

impl Rings {
    /// Takes the maps over. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// Where the kernel or the runtime cannot watch the maps' descriptors.
    pub fn new(rings: Vec<RingBuf<MapData>>, spare: RingBuf<MapData>) -> std::io::Result<Self> {
        let any = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        for ring in &rings {
            any.add(ring.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, 0))?;
        }
        // SAFETY: the descriptor is owned by what watches it, and closed with it.
        let any = unsafe { AsyncFd::register_with_interest(any.0, Interest::READABLE) }?;
        Ok(Self {
            rings,
            spare,
            any,
            bytes: BytesMut::new(),
            turns: Turns::default(),
            settled_ns: 0,
            more: false,
        })
    }

    /// Returns when the programs have woken us because a ring fills.
    pub async fn filling(&mut self) {
        if let Ok(mut guard) = self.any.readable().await {
            guard.clear_ready();
        }
    }

    /// What waits in the rings, at most a batch of each; an empty batch means nothing waits, unless
    /// [`Self::has_more`]. Of several, what came just now waits for the next time.
    pub fn drain(&mut self) -> Batch {
        self.settled_ns = settled_now();
        if let [ring] = &mut self.rings[..] {
            for ring in [ring, &mut self.spare] {
                if let Some(time_ns) = append(ring, &mut self.bytes) {
                    self.settled_ns = self.settled_ns.min(settled_at(time_ns));
                }
            }
            return Batch::new(self.bytes.split().freeze());
        }
        self.more = false;
        for ring in self.rings.iter_mut().chain([&mut self.spare]) {
            let mut taken = 0;
            while let Some(item) = ring.next() {
                let time_ns = self.turns.add(&item, &[]);
                taken += item.len();
                // What waits in this ring is younger, and older than what others may have had.
                if taken >= BATCH_BYTES {
                    self.settled_ns = self.settled_ns.min(time_ns);
                    self.more = true;
                    break;
                }
            }
        }
        self.turns.until(self.settled_ns)
    }

    /// All records up to this time were given out.
    pub fn settled_ns(&self) -> u64 {
        self.settled_ns
    }

    /// Whether more waits though a batch was empty: all that was taken came just now.
    pub fn has_more(&self) -> bool {
        self.more
    }

    /// Whether records wait for their turn.
    pub fn holds_back(&self) -> bool {
        !self.turns.is_empty()
    }
}

/// Takes a batch. Returns the time of the last record if more may wait.
fn append(ring: &mut RingBuf<MapData>, bytes: &mut BytesMut) -> Option<u64> {
    let most = bytes.len() + BATCH_BYTES;
    let mut time_ns = 0;
    while bytes.len() < most {
        let item = ring.next()?;
        time_ns = Header::read_from_prefix(&item).map_or(time_ns, |(header, _)| header.time_ns);
        if bytes.capacity() - bytes.len() < item.len() {
            bytes.reserve(2 * BATCH_BYTES);
        }
        bytes.extend_from_slice(&item);
    }
    Some(time_ns)
}
