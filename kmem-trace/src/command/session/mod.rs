//! A trace under way: programs attached, ledger kept, reports made. Owns the kernel side of a
//! run; what is printed, and when it ends, is the caller's.
//!
//! - [`attaching`]: the best plan that the kernel takes.
//! - [`reading`]: totals and files read around each other, and the bases taken from them.
//! - [`reporting`]: readings → reports.
//! - [`retiring`]: what released cgroups held goes to their heirs, and their places are given back.
//! - [`evicting`]: slab sums kept by this process where the programs' places run short.
//! - [`grace`]: when these may be used again.
//! - [`steps`]: less is followed, to cost less.
//! - [`slab`]: the slab sums, named and held against the kernel's figures.
//! - [`charged`]: of slab, what is charged to a cgroup, against the kernel's counters of it.
//! - [`losses`]: what is in no total, and what this kernel cannot say.

pub mod attaching;
mod charged;
mod evicting;
mod grace;
mod losses;
mod reading;
mod reporting;
mod retiring;
mod slab;
mod steps;

pub use reading::PATIENCE_MS;

use std::{
    collections::{HashMap, HashSet},
    ffi::OsStr,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail};
use kmem_trace_ebpf::record::{CgroupRecord, OP_MKDIR, OP_RELEASE, OP_RENAME, OP_RMDIR};

use crate::{
    hooks::{
        attach::{Attached, Sizes, Stream},
        beside::beside,
        features::{Feature, Object},
        inspect::Inspection,
        limits::{self, Accounting, Unit},
        loader, memcg_stat,
        plan::{AttachMode, Plan, Struck},
        stats::{self, Measuring, ProgramStats},
    },
    kernel::{
        callsite,
        cgroupfs::{self, CgroupDir, Hierarchy, MemoryMount},
        proc, security,
    },
    ledger::{book::Streamed, tree::Tree},
    reconcile::{
        growth, limit,
        overhead::Step,
        report::{Gone, ProgramCost, SelfCost, StreamCheck},
        usage::Base,
    },
    stream::{
        decode::{Record, text},
        perf::Perf,
        rings::Rings,
        source::Source,
    },
    view::name,
};

/// What a session is asked for.
#[derive(Clone, Debug)]
pub struct Request {
    pub targets: Vec<CgroupDir>,
    pub mount: MemoryMount,
    pub attach: AttachMode,
    pub btf: Option<PathBuf>,
    /// Roles asked for by `--events`.
    pub roles: HashSet<String>,
    /// Attribute slab, where this kernel lets us.
    pub slab: bool,
    pub sizes: Sizes,
    /// Levels below each target that are reported on.
    pub depth: u32,
    /// aya-log's level: 0 off … 5 trace.
    pub log_level: u8,
    pub strike: Struck,
    /// What the kernel is taken not to have.
    pub forbidden: Vec<Feature>,
    /// Let the kernel measure the programs.
    pub bpf_stats: bool,
    /// They are measured, and what costs too much is switched off.
    pub may_step_down: bool,
    /// From attaching to the figures' beginning; no less than [`SETTLE`].
    pub settle: Duration,
}
/// Longer than any page counter call takes: after it, none is under way that began before.
const SETTLE: Duration = Duration::from_millis(20);

/// A running trace.
pub struct Session {
    pub plan: Plan,
    pub inspection: Inspection,
    pub hierarchy: Hierarchy,
    pub tree: Tree,
    pub streamed: Streamed,
    request: Request,
    attached: Attached,
    /// The kernel measures the programs while this is there.
    measuring: Option<Measuring>,
    started: Instant,
    /// Bases of the cgroups that were there at attach, by counter.
    bases: HashMap<(u64, &'static str), Base>,
    reported: Vec<CgroupDir>,
    /// Traced cgroups that were removed.
    gone: HashSet<u64>,
    newly_gone: Vec<Gone>,
    page_bytes: u64,
    /// What all limit writes of this kernel are explained with.
    limits_here: limit::Kernel,
    dirty: bool,
    functions: callsite::Functions,
    /// Of `memory.stat`, by number, where single changes are asked for.
    item_names: HashMap<i32, String>,
    /// Records that the source said were lost.
    told_lost: u64,
    slab_start: slab::SlabStart,
    retired: retiring::Retired,
    places: evicting::Places,
    /// Steps taken, and when.
    steps: Vec<(Step, Duration)>,
    charged_start: charged::ChargedStart,
    growth: growth::Watch,
}

impl Session {
    /// Plans, attaches and takes the base of each cgroup.
    ///
    /// # Errors
    /// Where this kernel gives a ledger nothing to go by, or refuses what the plan needs.
    pub async fn start(request: Request) -> Result<Self> {
        loader::begin(request.btf.as_deref());
        // What is tried first counts towards it too, on kernels before 5.11.
        attaching::raise_memlock();
        let mut inspection = Inspection::read(request.btf.as_deref(), &request.forbidden);
        // A file that was asked for is used or refused, never passed over.
        if let (Some(_), Err(why)) = (&request.btf, &inspection.btf) {
            bail!("{why}");
        }
        if let Err(why) = &inspection.allowed.bpf {
            let mend = if nix::unistd::geteuid().is_root() {
                ""
            } else {
                "run as root, or "
            };
            bail!("cannot use BPF: {why}; {mend}see `kmem-trace doctor`");
        }
        if let Err(line) = inspection.allowed.forced(request.attach) {
            bail!("{line}");
        }
        let measuring = match request.bpf_stats || request.may_step_down {
            true => Some(stats::measure().map_err(|error| {
                let needs = security::statistics_need(&error);
                anyhow!(error).context(format!(
                    "cannot switch the kernel's BPF statistics on ({needs}); leave --bpf-stats and --max-overhead out"
                ))
            })?),
            false => None,
        };
        let list = inspection.kallsyms.take().unwrap_or_default();
        let parse = || callsite::Functions::parse(&list);
        let (plan, attached, settled, functions) = thread::scope(|scope| {
            let parsing = request.slab.then(|| beside(scope, &parse));
            let (plan, attached) = attaching::attach_best(&inspection, &request)?;
            attaching::require_ledger(&plan)?;
            let settled = tokio::time::Instant::now() + request.settle.max(SETTLE);
            let functions = parsing.filter(|_| plan.slab).map(|parsed| parsed());
            anyhow::Ok((plan, attached, settled, functions.unwrap_or_default()))
        })?;
        // Some ten MiB.
        drop(list);
        let page_bytes = proc::own::page_bytes();
        let btf = inspection.btf.as_ref().ok();
        let limits_here = limit::Kernel {
            is_v1: request.mount.hierarchy == Hierarchy::V1,
            unit: btf.map_or(Unit::Pages, limits::unit),
            page_bytes,
            accounting: btf.map_or(Accounting::Unknown, limits::accounting),
            is_root: false,
        };
        let item_names = match btf {
            Some(btf) if request.roles.contains("memcg.state") => memcg_stat::names::of_items(btf),
            _ => HashMap::new(),
        };
        let mut session = Self {
            hierarchy: request.mount.hierarchy,
            plan,
            inspection,
            tree: Tree::default(),
            streamed: Streamed::default(),
            attached,
            measuring,
            started: Instant::now(),
            bases: HashMap::new(),
            reported: Vec::new(),
            page_bytes,
            limits_here,
            gone: HashSet::new(),
            newly_gone: Vec::new(),
            dirty: false,
            functions,
            item_names,
            told_lost: 0,
            slab_start: slab::SlabStart::default(),
            retired: retiring::Retired::default(),
            places: evicting::Places::default(),
            steps: Vec::new(),
            charged_start: charged::ChargedStart::default(),
            growth: growth::Watch::default(),
            request,
        };
        session.look_around();
        session.slab_prepare();
        tokio::time::sleep_until(settled).await;
        // The first look at softirqs; the first report's is the second.
        session.attached.unwatched();
        session.slab_begin();
        if session.plan.slab {
            session.charged_begin();
        }
        loader::end();
        session.take_bases().await?;
        Ok(session)
    }

    /// Where records come from.
    ///
    /// # Errors
    /// Where that was asked before, or the kernel does not open it.
    pub fn source(&mut self) -> Result<Source> {
        let stream = self.attached.stream.take();
        Ok(match stream.context("the stream was taken already")? {
            Stream::Rings(rings, spare) => {
                let rings = Rings::new(rings, *spare).context("cannot watch the ring buffers")?;
                Source::Rings(Box::new(rings))
            }
            Stream::Buffers(buffers) => {
                let bytes = self.request.sizes.ring_bytes as usize;
                Source::Perf(Perf::open(buffers, bytes, self.page_bytes)?)
            }
        })
    }

    /// What the source said that was lost.
    pub fn lost_records(&mut self, told: u64) {
        self.told_lost = told;
    }

    pub fn attached(&mut self) -> &mut Attached {
        &mut self.attached
    }

    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Whether the kernel was booted to charge nobody for kernel memory.
    pub fn is_nokmem(&self) -> bool {
        self.plan.config.nokmem == 1
    }

    /// What this mode cannot see, in plain words.
    pub fn blind_spots(&self) -> Vec<String> {
        let mut spots = Vec::new();
        if !self.plan.exact {
            let reads = self.inspection.allowed.reads.as_ref().err().cloned();
            let why = reads.unwrap_or_else(|| {
                let role = self.plan.role("counter.charge");
                role.map_or_else(String::new, |role| role.why_not().to_owned())
            });
            spots.push(format!(
                "single charges, refusals and writes to limit files: {why}. Usage is followed by memory.stat items, which lack what per-CPU stocks hold"
            ));
        } else {
            for name in ["charge.user", "limit.write"] {
                if let Some(role) = self.plan.role(name).filter(|role| role.choice.is_none()) {
                    spots.push(format!("{name}: {}", role.why));
                }
            }
            if self
                .plan
                .role("charge.user")
                .is_some_and(|role| role.choice.is_some())
                && !self.plan.attaches("charge.user", &self.request.roles)
            {
                spots.push("charge.user: its kprobes would hide from the ledger what interrupts charge meanwhile; ask for them with --events charge.user, or use --attach fentry".to_owned());
            }
        }
        spots.extend(self.attached.unchecked.clone());
        let lacking = &self.inspection.allowed.lacking;
        if lacking.lacks(Feature::RunOnRequest) && lacking.object() == Object::Newest {
            spots.push("cgroups beyond --max-cgroups, the removed ones counted: where no tracing program runs on request, no place in the totals is used again".to_owned());
        }
        if let (true, Err(why)) = (self.request.slab, &self.plan.attribution) {
            spots.push(format!("whose slab it is: {why}"));
        } else if self.request.slab {
            let has = |symbol: &str| self.inspection.has_function(symbol);
            spots.extend(self.plan.unseen_slab(has));
        }
        if let Some(role) = self
            .plan
            .role("cgroup.lifecycle")
            .filter(|role| role.choice.is_none())
        {
            spots.push(format!("cgroup.lifecycle: {}", role.why));
        }
        spots
    }

    /// What explains a limit write to that cgroup.
    pub fn limit_facts(&self, cgroup_id: u64) -> limit::Kernel {
        let is_root = |dir: &CgroupDir| dir.level == 0 && dir.id == cgroup_id;
        limit::Kernel {
            is_root: self.request.targets.iter().any(is_root),
            ..self.limits_here
        }
    }

    /// What `memory.stat` calls the item of that number.
    pub fn item_name(&self, item: i32) -> String {
        let name = self.item_names.get(&item).cloned();
        name.unwrap_or_else(|| format!("item {item}"))
    }

    /// Whether a record is of a traced cgroup. The programs let only such pass, but for two kinds: any
    /// cgroup may be needed for a name, and which one an item is of they need not know.
    pub fn is_of_targets(&self, record: &Record<'_>) -> bool {
        let id = match record {
            Record::Cgroup(it) => it.cgroup_id,
            Record::State(it) => it.cgroup_id,
            _ => return true,
        };
        let mut targets = self.request.targets.iter();
        targets.any(|top| top.level == 0 || self.tree.is_within(id, top.id))
    }

    /// Applies one streamed record.
    pub fn apply(&mut self, record: &Record<'_>) {
        match record {
            Record::Counter(counter) => self.streamed.apply(counter),
            Record::Cgroup(cgroup) => self.apply_cgroup(cgroup),
            _ => {}
        }
    }

    fn apply_cgroup(&mut self, record: &CgroupRecord) {
        let path = text(&record.path);
        // What fills the record may go on beyond it: the directory has the whole of it.
        let is_whole = !path.is_empty() && path.len() + 1 < record.path.len();
        let path = is_whole.then(|| Path::new(OsStr::from_bytes(path)));
        match record.op {
            OP_MKDIR => match path {
                Some(path) => self.tree.made(record.cgroup_id, path),
                // Under lockdown the name is not readable: the directory tells it, if looked at soon.
                None => self.dirty = true,
            },
            OP_RMDIR => self.tree.removed(record.cgroup_id, path),
            OP_RELEASE => {
                self.tree.released(record.cgroup_id, path);
                self.retired.ids.push(record.cgroup_id);
                self.retired.is_due = true;
            }
            OP_RENAME => match path {
                Some(path) => self.tree.renamed(record.cgroup_id, path),
                None => self.dirty = true,
            },
            _ => {}
        }
    }

    /// Looks at the directories again where an event said that there are new ones.
    pub fn look_if_needed(&mut self) {
        if self.dirty {
            self.look_around();
        }
    }

    fn look_around(&mut self) {
        self.dirty = false;
        let mut reported = Vec::new();
        for target in self.request.targets.clone() {
            if !target.is_there() {
                self.is_gone(&target);
                continue;
            }
            for dir in cgroupfs::walk(&target) {
                self.tree.see(dir.id, &dir.path_in_hierarchy);
                // The root has no ledger, only events.
                if !self.request.mount.is_root(&dir.dir)
                    && dir.level <= target.level + self.request.depth
                    && !reported.iter().any(|known: &CgroupDir| known.id == dir.id)
                {
                    reported.push(dir);
                }
            }
        }
        self.reported = reported;
    }

    fn is_gone(&mut self, target: &CgroupDir) {
        if self.gone.insert(target.id) {
            self.newly_gone.push(Gone {
                elapsed_s: self.elapsed().as_secs_f64(),
                cgroup: name::path(target.path_in_hierarchy.as_os_str()),
                cgroup_id: target.id,
                replaced: target.dir.exists(),
                slab_followed: self.plan.slab && !self.slab_ended(),
            });
        }
    }

    /// Traced cgroups that were found removed since this was asked last.
    pub fn newly_gone(&mut self) -> Vec<Gone> {
        std::mem::take(&mut self.newly_gone)
    }

    /// Takes the programs off. The maps stay as they are, for the last comparison.
    pub async fn detach(&mut self) {
        self.attached.detach();
        tokio::time::sleep(SETTLE).await;
    }

    /// After [`Self::detach`] and with the ring drained: do records and totals say the same?
    pub fn stream_check(&mut self) -> Result<Option<StreamCheck>> {
        if !self.plan.exact || !self.streams() {
            return Ok(None);
        }
        let reading = self.reading()?;
        self.streamed.inherit_all(&self.tree);
        let differences = self.streamed.differences(&reading);
        for (id, slot, streamed, total) in differences.iter().take(10) {
            log::debug!("cgroup {id} slot {slot}: streamed {streamed} pages, totals {total}");
        }
        Ok(Some(StreamCheck {
            records: self.streamed.records,
            differences: differences.len(),
            agrees: differences.is_empty(),
        }))
    }

    /// What the tracer costs so far.
    pub fn own_cost(&self) -> SelfCost {
        let own = proc::own_cost().unwrap_or_default();
        let ran = |(name, stats): &(&str, ProgramStats)| {
            (stats.run_count + stats.skipped > 0).then(|| ProgramCost {
                program: (*name).to_owned(),
                run_ns: stats.run_time_ns,
                runs: stats.run_count,
                skipped: stats.skipped,
            })
        };
        let mut programs: Vec<_> = self.attached.stats().iter().filter_map(ran).collect();
        programs.sort_by_key(|program| std::cmp::Reverse(program.run_ns));
        let measured = programs.iter().any(|program| program.runs > 0);
        if !measured {
            programs.clear();
        }
        let sum = |of: fn(&ProgramCost) -> u64| programs.iter().map(of).sum();
        SelfCost {
            bpf_run_ns: measured.then(|| sum(|program| program.run_ns)),
            bpf_runs: measured.then(|| sum(|program| program.runs)),
            bpf_until_s: self
                .stepped(Step::NoneLeft)
                .filter(|_| measured && self.measuring.is_none())
                .map(|at| at.as_secs_f64()),
            cpu_s: own.cpu_s,
            rss_bytes: own.rss_bytes,
            map_bytes: self.attached.map_bytes,
            programs,
        }
    }
}
