//! Slab sums kept by this process instead of the programs, where their places run short: keys of
//! cgroups that were removed and that the kernel has not let go of, and keys that nothing is added to.
//!
//! A key that is needed again is made anew, in another place; a reading adds both up.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use kmem_trace_ebpf::sums::SLAB_KEYS;

use super::Session;
use crate::ledger::{
    slab::{self, SlabReading},
    tree::{Life, Tree},
};

const PLACES: usize = SLAB_KEYS as usize;
/// With fewer free places keys are moved out: the rest is for those that come until the next look.
const FEW: usize = PLACES / 4;
/// Until so many are free.
const ENOUGH: usize = PLACES / 2;
/// What nothing is added to for so long is not in use.
const IDLE: Duration = Duration::from_millis(200);
/// Rows in this process from which on those of removed cgroups are folded.
const ROWS: usize = PLACES / 2;

/// What is known of the places.
#[derive(Default)]
pub(super) struct Places {
    /// So many were taken at a time that they may run short again.
    were_short: bool,
    /// What came and went at each place, at the last look, and when that was.
    looked: Option<(Instant, HashMap<usize, u64>)>,
    /// Rows from which on it is worth folding them again.
    fold_at: usize,
}

/// A place that may be given back.
struct Candidate {
    place: usize,
    /// Its key names a removed cgroup.
    is_removed: bool,
    /// Nothing was added since the last look.
    is_idle: bool,
}

/// Those that are moved out, `most` of them: what names removed cgroups, then what is not in use.
fn chosen(candidates: &[Candidate], most: usize) -> Vec<usize> {
    let removed = candidates.iter().filter(|it| it.is_removed);
    let idle = candidates.iter().filter(|it| !it.is_removed && it.is_idle);
    removed.chain(idle).map(|it| it.place).take(most).collect()
}

/// How many places are to be moved out, of those taken and those on their way back.
fn shortage(taken: usize, coming: usize) -> usize {
    let free = PLACES.saturating_sub(taken) + coming;
    if free < FEW { ENOUGH - free } else { 0 }
}

/// Folds the rows of removed cgroups, and what is subtracted from them by the same keys.
fn fold(rows: &mut SlabReading, base: &mut SlabReading, tree: &Tree, tops: &[u64]) {
    let moved: Vec<_> = rows
        .extract_if(|key, _| slab::folded(key, tree, tops) != *key)
        .collect();
    for (key, sums) in moved {
        let under = slab::folded(&key, tree, tops);
        slab::add_up(rows, under, &sums);
        if let Some(sums) = base.remove(&key) {
            slab::add_up(base, under, &sums);
        }
    }
}

impl Session {
    /// Whether places run short.
    pub(super) fn is_slab_short(&mut self) -> bool {
        self.slab_shortage() > 0
    }

    /// How many places are to be moved out.
    fn slab_shortage(&mut self) -> usize {
        // To count them 50 times a second is not free, and most traces never come so far.
        self.places.were_short |= self.attached.slab_reached(PLACES - FEW);
        if !self.plan.slab || !self.places.were_short {
            return 0;
        }
        let taken = self.attached.slab_places(|_| true).len();
        shortage(taken, self.retired.forgotten.places().count())
    }

    /// Has this process keep what the programs need not keep, where places run short.
    pub(super) fn evict_slab(&mut self) {
        let most = self.slab_shortage();
        if most == 0 {
            self.places.looked = None;
            return;
        }
        let waiting: HashSet<usize> = self.retired.forgotten.places().collect();
        let is_removed = |id: u64| {
            let node = self.tree.get(id);
            node.is_some_and(|node| node.life != Life::Living)
        };
        let removed: HashSet<usize> = self
            .attached
            .slab_places(|key| is_removed(key.payer) || is_removed(key.asker))
            .into_iter()
            .filter(|place| !waiting.contains(place))
            .collect();
        let idle = if removed.len() < most {
            self.idle_places()
        } else {
            HashSet::new()
        };
        let candidates: Vec<Candidate> = removed
            .union(&idle)
            .filter(|place| !waiting.contains(place))
            .map(|place| Candidate {
                place: *place,
                is_removed: removed.contains(place),
                is_idle: idle.contains(place),
            })
            .collect();
        let evicted = chosen(&candidates, most);
        log::debug!(
            "{} places of slab sums moved out: {} name removed cgroups, {} are idle",
            evicted.len(),
            removed.len(),
            idle.len()
        );
        self.forget_places(evicted);
    }

    /// Places that nothing was added to since the last look, if that is long enough ago to tell.
    fn idle_places(&mut self) -> HashSet<usize> {
        let age = self.places.looked.as_ref().map(|(at, _)| at.elapsed());
        if age.is_some_and(|age| age < IDLE) {
            return HashSet::new();
        }
        let now: HashMap<usize, u64> = self.attached.slab_moved().collect();
        let before = self.places.looked.take();
        let idle = before.map_or_else(HashSet::new, |(_, before)| {
            now.iter()
                .filter(|(place, moved)| before.get(place) == Some(moved))
                .map(|(place, _)| *place)
                .collect()
        });
        self.places.looked = Some((Instant::now(), now));
        idle
    }

    /// Keeps the rows in this process few, however many removed cgroups the kernel holds on to.
    pub(super) fn fold_slab(&mut self) {
        if self.retired.slab.len() < self.places.fold_at.max(ROWS) {
            return;
        }
        let tops: Vec<u64> = self.request.targets.iter().map(|it| it.id).collect();
        let base = &mut self.slab_start.moment.reading;
        fold(&mut self.retired.slab, base, &self.tree, &tops);
        self.places.fold_at = 2 * self.retired.slab.len();
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use kmem_trace_ebpf::sums::{CAUSE_CHARGED, CAUSE_SOFTIRQ, SlabKey, SlabSums};

    use super::*;

    #[test]
    fn removed_cgroups_give_their_places_up_first_and_what_is_in_use_never() {
        let candidate = |place, is_removed, is_idle| Candidate {
            place,
            is_removed,
            is_idle,
        };
        let candidates = [
            candidate(1, false, true),
            candidate(2, false, false),
            candidate(3, true, false),
            candidate(4, true, true),
            candidate(5, false, true),
        ];
        assert_eq!(chosen(&candidates, 1), [3]);
        assert_eq!(chosen(&candidates, 3), [3, 4, 1]);
        assert_eq!(chosen(&candidates, 9), [3, 4, 1, 5]);
    }

    #[test]
    fn places_run_short_below_a_quarter_and_those_on_their_way_back_count_as_free() {
        assert_eq!(shortage(PLACES - FEW, 0), 0);
        assert_eq!(shortage(PLACES - FEW + 1, 0), ENOUGH - FEW + 1);
        assert_eq!(shortage(PLACES - FEW + 1, 1), 0);
        assert_eq!(shortage(PLACES, 0), ENOUGH);
    }

    fn key(payer: u64, asker: u64, call_site: u64, cause: u8) -> SlabKey {
        SlabKey {
            payer,
            asker,
            cache: 100,
            call_site,
            cause,
            ..SlabKey::default()
        }
    }

    #[test]
    fn folded_rows_are_few_and_say_of_the_traced_cgroup_what_they_said_before() {
        let mut tree = Tree::default();
        tree.see(1, Path::new("/a"));
        for id in 2..100 {
            tree.see(id, &Path::new("/a").join(id.to_string()));
            tree.removed(id, None);
        }
        let one = SlabSums {
            allocated: 3,
            allocated_bytes: 192,
            freed: 1,
            freed_bytes: 64,
        };
        let mut rows = SlabReading::new();
        let mut base = SlabReading::new();
        for id in 2..100 {
            for site in 1..11 {
                rows.insert(key(id, id, site, CAUSE_CHARGED), one);
                rows.insert(key(0, id, site, CAUSE_SOFTIRQ), one);
            }
            rows.insert(key(id, 0, 0, CAUSE_CHARGED), one);
        }
        base.insert(key(50, 50, 7, CAUSE_CHARGED), one);
        base.insert(key(0, 50, 7, CAUSE_SOFTIRQ), one);
        let said = |rows: &SlabReading, base: &SlabReading| {
            let mut book = slab::book(&slab::since(rows, base), &tree, 1);
            // What is lost: which of its call sites made most of the charged.
            book.charged.iter_mut().for_each(|row| row.call_site = 0);
            book
        };
        let before = said(&rows, &base);
        assert_eq!(before.dead_payers.len(), 98);
        fold(&mut rows, &mut base, &tree, &[1]);
        assert_eq!(said(&rows, &base), before);
        assert_eq!(rows.len(), 98 + 10);
    }
}
