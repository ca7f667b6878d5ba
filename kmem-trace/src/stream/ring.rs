//! The ring buffer as a source of batches.

use std::os::fd::{AsRawFd, RawFd};

use aya::maps::{MapData, RingBuf};
use bytes::BytesMut;
use tokio::io::{Interest, unix::AsyncFd};

use super::decode::Batch;

/// A batch is handed on when it has grown to this many bytes, so that a flood cannot keep the
/// reader from ever handing anything on.
const BATCH_BYTES: usize = 256 * 1024;

struct Descriptor(RawFd);

impl AsRawFd for Descriptor {
    fn as_raw_fd(&self) -> RawFd {
        self.0
    }
}

/// The consuming end of the ring.
pub struct Ring {
    ring: RingBuf<MapData>,
    readiness: AsyncFd<Descriptor>,
}

impl Ring {
    /// Takes the map over. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// Where the runtime cannot watch the map's descriptor.
    pub fn new(ring: RingBuf<MapData>) -> std::io::Result<Self> {
        let readiness =
            AsyncFd::with_interest(Descriptor(ring.as_raw_fd()), Interest::READABLE)?;
        Ok(Self { ring, readiness })
    }

    /// Returns when the programs have woken us because the ring fills.
    pub async fn filling(&mut self) {
        if let Ok(mut guard) = self.readiness.readable().await {
            guard.clear_ready();
        }
    }

    /// What waits in the ring, at most a batch; an empty batch means nothing waits.
    pub fn drain(&mut self) -> Batch {
        let mut bytes = BytesMut::new();
        while bytes.len() < BATCH_BYTES {
            let Some(item) = self.ring.next() else { break };
            bytes.extend_from_slice(&item);
        }
        Batch::new(bytes.freeze())
    }
}
