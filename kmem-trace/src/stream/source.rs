//! Where batches come from: the ring or, where the kernel has none, the perf buffers.

use super::{decode::Batch, perf::Perf, ring::Ring};

/// The consuming end of either.
pub enum Source {
    Ring(Ring),
    Perf(Perf),
}

impl Source {
    /// Returns when the programs have woken us.
    pub async fn filling(&mut self) {
        match self {
            Self::Ring(ring) => ring.filling().await,
            Self::Perf(perf) => perf.filling().await,
        }
    }

    /// What waits; an empty batch means nothing does.
    pub fn drain(&mut self) -> Batch {
        match self {
            Self::Ring(ring) => ring.drain(),
            Self::Perf(perf) => perf.drain(),
        }
    }

    /// Records that were lost, where the source tells; the programs count them as well.
    pub fn lost(&self) -> u64 {
        match self {
            Self::Ring(_) => 0,
            Self::Perf(perf) => perf.lost(),
        }
    }
}
