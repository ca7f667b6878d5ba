//! Records a second through decoder and ledger, by criterion.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::document::Section;
use super::figures::at_least;
use super::table::Table;
use crate::{process, workspace};

/// Millions of events a second, decoded and in the ledger, on one core.
const GOAL: f64 = 20.0;

/// Criterion's names, and ours.
const CASES: [(&str, &str); 5] = [
    ("decode/alone", "decode alone"),
    ("ledger/10", "decode + ledger, 10 cgroups"),
    ("ledger/100", "100 cgroups"),
    ("ledger/1000", "1 000 cgroups"),
    ("ledger/10000", "10 000 cgroups"),
];

pub fn measure() -> Result<Section> {
    process::run(workspace::cargo().args([
        "bench",
        "--quiet",
        "--package",
        "kmem-trace",
        "--bench",
        "ledger",
        "--",
        "--quiet",
        "--noplot",
        "--warm-up-time",
        "1",
        "--measurement-time",
        "3",
    ]))?;
    let folder = workspace::target().join("criterion");
    let mut table = Table::new(["", "million events/s", "ns an event"]);
    let mut slowest = f64::INFINITY;
    for (case, name) in CASES {
        let rate = rate(&folder.join(case).join("new"))?;
        if case.starts_with("ledger") {
            slowest = slowest.min(rate);
        }
        table.row([
            name.to_owned(),
            format!("{rate:.1}"),
            format!("{:.1}", 1e3 / rate),
        ]);
    }
    Ok(Section {
        title: "Decoding and ledger".to_owned(),
        method: "Counter records of a recorded trace (`kmem-trace/tests/data`), repeated to 65 536, \
                 each moved to a cgroup drawn at random, so that neighbours share nothing; one core, \
                 criterion's estimate of the median. `cargo bench --package kmem-trace --bench \
                 ledger` for more."
            .to_owned(),
        table,
        remarks: vec![at_least(
            "Decode and ledger, at any number of cgroups here",
            slowest,
            GOAL,
            " million events/s",
        )],
        ..Section::default()
    })
}

/// Millions of elements a second, of one of criterion's folders.
fn rate(folder: &Path) -> Result<f64> {
    let read = |name: &str| -> Result<Value> {
        let path = folder.join(name);
        let text = fs::read_to_string(&path)
            .with_context(|| format!("criterion left no {}", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("{} is no JSON", path.display()))
    };
    rate_of(&read("benchmark.json")?, &read("estimates.json")?)
        .with_context(|| format!("no figures in {}", folder.display()))
}

fn rate_of(benchmark: &Value, estimates: &Value) -> Option<f64> {
    let elements = benchmark["throughput"]["Elements"].as_f64()?;
    let nanoseconds = estimates["median"]["point_estimate"].as_f64()?;
    (nanoseconds > 0.0).then(|| elements / nanoseconds * 1e3)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_rate_is_elements_by_the_median_time() {
        let benchmark = json!({"throughput": {"Elements": 1000}});
        let estimates = json!({"median": {"point_estimate": 50_000.0}});
        assert_eq!(rate_of(&benchmark, &estimates), Some(20.0));
        assert_eq!(rate_of(&json!({}), &estimates), None);
    }
}
