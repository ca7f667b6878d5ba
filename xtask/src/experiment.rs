//! `cargo xtask experiment`: the field report that this tool began with, scaled to a test machine.
//! The demo runs on a v1 kernel with kernel memory accounting, and on the same kernel booted with
//! `cgroup.memory=nokmem`; both tables side by side, and what makes each line differ.

use std::fmt::Write as _;
use std::fs;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use serde_json::Value;

use crate::vm;
use crate::vm::kernel::Line;

#[derive(Args)]
pub struct Arguments {
    /// Kernel line; it has to have cgroup v1.
    #[arg(long, value_name = "LINE", default_value = "5.10")]
    kernel: Line,
    #[arg(long, default_value_t = 4)]
    groups: u32,
    /// TCP connections of each group.
    #[arg(long, default_value_t = 1000)]
    connections: u64,
}

/// What one run of the demo measured, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Figures {
    anon: i64,
    slab: i64,
    usage: i64,
    rss: i64,
    kmem: i64,
}

pub fn main(arguments: &Arguments) -> Result<ExitCode> {
    let binary = vm::build_binary()?;
    let run = |append: &[&str]| -> Result<Figures> {
        let command = format!(
            "kmem-trace demo --groups {} --connections {} --format json > /out/demo.jsonl",
            arguments.groups, arguments.connections
        );
        let (code, out) = vm::run_command(&vm::Arguments {
            kernels: vec![arguments.kernel.clone()],
            cgroup: vm::Cgroup::V1,
            append: append.iter().map(|words| (*words).to_owned()).collect(),
            binary: Some(binary.clone()),
            command: ["sh", "-c", &command].map(str::to_owned).to_vec(),
            ..vm::Arguments::default()
        })?;
        if code != 0 {
            bail!("the demo ended with exit code {code}");
        }
        let file = out.join("demo.jsonl");
        let text =
            fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        figures(&text)
    };
    eprintln!("with kernel memory accounting:");
    let on = run(&[])?;
    eprintln!("booted with cgroup.memory=nokmem:");
    let off = run(&["cgroup.memory=nokmem"])?;
    println!(
        "{} groups of {} TCP connections, Linux {}, cgroup v1",
        arguments.groups, arguments.connections, arguments.kernel
    );
    print!("{}", table(on, off));
    Ok(ExitCode::SUCCESS)
}

/// Out of the line with which `kmem-trace demo --format json` ends.
fn figures(lines: &str) -> Result<Figures> {
    let demo: Value = lines
        .lines()
        .rev()
        .filter_map(|line| serde_json::from_str(line).ok())
        .find(|line: &Value| line["type"] == "demo")
        .context("the demo printed no line of type demo")?;
    let at = |when: &str, name: &str| {
        demo[when][name]
            .as_i64()
            .with_context(|| format!("no {when}.{name} in {demo}"))
    };
    let grown = |name: &str| Ok::<_, anyhow::Error>(at("after", name)? - at("before", name)?);
    Ok(Figures {
        anon: grown("node_anon")?,
        slab: grown("node_slab")?,
        usage: grown("usage")?,
        rss: grown("anon")?,
        kmem: grown("kmem")?,
    })
}

/// The report's table, once for each boot.
fn table(on: Figures, off: Figures) -> String {
    let mut text = format!("{:<24}{:>13}{:>13}\n", "", "accounted", "nokmem");
    let mut line = |name: &str, of: fn(&Figures) -> i64, why: &str| {
        let _ = writeln!(
            text,
            "{name:<24}{:>13}{:>13}   {why}",
            mib(of(&on)),
            mib(of(&off))
        );
    };
    line(
        "added anon",
        |it| it.anon,
        "/proc/meminfo AnonPages: tracer and workers, charged where they were started",
    );
    line(
        "added slab",
        |it| it.slab,
        "/proc/meminfo Slab: the same objects, whoever pays for them",
    );
    line(
        "usage_in_bytes",
        |it| it.usage,
        "what the cgroup was charged",
    );
    line(
        "total_rss",
        |it| it.rss,
        "anonymous memory touched in the cgroup: accounted either way",
    );
    line(
        "usage - total_rss",
        |it| it.usage - it.rss,
        "kernel memory, stocks and page cache; without accounting the first is gone",
    );
    line(
        "kmem.usage_in_bytes",
        |it| it.kmem,
        "slab, stacks and the like that somebody was charged for",
    );
    line(
        "slab outside usage",
        |it| it.slab - it.kmem.min(it.slab),
        "with accounting: born in softirqs or not accountable, no task to charge; without: all of it",
    );
    text
}

fn mib(bytes: i64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINES: &str = r#"{"type":"report","usage_bytes":1}
{"type":"demo","before":{"node_anon":10,"node_slab":100,"usage":0,"anon":0,"kmem":0},"after":{"node_anon":30,"node_slab":1100,"usage":700,"anon":15,"kmem":600}}
"#;

    #[test]
    fn the_figures_are_what_grew() {
        let found = figures(LINES).expect("a demo line");
        let expected = Figures {
            anon: 20,
            slab: 1000,
            usage: 700,
            rss: 15,
            kmem: 600,
        };
        assert_eq!(found, expected);
        assert!(figures("{}\n").is_err());
    }

    #[test]
    fn both_boots_stand_side_by_side() {
        let mib = 1 << 20;
        let on = Figures {
            anon: mib,
            slab: 4 * mib,
            usage: 3 * mib,
            rss: mib,
            kmem: 2 * mib,
        };
        let off = Figures {
            usage: mib,
            kmem: 0,
            ..on
        };
        let text = table(on, off);
        let outside = text
            .lines()
            .find(|line| line.starts_with("slab outside usage"))
            .expect("a line");
        assert!(outside.contains("2.0 MiB      4.0 MiB"), "{text}");
    }
}
