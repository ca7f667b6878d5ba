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
use crate::kernel::proc::softirqs::{self, ByVector};

/// What counts them, and beside it what says how much one moves.
pub const WATCHES: [&str; 2] = [COUNTS, "tb_softirq_ended"];
const COUNTS: &str = "tb_softirq_began";

/// Looks that lie closer together than this may both miss one softirq that is on its way.
const APART: Duration = Duration::from_millis(100);

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

/// How many softirqs the kernel counted more than we did, modulo 2³² as it counts.
type Ahead = ByVector;

/// The kernel's counts beside our own.
#[derive(Debug, Default)]
pub(super) struct Watch {
    /// How far the kernel was ahead when the programs had just been attached; `None` where it is not watched.
    before: Option<Ahead>,
    /// When it was looked last, and what was missing then.
    last: RefCell<Option<(Instant, Ahead)>>,
    /// What two looks missed; `None` before there were two.
    missed: RefCell<Option<Ahead>>,
    /// The programs are off.
    over: bool,
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
                before: Some(ahead(&counted, &seen)),
                ..Self::default()
            },
            Err(error) => {
                log::debug!("whether programs run in every softirq is not known: {error}");
                Self::default()
            }
        }
    }

    /// Looks once more, at how far the kernel is ahead. A softirq may be counted by the kernel and its
    /// program still to run, for as long as a virtual CPU stands still: only what two looks miss that
    /// lie apart is taken as missing, and nobody looks before.
    fn look(&self, at: Instant, ahead: impl FnOnce() -> Option<Ahead>) {
        let Some(before) = self.before.as_ref().filter(|_| !self.over) else {
            return;
        };
        let mut last = self.last.borrow_mut();
        if last
            .as_ref()
            .is_some_and(|(then, _)| at.duration_since(*then) < APART)
        {
            return;
        }
        let Some(ahead) = ahead() else {
            return;
        };
        let now = each(&ahead, before, |now, before| {
            // Ours were read last, and can be ahead.
            now.wrapping_sub(before)
                .cast_signed()
                .max(0)
                .cast_unsigned()
        });
        if let Some((_, then)) = &*last {
            let both = each(then, &now, u32::min);
            self.missed.replace_with(|missed| {
                Some(match missed {
                    Some(missed) => each(missed, &both, u32::max),
                    None => both,
                })
            });
        }
        *last = Some((at, now));
    }

    /// What is missing, by vector; `None` before two looks, and where it is not watched.
    fn missing(&self) -> Option<Vec<u64>> {
        let missed = self.missed.borrow();
        let of_cpus = |cpus: &Vec<u32>| cpus.iter().copied().map(u64::from).sum();
        Some(missed.as_ref()?.iter().map(of_cpus).collect())
    }
}

/// Each of `these` with its like.
fn each(these: &Ahead, those: &Ahead, of: fn(u32, u32) -> u32) -> Ahead {
    these
        .iter()
        .zip(those)
        .map(|(these, those)| these.iter().zip(those).map(|(a, b)| of(*a, *b)).collect())
        .collect()
}

/// How far the kernel's counts are ahead of ours.
fn ahead(counted: &ByVector, seen: &[Vec<u64>]) -> Ahead {
    let of_cpus = |(counted, seen): (&Vec<u32>, &Vec<u64>)| {
        // Of ours the low bits, as the kernel's.
        let each = counted.iter().zip(seen);
        each.map(|(counted, seen)| counted.wrapping_sub(*seen as u32))
            .collect()
    };
    counted.iter().zip(seen).map(of_cpus).collect()
}

impl Attached {
    /// Whether it is known, after two looks, which softirqs no program ran in.
    pub fn watches_softirqs(&self) -> bool {
        self.watch.before.is_some()
    }

    /// Softirqs that no program ran in since the programs were attached, as far as two looks show it;
    /// after they were taken off, as they were then. `None` before the second look, and where they are
    /// not watched.
    pub fn unwatched(&self) -> Option<Unwatched> {
        self.watch.look(Instant::now(), || {
            // The kernel's first: what comes between the two is none too many.
            let counted = softirqs::read().ok()?;
            Some(ahead(&counted, &self.softirqs_seen()))
        });
        let missing = self.watch.missing()?;
        Some(Unwatched {
            softirqs: missing.iter().sum(),
            pages: (0..)
                .zip(&missing)
                .filter(|(_, softirqs)| **softirqs > 0)
                .map(|(vector, softirqs)| softirqs * self.most_moved(vector))
                .sum(),
        })
    }

    /// The programs are about to be taken off: what is unwatched from here on is nobody's loss.
    pub(super) fn stop_watching(&mut self) {
        self.unwatched();
        self.watch.over = true;
    }

    /// Those that our program ran in, by vector and CPU.
    fn softirqs_seen(&self) -> Vec<Vec<u64>> {
        (0..VECTORS)
            .map(|vector| self.by_cpu(SOFTIRQS_SEEN + vector))
            .collect()
    }

    /// Pages that one softirq of a vector was seen to move at most.
    fn most_moved(&self, vector: u32) -> u64 {
        let most = self.by_cpu(SOFTIRQ_MOST + vector);
        most.into_iter().max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watch() -> Watch {
        Watch {
            before: Some(vec![vec![100, u32::MAX], vec![7, 7]]),
            ..Watch::default()
        }
    }

    /// What is known after one more look: the kernel is so far ahead.
    fn looked(watch: &Watch, ahead: [[u32; 2]; 2], at: Instant) -> Option<Vec<u64>> {
        watch.look(at, || Some(ahead.map(Vec::from).to_vec()));
        watch.missing()
    }

    /// Looks, each long enough after the one before.
    fn looks<const N: usize>(looks: [[[u32; 2]; 2]; N]) -> [Option<Vec<u64>>; N] {
        let (watch, mut at) = (watch(), Instant::now());
        looks.map(|ahead| {
            at += APART;
            looked(&watch, ahead, at)
        })
    }

    #[test]
    fn what_two_looks_in_a_row_miss_was_not_watched() {
        let found = looks([
            [[100, u32::MAX], [8, 7]],
            [[100, u32::MAX], [8, 7]],
            [[103, 1], [10, 7]],
            [[102, 1], [10, 8]],
        ]);
        assert_eq!(found[0], None);
        assert_eq!(found[1], Some(vec![0, 1]));
        assert_eq!(found[2], Some(vec![0, 1]));
        assert_eq!(found[3], Some(vec![4, 3]));
    }

    #[test]
    fn one_on_its_way_is_not_missing() {
        let found = looks([
            [[101, u32::MAX], [7, 7]],
            [[100, 0], [7, 7]],
            [[101, u32::MAX], [7, 7]],
        ]);
        assert_eq!(found[2], Some(vec![0, 0]));
    }

    #[test]
    fn what_one_cpu_saw_late_hides_nothing_of_another() {
        let found = looks([[[95, 4], [7, 7]], [[95, 4], [7, 7]]]);
        assert_eq!(found[1], Some(vec![5, 0]));
    }

    #[test]
    fn looks_close_together_are_one() {
        let (watch, start) = (watch(), Instant::now());
        let missing = [[101, u32::MAX], [7, 7]];
        for ms in [0, 1, 10, 99] {
            let at = start + Duration::from_millis(ms);
            assert_eq!(looked(&watch, missing, at), None);
        }
        assert_eq!(looked(&watch, missing, start + APART), Some(vec![1, 0]));
    }

    #[test]
    fn what_was_found_stays_found_when_the_readings_lie_further_apart() {
        let found = looks([
            [[105, u32::MAX], [7, 7]],
            [[105, u32::MAX], [7, 7]],
            [[103, u32::MAX], [7, 7]],
        ]);
        assert_eq!(found[2], Some(vec![5, 0]));
    }

    #[test]
    fn when_the_programs_are_off_what_was_found_stays() {
        let mut watch = watch();
        let (start, missing) = (Instant::now(), [[101, u32::MAX], [7, 7]]);
        for look in 0..2 {
            looked(&watch, missing, start + APART * look);
        }
        watch.over = true;
        for look in 2..4 {
            let found = looked(&watch, [[200, 9], [9, 9]], start + APART * look);
            assert_eq!(found, Some(vec![1, 0]));
        }
    }

    #[test]
    fn nothing_is_known_where_it_is_not_watched() {
        let watch = Watch::default();
        watch.look(Instant::now(), || panic!("nobody looks"));
        assert_eq!(watch.missing(), None);
    }

    #[test]
    fn counts_that_began_anew_are_held_against_the_low_bits_of_ours() {
        let seen = [vec![4, (1 << 32) + 1, 0], vec![4, (1 << 32) - 1, 0]];
        let counted = vec![vec![9, 3], vec![9, 3]];
        assert_eq!(ahead(&counted, &seen), [[5, 2], [5, 4]]);
    }
}
