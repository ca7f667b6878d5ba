//! Slab objects added up: charged to whom, asked for by whom, and why nobody paid.

use std::collections::HashMap;

use kmem_trace_ebpf::sums::{
    CAUSE_BEFORE_TRACE, CAUSE_BH_DISABLED, CAUSE_CHARGED, CAUSE_HARDIRQ, CAUSE_KERNEL_THREAD,
    CAUSE_NO_MM, CAUSE_NOKMEM, CAUSE_NOT_ACCOUNTABLE, CAUSE_NOT_SLAB, CAUSE_REPARENTED, CAUSE_ROOT,
    CAUSE_SOFTIRQ, OTHERS, SlabKey, SlabSums,
};

use super::tree::{Life, Tree};

/// One reading of the kernel-side sums, added up over the CPUs.
pub type SlabReading = HashMap<SlabKey, SlabSums>;

/// Adds one row to a reading.
pub fn add_up(reading: &mut SlabReading, key: SlabKey, sums: &SlabSums) {
    let sum = reading.entry(key).or_default();
    sum.allocated = sum.allocated.wrapping_add(sums.allocated);
    sum.allocated_bytes = sum.allocated_bytes.wrapping_add(sums.allocated_bytes);
    sum.freed = sum.freed.wrapping_add(sums.freed);
    sum.freed_bytes = sum.freed_bytes.wrapping_add(sums.freed_bytes);
}

/// The same key under the names of those who inherited from the cgroups it names.
pub fn inherited(key: &SlabKey, tree: &Tree) -> SlabKey {
    let now = |id: u64| {
        if names_forgotten(id, tree) {
            tree.heir(id).unwrap_or(id)
        } else {
            id
        }
    };
    SlabKey {
        payer: now(key.payer),
        asker: now(key.asker),
        ..*key
    }
}

/// Moves the rows of cgroups that the tree has forgotten to those who inherited from them.
pub fn inherit(reading: &mut SlabReading, tree: &Tree) {
    let rows: Vec<_> = reading
        .extract_if(|key, _| is_of_the_forgotten(key, tree))
        .collect();
    for (key, sums) in rows {
        add_up(reading, inherited(&key, tree), &sums);
    }
}

/// The same key without what tells rows of removed cgroups apart and is in no figure: who below a
/// traced cgroup (`tops`) asked for what nobody pays for, and where what is charged was asked for.
pub fn folded(key: &SlabKey, tree: &Tree, tops: &[u64]) -> SlabKey {
    let mut key = *key;
    if key.payer == 0 && is_dead(tree, key.asker) {
        let stays = |id: &u64| tops.contains(id) || !is_dead(tree, *id);
        if let Some(above) = tree.chain(key.asker).find(stays) {
            key.asker = above;
        }
    } else if is_dead(tree, key.payer) && [0, key.payer].contains(&key.asker) {
        key.asker = 0;
        key.call_site = 0;
    }
    key
}

/// Whether a key names a cgroup that the tree has forgotten.
pub fn is_of_the_forgotten(key: &SlabKey, tree: &Tree) -> bool {
    names_forgotten(key.payer, tree) || names_forgotten(key.asker, tree)
}

fn names_forgotten(id: u64, tree: &Tree) -> bool {
    id != 0 && id != OTHERS && tree.is_forgotten(id)
}

/// What a reading says beyond an earlier one.
pub fn since(reading: &SlabReading, base: &SlabReading) -> SlabReading {
    reading
        .iter()
        .map(|(key, sums)| {
            let mut sums = *sums;
            if let Some(base) = base.get(key) {
                sums.allocated = sums.allocated.wrapping_sub(base.allocated);
                sums.allocated_bytes = sums.allocated_bytes.wrapping_sub(base.allocated_bytes);
                sums.freed = sums.freed.wrapping_sub(base.freed);
                sums.freed_bytes = sums.freed_bytes.wrapping_sub(base.freed_bytes);
            }
            (*key, sums)
        })
        .collect()
}

/// What became of a cgroup's slab since the trace began, for one cache, call site and cause.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SlabRow {
    /// Address of the cache; 0: pages of large kmallocs.
    pub cache: u64,
    /// One of the `CAUSE_` constants.
    pub cause: u8,
    /// The instruction that asked for most of the bytes; 0 where that is not known.
    pub call_site: u64,
    pub allocated: u64,
    pub allocated_bytes: u64,
    pub freed: u64,
    pub freed_bytes: u64,
}

impl SlabRow {
    /// Objects that came and are still there; below zero where older ones went.
    pub fn objects(&self) -> i64 {
        self.allocated.wrapping_sub(self.freed).cast_signed()
    }

    /// The same in bytes.
    pub fn bytes(&self) -> i64 {
        self.allocated_bytes
            .wrapping_sub(self.freed_bytes)
            .cast_signed()
    }

    /// Where a key and what is subtracted from it go by different names, one of two rows is below zero
    /// and only their sum is not.
    fn add(&mut self, sums: &SlabSums) {
        self.allocated = self.allocated.wrapping_add(sums.allocated);
        self.allocated_bytes = self.allocated_bytes.wrapping_add(sums.allocated_bytes);
        self.freed = self.freed.wrapping_add(sums.freed);
        self.freed_bytes = self.freed_bytes.wrapping_add(sums.freed_bytes);
    }
}

/// Charged to one cgroup, asked for by another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrongPayer {
    pub payer: u64,
    pub asker: u64,
    pub cache: u64,
    pub call_site: u64,
    /// Allocated since the trace began; frees do not say who had asked.
    pub allocated_bytes: u64,
}

/// Charged to a cgroup that has been removed since, and still there: objects of one cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadPayer {
    pub payer: u64,
    pub cache: u64,
    pub objects: i64,
    pub bytes: i64,
}

/// The slab of one subtree.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SlabBook {
    /// Charged to a cgroup of the subtree, by cache.
    pub charged: Vec<SlabRow>,
    /// Asked for by the subtree and charged to nobody, by cache, call site and cause.
    pub uncharged: Vec<SlabRow>,
    /// Pages of large kmallocs that the subtree asked for, which are no slab.
    pub large: Vec<SlabRow>,
    pub wrong_payers: Vec<WrongPayer>,
    /// What the removed cgroups of the subtree still hold of what they were charged with during the
    /// trace, by cgroup and cache; part of `charged`.
    pub dead_payers: Vec<DeadPayer>,
    /// Freed, and charged to a removed cgroup that nothing names; booked to the ancestor that had it.
    pub inherited_freed_bytes: u64,
}

/// Net bytes of everything that was seen, by whose it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodeBytes {
    /// Charged to the subtrees that are traced.
    pub charged: i64,
    /// Asked for by them and charged to nobody.
    pub not_charged: i64,
    /// All the rest: other cgroups, the root, interrupts over other tasks.
    pub others: i64,
}

/// The subtree of `top` by one reading; rows with most bytes first.
pub fn book(reading: &SlabReading, tree: &Tree, top: u64) -> SlabBook {
    let within = |id: u64| id != 0 && id != OTHERS && tree.is_within(id, top);
    let mut charged: HashMap<u64, SlabRow> = HashMap::new();
    let mut busiest: HashMap<u64, u64> = HashMap::new();
    let mut uncharged: HashMap<(u64, u64, u8), SlabRow> = HashMap::new();
    let mut wrong: HashMap<(u64, u64, u64, u64), u64> = HashMap::new();
    let mut dead: HashMap<(u64, u64), SlabRow> = HashMap::new();
    let mut inherited_freed_bytes = 0;
    for (key, sums) in reading {
        if within(key.payer) {
            if key.cause == CAUSE_REPARENTED {
                inherited_freed_bytes += sums.freed_bytes;
            } else if is_dead(tree, key.payer) {
                dead.entry((key.payer, key.cache)).or_default().add(sums);
            }
            let row = charged.entry(key.cache).or_default();
            row.cache = key.cache;
            row.cause = CAUSE_CHARGED;
            row.add(sums);
            let most = busiest.entry(key.cache).or_default();
            if sums.allocated_bytes > *most {
                *most = sums.allocated_bytes;
                row.call_site = key.call_site;
            }
        } else if key.payer == 0 && within(key.asker) {
            let row = uncharged
                .entry((key.cache, key.call_site, key.cause))
                .or_default();
            row.cache = key.cache;
            row.call_site = key.call_site;
            row.cause = key.cause;
            row.add(sums);
        }
        let crossed = key.payer != key.asker && key.payer != 0 && key.asker != 0;
        if crossed && (within(key.payer) != within(key.asker)) && sums.allocated_bytes > 0 {
            *wrong
                .entry((key.payer, key.asker, key.cache, key.call_site))
                .or_default() += sums.allocated_bytes;
        }
    }
    let sorted = |rows: Vec<SlabRow>| {
        let mut rows = rows;
        rows.retain(|row| row.allocated + row.freed > 0);
        rows.sort_by_key(|row| (std::cmp::Reverse(row.bytes()), row.cache, row.call_site));
        rows
    };
    let mut wrong_payers: Vec<WrongPayer> = wrong
        .into_iter()
        .map(
            |((payer, asker, cache, call_site), allocated_bytes)| WrongPayer {
                payer,
                asker,
                cache,
                call_site,
                allocated_bytes,
            },
        )
        .collect();
    wrong_payers.sort_by_key(|it| {
        (
            std::cmp::Reverse(it.allocated_bytes),
            it.cache,
            it.call_site,
        )
    });
    let (large, uncharged) = uncharged
        .into_values()
        .partition(|row| row.cause == CAUSE_NOT_SLAB);
    SlabBook {
        charged: sorted(charged.into_values().collect()),
        uncharged: sorted(uncharged),
        large: sorted(large),
        wrong_payers,
        dead_payers: still_held(dead),
        inherited_freed_bytes,
    }
}

/// Whether a cgroup's directory is known to be gone.
fn is_dead(tree: &Tree, id: u64) -> bool {
    tree.get(id).is_some_and(|node| node.life != Life::Living)
}

/// Those of which more came than went; most bytes first.
fn still_held(rows: HashMap<(u64, u64), SlabRow>) -> Vec<DeadPayer> {
    let mut held: Vec<DeadPayer> = rows
        .into_iter()
        .map(|((payer, cache), row)| DeadPayer {
            payer,
            cache,
            objects: row.objects(),
            bytes: row.bytes(),
        })
        .filter(|it| it.bytes > 0)
        .collect();
    held.sort_by_key(|it| (std::cmp::Reverse(it.bytes), it.payer, it.cache));
    held
}

/// Everything that was seen on the node; large kmallocs are pages and not in it.
pub fn node(reading: &SlabReading) -> NodeBytes {
    let mut node = NodeBytes::default();
    for (key, sums) in reading {
        if key.cache == 0 {
            continue;
        }
        let bytes = sums
            .allocated_bytes
            .wrapping_sub(sums.freed_bytes)
            .cast_signed();
        let ours = |id: u64| id != 0 && id != OTHERS;
        if ours(key.payer) {
            node.charged += bytes;
        } else if key.payer == 0 && ours(key.asker) {
            node.not_charged += bytes;
        } else {
            node.others += bytes;
        }
    }
    node
}

/// Net objects of each cache, over all payers: what `/proc/slabinfo` is compared with.
pub fn by_cache(reading: &SlabReading) -> HashMap<u64, i64> {
    let mut caches: HashMap<u64, i64> = HashMap::new();
    for (key, sums) in reading {
        *caches.entry(key.cache).or_default() +=
            sums.allocated.wrapping_sub(sums.freed).cast_signed();
    }
    caches
}

/// A cause as JSON and the screen name it.
pub fn cause_name(cause: u8) -> &'static str {
    match cause {
        CAUSE_CHARGED => "charged",
        CAUSE_NOT_ACCOUNTABLE => "not-accountable",
        CAUSE_SOFTIRQ => "softirq",
        CAUSE_HARDIRQ => "hardirq",
        CAUSE_KERNEL_THREAD => "kernel-thread",
        CAUSE_ROOT => "root",
        CAUSE_NOKMEM => "nokmem",
        CAUSE_BEFORE_TRACE => "before-trace",
        CAUSE_NOT_SLAB => "not-slab",
        CAUSE_BH_DISABLED => "bh-disabled",
        CAUSE_NO_MM => "no-mm",
        CAUSE_REPARENTED => "reparented",
        _ => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn key(payer: u64, asker: u64, cache: u64, call_site: u64, cause: u8) -> SlabKey {
        SlabKey {
            payer,
            asker,
            cache,
            call_site,
            cause,
            taken: 0,
            reserved: [0; 2],
            size: 0,
        }
    }

    fn sums(allocated: u64, freed: u64, size: u64) -> SlabSums {
        SlabSums {
            allocated,
            allocated_bytes: allocated * size,
            freed,
            freed_bytes: freed * size,
        }
    }

    fn tree() -> Tree {
        let mut tree = Tree::default();
        tree.see(1, Path::new("/a"));
        tree.see(2, Path::new("/a/b"));
        tree
    }

    #[test]
    fn frees_of_charged_objects_count_against_their_payer_whoever_asked() {
        let reading = SlabReading::from([
            (key(2, 2, 100, 7, CAUSE_CHARGED), sums(10, 0, 64)),
            (key(2, 0, 100, 0, CAUSE_CHARGED), sums(0, 4, 64)),
        ]);
        let book = book(&reading, &tree(), 1);
        assert_eq!(book.charged.len(), 1);
        assert_eq!(
            (book.charged[0].objects(), book.charged[0].bytes()),
            (6, 384)
        );
        assert_eq!(book.charged[0].call_site, 7);
        assert_eq!(book.wrong_payers, []);
    }

    #[test]
    fn what_nobody_pays_for_is_kept_by_cause() {
        let reading = SlabReading::from([
            (key(0, 2, 100, 7, CAUSE_SOFTIRQ), sums(5, 1, 2048)),
            (key(0, 2, 100, 8, CAUSE_NOT_ACCOUNTABLE), sums(1, 0, 2048)),
            (key(0, OTHERS, 100, 0, CAUSE_SOFTIRQ), sums(9, 0, 2048)),
        ]);
        let book = book(&reading, &tree(), 1);
        let rows: Vec<_> = book
            .uncharged
            .iter()
            .map(|row| (row.cause, row.objects()))
            .collect();
        assert_eq!(rows, [(CAUSE_SOFTIRQ, 4), (CAUSE_NOT_ACCOUNTABLE, 1)]);
        let node = node(&reading);
        assert_eq!(
            (node.charged, node.not_charged, node.others),
            (0, 5 * 2048, 9 * 2048)
        );
    }

    #[test]
    fn what_came_before_the_first_reading_does_not_count() {
        let site = key(2, 2, 100, 7, CAUSE_CHARGED);
        let base = SlabReading::from([(site, sums(3, 1, 64))]);
        let reading = SlabReading::from([(site, sums(10, 1, 64))]);
        let rows = book(&since(&reading, &base), &tree(), 1).charged;
        assert_eq!((rows[0].allocated, rows[0].freed), (7, 0));
    }

    #[test]
    fn what_came_before_the_first_reading_does_not_count_when_heirs_are_forgotten_too() {
        let mut tree = tree();
        tree.see(3, Path::new("/a/b/c"));
        let (lowest, middle) = (
            key(3, 3, 100, 7, CAUSE_CHARGED),
            key(2, 2, 100, 7, CAUSE_CHARGED),
        );
        let mut base = SlabReading::from([(lowest, sums(3, 1, 64)), (middle, sums(5, 0, 64))]);
        let mut reading = SlabReading::from([(lowest, sums(10, 1, 64)), (middle, sums(5, 2, 64))]);
        let moved = |reading: &SlabReading, base: &SlabReading, tree: &Tree| {
            let rows = book(&since(reading, base), tree, 1).charged;
            (rows.len(), rows[0].allocated, rows[0].freed)
        };
        assert_eq!(moved(&reading, &base, &tree), (1, 7, 2));
        for id in [3, 2] {
            tree.released(id, None);
            tree.forget(id);
            inherit(&mut reading, &tree);
            inherit(&mut base, &tree);
            assert_eq!(moved(&reading, &base, &tree), (1, 7, 2));
        }
        assert!(reading.contains_key(&key(1, 1, 100, 7, CAUSE_CHARGED)) && reading.len() == 1);
        // A free that names one of them, later.
        let late = key(0, 3, 100, 8, CAUSE_SOFTIRQ);
        assert!(is_of_the_forgotten(&late, &tree));
        assert_eq!(inherited(&late, &tree), key(0, 1, 100, 8, CAUSE_SOFTIRQ));
    }

    #[test]
    fn pages_of_large_kmallocs_are_no_slab() {
        let reading = SlabReading::from([
            (key(0, 2, 0, 7, CAUSE_NOT_SLAB), sums(2, 0, 16384)),
            (key(0, 2, 100, 7, CAUSE_SOFTIRQ), sums(1, 0, 64)),
        ]);
        let book = book(&reading, &tree(), 1);
        assert_eq!((book.large.len(), book.large[0].bytes()), (1, 32768));
        assert_eq!(book.uncharged.len(), 1);
        assert_eq!(node(&reading).not_charged, 64);
    }

    #[test]
    fn a_charge_across_the_border_of_the_subtree_is_a_finding() {
        let reading = SlabReading::from([
            (key(2, OTHERS, 100, 7, CAUSE_CHARGED), sums(3, 0, 64)),
            (key(OTHERS, 2, 100, 8, CAUSE_CHARGED), sums(2, 0, 64)),
            (key(1, 2, 100, 9, CAUSE_CHARGED), sums(2, 0, 64)),
        ]);
        let book = book(&reading, &tree(), 1);
        let found: Vec<_> = book
            .wrong_payers
            .iter()
            .map(|it| (it.payer, it.asker, it.allocated_bytes))
            .collect();
        assert_eq!(found, [(2, OTHERS, 192), (OTHERS, 2, 128)]);
    }

    #[test]
    fn what_a_removed_cgroup_was_charged_with_and_was_not_freed_is_held_by_it() {
        let mut tree = tree();
        let reading = SlabReading::from([
            (key(2, 2, 100, 7, CAUSE_CHARGED), sums(10, 0, 64)),
            (key(2, 0, 100, 0, CAUSE_CHARGED), sums(0, 4, 64)),
            (key(2, 2, 200, 8, CAUSE_CHARGED), sums(3, 0, 192)),
            // All of it gone again, and more: some are older than the trace.
            (key(2, 2, 300, 9, CAUSE_CHARGED), sums(3, 5, 32)),
            (key(1, 1, 100, 7, CAUSE_CHARGED), sums(9, 0, 64)),
        ]);
        assert_eq!(book(&reading, &tree, 1).dead_payers, []);
        tree.removed(2, None);
        let found: Vec<_> = book(&reading, &tree, 1)
            .dead_payers
            .iter()
            .map(|it| (it.payer, it.cache, it.objects, it.bytes))
            .collect();
        assert_eq!(found, [(2, 200, 3, 576), (2, 100, 6, 384)]);
        tree.released(2, None);
        assert_eq!(book(&reading, &tree, 1).dead_payers.len(), 2);
    }

    #[test]
    fn frees_of_a_removed_cgroup_that_nothing_names_are_told_apart_and_count_for_who_inherited_them()
     {
        let reading = SlabReading::from([
            (key(1, 0, 100, 0, CAUSE_CHARGED), sums(0, 1, 64)),
            (key(1, 0, 100, 0, CAUSE_REPARENTED), sums(0, 4, 64)),
        ]);
        let book = book(&reading, &tree(), 1);
        assert_eq!(book.inherited_freed_bytes, 256);
        assert_eq!(book.charged[0].bytes(), -320);
        assert_eq!(book.dead_payers, []);
    }
}
