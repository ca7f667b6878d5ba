//! The book: pages charged and uncharged, by cgroup and counter.
//!
//! Two ways lead into it and are checked against each other: the totals that the programs keep in
//! the kernel, and the streamed records. Both name the cgroup of the charge call; a charge counts
//! for all its ancestors, as `page_counter_charge()` climbs `counter->parent`.

use std::collections::{HashMap, HashSet};

use kmem_trace_ebpf::{
    record::{CounterRecord, OP_REFUSED, OP_UNCHARGE},
    totals::{COUNTERS, SLOTS, Totals},
};
use rustc_hash::FxHashMap;

use super::tree::Tree;

/// Pages by slot.
pub type Pages = [i64; SLOTS];

/// What moved in a subtree, in pages by slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// Charged minus uncharged.
    pub net: Pages,
    /// Charged plus uncharged: grows with every change.
    pub gross: [u64; SLOTS],
    /// Successful calls of the user charge path.
    pub user_charges: u64,
    /// Refused ones.
    pub user_refusals: u64,
    /// Most pages that one change moved.
    pub largest: u64,
}

impl Moved {
    fn add(&mut self, totals: &Totals) {
        for slot in 0..SLOTS {
            let (up, down) = (totals.charged[slot], totals.uncharged[slot]);
            self.net[slot] = self.net[slot].wrapping_add(up.wrapping_sub(down).cast_signed());
            self.gross[slot] = self.gross[slot].wrapping_add(up.wrapping_add(down));
        }
        self.user_charges += totals.user_charges;
        self.user_refusals += totals.user_refusals;
        self.largest = self.largest.max(totals.largest);
    }
}

/// One reading of the kernel-side totals: each cgroup's own, summed over the CPUs.
pub type Reading = HashMap<u64, Totals>;

/// Adds what one cgroup was charged to what another was.
pub fn add_up(sum: &mut Totals, totals: &Totals) {
    for slot in 0..SLOTS {
        sum.charged[slot] = sum.charged[slot].wrapping_add(totals.charged[slot]);
        sum.uncharged[slot] = sum.uncharged[slot].wrapping_add(totals.uncharged[slot]);
    }
    sum.user_charges += totals.user_charges;
    sum.user_refusals += totals.user_refusals;
    sum.largest = sum.largest.max(totals.largest);
}

/// Pages that one cgroup was charged by kind and not uncharged, or the other way round.
pub fn parted(totals: &Totals) -> u64 {
    (COUNTERS..SLOTS)
        .map(|slot| totals.charged[slot].abs_diff(totals.uncharged[slot]))
        .sum()
}

/// What moved in the subtree of each of `tops`, by one reading.
pub fn moved(reading: &Reading, tree: &Tree, tops: &HashSet<u64>) -> HashMap<u64, Moved> {
    let mut sums: HashMap<u64, Moved> = tops.iter().map(|top| (*top, Moved::default())).collect();
    for (id, totals) in reading {
        for above in tree.chain(*id) {
            if let Some(sum) = sums.get_mut(&above) {
                sum.add(totals);
            }
        }
    }
    sums
}

/// The streamed side of the book.
#[derive(Clone, Debug, Default)]
pub struct Streamed {
    /// Looked up for every record, by numbers that the kernel gives.
    own: FxHashMap<u64, Pages>,
    /// Counter records applied.
    pub records: u64,
}

impl Streamed {
    /// Applies one record.
    pub fn apply(&mut self, record: &CounterRecord) {
        let slot = usize::from(record.slot);
        if record.op == OP_REFUSED || slot >= SLOTS {
            return;
        }
        self.records += 1;
        let own = self.own.entry(record.cgroup_id).or_default();
        let pages = record.pages.cast_signed();
        own[slot] = if record.op == OP_UNCHARGE {
            own[slot].wrapping_sub(pages)
        } else {
            own[slot].wrapping_add(pages)
        };
    }

    /// What `heir` inherits: the sums of a cgroup that no record names any more.
    pub fn inherit(&mut self, id: u64, heir: u64) {
        if let Some(pages) = self.own.remove(&id) {
            let sum = self.own.entry(heir).or_default();
            for slot in 0..SLOTS {
                sum[slot] = sum[slot].wrapping_add(pages[slot]);
            }
        }
    }

    /// The same for all that the tree has forgotten, of which records may have come since.
    pub fn inherit_all(&mut self, tree: &Tree) {
        let late: Vec<u64> = self
            .own
            .keys()
            .filter(|id| tree.is_forgotten(**id))
            .copied()
            .collect();
        for id in late {
            if let Some(heir) = tree.heir(id) {
                self.inherit(id, heir);
            }
        }
    }

    /// Net pages of the subtree of `top`.
    pub fn net(&self, tree: &Tree, top: u64) -> Pages {
        let mut sum = Pages::default();
        for (id, own) in &self.own {
            if tree.is_within(*id, top) {
                for slot in 0..SLOTS {
                    sum[slot] = sum[slot].wrapping_add(own[slot]);
                }
            }
        }
        sum
    }

    /// The cgroups whose streamed sum is not the kernel-side total: id, slot, streamed, total.
    pub fn differences(&self, reading: &Reading) -> Vec<(u64, usize, i64, i64)> {
        let mut found = Vec::new();
        let ids: HashSet<u64> = self.own.keys().chain(reading.keys()).copied().collect();
        for id in ids {
            let streamed = self.own.get(&id).copied().unwrap_or_default();
            let mut total = Moved::default();
            if let Some(totals) = reading.get(&id) {
                total.add(totals);
            }
            for (slot, (streamed, total)) in streamed.iter().zip(&total.net).enumerate() {
                if streamed != total {
                    found.push((id, slot, *streamed, *total));
                }
            }
        }
        found.sort_unstable();
        found
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use kmem_trace_ebpf::{
        record::{Header, OP_CHARGE, OP_TRY_CHARGE},
        totals::{SLOT_KMEM, SLOT_MEMORY},
    };
    use proptest::prelude::*;

    use super::*;

    fn record(cgroup_id: u64, slot: usize, pages: u64, op: u8) -> CounterRecord {
        CounterRecord {
            header: Header::default(),
            cgroup_id,
            pages,
            slot: slot as u8,
            op,
            reserved: [0; 6],
        }
    }

    /// What the programs would have added up for the same records.
    fn totals_of(records: &[CounterRecord]) -> Reading {
        let mut reading = Reading::new();
        for record in records {
            let totals = reading.entry(record.cgroup_id).or_default();
            match record.op {
                OP_REFUSED => {}
                OP_UNCHARGE => totals.uncharged[usize::from(record.slot)] += record.pages,
                _ => totals.charged[usize::from(record.slot)] += record.pages,
            }
        }
        reading
    }

    fn family() -> Tree {
        let mut tree = Tree::default();
        tree.see(1, Path::new("/a"));
        tree.see(2, Path::new("/a/b"));
        tree.see(3, Path::new("/x"));
        tree
    }

    #[test]
    fn a_charge_counts_for_the_cgroup_and_for_its_ancestors() {
        let records = [
            record(2, SLOT_MEMORY, 64, OP_TRY_CHARGE),
            record(2, SLOT_MEMORY, 4, OP_UNCHARGE),
            record(2, SLOT_KMEM, 1, OP_CHARGE),
            record(3, SLOT_MEMORY, 1000, OP_CHARGE),
        ];
        let sums = moved(&totals_of(&records), &family(), &HashSet::from([1, 2]));
        assert_eq!(sums[&1].net[SLOT_MEMORY], 60);
        assert_eq!(sums[&2].net[SLOT_MEMORY], 60);
        assert_eq!(sums[&1].gross[SLOT_MEMORY], 68);
        assert_eq!(sums[&1].net[SLOT_KMEM], 1);
    }

    #[test]
    fn what_a_dead_child_left_is_given_back_by_its_parent() {
        // Reparented objects are uncharged from the parent alone.
        let mut tree = family();
        let records = [
            record(2, SLOT_MEMORY, 10, OP_CHARGE),
            record(1, SLOT_MEMORY, 10, OP_UNCHARGE),
        ];
        tree.released(2, None);
        let sums = moved(&totals_of(&records), &tree, &HashSet::from([1]));
        assert_eq!(sums[&1].net[SLOT_MEMORY], 0);
    }

    #[test]
    fn a_refused_charge_moves_nothing() {
        let mut streamed = Streamed::default();
        streamed.apply(&record(1, SLOT_MEMORY, 64, OP_REFUSED));
        assert_eq!(streamed.net(&family(), 1), Pages::default());
    }

    #[test]
    fn what_a_parent_inherits_leaves_its_sum_and_the_comparison_as_they_were() {
        let records = [
            record(1, SLOT_MEMORY, 5, OP_CHARGE),
            record(2, SLOT_MEMORY, 64, OP_TRY_CHARGE),
            record(2, SLOT_MEMORY, 60, OP_UNCHARGE),
        ];
        let mut tree = family();
        let mut streamed = Streamed::default();
        records.iter().for_each(|it| streamed.apply(it));
        let mut reading = totals_of(&records);
        let before = moved(&reading, &tree, &HashSet::from([1]));
        let left = reading.remove(&2).expect("it was charged");
        add_up(reading.entry(1).or_default(), &left);
        streamed.inherit(2, 1);
        tree.forget(2);
        assert_eq!(moved(&reading, &tree, &HashSet::from([1])), before);
        assert_eq!(streamed.net(&tree, 1)[SLOT_MEMORY], 9);
        assert_eq!(streamed.differences(&reading), []);
    }

    #[test]
    fn records_that_come_after_their_cgroup_was_forgotten_are_no_difference() {
        let records = [
            record(2, SLOT_MEMORY, 64, OP_TRY_CHARGE),
            record(2, SLOT_MEMORY, 60, OP_UNCHARGE),
        ];
        let mut tree = family();
        let mut streamed = Streamed::default();
        streamed.apply(&records[0]);
        let mut reading = totals_of(&records);
        let left = reading.remove(&2).expect("it was charged");
        add_up(reading.entry(1).or_default(), &left);
        streamed.inherit(2, 1);
        tree.forget(2);
        streamed.apply(&records[1]);
        streamed.inherit_all(&tree);
        assert_eq!(streamed.differences(&reading), []);
    }

    #[test]
    fn a_lost_record_shows_as_a_difference() {
        let records = [
            record(2, SLOT_MEMORY, 64, OP_CHARGE),
            record(2, SLOT_MEMORY, 1, OP_CHARGE),
        ];
        let mut streamed = Streamed::default();
        streamed.apply(&records[0]);
        assert_eq!(
            streamed.differences(&totals_of(&records)),
            [(2, SLOT_MEMORY, 64, 65)]
        );
    }

    proptest! {
        #[test]
        fn streamed_records_and_totals_agree_whatever_happened(
            events in proptest::collection::vec((1u64..4, 0usize..4, 0u64..600, 0u8..4), 0..200)
        ) {
            let records: Vec<_> =
                events.iter().map(|(id, slot, pages, op)| record(*id, *slot, *pages, *op)).collect();
            let reading = totals_of(&records);
            let mut streamed = Streamed::default();
            for record in &records {
                streamed.apply(record);
            }
            prop_assert_eq!(streamed.differences(&reading), []);
            let tree = family();
            let sums = moved(&reading, &tree, &HashSet::from([1, 2, 3]));
            for top in 1..4 {
                prop_assert_eq!(streamed.net(&tree, top), sums[&top].net);
            }
        }
    }
}
