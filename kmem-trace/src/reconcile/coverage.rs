//! Live objects by events against `/proc/slabinfo`, cache by cache, and how far the two may be apart
//! though no event is missing. Pure.

use std::collections::HashMap;

use serde::Serialize;

use crate::kernel::proc::slabinfo::SlabCache;

/// A cache that moved by less is not held against `/proc/slabinfo`: what lies on per-CPU lists
/// would drown it.
pub const WORTH_COMPARING_BYTES: u64 = 1 << 20;
/// Where what lies on lists is known, and events and slabinfo are further apart than that explains, this
/// much is worth telling.
const WORTH_TELLING_BYTES: u64 = 64 << 10;

/// `Slab` is the sum of `SReclaimable` and `SUnreclaim`.
const STATISTICS: u64 = 2;

/// The kernel's slab figures at one moment.
#[derive(Clone, Debug, Default)]
pub struct SlabFigures {
    /// `Slab` of `/proc/meminfo`.
    pub slab_bytes: u64,
    /// Empty where `/proc/slabinfo` could not be read.
    pub caches: Vec<SlabCache>,
    /// Free objects that may lie on per-CPU lists, by cache name.
    pub on_lists: HashMap<String, u64>,
    /// Pages by which each of the two statistics that `Slab` is the sum of may be off
    /// (`zoneinfo::held_back_pages`); `None` where that is not known.
    pub held_back_pages: Option<u64>,
    /// By events, while these figures were read.
    pub meanwhile: Meanwhile,
    pub page_bytes: u64,
}

/// What came and went, both counted, while figures were read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Meanwhile {
    /// By cache name.
    pub objects: HashMap<String, u64>,
    /// Of all caches and large kmallocs, and of slabs.
    pub bytes: u64,
}

impl SlabFigures {
    /// Pages of slabs less the objects in them.
    pub fn overhead_bytes(&self) -> i64 {
        self.caches
            .iter()
            .map(|cache| {
                let pages = cache.pages() * self.page_bytes;
                pages.cast_signed() - (cache.active_objects * cache.object_bytes).cast_signed()
            })
            .sum()
    }

    /// Objects in use and bytes of each by cache name; caches of one name are one.
    fn active(&self) -> HashMap<&str, (i64, u64)> {
        let mut active: HashMap<&str, (i64, u64)> = HashMap::new();
        for cache in &self.caches {
            let entry = active.entry(&cache.name).or_default();
            entry.0 += cache.active_objects.cast_signed();
            entry.1 = cache.object_bytes;
        }
        active
    }

    /// Objects of a cache on lists; 0 where there is no such cache, `None` where that is not known.
    fn on_lists(&self, name: &str) -> Option<u64> {
        match self.on_lists.get(name) {
            Some(objects) => Some(*objects),
            None if self.caches.iter().all(|cache| cache.name != name) => Some(0),
            None => None,
        }
    }

    /// Bytes of all that may lie on lists; `None` where that is not known of every cache.
    fn on_lists_bytes(&self) -> Option<u64> {
        if self.caches.is_empty() {
            return None;
        }
        self.active()
            .into_iter()
            .try_fold(0u64, |sum, (name, (_, object_bytes))| {
                let objects = self.on_lists(name)?;
                Some(sum.saturating_add(objects.saturating_mul(object_bytes)))
            })
    }

    /// By how much `slab_bytes` may be off, up or down, for what CPUs have not added to it yet.
    fn held_back_bytes(&self) -> Option<u64> {
        let pages = self.held_back_pages?.saturating_mul(STATISTICS);
        Some(pages.saturating_mul(self.page_bytes))
    }
}

/// The larger of two, where both are known: what was on lists and is on lists may be off by no more,
/// one way or the other.
fn larger(before: Option<u64>, now: Option<u64>) -> Option<u64> {
    Some(before?.max(now?))
}

/// By how many objects of a cache events and slabinfo may differ though no event is missing.
fn bound_objects(name: &str, before: &SlabFigures, now: &SlabFigures) -> Option<u64> {
    let moved = |figures: &SlabFigures| figures.meanwhile.objects.get(name).copied().unwrap_or(0);
    let lists = larger(before.on_lists(name), now.on_lists(name))?;
    Some(
        lists
            .saturating_add(moved(before))
            .saturating_add(moved(now)),
    )
}

/// The same of the node's slab, in bytes.
pub fn residual_bound_bytes(before: &SlabFigures, now: &SlabFigures) -> Option<u64> {
    let lists = larger(before.on_lists_bytes(), now.on_lists_bytes())?;
    Some(
        lists
            // Off one way then, and the other way now.
            .saturating_add(before.held_back_bytes()?)
            .saturating_add(now.held_back_bytes()?)
            .saturating_add(before.meanwhile.bytes)
            .saturating_add(now.meanwhile.bytes),
    )
}

/// Of a cache that moved by more than 1 MiB.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Covered {
    /// Change by events ÷ change by slabinfo.
    pub share: f64,
    /// See [`super::slab::SlabLine::coverage_bound`].
    pub bound: Option<f64>,
}

/// A cache of which `/proc/slabinfo` knows more than the events told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct UnseenLine {
    pub cache: String,
    /// Below zero: objects whose end no event told.
    pub objects: i64,
    pub bytes: i64,
}

/// Events and slabinfo side by side.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Coverage {
    pub by_cache: HashMap<String, Covered>,
    /// Caches where the two differ by more than lists can hold, and by more than 64 KiB (1 MiB where
    /// what these hold is not known), the largest first.
    pub unseen: Vec<UnseenLine>,
}

/// Compares the change in live objects by events, by cache name, with the kernel's.
pub fn coverage(
    by_events: &HashMap<String, i64>,
    before: &SlabFigures,
    now: &SlabFigures,
) -> Coverage {
    let active_before = before.active();
    let mut found = Coverage::default();
    if before.caches.is_empty() {
        return found;
    }
    for (name, (active, object_bytes)) in now.active() {
        let moved = active - active_before.get(name).map_or(0, |(active, _)| *active);
        let seen = by_events.get(name).copied().unwrap_or(0);
        let bound = bound_objects(name, before, now);
        if moved.unsigned_abs() * object_bytes >= WORTH_COMPARING_BYTES {
            let covered = Covered {
                share: seen as f64 / moved as f64,
                bound: bound.map(|objects| objects as f64 / moved.unsigned_abs() as f64),
            };
            found.by_cache.insert(name.to_owned(), covered);
        }
        let objects = moved - seen;
        let apart = objects.unsigned_abs();
        let worth = bound.map_or(WORTH_COMPARING_BYTES, |_| WORTH_TELLING_BYTES);
        if apart * object_bytes >= worth && apart > bound.unwrap_or(0) {
            found.unseen.push(UnseenLine {
                cache: name.to_owned(),
                objects,
                bytes: objects * object_bytes.cast_signed(),
            });
        }
    }
    found
        .unseen
        .sort_by_key(|line| (std::cmp::Reverse(line.bytes.abs()), line.cache.clone()));
    found
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub fn cache(name: &str, active: u64, size: u64, slabs: u64) -> SlabCache {
        SlabCache {
            name: name.to_owned(),
            active_objects: active,
            objects: active,
            object_bytes: size,
            objects_per_slab: 1,
            pages_per_slab: 1,
            active_slabs: slabs,
            slabs,
        }
    }

    pub fn figures(slab_bytes: u64, caches: Vec<SlabCache>) -> SlabFigures {
        SlabFigures {
            slab_bytes,
            caches,
            on_lists: HashMap::new(),
            held_back_pages: Some(0),
            meanwhile: Meanwhile::default(),
            page_bytes: 4096,
        }
    }

    fn with_lists(caches: Vec<SlabCache>, on_lists: &[(&str, u64)]) -> SlabFigures {
        SlabFigures {
            on_lists: on_lists
                .iter()
                .map(|(name, objects)| ((*name).to_owned(), *objects))
                .collect(),
            ..figures(0, caches)
        }
    }

    #[test]
    fn objects_that_slabinfo_counts_and_no_event_told_of_are_named_by_cache() {
        let before = figures(
            0,
            vec![cache("TCP", 10, 2048, 5), cache("dentry", 0, 200, 0)],
        );
        let now = figures(
            0,
            vec![
                cache("TCP", 1010, 2048, 505),
                cache("dentry", 10_000, 200, 500),
            ],
        );
        let events = HashMap::from([("TCP".to_owned(), 990), ("dentry".to_owned(), 10)]);
        let found = coverage(&events, &before, &now);
        assert!((found.by_cache["TCP"].share - 0.99).abs() < 1e-9);
        assert_eq!(found.by_cache["TCP"].bound, None);
        assert_eq!(
            found.unseen,
            [UnseenLine {
                cache: "dentry".to_owned(),
                objects: 9990,
                bytes: 9990 * 200
            }]
        );
    }

    #[test]
    fn what_lists_can_hold_did_not_come_without_an_event() {
        let events = HashMap::from([("dentry".to_owned(), 10)]);
        let before = with_lists(vec![cache("dentry", 0, 200, 0)], &[("dentry", 0)]);
        let now = |on_lists| {
            with_lists(
                vec![cache("dentry", 10_010, 200, 500)],
                &[("dentry", on_lists)],
            )
        };
        assert_eq!(coverage(&events, &before, &now(10_000)).unseen, []);
        assert_eq!(coverage(&events, &before, &now(9_999)).unseen.len(), 1);
    }

    #[test]
    fn what_lies_on_lists_bounds_coverage_and_what_is_left() {
        let before = || vec![cache("TCP", 50, 2048, 5), cache("pid", 90, 128, 0)];
        let now = || vec![cache("TCP", 1050, 2048, 505), cache("pid", 90, 128, 0)];
        let events = HashMap::from([("TCP".to_owned(), 990)]);
        let lists = [("TCP", 40), ("pid", 30)];
        let fewer = [("TCP", 20), ("pid", 60)];
        let (then, since) = (with_lists(before(), &lists), with_lists(now(), &fewer));
        let covered = coverage(&events, &then, &since).by_cache["TCP"];
        assert_eq!(covered.bound, Some(0.04));
        assert_eq!(
            residual_bound_bytes(&then, &since),
            Some(40 * 2048 + 30 * 128)
        );
        // Of one cache nothing is known, or of one moment, or of none.
        let part = with_lists(now(), &lists[..1]);
        assert_eq!(residual_bound_bytes(&then, &part), None);
        assert_eq!(residual_bound_bytes(&part, &since), None);
        let none = figures(0, Vec::new());
        assert_eq!(residual_bound_bytes(&none, &since), None);
        assert_eq!(residual_bound_bytes(&none, &none), None);
    }

    #[test]
    fn a_cache_that_was_not_there_had_nothing_on_lists() {
        let then = with_lists(vec![cache("pid", 90, 128, 0)], &[("pid", 0)]);
        let now = with_lists(
            vec![cache("pid", 90, 128, 0), cache("new", 1000, 2048, 500)],
            &[("pid", 0), ("new", 10)],
        );
        let covered = coverage(&HashMap::new(), &then, &now).by_cache["new"];
        assert_eq!(covered.bound, Some(0.01));
        assert_eq!(residual_bound_bytes(&then, &now), Some(10 * 2048));
    }

    #[test]
    fn what_moves_while_figures_are_read_widens_both_bounds() {
        let at = |active, moved: u64| SlabFigures {
            meanwhile: Meanwhile {
                objects: HashMap::from([("TCP".to_owned(), moved)]),
                bytes: moved * 2048,
            },
            ..with_lists(vec![cache("TCP", active, 2048, 5)], &[("TCP", 0)])
        };
        let (then, now) = (at(0, 5), at(1000, 15));
        let covered = coverage(&HashMap::new(), &then, &now).by_cache["TCP"];
        assert_eq!(covered.bound, Some(0.02));
        assert_eq!(residual_bound_bytes(&then, &now), Some(20 * 2048));
    }

    #[test]
    fn what_cpus_keep_back_of_the_nodes_statistics_widens_its_bound_alone() {
        let keeping = |held_back_pages| SlabFigures {
            held_back_pages,
            ..with_lists(vec![cache("TCP", 1000, 2048, 5)], &[("TCP", 1)])
        };
        let (some, none) = (keeping(Some(24)), keeping(Some(0)));
        let more = 24 * 2 * 4096;
        assert_eq!(residual_bound_bytes(&none, &some), Some(2048 + more));
        assert_eq!(residual_bound_bytes(&some, &some), Some(2048 + 2 * more));
        assert_eq!(residual_bound_bytes(&some, &keeping(None)), None);
        assert_eq!(bound_objects("TCP", &some, &some), Some(1));
    }

    #[test]
    fn a_number_that_no_machine_has_bounds_nothing_and_harms_nothing() {
        let wild = with_lists(vec![cache("TCP", 1, 2048, 5)], &[("TCP", u64::MAX)]);
        assert_eq!(residual_bound_bytes(&wild, &wild), Some(u64::MAX));
    }
}
