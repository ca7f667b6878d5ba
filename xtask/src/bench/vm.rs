//! The mechanisms against each other on a kernel that has them all, in an emulated machine.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::document::Section;
use super::table::Table;
use crate::vm::{self, kernel::Line};

const KERNEL: &str = "6.12";
/// What the traced child makes and lets go of.
const LOAD: &str = "anon=64M tcp=200 forks=200 hold=1s";

/// Mechanisms of programs, by how their names begin.
const MECHANISMS: [(&str, &str); 7] = [
    ("kp_", "kprobe"),
    ("kx_", "kprobe on the returns"),
    ("kr_", "kretprobe"),
    ("fe_", "fentry"),
    ("fx_", "fexit"),
    ("rt_", "raw tracepoint"),
    ("tb_", "BTF tracepoint"),
];

pub fn measure() -> Result<Section> {
    let kernel: Line = KERNEL.parse().map_err(anyhow::Error::msg)?;
    let one = |mode: &str| {
        format!(
            "kmem-trace run -c bench --attach {mode} --bpf-stats --format json -- \
             kmem-trace __worker churn {LOAD} > /out/{mode}.jsonl"
        )
    };
    let script = format!("{}; {}", one("kprobe"), one("fentry"));
    let (code, out) = vm::run_command(&vm::Arguments {
        kernels: vec![kernel],
        command: ["sh", "-c", &script].map(str::to_owned).to_vec(),
        ..vm::Arguments::default()
    })?;
    // 3: a residual beyond its bound, which is not what is measured here.
    if !matches!(code, 0 | 3) {
        bail!("the trace in the machine ended with {code}");
    }
    let mut table = Table::new(["--attach", "mechanism", "programs", "runs", "ns a run"]);
    for mode in ["kprobe", "fentry"] {
        let file = out.join(format!("{mode}.jsonl"));
        let text =
            fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        for (mechanism, sums) in by_mechanism(&text)? {
            table.row([
                mode.to_owned(),
                mechanism,
                sums.programs.to_string(),
                format!("{:.0}", sums.runs),
                format!("{:.0}", sums.nanoseconds / sums.runs.max(1.0)),
            ]);
        }
    }
    Ok(Section {
        title: "Mechanisms".to_owned(),
        method: format!(
            "Debian's {KERNEL} in QEMU without hardware virtualisation: instructions are translated \
             one by one, so nanoseconds are those of no real machine, and only ratios within the \
             table mean anything. One load (`{LOAD}`) with the ledger by kprobes and by fentry; slab \
             by raw tracepoints either way. The kernel counts the time in a program alone: a \
             kprobe's breakpoint, with its exception, and a trampoline come on top and are not in \
             these figures. Different programs do different work: compare what a change of a page \
             counter takes in all, not program with program."
        ),
        table,
        ..Section::default()
    })
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Sums {
    programs: u32,
    runs: f64,
    nanoseconds: f64,
}

/// The programs of a trace's summary, added up by mechanism.
fn by_mechanism(lines: &str) -> Result<BTreeMap<String, Sums>> {
    let summary = lines
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .find(|line| line["type"] == "summary")
        .context("the trace gave no summary")?;
    let programs = summary["self"]["programs"]
        .as_array()
        .context("the summary names no programs")?;
    let mut sums: BTreeMap<String, Sums> = BTreeMap::new();
    for program in programs {
        let name = program["program"].as_str().unwrap_or_default();
        let mechanism = MECHANISMS
            .iter()
            .find(|(begins, _)| name.starts_with(begins))
            .map_or("other", |(_, mechanism)| mechanism);
        let sum = sums.entry(mechanism.to_owned()).or_default();
        sum.programs += 1;
        sum.runs += program["runs"].as_f64().unwrap_or(0.0);
        sum.nanoseconds += program["run_ns"].as_f64().unwrap_or(0.0);
    }
    Ok(sums)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_added_up_by_mechanism() {
        let lines = r#"{"type":"plan"}
{"type":"summary","self":{"programs":[{"program":"kp_charge","run_ns":300,"runs":3},{"program":"kp_uncharge","run_ns":100,"runs":1},{"program":"rt_kfree","run_ns":50,"runs":1}]}}"#;
        let sums = by_mechanism(lines).expect("a summary");
        let kprobe = Sums {
            programs: 2,
            runs: 4.0,
            nanoseconds: 400.0,
        };
        assert_eq!(sums["kprobe"], kprobe);
        assert_eq!(sums.len(), 2);
        assert!(by_mechanism("{}").is_err());
    }
}
