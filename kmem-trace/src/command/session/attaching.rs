//! The best plan that the kernel takes.

use std::{collections::HashMap, sync::Arc};

use anyhow::{Result, bail};
use aya::Btf;
use kmem_trace_ebpf::{
    config::{Config, ROOTS, Root},
    pairs::ProgramMembers,
};

use super::Request;
use crate::hooks::{
    attach::{AttachError, Attached, Refused, Wanted, attach},
    cast,
    inspect::Inspection,
    loader, pairs,
    plan::Plan,
    table::{Hook, ROLES},
    verify,
};

/// Attaches the best plan that the kernel takes: candidates that it refuses are struck out, with
/// its words as the reason, and the next ones tried.
pub fn attach_best(inspection: &Inspection, request: &Request) -> Result<(Plan, Attached)> {
    let btf = loader::types(request.btf.as_deref())?;
    if request.btf.is_some() {
        // The loader refers to it for as long as the process lives.
        let btf: &'static Option<Arc<Btf>> = Box::leak(Box::new(btf.clone()));
        loader::with(|loader| {
            loader.btf(btf.as_deref());
        });
    }
    let wanted = Wanted {
        lacking: &inspection.allowed.lacking,
        sites: &inspection.sites,
        requested: &request.roles,
        sizes: request.sizes,
        btf: btf.as_deref(),
        log_level: request.log_level,
    };
    let cast = inspection.btf.as_ref().ok().and_then(cast::find);
    let program_members = inspection
        .btf
        .as_ref()
        .ok()
        .and_then(|btf| pairs::members(btf).ok())
        .unwrap_or(ProgramMembers::UNSET);
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
        plan.cast = cast;
        plan.program_members = program_members;
        let mut config = constants(&plan, request)?;
        // Whoever charges late, a program sees it or the free tells.
        let late_seen = plan
            .role("slab.charge")
            .is_some_and(|role| role.choice.is_some());
        config.late_charges_unseen =
            u32::from(!late_seen && inspection.symbols.has_function("kmem_cache_charge"));
        match attach(&plan, &config, &wanted) {
            Ok(attached) => return Ok((plan, attached)),
            Err(AttachError::Refused(all)) => {
                let before = struck.len();
                for refused in &all {
                    log::info!("{}: {}", refused.role, refused.why);
                    let same = same_fate(refused);
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

/// The candidates that a refusal is true of as well, and need not be tried.
fn same_fate(refused: &Refused) -> impl Iterator<Item = (&'static str, usize)> {
    let symbol = refused.hook.symbol;
    let closed = refused.closed;
    ROLES.iter().flat_map(move |role| {
        let too = move |hook: &Hook| closed && hook.is_on_function() && hook.symbol == symbol;
        role.candidates
            .iter()
            .enumerate()
            .filter(move |(_, candidate)| candidate.hooks.iter().any(too))
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
    config.may_switch = u32::from(request.may_step_down);
    config.attribute_slab = u32::from(plan.slab);
    config.wake_bytes = request.sizes.each_ring() / 4;
    config.rings_mask = request.sizes.rings - 1;
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
