//! Bytes of the wire → typed records, borrowed from the batch they came in.

use bytes::{Bytes, BytesMut};
use kmem_trace_ebpf::record::{
    CgroupRecord, CounterRecord, Header, KIND_CGROUP, KIND_COUNTER, KIND_LIMIT, KIND_SLAB,
    KIND_STATE, KIND_USER_CHARGE, LimitRecord, SlabRecord, StateRecord, UserChargeRecord,
};
use thiserror::Error;
use zerocopy::{FromBytes, Immutable, KnownLayout};

/// Records begin at multiples of this many bytes, in the ring and in files.
pub const ALIGNMENT: usize = 8;

/// One record, borrowed from its batch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Record<'a> {
    Counter(&'a CounterRecord),
    UserCharge(&'a UserChargeRecord),
    State(&'a StateRecord),
    Slab(&'a SlabRecord),
    Limit(&'a LimitRecord),
    Cgroup(&'a CgroupRecord),
}

impl Record<'_> {
    /// What every record begins with.
    pub fn header(&self) -> &Header {
        match self {
            Self::Counter(record) => &record.header,
            Self::UserCharge(record) => &record.header,
            Self::State(record) => &record.header,
            Self::Slab(record) => &record.header,
            Self::Limit(record) => &record.header,
            Self::Cgroup(record) => &record.header,
        }
    }
}

/// Why bytes are not a record.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum DecodeError {
    #[error("record at byte {at}: {have} bytes left, {need} needed: the data is cut short")]
    Truncated { at: usize, have: usize, need: usize },
    #[error("record at byte {at}: kind {kind} has {len} bytes, not {expected}")]
    Length {
        at: usize,
        kind: u16,
        len: u16,
        expected: usize,
    },
    #[error("record at byte {at}: kind {kind} is not known to this version")]
    Kind { at: usize, kind: u16 },
    #[error("record at byte {at} is not aligned to {ALIGNMENT} bytes")]
    Unaligned { at: usize },
}

/// A batch of records as they came from the ring.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    bytes: Bytes,
}

impl Batch {
    /// Takes the bytes of whole records. Copies them only where the allocation is not aligned.
    pub fn new(bytes: Bytes) -> Self {
        if bytes.as_ptr().addr().is_multiple_of(ALIGNMENT) {
            return Self { bytes };
        }
        let mut moved = BytesMut::with_capacity(bytes.len() + ALIGNMENT);
        let misfit = moved.as_ptr().addr() % ALIGNMENT;
        let skip = (ALIGNMENT - misfit) % ALIGNMENT;
        moved.resize(skip, 0);
        moved.extend_from_slice(&bytes);
        Self {
            bytes: moved.freeze().slice(skip..),
        }
    }

    pub fn as_bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The records in order; after an error nothing more comes, as lengths can no longer be trusted.
    pub fn records(&self) -> Records<'_> {
        Records {
            bytes: &self.bytes,
            at: 0,
        }
    }
}

/// Iterator over a batch.
#[derive(Clone, Debug)]
pub struct Records<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<Record<'a>, DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        let rest = self.bytes.get(self.at..).filter(|rest| !rest.is_empty())?;
        match one(rest, self.at) {
            Ok((record, len)) => {
                self.at += len;
                Some(Ok(record))
            }
            Err(error) => {
                self.at = self.bytes.len();
                Some(Err(error))
            }
        }
    }
}

fn one(bytes: &[u8], at: usize) -> Result<(Record<'_>, usize), DecodeError> {
    let header: &Header = prefix(bytes, at)?;
    let record = match header.kind {
        KIND_COUNTER => Record::Counter(sized(bytes, header, at)?),
        KIND_USER_CHARGE => Record::UserCharge(sized(bytes, header, at)?),
        KIND_STATE => Record::State(sized(bytes, header, at)?),
        KIND_SLAB => Record::Slab(sized(bytes, header, at)?),
        KIND_LIMIT => Record::Limit(sized(bytes, header, at)?),
        KIND_CGROUP => Record::Cgroup(sized(bytes, header, at)?),
        kind => return Err(DecodeError::Kind { at, kind }),
    };
    Ok((record, usize::from(header.len)))
}

fn sized<'a, T>(bytes: &'a [u8], header: &Header, at: usize) -> Result<&'a T, DecodeError>
where
    T: FromBytes + KnownLayout + Immutable,
{
    if usize::from(header.len) != size_of::<T>() {
        return Err(DecodeError::Length {
            at,
            kind: header.kind,
            len: header.len,
            expected: size_of::<T>(),
        });
    }
    prefix(bytes, at)
}

fn prefix<T>(bytes: &[u8], at: usize) -> Result<&T, DecodeError>
where
    T: FromBytes + KnownLayout + Immutable,
{
    if bytes.len() < size_of::<T>() {
        return Err(DecodeError::Truncated {
            at,
            have: bytes.len(),
            need: size_of::<T>(),
        });
    }
    T::ref_from_prefix(bytes)
        .map(|(found, _)| found)
        .map_err(|_| DecodeError::Unaligned { at })
}

/// The text of a NUL-ended field.
pub fn text(field: &[u8]) -> &[u8] {
    let end = field
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(field.len());
    &field[..end]
}

#[cfg(test)]
mod tests {
    use kmem_trace_ebpf::record::{OP_CHARGE, OP_UNCHARGE};
    use zerocopy::IntoBytes;

    use super::*;

    fn counter(cgroup_id: u64, pages: u64, op: u8) -> CounterRecord {
        CounterRecord {
            header: Header {
                kind: KIND_COUNTER,
                len: size_of::<CounterRecord>() as u16,
                ..Header::default()
            },
            cgroup_id,
            pages,
            slot: 0,
            op,
            reserved: [0; 6],
        }
    }

    fn batch(records: &[CounterRecord]) -> BytesMut {
        let mut bytes = BytesMut::new();
        for record in records {
            bytes.extend_from_slice(record.as_bytes());
        }
        bytes
    }

    #[test]
    fn a_batch_gives_its_records_in_order() {
        let records = [counter(7, 64, OP_CHARGE), counter(7, 3, OP_UNCHARGE)];
        let batch = Batch::new(batch(&records).freeze());
        let found: Vec<_> = batch.records().collect();
        assert_eq!(
            found,
            [
                Ok(Record::Counter(&records[0])),
                Ok(Record::Counter(&records[1]))
            ]
        );
    }

    #[test]
    fn a_record_that_is_cut_short_says_where() {
        let bytes = batch(&[counter(7, 64, OP_CHARGE), counter(8, 1, OP_CHARGE)]);
        let batch = Batch::new(bytes.freeze().slice(..64 + 50));
        let found: Vec<_> = batch.records().collect();
        assert_eq!(
            found[1],
            Err(DecodeError::Truncated {
                at: 64,
                have: 50,
                need: 64
            })
        );
        assert_eq!(found.len(), 2);
    }

    #[test]
    fn an_unknown_kind_ends_the_batch() {
        let mut bytes = batch(&[counter(7, 64, OP_CHARGE), counter(8, 1, OP_CHARGE)]);
        bytes[0] = 0xee;
        let batch = Batch::new(bytes.freeze());
        let found: Vec<_> = batch.records().collect();
        assert_eq!(found, [Err(DecodeError::Kind { at: 0, kind: 0xee })]);
    }

    #[test]
    fn bytes_that_are_not_aligned_are_moved() {
        let mut bytes = BytesMut::from(&[0u8; 3][..]);
        bytes.extend_from_slice(counter(7, 64, OP_CHARGE).as_bytes());
        let batch = Batch::new(bytes.freeze().slice(3..));
        assert!(
            matches!(batch.records().next(), Some(Ok(Record::Counter(record))) if record.pages == 64)
        );
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_the_decoder_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..400)) {
            for record in Batch::new(bytes.into()).records() {
                let _ = record;
            }
        }
    }
}
