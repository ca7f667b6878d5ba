//! The ring buffer as a source of batches.

use std::os::fd::{AsRawFd, RawFd};

use aya::maps::{MapData, RingBuf};
use bytes::BytesMut;
use tokio::io::{Interest, unix::AsyncFd};

use super::decode::Batch;

/// A batch is handed on when it has grown to this many bytes, so that a flood cannot keep the
/// reader from ever handing anything on.
const BATCH_BYTES: usize = 256 * 1024;

/// The map, and with it the descriptor that is watched.
struct Watched(RingBuf<MapData>);

impl AsRawFd for Watched {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// The consuming end of the ring.
pub struct Ring {
    watched: AsyncFd<Watched>,
    /// Of records that found the first one busy; few, and never a reason to wake.
    spare: RingBuf<MapData>,
    /// Where the next batch goes: the memory of the last one, if nobody kept it.
    bytes: BytesMut,
}

impl Ring {
    /// Takes the maps over. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// Where the runtime cannot watch the map's descriptor.
    pub fn new(ring: RingBuf<MapData>, spare: RingBuf<MapData>) -> std::io::Result<Self> {
        // SAFETY: the descriptor is the map's own, stays the same and open until the map is
        // dropped, and the map is owned by what watches it.
        let watched =
            unsafe { AsyncFd::register_with_interest(Watched(ring), Interest::READABLE) }?;
        Ok(Self {
            watched,
            spare,
            bytes: BytesMut::new(),
        })
    }

    /// Returns when the programs have woken us because the ring fills.
    pub async fn filling(&mut self) {
        if let Ok(mut guard) = self.watched.readable().await {
            guard.clear_ready();
        }
    }

    /// What waits in the rings, at most a batch of each; an empty batch means nothing waits.
    pub fn drain(&mut self) -> Batch {
        let bytes = &mut self.bytes;
        for ring in [&mut self.watched.get_mut().0, &mut self.spare] {
            let most = bytes.len() + BATCH_BYTES;
            while bytes.len() < most {
                let Some(item) = ring.next() else {
                    break;
                };
                if bytes.capacity() - bytes.len() < item.len() {
                    bytes.reserve(2 * BATCH_BYTES);
                }
                bytes.extend_from_slice(&item);
            }
        }
        Batch::new(bytes.split().freeze())
    }
}
