//! Whoever reads JSON finds each key in the documentation.

use std::{thread, time::Duration};

use serde_json::Value;

use crate::{
    own,
    support::{
        cgroup::Cgroup,
        lines, load,
        tracer::{Answer, Tracer, ask},
    },
    traceable,
};

#[track_caller]
fn assert_documented(answer: &Answer) {
    assert_eq!(answer.code(), 0, "{answer:?}");
    assert!(!answer.out.is_empty(), "{answer:?}");
    for line in answer.out.lines() {
        let line: Value = serde_json::from_str(line).expect("JSON");
        lines::assert_documented(&line);
    }
}

#[test]
fn every_key_of_a_trace_is_in_the_documentation() {
    if !traceable() {
        return;
    }
    let parent = Cgroup::top(&own("keys"));
    let tracer = Tracer::start(&format!("-c {} -i 100ms --bpf-stats", parent.name));
    let held = load::start(&parent, "anon=5M pipes=200");
    thread::sleep(Duration::from_millis(300));
    held.end();
    let ended = tracer.end();
    ended.assert_fine();
    for kind in ["plan", "report", "summary"] {
        assert!(lines::of_type(&ended.lines, kind).count() > 0, "no {kind}");
    }
    ended.lines.iter().for_each(lines::assert_documented);
    let name = own("keys-demo");
    assert_documented(&ask(&format!(
        "demo -c {name} --groups 1 --connections 50 --format json"
    )));
}

#[test]
fn every_key_of_an_event_is_in_the_documentation() {
    if !traceable() {
        return;
    }
    let parent = Cgroup::top(&own("event-keys"));
    let tracer = Tracer::start(&format!("-c {} --events", parent.name));
    load::pass(&parent.child("below"), "anon=1M");
    let ended = tracer.end();
    assert!(lines::of_type(&ended.lines, "event").count() > 0);
    for line in &ended.lines {
        lines::assert_documented(line);
    }
}

#[test]
fn every_key_of_the_other_commands_is_in_the_documentation() {
    assert_documented(&ask("doctor --format json"));
    if traceable() {
        assert_documented(&ask("explain --format json"));
    }
}
