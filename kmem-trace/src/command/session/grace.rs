//! When a place that programs no longer find may be used again: once each program has ended that had
//! found it before.
//!
//! `membarrier(MEMBARRIER_CMD_GLOBAL)` is `synchronize_rcu()` (kernel/sched/membarrier.c), and all
//! programs run under RCU: how long one is preempted, or its virtual CPU stolen, does not matter then.

use std::{
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use aya::util::online_cpus;

/// Longer than a program runs, where the kernel does not say that none does: with `nohz_full`, or on
/// one CPU, where it returns at once and a preempted program may be under way.
const LONG: Duration = Duration::from_millis(50);

/// Places on their way back.
pub(super) struct Grace {
    /// Forgotten since the wait began.
    coming: Vec<usize>,
    waiting: Option<Waiting>,
    /// Returns when no program runs that ran before; false where the kernel does not say so.
    barrier: fn() -> bool,
    /// It did not.
    by_time: bool,
}

/// One wait, for all that was forgotten before it began.
struct Waiting {
    places: Vec<usize>,
    since: Instant,
    /// Its thread: the call sleeps for as long as it takes. `None`: by time.
    thread: Option<JoinHandle<bool>>,
}

impl Default for Grace {
    fn default() -> Self {
        Self::by(membarrier)
    }
}

impl Grace {
    fn by(barrier: fn() -> bool) -> Self {
        Self {
            coming: Vec::new(),
            waiting: None,
            barrier,
            by_time: false,
        }
    }

    /// Programs no longer find this place.
    pub(super) fn add(&mut self, place: usize) {
        self.coming.push(place);
    }

    /// All that wait.
    pub(super) fn places(&self) -> impl Iterator<Item = usize> {
        let waiting = self.waiting.iter().flat_map(|it| &it.places);
        waiting.chain(&self.coming).copied()
    }

    /// Places that nothing is added to any more, each told once.
    pub(super) fn over(&mut self) -> Vec<usize> {
        let mut over = Vec::new();
        if let Some(mut waiting) = self.waiting.take() {
            let ended = waiting.thread.take_if(|thread| thread.is_finished());
            let passed = ended.map(|thread| thread.join().unwrap_or(false));
            self.by_time |= passed == Some(false);
            let is_over = match (passed, &waiting.thread) {
                (Some(true), _) => true,
                (None, Some(_)) => false,
                _ => waiting.since.elapsed() >= LONG,
            };
            if is_over {
                over = waiting.places;
            } else {
                self.waiting = Some(waiting);
            }
        }
        if self.waiting.is_none() && !self.coming.is_empty() {
            self.waiting = Some(Waiting {
                places: std::mem::take(&mut self.coming),
                since: Instant::now(),
                thread: self.start(),
            });
        }
        over
    }

    fn start(&self) -> Option<JoinHandle<bool>> {
        if self.by_time || online_cpus().map_or(1, |cpus| cpus.len()) == 1 {
            return None;
        }
        let thread = thread::Builder::new().name("grace".to_owned());
        thread.spawn(self.barrier).ok()
    }
}

fn membarrier() -> bool {
    // SAFETY: it takes no pointers.
    unsafe { libc::syscall(libc::SYS_membarrier, libc::MEMBARRIER_CMD_GLOBAL, 0, 0) == 0 }
}

#[cfg(test)]
mod tests {
    use caps::CapSet;

    use super::*;

    fn next(grace: &mut Grace) -> Vec<usize> {
        let start = Instant::now();
        loop {
            let over = grace.over();
            if !over.is_empty() || start.elapsed() > 100 * LONG {
                return over;
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn what_was_forgotten_after_a_wait_began_has_one_of_its_own() {
        let mut grace = Grace::by(|| true);
        grace.add(1);
        grace.add(2);
        assert_eq!(grace.over(), [0_usize; 0]);
        grace.add(3);
        let mut all: Vec<usize> = grace.places().collect();
        all.sort_unstable();
        assert_eq!(all, [1, 2, 3]);
        assert_eq!(next(&mut grace), [1, 2]);
        assert_eq!(next(&mut grace), [3]);
        assert_eq!(grace.places().count(), 0);
        assert_eq!(grace.over(), [0_usize; 0]);
    }

    #[test]
    fn time_decides_where_the_kernel_does_not_say() {
        let mut grace = Grace::by(|| false);
        for place in [1, 2] {
            grace.add(place);
            let start = Instant::now();
            assert_eq!(next(&mut grace), [place]);
            assert!(start.elapsed() >= LONG);
        }
        assert!(grace.by_time || online_cpus().is_ok_and(|cpus| cpus.len() == 1));
    }

    #[test]
    fn the_kernel_is_asked_without_any_capability() {
        let asked = thread::spawn(|| {
            for set in [CapSet::Effective, CapSet::Permitted] {
                caps::clear(None, set).expect("less is always allowed");
            }
            membarrier()
        });
        let is_tickless = std::fs::read_to_string("/sys/devices/system/cpu/nohz_full")
            .is_ok_and(|cpus| !["", "(null)"].contains(&cpus.trim()));
        assert!(asked.join().expect("it returns") || is_tickless);
    }
}
