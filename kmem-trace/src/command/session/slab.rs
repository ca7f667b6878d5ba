//! Slab in a session: the kernel-side sums read, named, and held against the kernel's own figures.

use std::collections::HashMap;

use kmem_trace_ebpf::{
    sums::OTHERS,
    totals::{LOST_OBJECTS, LOST_SLAB_KEYS, SLAB_MISREAD},
};

use super::Session;
use crate::{
    kernel::proc,
    ledger::slab::{self, SlabBook, SlabReading, SlabRow},
    reconcile::slab::{self as reconcile, SlabFigures, SlabLine, SlabReport, WrongPayerLine},
    stream::decode::text,
    view::name,
};

/// Wrong payers told of.
const LINES: usize = 12;

/// Where the slab figures began.
#[derive(Default)]
pub(super) struct SlabStart {
    figures: SlabFigures,
    /// What was added up while programs were still being attached: a free may have been missed
    /// then, so none of it counts.
    reading: SlabReading,
}

/// The kernel's slab figures now.
fn figures() -> SlabFigures {
    SlabFigures {
        slab_bytes: proc::meminfo().map(|node| node.slab_bytes).unwrap_or(0),
        caches: proc::slabinfo::read().unwrap_or_default(),
        page_bytes: super::page_bytes(),
    }
}

impl Session {
    /// Takes the figures that later ones are compared with.
    pub(super) fn slab_begin(&mut self) {
        if self.plan.slab {
            self.slab_start = SlabStart {
                figures: figures(),
                reading: self.slab_reading(),
            };
        }
    }

    /// The kernel-side sums, added up over CPUs.
    fn slab_reading(&self) -> SlabReading {
        self.attached.slab().collect()
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

    /// The function that an address is in.
    pub fn call_site(&self, address: u64) -> String {
        self.functions
            .name(address)
            .unwrap_or_else(|| format!("{address:#x}"))
    }

    /// Slab of each traced subtree, and of the node; `None` where slab is not attributed.
    pub fn slab_report(&mut self) -> Option<SlabReport> {
        if !self.plan.slab {
            return None;
        }
        let reading = slab::since(&self.slab_reading(), &self.slab_start.reading);
        let now = figures();
        let books: Vec<(u64, SlabBook)> = self
            .request
            .targets
            .iter()
            .map(|target| (target.id, slab::book(&reading, &self.tree, target.id)))
            .collect();
        let mut by_events: HashMap<String, i64> = HashMap::new();
        for (address, objects) in slab::by_cache(&reading) {
            *by_events.entry(self.cache_name(address)).or_default() += objects;
        }
        let coverage = reconcile::coverage(&by_events, &self.slab_start.figures, &now);
        let mut report = SlabReport {
            lines: Vec::new(),
            large: Vec::new(),
            wrong_payers: Vec::new(),
            node: reconcile::node(
                slab::node(&reading),
                &self.slab_start.figures,
                &now,
                coverage.unseen,
            ),
            lost_keys: self.attached.tally(LOST_SLAB_KEYS),
            lost_objects: self.attached.tally(LOST_OBJECTS),
            misread: self.attached.tally(SLAB_MISREAD),
            skipped: self.attached.slab_skipped(),
        };
        for (id, book) in &books {
            let cgroup = name::path(&self.tree.name(*id));
            let line = |row: &SlabRow| {
                let cache = self.cache_name(row.cache);
                SlabLine {
                    coverage: coverage.by_cache.get(&cache).copied(),
                    cgroup: cgroup.clone(),
                    cache,
                    cause: slab::cause_name(row.cause),
                    call_site: (row.call_site != 0).then(|| self.call_site(row.call_site)),
                    objects: row.objects(),
                    bytes: row.bytes(),
                    allocated_bytes: row.allocated_bytes,
                    freed_bytes: row.freed_bytes,
                }
            };
            report.lines.extend(book.charged.iter().map(line));
            report.lines.extend(book.uncharged.iter().map(line));
            report.large.extend(book.large.iter().map(line));
            for it in book.wrong_payers.iter().take(LINES) {
                let named = |id: u64| match id {
                    OTHERS => "(another cgroup)".to_owned(),
                    id => name::path(&self.tree.name(id)),
                };
                report.wrong_payers.push(WrongPayerLine {
                    payer: named(it.payer),
                    asker: named(it.asker),
                    cache: self.cache_name(it.cache),
                    call_site: self.call_site(it.call_site),
                    allocated_bytes: it.allocated_bytes,
                });
            }
        }
        Some(report)
    }
}
