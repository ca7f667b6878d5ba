//! A plan loaded into the kernel and attached.

use std::{
    collections::{BTreeMap, HashSet},
    os::fd::{AsFd as _, OwnedFd},
};

use anyhow::{Context as _, Result, anyhow, bail};
use aya::{
    Btf, Ebpf,
    maps::{Array, HashMap as KernelHashMap, Map, MapData, PerfEventArray, RingBuf},
    programs::{
        BtfTracePoint, FEntry, FExit, KProbe, Program, ProgramError, RawTracePoint, TracePoint,
    },
    util::nr_cpus,
};
use kmem_trace_ebpf::{
    config::Config,
    pairs::ProgramMembers,
    sums::{Cache, DEAD, LAST, SlabKey, SlabSums},
    totals::{Place as TotalsPlace, TALLIES, Totals},
};

use crate::kernel::proc::own;

use super::{
    allowed::cause,
    features::{Lacking, Object},
    kept::{Kept, Slab},
    loader,
    loading::{self, refusal},
    pairs,
    plan::Plan,
    recycling,
    site::AllSites,
    stats::{self, ProgramStats},
    table::{Candidate, Hook, Place},
    unwatched::{Watch, watches},
    verify,
};

/// Rings that the programs can be told to use.
pub const RINGS: [&str; 4] = ["RING", "RING_1", "RING_2", "RING_3"];
/// A page, on x86-64.
pub const SMALLEST_RING: u32 = 4096;

/// Maps that are sized when the object is loaded.
pub(super) const SIZED: [&str; 12] = [
    "PLACES",
    "FREE",
    "CGROUPS",
    "TOTALS",
    "TALLY",
    "SLAB_PLACES",
    "SLAB_FREE",
    "SLAB_KEYS",
    "SLAB_SUMS",
    "SLAB_LAST",
    "DEAD",
    "OWNERLESS",
];

/// Sizes of what is allocated in the kernel.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Bytes of all rings; a power of two, at least a page.
    pub ring_bytes: u32,
    /// Rings for the records of so many CPUs each; a power of two, at most [`RINGS`].
    pub rings: u32,
    /// Cgroups that the totals hold.
    pub cgroups: u32,
    /// Slab objects without a payer that are remembered.
    pub objects: u32,
    /// Sums of slab by cgroup, cache, call site and cause.
    pub rows: u32,
}

impl Sizes {
    /// Bytes of each ring.
    pub fn each_ring(&self) -> u32 {
        (self.ring_bytes / self.rings).max(SMALLEST_RING)
    }
}

/// Programs in place, and the maps they fill.
pub struct Attached {
    pub(super) ebpf: Ebpf,
    pub(super) kept: Kept,
    pub(super) switches: Array<MapData, u32>,
    /// Taken by the stream.
    pub stream: Option<Stream>,
    /// Why the offsets were not checked against the running kernel, where they were not.
    pub unchecked: Option<String>,
    /// What was attached: role and program.
    pub programs: Vec<(&'static str, &'static str)>,
    /// Of the ledger.
    pub(super) kprobes: stats::Kprobes,
    /// Kept over [`Self::detach`].
    pub(super) last_skipped: BTreeMap<&'static str, u64>,
    pub(super) watch: Watch,
    /// Programs that are off their hooks, kept for their last figures.
    off: Vec<(String, OwnedFd)>,
    /// Memory of all maps, bytes.
    pub map_bytes: u64,
}

/// The maps that records come through.
pub enum Stream {
    /// The rings of the CPUs, and their spare.
    Rings(Vec<RingBuf<MapData>>, Box<RingBuf<MapData>>),
    /// Perf buffers, still to be opened.
    Buffers(PerfEventArray<MapData>),
}

/// A candidate that the kernel refused, so that the next one can be tried.
#[derive(Debug)]
pub struct Refused {
    pub role: &'static str,
    pub candidate: usize,
    pub why: String,
    pub hook: Hook,
    /// The function takes no fentry or fexit program, whatever the program.
    pub closed: bool,
}

impl Refused {
    /// Of the candidate that a role's plan chose, one of whose hooks the kernel refused.
    fn new(
        role: &'static str,
        (candidate, chosen): (usize, &Candidate),
        hook: &Hook,
        why: &str,
        closed: bool,
    ) -> Self {
        Self {
            role,
            candidate,
            why: format!(
                "{} refused on {}: {why}",
                chosen.mechanism.name(),
                hook.symbol
            ),
            hook: *hook,
            closed,
        }
    }
}

/// A program was loaded, and the kernel did not let it onto its function.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Closed(String);

/// Why nothing was attached.
#[derive(Debug)]
pub enum AttachError {
    /// Every one that was refused, so that whoever tries again has them all out of the way.
    Refused(Vec<Refused>),
    Other(anyhow::Error),
}

impl From<anyhow::Error> for AttachError {
    fn from(error: anyhow::Error) -> Self {
        Self::Other(error)
    }
}

/// What an attachment is to be like, beyond the plan.
pub struct Wanted<'a> {
    pub lacking: &'a Lacking,
    pub sites: &'a AllSites,
    /// Roles asked for.
    pub requested: &'a HashSet<String>,
    pub sizes: Sizes,
    pub btf: Option<&'a Btf>,
    pub log_level: u8,
}

/// Loads the object with the plan's constants and attaches what the plan wants.
///
/// # Errors
/// [`AttachError::Refused`] where the kernel does not take a candidate; everything that was
/// attached until then is gone again.
pub fn attach(plan: &Plan, config: &Config, wanted: &Wanted<'_>) -> Result<Attached, AttachError> {
    let Wanted {
        lacking,
        sites,
        requested,
        sizes,
        btf,
        log_level,
    } = *wanted;
    let copies = nr_cpus()
        .map_err(|(file, error)| anyhow!("cannot read {file}: {error}"))?
        .next_power_of_two();
    // The loader keeps references for as long as the process lives: some hundred bytes, once or twice.
    let config: &'static mut Config = Box::leak(Box::new(*config));
    config.cast_to = plan.cast.map_or(0, |cast| cast.words);
    config.places = sizes.cgroups;
    config.copies_mask = copies as u32 - 1;
    config.slab_places = if plan.slab { sizes.rows } else { 1 };
    let places = sizes.cgroups as usize;
    let copied = |elements: u32| {
        elements
            .checked_mul(copies as u32)
            .context("--max-cgroups is too large for this many CPUs")
    };
    let config: &'static Config = config;
    let log_level: &'static u8 = Box::leak(Box::new(log_level));
    let program_members: &'static ProgramMembers = Box::leak(Box::new(plan.program_members));
    let maps = [
        ("PLACES", sizes.cgroups),
        ("FREE", sizes.cgroups),
        ("CGROUPS", sizes.cgroups),
        ("TOTALS", copied(sizes.cgroups)?),
        ("TALLY", copied(TALLIES)?),
        ("SLAB_PLACES", config.slab_places),
        ("SLAB_FREE", config.slab_places),
        ("SLAB_KEYS", config.slab_places),
        ("SLAB_SUMS", copied(config.slab_places)?),
        ("SLAB_LAST", copied(LAST)?),
        ("DEAD", if plan.slab { DEAD } else { 1 }),
        ("OWNERLESS", if plan.slab { sizes.objects } else { 1 }),
    ];
    let object = lacking.object();
    let rings = &RINGS[..(sizes.rings as usize).min(RINGS.len())];
    let mut ebpf = loader::with(|loader| {
        loader
            .override_global("CONFIG", config, true)
            .override_global("PROGRAM_MEMBERS", program_members, object == Object::Newest)
            .override_global("AYA_LOG_LEVEL", log_level, false);
        for (map, elements) in maps {
            loader.map_max_entries(map, elements);
        }
        for ring in RINGS {
            let used = rings.contains(&ring);
            let bytes = if used {
                sizes.each_ring()
            } else {
                SMALLEST_RING
            };
            loader.map_max_entries(ring, bytes);
        }
        loader.load(&object.bytes(plan.cast))
    })
    .map_err(|error| anyhow!("the kernel did not take the BPF maps: {}", cause(&error)))?;
    let unchecked = verify::offsets_hold(&mut ebpf, config, lacking)
        .map_err(|why| anyhow!(why))?
        .err();
    let wanted = plan.wanted(requested);
    // While all of them are open: some are needed by the programs alone.
    let map_bytes = own::bpf_map_bytes();
    recycling::load(&mut ebpf, lacking);
    recycling::fill(&mut ebpf, recycling::FREE, sizes.cgroups)?;
    if object == Object::Newest {
        recycling::fill(&mut ebpf, recycling::SLAB_FREE, config.slab_places)?;
    }
    let chosen = wanted.iter().filter_map(|resolved| resolved.choice);
    let hooks: Vec<Hook> = chosen
        .flat_map(|(_, candidate)| candidate.hooks)
        .copied()
        .collect();
    let not_taken = loading::all(&mut ebpf, &hooks, btf);
    pairs::join(&mut ebpf, &hooks);
    let mut programs = Vec::new();
    let mut placed: Vec<Hook> = Vec::new();
    let mut refused: Vec<Refused> = Vec::new();
    let mut refused_hooks: Vec<(Hook, String, bool)> = hooks
        .iter()
        .filter_map(|hook| Some((*hook, not_taken.get(hook.program)?.clone(), false)))
        .collect();
    for resolved in &wanted {
        let Some(choice) = resolved.choice else {
            continue;
        };
        for hook in choice.1.hooks {
            // Two roles may be served by one hook.
            if placed.contains(hook) {
                continue;
            }
            let known = refused_hooks.iter().find(|(refused, ..)| refused == hook);
            let outcome = match known {
                Some((_, why, closed)) => Err((why.clone(), *closed)),
                None => place(&mut ebpf, hook, sites)
                    .map_err(|error| (format!("{error:#}"), error.is::<Closed>())),
            };
            if let Err((why, closed)) = outcome {
                let role = resolved.role.name;
                refused.push(Refused::new(role, choice, hook, &why, closed));
                refused_hooks.push((*hook, why, closed));
                break;
            }
            placed.push(*hook);
            if !programs.contains(&(resolved.role.name, hook.program)) {
                programs.push((resolved.role.name, hook.program));
            }
        }
    }
    if log::log_enabled!(log::Level::Debug) {
        say_verified(&ebpf);
    }
    if !refused.is_empty() {
        return Err(AttachError::Refused(refused));
    }
    let switches = Array::try_from(map(&mut ebpf, "SWITCHES")?).context("map SWITCHES")?;
    let (kept, stream) = match lacking.object() {
        Object::Newest => {
            let keys = config.slab_places as usize;
            let kept = Kept::mapped(&mut ebpf, places, keys, copies)?;
            let mut ring = |name| -> Result<_> {
                RingBuf::try_from(map(&mut ebpf, name)?).with_context(|| format!("map {name}"))
            };
            let spare = ring("SPARE")?;
            let rings = rings.iter().map(|name| ring(name)).collect::<Result<_>>()?;
            (kept, Stream::Rings(rings, Box::new(spare)))
        }
        Object::Old => {
            let kept = Kept::handed(&mut ebpf, places, copies)?;
            let buffers = map(&mut ebpf, "BUFFERS")?;
            let buffers = PerfEventArray::try_from(buffers).context("map BUFFERS")?;
            (kept, Stream::Buffers(buffers))
        }
    };
    let by_kprobe: HashSet<u32> = programs
        .iter()
        .filter(|(role, _)| role.starts_with("counter."))
        .filter_map(|(_, name)| match ebpf.program(name) {
            Some(Program::KProbe(program)) => program.info().ok().map(|info| info.id()),
            _ => None,
        })
        .collect();
    let kprobes = stats::Kprobes::of(&by_kprobe);
    let mut attached = Attached {
        ebpf,
        kept,
        switches,
        stream: Some(stream),
        unchecked,
        programs,
        kprobes,
        last_skipped: BTreeMap::new(),
        watch: Watch::default(),
        off: Vec::new(),
        map_bytes,
    };
    attached.watch = Watch::of(&attached);
    Ok(attached)
}

impl Attached {
    /// The object, for aya-log and for the programs' own figures.
    pub fn ebpf(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }

    /// Whether the ledger's kprobes, where there are any, can be asked for runs that were skipped.
    pub fn knows_its_kprobes(&self) -> bool {
        self.kprobes.has_all()
    }

    /// Figures of the programs that are attached or were, by name.
    pub fn stats(&self) -> Vec<(&str, ProgramStats)> {
        let mut found: Vec<(&str, ProgramStats)> = Vec::new();
        for (name, fd) in &self.off {
            if let Some(stats) = stats::of(fd.as_fd()) {
                found.push((name, stats));
            }
        }
        for (name, program) in self.ebpf.programs() {
            if let Ok(fd) = program.fd()
                && let Some(stats) = stats::of(fd.as_fd())
            {
                found.push((name, stats));
            }
        }
        found
    }

    /// The cgroups that have totals, and these, summed over the CPUs.
    ///
    /// # Errors
    /// Where the kernel does not hand them out.
    pub fn totals(&self) -> Result<Vec<(TotalsPlace, Totals)>> {
        self.kept.taken(&self.ebpf)
    }

    /// The slab sums that hold anything, summed over the CPUs.
    pub fn slab(&self) -> impl Iterator<Item = (SlabKey, SlabSums)> {
        self.kept.slab().into_iter().flat_map(Slab::held)
    }

    /// Names of slab caches, where slab is attributed.
    pub fn caches(&self) -> Option<&KernelHashMap<MapData, u64, Cache>> {
        self.kept.slab().map(Slab::caches)
    }

    /// One tally, summed over the CPUs. Where it cannot be read, neither can the totals, and that
    /// ends a trace.
    pub fn tally(&self, which: u32) -> u64 {
        self.kept.tally(&self.ebpf, which).unwrap_or_else(|error| {
            log::warn!("what was lost is not known: {error:#}");
            0
        })
    }

    /// One tally as each CPU has it, by its number; nothing where it cannot be read.
    pub(super) fn by_cpu(&self, which: u32) -> Vec<u64> {
        self.kept.tallies(&self.ebpf, which).unwrap_or_default()
    }

    /// Time in the programs (ns) and their runs; `None` while the kernel does not measure.
    pub fn run_time(&self) -> Option<(u64, u64)> {
        let (ns, runs) = self.stats().iter().fold((0, 0), |(ns, runs), (_, stats)| {
            (ns + stats.run_time_ns, runs + stats.run_count)
        });
        (runs > 0).then_some((ns, runs))
    }

    /// Takes all programs off their hooks; the maps stay readable.
    pub fn detach(&mut self) {
        self.last_skipped = self.skipped();
        self.stop_watching();
        // They would keep the programs attached.
        self.kprobes.let_go();
        for (name, program) in self.ebpf.programs_mut() {
            self.off.extend(take_off(name, program));
        }
    }

    /// The same for programs wanted alone, by role and name; a program that serves another role too
    /// stays.
    pub fn detach_some(&mut self, wanted: impl Fn(&str, &str) -> bool) {
        self.last_skipped = self.skipped();
        let (off, on): (Vec<_>, Vec<_>) = std::mem::take(&mut self.programs)
            .into_iter()
            .partition(|(role, program)| wanted(role, program));
        if watches(&off) {
            self.stop_watching();
        }
        for (_, name) in off {
            if !on.iter().any(|(_, other)| *other == name)
                && let Some(program) = self.ebpf.program_mut(name)
            {
                self.off.extend(take_off(name, program));
            }
        }
        self.programs = on;
    }
}

/// Takes a program off its hooks; what is left of it still tells its figures.
fn take_off(name: &str, program: &mut Program) -> Option<(String, OwnedFd)> {
    let fd = program.fd().ok()?.as_fd().try_clone_to_owned().ok();
    // Unloading drops the links with the program.
    let _ = match program {
        Program::KProbe(program) => program.unload(),
        Program::FEntry(program) => program.unload(),
        Program::FExit(program) => program.unload(),
        Program::RawTracePoint(program) => program.unload(),
        Program::TracePoint(program) => program.unload(),
        Program::BtfTracePoint(program) => program.unload(),
        _ => Ok(()),
    };
    fd.map(|fd| (name.to_owned(), fd))
}

fn map(ebpf: &mut Ebpf, name: &str) -> Result<Map> {
    ebpf.take_map(name)
        .with_context(|| format!("the object has no map {name}"))
}

fn place(ebpf: &mut Ebpf, hook: &Hook, sites: &AllSites) -> Result<()> {
    let program = ebpf
        .program_mut(hook.program)
        .with_context(|| format!("the object has no program {}", hook.program))?;
    let refused = |error: ProgramError| anyhow!(refusal(&error));
    let closed = |error: ProgramError| anyhow!(Closed(refusal(&error)));
    match hook.place {
        Place::Kprobe | Place::Kretprobe => {
            let program: &mut KProbe = program.try_into()?;
            program.attach(hook.symbol, 0).map_err(refused)?;
        }
        Place::Inside { .. } | Place::Returns => {
            let sites = match sites.get(hook.symbol) {
                Some(Ok(sites)) => sites,
                Some(Err(why)) => bail!("{why}"),
                None => bail!("not looked into"),
            };
            let offsets = match (hook.place, &sites.returns) {
                (Place::Returns, Ok(returns)) => returns.clone(),
                (Place::Returns, Err(why)) => bail!("{why}"),
                _ => vec![sites.entry],
            };
            let program: &mut KProbe = program.try_into()?;
            for offset in offsets {
                program.attach(hook.symbol, offset).map_err(refused)?;
            }
        }
        Place::Fentry => {
            let program: &mut FEntry = program.try_into()?;
            program.attach().map_err(closed)?;
        }
        Place::Fexit => {
            let program: &mut FExit = program.try_into()?;
            program.attach().map_err(closed)?;
        }
        Place::RawTracepoint => {
            let program: &mut RawTracePoint = program.try_into()?;
            program.attach(hook.symbol).map_err(refused)?;
        }
        Place::BtfTracepoint(_) => {
            let program: &mut BtfTracePoint = program.try_into()?;
            program.attach().map_err(refused)?;
        }
        Place::Tracepoint(category) => {
            let program: &mut TracePoint = program.try_into()?;
            program.attach(category, hook.symbol).map_err(refused)?;
        }
    }
    Ok(())
}

/// How much work each program was for the verifier, which is most of what a start takes.
fn say_verified(ebpf: &Ebpf) {
    for (name, program) in ebpf.programs() {
        if let Ok(info) = program.info()
            && let Some(verified) = info.verified_instruction_count()
        {
            log::debug!("{name}: {verified} instructions verified");
        }
    }
}
