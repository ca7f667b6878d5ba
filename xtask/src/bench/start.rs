//! From starting the program to its programs attached, and the memory it takes then.

use std::time::Instant;

use anyhow::{Context as _, Result};

use super::document::Section;
use super::figures::{at_most, median};
use super::table::Table;
use super::tracers::{Running, Tracer};
use super::{Bench, Cgroup};

const GOAL_MS: f64 = 200.0;
const GOAL_MIB: f64 = 64.0;
/// Starts of each.
const STARTS: u32 = 11;

pub fn measure(bench: &Bench) -> Result<Section> {
    let cgroup = Cgroup::new()?;
    let mut table = Table::new([
        "",
        "attached after, ms",
        "least",
        "most",
        "CPU, s",
        "RSS, MiB",
        "maps, MiB",
    ]);
    let mut worst = (0.0_f64, 0.0_f64);
    for tracer in [Tracer::Ours, Tracer::OursLedger] {
        let (mut waits, mut cpu, mut rss, mut maps) = (vec![], vec![], vec![], vec![]);
        for _ in 0..STARTS {
            let begun = Instant::now();
            let running = Running::start(tracer, bench, &cgroup.name, &[])?.context("no tracer")?;
            waits.push(begun.elapsed().as_secs_f64() * 1e3);
            let summary = running.stop()?.summary()?;
            let own = |key: &str| summary["self"][key].as_f64().unwrap_or(0.0);
            cpu.push(own("cpu_s"));
            rss.push(own("rss_bytes") / f64::from(1 << 20));
            maps.push(own("map_bytes") / f64::from(1 << 20));
        }
        let wait = median(&waits);
        worst = (worst.0.max(wait), worst.1.max(median(&rss)));
        let least = waits.iter().copied().fold(f64::INFINITY, f64::min);
        let most = waits.iter().copied().fold(0.0, f64::max);
        table.row([
            tracer.name().to_owned(),
            format!("{wait:.0}"),
            format!("{least:.0}"),
            format!("{most:.0}"),
            format!("{:.2}", median(&cpu)),
            format!("{:.1}", median(&rss)),
            format!("{:.1}", median(&maps)),
        ]);
    }
    Ok(Section {
        title: "Start and memory".to_owned(),
        method: format!(
            "{STARTS} starts, median: from starting the process to the line that says that the \
             programs are attached; CPU time and memory are its own, at its end right after."
        ),
        table,
        remarks: vec![
            at_most("Start to attached", Some(worst.0), GOAL_MS, " ms"),
            at_most("RSS", Some(worst.1), GOAL_MIB, " MiB"),
        ],
        ..Section::default()
    })
}
