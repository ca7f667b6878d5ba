//! The doctor's page on a screen. The same page goes into JSON as it is.

use std::io::{self, Write};

use super::{size::human, wrap};
use crate::{
    diagnosis::{
        accounting::{Accounting, KmemLimit, Stock},
        page::{Fact, Page, Rights, System},
    },
    hooks::{plan::Row, table::Status},
};

/// Columns, where the output is no terminal.
pub const WIDTH: usize = 100;
/// Width of the column of labels, the indent included.
const LABEL: usize = 20;
/// Less leaves no room beside the labels.
const NARROWEST: usize = 60;
/// Width of the column of statuses.
const STATUS: usize = 9;

/// Prints the page, lines wrapped to `width` columns where words allow it.
///
/// # Errors
/// Where the output does not take it.
pub fn page(out: &mut impl Write, page: &Page, width: usize) -> io::Result<()> {
    writeln!(out, "kmem-trace {} doctor", page.version)?;
    let mut sheet = Sheet {
        out,
        width: width.max(NARROWEST),
    };
    sheet.title("SYSTEM")?;
    system(&mut sheet, &page.system)?;
    rights(&mut sheet, &page.rights)?;
    sheet.title("ALLOWED (as it looks before anything is attached)")?;
    let refusal = page.nothing_allowed();
    if let Some(why) = refusal {
        sheet.line("nothing", why)?;
    }
    for (what, verdict) in page.allowed.iter().filter(|_| refusal.is_none()) {
        sheet.line(
            what,
            &verdict
                .as_ref()
                .map_or_else(|why| format!("no: {why}"), |()| "yes".to_owned()),
        )?;
    }
    sheet.title("HOW THIS KERNEL ACCOUNTS")?;
    accounting(&mut sheet, &page.accounting)?;
    sheet.title("ANSWERS")?;
    for answer in &page.answers {
        sheet.verdict(
            answer.answer,
            answer.status,
            answer.says,
            shorter(&answer.why, refusal),
        )?;
    }
    sheet.title(match page.tried {
        Ok(()) => "ROLES (each hook attached for a moment, to be sure)",
        Err(_) => "ROLES (as planned; nothing was attached)",
    })?;
    if let Err(why) = &page.tried {
        sheet.line("not tried", why)?;
    }
    for row in &page.roles {
        role(&mut sheet, row, refusal)?;
    }
    sheet.title("PROBLEMS")?;
    if page.problems.is_empty() {
        sheet.wrapped("  ", "  ", "none found")?;
    }
    for problem in &page.problems {
        sheet.wrapped("  ", "    ", &problem.problem)?;
        if !problem.mend.is_empty() {
            sheet.wrapped("    → ", "      ", &problem.mend)?;
        }
        // Never broken: it is there to be pasted.
        if let Some(command) = &problem.command {
            writeln!(sheet.out, "    $ {command}")?;
        }
    }
    sheet.out.flush()
}

fn system(sheet: &mut Sheet<'_, impl Write>, system: &System) -> io::Result<()> {
    let cpus = match system.cpus_online {
        1 => "1 CPU".to_owned(),
        cpus => format!("{cpus} CPUs"),
    };
    sheet.line(
        "kernel",
        &format!("Linux {}, {}, {cpus} online", system.kernel, system.machine),
    )?;
    sheet.line(
        "distribution",
        system.distribution.as_deref().unwrap_or("does not say"),
    )?;
    let version = system.hierarchy.as_deref().unwrap_or_default();
    match &system.memory_cgroups {
        Ok(at) => sheet.line("memory cgroups", &format!("{version} at {at}"))?,
        Err(why) => sheet.line("memory cgroups", &format!("none: {why}"))?,
    }
    sheet.line(
        "boot options",
        &text(&system.boot_options, "cannot be told"),
    )?;
    sheet.line("lockdown", &system.lockdown)?;
    sheet.line("type info (BTF)", &text(&system.btf, "none"))?;
    sheet.line("tracefs", &text(&system.tracefs, "not usable"))?;
    sheet.line("addresses", &text(&system.kernel_addresses, "hidden"))
}

fn rights(sheet: &mut Sheet<'_, impl Write>, rights: &Rights) -> io::Result<()> {
    let user = match rights.euid {
        0 => "root".to_owned(),
        euid => format!("uid {euid}, not root"),
    };
    sheet.line("user", &user)?;
    let held = match &rights.held {
        None => "cannot be told".to_owned(),
        Some(held) if held.is_empty() => "none of those that tracing uses".to_owned(),
        Some(held) if rights.missing.is_empty() => {
            format!("all that tracing uses: {}", held.join(" "))
        }
        Some(held) => held.join(" "),
    };
    sheet.line("capabilities", &held)?;
    for lack in &rights.missing {
        sheet.line(
            "  missing",
            &format!("{}: {}", lack.capability, lack.purpose),
        )?;
    }
    Ok(())
}

fn accounting(sheet: &mut Sheet<'_, impl Write>, accounting: &Accounting) -> io::Result<()> {
    sheet.line("counters", &accounting.counters)?;
    sheet.line("slab objects", &accounting.objects)?;
    sheet.line(
        "payer of an object",
        &text(&accounting.payer, "not readable"),
    )?;
    sheet.line(
        "kmem limit",
        match accounting.kmem_limit {
            KmemLimit::Works => "works: on cgroup v1, memory.kmem.limit_in_bytes limits kernel memory",
            KmemLimit::NoEffect => {
                "no effect: kernel memory is always accounted, and limited by the memory limit alone"
            }
            KmemLimit::NotThere => "not there: this kernel is built without the v1 files",
            KmemLimit::Unknown => "cannot be told without type information or symbols",
        },
    )?;
    let v1 = match accounting.memcg_v1 {
        Some(true) => "yes",
        Some(false) => "no",
        None => "cannot be told",
    };
    sheet.line(
        "cgroup v1 built in",
        &format!("{v1}: {}", accounting.memcg_v1_why),
    )?;
    sheet.line("per-CPU stock", &stock(&accounting.stock))?;
    sheet.line(
        "skipped probe runs",
        match accounting.counts_skips {
            Some(true) => "counted by this kernel",
            Some(false) => "not counted by this kernel: lost.skipped is a lower bound",
            None => "cannot be told without type information",
        },
    )
}

fn stock(stock: &Stock) -> String {
    let cached = match stock.cgroups_per_cpu {
        Some(cached) => cached.to_string(),
        None => "1 (assumed)".to_owned(),
    };
    format!(
        "at most {} pages ({}) charged and not used; cgroups cached per CPU: {cached}",
        stock.bound_pages,
        human(stock.bound_bytes),
    )
}

fn role(sheet: &mut Sheet<'_, impl Write>, row: &Row, refusal: Option<&str>) -> io::Result<()> {
    let by = match (row.mechanism, &row.symbol) {
        (Some(mechanism), Some(symbol)) => format!("{mechanism}: {symbol}"),
        _ => String::new(),
    };
    sheet.verdict(row.role, row.status, &by, shorter(&row.why, refusal))?;
    if !row.default && row.status != Status::Missing {
        sheet.below(&format!("(only when asked for: --events {})", row.role))?;
    }
    Ok(())
}

/// A reason without what the page says once and for all.
fn shorter<'a>(why: &'a str, refusal: Option<&str>) -> &'a str {
    refusal
        .and_then(|refusal| why.strip_prefix(refusal)?.strip_prefix("; "))
        .unwrap_or(why)
}

fn text(fact: &Fact, no: &str) -> String {
    fact.as_ref()
        .map_or_else(|why| format!("{no}: {why}"), Clone::clone)
}

/// The paper: knows how wide it is.
struct Sheet<'a, W> {
    out: &'a mut W,
    width: usize,
}

impl<W: Write> Sheet<'_, W> {
    fn title(&mut self, title: &str) -> io::Result<()> {
        writeln!(self.out, "\n{title}")
    }

    /// A label and what belongs to it.
    fn line(&mut self, label: &str, text: &str) -> io::Result<()> {
        let first = format!("  {label:<LABEL$}");
        self.wrapped(&first, &" ".repeat(LABEL + 2), text)
    }

    /// A label, its status, what it is, and why it is no better.
    fn verdict(&mut self, label: &str, status: Status, what: &str, why: &str) -> io::Result<()> {
        let first = format!("  {label:<LABEL$}{:<STATUS$}", status.name());
        if what.is_empty() {
            return self.wrapped(&first, &" ".repeat(LABEL + STATUS + 2), why);
        }
        self.wrapped(&first, &" ".repeat(LABEL + STATUS + 2), what)?;
        self.below(why)
    }

    /// More about the line above.
    fn below(&mut self, text: &str) -> io::Result<()> {
        if text.is_empty() {
            return Ok(());
        }
        let indent = " ".repeat(LABEL + STATUS + 2);
        self.wrapped(&indent, &indent, text)
    }

    fn wrapped(&mut self, first: &str, indent: &str, text: &str) -> io::Result<()> {
        for line in wrap::under(first, indent, text, self.width) {
            writeln!(self.out, "{line}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        diagnosis::{problems, samples},
        kernel::{cgroupfs::Hierarchy, security::Lockdown},
    };

    fn screen(found: &Page, width: usize) -> String {
        let mut out = Vec::new();
        page(&mut out, found, width).expect("in memory");
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn a_kernel_that_allows_all_fills_the_page_with_exact() {
        let found = samples::page(
            samples::accounting(&samples::old(), Hierarchy::V1),
            Hierarchy::V1,
            samples::roles(
                Status::Exact,
                &[("memcg.state", Status::Missing, "no such tracepoint")],
            ),
            problems::find(&samples::evidence()),
        );
        insta::assert_snapshot!(screen(&found, WIDTH));
    }

    #[test]
    fn a_locked_down_kernel_says_what_is_bounded_and_what_to_do() {
        let why = "lockdown=confidentiality forbids reading kernel memory";
        let gone = (Status::Missing, why);
        let mut found = samples::page(
            samples::accounting(&samples::new(), Hierarchy::V2),
            Hierarchy::V2,
            samples::roles(
                Status::Bounded,
                &[
                    ("counter.charge", gone.0, gone.1),
                    ("counter.uncharge", gone.0, gone.1),
                    ("charge.user", gone.0, gone.1),
                    ("limit.write", gone.0, gone.1),
                ],
            ),
            problems::find(&problems::Evidence {
                lockdown: Lockdown::Confidentiality,
                reads: Err(why.to_owned()),
                tracefs_readable: false,
                exact: false,
                ..samples::evidence()
            }),
        );
        found.system.lockdown = "confidentiality".to_owned();
        found.system.tracefs = Err("mounted, but its events cannot be listed".to_owned());
        insta::assert_snapshot!(screen(&found, WIDTH));
    }

    #[test]
    fn somebody_without_rights_learns_which_ones_and_how_to_get_them() {
        let why = "the kernel refused to make a BPF map: Operation not permitted (os error 1)";
        let mut found = samples::page(
            samples::accounting(&samples::new(), Hierarchy::V2),
            Hierarchy::V2,
            samples::roles(Status::Missing, &[]),
            problems::find(&problems::Evidence {
                euid: 65534,
                held: Vec::new(),
                missing: samples::LACKS.to_vec(),
                bpf: Err(why.to_owned()),
                reads: Err(why.to_owned()),
                tracefs_mounted: false,
                tracefs_readable: false,
                addresses_hidden: true,
                exact: false,
                ..samples::evidence()
            }),
        );
        found.mode = "missing";
        found.tried = Err(why.to_owned());
        found.rights = Rights {
            euid: 65534,
            sys_admin: false,
            held: Some(Vec::new()),
            missing: samples::LACKS.to_vec(),
        };
        found.allowed = vec![("BPF", Err(why.to_owned()))];
        found.system.tracefs = Err("tracefs is not mounted".to_owned());
        found.system.kernel_addresses = Err("/proc/kallsyms shows zeroes".to_owned());
        for role in &mut found.roles {
            role.why = format!("{why}; nothing is seen");
        }
        insta::assert_snapshot!(screen(&found, WIDTH));
    }

    #[test]
    fn no_line_is_wider_than_the_paper_unless_a_word_is() {
        let found = samples::page(
            samples::accounting(&samples::old(), Hierarchy::V1),
            Hierarchy::V1,
            samples::roles(Status::Bounded, &[]),
            Vec::new(),
        );
        for width in [NARROWEST, 80, WIDTH] {
            let text = screen(&found, width);
            let longest = text
                .lines()
                .filter(|line| !line.starts_with(|first: char| first.is_uppercase()))
                .map(|line| line.chars().count());
            assert!(longest.max() <= Some(width), "{text}");
        }
    }

    #[test]
    fn the_page_as_json_has_every_part_and_facts_that_say_why_not() {
        let mut found = samples::page(
            samples::accounting(&samples::old(), Hierarchy::V1),
            Hierarchy::V1,
            samples::roles(Status::Exact, &[]),
            Vec::new(),
        );
        found.system.btf = Err("no such file".to_owned());
        found.allowed = vec![("kprobe", Ok(())), ("fentry", Err("no".to_owned()))];
        let json = serde_json::to_value(crate::view::json::Line::Doctor(&found)).expect("json");
        assert_eq!(json["type"], "doctor");
        assert_eq!(json["system"]["btf"]["why_not"], "no such file");
        assert_eq!(json["system"]["tracefs"]["is"], "/sys/kernel/tracing");
        assert_eq!(json["allowed"]["kprobe"], true);
        assert_eq!(json["allowed"]["fentry"], "no");
        assert_eq!(json["accounting"]["kmem_limit"], "works");
        assert_eq!(json["answers"][0]["status"], "exact");
        assert_eq!(json["roles"][0]["role"], "counter.charge");
        assert_eq!(json["tried"], true);
    }
}
