//! The ledger without what kernels before 5.8 lack: forbidden here one by one and together, so that
//! the programs for them run on a kernel that can be booted.

use std::{fs, thread, time::Duration};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::support::{
    cgroup::{self, Cgroup},
    lines::{self, number},
    load, machine,
    tracer::{Tracer, ask},
};

/// Everything that may be forbidden.
pub const ALL: &str = "ring-buffer,mapped-arrays,kernel-reads,run-on-request";

fn ready() -> bool {
    machine::is_vm() && machine::needs_exact()
}

#[test]
fn the_ledger_is_exact_without_ring_buffer_mapped_arrays_and_kernel_reads() {
    if !ready() {
        return;
    }
    let cgroup = Cgroup::top("test-without");
    for forbidden in ["ring-buffer", "mapped-arrays", "kernel-reads", ALL] {
        let tracer = Tracer::start(&format!("-c test-without -i 100ms --forbid {forbidden}"));
        assert_eq!(tracer.plan()["mode"], "exact", "{forbidden}");
        let row = tracer.role("counter.charge");
        assert_eq!(row["mechanism"], "kprobe", "{row}");
        assert_eq!(row["status"], "exact", "{row}");
        let held = load::start(&cgroup, "anon=40M file=20M pipes=100");
        thread::sleep(Duration::from_secs(2));
        let report = tracer.next_report(&cgroup.name);
        assert!(number(&report, "usage_bytes") > 40 << 20, "{report}");
        lines::assert_exact(&report);
        held.end();
        let ended = tracer.end();
        ended.assert_fine();
        let summary = lines::of_type(&ended.lines, "summary").last();
        let summary = summary.expect("a trace ends with it");
        lines::assert_exact(summary);
        assert_eq!(number(&summary["lost"], "ring"), 0, "{summary}");
        assert_eq!(summary["stream"]["agrees"], true, "{summary}");
        assert!(number(&summary["stream"], "records") > 100, "{summary}");
    }
}

#[test]
fn records_that_found_a_perf_buffer_full_are_counted_and_the_totals_stay_right() {
    if !ready() {
        return;
    }
    let cgroup = Cgroup::top("test-full");
    let tracer = Tracer::start(&format!("-c test-full -i 100ms --ring 1 --forbid {ALL}"));
    let pid = Pid::from_raw(tracer.pid().cast_signed());
    // Nobody empties the buffers meanwhile.
    kill(pid, Signal::SIGSTOP).expect("it runs");
    let held = load::start(&cgroup, "anon=80M pipes=200");
    thread::sleep(Duration::from_secs(2));
    kill(pid, Signal::SIGCONT).expect("it is stopped");
    let report = tracer.next_report(&cgroup.name);
    assert!(number(&report["lost"], "ring") > 0, "{report}");
    lines::assert_exact(&report);
    let said = report["limits"].to_string();
    assert!(said.contains("records were lost"), "{said}");
    held.end();
    let ended = tracer.end();
    ended.assert_fine();
}

#[test]
fn events_come_through_perf_buffers_whole_and_in_the_order_of_time() {
    if !ready() {
        return;
    }
    let cgroup = Cgroup::top("test-order");
    let tracer = Tracer::start(&format!("-c test-order --events --forbid {ALL}"));
    let (file, other) = if cgroup::is_v1() {
        ("memory.limit_in_bytes", "memory.soft_limit_in_bytes")
    } else {
        ("memory.max", "memory.high")
    };
    for name in [file, other] {
        fs::write(cgroup.dir.join(name), "536870912").expect("it takes a limit");
        let event = tracer.event("a limit", |event| {
            event["role"] == "limit.write" && event["file"] == name
        });
        assert_eq!(event["value_bytes"], 536_870_912, "{event}");
        assert_eq!(event["result"], "ok", "{event}");
    }
    let child = cgroup.dir.join("below");
    fs::create_dir(&child).expect("a cgroup can be made");
    let wanted = format!("{}/below", cgroup.name);
    tracer.event("a new cgroup", |event| {
        event["role"] == "cgroup.lifecycle" && event["cgroup"] == wanted.as_str()
    });
    fs::remove_dir(&child).expect("it is empty");
    let loads = [0, 1].map(|_| load::start(&cgroup, "anon=20M pipes=50"));
    thread::sleep(Duration::from_secs(1));
    loads.into_iter().for_each(load::Load::end);
    let ended = tracer.end();
    ended.assert_fine();
    let times: Vec<i64> = lines::of_type(&ended.lines, "event")
        .map(|event| number(event, "time_ns"))
        .collect();
    assert!(times.len() > 100, "{} events", times.len());
    assert!(times.is_sorted(), "{times:?}");
}

#[test]
fn places_of_removed_cgroups_are_cleared_and_used_again() {
    if !ready() {
        return;
    }
    let parent = Cgroup::top("test-again");
    // Less than the cgroups that come.
    let words = format!("-c test-again -i 200ms --max-cgroups 40 --forbid {ALL}");
    let tracer = Tracer::start(&words);
    for number in 0..60 {
        let child = parent.child(&format!("c{number}"));
        load::pass(&child, "anon=1M pipes=10");
        assert!(child.remove(), "{} stays", child.name);
    }
    let last = parent.child("last");
    let held = load::start(&last, "anon=20M");
    // The kernel lets go of the last ones a little later.
    thread::sleep(Duration::from_secs(1));
    let report = tracer.next_report(&parent.name);
    lines::assert_exact(&report);
    assert_eq!(number(&report["lost"], "map_full"), 0, "{report}");
    assert_eq!(number(&report, "dead_descendants"), 60, "{report}");
    held.end();
    let ended = tracer.end();
    let summary = ended.assert_fine();
    assert_eq!(summary["stream"]["agrees"], true, "{summary}");
}

#[test]
fn what_is_not_followed_by_the_programs_for_old_kernels_is_said() {
    if !ready() {
        return;
    }
    let cgroup = Cgroup::top("test-unseen");
    let tracer = Tracer::start(&format!("-c test-unseen --forbid {ALL}"));
    let row = tracer.role("slab.alloc");
    assert_eq!(row["status"], "missing", "{row}");
    assert!(row["why"].to_string().contains("BPF ring buffer"), "{row}");
    tracer.end().assert_fine();
    let screen = ask(&format!("-c test-unseen -d 1s --forbid {ALL}")).out;
    let words = screen.split_whitespace().collect::<Vec<_>>().join(" ");
    for said in [
        "whose slab it is: slab.alloc: no program",
        "was not checked",
    ] {
        assert!(words.contains(said), "{said}: {screen}");
    }
    // Linux 5.8 and 5.9.
    let screen = ask("-c test-unseen -d 1s --no-slab --forbid run-on-request").out;
    let words = screen.split_whitespace().collect::<Vec<_>>().join(" ");
    let said = "no place in the totals is used again";
    assert!(words.contains(said), "{screen}");
    if cgroup::is_v1() {
        let answer = ask(&format!("explain -c {} --forbid {ALL}", cgroup.name));
        assert_eq!(answer.code(), 0, "{answer:?}");
        let said = "runs no program on request that reads its memory";
        let lines = answer.out.lines().filter(|line| line.contains(said));
        assert_eq!(lines.count(), 1, "{}", answer.out);
    }
}

#[test]
fn the_doctor_says_what_is_absent_and_what_is_done_instead() {
    if !ready() {
        return;
    }
    let answer = ask(&format!("doctor --forbid {ALL}"));
    assert_eq!(answer.code(), 0, "{answer:?}");
    let words = answer.out.split_whitespace().collect::<Vec<_>>().join(" ");
    for said in [
        "records come through a perf buffer for each CPU",
        "a program run on request hands the totals out",
        "programs read kernel memory by bpf_probe_read",
        "offsets are taken from type information unchecked",
    ] {
        assert!(words.contains(said), "{said}: {words}");
    }
}
