//! A trace under way: programs attached, ledger kept, reports made. Owns the kernel side of a
//! run; what is printed, and when it ends, is the caller's.

use std::{
    collections::{HashMap, HashSet},
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail};
use aya::{Btf, util::online_cpus};
use kmem_trace_ebpf::{
    config::{ROOTS, Root},
    record::{CgroupRecord, OP_ATTACH, OP_MKDIR, OP_RELEASE, OP_RENAME, OP_RMDIR},
    totals::{
        COUNTERS, LOST_DEPTH, LOST_MAP_FULL, LOST_PAGES, LOST_RING, LOST_UNREAD, SLOT_KMEM,
        SLOT_MEMORY, SLOT_STAT_ANON, SLOT_STAT_FILE, SLOT_STAT_KMEM, SLOT_STAT_SOCK, SLOT_SWAP,
        SLOT_TCPMEM, Totals,
    },
};

use crate::{
    hooks::{
        accounting,
        allowed::cause,
        attach::{AttachError, Attached, Sizes, attach},
        inspect::Inspection,
        plan::{AttachMode, Plan, Struck},
    },
    kernel::{
        cgroupfs::{self, CgroupDir, CounterValues, Hierarchy},
        proc,
    },
    ledger::{
        book::{Moved, Reading, Streamed, moved},
        tree::{Life, Tree},
    },
    reconcile::{
        breakdown,
        report::{BoundTerms, CounterReport, Lost, Report, SelfCost, StreamCheck},
        usage::{Base, Bracket, STOCK_PAGES, Source, Terms, reconcile},
    },
    stream::{
        decode::{Record, text},
        ring::Ring,
    },
    view::name,
};

/// What a session is asked for.
#[derive(Clone, Debug)]
pub struct Request {
    pub targets: Vec<CgroupDir>,
    pub hierarchy: Hierarchy,
    pub attach: AttachMode,
    pub btf: Option<PathBuf>,
    /// Roles asked for by `--events`.
    pub roles: HashSet<String>,
    pub sizes: Sizes,
    /// Levels below each target that are reported on.
    pub depth: usize,
    /// aya-log's level: 0 off … 5 trace.
    pub log_level: u8,
    pub strike: Struck,
}

/// The kernel's files of a page counter, and the slots of the ledger that mirror it.
struct CounterFile {
    name: &'static str,
    value: fn(&CounterValues) -> Option<u64>,
    slots: &'static [usize],
}

const COUNTER_SLOTS: [CounterFile; 3] = [
    CounterFile { name: "kmem", value: |values| values.kmem, slots: &[SLOT_KMEM] },
    CounterFile { name: "swap", value: |values| values.memsw.or(values.swap), slots: &[SLOT_SWAP] },
    CounterFile { name: "tcpmem", value: |values| values.tcpmem, slots: &[SLOT_TCPMEM] },
];

/// Without page counters only kernel memory has items that follow its counter page for page.
const COUNTER_ITEMS: [CounterFile; 1] =
    [CounterFile { name: "kmem", value: |values| values.kmem, slots: &[SLOT_STAT_KMEM] }];

const MEMORY_SLOTS: &[usize] = &[SLOT_MEMORY];
const MEMORY_ITEMS: &[usize] = &[SLOT_STAT_ANON, SLOT_STAT_FILE, SLOT_STAT_KMEM, SLOT_STAT_SOCK];

/// Readings from which a base is chosen.
const BASE_READINGS: usize = 5;
/// A report is read again, at most so often, when something moved while it was read.
const REPORT_READINGS: usize = 3;
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
    started: Instant,
    /// Bases of the cgroups that were there at attach, by counter.
    bases: HashMap<(u64, &'static str), Base>,
    /// Cgroups seen in totals that no directory and no event ever named.
    reported: Vec<CgroupDir>,
    /// Last figures of cgroups that went away while they were reported on.
    page_bytes: u64,
    unnamed_at_start: HashSet<u64>,
    dirty: bool,
}

impl Session {
    /// Plans, attaches and takes the base of each cgroup.
    ///
    /// # Errors
    /// Where this kernel gives a ledger nothing to go by, or refuses what the plan needs.
    pub async fn start(request: Request) -> Result<Self> {
        let inspection = Inspection::read(request.btf.as_deref());
        if let Err(why) = &inspection.allowed.bpf {
            bail!("cannot use BPF: {why}; run as root, or see `kmem-trace doctor`");
        }
        raise_memlock();
        let (plan, attached) = attach_best(&inspection, &request)?;
        tokio::time::sleep(SETTLE).await;
        let page_bytes = page_bytes();
        let mut session = Self {
            hierarchy: request.hierarchy,
            plan,
            inspection,
            tree: Tree::default(),
            streamed: Streamed::default(),
            attached,
            started: Instant::now(),
            bases: HashMap::new(),
            reported: Vec::new(),
            page_bytes,
            unnamed_at_start: HashSet::new(),
            dirty: false,
            request,
        };
        session.look_around();
        session.take_bases().await?;
        Ok(session)
    }

    pub fn ring(&mut self) -> Result<Ring> {
        let ring = self.attached.ring.take().context("the ring was taken already")?;
        Ring::new(ring).context("cannot watch the ring buffer")
    }

    pub fn attached(&mut self) -> &mut Attached {
        &mut self.attached
    }

    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// What this mode cannot see, in plain words.
    pub fn blind_spots(&self) -> Vec<String> {
        let mut spots = Vec::new();
        if !self.plan.exact {
            let why = self.inspection.allowed.reads.as_ref().err().cloned().unwrap_or_else(|| {
                self.plan.role("counter.charge").map(|role| role.why.clone()).unwrap_or_default()
            });
            spots.push(format!(
                "single charges and uncharges ({why}); the ledger follows memory.stat items, and pages in per-CPU stocks are within the bound"
            ));
            spots.push("who is refused a charge, and writes to limit files".to_owned());
        } else {
            for name in ["charge.user", "limit.write"] {
                if let Some(role) = self.plan.role(name).filter(|role| role.choice.is_none()) {
                    spots.push(format!("{name}: {}", role.why));
                }
            }
        }
        if let Some(role) = self.plan.role("cgroup.lifecycle").filter(|role| role.choice.is_none()) {
            spots.push(format!("cgroup.lifecycle: {}", role.why));
        }
        spots
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
        use std::os::unix::ffi::OsStrExt as _;
        let path = text(&record.path);
        let path = (!path.is_empty()).then(|| std::path::Path::new(std::ffi::OsStr::from_bytes(path)));
        match record.op {
            OP_MKDIR => match path {
                Some(path) => self.tree.see(record.cgroup_id, path),
                // Under lockdown the name is not readable: the directory tells it, if looked at soon.
                None => self.dirty = true,
            },
            OP_RMDIR => self.tree.removed(record.cgroup_id, path),
            OP_RELEASE => self.tree.released(record.cgroup_id, path),
            OP_RENAME => match path {
                Some(path) => self.tree.renamed(record.cgroup_id, path),
                None => self.dirty = true,
            },
            OP_ATTACH => {}
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
            for dir in cgroupfs::walk(&target) {
                self.tree.see(dir.id, &dir.path_in_hierarchy);
                if dir.level <= target.level + self.request.depth
                    && !reported.iter().any(|known: &CgroupDir| known.id == dir.id)
                {
                    reported.push(dir);
                }
            }
        }
        // A target that was removed is still reported on, from the ledger's side alone.
        for known in self.reported.drain(..) {
            if !reported.iter().any(|dir| dir.id == known.id)
                && self.request.targets.iter().any(|target| target.id == known.id)
            {
                reported.push(known);
            }
        }
        self.reported = reported;
    }

    /// The kernel-side totals of every cgroup, summed over CPUs.
    pub fn reading(&mut self) -> Result<Reading> {
        let mut reading = Reading::new();
        for entry in self.attached.totals.iter() {
            let (id, per_cpu) = entry.context("cannot read the totals")?;
            let mut sum = Totals::default();
            for one in per_cpu.iter() {
                for slot in 0..sum.charged.len() {
                    sum.charged[slot] = sum.charged[slot].wrapping_add(one.charged[slot]);
                    sum.uncharged[slot] = sum.uncharged[slot].wrapping_add(one.uncharged[slot]);
                }
                sum.user_charges += one.user_charges;
                sum.user_refusals += one.user_refusals;
                sum.largest = sum.largest.max(one.largest);
            }
            reading.insert(id, sum);
        }
        Ok(reading)
    }

    /// Takes over what the programs wrote down of who is charged with whom.
    fn learn_ancestry(&mut self) {
        for (id, ancestry) in self.attached.ancestry.iter().flatten() {
            self.tree.charged_with(id, ancestry.parent_id);
        }
    }

    fn moved(&mut self, ids: &HashSet<u64>) -> Result<HashMap<u64, Moved>> {
        let reading = self.reading()?;
        self.learn_ancestry();
        Ok(moved(&reading, &self.tree, ids))
    }

    fn ids(&self) -> HashSet<u64> {
        self.reported.iter().map(|dir| dir.id).collect()
    }

    async fn take_bases(&mut self) -> Result<()> {
        let ids = self.ids();
        let mut brackets: HashMap<(u64, &'static str), Vec<Bracket>> = HashMap::new();
        for round in 0..BASE_READINGS {
            if round > 0 {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            for (key, bracket) in self.brackets(&ids)? {
                brackets.entry(key).or_default().push(bracket);
            }
        }
        for (key, readings) in brackets {
            let slots = self.slots(key.1);
            if let Some(base) = Base::from_brackets(&readings, slots, self.page_bytes) {
                self.bases.insert(key, base);
            }
        }
        if !self.plan.exact {
            let reading = self.reading()?;
            self.unnamed_at_start =
                reading.keys().filter(|id| self.tree.get(**id).is_none()).copied().collect();
        }
        Ok(())
    }

    /// One bracket a cgroup and counter: totals, files, totals.
    fn brackets(&mut self, ids: &HashSet<u64>) -> Result<Vec<((u64, &'static str), Bracket)>> {
        let before = self.moved(ids)?;
        let mut files = Vec::new();
        for dir in &self.reported {
            if let Ok(values) = cgroupfs::counters(&dir.dir, self.hierarchy) {
                files.push((dir.id, values));
            }
        }
        let after = self.moved(ids)?;
        let mut brackets = Vec::new();
        for (id, values) in files {
            let (Some(before), Some(after)) = (before.get(&id), after.get(&id)) else { continue };
            let mut add = |name, bytes| {
                brackets.push(((id, name), Bracket { before: *before, file_bytes: bytes, after: *after }));
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

    fn counter_files(&self) -> &'static [CounterFile] {
        if self.plan.exact { &COUNTER_SLOTS } else { &COUNTER_ITEMS }
    }

    fn slots(&self, counter: &str) -> &'static [usize] {
        if counter == "memory" {
            return if self.plan.exact { MEMORY_SLOTS } else { MEMORY_ITEMS };
        }
        self.counter_files().iter().find(|file| file.name == counter).map_or(&[], |file| file.slots)
    }

    /// A counter's name as users of this hierarchy know it.
    fn counter_name(&self, name: &'static str) -> &'static str {
        match (name, self.hierarchy) {
            ("swap", Hierarchy::V1) => "memsw",
            _ => name,
        }
    }

    /// Reports on every cgroup that is reported on, parents first.
    ///
    /// # Errors
    /// Where the maps cannot be read.
    pub fn reports(&mut self) -> Result<Vec<Report>> {
        self.look_around();
        let ids = self.ids();
        let mut best = self.brackets(&ids)?;
        for _ in 1..REPORT_READINGS {
            let skew = |brackets: &[((u64, &'static str), Bracket)]| -> u64 {
                brackets.iter().map(|((_, name), bracket)| bracket.skew_pages(self.slots(name))).sum()
            };
            if skew(&best) == 0 {
                break;
            }
            let again = self.brackets(&ids)?;
            let skew = |brackets: &[((u64, &'static str), Bracket)]| -> u64 {
                brackets.iter().map(|((_, name), bracket)| bracket.skew_pages(self.slots(name))).sum()
            };
            if again.len() >= best.len() && skew(&again) < skew(&best) {
                best = again;
            }
        }
        let brackets: HashMap<_, _> = best.into_iter().collect();
        let lost = self.lost();
        let lost_pages = self.lost_pages(&lost)?;
        let mut reports = Vec::new();
        for dir in self.reported.clone() {
            let Some(bracket) = brackets.get(&(dir.id, "memory")) else { continue };
            reports.push(self.report(&dir, bracket, &brackets, lost, lost_pages));
        }
        Ok(reports)
    }

    fn report(
        &self,
        dir: &CgroupDir,
        bracket: &Bracket,
        brackets: &HashMap<(u64, &'static str), Bracket>,
        lost: Lost,
        lost_pages: u64,
    ) -> Report {
        let now = &bracket.after;
        let terms = Terms {
            page_bytes: self.page_bytes,
            online_cpus: online_cpus().map_or(1, |cpus| cpus.len()) as u64,
            source: if self.plan.exact {
                Source::Counters
            } else {
                Source::Items { stock_pages: self.stock_pages() }
            },
            largest_pages: now.largest,
            lost_pages,
        };
        let base = |name| self.bases.get(&(dir.id, name)).copied().unwrap_or_default();
        let slots = self.slots("memory");
        let usage = reconcile(bracket, &base("memory"), slots, &terms);
        let counters: Vec<CounterReport> = self
            .counter_files()
            .iter()
            .filter_map(|file| {
                let bracket = brackets.get(&(dir.id, file.name))?;
                // These items follow their counter page for page: no stock between them.
                let terms = Terms { source: Source::Counters, ..terms };
                let found = reconcile(bracket, &base(file.name), file.slots, &terms);
                Some(CounterReport::new(self.counter_name(file.name), &found))
            })
            .collect();
        let kmem_bytes = brackets.get(&(dir.id, "kmem")).map(|bracket| bracket.file_bytes);
        let stat = cgroupfs::stat(&dir.dir).unwrap_or_default();
        let parts = match self.hierarchy {
            Hierarchy::V1 => breakdown::v1(&stat, kmem_bytes, usage.kernel_bytes),
            Hierarchy::V2 => breakdown::v2(&stat, usage.kernel_bytes),
        };
        let page = self.page_bytes;
        let net_bytes = slots.iter().map(|slot| now.net[*slot]).sum::<i64>() * page.cast_signed();
        let gross_bytes = slots.iter().map(|slot| now.gross[*slot]).sum::<u64>() * page;
        let (mut living, mut dead) = (0, 0);
        for (id, node) in self.tree.subtree(dir.id) {
            match node.life {
                _ if id == dir.id => {}
                Life::Living => living += 1,
                _ => dead += 1,
            }
        }
        let sees_users = self.plan.role("charge.user").is_some_and(|role| role.choice.is_some());
        let streams = self.plan.exact;
        let streamed_pages: i64 =
            slots.iter().map(|slot| self.streamed.net(&self.tree, dir.id)[*slot]).sum();
        Report {
            elapsed_s: self.elapsed().as_secs_f64(),
            cgroup: name::path(dir.path_in_hierarchy.as_os_str()),
            cgroup_id: dir.id,
            descendants: living,
            dead_descendants: dead,
            usage_bytes: usage.kernel_bytes,
            ledger_bytes: usage.ledger_bytes,
            residual_bytes: usage.residual_bytes,
            bound_bytes: usage.bound.total_bytes(),
            bound_terms: BoundTerms {
                skew: usage.bound.skew_bytes,
                in_flight: usage.bound.in_flight_bytes,
                stock: usage.bound.stock_bytes,
                base: usage.bound.base_bytes,
                lost: usage.bound.lost_bytes,
            },
            kmem_bytes: kmem_bytes.or(parts.kernel),
            counters,
            breakdown: parts,
            charged_bytes: gross_bytes.wrapping_add_signed(net_bytes) / 2,
            uncharged_bytes: gross_bytes.wrapping_add_signed(-net_bytes) / 2,
            user_charges: sees_users.then_some(now.user_charges),
            user_refusals: sees_users.then_some(now.user_refusals),
            streamed_bytes: streams.then_some(streamed_pages * page.cast_signed()),
            totals_bytes: net_bytes,
            lost,
            limits: self.limits(&lost),
        }
    }

    fn limits(&self, lost: &Lost) -> Vec<String> {
        let mut limits = Vec::new();
        if lost.ring > 0 {
            limits.push("records were lost: --events shows fewer than there were (use --ring to make the ring larger)".to_owned());
        }
        if lost.map_full > 0 {
            limits.push("totals are lower bounds: charges were seen that could not be counted (use --max-cgroups)".to_owned());
        }
        if !self.counts_skips() {
            limits.push("this kernel does not count probe runs that it skips: lost.skipped is a lower bound".to_owned());
        }
        limits
    }

    /// Whether the kernel counts skipped kprobe runs: it does since it can tell them per link.
    fn counts_skips(&self) -> bool {
        self.inspection
            .btf
            .as_ref()
            .is_ok_and(|btf| btf.member("bpf_link_info", "perf_event.kprobe.missed").is_ok())
    }

    /// Pages that per-CPU stocks can hold: online CPUs × cgroups cached per CPU × batch.
    fn stock_pages(&self) -> u64 {
        let cpus = online_cpus().map_or(1, |cpus| cpus.len()) as u64;
        cpus * accounting::cached_per_cpu(self.inspection.btf.as_ref().ok()) * STOCK_PAGES
    }

    fn tally(&self, which: u32) -> u64 {
        self.attached.tally.get(&which, 0).map_or(0, |per_cpu| per_cpu.iter().sum())
    }

    /// What was lost so far.
    pub fn lost(&mut self) -> Lost {
        Lost {
            ring: self.tally(LOST_RING),
            map_full: self.tally(LOST_MAP_FULL) + self.tally(LOST_UNREAD) + self.tally(LOST_DEPTH),
            skipped: self.attached.skipped(),
        }
    }

    /// Pages that are in no total, at most.
    fn lost_pages(&mut self, lost: &Lost) -> Result<u64> {
        let reading = self.reading()?;
        let largest = reading.values().map(|totals| totals.largest).max().unwrap_or(0);
        let mut pages = self.tally(LOST_PAGES) + lost.skipped * largest.max(STOCK_PAGES);
        if !self.plan.exact {
            // Cgroups made and gone before their directory could be looked at: ours or not, nobody
            // can tell, so what they still hold may be missing from the ledger.
            for (id, totals) in &reading {
                if self.tree.get(*id).is_none() && !self.unnamed_at_start.contains(id) && !self.exists_elsewhere(*id) {
                    for slot in COUNTERS..totals.charged.len() {
                        pages += totals.charged[slot].abs_diff(totals.uncharged[slot]);
                    }
                }
            }
        }
        Ok(pages)
    }

    /// Whether a cgroup outside the traced subtrees has that id. Looked up in the whole hierarchy,
    /// once: what is found is written into the tree.
    fn exists_elsewhere(&mut self, id: u64) -> bool {
        if let Some(top) = self.request.targets.first().map(cgroupfs::hierarchy_root) {
            for dir in cgroupfs::walk(&top) {
                self.tree.see(dir.id, &dir.path_in_hierarchy);
            }
        }
        self.tree.get(id).is_some()
    }

    /// Takes the programs off. The maps stay as they are, for the last comparison.
    pub async fn detach(&mut self) {
        self.attached.detach();
        tokio::time::sleep(SETTLE).await;
    }

    /// After [`Self::detach`] and with the ring drained: do records and totals say the same?
    pub fn stream_check(&mut self) -> Result<Option<StreamCheck>> {
        if !self.plan.exact {
            return Ok(None);
        }
        let reading = self.reading()?;
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
    pub fn own_cost(&mut self) -> SelfCost {
        let (bpf_run_ns, bpf_runs) = self.attached.run_time().unzip();
        let own = proc::own_cost().unwrap_or_default();
        SelfCost { bpf_run_ns, bpf_runs, cpu_s: own.cpu_s, rss_bytes: own.rss_bytes }
    }
}

/// Attaches the best plan that the kernel takes: a candidate that it refuses is struck out, with
/// its words as the reason, and the next one tried.
fn attach_best(inspection: &Inspection, request: &Request) -> Result<(Plan, Attached)> {
    let aya_btf = match &request.btf {
        Some(file) => Some(Btf::parse_file(file, aya::Endianness::default()).map_err(|error| {
            anyhow!("{}: not usable as type information: {}", file.display(), cause(&error))
        })?),
        None => Btf::from_sys_fs().ok(),
    };
    let mut struck = request.strike.clone();
    let mut struck_why = HashMap::new();
    loop {
        let plan = inspection.plan(request.hierarchy, request.attach, &struck, &struck_why);
        if !plan.has_ledger() {
            let why = plan.role("counter.charge").map(|role| role.why.clone()).unwrap_or_default();
            let also = plan.role("memcg.state").map(|role| role.why.clone()).unwrap_or_default();
            bail!("no ledger on this kernel: {why}; nor by memory.stat items: {also}; `kmem-trace doctor` shows the whole plan");
        }
        let config = constants(&plan, request)?;
        match attach(&plan, &config, &request.roles, request.sizes, aya_btf.as_ref(), request.log_level) {
            Ok(attached) => return Ok((plan, attached)),
            Err(AttachError::Refused(refused)) => {
                log::info!("{}: {}", refused.role, refused.why);
                let key = (refused.role, refused.candidate);
                if !struck.insert(key) {
                    bail!("{}: {}", refused.role, refused.why);
                }
                struck_why.insert(key, refused.why);
            }
            Err(AttachError::Other(error)) => return Err(error),
        }
    }
}

/// The plan's constants with this run's roots and switches.
fn constants(plan: &Plan, request: &Request) -> Result<kmem_trace_ebpf::config::Config> {
    let mut config = plan.config;
    if request.targets.len() > ROOTS {
        bail!("{} cgroups to trace, at most {ROOTS} at a time: trace a common parent, or start a second kmem-trace", request.targets.len());
    }
    for (place, target) in config.roots.iter_mut().zip(&request.targets) {
        *place = Root { id: target.id, level: target.level as u32, reserved: 0 };
    }
    config.roots_len = request.targets.len() as u32;
    let wanted = |role: &str| u32::from(request.roles.contains(role));
    config.stream_counters = 1;
    config.stream_user_charges = wanted("charge.user");
    config.stream_state = wanted("memcg.state");
    config.stream_slab = u32::from(request.roles.contains("slab.alloc") || request.roles.contains("slab.free"));
    config.stream_limits = 1;
    config.wake_bytes = request.sizes.ring_bytes / 4;
    Ok(config)
}

/// Before 5.11 maps are charged to RLIMIT_MEMLOCK. Where it cannot be raised, the kernel's refusal
/// of a map says so later.
fn raise_memlock() {
    use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
    if let Err(error) = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY) {
        log::debug!("RLIMIT_MEMLOCK cannot be raised: {error}");
    }
}

fn page_bytes() -> u64 {
    nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE)
        .ok()
        .flatten()
        .and_then(|bytes| u64::try_from(bytes).ok())
        .unwrap_or(4096)
}
