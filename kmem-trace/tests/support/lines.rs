//! JSON Lines as the program prints them, and the keys that others may rely on.

use serde_json::Value;

pub fn is(line: &Value, kind: &str) -> bool {
    line["type"] == kind
}

pub fn of_type<'a>(lines: &'a [Value], kind: &'a str) -> impl Iterator<Item = &'a Value> {
    lines.iter().filter(move |line| is(line, kind))
}

/// Reports on one cgroup.
pub fn reports<'a>(lines: &'a [Value], cgroup: &'a str) -> impl Iterator<Item = &'a Value> {
    lines.iter().filter(move |line| is_report(line, cgroup))
}

pub fn is_report(line: &Value, cgroup: &str) -> bool {
    is(line, "report") && line["cgroup"] == cgroup
}

/// A number that has to be there.
#[track_caller]
pub fn number(line: &Value, key: &str) -> i64 {
    line[key]
        .as_i64()
        .unwrap_or_else(|| panic!("no number {key} in {line}"))
}

/// Each residual of a report, with its bound: that of the usage, and of the other counters.
pub fn residuals(report: &Value) -> Vec<(String, i64, i64)> {
    let one = |name: &str, of: &Value| {
        (
            name.to_owned(),
            number(of, "residual_bytes"),
            number(of, "bound_bytes"),
        )
    };
    let counters = report["counters"].as_array().expect("counters are a list");
    let others = counters
        .iter()
        .map(|counter| one(counter["counter"].as_str().expect("a name"), counter));
    std::iter::once(one("usage", report))
        .chain(others)
        .collect()
}

/// Every residual within its bound.
#[track_caller]
pub fn assert_holds(report: &Value) {
    for (name, residual, bound) in residuals(report) {
        assert!(
            residual.abs() <= bound,
            "{name}: {residual} of at most {bound} in {report}"
        );
    }
}

/// Every residual nothing.
#[track_caller]
pub fn assert_exact(report: &Value) {
    for (name, residual, _) in residuals(report) {
        assert_eq!(residual, 0, "{name} in {report}");
    }
}

/// All records arrived: then they alone say what the totals say.
#[track_caller]
pub fn assert_nothing_lost(report: &Value) {
    for kind in ["ring", "map_full", "skipped"] {
        assert_eq!(number(&report["lost"], kind), 0, "{kind} in {report}");
    }
    assert_eq!(
        number(report, "streamed_bytes"),
        number(report, "totals_bytes"),
        "{report}"
    );
}

/// The keys of the contract, by line.
pub const PLAN: &[&str] = &["type", "kernel", "hierarchy", "lockdown", "roles"];
pub const ROLE: &[&str] = &["role", "symbol", "mechanism", "status", "why"];
pub const REPORT: &[&str] = &[
    "type",
    "elapsed_s",
    "cgroup",
    "cgroup_id",
    "usage_bytes",
    "ledger_bytes",
    "residual_bytes",
    "bound_bytes",
    "kmem_bytes",
    "breakdown",
    "lost",
];
pub const BREAKDOWN: &[&str] = &[
    "anon",
    "file",
    "slab",
    "kernel_stack",
    "page_tables",
    "sock",
    "percpu",
    "other_kernel",
    "stock",
];
pub const LOST: &[&str] = &[
    "ring",
    "map_full",
    "skipped",
    "unwatched_softirqs",
    "unwatched_pages",
    "by_role",
];
pub const NODE: &[&str] = &[
    "elapsed_s",
    "slab_delta_bytes",
    "charged_bytes",
    "not_charged_bytes",
    "other_cgroups_bytes",
    "large_kmalloc_bytes",
    "overhead_bytes",
    "unseen_bytes",
    "residual_bytes",
    "residual_bound_bytes",
    "has_slabinfo",
    "others",
    "lost",
];
/// Of slab.
pub const NODE_LOST: &[&str] = &[
    "map_full",
    "objects",
    "misread",
    "skipped",
    "unwatched_softirqs",
    "unwatched_pages",
    "by_role",
];
pub const GONE: &[&str] = &[
    "elapsed_s",
    "cgroup",
    "cgroup_id",
    "replaced",
    "slab_followed",
];
pub const SELF: &[&str] = &[
    "bpf_run_ns",
    "bpf_runs",
    "cpu_s",
    "rss_bytes",
    "map_bytes",
    "programs",
];
pub const EVENT: &[&str] = &["type", "role", "time_ns", "cpu", "pid", "comm"];

#[track_caller]
pub fn assert_keys(object: &Value, keys: &[&str]) {
    for key in keys {
        assert!(object.get(key).is_some(), "no {key} in {object}");
    }
}

/// What these hold is named by the kernel, by the plan or by the page of `doctor`.
const NOT_KEYS: [&str; 7] = [
    "by_role",
    "system",
    "rights",
    "allowed",
    "accounting",
    "answers",
    "problems",
];

/// Each key of a line, and of what it holds, is in the part of the documentation about such lines.
#[track_caller]
pub fn assert_documented(line: &Value) {
    const PAGE: &str = include_str!("../../../docs/json.md");
    let kind = line["type"].as_str().expect("a type");
    // What all have is said before the first part; some parts lean on others.
    let kinds: &[&str] = match kind {
        "doctor" => &["doctor", "plan"],
        "node" => &["node", "report"],
        _ => &[kind],
    };
    let mut parts = PAGE.split("\n## ");
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let title = part.lines().next().unwrap_or_default();
        if title.split(", ").any(|one| kinds.contains(&one)) {
            text.push_str(part);
        }
    }
    assert_keys_in(&text, line, line);
}

#[track_caller]
fn assert_keys_in(text: &str, value: &Value, line: &Value) {
    match value {
        Value::Object(members) => {
            for (key, value) in members {
                assert!(text.contains(&format!("`{key}`")), "{key} of {line}");
                if !NOT_KEYS.contains(&key.as_str()) {
                    assert_keys_in(text, value, line);
                }
            }
        }
        Value::Array(values) => values
            .iter()
            .for_each(|one| assert_keys_in(text, one, line)),
        _ => {}
    }
}
