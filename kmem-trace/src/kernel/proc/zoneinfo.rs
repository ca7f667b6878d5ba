//! `/proc/zoneinfo`: how many pages of a node's statistic its CPUs may keep to themselves.

use std::{collections::HashMap, path::Path};

use crate::kernel::file::{self, FileError, LineError};

const PATH: &str = "/proc/zoneinfo";

/// Pages by which one statistic of the nodes (`NR_SLAB_RECLAIMABLE_B`) may be off, up or down, in
/// `/proc/meminfo`: each CPU adds its own change only beyond a threshold (`__mod_node_page_state`,
/// mm/vmstat.c), a node's being the largest of its zones' (`refresh_zone_stat_thresholds`).
///
/// # Errors
/// [`FileError`].
pub fn held_back_pages() -> Result<u64, FileError> {
    file::read_as(Path::new(PATH), parse)
}

/// Adds up the thresholds of all nodes and CPUs.
///
/// # Errors
/// [`LineError`].
pub fn parse(bytes: &[u8]) -> Result<u64, LineError> {
    let mut largest: HashMap<(u64, u64), u64> = HashMap::new();
    let (mut node, mut cpu) = (None, None);
    for (number, line) in file::lines(bytes) {
        let wrong = || LineError::new(number, "not a line of zoneinfo");
        let words: Vec<&[u8]> = file::words(line).take(5).collect();
        match words[..] {
            [b"Node", first, ..] => {
                let digits = first.strip_suffix(b",").unwrap_or(first);
                (node, cpu) = (Some(file::number(digits).ok_or_else(wrong)?), None);
            }
            [b"cpu:", which, ..] => cpu = Some(file::number(which).ok_or_else(wrong)?),
            [b"vm", b"stats", b"threshold:", pages, ..] => {
                let pages = file::number(pages).ok_or_else(wrong)?;
                let entry = largest.entry(node.zip(cpu).ok_or_else(wrong)?).or_default();
                *entry = pages.max(*entry);
            }
            _ => {}
        }
    }
    Ok(largest
        .values()
        .fold(0, |sum: u64, pages| sum.saturating_add(*pages)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// From a 6.18 kernel, shortened; a second node as on a machine that has one.
    const ZONEINFO: &[u8] = b"\
Node 0, zone      DMA
  per-node stats
      nr_slab_reclaimable 45763
  pagesets
    cpu: 0
              count:    0
  vm stats threshold: 4
    cpu: 1
              count:    0
  vm stats threshold: 4
  start_pfn:           1
Node 0, zone   Normal
    cpu: 0
  vm stats threshold: 24
    cpu: 1
  vm stats threshold: 20
Node 1, zone   Normal
    cpu: 0
  vm stats threshold: 7
";

    #[test]
    fn the_largest_threshold_of_a_nodes_zones_counts_for_each_cpu() {
        assert_eq!(parse(ZONEINFO), Ok(24 + 20 + 7));
    }

    #[test]
    fn a_kernel_for_one_cpu_keeps_nothing_back() {
        assert_eq!(parse(b"Node 0, zone DMA\n  pages free 3\n"), Ok(0));
        assert_eq!(parse(b""), Ok(0));
    }

    #[test]
    fn damaged_lines_are_refused_with_their_number() {
        for bad in [
            &b"Node 0, zone DMA\nNode x, zone DMA"[..],
            b"Node 0, zone DMA\n cpu: x",
            b"Node 0, zone DMA\n vm stats threshold: 3",
            b" cpu: 0\n vm stats threshold: 3",
        ] {
            assert_eq!(parse(bad).map_err(|error| error.line), Err(2));
        }
    }

    #[test]
    fn the_running_kernel_keeps_back_at_most_what_a_byte_counts_for_each_cpu() {
        let Ok(pages) = held_back_pages() else {
            return;
        };
        let cpus = crate::kernel::proc::cpus::possible()
            .expect("possible")
            .len() as u64;
        let nodes = crate::kernel::proc::cpus::possible_nodes()
            .expect("nodes")
            .len() as u64;
        // `per_cpu_nodestat.stat_threshold` is an s8.
        assert!(pages <= 127 * cpus * nodes.max(1), "{pages}");
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes);
        }
    }
}
