//! A plan loaded into the kernel and attached.

use std::{
    collections::{BTreeMap, HashSet},
    os::fd::{AsFd as _, OwnedFd},
};

use anyhow::{Context as _, Result, anyhow, bail};
use aya::{
    Btf, Ebpf, EbpfLoader,
    maps::{Array, HashMap as KernelHashMap, MapData, RingBuf, Stack},
    programs::{BtfTracePoint, FEntry, FExit, KProbe, Program, RawTracePoint, TracePoint},
    util::nr_cpus,
};
use kmem_trace_ebpf::{
    config::Config,
    sums::{Cache, DEAD, LAST, SLAB_KEYS, SlabKey, SlabSums},
    totals::{Place as TotalsPlace, TALLIES, Totals},
};

use crate::kernel::proc::own;

use super::{
    allowed::cause,
    cast,
    mapping::Mapped,
    pairs,
    plan::Plan,
    recycling,
    site::AllSites,
    stats::{self, ProgramStats},
    table::{Hook, Place},
    verify,
};

/// The compiled programs, built by `cargo xtask bpf`.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!("../bpf/kmem-trace.bpf.o");

/// Sizes of what is allocated in the kernel.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Bytes of the ring; a power of two, at least a page.
    pub ring_bytes: u32,
    /// Cgroups that the totals hold.
    pub cgroups: u32,
    /// Slab objects without a payer that are remembered.
    pub objects: u32,
}

/// Programs in place, and the maps they fill.
pub struct Attached {
    pub(super) ebpf: Ebpf,
    /// Whose each place of the totals is.
    pub cgroups: Mapped<TotalsPlace>,
    /// A copy for each CPU, place by place.
    pub(super) totals: Mapped<Totals>,
    tally: Mapped<u64>,
    pub(super) slab_keys: Mapped<SlabKey>,
    /// A copy for each CPU, place by place.
    pub(super) slab_sums: Mapped<SlabSums>,
    pub(super) switches: Array<MapData, u32>,
    pub caches: KernelHashMap<MapData, u64, Cache>,
    /// The ring and its spare; taken by the stream.
    pub rings: Option<(RingBuf<MapData>, RingBuf<MapData>)>,
    /// What was attached: role and program.
    pub programs: Vec<(&'static str, &'static str)>,
    /// Of the ledger.
    pub(super) kprobes: stats::Kprobes,
    /// Kept over [`Self::detach`].
    pub(super) last_skipped: BTreeMap<&'static str, u64>,
    /// Programs that are off their hooks, kept for their last figures.
    off: Vec<(String, OwnedFd)>,
    /// Memory of all maps, bytes.
    pub map_bytes: u64,
}

/// A candidate that the kernel refused, so that the next one can be tried.
#[derive(Debug)]
pub struct Refused {
    pub role: &'static str,
    pub candidate: usize,
    pub why: String,
}

/// Why nothing was attached.
#[derive(Debug)]
pub enum AttachError {
    Refused(Refused),
    Other(anyhow::Error),
}

impl From<anyhow::Error> for AttachError {
    fn from(error: anyhow::Error) -> Self {
        Self::Other(error)
    }
}

/// Loads the object with the plan's constants and attaches what the plan wants.
///
/// # Errors
/// [`AttachError::Refused`] where the kernel does not take a candidate; everything that was
/// attached until then is gone again.
pub fn attach(
    plan: &Plan,
    config: &Config,
    sites: &AllSites,
    requested: &HashSet<String>,
    sizes: Sizes,
    btf: Option<&Btf>,
    log_level: u8,
) -> Result<Attached, AttachError> {
    let copies = nr_cpus()
        .map_err(|(file, error)| anyhow!("cannot read {file}: {error}"))?
        .next_power_of_two();
    let mut config = *config;
    config.cast_to = plan.cast.map_or(0, |cast| cast.words);
    config.places = sizes.cgroups;
    config.copies_mask = copies as u32 - 1;
    config.slab_places = if plan.slab { SLAB_KEYS } else { 1 };
    let places = sizes.cgroups as usize;
    let copied = |elements: u32| {
        elements
            .checked_mul(copies as u32)
            .context("--max-cgroups is too large for this many CPUs")
    };
    let mut loader = EbpfLoader::new();
    loader
        .btf(btf)
        .override_global("CONFIG", &config, true)
        .override_global("PROGRAM_MEMBERS", &plan.program_members, true)
        .override_global("AYA_LOG_LEVEL", &log_level, false)
        .map_max_entries("RING", sizes.ring_bytes)
        .map_max_entries("PLACES", sizes.cgroups)
        .map_max_entries("FREE", sizes.cgroups)
        .map_max_entries("CGROUPS", sizes.cgroups)
        .map_max_entries("TOTALS", copied(sizes.cgroups)?)
        .map_max_entries("TALLY", copied(TALLIES)?)
        .map_max_entries("SLAB_PLACES", config.slab_places)
        .map_max_entries("SLAB_FREE", config.slab_places)
        .map_max_entries("SLAB_KEYS", config.slab_places)
        .map_max_entries("SLAB_SUMS", copied(config.slab_places)?)
        .map_max_entries("SLAB_LAST", copied(LAST)?)
        .map_max_entries("DEAD", if plan.slab { DEAD } else { 1 })
        .map_max_entries("OWNERLESS", if plan.slab { sizes.objects } else { 1 });
    let mut ebpf = loader
        .load(&cast::object(plan.cast))
        .map_err(|error| anyhow!("the kernel did not take the BPF maps: {}", cause(&error)))?;
    // While all of them are open: some are needed by the programs alone.
    let map_bytes = own::bpf_map_bytes();
    verify::offsets_hold(&mut ebpf, &config).map_err(|why| anyhow!(why))?;
    // Programs name maps by descriptors until they are loaded: these stay open for that long.
    let _free = fill(&mut ebpf, "FREE", sizes.cgroups)?;
    let _slab_free = fill(&mut ebpf, "SLAB_FREE", config.slab_places)?;
    let wanted = plan.wanted(requested);
    let hooks = || {
        let chosen = wanted.iter().filter_map(|resolved| resolved.choice);
        chosen.flat_map(|(_, candidate)| candidate.hooks)
    };
    pairs::join(&mut ebpf, |name| hooks().any(|hook| hook.program == name));
    let mut programs = Vec::new();
    let mut placed: Vec<Hook> = Vec::new();
    for resolved in &wanted {
        let Some((index, candidate)) = resolved.choice else {
            continue;
        };
        for hook in candidate.hooks {
            // Two roles may be served by one hook.
            if placed.contains(hook) {
                continue;
            }
            placed.push(*hook);
            place(&mut ebpf, hook, sites, btf).map_err(|error| {
                AttachError::Refused(Refused {
                    role: resolved.role.name,
                    candidate: index,
                    why: format!(
                        "{} refused on {}: {error:#}",
                        candidate.mechanism.name(),
                        hook.symbol
                    ),
                })
            })?;
            if !programs.contains(&(resolved.role.name, hook.program)) {
                programs.push((resolved.role.name, hook.program));
            }
        }
    }
    recycling::load(&mut ebpf);
    let mut take = |name: &str| {
        ebpf.take_map(name)
            .with_context(|| format!("the object has no map {name}"))
    };
    let cgroups = Mapped::new(take("CGROUPS")?, places).context("map CGROUPS")?;
    let totals = Mapped::new(take("TOTALS")?, places * copies).context("map TOTALS")?;
    let tally = Mapped::new(take("TALLY")?, TALLIES as usize * copies).context("map TALLY")?;
    let keys = config.slab_places as usize;
    let slab_keys = Mapped::new(take("SLAB_KEYS")?, keys).context("map SLAB_KEYS")?;
    let slab_sums = Mapped::new(take("SLAB_SUMS")?, keys * copies).context("map SLAB_SUMS")?;
    let switches = Array::try_from(take("SWITCHES")?).context("map SWITCHES")?;
    let caches = KernelHashMap::try_from(take("CACHES")?).context("map CACHES")?;
    let ring = RingBuf::try_from(take("RING")?).context("map RING")?;
    let spare = RingBuf::try_from(take("SPARE")?).context("map SPARE")?;
    let by_kprobe: HashSet<u32> = programs
        .iter()
        .filter(|(role, _)| role.starts_with("counter."))
        .filter_map(|(_, name)| match ebpf.program(name) {
            Some(Program::KProbe(program)) => program.info().ok().map(|info| info.id()),
            _ => None,
        })
        .collect();
    let kprobes = if by_kprobe.is_empty() {
        stats::Kprobes::default()
    } else {
        stats::Kprobes::of(&by_kprobe)
    };
    Ok(Attached {
        ebpf,
        cgroups,
        totals,
        tally,
        slab_keys,
        slab_sums,
        switches,
        caches,
        rings: Some((ring, spare)),
        programs,
        kprobes,
        last_skipped: BTreeMap::new(),
        off: Vec::new(),
        map_bytes,
    })
}

impl Attached {
    /// The object, for aya-log and for the programs' own figures.
    pub fn ebpf(&mut self) -> &mut Ebpf {
        &mut self.ebpf
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

    /// The totals of the cgroup at a place, summed over the CPUs.
    pub fn totals(&self, place: usize) -> Totals {
        let mut sum = Totals::default();
        for one in self.totals.copies(place, self.cgroups.elements()) {
            for slot in 0..sum.charged.len() {
                sum.charged[slot] = sum.charged[slot].wrapping_add(one.charged[slot]);
                sum.uncharged[slot] = sum.uncharged[slot].wrapping_add(one.uncharged[slot]);
            }
            sum.user_charges += one.user_charges;
            sum.user_refusals += one.user_refusals;
            sum.largest = sum.largest.max(one.largest);
        }
        sum
    }

    /// The slab sums that hold anything, summed over the CPUs.
    pub fn slab(&self) -> impl Iterator<Item = (SlabKey, SlabSums)> {
        (0..self.slab_keys.elements()).filter_map(move |place| {
            let key = self.slab_keys.get(place);
            if key.taken == 0 {
                return None;
            }
            let sum = self.slab_sums(place);
            // Nothing counted yet: its key may still be on its way.
            (sum != SlabSums::default()).then_some((SlabKey { taken: 0, ..key }, sum))
        })
    }

    /// The slab sums at a place, summed over the CPUs.
    pub(super) fn slab_sums(&self, place: usize) -> SlabSums {
        let mut sum = SlabSums::default();
        for one in self.slab_sums.copies(place, self.slab_keys.elements()) {
            sum.allocated += one.allocated;
            sum.allocated_bytes += one.allocated_bytes;
            sum.freed += one.freed;
            sum.freed_bytes += one.freed_bytes;
        }
        // Objects of one size are counted alone.
        let size = u64::from(self.slab_keys.get(place).size);
        if size != 0 {
            sum.allocated_bytes = sum.allocated * size;
            sum.freed_bytes = sum.freed * size;
        }
        sum
    }

    /// One tally, summed over the CPUs.
    pub fn tally(&self, which: u32) -> u64 {
        self.tally.copies(which as usize, TALLIES as usize).sum()
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
        // They would keep the programs attached.
        self.kprobes = stats::Kprobes::default();
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

/// Puts the numbers of all places into a map of free ones.
fn fill(ebpf: &mut Ebpf, name: &'static str, places: u32) -> Result<Stack<MapData, u32>> {
    let map = ebpf
        .take_map(name)
        .with_context(|| format!("the object has no map {name}"))?;
    let mut free = Stack::<_, u32>::try_from(map).context(name)?;
    for place in (0..places).rev() {
        free.push(place, 0).context(name)?;
    }
    Ok(free)
}

fn place(ebpf: &mut Ebpf, hook: &Hook, sites: &AllSites, btf: Option<&Btf>) -> Result<()> {
    let program = ebpf
        .program_mut(hook.program)
        .with_context(|| format!("the object has no program {}", hook.program))?;
    let loaded = program.fd().is_ok();
    let refused = |error: aya::programs::ProgramError| anyhow!(refusal(&error));
    match hook.place {
        Place::Kprobe | Place::Kretprobe => {
            let program: &mut KProbe = program.try_into()?;
            if !loaded {
                program.load().map_err(refused)?;
            }
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
            if !loaded {
                program.load().map_err(refused)?;
            }
            for offset in offsets {
                program.attach(hook.symbol, offset).map_err(refused)?;
            }
        }
        Place::Fentry => {
            let program: &mut FEntry = program.try_into()?;
            program
                .load(hook.symbol, btf.context("no type information")?)
                .map_err(refused)?;
            program.attach().map_err(refused)?;
        }
        Place::Fexit => {
            let program: &mut FExit = program.try_into()?;
            program
                .load(hook.symbol, btf.context("no type information")?)
                .map_err(refused)?;
            program.attach().map_err(refused)?;
        }
        Place::RawTracepoint => {
            let program: &mut RawTracePoint = program.try_into()?;
            if !loaded {
                program.load().map_err(refused)?;
            }
            program.attach(hook.symbol).map_err(refused)?;
        }
        Place::BtfTracepoint(_) => {
            let program: &mut BtfTracePoint = program.try_into()?;
            program
                .load(hook.symbol, btf.context("no type information")?)
                .map_err(refused)?;
            program.attach().map_err(refused)?;
        }
        Place::Tracepoint(category) => {
            let program: &mut TracePoint = program.try_into()?;
            if !loaded {
                program.load().map_err(refused)?;
            }
            program.attach(category, hook.symbol).map_err(refused)?;
        }
    }
    Ok(())
}

/// What the kernel said, in one line; the verifier's log, where there is one, by its last words.
fn refusal(error: &aya::programs::ProgramError) -> String {
    if let aya::programs::ProgramError::LoadError {
        io_error,
        verifier_log,
    } = error
    {
        log::debug!("verifier: {verifier_log}");
        let text = verifier_log.to_string();
        let last = text
            .lines()
            .rev()
            .find(|line| !line.is_empty() && !line.starts_with("processed"));
        return match last {
            Some(line) => format!("{io_error} ({line})"),
            None => io_error.to_string(),
        };
    }
    cause(error)
}
