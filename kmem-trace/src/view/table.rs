//! The screen: how a cgroup's usage comes about, in one look.

use std::io::{self, Write};

use super::{
    json::StepLine,
    size::{self, count, human, plain, share, signed},
};
use crate::reconcile::report::{Gone, Lost, Report, SelfCost, Summary, is_ledger};

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
        lost_text(&report.lost)
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

fn lost_text(lost: &Lost) -> String {
    if lost.is_nothing() {
        return "of the ledger, nothing lost".to_owned();
    }
    let (charges, events): (Vec<_>, Vec<_>) = lost
        .roles(|it| it.map_full)
        .into_iter()
        .partition(|(role, _)| is_ledger(role));
    let (runs, other_runs): (Vec<_>, Vec<_>) = lost
        .roles(|it| it.skipped)
        .into_iter()
        .partition(|(role, _)| is_ledger(role));
    let sum = |roles: &[(&str, u64)]| roles.iter().map(|(_, lost)| lost).sum();
    let told: Vec<String> = [
        (
            lost.ring,
            "records",
            lost.roles(|it| it.ring),
            "ring full; totals not touched",
        ),
        (
            lost.map_full,
            "charges",
            charges,
            "map full or unreadable: totals are lower bounds",
        ),
        (
            sum(&events),
            "other events",
            events,
            "map full or unreadable",
        ),
        (
            lost.skipped,
            "program runs",
            runs,
            "skipped by the kernel: for each, the largest charge seen is in the bound",
        ),
        (
            lost.unwatched_softirqs,
            "softirqs",
            Vec::new(),
            "the kernel ran no program in them: for each, the most that one was seen to move is in the bound",
        ),
        (
            sum(&other_runs),
            "other program runs",
            other_runs,
            "skipped by the kernel; not the ledger's",
        ),
    ]
    .into_iter()
    .filter(|(lost, ..)| *lost > 0)
    .map(|(lost, what, by, why)| format!("{} {what}{} ({why})", count(lost), named(&by)))
    .collect();
    format!("LOST: {}", told.join(", "))
}

/// ` [counter.charge 3, counter.uncharge 1]`; nothing where there is none.
pub(super) fn named(roles: &[(&str, u64)]) -> String {
    if roles.is_empty() {
        return String::new();
    }
    let each: Vec<String> = roles
        .iter()
        .map(|(role, lost)| format!("{role} {}", count(*lost)))
        .collect();
    format!(" [{}]", each.join(", "))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reconcile::report::RoleLost;

    #[test]
    fn what_is_lost_is_told_by_role_and_only_the_ledgers_are_charges() {
        assert_eq!(lost_text(&Lost::default()), "of the ledger, nothing lost");
        let of = |map_full| RoleLost {
            map_full,
            ..RoleLost::default()
        };
        let lost = Lost {
            map_full: 3,
            by_role: [("counter.charge", of(3)), ("limit.write", of(2))].into(),
            ..Lost::default()
        };
        let said = lost_text(&lost);
        assert!(
            said.contains(
                "3 charges [counter.charge 3] (map full or unreadable: totals are lower bounds), 2 other events [limit.write 2] (map full or unreadable)"
            ),
            "{said}"
        );
        assert!(
            !said.contains("records") && !said.contains("runs"),
            "{said}"
        );
    }

    #[test]
    fn runs_skipped_beside_the_ledger_are_told_apart_from_its_own() {
        let of = |skipped| RoleLost {
            skipped,
            ..RoleLost::default()
        };
        let beside = Lost {
            by_role: [("charge.user", of(5))].into(),
            ..Lost::default()
        };
        let said = lost_text(&beside);
        assert!(
            said.starts_with("LOST: 5 other program runs [charge.user 5]"),
            "{said}"
        );
        let both = Lost {
            skipped: 3,
            by_role: [("charge.user", of(5)), ("counter.charge", of(3))].into(),
            ..Lost::default()
        };
        let said = lost_text(&both);
        assert!(
            said.starts_with("LOST: 3 program runs [counter.charge 3] (")
                && said.contains(", 5 other program runs [charge.user 5] ("),
            "{said}"
        );
    }

    #[test]
    fn softirqs_without_programs_are_a_loss_of_their_own() {
        let said = lost_text(&Lost {
            unwatched_softirqs: 2,
            unwatched_pages: 78,
            ..Lost::default()
        });
        assert_eq!(
            said,
            "LOST: 2 softirqs (the kernel ran no program in them: for each, the most that one was seen to move is in the bound)"
        );
    }
}
