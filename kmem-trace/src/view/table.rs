//! The screen: how a cgroup's usage comes about, in one look.

use std::io::{self, Write};

use super::{
    json::StepLine,
    lost,
    size::{self, count, human, plain, share, signed},
};
use crate::reconcile::report::{Gone, Report, SelfCost, Summary};

/// What stands above every screen.
#[derive(Clone, Debug)]
pub struct Headline {
    pub kernel: String,
    /// `v1` or `v2`.
    pub hierarchy: String,
    /// `kprobe + tracepoint`.
    pub mechanisms: String,
    /// What this mode cannot see; empty where it sees all.
    pub blind: Vec<String>,
    /// Booted with `cgroup.memory=nokmem`.
    pub nokmem: bool,
}

/// Width of the column of labels.
const LABEL: usize = 28;
/// Width of the column of figures.
const FIGURE: usize = 16;

/// Prints the headline, once.
///
/// # Errors
/// Where the output does not take it.
pub fn headline(out: &mut impl Write, head: &Headline) -> io::Result<()> {
    writeln!(
        out,
        "kmem-trace · Linux {} · cgroup {} · {}",
        head.kernel, head.hierarchy, head.mechanisms
    )?;
    if head.nokmem {
        writeln!(
            out,
            "  accounting of kernel memory is off since boot (cgroup.memory=nokmem): nobody pays for slab"
        )?;
    }
    for line in &head.blind {
        writeln!(out, "  cannot see: {line}")?;
    }
    out.flush()
}

/// Prints one cgroup's report.
///
/// # Errors
/// Where the output does not take it.
pub fn report(out: &mut impl Write, report: &Report, usage_file: &str) -> io::Result<()> {
    let below = match (report.descendants, report.dead_descendants) {
        (0, 0) => String::new(),
        (living, 0) => format!("  ({living} below)"),
        (living, dead) => format!("  ({living} below, {dead} dead)"),
    };
    writeln!(out)?;
    let title = format!("{}{below}", report.cgroup);
    writeln!(
        out,
        "{title:<62}{:>10}",
        format!("+{:.1} s", report.elapsed_s)
    )?;
    row(out, usage_file, &human(report.usage_bytes), "")?;
    let parts = &report.breakdown;
    if let Some(anon) = parts.anon {
        row(
            out,
            "  anon",
            &human(anon),
            &share(anon, report.usage_bytes),
        )?;
    }
    if let Some(file) = parts.file {
        row(
            out,
            "  file",
            &human(file),
            &share(file, report.usage_bytes),
        )?;
    }
    if let Some(kernel) = parts.kernel {
        let mut inside = Vec::new();
        for (name, value) in [
            ("slab", parts.slab),
            ("stacks", parts.kernel_stack),
            ("page tables", parts.page_tables),
            ("per-CPU", parts.percpu),
            ("other", parts.other_kernel),
        ] {
            if let Some(value) = value {
                inside.push(format!("{name} {}", human(value)));
            }
        }
        let inside = if inside.is_empty() {
            "no v1 file divides it: kmem-trace explain".to_owned()
        } else {
            inside.join(" · ")
        };
        row(
            out,
            "  kernel",
            &human(kernel),
            &format!("{:<9}{inside}", share(kernel, report.usage_bytes)),
        )?;
    }
    if let Some(sock) = parts.sock.filter(|sock| *sock > 0) {
        row(
            out,
            "  sockets",
            &human(sock),
            &share(sock, report.usage_bytes),
        )?;
    }
    if let Some(stock) = parts.stock {
        row(
            out,
            "  per-CPU stock and lag",
            &plain(stock),
            "usage minus the lines above",
        )?;
    }
    row(
        out,
        "ledger",
        &plain(report.ledger_bytes),
        &format!(
            "+{} -{} since the start",
            human(report.charged_bytes),
            human(report.uncharged_bytes)
        ),
    )?;
    row(
        out,
        "unexplained",
        &signed(report.residual_bytes),
        &bound_text(report),
    )?;
    for counter in &report.counters {
        let verdict = if counter.residual_bytes == 0 {
            "ledger equal".to_owned()
        } else {
            format!(
                "unexplained {}, {}  bound {}",
                signed(counter.residual_bytes),
                counter.fit().mark(),
                human(counter.bound_bytes)
            )
        };
        row(out, counter.counter, &human(counter.usage_bytes), &verdict)?;
    }
    let rate = report.user_charges.map(|charges| {
        format!(
            "{} charges by tasks, {} refused · ",
            count(charges),
            count(report.user_refusals.unwrap_or(0))
        )
    });
    writeln!(
        out,
        "since start: {}{}",
        rate.unwrap_or_default(),
        lost::of_ledger(&report.lost)
    )?;
    for limit in &report.limits {
        writeln!(out, "  note: {limit}")?;
    }
    if let Some(own) = &report.own {
        writeln!(out, "{}", cost_text(own))?;
    }
    out.flush()
}

fn bound_text(report: &Report) -> String {
    let terms = &report.bound_terms;
    let parts = size::terms(&[
        ("in flight", terms.in_flight),
        ("moved while reading", terms.skew),
        ("per-CPU stocks", terms.stock),
        ("unsure at attach", terms.base),
        ("lost", terms.lost),
        ("cgroups gone unnamed", terms.nameless),
    ]);
    let verdict = if report.residual_bytes == 0 {
        "ledger = usage ✓"
    } else {
        report.fit().mark()
    };
    format!("{verdict}  bound {} = {parts}", human(report.bound_bytes))
}

/// Prints that a traced cgroup is no more.
///
/// # Errors
/// Where the output does not take it.
pub fn gone(out: &mut impl Write, gone: &Gone) -> io::Result<()> {
    let other = if gone.replaced {
        "; another of its name has come since, which is not traced: begin anew for that"
    } else {
        ""
    };
    writeln!(
        out,
        "\n{} was removed, seen at +{:.1} s: it has no usage any more{}{other}",
        gone.cgroup,
        gone.elapsed_s,
        if gone.slab_followed {
            ", the slab it made is followed on"
        } else {
            ""
        }
    )?;
    out.flush()
}

/// Prints what is left off from now on.
///
/// # Errors
/// Where the output does not take it.
pub fn step(out: &mut impl Write, step: &StepLine) -> io::Result<()> {
    let cost = &step.decision;
    write!(
        out,
        "\nstep down at +{:.1} s: tracing costs {:.2} % of all CPUs, more than {} %: off goes {}",
        step.elapsed_s, cost.overhead_pct, cost.max_overhead_pct, step.off
    )?;
    match step.cannot_say {
        "" => writeln!(out, " (a longer --interval costs less)")?,
        what => writeln!(out, "; no figure says from now on {what}")?,
    }
    out.flush()
}

/// Prints the end of a run.
///
/// # Errors
/// Where the output does not take it.
pub fn summary(out: &mut impl Write, summary: &Summary) -> io::Result<()> {
    writeln!(out)?;
    for sentence in &summary.verdict {
        writeln!(out, "{sentence}")?;
    }
    writeln!(out, "{}", cost_text(&summary.own))?;
    for program in &summary.own.programs {
        writeln!(
            out,
            "  {:<26}{:>14} runs{:>12.3} ms{:>10.0} ns a run{}",
            program.program,
            count(program.runs),
            program.run_ns as f64 / 1e6,
            program.run_ns as f64 / program.runs.max(1) as f64,
            skipped_text(program.skipped)
        )?;
    }
    out.flush()
}

fn skipped_text(skipped: u64) -> String {
    match skipped {
        0 => String::new(),
        skipped => format!(", {} skipped by the kernel", count(skipped)),
    }
}

fn cost_text(own: &SelfCost) -> String {
    let bpf = match (own.bpf_run_ns, own.bpf_runs) {
        (Some(ns), Some(runs)) => {
            let until = own
                .bpf_until_s
                .map_or_else(String::new, |until| format!(" until +{until:.1} s"));
            format!(
                ", {} BPF runs in {:.3} s{until}",
                count(runs),
                ns as f64 / 1e9
            )
        }
        _ => String::new(),
    };
    format!(
        "tracer: {:.2} s CPU, {} RSS, {} in maps{bpf}",
        own.cpu_s,
        human(own.rss_bytes),
        human(own.map_bytes)
    )
}

/// A label, its figure, and what there is to say of it.
pub(super) fn row(out: &mut impl Write, label: &str, figure: &str, remark: &str) -> io::Result<()> {
    let line = format!("{label:<LABEL$}{figure:>FIGURE$}   {remark}");
    writeln!(out, "{}", line.trim_end())
}
