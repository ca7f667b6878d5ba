//! `/proc/slabinfo`: every slab cache of the node. Readable by root only.

use std::path::Path;

use crate::kernel::file::{self, FileError, LineError};

/// One slab cache. Several names can share one cache (merging); the kernel shows the first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlabCache {
    pub name: String,
    /// Objects in use. SLUB without debugging counts objects on per-CPU lists as in use.
    pub active_objects: u64,
    /// Objects there is room for.
    pub objects: u64,
    /// Bytes of one object with its padding: `kmem_cache.size`.
    pub object_bytes: u64,
    pub objects_per_slab: u64,
    pub pages_per_slab: u64,
    pub active_slabs: u64,
    pub slabs: u64,
}

impl SlabCache {
    /// Pages that the cache holds.
    pub fn pages(&self) -> u64 {
        self.slabs.saturating_mul(self.pages_per_slab)
    }
}

/// Reads `/proc/slabinfo`.
///
/// # Errors
/// [`FileError`]; [`FileError::is_denied`] without root.
pub fn read() -> Result<Vec<SlabCache>, FileError> {
    file::read_as(Path::new("/proc/slabinfo"), parse)
}

/// Parses slabinfo version 2.x (`slabinfo(5)`).
///
/// # Errors
/// [`LineError`], also for another version.
pub fn parse(bytes: &[u8]) -> Result<Vec<SlabCache>, LineError> {
    let mut lines = file::lines(bytes);
    match lines.next() {
        Some((_, first)) if first.starts_with(b"slabinfo - version: 2.") => {}
        _ => return Err(LineError::new(1, "not slabinfo version 2")),
    }
    lines
        .filter(|(_, line)| !line.starts_with(b"#"))
        .map(|(number, line)| {
            parse_row(line).ok_or_else(|| LineError::new(number, "not a row of slabinfo"))
        })
        .collect()
}

fn parse_row(line: &[u8]) -> Option<SlabCache> {
    // From the right: per-cgroup caches of kernels before 5.9 have free text in their names.
    let mut parts = line.rsplitn(3, |byte| *byte == b':');
    let slabs = numbers::<3>(parts.next()?, b"slabdata")?;
    let _tunables = parts.next()?;
    let mut left = parts.next()?.trim_ascii_end();
    let mut values = [0u64; 5];
    for value in values.iter_mut().rev() {
        let blank = left.iter().rposition(|byte| *byte == b' ')?;
        *value = file::number(&left[blank + 1..])?;
        left = left[..blank].trim_ascii_end();
    }
    if left.is_empty() {
        return None;
    }
    let [
        active_objects,
        objects,
        object_bytes,
        objects_per_slab,
        pages_per_slab,
    ] = values;
    let [active_slabs, slabs, _shared] = slabs;
    Some(SlabCache {
        name: file::text(left),
        active_objects,
        objects,
        object_bytes,
        objects_per_slab,
        pages_per_slab,
        active_slabs,
        slabs,
    })
}

/// The numbers after a keyword.
fn numbers<const N: usize>(part: &[u8], keyword: &[u8]) -> Option<[u64; N]> {
    let mut words = file::words(part);
    if words.next()? != keyword {
        return None;
    }
    let all: Option<Vec<u64>> = words.map(file::number).collect();
    all?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HEADER: &str = "slabinfo - version: 2.1
# name            <active_objs> <num_objs> <objsize> <objperslab> <pagesperslab> : tunables <limit> <batchcount> <sharedfactor> : slabdata <active_slabs> <num_slabs> <sharedavail>
";

    fn rows(text: &str) -> Result<Vec<SlabCache>, usize> {
        parse(format!("{HEADER}{text}").as_bytes()).map_err(|error| error.line)
    }

    #[test]
    fn a_row_says_objects_and_pages() {
        let all = rows("TCP  900 1014   2368   13    8 : tunables    0    0    0 : slabdata     78     80      0\n")
            .expect("valid");
        let tcp = &all[0];
        assert_eq!(
            (tcp.name.as_str(), tcp.active_objects, tcp.objects),
            ("TCP", 900, 1014)
        );
        assert_eq!((tcp.object_bytes, tcp.objects_per_slab), (2368, 13));
        assert_eq!((tcp.active_slabs, tcp.slabs, tcp.pages()), (78, 80, 640));
    }

    #[test]
    fn names_may_have_blanks_and_colons() {
        let all = rows("dentry(12:my job) 1 2 192 21 1 : tunables 0 0 0 : slabdata 1 1 0")
            .expect("valid");
        assert_eq!(all[0].name, "dentry(12:my job)");
    }

    #[test]
    fn damaged_rows_are_refused_with_their_line() {
        for bad in [
            "TCP 1 2 3 4 5",
            "TCP 1 2 3 4 : tunables 0 0 0 : slabdata 1 1 0",
            "TCP 1 2 3 4 5 : tunables 0 0 0 : slabdata 1 1",
            "TCP 1 2 3 4 x : tunables 0 0 0 : slabdata 1 1 0",
            "1 2 3 4 5 : tunables 0 0 0 : slabdata 1 1 0",
        ] {
            assert_eq!(rows(bad), Err(3), "{bad}");
        }
        assert_eq!(parse(b"").map_err(|e| e.line), Err(1));
        assert_eq!(
            parse(b"slabinfo - version: 1.1\n").map_err(|e| e.line),
            Err(1)
        );
        assert_eq!(rows(""), Ok(Vec::new()));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut file = HEADER.as_bytes().to_vec();
            file.extend(&bytes);
            let _ = parse(&file);
            let _ = parse(&bytes);
        }

        #[test]
        fn nor_do_rows_that_look_almost_right(text in "[a-z ]{0,4}( [0-9]{1,21}){0,6} ?:? tunables 0 0 0 : slabdata( [0-9]{1,21}){0,4}") {
            let _ = rows(&text);
        }
    }
}
