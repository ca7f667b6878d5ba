//! Where each figure of a memory cgroup belongs: does it add up to the usage, is it contained in
//! another figure, or is it no part of the usage at all?
//!
//! The two tables are read off the kernel's own (mm/memcontrol.c `memory_stats[]`; for v1
//! mm/memcontrol-v1.c `memcg1_stats[]`) and off what each item's writers charge. No version is
//! compared: what a kernel does not show is not there, and a part whose whole is missing takes the
//! place of the whole. A field that is in no table is unknown, and is kept as such.
//!
//! Only the classification lives here; sums and bounds are made in [`super::explain`].

use serde::Serialize;

/// The part of usage that v1 gives in a file of its own.
pub const KMEM: &str = "memory.kmem.usage_in_bytes";

/// How a field relates to the usage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "place", content = "of", rename_all = "snake_case")]
pub enum Place {
    /// One of the summands.
    AddsUp,
    /// Contained in the field named.
    PartOf(String),
    /// Not in the usage; why not.
    Beside(&'static str),
    /// The same pages, divided in another way.
    OtherDivision,
    /// A limit, not an amount in use.
    Limit,
    /// Counts events, not bytes.
    Events,
    /// Not known to us.
    Unknown,
}

/// A figure under the kernel's name for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Field {
    pub field: String,
    /// Bytes; a plain number where the place is [`Place::Events`].
    pub bytes: u64,
    #[serde(flatten)]
    pub place: Place,
}

/// Whose figures these are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Figures {
    V1,
    /// The root of v1. Its usage is made from the node's cache and mapped memory, and leaves
    /// kernel memory out (`mem_cgroup_usage`).
    V1Root,
    V2,
}

/// A row of a table: the field, and its place where the whole it belongs to is shown.
type Known = (&'static str, Rule);

#[derive(Clone, Copy)]
enum Rule {
    Adds,
    Part(&'static str),
    Beside(&'static str),
    Divides,
    Limit,
}
use Rule::{Adds, Beside, Divides, Limit, Part};

/// In the order they are shown: a whole before its parts.
const V2: &[Known] = &[
    ("anon", Adds),
    ("anon_thp", Part("anon")),
    ("file", Adds),
    ("shmem", Part("file")),
    ("shmem_thp", Part("shmem")),
    ("file_thp", Part("file")),
    ("file_mapped", Part("file")),
    ("file_dirty", Part("file")),
    // Pages on their way to swap are in the swap cache, and that is in `file`.
    ("file_writeback", Part("file")),
    ("swapcached", Part("file")),
    ("kernel", Adds),
    ("slab", Part("kernel")),
    ("slab_reclaimable", Part("slab")),
    ("slab_unreclaimable", Part("slab")),
    ("kernel_stack", Part("kernel")),
    ("pagetables", Part("kernel")),
    ("sec_pagetables", Part("kernel")),
    ("percpu", Part("kernel")),
    ("vmalloc", Part("kernel")),
    // Compressed pages are charged by obj_cgroup_charge(), as slab objects are.
    ("zswap", Part("kernel")),
    ("zswap_incomp", Part("zswap")),
    ("memory.zswap.current", Part("zswap")),
    ("sock", Adds),
    // Shown only where huge pages are charged to the memory controller.
    ("hugetlb", Adds),
    ("zswapped", Beside("swapped out: size before compression")),
    ("memory.swap.current", Beside("swapped out")),
    ("inactive_anon", Divides),
    ("active_anon", Divides),
    ("inactive_file", Divides),
    ("active_file", Divides),
    ("unevictable", Divides),
];

/// v1, without the `total_` that says "subtree included", as the usage does.
const V1: &[Known] = &[
    ("rss", Adds),
    ("rss_huge", Part("rss")),
    ("cache", Adds),
    ("shmem", Part("cache")),
    ("mapped_file", Part("cache")),
    ("dirty", Part("cache")),
    ("writeback", Part("cache")),
    ("swapcached", Part("cache")),
    (KMEM, Adds),
    // In no file of v1: the kernel's own counters, under v2's names for them.
    ("slab", Part(KMEM)),
    ("slab_reclaimable", Part("slab")),
    ("slab_unreclaimable", Part("slab")),
    ("kernel_stack", Part(KMEM)),
    ("pagetables", Part(KMEM)),
    ("sec_pagetables", Part(KMEM)),
    ("percpu", Part(KMEM)),
    ("vmalloc", Part(KMEM)),
    ("swap", Beside("swapped out")),
    ("inactive_anon", Divides),
    ("active_anon", Divides),
    ("inactive_file", Divides),
    ("active_file", Divides),
    ("unevictable", Divides),
];

/// v1, what has no `total_`, and comes last.
const V1_FILES: &[Known] = &[
    (
        "memory.kmem.tcp.usage_in_bytes",
        Beside("socket buffers have a counter of their own"),
    ),
    (
        "memory.memsw.usage_in_bytes",
        Beside("usage plus what is swapped out"),
    ),
    ("hierarchical_memory_limit", Limit),
    ("hierarchical_memsw_limit", Limit),
];

/// Fields that count events, by how their names begin.
const EVENTS: &[&str] = &[
    "numa_hint_faults",
    "numa_pages_migrated",
    "numa_pte_updates",
    "numa_task_migrated",
    "numa_task_swapped",
    "oom_group_kill",
    "pgactivate",
    "pgdeactivate",
    "pgdemote_",
    "pgfault",
    "pglazyfree",
    "pgmajfault",
    "pgpgin",
    "pgpgout",
    "pgpromote_",
    "pgrefill",
    "pgscan",
    "pgskip_",
    "pgsteal",
    "pswpin",
    "pswpout",
    "swpin_zero",
    "swpout_zero",
    "thp_",
    "workingset_",
    "zswpin",
    "zswpout",
    "zswpwb",
];

/// Puts every figure in its place, in the order of the tables; events and unknown ones follow in
/// the order given.
pub fn classify<'a>(
    figures: Figures,
    found: impl IntoIterator<Item = (&'a str, u64)>,
) -> Vec<Field> {
    let found: Vec<(&str, u64)> = found.into_iter().collect();
    let has = |name: &str| found.iter().any(|(field, _)| *field == name);
    let mut ranked: Vec<(usize, Field)> = found
        .iter()
        .map(|(name, bytes)| {
            let (rank, place) = place(figures, name, &has);
            (
                rank,
                Field {
                    field: (*name).to_owned(),
                    bytes: *bytes,
                    place,
                },
            )
        })
        .collect();
    ranked.sort_by_key(|(rank, _)| *rank);
    ranked.into_iter().map(|(_, field)| field).collect()
}

/// The sum of what adds up, in bytes.
pub fn sum(fields: &[Field]) -> u64 {
    fields
        .iter()
        .filter(|field| field.place == Place::AddsUp)
        .fold(0, |sum, field| sum.saturating_add(field.bytes))
}

const LAST: usize = usize::MAX;

fn place(figures: Figures, name: &str, has: &dyn Fn(&str) -> bool) -> (usize, Place) {
    let (table, prefix) = match figures {
        Figures::V2 => (V2, ""),
        Figures::V1 | Figures::V1Root => (V1, "total_"),
    };
    if figures != Figures::V2 {
        if let Some(rank) = V1_FILES.iter().position(|(known, _)| *known == name) {
            return (2 * V1.len() + rank, resolve(V1_FILES, "", name, has));
        }
        // A figure without `total_` is the cgroup's own share of the one with it.
        let total = format!("total_{name}");
        if has(&total) {
            let rank = V1.iter().position(|(known, _)| *known == name);
            let place = if is_events(name) {
                Place::Events
            } else {
                Place::PartOf(total)
            };
            return (rank.map_or(LAST - 1, |rank| V1.len() + rank), place);
        }
    }
    let bare = name.strip_prefix(prefix).unwrap_or(name);
    let prefix = if bare.len() == name.len() { "" } else { prefix };
    match table.iter().position(|(known, _)| *known == bare) {
        Some(rank) if name == KMEM && figures == Figures::V1Root => (
            rank,
            Place::Beside("the root's usage leaves kernel memory out"),
        ),
        Some(rank) => (rank, resolve(table, prefix, bare, has)),
        None if is_events(bare) => (LAST - 1, Place::Events),
        None => (LAST, Place::Unknown),
    }
}

fn is_events(name: &str) -> bool {
    EVENTS.iter().any(|start| name.starts_with(start))
}

/// The place of a field of `table`, given what else there is: where the whole is not shown, its
/// part stands for it.
fn resolve(table: &[Known], prefix: &str, name: &str, has: &dyn Fn(&str) -> bool) -> Place {
    let rule = |name: &str| {
        table
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, rule)| *rule)
    };
    let mut at = name;
    // A chain of wholes is shorter than the table.
    for _ in table {
        match rule(at) {
            Some(Adds) => return Place::AddsUp,
            Some(Part(whole)) => {
                let shown = format!("{prefix}{whole}");
                if has(&shown) {
                    return Place::PartOf(shown);
                }
                at = whole;
            }
            Some(Beside(why)) => return Place::Beside(why),
            Some(Divides) => return Place::OtherDivision,
            Some(Limit) => return Place::Limit,
            None => return Place::Unknown,
        }
    }
    Place::Unknown
}

#[cfg(test)]
mod tests {
    use super::*;

    fn placed(figures: Figures, found: &[(&'static str, u64)], name: &str) -> Option<Place> {
        let fields = classify(figures, found.iter().copied());
        fields
            .into_iter()
            .find(|field| field.field == name)
            .map(|field| field.place)
    }

    #[test]
    fn parts_of_the_kernel_figure_are_not_added_a_second_time() {
        let found = [
            ("anon", 10),
            ("file", 5),
            ("kernel", 7),
            ("slab", 4),
            ("slab_reclaimable", 1),
            ("sock", 2),
        ];
        let fields = classify(Figures::V2, found);
        assert_eq!(sum(&fields), 24);
        assert_eq!(
            placed(Figures::V2, &found, "slab"),
            Some(Place::PartOf("kernel".to_owned()))
        );
        assert_eq!(
            placed(Figures::V2, &found, "slab_reclaimable"),
            Some(Place::PartOf("slab".to_owned()))
        );
    }

    #[test]
    fn a_part_takes_the_place_of_a_whole_that_is_not_shown() {
        let without_kernel = [
            ("anon", 10),
            ("slab", 4),
            ("slab_reclaimable", 1),
            ("slab_unreclaimable", 3),
            ("percpu", 2),
        ];
        assert_eq!(sum(&classify(Figures::V2, without_kernel)), 16);
        let without_slab = [
            ("anon", 10),
            ("slab_reclaimable", 1),
            ("slab_unreclaimable", 3),
        ];
        assert_eq!(sum(&classify(Figures::V2, without_slab)), 14);
        let kernel_alone = [("kernel", 9), ("slab_reclaimable", 1)];
        assert_eq!(
            placed(Figures::V2, &kernel_alone, "slab_reclaimable"),
            Some(Place::PartOf("kernel".to_owned()))
        );
    }

    #[test]
    fn v1_adds_what_includes_the_subtree_and_shows_the_own_share_within_it() {
        let found = [
            ("rss", 1),
            ("cache", 2),
            ("total_rss", 10),
            ("total_cache", 20),
            (KMEM, 5),
            ("total_swap", 7),
        ];
        assert_eq!(sum(&classify(Figures::V1, found)), 35);
        assert_eq!(
            placed(Figures::V1, &found, "rss"),
            Some(Place::PartOf("total_rss".to_owned()))
        );
        assert!(matches!(
            placed(Figures::V1, &found, "total_swap"),
            Some(Place::Beside(_))
        ));
        assert_eq!(sum(&classify(Figures::V1, [("rss", 1), ("cache", 2)])), 3);
    }

    #[test]
    fn the_root_of_v1_leaves_kernel_memory_out() {
        let found = [("total_rss", 10), ("total_cache", 20), (KMEM, 5)];
        assert_eq!(sum(&classify(Figures::V1Root, found)), 30);
        assert!(matches!(
            placed(Figures::V1Root, &found, KMEM),
            Some(Place::Beside(_))
        ));
    }

    #[test]
    fn a_field_from_the_future_is_kept_as_unknown_and_added_to_nothing() {
        let found = [
            ("anon", 1),
            ("from_the_future", 99),
            ("total_from_the_future", 3),
        ];
        for figures in [Figures::V1, Figures::V1Root, Figures::V2] {
            let fields = classify(figures, found);
            assert_eq!(fields.len(), found.len());
            let unknown = |field: &&Field| field.place == Place::Unknown;
            assert!(
                fields
                    .iter()
                    .filter(unknown)
                    .any(|field| field.field == "total_from_the_future")
            );
        }
        assert_eq!(sum(&classify(Figures::V2, found)), 1);
    }

    #[test]
    fn every_whole_in_the_tables_is_a_row_of_the_same_table() {
        for table in [V1, V1_FILES, V2] {
            for (name, rule) in table {
                if let Part(whole) = rule {
                    assert!(
                        table.iter().any(|(other, _)| other == whole),
                        "{name} is part of {whole}"
                    );
                }
            }
        }
    }
}
