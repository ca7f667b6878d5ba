//! One cgroup's usage as a sum of the kernel's own figures, what is left over, and how much may be.
//! Pure: figures in, an [`Explanation`] out.
//!
//! What is left over has known sources, and each has a size:
//!
//! - **stock**: pages charged ahead, in the usage and in no item (`struct memcg_stock_pcp`).
//! - **lag**: changes of an item that still wait in per-CPU counters. Where reading `memory.stat`
//!   flushes them, it does so only above a batch per CPU, counted in whole batches (so up to two),
//!   and each CPU keeps one more to itself (`memcg_rstat_updated`, `memcg_vmstats_needs_flush`).
//!   Before that, each CPU keeps up to a batch of every item of every cgroup to itself
//!   (`__mod_memcg_state`).
//! - **batches**: pages that nobody maps or caches any more but that wait in a per-CPU batch, and
//!   are uncharged only when it is drained (mm/swap.c, `struct cpu_fbatches`).
//! - **swap cache**: pages that are both mapped and in the swap cache are in two items, on kernels
//!   that show no such figure in none.
//! - **skew**: what the usage moved by while the items were read.

use serde::Serialize;

use super::{
    fields::{self, Field, Figures, KMEM, Place},
    usage::STOCK_PAGES,
};

/// Batches a CPU that a flush may leave out.
pub(super) const FLUSHED_BATCHES: u64 = 3;

/// What the bound depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Circumstances {
    pub page_bytes: u64,
    pub online_cpus: u64,
    /// Cgroups that a per-CPU stock holds pages for at a time.
    pub cached_per_cpu: u64,
    /// Pages that wait in a CPU's folio batches at most.
    pub batched_per_cpu: u64,
    /// Cgroups in the subtree, itself included.
    pub cgroups: u64,
    /// Whether reading `memory.stat` flushes the per-CPU counters first.
    pub flushed: bool,
    /// Bytes that the usage moved by while `memory.stat` was read.
    pub skew_bytes: u64,
}

/// What the left over may be made of, at most, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Terms {
    pub stock: u64,
    pub lag: u64,
    pub batches: u64,
    pub swap_cache: u64,
    pub skew: u64,
}

impl Terms {
    /// All of them together, in bytes.
    pub fn total(&self) -> u64 {
        [
            self.stock,
            self.lag,
            self.batches,
            self.swap_cache,
            self.skew,
        ]
        .into_iter()
        .fold(0, u64::saturating_add)
    }
}

/// Is what is left over explained?
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Within the bound.
    Explained,
    /// Beyond the bound.
    Beyond,
    /// This kernel has no figure for some of what it charges: no bound can be given.
    Unbounded,
    /// There is no usage to compare with.
    None,
}

/// A usage taken apart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// `None` for the root of v2, which has no such file.
    pub usage_bytes: Option<u64>,
    /// Sum of the fields that add up.
    pub sum_bytes: u64,
    /// Usage minus sum.
    pub left_over_bytes: Option<i64>,
    pub bound_bytes: u64,
    pub bound_terms: Terms,
    /// What is charged on this kernel without a figure of its own.
    pub unnamed: Vec<&'static str>,
    pub verdict: Verdict,
    pub fields: Vec<Field>,
}

impl Explanation {
    /// Names of the fields that nobody here knows.
    pub fn unknown(&self) -> Vec<&str> {
        let unknown = |field: &&Field| field.place == Place::Unknown;
        self.fields
            .iter()
            .filter(unknown)
            .map(|field| field.field.as_str())
            .collect()
    }
}

/// Takes a usage apart. `found` are the items of `memory.stat` and the figures that stand in files
/// of their own, under the file's name.
pub fn explain<'a>(
    figures: Figures,
    usage_bytes: Option<u64>,
    found: impl IntoIterator<Item = (&'a str, u64)>,
    circumstances: &Circumstances,
) -> Explanation {
    let fields = fields::classify(figures, found);
    let sum_bytes = fields::sum(&fields);
    let left_over_bytes = usage_bytes.map(|usage| signed(usage).saturating_sub(signed(sum_bytes)));
    let unnamed = unnamed(figures, &fields);
    let bound_terms = terms(&fields, circumstances);
    let bound_bytes = bound_terms.total();
    let verdict = match left_over_bytes {
        None => Verdict::None,
        // Nobody can tell pages without a figure from pages in stocks.
        Some(left) if left > 0 && !unnamed.is_empty() => Verdict::Unbounded,
        Some(left) if left.unsigned_abs() <= bound_bytes => Verdict::Explained,
        Some(_) => Verdict::Beyond,
    };
    Explanation {
        usage_bytes,
        sum_bytes,
        left_over_bytes,
        bound_bytes,
        bound_terms,
        unnamed,
        verdict,
        fields,
    }
}

fn terms(fields: &[Field], circumstances: &Circumstances) -> Terms {
    let Circumstances {
        page_bytes,
        online_cpus,
        cached_per_cpu,
        batched_per_cpu,
        cgroups,
        flushed,
        skew_bytes,
    } = *circumstances;
    // A page counter has no lag; what stands in a file of its own is one.
    let items = fields
        .iter()
        .filter(|field| field.place == Place::AddsUp && field.field != KMEM)
        .count() as u64;
    let lagging = if flushed {
        FLUSHED_BATCHES
    } else {
        items.saturating_mul(cgroups)
    };
    let amount = |names: &[&str]| {
        let found = names
            .iter()
            .find_map(|name| fields.iter().find(|field| field.field == *name));
        found.map(|field| field.bytes)
    };
    let swap_cache = amount(&["total_swapcached", "swapcached"])
        .or_else(|| amount(&["total_swap", "swap", "memory.swap.current"]))
        .unwrap_or(0);
    let pages = |per_cpu: u64| {
        per_cpu
            .saturating_mul(online_cpus)
            .saturating_mul(page_bytes)
    };
    Terms {
        stock: pages(cached_per_cpu.saturating_mul(STOCK_PAGES)),
        lag: pages(lagging.saturating_mul(STOCK_PAGES)),
        batches: pages(batched_per_cpu),
        swap_cache,
        skew: skew_bytes,
    }
}

/// What is charged without a figure: kernel memory, on kernels that have no sum of it and do not
/// show all of its parts.
fn unnamed(figures: Figures, fields: &[Field]) -> Vec<&'static str> {
    let shows = |name: &str| fields.iter().any(|field| field.field == name);
    match figures {
        Figures::V2 if !shows("kernel") => {
            let mut missing: Vec<_> = [
                ("slab", "slab"),
                ("kernel_stack", "kernel stacks"),
                ("pagetables", "page tables"),
                ("percpu", "per-CPU memory"),
                ("vmalloc", "vmalloc"),
            ]
            .into_iter()
            .filter(|(name, _)| !shows(name))
            .filter(|(name, _)| *name != "slab" || !shows("slab_unreclaimable"))
            .map(|(_, words)| words)
            .collect();
            missing.push("other kernel pages");
            missing
        }
        Figures::V1 if !shows(KMEM) => vec!["kernel memory"],
        _ => Vec::new(),
    }
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::reconcile::captured::{QUIET, capture, explained};

    #[test]
    fn what_real_kernels_leave_over_is_within_the_bound() {
        let flushed = Circumstances {
            flushed: true,
            ..QUIET
        };
        let stocked = Circumstances {
            cached_per_cpu: 7,
            ..flushed
        };
        for (name, figures, text, circumstances) in [
            ("5.10 v1", Figures::V1, capture!("5.10-v1"), &QUIET),
            ("6.1 v1", Figures::V1, capture!("6.1-v1"), &flushed),
            ("6.1 v2", Figures::V2, capture!("6.1-v2"), &flushed),
            ("6.12 v2", Figures::V2, capture!("6.12-v2"), &flushed),
            ("7.3 v2", Figures::V2, capture!("7.3-v2"), &stocked),
        ] {
            let found = explained(figures, text, circumstances);
            assert_eq!(found.verdict, Verdict::Explained, "{name}: {found:?}");
            assert_eq!(found.unknown(), Vec::<&str>::new(), "{name}");
            assert!(found.unnamed.is_empty(), "{name}");
        }
    }

    #[test]
    fn a_kernel_that_does_not_name_all_kernel_memory_gets_no_bound_for_it() {
        let found = explained(Figures::V2, capture!("5.10-v2"), &QUIET);
        assert_eq!(
            found.unnamed,
            ["page tables", "vmalloc", "other kernel pages"]
        );
        assert_eq!(
            found.left_over_bytes,
            Some(11_767_808 - 270_336 - 10_948_608 - 49_152)
        );
        assert_eq!(found.verdict, Verdict::Unbounded);
    }

    #[test]
    fn the_root_of_v1_is_its_cache_and_mapped_memory_to_the_byte() {
        let found = explained(Figures::V1Root, capture!("6.1-v1-root"), &QUIET);
        assert_eq!(found.left_over_bytes, Some(0));
    }

    #[test]
    fn the_root_of_v2_has_no_usage_to_compare_with() {
        for text in [capture!("5.10-v2-root"), capture!("7.3-v2-root")] {
            let found = explained(Figures::V2, text, &QUIET);
            assert_eq!(
                (found.verdict, found.left_over_bytes),
                (Verdict::None, None)
            );
            assert!(found.sum_bytes > 0 && found.unknown().is_empty());
        }
    }

    #[test]
    fn more_left_over_than_can_be_is_beyond() {
        let found = explain(
            Figures::V2,
            Some(1 << 30),
            [("anon", 1), ("kernel", 1)],
            &QUIET,
        );
        assert_eq!(found.verdict, Verdict::Beyond);
        let negative = explain(
            Figures::V2,
            Some(0),
            [("anon", 1 << 30), ("kernel", 1)],
            &QUIET,
        );
        assert_eq!(negative.verdict, Verdict::Beyond);
    }

    #[test]
    fn unflushed_items_lag_by_a_batch_per_cpu_and_cgroup_each() {
        let found = explain(
            Figures::V1,
            Some(0),
            [("total_rss", 0), ("total_cache", 0), (KMEM, 0)],
            &QUIET,
        );
        assert_eq!(found.bound_terms.lag, 2 * 2 * 2 * 64 * 4096);
        let flushed = Circumstances {
            flushed: true,
            ..QUIET
        };
        let found = explain(
            Figures::V1,
            Some(0),
            [("total_rss", 0), ("total_cache", 0), (KMEM, 0)],
            &flushed,
        );
        assert_eq!(found.bound_terms.lag, 3 * 2 * 64 * 4096);
    }

    proptest! {
        #[test]
        fn sum_and_left_over_are_the_usage_and_no_field_is_lost(
            usage in 0..1u64 << 60,
            v2 in any::<bool>(),
            chosen in proptest::collection::btree_map(
                prop_oneof![
                    "[a-z_]{1,12}",
                    proptest::sample::select(vec![
                        "anon", "file", "kernel", "slab", "slab_reclaimable", "sock", "zswap", "rss",
                        "total_rss", "total_cache", "total_mapped_file", "pgfault", KMEM,
                    ]).prop_map(str::to_owned),
                ],
                0..1u64 << 50,
                0..40,
            ),
        ) {
            let figures = if v2 { Figures::V2 } else { Figures::V1 };
            let found = explain(figures, Some(usage), chosen.iter().map(|(name, bytes)| (name.as_str(), *bytes)), &QUIET);
            prop_assert_eq!(signed(found.sum_bytes) + found.left_over_bytes.unwrap_or(i64::MIN), signed(usage));
            let mut names: Vec<_> = found.fields.iter().map(|field| field.field.clone()).collect();
            names.sort();
            prop_assert_eq!(names, chosen.into_keys().collect::<Vec<_>>());
        }
    }
}
