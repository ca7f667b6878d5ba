//! Where batches come from: the rings or, where the kernel has none, the perf buffers.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

use super::{decode::Batch, perf::Perf, rings::Rings};

/// The consuming end of either.
pub enum Source {
    Rings(Box<Rings>),
    Perf(Perf),
}

impl Source {
    /// Returns when the programs have woken us.
    pub async fn filling(&mut self) {
        match self {
            Self::Rings(rings) => rings.filling().await,
            Self::Perf(perf) => perf.filling().await,
        }
    }

    /// What waits; an empty batch means nothing does.
    pub fn drain(&mut self) -> Batch {
        match self {
            Self::Rings(rings) => rings.drain(),
            Self::Perf(perf) => perf.drain(),
        }
    }

    /// Records up to this time were given out.
    pub fn settled_ns(&self) -> u64 {
        match self {
            Self::Rings(rings) => rings.settled_ns(),
            Self::Perf(perf) => perf.settled_ns(),
        }
    }

    /// Whether more waits though a batch was empty.
    pub fn has_more(&self) -> bool {
        match self {
            Self::Rings(rings) => rings.has_more(),
            Self::Perf(_) => false,
        }
    }

    /// Whether records are held back that older ones may still come before.
    pub fn holds_back(&self) -> bool {
        match self {
            Self::Rings(rings) => rings.holds_back(),
            Self::Perf(perf) => perf.holds_back(),
        }
    }

    /// Records that were lost, where the source tells; the programs count them as well.
    pub fn lost(&self) -> u64 {
        match self {
            Self::Rings(_) => 0,
            Self::Perf(perf) => perf.lost(),
        }
    }
}

/// Now, on the programs' clock (`bpf_ktime_get_ns`).
pub fn now_ns() -> u64 {
    // It is there on every Linux.
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |now| Duration::from(now).as_nanos() as u64)
}
