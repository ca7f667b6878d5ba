//! `kmem-trace doctor`: what this kernel allows.

use std::{
    collections::HashMap,
    io::{self, Write},
};

use anyhow::Result;

use super::{
    cli::{DoctorArgs, Format},
    trace::struck,
};
use crate::{
    hooks::inspect::Inspection,
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
    let plan = inspection.plan(
        hierarchy,
        args.attach,
        &struck(&args.strike)?,
        &HashMap::new(),
    );
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
            Ok(path) => format!("{}", path.display()),
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
