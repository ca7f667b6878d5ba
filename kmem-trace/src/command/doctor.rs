//! `kmem-trace doctor`: what this kernel allows. Gathers the facts, tries the plan, prints the page.

use std::{
    collections::HashMap,
    io,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use super::{
    cli::{DoctorArgs, Format},
    output,
    session::{Request, attaching},
    trace::struck,
};
use crate::{
    diagnosis::{
        accounting::{self, Accounting},
        answers::{self, Means},
        page::{Lack, Page, Rights, System},
        problems::{self, Evidence, NoCgroups},
    },
    hooks::{
        allowed::Allowed,
        attach::{SMALLEST_RING, Sizes},
        features::FEATURES,
        inspect::Inspection,
        loader,
        plan::{Plan, Struck},
        table::ROLES,
    },
    kernel::{
        cgroupfs::{Hierarchy, MemoryMount, MountError},
        proc::{
            self, cpus,
            system::{self, Cmdline},
        },
        security::{self, KprobeEvidence, Privileges},
        symbols::{self, Symbols},
    },
    view::{
        doctor,
        json::{self, Line, PlanLine},
    },
};

/// Prints what was found. Needs no root, but without it most answers are "missing".
///
/// # Errors
/// Where the output does not take it, or `--strike` names no candidate.
pub fn main(args: &DoctorArgs) -> Result<()> {
    let strike = struck(&args.strike)?;
    loader::begin(args.btf.as_deref());
    attaching::raise_memlock();
    let inspection = Inspection::read(args.btf.as_deref(), &args.forbid);
    let mount = MemoryMount::find();
    let (plan, tried) = tried(&inspection, mount.as_ref().ok(), args, strike);
    let page = examine(&inspection, &mount, &plan, tried, args.btf.is_some());
    print(&page, args.format).context("cannot write the output")
}

fn print(page: &Page, format: Format) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if format == Format::Json {
        json::write(
            &mut out,
            &Line::Plan(PlanLine {
                kernel: &page.system.kernel,
                hierarchy: page.system.hierarchy.as_deref().unwrap_or("v2"),
                lockdown: &page.system.lockdown,
                mode: page.mode,
                nokmem: page
                    .system
                    .boot_options
                    .as_ref()
                    .is_ok_and(|options| options.contains("cgroup.memory=nokmem")),
                roles: &page.roles,
            }),
        )?;
        json::write(&mut out, &Line::Doctor(page))?;
        return Ok(());
    }
    doctor::page(&mut out, page, output::columns().unwrap_or(doctor::WIDTH))
}

/// The plan as it comes out when it is really attached, for a moment and to nobody's cgroup; where
/// nothing may be attached, the plan as it looks from here, and why.
fn tried(
    inspection: &Inspection,
    mount: Option<&MemoryMount>,
    args: &DoctorArgs,
    strike: Struck,
) -> (Plan, Result<(), String>) {
    let hierarchy = mount.map_or(Hierarchy::V2, |mount| mount.hierarchy);
    let planned = || inspection.plan(hierarchy, args.attach, &strike, &HashMap::new());
    let Some(mount) = mount else {
        return (planned(), Err("there are no memory cgroups".to_owned()));
    };
    if let Err(why) = &inspection.allowed.bpf {
        return (planned(), Err(why.clone()));
    }
    let request = Request {
        targets: Vec::new(),
        mount: mount.clone(),
        attach: args.attach,
        btf: args.btf.clone(),
        roles: ROLES.iter().map(|role| role.name.to_owned()).collect(),
        slab: true,
        sizes: Sizes {
            ring_bytes: SMALLEST_RING,
            rings: 1,
            cgroups: 1,
            objects: 1,
            rows: 1,
        },
        depth: 0,
        log_level: 0,
        bpf_stats: false,
        may_step_down: false,
        settle: std::time::Duration::ZERO,
        strike: strike.clone(),
        forbidden: args.forbid.clone(),
    };
    match attaching::attach_best(inspection, &request) {
        Ok((plan, _)) => (plan, Ok(())),
        Err(error) => (planned(), Err(format!("{error:#}"))),
    }
}

fn examine(
    inspection: &Inspection,
    mount: &Result<MemoryMount, MountError>,
    plan: &Plan,
    tried: Result<(), String>,
    btf_given: bool,
) -> Page {
    let cmdline = Cmdline::read().map_err(|error| error.to_string());
    let hierarchy = mount.as_ref().ok().map(|mount| mount.hierarchy);
    let mut rights = rights();
    // Where maps are charged to memory cgroups, not to RLIMIT_MEMLOCK, nothing is to be lifted.
    if inspection
        .btf
        .as_ref()
        .is_ok_and(|btf| btf.has_struct("bpf_map") && !btf.has_member("bpf_map", "memory"))
    {
        rights
            .missing
            .retain(|lack| lack.capability != "CAP_SYS_RESOURCE");
    }
    let cpus = cpus::online().map_or(1, |cpus| cpus.len() as u32);
    let symbols = symbols::kallsyms(&accounting::SYMBOLS).unwrap_or_default();
    let btf = inspection.btf.as_ref().map_err(Clone::clone);
    let accounting = Accounting::of(&accounting::Sources {
        btf: inspection.btf.as_ref().map_err(String::as_str),
        symbols: &symbols,
        hierarchy,
        cpus,
        page_bytes: proc::own::page_bytes(),
    });
    let roles = plan.rows();
    let allowed = &inspection.allowed;
    let answers = answers::derive(&Means {
        roles: &roles,
        accounting: &accounting,
        hierarchy,
        reads_refused: allowed.reads.as_ref().err().map(String::as_str),
        nokmem: cmdline.as_ref().is_ok_and(|cmdline| cmdline.nokmem),
        unseen_slab: plan.unseen_slab(|symbol| inspection.has_function(symbol)),
    });
    let events = inspection
        .tracefs
        .as_ref()
        .is_ok_and(|tracefs| std::fs::read_dir(tracefs.root.join("events")).is_ok());
    let problems = problems::find(&Evidence {
        euid: rights.euid,
        held: rights.held.clone().unwrap_or_default(),
        missing: rights.missing.clone(),
        perf_restricted: security::perf_event_paranoid()
            .ok()
            .filter(|value| *value >= 3 && !rights.sys_admin),
        bpf: allowed.bpf.clone(),
        reads: allowed.reads.clone(),
        lockdown: inspection.lockdown,
        cgroups: no_cgroups(mount),
        memory_not_delegated: mount.as_ref().ok().and_then(not_delegated),
        cmdline: cmdline.clone().unwrap_or_default(),
        tracefs_mounted: inspection.tracefs.is_ok(),
        tracefs_readable: events,
        btf: btf.as_ref().map(|_| ()).map_err(Clone::clone),
        btf_given,
        addresses_hidden: inspection.symbols.addresses_hidden,
        kptr_restrict: security::kptr_restrict().ok(),
        kprobes: KprobeEvidence::gather(inspection.tracefs.as_ref().ok()).verdict(),
        exact: plan.exact,
    });
    Page {
        version: env!("CARGO_PKG_VERSION"),
        system: System {
            kernel: proc::release(),
            machine: nix::sys::utsname::uname().map_or_else(
                |_| std::env::consts::ARCH.to_owned(),
                |names| names.machine().to_string_lossy().into_owned(),
            ),
            cpus_online: cpus,
            distribution: system::distribution(),
            hierarchy: hierarchy.map(|hierarchy| hierarchy.to_string()),
            memory_cgroups: match mount {
                Ok(mount) => Ok(shown(&mount.mount_point)),
                Err(error) => Err(error.to_string()),
            },
            lockdown: inspection.lockdown.to_string(),
            boot_options: cmdline.map(|cmdline| boot_options(&cmdline)),
            btf: btf.map(|_| shown(&inspection.btf_path)),
            tracefs: match &inspection.tracefs {
                Ok(tracefs) if events => Ok(shown(&tracefs.root)),
                Ok(tracefs) => Err(format!(
                    "mounted at {}, but its events cannot be listed",
                    tracefs.root.display()
                )),
                Err(why) => Err(why.clone()),
            },
            kernel_addresses: addresses(&inspection.symbols),
        },
        rights,
        allowed: verdicts(allowed),
        accounting,
        mode: plan.mode().name(),
        tried,
        answers,
        roles,
        problems,
    }
}

/// What may be done, and what of it this kernel lacks.
fn verdicts(allowed: &Allowed) -> Vec<(&'static str, Result<(), String>)> {
    let mut rows = vec![
        ("BPF", allowed.bpf.clone()),
        ("kernel reads", allowed.reads.clone()),
        ("kprobe", allowed.kprobe.clone()),
        ("fentry", allowed.fentry.clone()),
        ("raw tracepoint", allowed.raw_tracepoint.clone()),
        ("BTF tracepoint", allowed.btf_tracepoint.clone()),
        ("tracepoint", allowed.tracepoint.clone()),
    ];
    for feature in FEATURES {
        if allowed.lacking.lacks(feature) {
            rows.push((feature.name(), Err(feature.instead().to_owned())));
        }
    }
    rows
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

fn rights() -> Rights {
    match Privileges::read() {
        Ok(privileges) => Rights {
            euid: privileges.euid,
            sys_admin: privileges.sys_admin,
            held: Some(privileges.held),
            missing: privileges
                .missing
                .into_iter()
                .map(|(capability, purpose)| Lack {
                    capability,
                    purpose,
                })
                .collect(),
        },
        Err(error) => {
            log::debug!("capabilities: {error}");
            Rights {
                euid: nix::unistd::geteuid().as_raw(),
                sys_admin: false,
                held: None,
                missing: Vec::new(),
            }
        }
    }
}

fn no_cgroups(mount: &Result<MemoryMount, MountError>) -> Result<(), NoCgroups> {
    match mount {
        Ok(_) => Ok(()),
        Err(MountError::Disabled) => Err(NoCgroups::Disabled),
        Err(MountError::NotBuilt) => Err(NoCgroups::NotBuilt),
        Err(MountError::NotMounted) => Err(NoCgroups::NotMounted),
        Err(MountError::File(error)) => Err(NoCgroups::Other(error.to_string())),
    }
}

/// The switch of the top cgroup, where it leaves the memory controller off for those below.
fn not_delegated(mount: &MemoryMount) -> Option<String> {
    if mount.hierarchy == Hierarchy::V1 {
        return None;
    }
    let switch: PathBuf = mount.mount_point.join("cgroup.subtree_control");
    let on = std::fs::read_to_string(&switch).ok()?;
    let memory = on.split_whitespace().any(|name| name == "memory");
    (!memory).then(|| shown(&switch))
}

fn boot_options(cmdline: &Cmdline) -> String {
    let mut options = Vec::new();
    for (set, option) in [
        (cmdline.nokmem, "cgroup.memory=nokmem"),
        (cmdline.nosocket, "cgroup.memory=nosocket"),
        (cmdline.nobpf, "cgroup.memory=nobpf"),
        (cmdline.nomerge, "slab_nomerge"),
    ] {
        if set {
            options.push(option.to_owned());
        }
    }
    let disabled = cmdline.disabled.iter();
    options.extend(disabled.map(|name| format!("cgroup_disable={name}")));
    if options.is_empty() {
        return "none that changes memory accounting".to_owned();
    }
    options.join(" ")
}

fn addresses(symbols: &Symbols) -> Result<String, String> {
    if symbols.addresses_hidden {
        return Err(
            "/proc/kallsyms shows zeroes (needs CAP_SYSLOG, kernel.kptr_restrict ≤ 1)".to_owned(),
        );
    }
    if symbols.found.is_empty() {
        return Err("/proc/kallsyms has none of the symbols looked for".to_owned());
    }
    Ok("shown in /proc/kallsyms".to_owned())
}
