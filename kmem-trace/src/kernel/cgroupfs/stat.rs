//! `memory.stat`, v1 and v2, as it is: every item, known or not, under the kernel's own name.
//! Which items add up to what is decided elsewhere.

use std::{collections::BTreeMap, path::Path};

use super::files::{self, CgroupFileError};
use crate::kernel::file::{self, LineError};

/// The items of a `memory.stat`.
///
/// Bytes for amounts, plain numbers for events (`pgfault`). On v1 only the items that begin with
/// `total_` include the subtree; on v2 all do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryStat {
    items: BTreeMap<String, u64>,
}

impl MemoryStat {
    /// Parses lines of a name and a number.
    ///
    /// # Errors
    /// [`LineError`].
    pub fn parse(bytes: &[u8]) -> Result<MemoryStat, LineError> {
        let mut items = BTreeMap::new();
        for (number, line) in file::lines(bytes) {
            let mut words = file::words(line);
            let (Some(name), Some(value), None) = (words.next(), words.next(), words.next()) else {
                return Err(LineError::new(number, "not a name and a number"));
            };
            let value = file::number(value)
                .ok_or_else(|| LineError::new(number, "the value is not a number"))?;
            items.insert(file::text(name), value);
        }
        Ok(MemoryStat { items })
    }

    /// An item by the kernel's name; `None` if this kernel does not show it.
    pub fn get(&self, name: &str) -> Option<u64> {
        self.items.get(name).copied()
    }

    /// All items, by name.
    pub fn items(&self) -> impl Iterator<Item = (&str, u64)> {
        self.items
            .iter()
            .map(|(name, value)| (name.as_str(), *value))
    }
}

/// Reads `memory.stat` of the cgroup at `dir`.
///
/// # Errors
/// [`CgroupFileError`].
pub fn stat(dir: &Path) -> Result<MemoryStat, CgroupFileError> {
    let path = dir.join("memory.stat");
    MemoryStat::parse(&files::read(path.clone())?).map_err(|error| CgroupFileError::Parse {
        path,
        line: error.line,
        why: error.why,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::kernel::cgroupfs::tree::Tree;

    #[test]
    fn items_are_kept_under_their_own_names_even_unknown_ones() {
        let stat =
            MemoryStat::parse(b"cache 9326592\nrss 11141120\nfrom_the_future 1\ntotal_rss 0")
                .expect("valid");
        assert_eq!(stat.get("rss"), Some(11_141_120));
        assert_eq!(stat.get("from_the_future"), Some(1));
        assert_eq!(stat.get("kernel"), None);
        assert_eq!(stat.items().count(), 4);
    }

    #[test]
    fn a_damaged_file_is_refused_with_its_path_and_line() {
        let tree = Tree::v1(&["a"]);
        tree.write("a/memory.stat", b"anon 1\nfile\n");
        let error = stat(&tree.path("a")).expect_err("damaged").to_string();
        assert!(
            error.ends_with("/a/memory.stat:2: not a name and a number"),
            "{error}"
        );
        assert!(MemoryStat::parse(b"a -1").is_err());
        assert!(MemoryStat::parse(b"a 1 2").is_err());
        assert!(matches!(
            stat(&tree.path("b")),
            Err(CgroupFileError::Gone { .. })
        ));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = MemoryStat::parse(&bytes);
        }
    }
}
