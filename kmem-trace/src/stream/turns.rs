//! Records of several CPUs, put in the order of time.

use std::ops::Range;

use bytes::BytesMut;
use kmem_trace_ebpf::record::Header;
use zerocopy::FromBytes as _;

use super::{decode::Batch, source::now_ns};

/// Records younger than this may have older ones of another CPU still to come, ns: a virtual CPU is
/// kept from running for milliseconds, in the middle of a record too.
const UNSETTLED_NS: u64 = 20_000_000;

/// Up to when all records have come, on the programs' clock.
pub fn settled_now() -> u64 {
    settled_at(now_ns())
}

/// Up to when all records have come once one of this time has.
pub fn settled_at(time_ns: u64) -> u64 {
    time_ns.saturating_sub(UNSETTLED_NS)
}

/// Records whose turn has not come.
#[derive(Debug, Default)]
pub struct Turns {
    bytes: Vec<u8>,
    records: Vec<(u64, Range<usize>)>,
}

impl Turns {
    /// Takes one record, in two parts where it wraps around its buffer, without what the kernel may
    /// have put behind it to fill its place up. Returns its time, ns; 0 of what is no record, which
    /// is left out.
    pub fn add(&mut self, head: &[u8], tail: &[u8]) -> u64 {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(head);
        self.bytes.extend_from_slice(tail);
        let Ok((header, _)) = Header::read_from_prefix(&self.bytes[start..]) else {
            self.bytes.truncate(start);
            return 0;
        };
        self.bytes.truncate(start + usize::from(header.len));
        self.records.push((header.time_ns, start..self.bytes.len()));
        header.time_ns
    }

    /// The records up to a time, in its order; the others stay.
    pub fn until(&mut self, until_ns: u64) -> Batch {
        self.records.sort_by_key(|(time_ns, _)| *time_ns);
        let count = self
            .records
            .partition_point(|(time_ns, _)| *time_ns <= until_ns);
        let mut batch = BytesMut::with_capacity(self.bytes.len());
        for (_, place) in self.records.drain(..count) {
            batch.extend_from_slice(&self.bytes[place]);
        }
        let mut rest = Vec::with_capacity(self.bytes.len() - batch.len());
        for (_, place) in &mut self.records {
            let start = rest.len();
            rest.extend_from_slice(&self.bytes[place.clone()]);
            *place = start..rest.len();
        }
        self.bytes = rest;
        Batch::new(batch.freeze())
    }

    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }
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

    fn times(batch: &Batch) -> Vec<u64> {
        batch
            .as_bytes()
            .chunks(size_of::<Header>())
            .map(|bytes| Header::read_from_bytes(bytes).expect("whole").time_ns)
            .collect()
    }

    #[test]
    fn records_of_several_cpus_come_in_the_order_of_time_and_the_youngest_wait() {
        let mut turns = Turns::default();
        for time in [30, 10, 40, 20] {
            assert_eq!(turns.add(&header(time), &[]), time);
        }
        assert_eq!(times(&turns.until(30)), [10, 20, 30]);
        assert!(!turns.is_empty());
        turns.add(&header(35), &[]);
        assert_eq!(times(&turns.until(40)), [35, 40]);
        assert!(turns.is_empty());
    }

    #[test]
    fn what_was_stamped_a_little_earlier_may_be_behind_the_record_taken_last() {
        assert_eq!(settled_at(5 * UNSETTLED_NS), 4 * UNSETTLED_NS);
        assert_eq!(settled_at(1), 0);
        assert!(settled_now() < now_ns());
    }

    #[test]
    fn a_record_that_wraps_around_its_buffer_is_put_together_and_loses_its_filling() {
        let mut bytes = header(7);
        bytes.extend([0xff; 4]);
        let (head, tail) = bytes.split_at(13);
        let mut turns = Turns::default();
        assert_eq!(turns.add(head, tail), 7);
        assert_eq!(turns.add(&bytes[..20], &[]), 0);
        assert_eq!(turns.until(7).as_bytes()[..], header(7));
        assert!(turns.is_empty());
    }
}
