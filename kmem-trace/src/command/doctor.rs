//! `kmem-trace doctor`: what this kernel allows.

use std::{
    collections::HashMap,
    io::{self, Write},
};

use anyhow::Result;

use super::{
    cli::{DoctorArgs, Format},
    session::{Request, attaching},
    trace::struck,
};
use crate::{
    hooks::{attach::Sizes, inspect::Inspection, plan::Plan, table::ROLES},
    kernel::{
        cgroupfs::{Hierarchy, MemoryMount},
        proc,
    },
    view::{
        json::{self, Line, PlanLine},
        table,
    },
};

/// Prints the resolved plan. Needs no root, but without it most answers are "not allowed".
///
/// # Errors
/// Where the output does not take it.
pub fn main(args: &DoctorArgs) -> Result<()> {
    let inspection = Inspection::read(args.btf.as_deref());
    let mount = MemoryMount::find();
    let hierarchy = mount
        .as_ref()
        .map_or(Hierarchy::V2, |mount| mount.hierarchy);
    let plan = tried(&inspection, mount.as_ref().ok(), args)?;
    let rows = plan.rows();
    let kernel = proc::release();
    let version = match hierarchy {
        Hierarchy::V1 => "v1",
        Hierarchy::V2 => "v2",
    };
    let lockdown = inspection.lockdown.to_string();
    let mode = match (plan.exact, plan.has_ledger()) {
        (true, _) => "exact",
        (false, true) => "bounded",
        (false, false) => "missing",
    };
    let mut out = io::stdout().lock();
    if args.format == Format::Json {
        json::write(
            &mut out,
            &Line::Plan(PlanLine {
                kernel: &kernel,
                hierarchy: version,
                lockdown: &lockdown,
                mode,
                roles: &rows,
            }),
        )?;
        return Ok(());
    }
    writeln!(out, "kernel          Linux {kernel}")?;
    match &mount {
        Ok(mount) => writeln!(
            out,
            "memory cgroups  {version} at {}",
            mount.mount_point.display()
        )?,
        Err(error) => writeln!(out, "memory cgroups  none: {error}")?,
    }
    writeln!(out, "lockdown        {lockdown}")?;
    let verdict = |verdict: &Result<(), String>| match verdict {
        Ok(()) => "yes".to_owned(),
        Err(why) => format!("no: {why}"),
    };
    writeln!(
        out,
        "type info       {}",
        match &inspection.btf {
            Ok(_) => format!("{}", inspection.btf_path.display()),
            Err(why) => format!("none: {why}"),
        }
    )?;
    writeln!(
        out,
        "tracefs         {}",
        match &inspection.tracefs {
            Ok(tracefs) => format!("{}", tracefs.root.display()),
            Err(why) => format!("none: {why}"),
        }
    )?;
    let allowed = &inspection.allowed;
    writeln!(out, "BPF             {}", verdict(&allowed.bpf))?;
    writeln!(out, "kernel reads    {}", verdict(&allowed.reads))?;
    writeln!(out, "kprobes         {}", verdict(&allowed.kprobe))?;
    writeln!(out, "fentry          {}", verdict(&allowed.fentry))?;
    writeln!(out, "tracepoints     {}", verdict(&allowed.tracepoint))?;
    writeln!(out, "ledger          {mode}\n")?;
    table::plan(&mut out, &rows)?;
    Ok(())
}

/// The plan as it comes out when it is really attached, for a moment and to nobody's cgroup; where
/// nothing may be attached, the plan as it looks from here.
fn tried(inspection: &Inspection, mount: Option<&MemoryMount>, args: &DoctorArgs) -> Result<Plan> {
    let strike = struck(&args.strike)?;
    let hierarchy = mount.map_or(Hierarchy::V2, |mount| mount.hierarchy);
    let Some(mount) = mount.filter(|_| inspection.allowed.bpf.is_ok()) else {
        return Ok(inspection.plan(hierarchy, args.attach, &strike, &HashMap::new()));
    };
    let request = Request {
        targets: Vec::new(),
        mount: mount.clone(),
        attach: args.attach,
        btf: args.btf.clone(),
        roles: ROLES.iter().map(|role| role.name.to_owned()).collect(),
        slab: true,
        sizes: Sizes {
            ring_bytes: 4096,
            cgroups: 1,
            objects: 1,
        },
        depth: 0,
        log_level: 0,
        strike,
    };
    attaching::raise_memlock();
    let (plan, _) = attaching::attach_best(inspection, &request)?;
    Ok(plan)
}
