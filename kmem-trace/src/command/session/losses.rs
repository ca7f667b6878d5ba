//! What is in no total, and what this kernel cannot say.

use std::collections::BTreeMap;

use aya::util::online_cpus;
use kmem_trace_ebpf::totals::{
    LOST_DEPTH, LOST_MAP_FULL, LOST_OBJECTS, LOST_PAGES, LOST_RING, LOST_UNREAD, ROLE_NAMES,
    SLAB_MISREAD,
};

use super::Session;
use crate::{
    hooks::{
        accounting,
        table::{Mechanism, is_slab},
    },
    kernel::cgroupfs::{self, CgroupDir},
    ledger::book::{self, Reading},
    reconcile::{
        report::{Lost, RoleLost, is_ledger},
        slab::SlabLost,
        usage::{self, STOCK_PAGES},
    },
};

impl Session {
    pub(super) fn limits(&self, lost: &Lost) -> Vec<String> {
        let mut limits = Vec::new();
        if lost.ring > 0 {
            limits.push("records were lost: --events shows fewer than there were (use --ring to make the ring larger)".to_owned());
        }
        if lost.map_full > 0 {
            limits.push("totals are lower bounds: charges were seen that could not be counted (where places ran out, --max-cgroups helps)".to_owned());
        }
        if self.slab_map_full() > self.slab_start.lost.map_full {
            limits.push("slab figures are not whole: sums by cgroup, cache and call site found no place (trace fewer cgroups)".to_owned());
        }
        match lost.unwatched_softirqs {
            Some(1..) => limits.push("totals are not whole: this kernel runs no BPF program while some task of the node is current, and softirqs came over it (lost.unwatched_softirqs)".to_owned()),
            // Nothing else tells these from what is unexplained.
            None if !self.plan.exact && !self.attached.watches_softirqs() => limits.push("whether programs run in every softirq is not known (that takes BTF tracepoints and /proc/softirqs): lost.unwatched_softirqs is null".to_owned()),
            _ => {}
        }
        if self.shares_a_guard() && !self.counts_skips() {
            limits.push("this kernel does not count probe runs that it skips: lost.skipped is a lower bound".to_owned());
        } else if self.shares_a_guard() && !self.attached.knows_its_kprobes() {
            limits.push("probe runs that the kernel skipped cannot be asked for (no descriptors of our probes): lost.skipped is a lower bound".to_owned());
        }
        limits.extend(self.stepped_down());
        limits
    }

    /// Whether programs of other tracers can keep those of the ledger from running.
    fn shares_a_guard(&self) -> bool {
        ["counter.charge", "counter.uncharge", "memcg.state"]
            .iter()
            .filter(|role| self.plan.exact != (**role == "memcg.state"))
            .filter_map(|role| self.plan.role(role)?.choice)
            .any(|(_, it)| matches!(it.mechanism, Mechanism::Kprobe | Mechanism::Tracepoint))
    }

    /// Whether the kernel counts skipped kprobe runs: it does since it can tell them per link.
    pub(super) fn counts_skips(&self) -> bool {
        self.inspection.btf.as_ref().is_ok_and(|btf| {
            btf.member("bpf_link_info", "perf_event.kprobe.missed")
                .is_ok()
        })
    }

    /// Pages that per-CPU stocks can hold: online CPUs × cgroups cached per CPU × batch. How many
    /// cgroups a CPU caches, `struct memcg_stock_pcp` says (`cached` is an array since 6.16).
    pub(super) fn stock_pages(&self) -> u64 {
        let cpus = online_cpus().map_or(1, |cpus| cpus.len()) as u64;
        cpus * accounting::cached_per_cpu(self.inspection.btf.as_ref().ok()) * STOCK_PAGES
    }

    /// What was lost so far, but for slab.
    pub fn lost(&self) -> Lost {
        let mut by_role = self.lost_by_role();
        for (role, lost) in &mut by_role {
            if is_slab(role) {
                (lost.map_full, lost.skipped) = (0, 0);
            }
        }
        let deep = self.attached.tally(LOST_DEPTH);
        if deep > 0 {
            by_role.entry("counter.charge").or_default().map_full += deep;
        }
        by_role.retain(|_, lost| *lost != RoleLost::default());
        let ledger = || {
            by_role
                .iter()
                .filter(|(role, _)| is_ledger(role))
                .map(|(_, lost)| lost)
        };
        let ring = by_role.values().map(|lost| lost.ring).sum::<u64>();
        let unwatched = self.attached.unwatched();
        Lost {
            // Before 5.1 the kernel does not tell the program, only the reader, and that late.
            ring: ring.max(self.told_lost),
            map_full: ledger().map(|lost| lost.map_full).sum(),
            skipped: ledger().map(|lost| lost.skipped).sum(),
            unwatched_softirqs: unwatched.map(|it| it.softirqs),
            unwatched_pages: unwatched.map(|it| it.pages),
            by_role,
        }
    }

    /// What the slab programs lost since the figures began.
    pub(super) fn slab_lost(&self) -> SlabLost {
        let mut by_role = self.lost_by_role();
        by_role.retain(|role, lost| {
            lost.ring = 0;
            is_slab(role) && *lost != RoleLost::default()
        });
        let unwatched = self.attached.unwatched();
        SlabLost {
            map_full: by_role.values().map(|lost| lost.map_full).sum(),
            objects: self.attached.tally(LOST_OBJECTS),
            misread: self.attached.tally(SLAB_MISREAD),
            skipped: by_role.values().map(|lost| lost.skipped).sum(),
            unwatched_softirqs: unwatched.map(|it| it.softirqs),
            unwatched_pages: unwatched.map(|it| it.pages),
            by_role,
        }
        .since(&self.slab_start.lost)
    }

    /// Slab events that could not be counted, the start's among them.
    fn slab_map_full(&self) -> u64 {
        (0..)
            .zip(ROLE_NAMES)
            .filter(|(_, role)| is_slab(role))
            .map(|(place, _)| self.uncounted(place))
            .sum()
    }

    /// What the programs of a role saw and could not count.
    fn uncounted(&self, role: u32) -> u64 {
        self.attached.tally(LOST_MAP_FULL + role) + self.attached.tally(LOST_UNREAD + role)
    }

    fn lost_by_role(&self) -> BTreeMap<&'static str, RoleLost> {
        let mut by_role: BTreeMap<&'static str, RoleLost> = BTreeMap::new();
        for (place, role) in (0..).zip(ROLE_NAMES) {
            by_role.insert(
                role,
                RoleLost {
                    ring: self.attached.tally(LOST_RING + place),
                    map_full: self.uncounted(place),
                    skipped: 0,
                },
            );
        }
        for (role, skipped) in self.attached.skipped() {
            by_role.entry(role).or_default().skipped += skipped;
        }
        by_role
    }

    /// Pages that were charged unseen, at most.
    pub(super) fn lost_pages(&self, lost: &Lost, reading: &Reading) -> u64 {
        let largest = reading.values().map(|totals| totals.largest).max();
        let seen = self.attached.tally(LOST_PAGES);
        usage::lost_pages(seen, lost, largest.unwrap_or(0))
    }

    /// Whether a cgroup was made and gone before its directory could be looked at: ours or not, nobody can
    /// tell.
    pub(super) fn is_nameless(&self, id: u64) -> bool {
        self.tree
            .get(id)
            .is_none_or(|node| node.path.is_none() && node.parent.is_none())
    }

    /// Looks for the names of cgroups that have none yet; whether it found any.
    pub(super) fn names_the_nameless(&mut self, reading: &Reading) -> bool {
        if self.plan.exact {
            return false;
        }
        let nameless = |session: &Self| {
            reading
                .keys()
                .filter(|id| session.is_nameless(**id))
                .count()
        };
        let before = nameless(self);
        if before == 0 {
            return false;
        }
        self.look_elsewhere();
        nameless(self) < before
    }

    /// What the nameless still hold may be missing from the ledger: pages.
    pub(super) fn nameless_pages(&self, reading: &Reading) -> u64 {
        if self.plan.exact {
            return 0;
        }
        let now = reading.iter().filter(|(id, _)| self.is_nameless(**id));
        self.retired.nameless_pages + now.map(|(_, totals)| book::parted(totals)).sum::<u64>()
    }

    /// Names the cgroups outside the traced subtrees too.
    fn look_elsewhere(&mut self) {
        let Ok(top) = CgroupDir::top(&self.request.mount) else {
            return;
        };
        for dir in cgroupfs::walk(&top) {
            self.tree.see(dir.id, &dir.path_in_hierarchy);
        }
    }
}
