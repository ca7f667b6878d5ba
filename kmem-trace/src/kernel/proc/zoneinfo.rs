//! `/proc/zoneinfo`: how many pages of a node's statistic its CPUs may keep to themselves.

use std::{collections::HashMap, path::Path};

use crate::kernel::file::{self, FileError, LineError};

const PATH: &str = "/proc/zoneinfo";

/// Pages by which one statistic of the nodes (`NR_SLAB_RECLAIMABLE_B`) may be off, up or down, in
/// `/proc/meminfo`: each CPU adds its own change only beyond a threshold (`__mod_node_page_state`,
/// mm/vmstat.c), a node's being the largest of its zones' (`refresh_zone_stat_thresholds`).
///
/// The kernel shows the zones' own, and lowers these while memory is short, but not the nodes'
/// (`set_pgdat_percpu_threshold`): the normal one counts where it is larger.
///
/// # Errors
/// [`FileError`].
pub fn held_back_pages() -> Result<u64, FileError> {
    file::read_as(Path::new(PATH), parse)
}

/// What a zone's pages make of it, and what it shows for each CPU.
#[derive(Default)]
struct Zone {
    node: u64,
    managed_pages: u64,
    /// CPU and threshold, pages.
    shown: Vec<(u64, u64)>,
}

impl Zone {
    /// `calculate_normal_threshold` (mm/vmstat.c), pages: `fls` of the CPUs that are online and of each
    /// 128 MiB.
    fn normal(&self) -> u64 {
        const PAGES_OF_128_MIB_LOG2: u32 = 27 - 12;
        const MOST: u64 = 125;
        let fls = |number: u64| u64::from(u64::BITS - number.leading_zeros());
        let memory = self.managed_pages >> PAGES_OF_128_MIB_LOG2;
        MOST.min(2 * fls(self.shown.len() as u64) * (1 + fls(memory)))
    }
}

/// Adds up the thresholds of all nodes and CPUs.
///
/// # Errors
/// [`LineError`].
pub fn parse(bytes: &[u8]) -> Result<u64, LineError> {
    let mut zones: Vec<Zone> = Vec::new();
    let mut cpu = None;
    for (number, line) in file::lines(bytes) {
        let wrong = || LineError::new(number, "not a line of zoneinfo");
        let of = |word: &[u8]| file::number(word).ok_or_else(wrong);
        let words: Vec<&[u8]> = file::words(line).take(5).collect();
        match (&words[..], zones.last_mut()) {
            ([b"Node", node, ..], _) => {
                let node = of(node.strip_suffix(b",").unwrap_or(node))?;
                cpu = None;
                zones.push(Zone {
                    node,
                    ..Zone::default()
                });
            }
            ([b"managed", pages], Some(zone)) => zone.managed_pages = of(pages)?,
            ([b"cpu:", which, ..], _) => cpu = Some(of(which)?),
            ([b"vm", b"stats", b"threshold:", pages, ..], zone) => {
                let (zone, cpu) = zone.zip(cpu).ok_or_else(wrong)?;
                zone.shown.push((cpu, of(pages)?));
            }
            _ => {}
        }
    }
    let mut largest: HashMap<(u64, u64), u64> = HashMap::new();
    for zone in &zones {
        let normal = zone.normal();
        for (cpu, shown) in &zone.shown {
            let entry = largest.entry((zone.node, *cpu)).or_default();
            *entry = normal.max(*shown).max(*entry);
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
        managed  5160927
    cpu: 0
  vm stats threshold: 44
    cpu: 1
  vm stats threshold: 36
Node 1, zone   Normal
    cpu: 0
  vm stats threshold: 7
";

    #[test]
    fn the_largest_threshold_of_a_nodes_zones_counts_for_each_cpu() {
        assert_eq!(parse(ZONEINFO), Ok(44 + 36 + 7));
    }

    #[test]
    fn a_threshold_that_is_lowered_while_memory_is_short_counts_as_it_normally_is() {
        // 5 160 927 pages are 157 × 128 MiB: 2 × fls(2) × (1 + fls(157)).
        let short = String::from_utf8_lossy(ZONEINFO)
            .replace(": 44", ": 1")
            .replace(": 36", ": 1");
        assert_eq!(parse(short.as_bytes()), Ok(36 + 36 + 7));
        let huge = short.replace("5160927", &u64::MAX.to_string());
        assert_eq!(parse(huge.as_bytes()), Ok(125 + 125 + 7));
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
        assert!(pages > 0 || cpus == 1, "the lines have another name here");
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes);
        }
    }
}
