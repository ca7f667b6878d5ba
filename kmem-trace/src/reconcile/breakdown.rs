//! What the usage is made of, by the kernel's own statistics.
//!
//! `memory.stat` is a witness that lags: up to 64 pages × CPUs wait in per-CPU batches before a
//! flush (mm/memcontrol.c, `memcg_vmstats_needs_flush`). What it leaves over is therefore shown
//! as one line, stock and lag, and never given a name of its own.

use crate::kernel::cgroupfs::{Hierarchy, MemoryStat};

use super::fields::{self, Figures, KMEM};

/// Bytes by kind; `None` where this kernel does not say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Breakdown {
    pub anon: Option<u64>,
    pub file: Option<u64>,
    /// All kernel memory; the five below are part of it.
    #[serde(skip)]
    pub kernel: Option<u64>,
    pub slab: Option<u64>,
    pub kernel_stack: Option<u64>,
    pub page_tables: Option<u64>,
    pub percpu: Option<u64>,
    /// Kernel memory that is none of the above.
    pub other_kernel: Option<u64>,
    pub sock: Option<u64>,
    /// Usage minus all of it: pages in per-CPU stocks, and what `memory.stat` has not yet seen.
    /// Negative where `memory.stat` is behind an uncharge.
    pub stock: Option<i64>,
}

/// Takes a `memory.stat` apart; `kmem_bytes` as in [`v1`].
pub fn of(
    hierarchy: Hierarchy,
    stat: &MemoryStat,
    kmem_bytes: Option<u64>,
    usage_bytes: u64,
) -> Breakdown {
    match hierarchy {
        Hierarchy::V1 => v1(stat, kmem_bytes, usage_bytes),
        Hierarchy::V2 => v2(stat, usage_bytes),
    }
}

/// Takes a v2 `memory.stat` apart.
fn v2(stat: &MemoryStat, usage_bytes: u64) -> Breakdown {
    let get = |name: &str| stat.get(name);
    let slab = get("slab").or_else(|| Some(get("slab_reclaimable")? + get("slab_unreclaimable")?));
    let kernel_stack = get("kernel_stack");
    let page_tables = match (get("pagetables"), get("sec_pagetables")) {
        (Some(first), second) => Some(first + second.unwrap_or(0)),
        (None, second) => second,
    };
    let percpu = get("percpu");
    let named = [slab, kernel_stack, page_tables, percpu]
        .into_iter()
        .flatten()
        .sum::<u64>();
    let (anon, file, sock) = (get("anon"), get("file"), get("sock"));
    let known = known(Figures::V2, stat, None);
    let user = [anon, file, sock, get("hugetlb")]
        .into_iter()
        .flatten()
        .sum::<u64>();
    // `kernel` came with 5.18; before it the parts are all there is.
    let kernel = get("kernel").or_else(|| slab.map(|_| known.saturating_sub(user)));
    let other_kernel = get("kernel").map(|kernel| kernel.saturating_sub(named));
    let stock = anon
        .and(file)
        .map(|_| usage_bytes.cast_signed() - known.cast_signed());
    Breakdown {
        anon,
        file,
        kernel,
        slab,
        kernel_stack,
        page_tables,
        percpu,
        other_kernel,
        sock,
        stock,
    }
}

/// Takes a v1 `memory.stat` apart. It has no kernel memory: `kmem_bytes` is the figure of
/// `memory.kmem.usage_in_bytes`, which is part of the usage, and cannot be divided further.
fn v1(stat: &MemoryStat, kmem_bytes: Option<u64>, usage_bytes: u64) -> Breakdown {
    let get = |name: &str| stat.get(name);
    // Hierarchical figures, as the usage is: `total_*` where the kernel has them.
    let anon = get("total_rss").or_else(|| get("rss"));
    let file = get("total_cache").or_else(|| get("cache"));
    let known = known(Figures::V1, stat, kmem_bytes);
    let stock = anon
        .and(file)
        .map(|_| usage_bytes.cast_signed() - known.cast_signed());
    Breakdown {
        anon,
        file,
        kernel: kmem_bytes,
        stock,
        ..Breakdown::default()
    }
}

/// The sum of what adds up to the usage.
fn known(figures: Figures, stat: &MemoryStat, kmem_bytes: Option<u64>) -> u64 {
    let items = stat.items();
    fields::sum(&fields::classify(
        figures,
        items.chain(kmem_bytes.map(|bytes| (KMEM, bytes))),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stat(pairs: &[(&str, u64)]) -> MemoryStat {
        let text: String = pairs
            .iter()
            .map(|(name, value)| format!("{name} {value}\n"))
            .collect();
        MemoryStat::parse(text.as_bytes()).expect("lines of name and value")
    }

    #[test]
    fn the_parts_of_a_v2_usage_add_up_to_it() {
        let stat = stat(&[
            ("anon", 1000),
            ("file", 500),
            ("kernel", 300),
            ("slab", 200),
            ("kernel_stack", 16),
            ("pagetables", 40),
            ("sec_pagetables", 4),
            ("percpu", 10),
            ("sock", 7),
        ]);
        let found = v2(&stat, 2000);
        assert_eq!(found.other_kernel, Some(30));
        assert_eq!(found.page_tables, Some(44));
        assert_eq!(found.stock, Some(193));
    }

    #[test]
    fn before_5_18_the_kernel_part_is_the_sum_of_what_is_named() {
        let stat = stat(&[
            ("anon", 1),
            ("file", 2),
            ("slab_reclaimable", 3),
            ("slab_unreclaimable", 4),
            ("percpu", 5),
        ]);
        let found = v2(&stat, 20);
        assert_eq!(
            (found.kernel, found.other_kernel, found.stock),
            (Some(12), None, Some(5))
        );
    }

    #[test]
    fn v1_counts_descendants_and_leaves_kernel_memory_whole() {
        let stat = stat(&[
            ("rss", 1),
            ("cache", 1),
            ("total_rss", 10),
            ("total_cache", 20),
        ]);
        let found = v1(&stat, Some(60), 100);
        assert_eq!(
            (found.anon, found.file, found.kernel, found.stock),
            (Some(10), Some(20), Some(60), Some(10))
        );
        assert_eq!(found.slab, None);
    }
}
