//! Slab in a session: the kernel-side sums read, named, and held against the kernel's own figures.

use std::collections::{HashMap, HashSet};

use kmem_trace_ebpf::{
    config::ABSENT,
    sums::{CAUSE_CHARGED, DEAD, OTHERS, SlabSums},
    totals::DEAD_NOTED,
};

use super::Session;
use crate::{
    hooks::{plan::Plan, table::Mechanism},
    kernel::proc::{
        self,
        slab_lists::{self, Lists},
        slabinfo::SlabCache,
    },
    ledger::slab::{self, SlabBook, SlabReading, SlabRow},
    reconcile::{
        coverage::{Meanwhile, SlabFigures, coverage},
        slab::{
            self as reconcile, CauseBytes, DeadLine, DeadTotals, Findings, Reading, SlabLine,
            SlabLost, SlabReport, WrongPayerLine,
        },
    },
    stream::decode::text,
    view::{event::ANOTHER, name},
};

/// Wrong payers told of.
const LINES: usize = 12;

/// How often the figures are looked at, when they begin and later; the look during which least moved
/// counts. Few, because each makes the kernel walk lists of slabs.
const FIRST_LOOKS: usize = 4;
const LOOKS: usize = 2;
/// What may move while they are read without another look: opening the files alone takes and gives
/// back some 20 KiB.
const MAY_MOVE_BYTES: u64 = 64 * 1024;

/// Where the slab figures began.
#[derive(Default)]
pub(super) struct SlabStart {
    /// The sums hold what was added up while programs were still being attached: a free may have been
    /// missed then, so none of it counts.
    pub(super) moment: SlabMoment,
    /// Until then.
    pub(super) lost: SlabLost,
    lists: Lists,
    /// As the last look found them.
    caches: Vec<SlabCache>,
    /// Some time before the figures begin.
    on_lists: HashMap<String, u64>,
    held_back: HeldBack,
}

/// What CPUs hold back of the node's statistics; read again only when CPUs come or go, for the kernel
/// locks zones while it writes the file.
#[derive(Default)]
struct HeldBack {
    cpus: usize,
    pages: Option<u64>,
}

impl HeldBack {
    fn pages(&mut self) -> Option<u64> {
        let cpus = proc::cpus::online().map_or(1, |cpus| cpus.len());
        if self.cpus != cpus {
            let pages = proc::zoneinfo::held_back_pages().ok();
            *self = Self { cpus, pages };
        }
        self.pages
    }
}

/// The kernel's slab figures and the sums beside them.
#[derive(Default)]
pub(super) struct SlabMoment {
    figures: SlabFigures,
    pub(super) reading: SlabReading,
}

/// The kernel's slab figures now, but for what lies on lists or is held back.
fn figures() -> SlabFigures {
    let node = || proc::meminfo().map(|node| node.slab_bytes).unwrap_or(0);
    let before = node();
    let caches = proc::slabinfo::read().unwrap_or_default();
    let slab_bytes = node();
    SlabFigures {
        slab_bytes,
        caches,
        // Of slabs that came or went between the two files.
        meanwhile: Meanwhile {
            bytes: slab_bytes.abs_diff(before),
            ..Meanwhile::default()
        },
        page_bytes: proc::own::page_bytes(),
        ..SlabFigures::default()
    }
}

/// Bytes that came and those that went, both counted.
fn gross(sums: &SlabSums) -> u64 {
    sums.allocated_bytes.wrapping_add(sums.freed_bytes)
}

/// Bytes that came less those that went.
fn net(sums: &SlabSums) -> i64 {
    sums.allocated_bytes
        .wrapping_sub(sums.freed_bytes)
        .cast_signed()
}

/// By cause, what is neither charged to a traced cgroup nor asked for by one.
fn others(reading: &SlabReading) -> Vec<CauseBytes> {
    let mut by_cause: HashMap<&'static str, i64> = HashMap::new();
    for (key, sums) in reading {
        let is_other = match key.payer {
            OTHERS => true,
            0 => [0, OTHERS].contains(&key.asker),
            _ => false,
        };
        if key.cache != 0 && is_other {
            *by_cause.entry(slab::cause_name(key.cause)).or_default() += net(sums);
        }
    }
    let mut causes: Vec<CauseBytes> = by_cause
        .into_iter()
        .map(|(cause, bytes)| CauseBytes { cause, bytes })
        .collect();
    causes.sort_by_key(|it| (std::cmp::Reverse(it.bytes), it.cause));
    causes
}

impl Session {
    /// Reads the lists a while before the figures begin: opening that many files takes slab, 300 KiB of
    /// inodes and dentries that stay, which has to be in slabinfo's figure then, and more that goes a
    /// grace period later, which is to be gone.
    pub(super) fn slab_prepare(&mut self) {
        if self.plan.slab {
            let start = &mut self.slab_start;
            start.lists = Lists::of_this_machine();
            start.caches = proc::slabinfo::read().unwrap_or_default();
            start.on_lists = start.lists.free_objects(&start.caches);
        }
    }

    /// Takes the figures that later ones are compared with.
    pub(super) fn slab_begin(&mut self) {
        if self.plan.slab {
            self.slab_start.lost = self.slab_lost();
            let before = std::mem::take(&mut self.slab_start.on_lists);
            self.slab_start.moment = self.slab_moment(&before, FIRST_LOOKS, 0);
        }
    }

    /// The figures and sums of this moment, of at most so many looks; one is enough if no more than
    /// `may_move` bytes do meanwhile. What was on lists `before` counts too, for it moves while the
    /// figures are read.
    fn slab_moment(
        &mut self,
        before: &HashMap<String, u64>,
        looks: usize,
        may_move: u64,
    ) -> SlabMoment {
        // Reading it takes slab too.
        let held_back_pages = self.slab_start.held_back.pages();
        let (mut best, mut moved) = self.slab_look();
        for _ in 1..looks {
            if best.figures.meanwhile.bytes <= may_move {
                break;
            }
            let again = self.slab_look();
            if again.0.figures.meanwhile.bytes < best.figures.meanwhile.bytes {
                (best, moved) = again;
            }
        }
        let figures = &mut best.figures;
        figures.held_back_pages = held_back_pages;
        for (address, objects) in moved {
            let name = self.cache_name(address);
            *figures.meanwhile.objects.entry(name).or_default() += objects;
        }
        let start = &mut self.slab_start;
        let after = start.lists.free_objects(&figures.caches);
        figures.on_lists = slab_lists::larger(before, after, &figures.caches);
        start.caches.clone_from(&figures.caches);
        best
    }

    /// The figures between two readings of the sums, and the objects that came and went meanwhile, both
    /// counted, by address of the cache.
    fn slab_look(&self) -> (SlabMoment, HashMap<u64, u64>) {
        let before = self.slab_reading();
        let mut figures = figures();
        let reading = self.slab_reading();
        let mut moved: HashMap<u64, u64> = HashMap::new();
        for (key, sums) in slab::since(&reading, &before) {
            let objects = sums.allocated.wrapping_add(sums.freed);
            if objects > 0 {
                figures.meanwhile.bytes += gross(&sums);
                *moved.entry(key.cache).or_default() += objects;
            }
        }
        (SlabMoment { figures, reading }, moved)
    }

    /// The sums, added up over CPUs, with what was taken out of the kernel already; what names a
    /// forgotten cgroup, under its heir, as what is subtracted from it is.
    pub(super) fn slab_reading(&self) -> SlabReading {
        let mut reading = self.retired.slab.clone();
        for (key, sums) in self.attached.slab() {
            slab::add_up(&mut reading, slab::inherited(&key, &self.tree), &sums);
        }
        reading
    }

    fn cache_name(&self, address: u64) -> String {
        if address == 0 {
            return "(pages of large kmallocs)".to_owned();
        }
        let caches = self.attached.caches();
        match caches.and_then(|caches| caches.get(&address, 0).ok()) {
            Some(cache) => name::printable(text(&cache.name)),
            None => format!("cache {address:#x}"),
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
        if !self.plan.slab || self.slab_ended() {
            return None;
        }
        let start = &mut self.slab_start;
        let before = start.lists.free_objects(&start.caches);
        let SlabMoment {
            figures: now,
            reading,
        } = self.slab_moment(&before, LOOKS, MAY_MOVE_BYTES);
        let lost = self.slab_lost();
        let start = &self.slab_start.moment;
        let reading = slab::since(&reading, &start.reading);
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
        let coverage = coverage(&by_events, &start.figures, &now);
        // What came so is in no line; what went is in one still.
        let gone: HashSet<String> = coverage
            .unseen
            .iter()
            .filter(|line| line.objects < 0)
            .map(|line| line.cache.clone())
            .collect();
        let mut report = SlabReport {
            elapsed_s: self.elapsed().as_secs_f64(),
            lines: Vec::new(),
            large: Vec::new(),
            wrong_payers: Vec::new(),
            dead: Vec::new(),
            node: reconcile::node(slab::node(&reading), &start.figures, &now, coverage.unseen),
            findings: Findings::default(),
        };
        let readings = [lost.reading(false), lost.reading(true)];
        report.node.lost = lost;
        let large = reading
            .iter()
            .filter(|(key, _)| key.cache == 0 && ![0, OTHERS].contains(&key.asker))
            .map(|(_, sums)| net(sums))
            .sum();
        report.node = report.node.with_large(large);
        report.node.others = others(&reading);
        let mut dead = DeadTotals {
            told_apart: tells_the_dead(&self.plan),
            forgotten: self
                .attached
                .tally(DEAD_NOTED)
                .saturating_sub(u64::from(DEAD)),
            ..DeadTotals::default()
        };
        for (id, book) in &books {
            dead.unnamed_freed_bytes += book.inherited_freed_bytes;
            // Without, what they held is freed under their parents' names, and never here.
            if dead.told_apart {
                report
                    .dead
                    .extend(book.dead_payers.iter().map(|it| DeadLine {
                        cgroup: name::path(&self.tree.name(it.payer)),
                        cgroup_id: it.payer,
                        cache: self.cache_name(it.cache),
                        objects: it.objects,
                        bytes: it.bytes,
                    }));
            }
            let cgroup = name::path(&self.tree.name(*id));
            let line = |row: &SlabRow| {
                let cache = self.cache_name(row.cache);
                let covered = coverage.by_cache.get(&cache);
                let mut bytes_are = readings[usize::from(row.cause == CAUSE_CHARGED)];
                if gone.contains(&cache) {
                    bytes_are = bytes_are.and(Reading::AtMost);
                }
                SlabLine {
                    coverage: covered.map(|it| it.share),
                    coverage_bound: covered.and_then(|it| it.bound),
                    cgroup: cgroup.clone(),
                    cache,
                    cause: slab::cause_name(row.cause),
                    call_site: (row.call_site != 0).then(|| self.call_site(row.call_site)),
                    objects: row.objects(),
                    bytes: row.bytes(),
                    bytes_are,
                    allocated_bytes: row.allocated_bytes,
                    freed_bytes: row.freed_bytes,
                }
            };
            report.lines.extend(book.charged.iter().map(line));
            report.lines.extend(book.uncharged.iter().map(line));
            report.large.extend(book.large.iter().map(line));
            for it in book.wrong_payers.iter().take(LINES) {
                let named = |id: u64| match id {
                    OTHERS => ANOTHER.to_owned(),
                    id => name::path(&self.tree.name(id)),
                };
                report.wrong_payers.push(WrongPayerLine {
                    payer: named(it.payer),
                    asker: named(it.asker),
                    cause: "other-cgroup",
                    cache: self.cache_name(it.cache),
                    call_site: self.call_site(it.call_site),
                    allocated_bytes: it.allocated_bytes,
                });
            }
        }
        report
            .dead
            .sort_by_key(|line| std::cmp::Reverse(line.bytes));
        dead.bytes = report.dead.iter().map(|line| line.bytes).sum();
        report.node.dead = dead;
        report.findings = Findings {
            charged: self.charged_lines(),
            growing: self
                .growth
                .add(self.started.elapsed().as_secs_f64(), &report.lines),
        };
        Some(report)
    }
}

/// Whether the programs note what a cgroup's objects are charged to when it is removed: they need
/// the cgroup itself, which only the typed tracepoint hands them, and know the objcg's place.
pub(super) fn tells_the_dead(plan: &Plan) -> bool {
    let config = &plan.config;
    let typed = plan
        .role("cgroup.lifecycle")
        .and_then(|role| role.choice)
        .is_some_and(|(_, candidate)| candidate.mechanism == Mechanism::BtfTracepoint);
    let own = config.memcg_objcg != ABSENT
        || config.memcg_nodeinfo != ABSENT && config.per_node_objcg != ABSENT;
    typed
        && own
        && ![
            config.memcg_serial,
            config.cgroup_memory_css,
            config.memcg_css,
        ]
        .contains(&ABSENT)
}
