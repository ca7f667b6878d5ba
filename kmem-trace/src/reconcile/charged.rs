//! Slab that is charged to a cgroup, by events, against the kernel's own counters of it. Pure.
//!
//! The kernel adds `obj_full_size` of each object it charges (mm/slab.h, mm/slub.c) to
//! `NR_SLAB_RECLAIMABLE_B` or `NR_SLAB_UNRECLAIMABLE_B` of the memory cgroup: its size and the
//! pointer to its payer. Both sides are compared by how they changed since the trace began.

use serde::Serialize;

/// What the kernel charges with each object (`obj_full_size`).
const POINTER_BYTES: i64 = 8;
/// The largest kmalloc cache of a kernel with 4 KiB pages, and its pointer
/// (`KMALLOC_MAX_CACHE_SIZE`): what one event can be about at most.
pub const LARGEST_OBJECT_BYTES: u64 = 8192 + POINTER_BYTES as u64;
/// Both counters lag apart from each other.
const COUNTERS: u64 = 2;
/// Figures are taken twice, at the start and now, and each is off by itself.
const READINGS: u64 = 2;

/// Slab charged to a subtree, by events, at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sums {
    /// Objects that came less those that went.
    pub objects: i64,
    /// The same at `kmem_cache.size` each.
    pub bytes: i64,
    /// Bytes that came and bytes that went, added.
    pub moved_bytes: u64,
    /// Live pages of large kmallocs that the subtree asked for: in the kernel's counters if they
    /// are charged (`__kmalloc_large_node`), which their events do not say.
    pub large_bytes: i64,
}

impl Sums {
    fn full_bytes(&self) -> i64 {
        self.bytes + POINTER_BYTES * self.objects
    }
}

/// The kernel's figure, and the events' sums before and after it was read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moment {
    pub kernel_bytes: u64,
    pub before: Sums,
    pub after: Sums,
}

impl Moment {
    fn skew_bytes(&self) -> u64 {
        self.after
            .moved_bytes
            .saturating_sub(self.before.moved_bytes)
    }
}

/// What the bound depends on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    pub page_bytes: u64,
    pub online_cpus: u64,
    /// Payers that a CPU keeps bytes of these counters for at a time; 0 where it keeps none.
    pub cached_per_cpu: u64,
    /// How late one counter can be (`kinds::lag_bytes`).
    pub lag_bytes: u64,
    /// Whether one flush serves both counters.
    pub flushed: bool,
    /// Events that could not be counted.
    pub lost: u64,
    /// What softirqs that no program ran in moved at most: whole pages, and objects within one each.
    pub unwatched_bytes: u64,
}

/// What the bound is made of, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Terms {
    /// What CPUs keep of the two counters: up to a page each and payer (`mod_objcg_state`).
    pub stock: u64,
    /// What waits in per-CPU counters before the next flush.
    pub lag: u64,
    /// Charged, and its event yet to come: an object a CPU.
    pub in_flight: u64,
    /// Moved while the figures were read.
    pub skew: u64,
    /// Large kmallocs, of which nothing says whether they are charged.
    pub large: u64,
    pub lost: u64,
}

impl Terms {
    pub fn total_bytes(&self) -> u64 {
        self.stock + self.lag + self.in_flight + self.skew + self.large + self.lost
    }
}

/// Kernel and events side by side; changes since the trace began, in bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Compared {
    Read {
        kernel_bytes: i64,
        /// Objects at `obj_full_size`.
        events_bytes: i64,
        /// Kernel less events.
        difference_bytes: i64,
        bound_bytes: u64,
        bound_terms: Terms,
    },
    /// Why the kernel's counters are not known, in one line.
    NotRead { why: String },
}

/// The two of one cgroup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ChargedLine {
    pub cgroup: String,
    pub cgroup_id: u64,
    #[serde(flatten)]
    pub compared: Compared,
}

/// Compares what both say has changed.
pub fn compare(start: &Moment, now: &Moment, facts: &Facts) -> Compared {
    let signed = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
    let kernel_bytes = signed(now.kernel_bytes) - signed(start.kernel_bytes);
    let events_bytes = now.after.full_bytes() - start.after.full_bytes();
    let lagging = if facts.flushed { 1 } else { COUNTERS };
    let bound_terms = Terms {
        stock: READINGS * COUNTERS * facts.online_cpus * facts.cached_per_cpu * facts.page_bytes,
        lag: READINGS * lagging * facts.lag_bytes,
        in_flight: READINGS * facts.online_cpus * LARGEST_OBJECT_BYTES,
        skew: start.skew_bytes() + now.skew_bytes(),
        large: (now.after.large_bytes - start.after.large_bytes).unsigned_abs(),
        lost: facts.lost * LARGEST_OBJECT_BYTES + facts.unwatched_bytes,
    };
    Compared::Read {
        kernel_bytes,
        events_bytes,
        difference_bytes: kernel_bytes - events_bytes,
        bound_bytes: bound_terms.total_bytes(),
        bound_terms,
    }
}

impl Compared {
    /// Kernel and events differ by more than can be explained.
    pub fn is_beyond(&self) -> bool {
        matches!(self, Self::Read { difference_bytes, bound_bytes, .. }
            if difference_bytes.unsigned_abs() > *bound_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FACTS: Facts = Facts {
        page_bytes: 4096,
        online_cpus: 2,
        cached_per_cpu: 1,
        lag_bytes: 1000,
        flushed: true,
        lost: 0,
        unwatched_bytes: 0,
    };

    fn sums(objects: i64, bytes: i64, moved_bytes: u64) -> Sums {
        Sums {
            objects,
            bytes,
            moved_bytes,
            large_bytes: 0,
        }
    }

    fn moment(kernel_bytes: u64, sums: Sums) -> Moment {
        Moment {
            kernel_bytes,
            before: sums,
            after: sums,
        }
    }

    fn read(compared: &Compared) -> (i64, i64, i64, Terms) {
        let Compared::Read {
            kernel_bytes,
            events_bytes,
            difference_bytes,
            bound_terms,
            ..
        } = compared
        else {
            panic!("{compared:?}");
        };
        (
            *kernel_bytes,
            *events_bytes,
            *difference_bytes,
            *bound_terms,
        )
    }

    #[test]
    fn an_object_is_charged_with_its_pointer_and_both_sides_count_from_the_start() {
        let start = moment(5000, sums(3, 300, 300));
        let now = moment(5000 + 10 * 108, sums(13, 1300, 1300));
        let (kernel, events, difference, _) = read(&compare(&start, &now, &FACTS));
        assert_eq!((kernel, events, difference), (1080, 1080, 0));
    }

    #[test]
    fn objects_from_before_the_trace_count_below_zero_on_both_sides() {
        let start = moment(5000, Sums::default());
        let now = moment(5000 - 216, sums(-2, -200, 200));
        let (kernel, events, difference, _) = read(&compare(&start, &now, &FACTS));
        assert_eq!((kernel, events, difference), (-216, -216, 0));
    }

    #[test]
    fn the_bound_is_told_term_by_term_and_a_difference_beyond_it_is_one() {
        let start = moment(0, Sums::default());
        let mut now = moment(0, sums(1, 100, 500));
        now.before.moved_bytes = 200;
        now.after.large_bytes = 16384;
        let facts = Facts {
            lost: 1,
            unwatched_bytes: 400,
            ..FACTS
        };
        let (_, _, _, terms) = read(&compare(&start, &now, &facts));
        assert_eq!(
            terms,
            Terms {
                stock: 2 * 2 * 2 * 4096,
                lag: 2000,
                in_flight: 2 * 2 * 8200,
                skew: 300,
                large: 16384,
                lost: 8600,
            }
        );
        now.kernel_bytes = 108 + terms.total_bytes();
        assert!(!compare(&start, &now, &facts).is_beyond());
        now.kernel_bytes += 1;
        assert!(compare(&start, &now, &facts).is_beyond());
    }

    #[test]
    fn without_a_flush_each_counter_is_late_by_itself() {
        let facts = Facts {
            flushed: false,
            ..FACTS
        };
        let none = Moment::default();
        let (_, _, _, terms) = read(&compare(&none, &none, &facts));
        assert_eq!(terms.lag, 4000);
    }
}
