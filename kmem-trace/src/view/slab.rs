//! The screen's lower half: slab made for the traced cgroups, who pays for it, and why nobody does.

use std::io::{self, Write};

use super::{
    lost,
    size::{self, count, human, plain},
    table::row,
};
use crate::reconcile::{
    charged::{ChargedLine, Compared, Terms},
    report::Fit,
    slab::{NodeLine, Reading, SlabLine, SlabReport, briefly},
};

/// Caches and causes shown by name; the rest is one line.
const SHOWN: usize = 6;
/// Rows below this are not worth a line of their own.
const WORTH_BYTES: i64 = 16 * 1024;

/// Prints where the slab went since the trace began.
///
/// # Errors
/// Where the output does not take it.
pub fn report(out: &mut impl Write, slab: &SlabReport) -> io::Result<()> {
    let node = &slab.node;
    let made = node.charged_bytes + node.not_charged_bytes;
    sum(
        out,
        "slab made here since start",
        made,
        slab.reading(&[true, false]),
        "live objects, at kmem_cache.size each",
    )?;
    let reading = slab.reading(&[true]);
    sum(out, "  charged to it", node.charged_bytes, reading, "")?;
    rows(out, slab, SlabLine::is_charged)?;
    for line in &slab.findings.charged {
        charged(out, line, slab.findings.charged.len() > 1)?;
    }
    let is_uncharged = |line: &SlabLine| !line.is_charged();
    let reading = slab.reading(&[false]);
    sum(
        out,
        "  charged to nobody",
        node.not_charged_bytes,
        reading,
        "",
    )?;
    rows(out, slab, is_uncharged)?;
    let large: i64 = slab.large.iter().map(|line| line.bytes).sum();
    if large >= WORTH_BYTES {
        figure(
            out,
            "  large kmallocs",
            large,
            "pages, no slab objects: in none of these sums",
        )?;
    }
    for wrong in slab.wrong_payers.iter().take(3) {
        if wrong.allocated_bytes.cast_signed() >= WORTH_BYTES {
            writeln!(
                out,
                "  charged to {}, asked for by {}: {} of {} at {}",
                wrong.payer,
                wrong.asker,
                human(wrong.allocated_bytes),
                wrong.cache,
                wrong.call_site
            )?;
        }
    }
    for line in slab.findings.growing.iter().take(3) {
        writeln!(out, "  growing: {}", line.text())?;
    }
    dead(out, slab)?;
    self::node(out, node)?;
    if let Some(lost) = lost::of_slab(&node.lost) {
        writeln!(out, "  {lost}")?;
    }
    out.flush()
}

/// What the change of the node's slab is made of; what is nothing is left out.
fn node(out: &mut impl Write, node: &NodeLine) -> io::Result<()> {
    let total = node.slab_delta_bytes;
    figure(
        out,
        "node: Slab since start",
        total,
        "in /proc/meminfo, which is",
    )?;
    let overhead = if node.overhead_bytes < 0 {
        "objects took free places of slabs that were there"
    } else {
        "free places in slabs"
    };
    for (name, bytes, remark) in [
        (
            "made here",
            node.charged_bytes + node.not_charged_bytes,
            "the sum above",
        ),
        (
            "others",
            node.other_cgroups_bytes,
            "other cgroups, the root, interrupts over their tasks",
        ),
        ("large kmallocs", node.large_kmalloc_bytes, ""),
        ("page overhead", node.overhead_bytes, overhead),
        (
            "without an event",
            node.unseen_bytes,
            "slabinfo counts it, whosesoever it is",
        ),
    ] {
        if bytes != 0 {
            figure(out, &format!("  {name}"), bytes, remark)?;
        }
    }
    for unseen in node.unseen.iter().take(3) {
        let what = if unseen.objects < 0 { "went" } else { "came" };
        let remark = format!("{} objects {what}", count(unseen.objects.unsigned_abs()));
        figure(out, &format!("    {}", unseen.cache), unseen.bytes, &remark)?;
    }
    figure(out, "  unexplained", node.residual_bytes, &lists_text(node))?;
    if !node.has_slabinfo {
        writeln!(
            out,
            "  /proc/slabinfo was not read: no cache is held against it, and the page overhead is in what is unexplained"
        )?;
    }
    Ok(())
}

/// How what is unexplained of the node fits its bound.
fn lists_text(node: &NodeLine) -> String {
    let Some(bound) = node.residual_bound_bytes else {
        return String::new();
    };
    let fit = Fit::of(
        node.residual_bytes,
        bound,
        node.slab_delta_bytes.unsigned_abs(),
    );
    format!(
        "{}  bound {} = free objects on lists, pages not added up yet, what moved while reading",
        fit.mark(),
        human(bound)
    )
}

/// What removed cgroups still hold, under the names they had.
fn dead(out: &mut impl Write, slab: &SlabReport) -> io::Result<()> {
    let totals = &slab.node.dead;
    if !totals.told_apart {
        return writeln!(
            out,
            "  what removed cgroups still hold counts as their parents': this mode cannot tell it apart"
        );
    }
    if totals.bytes >= WORTH_BYTES {
        figure(
            out,
            "  held by removed cgroups",
            totals.bytes,
            "of what is charged, until it is freed",
        )?;
        let worth = slab
            .dead
            .iter()
            .filter(|line| line.bytes >= WORTH_BYTES)
            .take(SHOWN);
        for line in worth {
            figure(
                out,
                &format!("    {}", line.cache),
                line.bytes,
                &format!(
                    "{} objects, by {}",
                    count(line.objects.unsigned_abs()),
                    line.cgroup
                ),
            )?;
        }
    }
    if totals.unnamed_freed_bytes.cast_signed() >= WORTH_BYTES {
        writeln!(
            out,
            "  freed of cgroups removed before the trace or forgotten since: {}",
            human(totals.unnamed_freed_bytes)
        )?;
    }
    if totals.forgotten > 0 {
        writeln!(
            out,
            "  LOST: {} removed cgroups forgotten (map full): what they held may be freed under \
             other names",
            count(totals.forgotten)
        )?;
    }
    Ok(())
}

fn rows(
    out: &mut impl Write,
    slab: &SlabReport,
    wanted: impl Fn(&SlabLine) -> bool,
) -> io::Result<()> {
    let mut lines: Vec<&SlabLine> = slab.lines.iter().filter(|line| wanted(line)).collect();
    lines.sort_by_key(|line| std::cmp::Reverse(line.bytes));
    let worth = lines
        .iter()
        .filter(|line| line.bytes >= WORTH_BYTES)
        .count()
        .min(SHOWN);
    for line in &lines[..worth] {
        let mut remark = format!("{} objects", count(line.objects.unsigned_abs()));
        if let Some(call_site) = &line.call_site {
            remark.push_str(" at ");
            remark.push_str(call_site);
        }
        if !line.is_charged() {
            remark.push_str(", ");
            remark.push_str(briefly(line.cause));
        }
        if let Some(coverage) = line.coverage {
            remark.push_str(&coverage_text(coverage, line.coverage_bound));
        }
        sum(
            out,
            &format!("    {}", line.cache),
            line.bytes,
            line.bytes_are,
            &remark,
        )?;
    }
    let rest = &lines[worth..];
    let bytes: i64 = rest.iter().map(|line| line.bytes).sum();
    if bytes != 0 {
        let others = if rest.len() == 1 { "other" } else { "others" };
        let label = format!("    {} {others}", rest.len());
        sum(
            out,
            &label,
            bytes,
            Reading::of_sum(rest.iter().copied()),
            "",
        )?;
    }
    Ok(())
}

/// The kernel's own figure of what is charged, and how it fits.
fn charged(out: &mut impl Write, line: &ChargedLine, named: bool) -> io::Result<()> {
    let of = if named {
        format!("of {}: ", line.cgroup)
    } else {
        String::new()
    };
    match &line.compared {
        Compared::Read {
            kernel_bytes,
            events_bytes,
            difference_bytes,
            bound_bytes,
            bound_terms,
        } => {
            let away = human(difference_bytes.unsigned_abs());
            let bound = human(*bound_bytes);
            let whole = kernel_bytes.unsigned_abs().max(events_bytes.unsigned_abs());
            let fit = |bound_bytes| Fit::of(*difference_bytes, bound_bytes, whole);
            let fits = match fit(*bound_bytes) {
                _ if *difference_bytes == 0 => "equal ✓".to_owned(),
                _ if fit(bound_terms.stock + bound_terms.in_flight) == Fit::Within => {
                    format!("{away} apart, within the byte stock ✓")
                }
                Fit::Beyond => {
                    format!("{away} apart, BEYOND THE BOUND of {bound}: objects without an event")
                }
                fit => format!(
                    "{away} apart, {}  bound {bound} = {}",
                    fit.mark(),
                    terms(bound_terms)
                ),
            };
            figure(
                out,
                "    the kernel's counters",
                *kernel_bytes,
                // Read at a moment of their own, in which a busy cgroup is not what it is above.
                &format!(
                    "{of}by events then {}, 8 B an object for the payer's name included: {fits}",
                    plain(*events_bytes)
                ),
            )
        }
        Compared::NotRead { why } => {
            writeln!(out, "    the kernel's counters are not known {of}({why})")
        }
    }
}

fn terms(terms: &Terms) -> String {
    size::terms(&[
        ("byte stock", terms.stock),
        ("stat lag", terms.lag),
        ("in flight", terms.in_flight),
        ("moved meanwhile", terms.skew),
        ("large kmallocs", terms.large),
        ("lost", terms.lost),
    ])
}

/// Of a cache's change by slabinfo, what the events told, and how far off that may be though no event
/// is missing.
fn coverage_text(coverage: f64, bound: Option<f64>) -> String {
    let lists = bound.map_or_else(String::new, |bound| {
        format!(", off by up to {:.1} %", bound * 100.0)
    });
    format!("  [{:.1} % of slabinfo's change{lists}]", coverage * 100.0)
}

fn figure(out: &mut impl Write, label: &str, bytes: i64, remark: &str) -> io::Result<()> {
    row(out, label, &plain(bytes), remark)
}

fn sum(
    out: &mut impl Write,
    label: &str,
    bytes: i64,
    bytes_are: Reading,
    remark: &str,
) -> io::Result<()> {
    let figure = format!("{}{}", bytes_are.sign(), plain(bytes));
    row(out, label, &figure, remark)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reconcile::{coverage::UnseenLine, slab::NodeLine};

    #[test]
    fn what_lists_may_hold_stands_beside_what_is_unexplained() {
        let of = |residual_bytes, residual_bound_bytes| {
            lists_text(&NodeLine {
                slab_delta_bytes: -4096,
                residual_bytes,
                residual_bound_bytes,
                ..NodeLine::default()
            })
        };
        let within = of(-2048, Some(2048));
        assert!(
            within.starts_with("within the bound ✓  bound 2.0 KiB = "),
            "{within}"
        );
        let beyond = of(2049, Some(2048));
        assert!(beyond.starts_with("BEYOND THE BOUND ✗"), "{beyond}");
        let little = of(2049, Some(4097));
        assert!(little.contains("proves little"), "{little}");
        assert_eq!(of(2049, None), "");
    }

    #[test]
    fn what_the_kernel_counts_as_charged_fits_as_everything_else_does() {
        let fits = |kernel_bytes, difference_bytes| {
            let bound_terms = Terms {
                stock: 100,
                lag: 2000,
                ..Terms::default()
            };
            let line = ChargedLine {
                cgroup: "/a".to_owned(),
                cgroup_id: 1,
                compared: Compared::Read {
                    kernel_bytes,
                    events_bytes: kernel_bytes - difference_bytes,
                    difference_bytes,
                    bound_bytes: bound_terms.total_bytes(),
                    bound_terms,
                },
            };
            let mut out = Vec::new();
            charged(&mut out, &line, false).expect("memory takes it");
            String::from_utf8(out).expect("it is text")
        };
        for (kernel_bytes, difference_bytes, said) in [
            (9000, 0, "equal ✓"),
            (9000, -100, "100 B apart, within the byte stock ✓"),
            (9000, 101, "101 B apart, within the bound ✓  bound"),
            (
                90,
                90,
                "90 B apart, within a bound that is larger than the whole: proves little",
            ),
            (9000, 2101, "apart, BEYOND THE BOUND of"),
        ] {
            let text = fits(kernel_bytes, difference_bytes);
            assert!(text.contains(said), "no {said} in {text}");
        }
    }

    fn shown(slab: &SlabReport) -> String {
        let mut out = Vec::new();
        report(&mut out, slab).expect("memory takes it");
        String::from_utf8(out).expect("it is text")
    }

    #[test]
    fn coverage_says_how_far_off_it_may_be() {
        let mut slab = SlabReport {
            elapsed_s: 1.0,
            lines: vec![SlabLine {
                cgroup: "/a".to_owned(),
                cache: "TCP".to_owned(),
                cause: "charged",
                call_site: None,
                objects: 1000,
                bytes: 2_048_000,
                bytes_are: Reading::Counted,
                allocated_bytes: 2_048_000,
                freed_bytes: 0,
                coverage: Some(0.993),
                coverage_bound: Some(0.005),
            }],
            large: Vec::new(),
            wrong_payers: Vec::new(),
            dead: Vec::new(),
            node: NodeLine {
                has_slabinfo: true,
                unseen: vec![UnseenLine {
                    cache: "dentry".to_owned(),
                    objects: -9000,
                    bytes: -9000 * 192,
                }],
                ..NodeLine::default()
            },
            findings: crate::reconcile::slab::Findings::default(),
        };
        let said = shown(&slab);
        let of = "1 000 objects  [99.3 % of slabinfo's change, off by up to 0.5 %]";
        assert!(said.contains(of), "{said}");
        assert!(
            said.contains("    dentry                      -1 687.5 KiB   9 000 objects went\n"),
            "{said}"
        );
        assert!(!said.contains("was not read"), "{said}");
        slab.lines[0].coverage_bound = None;
        slab.node.has_slabinfo = false;
        let said = shown(&slab);
        assert!(said.contains("[99.3 % of slabinfo's change]"), "{said}");
        assert!(said.contains("/proc/slabinfo was not read"), "{said}");
    }
}
