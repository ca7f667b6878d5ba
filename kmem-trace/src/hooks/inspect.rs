//! Everything a plan depends on, read from the running kernel once.

use std::{
    collections::{BTreeSet, HashMap},
    path::{Path, PathBuf},
    thread,
};

use super::{
    allowed::Allowed,
    beside::beside,
    features::Feature,
    layout::Sources,
    memcg_stat,
    plan::{AttachMode, Facts, Plan, Struck, resolve, symbols_wanted, tracepoints_wanted},
    site::{self, AllSites},
    verify,
};
use crate::kernel::{
    btf::KernelBtf,
    cgroupfs::{Hierarchy, MemoryMount},
    file,
    security::{self, Lockdown},
    symbols::{self, Symbols},
    tracefs::{Format, Tracefs},
};

/// Where the running kernel keeps its type information.
pub const KERNEL_BTF: &str = "/sys/kernel/btf/vmlinux";

/// The memory controller, by which page counters of memory cgroups are known.
const SUBSYSTEM: &str = "memory_cgrp_subsys";

/// The running kernel, as far as hooks depend on it.
pub struct Inspection {
    pub btf: Result<KernelBtf, String>,
    pub btf_path: PathBuf,
    pub symbols: Symbols,
    /// The list that these are from, until somebody takes it who wants more of it.
    pub kallsyms: Option<Vec<u8>>,
    pub sites: AllSites,
    pub traceable: Option<BTreeSet<String>>,
    pub formats: HashMap<(&'static str, &'static str), Format>,
    pub tracefs: Result<Tracefs, String>,
    pub lockdown: Lockdown,
    pub allowed: Allowed,
}

impl Inspection {
    /// Reads it all, of a kernel that is taken to have nothing that is `forbidden`. What cannot be
    /// read becomes a reason in the plan, not an error.
    pub fn read(btf_file: Option<&Path>, forbidden: &[Feature]) -> Self {
        let wanted = symbols_wanted();
        let names: Vec<&str> = wanted.iter().map(String::as_str).collect();
        let btf_path = btf_file.unwrap_or(Path::new(KERNEL_BTF)).to_owned();
        let lockdown = security::lockdown();
        // Each takes the kernel as long to write as us to read, the symbols longest.
        let read_symbols = || symbols_and_list(&names);
        let read_events = || events_and_traceable(&names);
        let (btf, events, allowed, (mut symbols, kallsyms)) = thread::scope(|scope| {
            let symbols = beside(scope, &read_symbols);
            let events = beside(scope, &read_events);
            let btf = read_types(btf_file, &btf_path);
            let events = events();
            let tracefs = events.0.as_ref().map(|_| ()).map_err(String::clone);
            let allowed = Allowed::probe(lockdown, btf.as_ref().ok(), tracefs, forbidden);
            (btf, events, allowed, symbols())
        });
        let (tracefs, formats, traceable) = events;
        let sites = if allowed.kprobe.is_ok() {
            site::find_all(&symbols)
        } else {
            AllSites::new()
        };
        if let Ok(btf) = &btf {
            learn_subsystem(btf, &mut symbols, &allowed);
        }
        Self {
            btf,
            btf_path,
            symbols,
            kallsyms: Some(kallsyms),
            sites,
            traceable,
            formats,
            tracefs,
            lockdown,
            allowed,
        }
    }

    /// Whether the kernel has such a function, as its types tell.
    pub fn has_function(&self, name: &str) -> bool {
        self.btf.as_ref().is_ok_and(|btf| btf.has_function(name))
    }

    /// The plan for this kernel.
    pub fn plan(
        &self,
        hierarchy: Hierarchy,
        attach: AttachMode,
        struck: &Struck,
        struck_why: &HashMap<(&'static str, usize), String>,
    ) -> Plan {
        let sources = Sources {
            btf: self.btf.as_ref().map_err(String::as_str),
            symbols: &self.symbols,
            formats: &self.formats,
            hierarchy,
        };
        resolve(&Facts {
            sources,
            allowed: &self.allowed,
            sites: &self.sites,
            traceable: self.traceable.as_ref(),
            attach,
            struck,
            struck_why,
        })
    }
}

fn read_types(btf_file: Option<&Path>, btf_path: &Path) -> Result<KernelBtf, String> {
    let btf = KernelBtf::load(btf_path).map_err(|error| {
        if btf_file.is_none() && !btf_path.exists() {
            "this kernel has no type information (no /sys/kernel/btf/vmlinux): pass a BTF file of this very kernel with --btf".to_owned()
        } else {
            error.to_string()
        }
    })?;
    // Only a file can be of another kernel; there is no second look at the kernel's own.
    if btf_file.is_some()
        && let Ok(own) = KernelBtf::load(Path::new(KERNEL_BTF))
    {
        verify::same_kernel(&btf, &own)?;
    }
    Ok(btf)
}

type Events = (
    Result<Tracefs, String>,
    HashMap<(&'static str, &'static str), Format>,
    Option<BTreeSet<String>>,
);

/// The formats of the events that a plan may want, and which functions can be traced.
fn events_and_traceable(names: &[&str]) -> Events {
    let tracefs = Tracefs::find()
        .or_else(|_| Tracefs::mount())
        .map_err(|error| error.to_string());
    let mut formats = HashMap::new();
    let mut traceable = None;
    if let Ok(tracefs) = &tracefs {
        for (category, name) in tracepoints_wanted() {
            match tracefs.event_format(category, name) {
                Ok(format) => {
                    formats.insert((category, name), format);
                }
                Err(error) => log::debug!("{error}"),
            }
        }
        traceable = symbols::traceable(&tracefs.root, names).ok();
    }
    (tracefs, formats, traceable)
}

/// The list takes the kernel longer to write than us to read: it is asked for it once.
fn symbols_and_list(names: &[&str]) -> (Symbols, Vec<u8>) {
    let path = Path::new(symbols::KALLSYMS);
    let bytes = match file::read(path) {
        Ok(bytes) => bytes,
        Err(error) => {
            log::debug!("{error}");
            return Default::default();
        }
    };
    let found = symbols::parse_kallsyms(&bytes, names).unwrap_or_else(|error| {
        log::debug!("{}", error.of(path));
        Symbols::default()
    });
    (found, bytes)
}

/// Where the symbol list does not show what tells memory cgroups from all else, a memory cgroup
/// does.
fn learn_subsystem(btf: &KernelBtf, symbols: &mut Symbols, allowed: &Allowed) {
    let asks = allowed.reads.is_ok() && memcg_stat::runs_on_request(&allowed.lacking);
    if symbols.address(SUBSYSTEM).is_some() || !asks {
        return;
    }
    let Ok(mount) = MemoryMount::find() else {
        return;
    };
    match memcg_stat::subsystem::address(btf, &mount) {
        Ok(address) => symbols.learn(SUBSYSTEM, address),
        Err(why) => log::debug!("{SUBSYSTEM}: {why}"),
    }
}
