//! Slab in a session: the kernel-side sums read, named, and held against the kernel's own figures.

use std::collections::{HashMap, HashSet};

use anyhow::{Context as _, Result};
use kmem_trace_ebpf::{
    sums::{OTHERS, SlabSums},
    totals::{LOST_OBJECTS, LOST_SLAB_KEYS, SLAB_MISREAD},
};

use super::Session;
use crate::{
    kernel::{callsite, proc},
    ledger::slab::{self, SlabBook, SlabReading, SlabRow},
    reconcile::report::{NodeLine, SlabLine, SlabReport, WrongPayerLine},
    stream::decode::text,
    view::name,
};

/// Lines of a report by cause; what is below them is summed up in one.
const LINES: usize = 12;
/// A cache that moved less than this is not held against `/proc/slabinfo`: objects in per-CPU
/// slabs count as active there.
const COVERAGE_BYTES: u64 = 1 << 20;

/// The kernel's slab figures when the trace began.
#[derive(Default)]
pub(super) struct SlabStart {
    slab_bytes: u64,
    /// Active objects by cache name.
    active: HashMap<String, u64>,
    /// Bytes of slab pages that hold no object.
    overhead_bytes: u64,
}

impl SlabStart {
    pub(super) fn read() -> Self {
        let caches = proc::slabinfo::read().unwrap_or_default();
        Self {
            slab_bytes: proc::meminfo().map(|node| node.slab_bytes).unwrap_or(0),
            overhead_bytes: overhead(&caches),
            active: caches
                .into_iter()
                .map(|cache| (cache.name, cache.active_objects))
                .collect(),
        }
    }
}

/// Pages of slabs less the objects in them.
fn overhead(caches: &[proc::slabinfo::SlabCache]) -> u64 {
    let page = proc::own::page_bytes();
    caches
        .iter()
        .map(|cache| {
            (cache.pages() * page).saturating_sub(cache.active_objects * cache.object_bytes)
        })
        .sum()
}

impl Session {
    /// The kernel-side sums, added up over CPUs.
    fn slab_reading(&mut self) -> Result<SlabReading> {
        let mut reading = SlabReading::new();
        for entry in self.attached.slab.iter() {
            let (key, per_cpu) = entry.context("cannot read the slab sums")?;
            let mut sum = SlabSums::default();
            for one in per_cpu.iter() {
                sum.allocated += one.allocated;
                sum.allocated_bytes += one.allocated_bytes;
                sum.freed += one.freed;
                sum.freed_bytes += one.freed_bytes;
            }
            reading.insert(key, sum);
        }
        Ok(reading)
    }

    fn cache_name(&self, address: u64) -> String {
        if address == 0 {
            return "(pages of large kmallocs)".to_owned();
        }
        match self.attached.caches.get(&address, 0) {
            Ok(cache) => name::printable(text(&cache.name)),
            Err(_) => format!("cache {address:#x}"),
        }
    }

    /// Looks up the functions of call sites that are not known yet.
    fn learn_call_sites(&mut self, addresses: impl Iterator<Item = u64>) {
        let new: HashSet<u64> = addresses
            .filter(|address| *address != 0 && !self.call_sites.contains_key(address))
            .collect();
        let new: Vec<u64> = new.into_iter().collect();
        let found = callsite::names(&new).unwrap_or_default();
        for address in new {
            let name = found
                .get(&address)
                .cloned()
                .unwrap_or_else(|| format!("{address:#x}"));
            self.call_sites.insert(address, name);
        }
    }

    /// The function that an address is in, where it was looked up.
    pub fn call_site(&self, address: u64) -> String {
        self.call_sites
            .get(&address)
            .cloned()
            .unwrap_or_else(|| format!("{address:#x}"))
    }

    /// Slab of each traced subtree, and of the node; `None` where slab is not attributed.
    ///
    /// # Errors
    /// Where the maps cannot be read.
    pub fn slab_report(&mut self) -> Result<Option<SlabReport>> {
        if !self.plan.slab {
            return Ok(None);
        }
        let reading = self.slab_reading()?;
        let node_now = proc::meminfo().map(|node| node.slab_bytes).unwrap_or(0);
        let slabinfo = proc::slabinfo::read().unwrap_or_default();
        let books: Vec<(u64, SlabBook)> = self
            .request
            .targets
            .iter()
            .map(|target| (target.id, slab::book(&reading, &self.tree, target.id)))
            .collect();
        let shown = |rows: &[SlabRow]| {
            rows.iter()
                .take(LINES)
                .map(|row| row.call_site)
                .collect::<Vec<_>>()
        };
        let sites: Vec<u64> = books
            .iter()
            .flat_map(|(_, book)| {
                let wrong = book.wrong_payers.iter().take(LINES).map(|it| it.call_site);
                [
                    shown(&book.charged),
                    shown(&book.uncharged),
                    wrong.collect(),
                ]
                .concat()
            })
            .collect();
        self.learn_call_sites(sites.into_iter());
        let coverage = self.coverage(&reading, &slabinfo);
        let mut lines = Vec::new();
        let mut wrong_payers = Vec::new();
        for (id, book) in &books {
            let cgroup = name::path(&self.tree.name(*id));
            for rows in [&book.charged, &book.uncharged] {
                for (place, row) in rows.iter().enumerate() {
                    let cache = self.cache_name(row.cache);
                    lines.push(SlabLine {
                        coverage: coverage.get(&cache).copied(),
                        cgroup: cgroup.clone(),
                        cache,
                        cause: slab::cause_name(row.cause),
                        call_site: (row.call_site != 0 && place < LINES)
                            .then(|| self.call_site(row.call_site)),
                        objects: row.objects(),
                        bytes: row.bytes(),
                        allocated_bytes: row.allocated_bytes,
                        freed_bytes: row.freed_bytes,
                    });
                }
            }
            for it in book.wrong_payers.iter().take(LINES) {
                let named = |id: u64| match id {
                    OTHERS => "(another cgroup)".to_owned(),
                    id => name::path(&self.tree.name(id)),
                };
                wrong_payers.push(WrongPayerLine {
                    payer: named(it.payer),
                    asker: named(it.asker),
                    cache: self.cache_name(it.cache),
                    call_site: self.call_site(it.call_site),
                    allocated_bytes: it.allocated_bytes,
                });
            }
        }
        let sums = slab::node(&reading);
        let slab_delta_bytes = node_now.cast_signed() - self.slab_start.slab_bytes.cast_signed();
        let overhead_bytes =
            overhead(&slabinfo).cast_signed() - self.slab_start.overhead_bytes.cast_signed();
        let explained = sums.charged + sums.not_charged + sums.others + overhead_bytes;
        Ok(Some(SlabReport {
            lines,
            wrong_payers,
            node: NodeLine {
                slab_delta_bytes,
                charged_bytes: sums.charged,
                not_charged_bytes: sums.not_charged,
                other_cgroups_bytes: sums.others,
                overhead_bytes,
                residual_bytes: slab_delta_bytes - explained,
            },
            lost_keys: self.tally(LOST_SLAB_KEYS),
            lost_objects: self.tally(LOST_OBJECTS),
            misread: self.tally(SLAB_MISREAD),
        }))
    }

    /// Our change in live objects by the kernel's, for each cache name that moved by enough.
    fn coverage(
        &self,
        reading: &SlabReading,
        slabinfo: &[proc::slabinfo::SlabCache],
    ) -> HashMap<String, f64> {
        // Caches of one name (after a merge, or in several namespaces) are one line there.
        let mut ours: HashMap<String, i64> = HashMap::new();
        for (address, objects) in slab::by_cache(reading) {
            *ours.entry(self.cache_name(address)).or_default() += objects;
        }
        let mut found = HashMap::new();
        for cache in slabinfo {
            let before = self
                .slab_start
                .active
                .get(&cache.name)
                .copied()
                .unwrap_or(0);
            let moved = cache.active_objects.cast_signed() - before.cast_signed();
            if moved.unsigned_abs() * cache.object_bytes >= COVERAGE_BYTES
                && let Some(ours) = ours.get(&cache.name)
            {
                found.insert(cache.name.clone(), *ours as f64 / moved as f64);
            }
        }
        found
    }
}
