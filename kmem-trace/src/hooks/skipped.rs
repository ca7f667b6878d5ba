//! Events that no program saw because the kernel skipped every one that would have.

use std::collections::{BTreeMap, HashMap};

use aya::programs::Program;
use kmem_trace_ebpf::{
    pairs::FIRSTS,
    totals::{CALLS_BEGUN, CALLS_COUNTED, SECOND_RUNS},
};

use super::{attach::Attached, pairs::is_second, unwatched::WATCHES};

impl Attached {
    /// Events that the programs did not see because the kernel skipped them, as far as it counts
    /// that, by role; roles without any are left out.
    pub fn skipped(&self) -> BTreeMap<&'static str, u64> {
        let mut skipped = self.last_skipped.clone();
        for (role, now) in self.skipped_now() {
            let kept = skipped.entry(role).or_default();
            *kept = now.max(*kept);
        }
        skipped
    }

    fn skipped_now(&self) -> BTreeMap<&'static str, u64> {
        let stats: HashMap<&str, u64> = self
            .stats()
            .into_iter()
            .map(|(name, stats)| (name, stats.skipped))
            .collect();
        let passed_over = self.kprobes.missed();
        let mut skipped: BTreeMap<&'static str, u64> = BTreeMap::new();
        let mut pairs: BTreeMap<&'static str, u64> = BTreeMap::new();
        let mut first_missed = 0;
        for (role, program) in &self.programs {
            let missed = stats.get(program).copied().unwrap_or(0);
            let is_ledger = role.starts_with("counter.");
            if is_ledger && program.ends_with("_2") {
                continue;
            }
            if let (true, Some(stem)) = (is_ledger, program.strip_suffix("_1")) {
                // A call is missed where both programs of a pair were skipped.
                let other = stats.get(format!("{stem}_2").as_str()).copied();
                *pairs.entry(role).or_default() += missed.min(other.unwrap_or(0));
                if program.starts_with("fe_") {
                    first_missed += missed;
                }
                continue;
            }
            // What a watch misses of its own counts as not watched.
            if is_second(program) || WATCHES.contains(program) {
                continue;
            }
            let id = match self.ebpf.program(program) {
                Some(Program::KProbe(program)) => program.info().ok().map(|info| info.id()),
                _ => None,
            };
            // Asked after the misses: what a second program took care of was missed before.
            let taken = FIRSTS
                .iter()
                .position(|first| first == program)
                .map_or(0, |pair| self.tally(SECOND_RUNS + pair as u32));
            let missed = missed.saturating_sub(taken);
            let by_kprobe = id.and_then(|id| passed_over.get(&id).copied());
            *skipped.entry(role).or_default() += missed + by_kprobe.unwrap_or(0);
        }
        // Calls begun and not counted; of which role, only the misses of its pairs tell.
        let counted = self.tally(CALLS_COUNTED);
        let mut open = (self.tally(CALLS_BEGUN) + first_missed).saturating_sub(counted);
        for (role, both_missed) in pairs {
            let missed = both_missed.min(open);
            open -= missed;
            *skipped.entry(role).or_default() += missed;
        }
        skipped.retain(|_, count| *count > 0);
        skipped
    }
}
