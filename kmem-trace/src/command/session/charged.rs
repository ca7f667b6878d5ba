//! Slab charged to each traced cgroup in a session: the kernel's own counters read between two
//! readings of the sums.

use std::collections::HashMap;

use aya::util::online_cpus;
use kmem_trace_ebpf::sums::OTHERS;

use super::Session;
use crate::{
    hooks::{accounting, memcg_stat::MemcgStat},
    kernel::cgroupfs::{self, CgroupDir, Hierarchy},
    ledger::slab::SlabReading,
    reconcile::{
        charged::{ChargedLine, Compared, Facts, Moment, Sums, compare},
        explain::Circumstances,
        kinds,
    },
    view::name,
};

/// How the kernel's slab counters of a cgroup are read.
pub(super) enum Counters {
    /// `memory.stat`.
    Files,
    /// v1 has no file for them.
    Own(Box<MemcgStat>),
    No(String),
}

/// Where the comparison began.
pub(super) struct ChargedStart {
    counters: Counters,
    moments: HashMap<u64, Result<Moment, String>>,
}

impl Default for ChargedStart {
    fn default() -> Self {
        Self {
            counters: Counters::Files,
            moments: HashMap::new(),
        }
    }
}

impl Session {
    /// Takes the figures that later ones are compared with.
    pub(super) fn charged_begin(&mut self) {
        self.charged_start.counters = match self.hierarchy {
            Hierarchy::V2 => Counters::Files,
            Hierarchy::V1 => {
                let btf = self.inspection.btf.as_ref().map_err(ToString::to_string);
                let (allowed, symbols) = (&self.inspection.allowed, &self.inspection.symbols);
                match btf.and_then(|btf| MemcgStat::open(btf, allowed, Some(symbols))) {
                    Ok(stat) => Counters::Own(Box::new(stat)),
                    Err(why) => Counters::No(why),
                }
            }
        };
        for target in self.request.targets.clone() {
            let moment = self.moment(&target);
            self.charged_start.moments.insert(target.id, moment);
        }
    }

    /// What the kernel and the events say is charged to each traced cgroup.
    pub(super) fn charged_lines(&mut self) -> Vec<ChargedLine> {
        let mut lines = Vec::new();
        for target in self.request.targets.clone() {
            // The root's kernel memory is not charged.
            if self.request.mount.is_root(&target.dir) {
                continue;
            }
            let now = self.moment(&target);
            let facts = self.charged_facts(&target);
            let start = self.charged_start.moments.get(&target.id);
            let compared = match (start, now) {
                (Some(Ok(start)), Ok(now)) => compare(start, &now, &facts),
                (Some(Err(why)), _) => Compared::NotRead { why: why.clone() },
                (_, Err(why)) => Compared::NotRead { why },
                (None, _) => continue,
            };
            lines.push(ChargedLine {
                cgroup: name::path(&self.tree.name(target.id)),
                cgroup_id: target.id,
                compared,
            });
        }
        lines
    }

    fn moment(&mut self, target: &CgroupDir) -> Result<Moment, String> {
        let before = self.sums(target.id);
        let kernel_bytes = self.kernel_slab(target)?;
        let after = self.sums(target.id);
        Ok(Moment {
            kernel_bytes,
            before,
            after,
        })
    }

    /// The kernel's counters of a cgroup's slab.
    ///
    /// # Errors
    /// Why they cannot be read, in one line.
    fn kernel_slab(&mut self, target: &CgroupDir) -> Result<u64, String> {
        if !target.is_there() {
            return Err("the cgroup was removed".to_owned());
        }
        let circumstances = self.circumstances(target);
        // On v1 it has no slab, but reading it flushes what CPUs keep to themselves.
        let stat = cgroupfs::stat(&target.dir).map_err(|error| error.to_string())?;
        let get = |name: &str| stat.get(name);
        match &mut self.charged_start.counters {
            Counters::Files => get("slab")
                .or_else(|| Some(get("slab_reclaimable")? + get("slab_unreclaimable")?))
                .ok_or_else(|| "memory.stat has no slab here".to_owned()),
            Counters::No(why) => Err(why.clone()),
            Counters::Own(counters) => {
                let found = counters.read(&target.dir, target.id, circumstances.page_bytes)?;
                let either = |total, own| get(total).or_else(|| get(own)).unwrap_or(0);
                let shown = kinds::Files {
                    anon_bytes: either("total_rss", "rss"),
                    file_bytes: either("total_cache", "cache"),
                    kmem_bytes: None,
                };
                let (kinds, _) = kinds::judge(&found, &shown, kinds::lag_bytes(&circumstances))?;
                kinds
                    .iter()
                    .find(|(name, _)| *name == "slab")
                    .map(|(_, bytes)| *bytes)
                    .ok_or_else(|| "this kernel has no counter of a cgroup's slab".to_owned())
            }
        }
    }

    fn circumstances(&self, target: &CgroupDir) -> Circumstances {
        let btf = self.inspection.btf.as_ref().ok();
        Circumstances {
            page_bytes: self.page_bytes,
            online_cpus: online_cpus().map_or(1, |cpus| cpus.len()) as u64,
            cached_per_cpu: accounting::cached_per_cpu(btf),
            batched_per_cpu: accounting::batched_per_cpu(btf),
            // The dead below it have their own per-CPU counters.
            cgroups: self.tree.subtree(target.id).count().max(1) as u64,
            flushed: accounting::flushes_stat(btf),
            skew_bytes: 0,
        }
    }

    fn charged_facts(&self, target: &CgroupDir) -> Facts {
        let circumstances = self.circumstances(target);
        let lost = self.slab_lost();
        // Of each what it frees in a page that stays is no page that moves.
        let unwatched = lost.unwatched_pages.unwrap_or(0) + lost.unwatched_softirqs.unwrap_or(0);
        Facts {
            page_bytes: circumstances.page_bytes,
            online_cpus: circumstances.online_cpus,
            cached_per_cpu: accounting::slab_cached_per_cpu(self.inspection.btf.as_ref().ok()),
            lag_bytes: kinds::lag_bytes(&circumstances),
            flushed: circumstances.flushed,
            lost: lost.map_full + lost.misread + lost.skipped,
            unwatched_bytes: unwatched * circumstances.page_bytes,
        }
    }

    /// By events, from before the first report on: what is compared are differences.
    fn sums(&self, top: u64) -> Sums {
        let within = |id: u64| id != 0 && id != OTHERS && self.tree.is_within(id, top);
        let reading: SlabReading = self.slab_reading();
        let mut found = Sums::default();
        for (key, sums) in &reading {
            let bytes = sums
                .allocated_bytes
                .wrapping_sub(sums.freed_bytes)
                .cast_signed();
            if key.cache == 0 {
                if within(key.asker) || within(key.payer) {
                    found.large_bytes += bytes;
                }
            } else if within(key.payer) {
                found.objects += sums.allocated.wrapping_sub(sums.freed).cast_signed();
                found.bytes += bytes;
                found.moved_bytes += sums.allocated_bytes + sums.freed_bytes;
            }
        }
        found
    }
}
