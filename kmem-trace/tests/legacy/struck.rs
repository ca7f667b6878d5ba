//! A kernel without the best candidates: one after another is struck out, until no ledger is left.

use std::{thread, time::Duration};

use kmem_trace::hooks::table;
use serde_json::Value;

use crate::support::{
    cgroup::Cgroup,
    lines::{self, number},
    load, machine,
    tracer::{Tracer, ask},
};

/// What is left of a role after all that was struck: what a trace said, or why it would not run.
fn rungs(role: &str) -> Vec<String> {
    let candidates = table::role(role).expect("it is in the table").candidates;
    (0..=candidates.len())
        .map(|upto| {
            let words: Vec<_> = (0..upto).map(|index| format!("{role}:{index}")).collect();
            if words.is_empty() {
                String::new()
            } else {
                format!("--strike {}", words.join(","))
            }
        })
        .collect()
}

fn rank(status: &Value) -> usize {
    ["exact", "bounded", "missing"]
        .iter()
        .position(|word| status == word)
        .unwrap_or_else(|| panic!("{status} is no status"))
}

#[test]
fn with_its_candidates_struck_out_each_role_gets_worse_step_by_step_and_says_so() {
    if !machine::is_vm() || !machine::needs_exact() {
        return;
    }
    let steps = table::ROLES.iter().map(|role| role.candidates.len()).max();
    let mut before = vec![0; table::ROLES.len()];
    for step in 0..=steps.expect("the table has roles") {
        // The first `step` candidates of every role at once: each run of the doctor attaches all.
        let struck: Vec<_> = table::ROLES
            .iter()
            .filter_map(|role| rungs(role.name).into_iter().take(step + 1).next_back())
            .collect();
        let answer = ask(&format!("doctor --format json {}", struck.join(" ")));
        assert_eq!(answer.code(), 0, "step {step}: {answer:?}");
        let first = answer.out.lines().next().unwrap_or_default();
        let plan: Value = serde_json::from_str(first).expect("a line of JSON");
        assert!(lines::is(&plan, "plan"), "{first}");
        let rows = plan["roles"].as_array().expect("a list");
        for (role, before) in table::ROLES.iter().zip(&mut before) {
            let row = rows.iter().find(|row| row["role"] == role.name);
            let row = row.expect("every role has its row");
            let now = rank(&row["status"]);
            assert!(
                now >= *before,
                "{} got better at step {step}: {row}",
                role.name
            );
            if now > 0 {
                let why = row["why"].as_str().unwrap_or_default();
                assert!(!why.is_empty(), "{} does not say why: {row}", role.name);
            }
            *before = now;
        }
    }
    assert!(
        before.iter().all(|rank| *rank == 2),
        "something is left: {before:?}"
    );
}

#[test]
fn a_ledger_goes_by_the_next_best_and_holds_until_there_is_none() {
    if !machine::is_vm() || !machine::needs_exact() {
        return;
    }
    let cgroup = Cgroup::top("test-struck");
    let mut modes = Vec::new();
    let counters = rungs("counter.charge")
        .into_iter()
        .zip(rungs("counter.uncharge"));
    let state = rungs("memcg.state").pop().expect("the last takes all");
    for strike in counters
        .map(|(charge, uncharge)| format!("{charge} {uncharge}"))
        .collect::<Vec<_>>()
    {
        // The ledger alone: what becomes of slab is the other test's.
        let words = format!("--no-slab -c test-struck -i 50ms {strike}");
        if !machine::has_memcg_tracepoints() && strike == last_of_counters() {
            refused(&words);
            modes.push("none".to_owned());
            continue;
        }
        let tracer = Tracer::start(&words);
        let mode = tracer.plan()["mode"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        let held = load::start(&cgroup, "anon=40M file=20M pipes=100");
        thread::sleep(Duration::from_secs(2));
        let report = tracer.next_report(&cgroup.name);
        assert!(number(&report, "usage_bytes") > 40 << 20, "{report}");
        lines::assert_holds(&report);
        if mode == "exact" {
            lines::assert_exact(&report);
        }
        held.end();
        tracer.end().assert_fine();
        modes.push(mode);
    }
    let last = modes.pop().unwrap_or_default();
    let expected = if machine::has_memcg_tracepoints() {
        "bounded"
    } else {
        "none"
    };
    assert_eq!(last, expected, "after {modes:?}");
    // Each as good as the one before, or less so: never none while a candidate is left.
    let exact = modes.iter().take_while(|mode| *mode == "exact").count();
    assert!(exact > 0, "{modes:?}");
    assert!(
        modes[exact..].iter().all(|mode| mode == "bounded"),
        "{modes:?}"
    );
    refused(&format!("-c test-struck {} {state}", last_of_counters()));
}

fn last_of_counters() -> String {
    ["counter.charge", "counter.uncharge"]
        .map(|role| rungs(role).pop().unwrap_or_default())
        .join(" ")
}

/// No ledger is left: one clear line, and nothing attached.
#[track_caller]
fn refused(words: &str) {
    let answer = ask(&format!("{words} -d 1s"));
    let line = answer.assert_refused();
    assert!(
        line.contains("no ledger") && line.contains("struck out"),
        "{line}"
    );
}
