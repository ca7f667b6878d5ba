//! The demo, traced and not, in turns.

use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::Bench;
use super::document::Section;
use super::figures::{at_most, median, slowdowns};
use super::table::Table;

const GOAL: f64 = 1.05;

/// What one demo took.
struct Run {
    seconds: f64,
    rss_mib: Option<f64>,
    cpu_s: Option<f64>,
}

pub fn measure(bench: &Bench) -> Result<Section> {
    let (groups, connections, rounds) = if bench.full {
        (20, 20_000, 2)
    } else {
        (4, 5_000, bench.rounds.clamp(1, 3))
    };
    let (mut bare, mut traced) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        eprintln!("  round {} of {rounds}", round + 1);
        // A load leaves the node's caches warm: nobody is always second.
        let order = if round % 2 == 0 {
            [false, true]
        } else {
            [true, false]
        };
        for is_traced in order {
            let run = demo(bench, groups, connections, is_traced)?;
            if is_traced { &mut traced } else { &mut bare }.push(run);
        }
    }
    let seconds = |runs: &[Run]| runs.iter().map(|run| run.seconds).collect::<Vec<_>>();
    let (without, with) = (seconds(&bare), seconds(&traced));
    let ratio = median(&slowdowns(&without, &with));
    let of = |value: fn(&Run) -> Option<f64>| {
        let all: Vec<f64> = traced.iter().filter_map(value).collect();
        format!("{:.1}", median(&all))
    };
    let mut table = Table::new([
        "load",
        "--no-trace, s",
        "traced, s",
        "ratio",
        "tracer CPU, s",
        "RSS, MiB",
    ]);
    table.row([
        format!("{groups} × {connections}"),
        format!("{:.1}", median(&without)),
        format!("{:.1}", median(&with)),
        format!("{ratio:.3} ×"),
        of(|run| run.cpu_s),
        of(|run| run.rss_mib),
    ]);
    let mut remarks = vec![at_most(
        "The demo, traced by not traced",
        Some(ratio),
        GOAL,
        " ×",
    )];
    if !bench.full {
        remarks.push(
            "- A small load: the tracer's start and end weigh more here than in `--full`."
                .to_owned(),
        );
    }
    Ok(Section {
        title: "The demo".to_owned(),
        method: format!(
            "`kmem-trace demo --groups {groups} --connections {connections}`, with and without \
             `--no-trace`, {rounds} times in turns; the whole command's time, attaching, settling and \
             taking the load down included; the ratio is the median of the rounds'."
        ),
        table,
        remarks,
        ..Section::default()
    })
}

fn demo(bench: &Bench, groups: u32, connections: u32, traced: bool) -> Result<Run> {
    let begun = Instant::now();
    let output = Command::new(&bench.kmem_trace)
        .args(["demo", "--format", "json"])
        .args(["--groups", &groups.to_string()])
        .args(["--connections", &connections.to_string()])
        .args([
            "--cgroup",
            &format!("kmem-trace-bench-{}", std::process::id()),
        ])
        .args((!traced).then_some("--no-trace"))
        .stderr(Stdio::inherit())
        .output()
        .context("cannot start the demo")?;
    let seconds = begun.elapsed().as_secs_f64();
    // 3: traced, and a residual beyond its bound, which is not what is measured here.
    if !matches!(output.status.code(), Some(0 | 3)) {
        bail!("the demo ended with {}", output.status);
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let summary = text
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .find(|line| line["type"] == "summary");
    let own = |key: &str| summary.as_ref().and_then(|line| line["self"][key].as_f64());
    Ok(Run {
        seconds,
        rss_mib: own("rss_bytes").map(|bytes| bytes / f64::from(1 << 20)),
        cpu_s: own("cpu_s"),
    })
}
