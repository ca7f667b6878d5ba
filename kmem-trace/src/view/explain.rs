//! The screen of `kmem-trace explain`: every figure of a cgroup in its place.

use std::io::{self, Write};

use serde::Serialize;

use super::size::{self, human, share, signed};
use crate::reconcile::{
    explain::{Explanation, Verdict},
    fields::{Field, Place},
    kinds::Kinds,
    report::Fit,
};

/// An explanation and whose it is.
#[derive(Clone, Debug, Serialize)]
pub struct Explained {
    pub kernel: String,
    /// `v1` or `v2`.
    pub hierarchy: &'static str,
    /// Path below the hierarchy's root, printable.
    pub cgroup: String,
    pub cgroup_id: u64,
    /// The file that holds the usage.
    pub usage_file: &'static str,
    /// Whether it is the root of the hierarchy.
    pub root: bool,
    pub cpus: u64,
    /// Cgroups in its subtree, itself included.
    pub cgroups: u64,
    /// Whether reading `memory.stat` flushes per-CPU counters.
    pub flushed: bool,
    /// Kernel memory by kind, where no file shows it; `None` where files do.
    pub kernel_counters: Option<Kinds>,
    #[serde(flatten)]
    pub explanation: Explanation,
}

/// Width of the column of field names.
const FIELD: usize = 34;
/// Width of the column of bytes.
const BYTES: usize = 16;
/// Width of the column of the same in units.
const SIZE: usize = 12;
/// Where a paragraph of events breaks.
const WIDTH: usize = 100;

/// Prints the table and the sum below it.
///
/// # Errors
/// Where the output does not take it.
pub fn table(out: &mut impl Write, explained: &Explained) -> io::Result<()> {
    let found = &explained.explanation;
    writeln!(
        out,
        "kmem-trace explain · Linux {} · cgroup {}",
        explained.kernel, explained.hierarchy
    )?;
    let below = match explained.cgroups {
        0 | 1 => String::new(),
        cgroups => format!("  ({} below)", cgroups - 1),
    };
    writeln!(out, "{}{below}", explained.cgroup)?;
    if explained.root {
        writeln!(
            out,
            "  note: this is the root: its figures are made from the node's global ones, and approximate"
        )?;
    }
    writeln!(
        out,
        "\n{:<FIELD$}{:>BYTES$}{:>SIZE$}{:>9}",
        "field", "bytes", "in units", "share"
    )?;
    let whole = found.usage_bytes.unwrap_or(found.sum_bytes);
    let shown = |field: &&Field| field.place != Place::Events && !is_own(field);
    for field in found.fields.iter().filter(shown) {
        let indent = depth(&found.fields, field) * 2;
        let label = format!("{:indent$}{}", "", field.field);
        // A limit is no amount; the greatest one would break the columns.
        let (bytes, size) = match (&field.place, field.bytes) {
            (Place::Limit, bytes) if bytes >= i64::MAX as u64 & !0xffff => {
                ("none".to_owned(), String::new())
            }
            (_, bytes) => (grouped(bytes), size(bytes)),
        };
        let share = match field.place {
            Place::AddsUp | Place::PartOf(_) => share(field.bytes, whole),
            _ => String::new(),
        };
        let mut words = words(&field.place);
        if let Some(own) = own(&found.fields, field).filter(|own| *own != field.bytes) {
            words.push_str(&format!("; its own, without those below: {}", grouped(own)));
        }
        if is_counter(explained, field) {
            words.push_str(" (kernel's counter)");
        }
        line(out, &label, &bytes, &size, &share, &words)?;
    }
    if found.fields.iter().any(is_own) {
        writeln!(
            out,
            "fields without total_ are this cgroup's own share, shown where it is less"
        )?;
    }
    if let Some(kinds) = &explained.kernel_counters {
        writeln!(out, "{}", kinds_text(kinds))?;
    }
    writeln!(out)?;
    line(
        out,
        "sum of what adds up",
        &grouped(found.sum_bytes),
        &size(found.sum_bytes),
        &share(found.sum_bytes, whole),
        "",
    )?;
    match (found.usage_bytes, found.left_over_bytes) {
        (Some(usage), Some(left)) => {
            line(
                out,
                explained.usage_file,
                &grouped(usage),
                &size(usage),
                "",
                "",
            )?;
            line(
                out,
                "left over",
                &grouped_signed(left),
                &units(left.unsigned_abs(), signed(left)),
                "",
                "",
            )?;
            line(
                out,
                "bound",
                &grouped(found.bound_bytes),
                &size(found.bound_bytes),
                "",
                &bound(explained),
            )?;
        }
        _ => writeln!(out, "{}: the root has no such file", explained.usage_file)?,
    }
    events(out, &found.fields)?;
    writeln!(out, "\n{}", verdict(found))?;
    out.flush()
}

/// One row, without blanks at its end.
fn line(
    out: &mut impl Write,
    label: &str,
    bytes: &str,
    size: &str,
    share: &str,
    words: &str,
) -> io::Result<()> {
    let row = format!("{label:<FIELD$}{bytes:>BYTES$}{size:>SIZE$}{share:>9}   {words}");
    writeln!(out, "{}", row.trim_end())
}

/// Whether a field is the cgroup's own share of the one that includes its subtree.
fn is_own(field: &Field) -> bool {
    matches!(&field.place, Place::PartOf(whole) if whole.strip_prefix("total_") == Some(&field.field))
}

/// Whether a field was read from the kernel's memory, as no file shows it.
fn is_counter(explained: &Explained, field: &Field) -> bool {
    match &explained.kernel_counters {
        Some(Kinds::Read { counters, .. }) => counters.contains(&field.field.as_str()),
        _ => false,
    }
}

/// What is to be known of kernel memory by kind.
fn kinds_text(kinds: &Kinds) -> String {
    match kinds {
        Kinds::Read {
            lag_bytes,
            rest_bytes,
            ..
        } => {
            let rest = rest_bytes.map_or(String::new(), |rest| {
                format!("; kernel memory in none of them: {}", signed(rest))
            });
            format!(
                "kernel's counters: in no file of v1, read by BPF, each up to {} behind{rest}",
                human(*lag_bytes)
            )
        }
        Kinds::NotRead { why } => {
            format!("kernel memory by kind is in no file of v1, and not read by BPF: {why}")
        }
    }
}

/// The cgroup's own share of a field, where the kernel shows both.
fn own(fields: &[Field], of: &Field) -> Option<u64> {
    let name = of.field.strip_prefix("total_")?;
    fields
        .iter()
        .find(|field| field.field == name && is_own(field))
        .map(|field| field.bytes)
}

/// How many wholes a field is within.
fn depth(fields: &[Field], field: &Field) -> usize {
    let mut depth = 0;
    let mut at = field;
    while let Place::PartOf(whole) = &at.place {
        depth += 1;
        match fields.iter().find(|other| other.field == *whole) {
            // No chain is longer than there are fields.
            Some(next) if depth < fields.len() => at = next,
            _ => break,
        }
    }
    depth
}

fn words(place: &Place) -> String {
    match place {
        Place::AddsUp => "adds up".to_owned(),
        Place::PartOf(whole) => format!("part of {whole}"),
        Place::Beside(why) => format!("beside usage: {why}"),
        Place::OtherDivision => "the same pages by LRU list".to_owned(),
        Place::Limit => "a limit".to_owned(),
        Place::Events => "event count".to_owned(),
        Place::Unknown => "unknown: not added".to_owned(),
    }
}

fn bound(explained: &Explained) -> String {
    let terms = &explained.explanation.bound_terms;
    size::terms(&[
        ("per-CPU stock", terms.stock),
        ("memory.stat lag", terms.lag),
        ("page batches", terms.batches),
        ("swap cache", terms.swap_cache),
        ("moved while reading", terms.skew),
    ])
}

/// Event counts, as a paragraph: there are many, and they are no bytes.
fn events(out: &mut impl Write, fields: &[Field]) -> io::Result<()> {
    let mut counts = fields
        .iter()
        .filter(|field| field.place == Place::Events)
        .peekable();
    if counts.peek().is_none() {
        return Ok(());
    }
    writeln!(out, "\nevent counts, no bytes:")?;
    let mut row = String::from(" ");
    for field in counts {
        let next = format!(" {} {}", field.field, field.bytes);
        if row.len() + next.len() > WIDTH {
            writeln!(out, "{row}")?;
            row = String::from(" ");
        }
        row.push_str(&next);
    }
    writeln!(out, "{row}")
}

fn verdict(found: &Explanation) -> String {
    let mut text = match (found.verdict, found.left_over_bytes) {
        (Verdict::Explained, Some(0)) => "explained: the fields add up to the usage exactly".to_owned(),
        (Verdict::Explained, left) => {
            let whole = found.usage_bytes.unwrap_or(0).max(found.sum_bytes);
            let fit = Fit::of(left.unwrap_or(0), found.bound_bytes, whole);
            format!("explained: what is left over is {}", fit.words())
        }
        (Verdict::Beyond, Some(left)) if left < 0 => {
            "not explained: the fields add up to more than the usage, by more than the bound".to_owned()
        }
        (Verdict::Beyond, _) => "not explained: more is left over than the bound; pages that are charged but neither mapped nor cached (pinned, or of a huge page that is partly unmapped) have no field".to_owned(),
        (Verdict::Unbounded, _) => "not bounded: this kernel has no field for part of what it charges, and what is left over holds that too".to_owned(),
        (Verdict::None, _) => "no usage to compare with: look at a cgroup below the root".to_owned(),
    };
    if !found.unnamed.is_empty() {
        text.push_str(&format!(
            "; charged without a field of its own: {}",
            found.unnamed.join(", ")
        ));
    }
    let unknown = found.unknown();
    if !unknown.is_empty() {
        text.push_str(&format!(
            "; unknown to this version, not added: {}",
            unknown.join(", ")
        ));
    }
    text
}

/// In units, where these say it shorter; `said` is how.
fn units(bytes: u64, said: String) -> String {
    match bytes {
        0..1024 => String::new(),
        _ => said,
    }
}

/// The same of an amount.
fn size(bytes: u64) -> String {
    units(bytes, human(bytes))
}

fn grouped(bytes: u64) -> String {
    super::size::count(bytes)
}

fn grouped_signed(bytes: i64) -> String {
    let sign = if bytes < 0 { "-" } else { "" };
    format!("{sign}{}", grouped(bytes.unsigned_abs()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reconcile::{
        captured::{QUIET, capture, explained},
        explain::Circumstances,
        fields::Figures,
    };

    fn screen(explained: &Explained) -> String {
        let mut out = Vec::new();
        table(&mut out, explained).expect("memory takes it");
        String::from_utf8(out).expect("text")
    }

    fn on(
        kernel: &str,
        figures: Figures,
        text: &'static str,
        circumstances: &Circumstances,
    ) -> Explained {
        let v2 = figures == Figures::V2;
        Explained {
            kernel: kernel.to_owned(),
            hierarchy: if v2 { "v2" } else { "v1" },
            cgroup: "/cap".to_owned(),
            cgroup_id: 42,
            usage_file: if v2 {
                "memory.current"
            } else {
                "memory.usage_in_bytes"
            },
            root: figures == Figures::V1Root,
            cpus: circumstances.online_cpus,
            cgroups: circumstances.cgroups,
            flushed: circumstances.flushed,
            kernel_counters: None,
            explanation: explained(figures, text, circumstances),
        }
    }

    #[test]
    fn a_v1_usage_on_the_screen() {
        insta::assert_snapshot!(screen(&on(
            "5.10",
            Figures::V1,
            capture!("5.10-v1"),
            &QUIET
        )));
    }

    #[test]
    fn a_v2_usage_on_the_screen() {
        let circumstances = Circumstances {
            flushed: true,
            cgroups: 1,
            cached_per_cpu: 7,
            ..QUIET
        };
        insta::assert_snapshot!(screen(&on(
            "7.3",
            Figures::V2,
            capture!("7.3-v2"),
            &circumstances
        )));
    }

    #[test]
    fn a_counter_of_the_kernel_is_told_from_a_file_and_a_refusal_is_one_line() {
        let mut found = on("6.1", Figures::V1, capture!("6.1-v1"), &QUIET);
        found.kernel_counters = Some(Kinds::Read {
            counters: vec!["memory.kmem.usage_in_bytes"],
            lag_bytes: 1 << 20,
            rest_bytes: Some(2048),
        });
        let shown = screen(&found);
        assert_eq!(shown.matches("(kernel's counter)").count(), 1, "{shown}");
        assert!(shown.contains("up to 1 024.0 KiB behind") && shown.contains("+2.0 KiB"));
        found.kernel_counters = Some(Kinds::NotRead {
            why: "no rights".to_owned(),
        });
        let shown = screen(&found);
        assert_eq!(shown.matches("(kernel's counter)").count(), 0, "{shown}");
        let told = |line: &&str| line.contains("not read by BPF: no rights");
        assert_eq!(shown.lines().filter(told).count(), 1, "{shown}");
    }

    #[test]
    fn no_line_is_lost_between_figures_and_screen() {
        let found = on("5.10", Figures::V2, capture!("5.10-v2"), &QUIET);
        let screen = screen(&found);
        for field in &found.explanation.fields {
            assert!(screen.contains(&field.field), "{}", field.field);
        }
    }

    #[test]
    fn json_is_one_line_with_its_type_first() {
        let found = on("6.12", Figures::V2, capture!("6.12-v2"), &QUIET);
        let mut out = Vec::new();
        crate::view::json::write(&mut out, &crate::view::json::Line::Explain(&found))
            .expect("written");
        let text = String::from_utf8(out).expect("text");
        assert!(text.starts_with("{\"type\":\"explain\",") && text.matches('\n').count() == 1);
        let line: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let field = |name: &str| {
            let fields = line["fields"].as_array().expect("a list");
            fields
                .iter()
                .find(|field| field["field"] == name)
                .cloned()
                .expect("shown")
        };
        assert_eq!(field("slab")["place"], "part_of");
        assert_eq!(field("slab")["of"], "kernel");
        assert_eq!(field("anon")["place"], "adds_up");
        assert_eq!(line["verdict"], "explained");
    }
}
