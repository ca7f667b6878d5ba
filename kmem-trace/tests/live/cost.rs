//! What the tracer says of its own cost, and that the kernel's BPF statistics are on no longer than
//! it runs, however it ends.

use std::{fs, time::Duration};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::{
    own,
    support::{
        cgroup::Cgroup,
        lines::{self, number},
        load, soon,
        tracer::{Tracer, ask},
    },
    traceable,
};

/// Whether run times of programs are measured: those of a tracer without `--bpf-stats` are.
fn is_measured(cgroup: &Cgroup) -> bool {
    let tracer = Tracer::start(&format!("-c {} -i 50ms", cgroup.name));
    load::pass(cgroup, "anon=5M");
    let ended = tracer.end();
    !ended.assert_fine()["self"]["bpf_runs"].is_null()
}

#[test]
fn memory_and_time_are_in_reports_and_summary() {
    if !traceable() {
        return;
    }
    let parent = Cgroup::top(&own("cost"));
    let words = format!("-c {} -i 100ms --bpf-stats", parent.name);
    let tracer = Tracer::start(&words);
    load::pass(&parent, "anon=20M");
    let early = tracer.next_report(&parent.name)["self"].clone();
    lines::assert_keys(&early, lines::SELF);
    let status = fs::read_to_string(format!("/proc/{}/status", tracer.pid()));
    let status = status.expect("it runs");
    let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let rss: i64 = rss
        .and_then(|rss| rss.split_whitespace().next()?.parse().ok())
        .expect("in kB");
    let said = number(&early, "rss_bytes") >> 10;
    assert!((said - rss).abs() < rss / 2, "{said} kB, not {rss} kB");
    // The ring alone is a MiB.
    assert!(number(&early, "map_bytes") > 1 << 20, "{early}");
    let ended = tracer.end();
    let late = &ended.assert_fine()["self"];
    assert!(number(late, "bpf_runs") > 100, "{late}");
    let programs = late["programs"].as_array().expect("a list");
    let sum = |key: &str| programs.iter().map(|one| number(one, key)).sum::<i64>();
    assert_eq!(sum("runs"), number(late, "bpf_runs"));
    assert_eq!(sum("run_ns"), number(late, "bpf_run_ns"));
    assert!(number(late, "bpf_run_ns") >= number(&early, "bpf_run_ns"));
    let screen = ask(&format!("{words} -d 200ms"));
    assert!(screen.out.contains(" in maps"), "{screen:?}");
}

#[test]
fn bpf_statistics_are_off_again_even_after_a_kill() {
    if !traceable() {
        return;
    }
    let parent = Cgroup::top(&own("stats"));
    if is_measured(&parent) {
        crate::support::machine::skip("somebody else has the kernel's BPF statistics on");
        return;
    }
    let tracer = Tracer::start(&format!("-c {} -i 50ms --bpf-stats", parent.name));
    assert!(is_measured(&parent), "they are not on");
    tracer.signal(Signal::SIGKILL);
    assert_eq!(tracer.wait().status.code(), None);
    assert!(
        soon(Duration::from_secs(5), || !is_measured(&parent)),
        "they are still on"
    );
    let plain = Tracer::start(&format!("-c {} -i 50ms", parent.name));
    let report = plain.next_report(&parent.name);
    assert_eq!(report["self"]["bpf_run_ns"], Value::Null, "{report}");
    plain.end().assert_fine();
}
