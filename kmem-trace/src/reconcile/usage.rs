//! Is the ledger what `memory.usage_in_bytes` says?
//!
//! `mem_cgroup_usage()` is `page_counter_read(&memcg->memory)`, so the two are equal but for what
//! moved between reading one and reading the other. That, and everything else that can part them,
//! has a size, and the sum of these sizes is the bound.

use kmem_trace_ebpf::totals::SLOTS;

use super::report::Lost;
use crate::ledger::book::Moved;

/// Pages of a per-CPU stock: `MEMCG_CHARGE_BATCH` (mm/memcontrol.c) is 64 since 5.13 and 32 before,
/// and is a macro, of which type information says nothing; this is the larger.
pub const STOCK_PAGES: u64 = 64;

/// A kernel figure with the ledger read on either side of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bracket {
    /// Ledger before the kernel's file was read.
    pub before: Moved,
    /// The file, in bytes.
    pub file_bytes: u64,
    /// Ledger after.
    pub after: Moved,
}

impl Bracket {
    /// Pages that moved in `slots` while the file was read.
    pub fn skew_pages(&self, slots: &[usize]) -> u64 {
        slots
            .iter()
            .map(|slot| self.after.gross[*slot].saturating_sub(self.before.gross[*slot]))
            .sum()
    }
}

/// How the ledger of a run is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Every change of the page counter is in it.
    Counters,
    /// Changes of `memory.stat` items; what sits in per-CPU stocks is in the page counter and not
    /// in these.
    Items {
        /// Online CPUs × cached cgroups a CPU × [`STOCK_PAGES`].
        stock_pages: u64,
    },
}

/// Where a cgroup's ledger starts: the kernel's figure at attach.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Base {
    /// Kernel's figure minus what the ledger had moved by then, in pages.
    pub pages: i64,
    /// By how many pages that may be wrong, because changes were under way when it was read.
    pub unsure_pages: u64,
}

impl Base {
    /// The base of a cgroup that was there before the trace.
    ///
    /// Of several readings, the one during which least moved; where two that saw nothing move
    /// disagree, changes were under way between probe and counter, and the difference is kept as
    /// uncertainty.
    pub fn from_brackets(brackets: &[Bracket], slots: &[usize], page_bytes: u64) -> Option<Self> {
        let best = brackets
            .iter()
            .map(|bracket| bracket.skew_pages(slots))
            .min()?;
        let candidates: Vec<i64> = brackets
            .iter()
            .filter(|bracket| bracket.skew_pages(slots) == best)
            .map(|bracket| pages(bracket.file_bytes, page_bytes) - net(&bracket.after, slots))
            .collect();
        let (low, high) = (candidates.iter().min()?, candidates.iter().max()?);
        // The most frequent value; a change under way disturbs one reading, not all.
        let pages = candidates
            .iter()
            .max_by_key(|value| candidates.iter().filter(|other| other == value).count())?;
        let agreeing = candidates.iter().filter(|other| *other == pages).count();
        let unsure = if agreeing * 2 > candidates.len() {
            0
        } else {
            high.abs_diff(*low)
        };
        Some(Self {
            pages: *pages,
            unsure_pages: unsure + best,
        })
    }
}

/// What parts ledger and kernel, at most, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bound {
    /// Moved while the kernel's file was read.
    pub skew_bytes: u64,
    /// Between a probe and the counter on any CPU at this moment.
    pub in_flight_bytes: u64,
    /// In per-CPU stocks (only where the ledger cannot see them move).
    pub stock_bytes: u64,
    /// Not known of the figure at attach.
    pub base_bytes: u64,
    /// Charges that were seen but could not be counted.
    pub lost_bytes: u64,
    /// Held by cgroups that may be ours and that were gone before anybody could name them.
    pub nameless_bytes: u64,
}

impl Bound {
    pub fn total_bytes(&self) -> u64 {
        self.skew_bytes
            + self.in_flight_bytes
            + self.stock_bytes
            + self.base_bytes
            + self.lost_bytes
            + self.nameless_bytes
    }
}

/// What every bound of a run is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    pub page_bytes: u64,
    pub online_cpus: u64,
    pub source: Source,
    /// Most pages one change has moved.
    pub largest_pages: u64,
    /// Pages that are in no total: map full, memory not readable, program skipped.
    pub lost_pages: u64,
    /// Pages in the totals of cgroups that were never named.
    pub nameless_pages: u64,
}

/// Ledger and kernel side by side, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reconciled {
    pub kernel_bytes: u64,
    pub ledger_bytes: i64,
    /// Kernel minus ledger.
    pub residual_bytes: i64,
    pub bound: Bound,
}

impl Reconciled {
    pub fn holds(&self) -> bool {
        self.residual_bytes.unsigned_abs() <= self.bound.total_bytes()
    }
}

/// Compares the ledger, `base` + what moved in `slots`, with the kernel's figure.
pub fn reconcile(bracket: &Bracket, base: &Base, slots: &[usize], terms: &Terms) -> Reconciled {
    let page = terms.page_bytes.cast_signed();
    let ledger_bytes = (base.pages + net(&bracket.after, slots)) * page;
    let (in_flight, stock) = match terms.source {
        Source::Counters => (terms.online_cpus * terms.largest_pages.max(STOCK_PAGES), 0),
        Source::Items { stock_pages } => (
            terms.online_cpus * terms.largest_pages.max(STOCK_PAGES),
            stock_pages,
        ),
    };
    Reconciled {
        kernel_bytes: bracket.file_bytes,
        ledger_bytes,
        residual_bytes: bracket.file_bytes.cast_signed() - ledger_bytes,
        bound: Bound {
            skew_bytes: bracket.skew_pages(slots) * terms.page_bytes,
            in_flight_bytes: in_flight * terms.page_bytes,
            stock_bytes: stock * terms.page_bytes,
            base_bytes: base.unsure_pages * terms.page_bytes,
            lost_bytes: terms.lost_pages * terms.page_bytes,
            nameless_bytes: terms.nameless_pages * terms.page_bytes,
        },
    }
}

/// Pages that are in no total, at most: those of charges that were seen and could not be counted
/// (`seen_pages`), and for each run that the kernel skipped as many as one charge moves: the `largest`
/// seen, or a stock's refill, and what unwatched softirqs moved.
pub fn lost_pages(seen_pages: u64, lost: &Lost, largest_pages: u64) -> u64 {
    seen_pages + lost.skipped * largest_pages.max(STOCK_PAGES) + lost.unwatched_pages.unwrap_or(0)
}

/// Net pages of several slots together.
pub fn net(moved: &Moved, slots: &[usize]) -> i64 {
    slots
        .iter()
        .filter(|slot| **slot < SLOTS)
        .map(|slot| moved.net[*slot])
        .sum()
}

fn pages(bytes: u64, page_bytes: u64) -> i64 {
    (bytes / page_bytes).cast_signed()
}

#[cfg(test)]
mod tests {
    use kmem_trace_ebpf::totals::SLOT_MEMORY;

    use super::*;

    const MEMORY: &[usize] = &[SLOT_MEMORY];
    const TERMS: Terms = Terms {
        page_bytes: 4096,
        online_cpus: 2,
        source: Source::Counters,
        largest_pages: 0,
        lost_pages: 0,
        nameless_pages: 0,
    };

    fn moved(net: i64, gross: u64) -> Moved {
        let mut moved = Moved::default();
        moved.net[SLOT_MEMORY] = net;
        moved.gross[SLOT_MEMORY] = gross;
        moved
    }

    fn bracket(before: Moved, file_pages: u64, after: Moved) -> Bracket {
        Bracket {
            before,
            file_bytes: file_pages * 4096,
            after,
        }
    }

    #[test]
    fn each_loss_is_in_the_bound_with_the_pages_that_it_may_have_moved() {
        assert_eq!(lost_pages(0, &Lost::default(), 512), 0);
        let lost = Lost {
            // No total is touched by it.
            ring: 1000,
            skipped: 3,
            unwatched_pages: Some(7),
            ..Lost::default()
        };
        assert_eq!(lost_pages(5, &lost, 0), 5 + 3 * 64 + 7);
        assert_eq!(lost_pages(5, &lost, 512), 5 + 3 * 512 + 7);
        let terms = Terms {
            lost_pages: lost_pages(0, &lost, 512),
            ..TERMS
        };
        let quiet = bracket(moved(0, 0), 3 * 512 + 7 + 2 * 64, moved(0, 0));
        let result = reconcile(&quiet, &Base::default(), MEMORY, &terms);
        assert_eq!(result.bound.lost_bytes, (3 * 512 + 7) * 4096);
        assert!(result.holds());
    }

    #[test]
    fn a_quiet_cgroup_has_no_residual() {
        let base = Base {
            pages: 100,
            unsure_pages: 0,
        };
        let quiet = bracket(moved(5, 9), 105, moved(5, 9));
        let result = reconcile(&quiet, &base, MEMORY, &TERMS);
        assert_eq!(
            (result.ledger_bytes, result.residual_bytes),
            (105 * 4096, 0)
        );
        assert_eq!(result.bound.total_bytes(), 2 * 64 * 4096);
    }

    #[test]
    fn what_moves_while_the_file_is_read_widens_the_bound_by_as_much() {
        let base = Base::default();
        let busy = bracket(moved(0, 0), 200, moved(1000, 3000));
        let result = reconcile(&busy, &base, MEMORY, &TERMS);
        assert_eq!(result.residual_bytes, -800 * 4096);
        assert_eq!(result.bound.skew_bytes, 3000 * 4096);
        assert!(result.holds());
    }

    #[test]
    fn a_missed_charge_is_a_residual_beyond_the_bound() {
        let quiet = bracket(moved(0, 0), 129, moved(0, 0));
        assert!(!reconcile(&quiet, &Base::default(), MEMORY, &TERMS).holds());
    }

    #[test]
    fn items_do_not_see_the_stock_and_say_so() {
        let terms = Terms {
            source: Source::Items { stock_pages: 896 },
            ..TERMS
        };
        let quiet = bracket(moved(0, 0), 129, moved(0, 0));
        let result = reconcile(&quiet, &Base::default(), MEMORY, &terms);
        assert_eq!(result.bound.stock_bytes, 896 * 4096);
        assert!(result.holds());
    }

    #[test]
    fn the_base_comes_from_the_reading_during_which_least_moved() {
        let readings = [
            bracket(moved(0, 0), 130, moved(30, 30)),
            bracket(moved(30, 30), 130, moved(30, 30)),
            bracket(moved(30, 30), 131, moved(32, 32)),
        ];
        let base = Base::from_brackets(&readings, MEMORY, 4096);
        assert_eq!(
            base,
            Some(Base {
                pages: 100,
                unsure_pages: 0
            })
        );
    }

    #[test]
    fn readings_that_disagree_though_nothing_moved_leave_doubt() {
        let readings = [
            bracket(moved(0, 0), 100, moved(0, 0)),
            bracket(moved(0, 0), 164, moved(0, 0)),
        ];
        let base = Base::from_brackets(&readings, MEMORY, 4096).expect("two readings");
        assert_eq!(base.unsure_pages, 64);
    }

    #[test]
    fn one_disturbed_reading_among_three_is_outvoted() {
        let readings = [
            bracket(moved(0, 0), 100, moved(0, 0)),
            bracket(moved(0, 0), 164, moved(0, 0)),
            bracket(moved(64, 64), 164, moved(64, 64)),
        ];
        let base = Base::from_brackets(&readings, MEMORY, 4096);
        assert_eq!(
            base,
            Some(Base {
                pages: 100,
                unsure_pages: 0
            })
        );
    }
}
