//! Run time of our slab programs against an empty program on the same tracepoints, both at work at
//! the same time, by the kernel's own statistics.

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::document::Section;
use super::figures::at_most;
use super::loops::KINDS;
use super::table::Table;
use super::tracers::{LOOP_CPU, Running, Tracer, scratch};
use super::turns::Turns;
use super::{Bench, Cgroup};

/// Tracepoints, and how our programs on them end whatever the mechanism (`rt_`, `tb_`, `tp_`).
const HOOKS: [(&str, &str); 4] = [
    ("kmem_cache_alloc", "_cache_alloc"),
    ("kmalloc", "_kmalloc"),
    ("kmem_cache_free", "_cache_free"),
    ("kfree", "_kfree"),
];

/// How the second program on each is called.
const SECOND: &str = "_2";

/// Run time of ours by that of the empty program.
const GOAL: f64 = 1.5;
/// Turns of each loop.
const TURNS: u64 = 5_000;

pub fn measure(bench: &Bench) -> Result<Section> {
    let cgroup = Cgroup::new()?;
    let mut loops = Turns::loops(&bench.turns, &cgroup.dir, LOOP_CPU, &scratch()?)?;
    let running = Running::start(Tracer::Ours, bench, &cgroup.name, &["--bpf-stats"])?
        .context("no tracer")?;
    let mut empty = Turns::empty(&bench.turns, &HOOKS.map(|(tracepoint, _)| tracepoint))?;
    for (kind, _) in KINDS {
        loops.run(kind, TURNS)?;
    }
    let floor = empty.runs()?;
    drop(empty);
    let summary = running.stop()?.summary()?;
    let ours = summary["self"]["programs"]
        .as_array()
        .context("the summary names no programs")?;
    let mut table = Table::new([
        "tracepoint",
        "runs",
        "ours, ns",
        "second, ns",
        "empty, ns",
        "ratio",
        "beyond, ns",
    ]);
    let (mut own_sum, mut empty_sum) = (0.0, 0.0);
    for ((tracepoint, ending), (runs, nanoseconds)) in HOOKS.into_iter().zip(floor) {
        let number = |ending: &str, key: &str| {
            let ends = |program: &&Value| {
                let name = program["program"].as_str();
                name.is_some_and(|name| name.ends_with(ending))
            };
            ours.iter()
                .find(ends)
                .and_then(|program| program[key].as_f64())
        };
        let (Some(first_ns), Some(own_runs)) = (number(ending, "run_ns"), number(ending, "runs"))
        else {
            table.row([tracepoint, "–"]);
            continue;
        };
        let second_ns = number(&format!("{ending}{SECOND}"), "run_ns").unwrap_or(0.0);
        let (first, second) = (first_ns / own_runs, second_ns / own_runs);
        let floor = nanoseconds / runs.max(1.0);
        let own = first + second;
        own_sum += own * own_runs;
        empty_sum += floor * own_runs;
        table.row([
            tracepoint.to_owned(),
            format!("{own_runs:.0}"),
            format!("{first:.0}"),
            format!("{second:.0}"),
            format!("{floor:.0}"),
            format!("{:.2} ×", own / floor),
            format!("{:.0}", own - floor),
        ]);
    }
    let ratio = (empty_sum > 0.0).then(|| own_sum / empty_sum);
    Ok(Section {
        title: "BPF run time an event".to_owned(),
        method: format!(
            "{TURNS} turns of each loop above in the traced cgroup, with an empty program on the same \
             raw tracepoints at the same time; run time by runs, as the kernel counts both \
             (`BPF_ENABLE_STATS`). What an empty program takes is the kernel's clock, read twice. The \
             second of ours, which takes what the kernel skips of the first, runs at each event too, \
             clock and all: it is in ratio and difference."
        ),
        table,
        remarks: vec![at_most("All events, ours by empty", ratio, GOAL, " ×")],
        ..Section::default()
    })
}
