//! The best plan that the kernel takes.

use std::{
    collections::HashMap,
    path::Path,
    thread::{self, JoinHandle},
};

use anyhow::{Result, anyhow, bail};
use aya::{Btf, EbpfLoader};
use kmem_trace_ebpf::config::{Config, ROOTS, Root};

use super::Request;
use crate::hooks::{
    allowed::cause,
    attach::{AttachError, Attached, Wanted, attach},
    inspect::Inspection,
    plan::Plan,
    table::{Hook, Place, ROLES},
    verify,
};

/// aya's own readings of type information. It makes two, one of them unasked
/// (`EbpfLoader::new`), and each takes as long as all else that is read from the kernel.
pub struct Loading {
    loader: EbpfLoader<'static>,
    btf: Option<Btf>,
}

impl Loading {
    /// Reads it beside whatever the caller does meanwhile.
    pub fn begin(file: Option<&Path>) -> JoinHandle<Result<Self>> {
        let file = file.map(Path::to_owned);
        thread::spawn(move || {
            let btf = match &file {
                Some(file) => Some(Btf::parse_file(file, aya::Endianness::default()).map_err(
                    |error| {
                        anyhow!(
                            "{}: not usable as type information: {}",
                            file.display(),
                            cause(&error)
                        )
                    },
                )?),
                None => Btf::from_sys_fs().ok(),
            };
            Ok(Self {
                loader: EbpfLoader::new(),
                btf,
            })
        })
    }
}

/// What the thread came to.
///
/// # Errors
/// The thread's own.
pub fn joined<T>(thread: JoinHandle<Result<T>>) -> Result<T> {
    thread
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Attaches the best plan that the kernel takes: candidates that it refuses are struck out, with
/// its words as the reason, and the next ones tried.
pub fn attach_best(
    inspection: &Inspection,
    request: &Request,
    loading: Loading,
) -> Result<(Plan, Attached)> {
    let Loading { loader, btf } = loading;
    let mut loader: EbpfLoader<'_> = loader;
    if request.btf.is_some() {
        loader.btf(btf.as_ref());
    }
    let wanted = Wanted {
        sites: &inspection.sites,
        requested: &request.roles,
        sizes: request.sizes,
        btf: btf.as_ref(),
        log_level: &request.log_level,
    };
    let mut struck = request.strike.clone();
    let mut struck_why = HashMap::new();
    loop {
        let mut plan = inspection.plan(
            request.mount.hierarchy,
            request.attach,
            &struck,
            &struck_why,
        );
        plan.slab = request.slab && plan.attribution.is_ok();
        let mut config = constants(&plan, request)?;
        // Whoever charges late, a program sees it or the free tells.
        let late_seen = plan
            .role("slab.charge")
            .is_some_and(|role| role.choice.is_some());
        config.late_charges_unseen =
            u32::from(!late_seen && inspection.symbols.has_function("kmem_cache_charge"));
        match attach(&mut loader, &plan, &config, &wanted) {
            Ok(attached) => return Ok((plan, attached)),
            Err(AttachError::Refused(all)) => {
                let before = struck.len();
                for refused in &all {
                    log::info!("{}: {}", refused.role, refused.why);
                    let same = refused.closed.into_iter().flat_map(on_trampoline_of);
                    for key in same.chain([(refused.role, refused.candidate)]) {
                        if struck.insert(key) {
                            struck_why.insert(key, refused.why.clone());
                        }
                    }
                }
                if struck.len() == before {
                    let why: Vec<_> = all
                        .iter()
                        .map(|refused| format!("{}: {}", refused.role, refused.why))
                        .collect();
                    bail!("{}", why.join("; "));
                }
            }
            Err(AttachError::Other(error)) => return Err(error),
        }
    }
}

/// The candidates that need a function's trampoline.
fn on_trampoline_of(symbol: &'static str) -> impl Iterator<Item = (&'static str, usize)> {
    ROLES.iter().flat_map(move |role| {
        let on_it = move |hook: &Hook| {
            hook.symbol == symbol && matches!(hook.place, Place::Fentry | Place::Fexit)
        };
        role.candidates
            .iter()
            .enumerate()
            .filter(move |(_, candidate)| candidate.hooks.iter().any(on_it))
            .map(move |(index, _)| (role.name, index))
    })
}

/// # Errors
/// Where the plan has nothing that a ledger could go by: one line that says why not.
pub(super) fn require_ledger(plan: &Plan) -> Result<()> {
    if plan.has_ledger() {
        return Ok(());
    }
    let why = |role| {
        plan.role(role)
            .map(|found| found.why.clone())
            .unwrap_or_default()
    };
    bail!(
        "no ledger on this kernel: {}; {}; `kmem-trace doctor` shows the whole plan",
        why("counter.charge"),
        why("memcg.state")
    );
}

/// The plan's constants with this run's roots and switches.
fn constants(plan: &Plan, request: &Request) -> Result<Config> {
    let mut config = plan.config;
    if request.targets.len() > ROOTS {
        bail!(
            "{} cgroups to trace, at most {ROOTS} at a time: trace a common parent, or start a second kmem-trace",
            request.targets.len()
        );
    }
    for (place, target) in config.roots.iter_mut().zip(&request.targets) {
        *place = Root {
            id: target.id,
            level: target.level,
            reserved: 0,
        };
    }
    config.roots_len = request.targets.len() as u32;
    let wanted = |role: &str| u32::from(request.roles.contains(role));
    if let Some(number) = request.mount.number() {
        config.hierarchy_id = number;
    }
    config.stream_counters = 1;
    config.stream_user_charges = wanted("charge.user");
    config.stream_state = wanted("memcg.state");
    config.stream_slab =
        u32::from(request.roles.contains("slab.alloc") || request.roles.contains("slab.free"));
    config.stream_limits = 1;
    config.own_cgroup = verify::own_cgroup(&request.mount);
    config.attribute_slab = u32::from(plan.slab);
    config.wake_bytes = request.sizes.ring_bytes / 4;
    Ok(config)
}

/// Before 5.11 maps are charged to RLIMIT_MEMLOCK. Where it cannot be raised, the kernel's refusal
/// of a map says so later.
pub fn raise_memlock() {
    use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
    if let Err(error) = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY) {
        log::debug!("RLIMIT_MEMLOCK cannot be raised: {error}");
    }
}
