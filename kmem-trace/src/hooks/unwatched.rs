//! Softirqs in which the kernel ran none of our programs, though they were attached and none was under
//! way: what is counted there is no skip of a program.
//!
//! The kernel counts each softirq right before its tracepoint (`handle_softirqs`, kernel/softirq.c); so
//! what it counted, less what our program on that tracepoint counted, is how many were not watched.

use std::{
    cell::RefCell,
    time::{Duration, Instant},
};

use kmem_trace_ebpf::totals::{SOFTIRQ_MOST, SOFTIRQS_SEEN, VECTORS};

use super::attach::Attached;
use crate::kernel::proc::softirqs;

/// What counts them, and beside it what says how much one moves.
pub const WATCHES: [&str; 2] = [COUNTS, "tb_softirq_ended"];
const COUNTS: &str = "tb_softirq_began";

/// Looks that lie closer together than this may both miss one softirq that is on its way.
const APART: Duration = Duration::from_millis(20);

/// Whether softirqs are watched by programs, given by role and name.
pub(super) fn watches(programs: &[(&str, &str)]) -> bool {
    programs.iter().any(|(_, name)| *name == COUNTS)
}

/// Softirqs that no program ran in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unwatched {
    pub softirqs: u64,
    /// Pages that they moved, up or down, if each moved as many as the busiest of its vector that was
    /// seen over a task.
    pub pages: u64,
}

/// Softirqs by vector.
type ByVector = Vec<u64>;

/// The kernel's counts beside our own.
#[derive(Debug, Default)]
pub(super) struct Watch {
    /// What the kernel counted more than we did when the programs had just been attached; `None` where
    /// it is not watched.
    before: Option<ByVector>,
    /// When it was looked, and what was missing then.
    last: RefCell<Option<(Instant, ByVector)>>,
    sure: RefCell<ByVector>,
}

impl Watch {
    /// Of programs that are attached.
    pub(super) fn of(attached: &Attached) -> Self {
        if !watches(&attached.programs) {
            return Self::default();
        }
        // Ours first: what comes between the two is before the beginning, and not missing later.
        let seen = attached.softirqs_seen();
        match softirqs::read() {
            Ok(counted) => Self {
                before: Some(more(&counted, &seen)),
                ..Self::default()
            },
            Err(error) => {
                log::debug!("whether programs run in every softirq is not known: {error}");
                Self::default()
            }
        }
    }

    /// Looks once more, at what the kernel counted and what we did. A softirq may be counted by the kernel
    /// and its program still to run, for as long as a virtual CPU stands still: only what two looks miss that
    /// lie apart is missing, and nobody looks before.
    fn look(&self, at: Instant, counts: impl FnOnce() -> Option<(ByVector, ByVector)>) {
        let Some(before) = &self.before else {
            return;
        };
        let mut last = self.last.borrow_mut();
        if last
            .as_ref()
            .is_some_and(|(then, _)| at.duration_since(*then) < APART)
        {
            return;
        }
        let Some((counted, seen)) = counts() else {
            return;
        };
        let now = more(&more(&counted, &seen), before);
        let mut sure = self.sure.borrow_mut();
        sure.resize(now.len(), 0);
        if let Some((_, missing)) = &*last {
            for (sure, (missing, now)) in sure.iter_mut().zip(missing.iter().zip(&now)) {
                *sure = (*sure).max(*missing.min(now));
            }
        }
        *last = Some((at, now));
    }
}

/// What each of `these` is more than its like.
fn more(these: &[u64], those: &[u64]) -> ByVector {
    these
        .iter()
        .zip(those)
        .map(|(this, that)| this.saturating_sub(*that))
        .collect()
}

impl Attached {
    /// Softirqs that no program ran in since the programs were attached, as far as two looks show it;
    /// after they were taken off, as they were then.
    pub fn unwatched(&self) -> Unwatched {
        self.watch.look(Instant::now(), || {
            // The kernel's first: what comes between the two is none too many.
            let counted = softirqs::read().ok()?;
            Some((counted, self.softirqs_seen()))
        });
        let sure = self.watch.sure.borrow();
        Unwatched {
            softirqs: sure.iter().sum(),
            pages: (0..)
                .zip(&*sure)
                .filter(|(_, softirqs)| **softirqs > 0)
                .map(|(vector, softirqs)| softirqs * self.most_moved(vector))
                .sum(),
        }
    }

    /// The programs are about to be taken off: what is unwatched from here on is nobody's loss.
    pub(super) fn stop_watching(&mut self) {
        self.unwatched();
        self.watch.before = None;
    }

    fn softirqs_seen(&self) -> Vec<u64> {
        (0..VECTORS)
            .map(|vector| self.tally(SOFTIRQS_SEEN + vector))
            .collect()
    }

    /// Pages that one softirq of a vector was seen to move at most.
    fn most_moved(&self, vector: u32) -> u64 {
        let most = self.kept.tallies(&self.ebpf, SOFTIRQ_MOST + vector);
        most.ok()
            .and_then(|most| most.into_iter().max())
            .unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watch() -> Watch {
        Watch {
            before: Some(vec![100, 7]),
            ..Watch::default()
        }
    }

    /// What is known after one more look.
    fn looked(watch: &Watch, counted: [u64; 2], seen: [u64; 2], at: Instant) -> ByVector {
        watch.look(at, || Some((counted.to_vec(), seen.to_vec())));
        watch.sure.borrow().clone()
    }

    /// Looks, each long enough after the one before.
    fn looks<const N: usize>(looks: [([u64; 2], [u64; 2]); N]) -> [ByVector; N] {
        let (watch, mut at) = (watch(), Instant::now());
        looks.map(|(counted, seen)| {
            at += APART;
            looked(&watch, counted, seen, at)
        })
    }

    #[test]
    fn what_two_looks_in_a_row_miss_was_not_watched() {
        let found = looks([
            ([110, 9], [10, 1]),
            ([120, 10], [20, 2]),
            ([123, 12], [20, 2]),
            ([130, 12], [28, 2]),
        ]);
        assert_eq!(found, [[0, 0], [0, 1], [0, 1], [2, 3]]);
    }

    #[test]
    fn one_on_its_way_is_not_missing() {
        let found = looks([
            ([111, 7], [10, 0]),
            ([111, 7], [11, 0]),
            ([112, 7], [11, 0]),
        ]);
        assert_eq!(found, [[0, 0]; 3]);
    }

    #[test]
    fn looks_close_together_are_one() {
        let (watch, start) = (watch(), Instant::now());
        for ms in [0, 1, 10, 19] {
            let at = start + Duration::from_millis(ms);
            assert_eq!(looked(&watch, [101, 7], [0, 0], at), [0, 0]);
        }
        assert_eq!(looked(&watch, [101, 7], [0, 0], start + APART), [1, 0]);
    }

    #[test]
    fn what_was_found_stays_found_when_more_was_seen_meanwhile() {
        let found = looks([
            ([105, 7], [0, 0]),
            ([105, 7], [0, 0]),
            ([105, 7], [2, 0]),
            ([108, 7], [4, 0]),
        ]);
        assert_eq!(found, [[0, 0], [5, 0], [5, 0], [5, 0]]);
    }

    #[test]
    fn nothing_is_said_where_it_is_not_watched() {
        let found = looked(&Watch::default(), [1, 2], [0, 0], Instant::now());
        assert!(found.is_empty());
    }
}
