//! The keys that others may rely on, and what doctor says.

use std::{thread, time::Duration};

use serde_json::Value;

use crate::support::{
    cgroup::Cgroup,
    lines::{self, assert_keys},
    load, machine,
    tracer::{Tracer, ask, planned},
};

const ROLES: [&str; 8] = [
    "charge.user",
    "counter.charge",
    "counter.uncharge",
    "limit.write",
    "slab.alloc",
    "slab.free",
    "memcg.state",
    "cgroup.lifecycle",
];

#[test]
fn every_line_has_the_keys_of_the_contract() {
    if !machine::is_vm() || !machine::needs_ledger() {
        return;
    }
    let parent = Cgroup::top("test-keys");
    let tracer = Tracer::start("-c test-keys -i 100ms");
    let held = load::start(&parent, "anon=5M");
    tracer.next_report(&parent.name);
    held.end();
    let ended = tracer.end();
    let summary = ended.assert_fine();
    let plan = &ended.lines[0];
    assert_keys(plan, lines::PLAN);
    for role in plan["roles"].as_array().expect("roles are a list") {
        assert_keys(role, lines::ROLE);
    }
    let reports = lines::of_type(&ended.lines, "report");
    let mut seen = 0;
    for report in reports.chain([summary]) {
        assert_keys(report, lines::REPORT);
        assert_keys(&report["breakdown"], lines::BREAKDOWN);
        assert_keys(&report["lost"], lines::LOST);
        seen += 1;
    }
    assert!(seen >= 2);
    for line in &ended.lines[1..] {
        assert_keys(line, &["elapsed_s"]);
    }
    ended.lines.iter().for_each(lines::assert_documented);
    let nodes: Vec<_> = lines::of_type(&ended.lines, "node").collect();
    let followed = plan["roles"]
        .as_array()
        .is_some_and(|roles| roles.iter().any(is_slab_followed));
    assert_eq!(nodes.is_empty(), !followed, "{plan}");
    for node in nodes {
        assert_keys(node, lines::NODE);
        assert_keys(&node["lost"], lines::NODE_LOST);
    }
    assert_keys(&summary["self"], lines::SELF);
    let verdict = summary["verdict"].as_array().expect("a list of sentences");
    assert!(!verdict.is_empty());
}

fn is_slab_followed(role: &Value) -> bool {
    role["role"] == "slab.alloc" && role["default"] == true
}

#[test]
fn type_comes_first_in_every_line() {
    if !machine::is_vm() || !machine::needs_ledger() {
        return;
    }
    let _parent = Cgroup::top("test-type");
    let answer = ask("-c test-type -i 100ms -d 500ms --format json");
    assert_eq!(answer.code(), 0, "{answer:?}");
    assert!(answer.out.lines().count() >= 3);
    for line in answer.out.lines() {
        assert!(line.starts_with("{\"type\":\""), "{line}");
    }
}

#[test]
fn doctor_gives_every_role_a_status_and_every_missing_one_a_reason() {
    if !machine::is_vm() {
        return;
    }
    let answer = ask("doctor --format json");
    assert_eq!(answer.code(), 0, "{answer:?}");
    // The plan comes first, the page after it.
    let first = answer.out.lines().next().unwrap_or_default();
    let plan: Value = serde_json::from_str(first).expect("one line of JSON");
    assert_keys(&plan, lines::PLAN);
    assert_eq!(plan["lockdown"], machine::lockdown().as_str());
    let roles = plan["roles"].as_array().expect("roles are a list");
    for name in ROLES {
        let role = roles.iter().find(|role| role["role"] == name);
        let role = role.unwrap_or_else(|| panic!("no role {name} in {plan}"));
        let status = role["status"].as_str().expect("a word");
        assert!(["exact", "bounded", "missing"].contains(&status), "{role}");
        let why = role["why"].as_str().expect("a reason, or nothing");
        if status == "missing" {
            assert!(!why.is_empty(), "{role}");
            assert!(role["symbol"].is_null(), "{role}");
        } else {
            assert!(role["symbol"].is_string(), "{role}");
            assert!(role["mechanism"].is_string(), "{role}");
        }
    }
    let text = ask("doctor");
    assert_eq!(text.code(), 0, "{text:?}");
    for name in ROLES {
        let row = text
            .out
            .lines()
            .find(|line| line.trim_start().starts_with(name));
        let row = row.unwrap_or_else(|| panic!("no row {name} in {}", text.out));
        assert!(
            ["exact", "bounded", "missing"]
                .iter()
                .any(|status| row.contains(status)),
            "{row}"
        );
    }
    assert!(!text.out.contains('\u{1b}'), "colours in a pipe");
}

#[test]
fn events_of_a_limit_write_say_which_file_what_and_how_it_went() {
    if !machine::is_vm() || !machine::needs_exact() {
        return;
    }
    let parent = Cgroup::top("test-limit");
    let role = planned("limit.write");
    if role["status"] == "missing" {
        machine::skip(&format!("limit.write is missing here: {}", role["why"]));
        return;
    }
    let tracer = Tracer::start("-c test-limit --events limit.write");
    let file = if crate::support::cgroup::is_v1() {
        "memory.limit_in_bytes"
    } else {
        "memory.max"
    };
    std::fs::write(parent.dir.join(file), "104857600\n").expect("the limit can be set");
    let event = tracer.event("the limit", |line| line["file"] == file);
    assert_keys(&event, lines::EVENT);
    lines::assert_documented(&event);
    assert_eq!(event["cgroup"], parent.name.as_str());
    assert_eq!(event["text"], "104857600");
    assert_eq!(event["result"], "ok");
    std::fs::write(parent.dir.join(file), "nonsense").expect_err("the kernel refuses it");
    let refused = tracer.event("nonsense", |line| line["text"] == "nonsense");
    assert!(
        refused["result"]
            .as_str()
            .is_some_and(|it| it.contains("EINVAL")),
        "{refused}"
    );
    tracer.end().assert_fine();
}

#[test]
fn the_summary_says_what_the_trace_itself_cost() {
    if !machine::is_vm() || !machine::needs_exact() {
        return;
    }
    let parent = Cgroup::top("test-idle");
    let tracer = Tracer::start("-c test-idle");
    let first = tracer.next_report(&parent.name);
    thread::sleep(Duration::from_secs(5));
    tracer.next_report(&parent.name);
    let ended = tracer.end();
    let summary = ended.assert_fine();
    let own = &summary["self"];
    let seconds = |value: &Value| value.as_f64().expect("seconds");
    let elapsed_s = seconds(&summary["elapsed_s"]) - seconds(&first["elapsed_s"]);
    assert!(elapsed_s > 4.0, "{summary}");
    // The start costs an emulated machine many seconds: what counts is what a trace costs that stands.
    let started_s = seconds(&first["self"]["cpu_s"]);
    let cpu_s = seconds(&own["cpu_s"]) - started_s;
    assert!(started_s > 0.0 && cpu_s < elapsed_s / 2.0, "{first} {own}");
    assert!(lines::number(own, "rss_bytes") < 200 << 20, "{own}");
}
