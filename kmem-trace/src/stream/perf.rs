//! Perf buffers, one for each CPU, as a source of batches: where the kernel has no ring buffer.

use std::{os::fd::AsFd as _, time::Duration};

use anyhow::{Context as _, Result, anyhow};
use aya::{
    maps::{
        MapData, PerfEventArray,
        perf::{PerfEvent, PerfEventArrayBuffer},
    },
    util::online_cpus,
};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use tokio::io::{Interest, unix::AsyncFd};

use super::{
    decode::Batch,
    turns::{Turns, settled_now},
};

/// The kernel wakes us for each record; so long more are waited for.
const GATHER: Duration = Duration::from_millis(2);

/// The buffers of all CPUs that were online at the start. Records of others are lost, and counted.
pub struct Perf {
    buffers: Vec<PerfEventArrayBuffer<MapData>>,
    /// Readable when one of them is.
    any: AsyncFd<std::os::fd::OwnedFd>,
    /// Records whose turn has not come.
    turns: Turns,
    /// What the kernel said that it had no room for.
    lost: u64,
    /// All records up to then were given out, on the programs' clock.
    settled_ns: u64,
}

impl Perf {
    /// Opens the buffers, which share `bytes` of pages of `page_bytes`. Must be called within a tokio
    /// runtime.
    ///
    /// # Errors
    /// Where the kernel does not open one, or the runtime cannot watch them.
    pub fn open(mut map: PerfEventArray<MapData>, bytes: usize, page_bytes: u64) -> Result<Self> {
        let cpus = online_cpus().map_err(|(file, error)| anyhow!("cannot read {file}: {error}"))?;
        let pages = pages_each(bytes, cpus.len(), page_bytes as usize);
        let any = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let mut buffers = Vec::new();
        for cpu in cpus {
            let buffer = map
                .open(cpu, Some(pages))
                .with_context(|| format!("cannot open a perf buffer for CPU {cpu}"))?;
            any.add(buffer.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, 0))?;
            buffers.push(buffer);
        }
        // SAFETY: the descriptor is owned by what watches it, and closed with it.
        let any = unsafe { AsyncFd::register_with_interest(any.0, Interest::READABLE) }?;
        Ok(Self {
            buffers,
            any,
            turns: Turns::default(),
            lost: 0,
            settled_ns: 0,
        })
    }

    /// Returns a little after a program wrote.
    pub async fn filling(&mut self) {
        if let Ok(mut guard) = self.any.readable().await {
            guard.clear_ready();
            tokio::time::sleep(GATHER).await;
        }
    }

    /// What waits in the buffers, in the order of time; what came just now waits for the next time.
    pub fn drain(&mut self) -> Batch {
        self.settled_ns = settled_now();
        for buffer in &mut self.buffers {
            buffer.for_each(|event| match event {
                PerfEvent::Sample { head, tail } => {
                    self.turns.add(head, tail);
                }
                PerfEvent::Lost { count } => self.lost += count,
            });
        }
        self.turns.until(self.settled_ns)
    }

    /// All records up to this time were given out.
    pub fn settled_ns(&self) -> u64 {
        self.settled_ns
    }

    /// Whether records wait for their turn.
    pub fn holds_back(&self) -> bool {
        !self.turns.is_empty()
    }

    /// Records that the kernel said it had no room for.
    pub fn lost(&self) -> u64 {
        self.lost
    }
}

/// Pages of each buffer, a power of two.
fn pages_each(bytes: usize, buffers: usize, page_bytes: usize) -> usize {
    let pages = bytes / buffers.max(1) / page_bytes;
    1 << pages.max(1).ilog2()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_share_what_one_ring_would_have_and_have_a_page_at_least() {
        assert_eq!(pages_each(1 << 20, 2, 4096), 128);
        assert_eq!(pages_each(1 << 20, 3, 4096), 64);
        assert_eq!(pages_each(4096, 8, 4096), 1);
    }
}
