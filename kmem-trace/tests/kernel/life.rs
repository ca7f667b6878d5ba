//! Cgroups and tasks that come, go and move while they are traced.

use std::{fs, thread, time::Duration};

use serde_json::Value;

use crate::support::{
    cgroup::{self, Cgroup},
    lines::{self, number},
    load, machine,
    tracer::Tracer,
};

const MIB: i64 = 1 << 20;
const QUIET: Duration = Duration::from_secs(2);

/// An event of a cgroup's life.
fn life(line: &Value, cgroup: &str, result: &str) -> bool {
    line["role"] == "cgroup.lifecycle" && line["cgroup"] == cgroup && line["result"] == result
}

#[test]
fn a_child_removed_while_traced_is_still_counted_for_its_parent() {
    if !machine::is_vm() || !machine::needs_exact() {
        return;
    }
    let parent = Cgroup::top("test-gone-child");
    let child = parent.child("child");
    let tracer = Tracer::start("--no-slab -c test-gone-child -i 50ms --depth 1");
    // The page cache of a file that stays keeps the dead cgroup charged.
    let file = "/tmp/kmem-trace-kept";
    let before = number(&tracer.next_report(&parent.name), "usage_bytes");
    let held = load::start(&child, "pipes=100");
    let status = std::process::Command::new("sh")
        .arg("-c")
        .arg(format!(
            "echo $$ > {}/cgroup.procs && head -c 20971520 /dev/zero > {file}",
            child.dir.display()
        ))
        .status()
        .expect("a shell starts");
    assert!(status.success());
    held.end();
    assert!(child.remove());
    thread::sleep(QUIET);
    let report = tracer.next_report(&parent.name);
    lines::assert_exact(&report);
    let kept = number(&report, "usage_bytes") - before;
    assert!(kept > 19 * MIB, "{kept} bytes stay of 20 MiB: {report}");
    assert_eq!(number(&report, "dead_descendants"), 1, "{report}");
    assert_eq!(number(&report, "descendants"), 0, "{report}");

    fs::remove_file(file).expect("it is there");
    thread::sleep(QUIET);
    let report = tracer.next_report(&parent.name);
    lines::assert_exact(&report);
    let left = number(&report, "usage_bytes") - before;
    assert!(left < 2 * MIB, "{left} bytes stay after the file went");
    let ended = tracer.end();
    assert_eq!(ended.assert_fine()["stream"]["agrees"], true);
}

#[test]
fn a_child_made_while_tracing_is_counted_from_its_first_page() {
    if !machine::is_vm() || !machine::needs_exact() {
        return;
    }
    let parent = Cgroup::top("test-new-child");
    let tracer = Tracer::start("--no-slab -c test-new-child -i 50ms --depth 2");
    let before = number(&tracer.next_report(&parent.name), "usage_bytes");
    let child = parent.child("new");
    let grandchild = child.child("below");
    let held = load::start(&grandchild, "netns tcp=200 anon=30M");
    thread::sleep(QUIET);
    for name in [&parent.name, &child.name, &grandchild.name] {
        let report = tracer.next_report(name);
        lines::assert_exact(&report);
        assert!(number(&report, "usage_bytes") > 30 * MIB, "{report}");
    }
    let report = tracer.next_report(&parent.name);
    assert_eq!(number(&report, "descendants"), 2, "{report}");
    assert!(number(&report, "ledger_bytes") - before > 30 * MIB);
    held.end();
    assert_eq!(tracer.end().assert_fine()["stream"]["agrees"], true);
}

#[test]
fn events_name_who_was_made_moved_and_removed() {
    if !machine::is_vm() || !machine::needs_exact() {
        return;
    }
    let parent = Cgroup::top("test-events");
    let first = parent.child("first");
    let tracer = Tracer::start("--no-slab -c test-events --events cgroup.lifecycle");
    let second = parent.child("second");
    tracer.event("second is made", |line| life(line, &second.name, "made"));
    let held = load::start(&first, "anon=1M");
    tracer.event("the load moves in", |line| {
        life(line, &first.name, "task moved in") && line["task"] == held.pid()
    });
    second.enter(held.pid());
    let moved = tracer.event("the load moves over", |line| {
        life(line, &second.name, "task moved in") && line["task"] == held.pid()
    });
    lines::assert_keys(&moved, lines::EVENT);
    assert!(moved["time_ns"].as_u64().is_some_and(|time| time > 0));
    assert!(number(&moved, "cgroup_id") > 0);
    held.end();
    assert!(first.remove());
    tracer.event("first is removed", |line| {
        life(line, &first.name, "removed")
    });
    let ended = tracer.end();
    ended.assert_fine();
    for event in lines::of_type(&ended.lines, "event") {
        assert_eq!(event["role"], "cgroup.lifecycle", "{event}");
    }
    assert_eq!(lines::of_type(&ended.lines, "report").count(), 0);
}

#[test]
fn charges_of_the_dead_are_told_under_the_name_they_had() {
    if !machine::is_vm() || !machine::needs_exact() {
        return;
    }
    let parent = Cgroup::top("test-names");
    let child = parent.child("short-lived");
    let tracer = Tracer::start("--no-slab -c test-names --events counter.charge,counter.uncharge");
    load::pass(&child, "anon=10M");
    assert!(child.remove());
    thread::sleep(QUIET);
    let ended = tracer.end();
    ended.assert_fine();
    let pages = |role: &str| -> i64 {
        lines::of_type(&ended.lines, "event")
            .filter(|event| event["role"] == role && event["counter"] == "memory")
            .filter(|event| event["cgroup"] == child.name.as_str())
            .map(|event| number(event, "pages"))
            .sum()
    };
    let (charged, uncharged) = (pages("counter.charge"), pages("counter.uncharge"));
    assert!(charged >= 10 * MIB / 4096, "{charged} pages charged");
    assert!(uncharged >= 10 * MIB / 4096, "{uncharged} pages uncharged");
    for event in lines::of_type(&ended.lines, "event") {
        lines::assert_keys(event, lines::EVENT);
        lines::assert_keys(event, &["cgroup_id", "counter", "pages", "result"]);
        let name = event["cgroup"].as_str().expect("a name");
        assert!(name.starts_with("/test-names"), "{event}");
    }
}

#[test]
fn a_renamed_cgroup_goes_on_under_its_new_name() {
    if !machine::is_vm() || !machine::needs_exact() {
        return;
    }
    if !cgroup::is_v1() {
        machine::skip("cgroup v2 has no rename");
        return;
    }
    let parent = Cgroup::top("test-rename");
    let mut child = parent.child("old");
    let tracer = Tracer::start("--no-slab -c test-rename -i 50ms --depth 1");
    let held = load::start(&child, "anon=10M");
    thread::sleep(QUIET);
    lines::assert_exact(&tracer.next_report("/test-rename/old"));
    let renamed = parent.dir.join("new");
    fs::rename(&child.dir, &renamed).expect("v1 can rename");
    child.dir = renamed;
    let report = tracer.next_report("/test-rename/new");
    lines::assert_exact(&report);
    assert!(number(&report, "usage_bytes") > 10 * MIB, "{report}");
    lines::assert_exact(&tracer.next_report(&parent.name));
    held.end();
    tracer.end().assert_fine();
}

#[test]
fn a_trace_whose_cgroup_is_removed_ends_in_good_order() {
    if !machine::is_vm() || !machine::needs_ledger() {
        return;
    }
    let parent = Cgroup::top("test-removed");
    let tracer = Tracer::start("--no-slab -c test-removed -i 50ms");
    load::pass(&parent, "anon=20M");
    tracer.next_report(&parent.name);
    assert!(parent.remove());
    thread::sleep(Duration::from_millis(500));
    let ended = tracer.end();
    let summary = ended.assert_fine();
    assert_eq!(summary["cgroup"], parent.name.as_str());
    assert!(number(summary, "charged_bytes") > 15 * MIB, "{summary}");
    lines::assert_holds(summary);
}
