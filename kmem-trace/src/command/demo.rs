//! `kmem-trace demo`: the experiment that started it all, in one command: groups of TCP
//! connections in child cgroups, traced, and where each byte of it is.

use std::{
    io::{self, IsTerminal as _, Write},
    time::Duration,
};

use anyhow::{Context as _, Result};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};

use super::{
    cli::{DemoArgs, Format},
    made::Made,
    output,
    trace::{MAX_OBJECTS, Outcome, Trace},
};
use crate::{
    kernel::{
        cgroupfs::{self, CgroupDir, MemoryMount},
        proc,
    },
    reconcile::slab::Reading,
    view::size::{human, signed},
    workload::{self, Running, Workload},
};

/// How often progress and settling are looked at.
const LOOK: Duration = Duration::from_millis(200);
/// Settled: so many looks in a row at which the figures moved less than one part in a thousand.
const QUIET_LOOKS: u32 = 5;
/// Longest wait for that; what moves after it is the bound's business.
const SETTLE: Duration = Duration::from_secs(20);
/// Longest wait for the load to stand, beyond what it takes per connection.
const PATIENCE: Duration = Duration::from_secs(60);

/// Slab objects that nobody pays for, of one connection with both its ends: the server's socket,
/// what security modules keep of two files and two inodes, and what is on its way.
const OWNERLESS_PER_CONNECTION: u64 = 8;

/// The node's and the cgroup's figures at one moment, in bytes.
#[derive(Clone, Copy, Debug, Default, Serialize)]
struct Figures {
    node_anon: u64,
    node_slab: u64,
    usage: u64,
    anon: Option<u64>,
    kmem: Option<u64>,
}

/// What it comes to.
struct End {
    before: Figures,
    after: Figures,
    /// Slab that the demo made and nobody is charged for, where that was traced.
    not_charged: Option<(i64, Reading)>,
}

/// The line that `--format json` ends with.
#[derive(Serialize)]
struct DemoLine {
    #[serde(rename = "type")]
    kind: &'static str,
    groups: u32,
    connections: u64,
    before: Figures,
    after: Figures,
    slab_grown_bytes: i64,
    kmem_grown_bytes: Option<i64>,
    slab_not_in_usage_bytes: Option<i64>,
    /// Of these: made by the demo and charged to nobody; `None` where slab was not attributed.
    not_charged_bytes: Option<i64>,
    /// How that is to be read, after losses.
    not_charged_are: Option<Reading>,
}

/// `kmem-trace demo`.
///
/// # Errors
/// Where limits do not allow the load (with the arithmetic), or it breaks under way.
pub async fn main(mut args: DemoArgs) -> Result<Outcome> {
    let mount = MemoryMount::find()?;
    let cgroup = Made::new(&mount, &args.cgroup)?;
    let target = cgroupfs::find(&mount, &args.cgroup)?;
    let plan = workload::Plan {
        groups: args.groups,
        connections: args.connections,
        anon_bytes: 0,
        file_bytes: 0,
        parent: cgroup.dir.clone(),
        hierarchy: workload::Hierarchy::of(&cgroup.dir)?,
        file_dir: std::env::temp_dir(),
    };
    // Refuse before anything is attached.
    plan.check()?;
    if args.common.max_objects.is_none() {
        let wanted = (plan.connections * u64::from(plan.groups))
            .saturating_mul(OWNERLESS_PER_CONNECTION)
            .clamp(u64::from(MAX_OBJECTS), u64::from(1u32 << 24));
        args.common.max_objects = u32::try_from(wanted).ok();
    }
    let before = figures(&mount, &target)?;
    let outcome = if args.no_trace {
        untraced(&args, &plan, &mount, &target, before).await?
    } else {
        let mut trace = Trace::start(&mount, vec![target.clone()], &args.common).await?;
        trace.quiet();
        let workload = Workload::new(plan.clone());
        let mut running = workload.start()?;
        let mut load = Ok(());
        let outcome = trace
            .follow(async {
                load = stand(&mut running, &args, &mount, &target).await;
            })
            .await?;
        load?;
        let after = figures(&mount, &target)?;
        let not_charged = trace.last_slab().map(|slab| {
            let reading = slab.reading(&[false]);
            (slab.node.not_charged_bytes, reading)
        });
        let end = End {
            before,
            after,
            not_charged,
        };
        finish(trace.output(), &args, &plan, &end).context("cannot write the output")?;
        keep(&args).await?;
        running.stop()?;
        outcome
    };
    cgroup.remove().await;
    Ok(outcome)
}

async fn untraced(
    args: &DemoArgs,
    plan: &workload::Plan,
    mount: &MemoryMount,
    target: &CgroupDir,
    before: Figures,
) -> Result<Outcome> {
    let mut out = output::open(args.common.output.as_deref(), args.common.format)?;
    let mut running = Workload::new(plan.clone()).start()?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        load = stand(&mut running, args, mount, target) => load?,
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    let after = figures(mount, target)?;
    let end = End {
        before,
        after,
        not_charged: None,
    };
    finish(&mut out, args, plan, &end).context("cannot write the output")?;
    keep(args).await?;
    running.stop()?;
    Ok(Outcome::Explained)
}

/// Waits until the load stands and the figures have settled.
async fn stand(
    running: &mut Running,
    args: &DemoArgs,
    mount: &MemoryMount,
    target: &CgroupDir,
) -> Result<()> {
    let total = running.progress()?.connections_total;
    let bar = bar(total, args);
    let patience = PATIENCE + Duration::from_millis(total / 2);
    let begun = std::time::Instant::now();
    loop {
        let progress = running.progress()?;
        bar.set_position(progress.connections);
        if progress.is_ready() {
            break;
        }
        if begun.elapsed() > patience {
            anyhow::bail!(
                "the load stands at {} of {total} connections after {} s and is given up: use fewer --connections",
                progress.connections,
                patience.as_secs()
            );
        }
        tokio::time::sleep(LOOK).await;
    }
    bar.set_message("settling");
    let settle = std::time::Instant::now();
    let mut last = figures(mount, target)?;
    let mut quiet = 0;
    while quiet < QUIET_LOOKS && settle.elapsed() < SETTLE {
        tokio::time::sleep(LOOK).await;
        // A worker that dies now must not pass for a settled load.
        running.progress()?;
        let now = figures(mount, target)?;
        let still = now.usage.abs_diff(last.usage) <= last.usage / 1000
            && now.node_slab.abs_diff(last.node_slab) <= last.node_slab / 1000;
        quiet = if still { quiet + 1 } else { 0 };
        last = now;
    }
    bar.finish_and_clear();
    Ok(())
}

fn bar(total: u64, args: &DemoArgs) -> ProgressBar {
    if args.common.format == Format::Json || !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(total);
    if let Ok(style) =
        ProgressStyle::with_template("{bar:30} {pos}/{len} connections {msg} {elapsed}")
    {
        bar.set_style(style);
    }
    bar
}

/// With `--keep`, leaves the load standing until a signal.
async fn keep(args: &DemoArgs) -> Result<()> {
    if !args.keep {
        return Ok(());
    }
    let _ = writeln!(io::stderr(), "{}", hint(&args.cgroup));
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}

fn figures(mount: &MemoryMount, target: &CgroupDir) -> Result<Figures> {
    let node = proc::meminfo()?;
    let counters = cgroupfs::counters(&target.dir, mount.hierarchy)
        .with_context(|| format!("cannot read the usage of {}", target.dir.display()))?;
    let stat = cgroupfs::stat(&target.dir).unwrap_or_default();
    let get = |name: &str| stat.get(name);
    Ok(Figures {
        node_anon: node.anon_bytes,
        node_slab: node.slab_bytes,
        usage: counters.memory,
        anon: get("total_rss").or_else(|| get("anon")),
        kmem: counters.kmem.or_else(|| get("kernel")),
    })
}

/// A trace begun now has none of the load among what was made since its start.
fn hint(cgroup: &str) -> String {
    format!(
        "the load stands until Ctrl-C; in a second terminal `kmem-trace explain -c {cgroup}` divides what is there, and `kmem-trace -c {cgroup}` shows what comes from then on"
    )
}

/// `missing` bytes divided: the demo's own, and the rest, which is a remainder, as the figures are of
/// moments some milliseconds apart. Nothing where the demo's own are not known.
fn made_of(missing: i64, not_charged: Option<(i64, Reading)>) -> String {
    let Some((own, reading)) = not_charged.filter(|(own, _)| *own > 0) else {
        return String::new();
    };
    let rest = missing - own;
    let bytes = human(rest.unsigned_abs());
    let rest = match rest {
        0 => String::new(),
        1.. => format!(
            ", {}{bytes} of others, page overhead and without an event",
            reading.of_the_rest().sign()
        ),
        _ => format!(", less {}{bytes} that others gave back", reading.sign()),
    };
    format!(
        ": {}{} made by the demo and charged to nobody{rest}",
        reading.sign(),
        human(own.unsigned_abs())
    )
}

/// Before and after, and what of the node's slab the usage does not contain.
fn finish(out: &mut impl Write, args: &DemoArgs, plan: &workload::Plan, end: &End) -> Result<()> {
    let End {
        before,
        after,
        not_charged,
    } = *end;
    let grown = |before: u64, after: u64| after.cast_signed() - before.cast_signed();
    let slab = grown(before.node_slab, after.node_slab);
    let kmem = before
        .kmem
        .zip(after.kmem)
        .map(|(before, after)| grown(before, after));
    let missing = kmem.map(|kmem| slab - kmem);
    if args.common.format == Format::Json {
        serde_json::to_writer(
            &mut *out,
            &DemoLine {
                kind: "demo",
                groups: plan.groups,
                connections: plan.connections,
                before,
                after,
                slab_grown_bytes: slab,
                kmem_grown_bytes: kmem,
                slab_not_in_usage_bytes: missing,
                not_charged_bytes: not_charged.map(|(bytes, _)| bytes),
                not_charged_are: not_charged.map(|(_, reading)| reading),
            },
        )?;
        writeln!(out)?;
        out.flush()?;
        return Ok(());
    }
    writeln!(out)?;
    writeln!(
        out,
        "{} × {} TCP connections in {}",
        match plan.groups {
            1 => "1 group".to_owned(),
            groups => format!("{groups} groups"),
        },
        plan.connections,
        args.cgroup
    )?;
    writeln!(
        out,
        "{:<34}{:>14}{:>14}{:>14}",
        "", "before", "after", "change"
    )?;
    let mut line = |name: &str, before: u64, after: u64| {
        let change = signed(grown(before, after));
        writeln!(
            out,
            "{name:<34}{:>14}{:>14}{change:>14}",
            human(before),
            human(after)
        )
    };
    line(
        "node: AnonPages (/proc/meminfo)",
        before.node_anon,
        after.node_anon,
    )?;
    line(
        "node: Slab (/proc/meminfo)",
        before.node_slab,
        after.node_slab,
    )?;
    line("cgroup: usage", before.usage, after.usage)?;
    if let (Some(before), Some(after)) = (before.anon, after.anon) {
        line("cgroup: anonymous memory (rss)", before, after)?;
    }
    if let (Some(before), Some(after)) = (before.kmem, after.kmem) {
        line("cgroup: kernel memory (kmem)", before, after)?;
    }
    if let (Some(kmem), Some(missing)) = (kmem, missing)
        && slab > 0
        && missing > 0
    {
        writeln!(
            out,
            "Of {} by which the node's slab grew, at most {} can be in this cgroup's usage: {} ({:.0} %) are in no usage below it{}.",
            human(slab.unsigned_abs()),
            human(kmem.unsigned_abs()),
            human(missing.unsigned_abs()),
            missing as f64 * 100.0 / slab as f64,
            made_of(missing, not_charged)
        )?;
    }
    out.flush()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: i64 = 1 << 20;

    #[test]
    fn what_is_in_no_usage_is_the_demos_own_and_a_remainder() {
        assert_eq!(
            made_of(33 * MIB, Some((20 * MIB, Reading::Counted))),
            ": 20.0 MiB made by the demo and charged to nobody, 13.0 MiB of others, page overhead and without an event"
        );
        assert_eq!(
            made_of(8 * MIB, Some((20 * MIB, Reading::Counted))),
            ": 20.0 MiB made by the demo and charged to nobody, less 12.0 MiB that others gave back"
        );
        assert_eq!(
            made_of(20 * MIB, Some((20 * MIB, Reading::Counted))),
            ": 20.0 MiB made by the demo and charged to nobody"
        );
        assert_eq!(
            made_of(20 * MIB, Some((20 * MIB, Reading::AtMost))),
            ": ≤ 20.0 MiB made by the demo and charged to nobody"
        );
        assert_eq!(
            made_of(33 * MIB, Some((20 * MIB, Reading::AtLeast))),
            ": ≥ 20.0 MiB made by the demo and charged to nobody, ≤ 13.0 MiB of others, page overhead and without an event"
        );
        assert_eq!(
            made_of(8 * MIB, Some((20 * MIB, Reading::AtLeast))),
            ": ≥ 20.0 MiB made by the demo and charged to nobody, less ≥ 12.0 MiB that others gave back"
        );
    }

    #[test]
    fn without_attribution_nothing_is_divided() {
        assert_eq!(made_of(33 * MIB, None), "");
        assert_eq!(made_of(33 * MIB, Some((0, Reading::Counted))), "");
    }

    #[test]
    fn whoever_keeps_the_load_learns_what_each_command_shows_of_it() {
        assert_eq!(
            hint("a"),
            "the load stands until Ctrl-C; in a second terminal `kmem-trace explain -c a` divides what is there, and `kmem-trace -c a` shows what comes from then on"
        );
    }
}
