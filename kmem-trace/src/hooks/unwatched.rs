//! Softirqs in which the kernel ran none of our programs, though they were attached and none was under
//! way: what is counted there is no skip of a program.
//!
//! The kernel counts each softirq right before its tracepoint (`handle_softirqs`, kernel/softirq.c); so
//! what it counted, less what our program on that tracepoint counted, is how many were not watched.

use std::{
    cell::{Cell, RefCell},
    os::fd::AsFd as _,
};

use kmem_trace_ebpf::totals::{SOFTIRQ_MOST, SOFTIRQS_SEEN, VECTORS};

use super::{attach::Attached, stats};
use crate::kernel::proc::softirqs;

/// What counts them, and beside it what says how much one moves.
pub const WATCHES: [&str; 2] = [COUNTS, "tb_softirq_ended"];
const COUNTS: &str = "tb_softirq_began";

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
    last: RefCell<ByVector>,
    sure: RefCell<ByVector>,
    found: Cell<Unwatched>,
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

    /// What is known after one more look. A softirq may be counted by the kernel and its program still
    /// to run: only what two looks in a row miss is missing.
    fn look(&self, counted: &[u64], seen: &[u64], skipped: u64) -> ByVector {
        let Some(before) = &self.before else {
            return ByVector::new();
        };
        let now: ByVector = more(&more(counted, seen), before)
            .iter()
            .map(|missing| missing.saturating_sub(skipped))
            .collect();
        let last = self.last.replace(now.clone());
        let mut sure = self.sure.borrow_mut();
        sure.resize(now.len(), 0);
        for (sure, (last, now)) in sure.iter_mut().zip(last.iter().zip(&now)) {
            *sure = (*sure).max(*last.min(now));
        }
        sure.clone()
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
        if self.watch.before.is_none() {
            return self.watch.found.get();
        }
        // The kernel's first: what comes between the two is none too many.
        let Ok(counted) = softirqs::read() else {
            return self.watch.found.get();
        };
        let seen = self.softirqs_seen();
        let program = self.ebpf.program(COUNTS).and_then(|it| it.fd().ok());
        let skipped = program
            .and_then(|fd| stats::of(fd.as_fd()))
            .map_or(0, |stats| stats.skipped);
        let sure = self.watch.look(&counted, &seen, skipped);
        let found = Unwatched {
            softirqs: sure.iter().sum(),
            pages: (0..)
                .zip(&sure)
                .filter(|(_, softirqs)| **softirqs > 0)
                .map(|(vector, softirqs)| softirqs * self.most_moved(vector))
                .sum(),
        };
        self.watch.found.set(found);
        found
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

    #[test]
    fn what_two_looks_in_a_row_miss_was_not_watched() {
        let watch = watch();
        assert_eq!(watch.look(&[110, 9], &[10, 1], 0), [0, 0]);
        assert_eq!(watch.look(&[120, 10], &[20, 2], 0), [0, 1]);
        assert_eq!(watch.look(&[123, 12], &[20, 2], 0), [0, 1]);
        assert_eq!(watch.look(&[130, 12], &[28, 2], 0), [2, 3]);
    }

    #[test]
    fn one_on_its_way_is_not_missing() {
        let watch = watch();
        watch.look(&[111, 7], &[10, 0], 0);
        assert_eq!(watch.look(&[111, 7], &[11, 0], 0), [0, 0]);
        assert_eq!(watch.look(&[112, 7], &[11, 0], 0), [0, 0]);
    }

    #[test]
    fn what_was_found_stays_found_when_more_was_seen_meanwhile() {
        let watch = watch();
        watch.look(&[105, 7], &[0, 0], 0);
        assert_eq!(watch.look(&[105, 7], &[0, 0], 0), [5, 0]);
        assert_eq!(watch.look(&[105, 7], &[2, 0], 0), [5, 0]);
        assert_eq!(watch.look(&[108, 7], &[4, 0], 0), [5, 0]);
    }

    #[test]
    fn skips_that_the_kernel_counts_are_not_told_twice() {
        let watch = watch();
        watch.look(&[103, 9], &[0, 0], 2);
        assert_eq!(watch.look(&[103, 9], &[0, 0], 2), [1, 0]);
    }

    #[test]
    fn nothing_is_said_where_it_is_not_watched() {
        assert!(Watch::default().look(&[1, 2], &[0, 0], 0).is_empty());
    }
}
