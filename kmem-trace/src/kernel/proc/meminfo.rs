//! `/proc/meminfo`: the node's memory, in bytes.
//!
//! Parsed here and not by the `procfs` crate, whose reader wants UTF-8, panics on some damaged
//! lines, and knows a fixed list of fields.

use std::{collections::BTreeMap, path::Path};

use crate::kernel::file::{self, FileError, LineError};

const PATH: &str = "/proc/meminfo";

/// The fields of meminfo under the kernel's names. Absent fields are `None`, never zero.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Meminfo {
    bytes: BTreeMap<String, u64>,
}

impl Meminfo {
    /// # Errors
    /// [`FileError`].
    pub fn read() -> Result<Meminfo, FileError> {
        file::read_as(Path::new(PATH), Meminfo::parse)
    }

    /// Parses lines such as `Slab:  229960 kB`. Fields without unit (`HugePages_Total`) are counts
    /// and stay as they are; `kB` is 1024 bytes.
    ///
    /// # Errors
    /// [`LineError`].
    pub fn parse(bytes: &[u8]) -> Result<Meminfo, LineError> {
        let mut fields = BTreeMap::new();
        for (number, line) in file::lines(bytes) {
            let wrong = || LineError::new(number, "not a line of name, number and kB");
            let colon = line
                .iter()
                .position(|byte| *byte == b':')
                .ok_or_else(wrong)?;
            let (name, rest) = line.split_at(colon);
            let mut words = file::words(&rest[1..]);
            let value = words.next().and_then(file::number).ok_or_else(wrong)?;
            let value = match (words.next(), words.next()) {
                (None, _) => value,
                (Some(b"kB"), None) => value.checked_mul(1024).ok_or_else(wrong)?,
                _ => return Err(wrong()),
            };
            fields.insert(file::text(name), value);
        }
        Ok(Meminfo { bytes: fields })
    }

    /// A field by the kernel's name, for example `Percpu`.
    pub fn get(&self, name: &str) -> Option<u64> {
        self.bytes.get(name).copied()
    }

    pub fn total(&self) -> Option<u64> {
        self.get("MemTotal")
    }

    /// All slab pages, charged to cgroups or not.
    pub fn slab(&self) -> Option<u64> {
        self.get("Slab")
    }

    pub fn slab_reclaimable(&self) -> Option<u64> {
        self.get("SReclaimable")
    }

    pub fn slab_unreclaimable(&self) -> Option<u64> {
        self.get("SUnreclaim")
    }

    pub fn anon(&self) -> Option<u64> {
        self.get("AnonPages")
    }

    pub fn cached(&self) -> Option<u64> {
        self.get("Cached")
    }

    pub fn kernel_stack(&self) -> Option<u64> {
        self.get("KernelStack")
    }

    pub fn page_tables(&self) -> Option<u64> {
        self.get("PageTables")
    }

    pub fn percpu(&self) -> Option<u64> {
        self.get("Percpu")
    }
}

/// The node's figures that a cgroup's are held against, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeMemory {
    pub anon_bytes: u64,
    pub slab_bytes: u64,
}

/// Reads what a cgroup's figures are held against.
///
/// # Errors
/// [`FileError`], also if meminfo lacks one of the fields: zero would be a wrong figure.
pub fn node() -> Result<NodeMemory, FileError> {
    file::read_as(Path::new(PATH), |bytes| {
        NodeMemory::of(&Meminfo::parse(bytes)?)
    })
}

impl NodeMemory {
    fn of(meminfo: &Meminfo) -> Result<NodeMemory, LineError> {
        let field = |name: &str| {
            meminfo.get(name).ok_or_else(|| {
                LineError::new(meminfo.bytes.len(), format!("no field {name} up to here"))
            })
        };
        Ok(NodeMemory {
            anon_bytes: field("AnonPages")?,
            slab_bytes: field("Slab")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// From a 6.18 kernel, shortened. Balloon is a field of recent kernels only.
    const MEMINFO: &[u8] = b"\
MemTotal:       24684096 kB
Slab:             229960 kB
SReclaimable:     199452 kB
SUnreclaim:        30508 kB
Balloon:               0 kB
HugePages_Total:       3
Active(anon):       1592 kB
";

    #[test]
    fn amounts_become_bytes_and_counts_stay_counts() {
        let meminfo = Meminfo::parse(MEMINFO).expect("valid");
        assert_eq!(meminfo.slab(), Some(229_960 * 1024));
        let parts = meminfo.slab_reclaimable().zip(meminfo.slab_unreclaimable());
        assert_eq!(parts.map(|(a, b)| a + b), meminfo.slab());
        assert_eq!(meminfo.get("HugePages_Total"), Some(3));
        assert_eq!(meminfo.get("Active(anon)"), Some(1592 * 1024));
        assert_eq!(meminfo.percpu(), None);
    }

    #[test]
    fn a_missing_figure_of_the_node_is_an_error_and_not_zero() {
        let both = Meminfo::parse(b"Slab: 2 kB\nAnonPages: 1 kB\n").expect("valid");
        let expected = NodeMemory {
            anon_bytes: 1024,
            slab_bytes: 2048,
        };
        assert_eq!(NodeMemory::of(&both), Ok(expected));
        let one = Meminfo::parse(b"Slab: 2 kB\n").expect("valid");
        assert!(NodeMemory::of(&one).is_err_and(|error| error.why.contains("AnonPages")));
    }

    #[test]
    fn damaged_lines_are_refused_with_their_number() {
        for bad in [
            &b"Slab: 1 kB\nSlab"[..],
            b"Slab: 1 kB\nSlab:",
            b"Slab: 1 kB\nSlab: 1 MB",
            b"Slab: 1 kB\nSlab: -1 kB",
            b"Slab: 1 kB\nSlab: 18446744073709551615 kB",
            b"Slab: 1 kB\n\xff\xff 1 kB",
        ] {
            assert_eq!(Meminfo::parse(bad).map_err(|e| e.line), Err(2));
        }
        assert_eq!(Meminfo::parse(b""), Ok(Meminfo::default()));
    }

    #[test]
    fn the_running_kernel_has_slab_and_it_is_less_than_all_memory() {
        let meminfo = Meminfo::read().expect("readable");
        assert!(meminfo.slab() > Some(0) && meminfo.slab() < meminfo.total());
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Meminfo::parse(&bytes);
        }
    }
}
