//! Single events: those of the traced cgroups alone, by names that mean something; what this kernel does
//! not give is refused.

use crate::{
    own,
    support::{
        cgroup::Cgroup,
        lines, load, machine,
        tracer::{Tracer, ask, planned},
    },
    traceable,
};

fn is_missing(role: &str) -> bool {
    planned(role)["status"] == "missing"
}

#[test]
fn events_are_those_of_the_traced_subtree_the_removed_included() {
    if !traceable() {
        return;
    }
    let roles: Vec<&str> = ["cgroup.lifecycle", "memcg.state"]
        .into_iter()
        .filter(|role| !is_missing(role))
        .collect();
    if roles.is_empty() {
        machine::skip("this kernel tells of neither cgroups nor memory.stat");
        return;
    }
    let parent = Cgroup::top(&own("events"));
    let elsewhere = Cgroup::top(&own("elsewhere"));
    let words = format!(
        "--no-slab -c {} --ring 16384 --events {}",
        parent.name,
        roles.join(",")
    );
    let tracer = Tracer::start(&words);
    let child = parent.child("child");
    let held = load::start(&elsewhere, "anon=5M");
    child.enter(held.pid());
    load::pass(&child, "anon=5M");
    elsewhere.enter(held.pid());
    held.end();
    assert!(child.remove(), "nothing is in it");
    let is = |line: &serde_json::Value, result: &str| {
        line["cgroup"] == child.name.as_str() && line["result"] == result
    };
    if roles.contains(&"cgroup.lifecycle") {
        for result in ["made", "task moved in", "removed"] {
            tracer.event(result, |line| is(line, result));
        }
    }
    if roles.contains(&"memcg.state") {
        tracer.event("its memory", |line| {
            line["cgroup"] == child.name.as_str() && line["item"] == "anon"
        });
    }
    let ended = tracer.end();
    ended.assert_fine();
    for event in lines::of_type(&ended.lines, "event") {
        let name = event["cgroup"].as_str().expect("a name");
        let is_below = name.strip_prefix(&parent.name);
        assert!(
            is_below.is_some_and(|rest| rest.is_empty() || rest.starts_with('/')),
            "{event}"
        );
        if event["role"] == "memcg.state" {
            let item = event["item"].as_str().expect("a name");
            assert!(!item.starts_with("item "), "{event}");
        }
    }
}

#[test]
fn the_root_shows_events_of_all_cgroups() {
    if !traceable() || is_missing("cgroup.lifecycle") {
        return;
    }
    let tracer = Tracer::start("--no-slab -c / --events cgroup.lifecycle");
    let anywhere = Cgroup::top(&own("anywhere"));
    tracer.event("it is made", |line| {
        line["cgroup"] == anywhere.name.as_str() && line["result"] == "made"
    });
    tracer.end();
}

#[test]
fn a_role_that_this_kernel_does_not_give_is_refused_by_name() {
    if !traceable() {
        return;
    }
    let parent = Cgroup::top(&own("refused"));
    let Some(missing) = ["limit.write", "charge.user", "slab.sheaf"]
        .into_iter()
        .find(|role| is_missing(role))
    else {
        machine::skip("this kernel gives all roles");
        return;
    };
    let words = |roles: &str| format!("--no-slab -c {} -d 200ms --events {roles}", parent.name);
    let answer = ask(&words(missing));
    assert_eq!(answer.code(), 1, "{answer:?}");
    assert_eq!(
        (answer.error.lines().count(), answer.out.as_str()),
        (1, ""),
        "{answer:?}"
    );
    assert!(
        answer.error.starts_with(&format!(
            "kmem-trace: --events: this kernel gives no events of {missing} ("
        )),
        "{answer:?}"
    );
    if is_missing("cgroup.lifecycle") {
        return;
    }
    let answer = ask(&words(&format!("cgroup.lifecycle,{missing}")));
    assert_eq!(answer.code(), 0, "{answer:?}");
    assert_eq!(answer.error.lines().count(), 1, "{answer:?}");
    assert!(
        answer.error.starts_with(&format!(
            "kmem-trace: warn: --events: this kernel gives no events of {missing} ("
        )),
        "{answer:?}"
    );
}
