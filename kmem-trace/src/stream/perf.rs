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
use bytes::BytesMut;
use kmem_trace_ebpf::record::Header;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use tokio::io::{Interest, unix::AsyncFd};
use zerocopy::FromBytes as _;

use super::{decode::Batch, source::now_ns};

/// The kernel wakes us for each record; so long more are waited for.
const GATHER: Duration = Duration::from_millis(2);
/// Records younger than this may have older ones of another CPU still to come, ns.
const UNSETTLED_NS: u64 = 1_000_000;

/// The buffers of all CPUs that were online at the start. Records of others are lost, and counted.
pub struct Perf {
    buffers: Vec<PerfEventArrayBuffer<MapData>>,
    /// Readable when one of them is.
    any: AsyncFd<std::os::fd::OwnedFd>,
    /// Records whose turn has not come.
    early: Vec<(u64, Vec<u8>)>,
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
            early: Vec::new(),
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
        self.settled_ns = now_ns().saturating_sub(UNSETTLED_NS);
        let mut records = std::mem::take(&mut self.early);
        for buffer in &mut self.buffers {
            buffer.for_each(|event| match event {
                PerfEvent::Sample { head, tail } => records.extend(whole(head, tail)),
                PerfEvent::Lost { count } => self.lost += count,
            });
        }
        let (batch, early) = in_turn(records, self.settled_ns);
        self.early = early;
        batch
    }

    /// All records up to this time were given out.
    pub fn settled_ns(&self) -> u64 {
        self.settled_ns
    }

    /// Whether records wait for their turn.
    pub fn holds_back(&self) -> bool {
        !self.early.is_empty()
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

/// A record without what the kernel puts behind it to fill its place up; its time first.
fn whole(head: &[u8], tail: &[u8]) -> Option<(u64, Vec<u8>)> {
    let mut bytes = [head, tail].concat();
    let (header, _) = Header::read_from_prefix(&bytes).ok()?;
    bytes.truncate(usize::from(header.len));
    Some((header.time_ns, bytes))
}

/// The records up to a time in its order, and the rest.
fn in_turn(mut records: Vec<(u64, Vec<u8>)>, until_ns: u64) -> (Batch, Vec<(u64, Vec<u8>)>) {
    records.sort_by_key(|(time_ns, _)| *time_ns);
    let count = records.partition_point(|(time_ns, _)| *time_ns <= until_ns);
    let early = records.split_off(count);
    let mut bytes = BytesMut::with_capacity(records.iter().map(|(_, bytes)| bytes.len()).sum());
    for (_, record) in &records {
        bytes.extend_from_slice(record);
    }
    (Batch::new(bytes.freeze()), early)
}

#[cfg(test)]
mod tests {
    use zerocopy::IntoBytes as _;

    use super::*;

    fn header(time_ns: u64) -> Vec<u8> {
        let header = Header {
            len: size_of::<Header>() as u16,
            time_ns,
            ..Header::default()
        };
        header.as_bytes().to_vec()
    }

    #[test]
    fn records_of_several_cpus_come_in_the_order_of_time_and_the_youngest_wait() {
        let records = [30, 10, 20, 40].map(|time| (time, header(time))).to_vec();
        let (batch, early) = in_turn(records, 30);
        let times: Vec<u64> = batch
            .as_bytes()
            .chunks(size_of::<Header>())
            .map(|bytes| Header::read_from_bytes(bytes).expect("whole").time_ns)
            .collect();
        assert_eq!(times, [10, 20, 30]);
        assert_eq!(early, [(40, header(40))]);
    }

    #[test]
    fn a_record_that_wraps_around_its_buffer_is_put_together_and_loses_its_filling() {
        let mut bytes = header(7);
        bytes.extend([0xff; 4]);
        let (head, tail) = bytes.split_at(13);
        assert_eq!(whole(head, tail), Some((7, header(7))));
        assert_eq!(whole(&bytes[..20], &[]), None);
    }

    #[test]
    fn buffers_share_what_one_ring_would_have_and_have_a_page_at_least() {
        assert_eq!(pages_each(1 << 20, 2, 4096), 128);
        assert_eq!(pages_each(1 << 20, 3, 4096), 64);
        assert_eq!(pages_each(4096, 8, 4096), 1);
    }
}
