//! The kernel-side totals and the kernel's files, read around each other.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use anyhow::Result;
use kmem_trace_ebpf::totals::{
    SLOT_KMEM, SLOT_MEMORY, SLOT_STAT_ANON, SLOT_STAT_FILE, SLOT_STAT_KMEM, SLOT_STAT_SOCK,
    SLOT_SWAP, SLOT_TCPMEM, Totals,
};

use super::Session;
use crate::{
    kernel::cgroupfs::{self, CgroupDir, CounterValues, Hierarchy},
    ledger::book::{Moved, Reading, add_up, moved},
    reconcile::{
        breakdown,
        usage::{Base, Bracket},
    },
};

/// The kernel's files of a page counter, and the slots of the ledger that mirror it.
pub(super) struct CounterFile {
    pub(super) name: &'static str,
    value: fn(&CounterValues) -> Option<u64>,
    pub(super) slots: &'static [usize],
}

const COUNTER_SLOTS: [CounterFile; 3] = [
    CounterFile {
        name: "kmem",
        value: |values| values.kmem,
        slots: &[SLOT_KMEM],
    },
    CounterFile {
        name: "swap",
        value: |values| values.memsw.or(values.swap),
        slots: &[SLOT_SWAP],
    },
    CounterFile {
        name: "tcpmem",
        value: |values| values.tcpmem,
        slots: &[SLOT_TCPMEM],
    },
];

/// Without page counters only kernel memory has items that follow its counter page for page.
const COUNTER_ITEMS: [CounterFile; 1] = [CounterFile {
    name: "kmem",
    value: |values| values.kmem,
    slots: &[SLOT_STAT_KMEM],
}];

const MEMORY_SLOTS: &[usize] = &[SLOT_MEMORY];
const MEMORY_ITEMS: &[usize] = &[
    SLOT_STAT_ANON,
    SLOT_STAT_FILE,
    SLOT_STAT_KMEM,
    SLOT_STAT_SOCK,
];

/// Readings from which a base is chosen.
const BASE_READINGS: usize = 5;
/// Milliseconds to wait, each time, before figures that cannot be right are read again: together longer
/// than a scheduler keeps a task waiting on a machine that does work.
///
/// Any number of tasks may be put off the CPU between a change and its page counter, and an exiting
/// one with thousands of pages: out of the items since the unmap, uncharged when their batch is freed
/// (mm/mmu_gather.c, `tlb_batch_pages_flush`). That passes; what was missed stays.
pub const PATIENCE_MS: [u64; 7] = [1, 2, 4, 8, 16, 32, 64];

/// A cgroup and one of its counters.
pub(super) type Key = (u64, &'static str);

impl Session {
    /// The kernel-side totals of every cgroup, summed over CPUs, and what the programs wrote down of
    /// who is charged with whom.
    ///
    /// # Errors
    /// Where the kernel does not hand them out.
    pub(super) fn reading(&mut self) -> Result<Reading> {
        let mut reading = Reading::new();
        for (cgroup, totals) in self.attached.totals()? {
            if cgroup.parent_id != 0 {
                self.tree.charged_with(cgroup.cgroup_id, cgroup.parent_id);
            }
            // Two CPUs that meet a cgroup at once take a place each, and one gives its own back.
            if totals != Totals::default() || !reading.contains_key(&cgroup.cgroup_id) {
                reading.insert(cgroup.cgroup_id, totals);
            }
            self.retired.is_due |= cgroup.released != 0;
        }
        for (id, totals) in &self.retired.totals {
            add_up(reading.entry(*id).or_default(), totals);
        }
        Ok(reading)
    }

    pub(super) fn moved(&mut self, ids: &HashSet<u64>) -> Result<HashMap<u64, Moved>> {
        let reading = self.reading()?;
        Ok(moved(&reading, &self.tree, ids))
    }

    pub(super) fn ids(&self) -> HashSet<u64> {
        self.reported.iter().map(|dir| dir.id).collect()
    }

    pub(super) async fn take_bases(&mut self) -> Result<()> {
        let ids = self.ids();
        let (mut brackets, mut left) = self.base_brackets(&ids).await?;
        for pause in PATIENCE_MS {
            // What is not yet in `memory.stat` is bounded like a stock (mm/memcontrol.c,
            // `memcg_vmstats_needs_flush`).
            if left.values().all(|pages| *pages <= self.stock_pages()) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(pause)).await;
            (brackets, left) = self.base_brackets(&ids).await?;
        }
        for (key, readings) in brackets {
            let slots = self.slots(key.1);
            if let Some(mut base) = Base::from_brackets(&readings, slots, self.page_bytes) {
                if key.1 == "memory" {
                    base.unsure_pages += left.get(&key.0).copied().unwrap_or(0);
                }
                self.bases.insert(key, base);
            }
        }
        Ok(())
    }

    /// Readings to choose bases from, and by how much these may be too high: [`Self::left_items`].
    async fn base_brackets(
        &mut self,
        ids: &HashSet<u64>,
    ) -> Result<(HashMap<Key, Vec<Bracket>>, HashMap<u64, u64>)> {
        let mut brackets: HashMap<Key, Vec<Bracket>> = HashMap::new();
        let mut left: HashMap<u64, u64> = HashMap::new();
        for round in 0..BASE_READINGS {
            if round > 0 {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            for (key, bracket) in self.brackets(ids)? {
                brackets.entry(key).or_default().push(bracket);
            }
            if round == 0 || round + 1 == BASE_READINGS {
                for (id, pages) in self.left_items() {
                    let most = left.entry(id).or_default();
                    *most = pages.max(*most);
                }
            }
        }
        Ok((brackets, left))
    }

    /// Pages that are charged and that neither `memory.stat` knows nor the stocks of CPUs can hold, by
    /// cgroup: those that a task has unmapped and not yet freed ([`PATIENCE_MS`]), of which no event will
    /// tell, and what `memory.stat` lags behind. Page counters see these go.
    fn left_items(&self) -> HashMap<u64, u64> {
        if self.plan.exact {
            return HashMap::new();
        }
        let left = |dir: &CgroupDir| {
            let values = cgroupfs::counters(&dir.dir, self.hierarchy).ok()?;
            let stat = cgroupfs::stat(&dir.dir).ok()?;
            let parts = breakdown::of(self.hierarchy, &stat, values.kmem, values.memory);
            let pages = u64::try_from(parts.stock?).ok()? / self.page_bytes;
            Some(pages.saturating_sub(self.stock_pages()))
        };
        let of = |dir: &CgroupDir| Some((dir.id, left(dir)?));
        self.reported.iter().filter_map(of).collect()
    }

    /// One bracket a cgroup and counter: totals, files, totals.
    pub(super) fn brackets(&mut self, ids: &HashSet<u64>) -> Result<Vec<(Key, Bracket)>> {
        let before = self.moved(ids)?;
        let mut files = Vec::new();
        for dir in self.reported.iter().filter(|dir| ids.contains(&dir.id)) {
            if let Ok(values) = cgroupfs::counters(&dir.dir, self.hierarchy)
                && dir.is_there()
            {
                files.push((dir.id, values));
            }
        }
        let after = self.moved(ids)?;
        let mut brackets = Vec::new();
        for (id, values) in files {
            let (Some(before), Some(after)) = (before.get(&id), after.get(&id)) else {
                continue;
            };
            let mut add = |name, bytes| {
                brackets.push((
                    (id, name),
                    Bracket {
                        before: *before,
                        file_bytes: bytes,
                        after: *after,
                    },
                ));
            };
            add("memory", values.memory);
            for counter in self.counter_files() {
                if let Some(bytes) = (counter.value)(&values) {
                    add(counter.name, bytes);
                }
            }
        }
        Ok(brackets)
    }

    pub(super) fn counter_files(&self) -> &'static [CounterFile] {
        if self.plan.exact {
            &COUNTER_SLOTS
        } else {
            &COUNTER_ITEMS
        }
    }

    pub(super) fn slots(&self, counter: &str) -> &'static [usize] {
        if counter == "memory" {
            return if self.plan.exact {
                MEMORY_SLOTS
            } else {
                MEMORY_ITEMS
            };
        }
        self.counter_files()
            .iter()
            .find(|file| file.name == counter)
            .map_or(&[], |file| file.slots)
    }

    /// A counter's name as users of this hierarchy know it.
    pub(super) fn counter_name(&self, name: &'static str) -> &'static str {
        match (name, self.hierarchy) {
            ("swap", Hierarchy::V1) => "memsw",
            _ => name,
        }
    }
}
