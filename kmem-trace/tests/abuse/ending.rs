//! Killed, stopped, not listened to.

use std::{
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    figures, is_worth_it, own, scaled,
    support::{
        cgroup::{self, Cgroup},
        lines, load, machine, soon,
        tracer::Tracer,
    },
    traceable,
};

fn spawn(words: &str) -> std::process::Child {
    Command::new(machine::program())
        .args(words.split_whitespace())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("the program starts")
}

/// Network namespaces that a process is in.
fn namespaces() -> std::collections::HashSet<String> {
    let mut found = std::collections::HashSet::new();
    for entry in std::fs::read_dir("/proc").expect("proc is there").flatten() {
        if let Ok(name) = std::fs::read_link(entry.path().join("ns/net")) {
            found.insert(name.display().to_string());
        }
    }
    found
}

#[test]
fn killed_at_any_moment_it_leaves_nothing() {
    if !traceable() || !machine::is_vm() {
        return;
    }
    let times = scaled(3, 3, 100);
    let before = machine::bpf_programs();
    let namespaces_before = namespaces();
    let parent = Cgroup::top(&own("killed"));
    let demo = own("killed-demo");
    let dir = cgroup::hierarchy().0.join(&demo);
    for time in 0..times {
        let words = match time % 3 {
            0 => format!("-c {} -i 50ms --bpf-stats", parent.name),
            1 => format!("-c {} -i 50ms --max-overhead 0.1", parent.name),
            _ => format!("demo -c {demo} --groups 1 --connections 50 --no-slab --keep"),
        };
        let mut child = spawn(&words);
        // From before its first call to well into its work; no two alike.
        thread::sleep(Duration::from_millis(
            u64::from(time % 3 == 2) * 1000 + time * 397 % 1500,
        ));
        child.kill().expect("it is ours");
        child.wait().expect("it is ours");
        let gone = soon(Duration::from_secs(20), || !dir.exists());
        assert!(gone, "{} is left after kill {time}", dir.display());
    }
    let mut left = Vec::new();
    let gone = soon(Duration::from_secs(20), || {
        left = machine::bpf_programs();
        left.retain(|id| !before.contains(id));
        left.is_empty()
    });
    assert!(gone, "programs {left:?} stay loaded");
    let gone = soon(Duration::from_secs(20), || {
        namespaces() == namespaces_before
    });
    assert!(gone, "{:?} and before {namespaces_before:?}", namespaces());
    // Of a tracer that does not ask for them there are no run times.
    let tracer = Tracer::start(&format!("-c {} -i 50ms --no-slab", parent.name));
    load::pass(&parent, "anon=2M");
    let ended = tracer.end();
    let own = &ended.assert_fine()["self"];
    assert!(own["bpf_runs"].is_null(), "BPF statistics are still on");
    figures(&format!("{times} kills, nothing left"));
}

#[test]
fn a_killed_run_leaves_no_cgroup_once_its_command_has_ended() {
    if !is_worth_it() || !traceable() {
        return;
    }
    let name = own("killed-run");
    let dir = cgroup::hierarchy().0.join(&name);
    for time in 0..scaled(2, 2, 30) {
        let mut child = spawn(&format!("run -c {name} -i 50ms -- sleep 1"));
        thread::sleep(Duration::from_millis(time * 211 % 900));
        child.kill().expect("it is ours");
        child.wait().expect("it is ours");
        let gone = soon(Duration::from_secs(10), || !dir.exists());
        assert!(gone, "{} is left after kill {time}", dir.display());
    }
}

#[test]
fn stopped_for_long_it_goes_on_within_its_bound() {
    if !is_worth_it() || !traceable() {
        return;
    }
    let parent = Cgroup::top(&own("stopped"));
    let tracer = Tracer::start(&format!("-c {} -i 100ms --ring 4", parent.name));
    tracer.next_report(&parent.name);
    tracer.signal(Signal::SIGSTOP);
    let held = load::start(&parent, "anon=30M pipes=500");
    thread::sleep(Duration::from_secs(scaled(3, 3, 30)));
    tracer.signal(Signal::SIGCONT);
    let report = tracer.next_report(&parent.name);
    lines::assert_holds(&report);
    assert!(
        lines::number(&report, "charged_bytes") > 30 << 20,
        "{report}"
    );
    held.end();
    lines::assert_holds(tracer.end().assert_fine());
}

#[test]
fn output_that_nobody_reads_for_a_while_arrives_whole() {
    if !is_worth_it() || !traceable() {
        return;
    }
    let parent = Cgroup::top(&own("unread"));
    let words = format!("-c {} -i 10ms --depth 3 --format json", parent.name);
    let mut child = spawn(&words);
    let mut out = BufReader::new(child.stdout.take().expect("piped"));
    let mut line = String::new();
    out.read_line(&mut line).expect("it speaks");
    load::pass(&parent, "anon=10M pipes=300");
    thread::sleep(Duration::from_secs(scaled(2, 2, 30)));
    let pid = Pid::from_raw(i32::try_from(child.id()).expect("process ids fit"));
    kill(pid, Signal::SIGINT).expect("it is ours");
    let mut last = serde_json::Value::Null;
    for line in out.lines() {
        let line = line.expect("it is text");
        last = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
        if lines::is(&last, "report") {
            lines::assert_holds(&last);
        }
    }
    assert!(lines::is(&last, "summary"), "{last}");
    assert_eq!(child.wait().expect("it is ours").code(), Some(0));
}

#[test]
fn a_reader_that_sleeps_and_ends_ends_it_quietly() {
    if !is_worth_it() || !traceable() {
        return;
    }
    let parent = Cgroup::top(&own("sleeper"));
    let mut child = spawn(&format!(
        "-c {} -i 10ms --events --format json",
        parent.name
    ));
    let out = child.stdout.take();
    for _ in 0..5 {
        load::pass(&parent, "anon=10M pipes=100");
    }
    thread::sleep(Duration::from_secs(1));
    // As `| sleep` ends.
    drop(out);
    let mut code = None;
    let ended = soon(Duration::from_secs(20), || {
        // Where it was not stuck in a write, it notices at the next event.
        load::pass(&parent, "anon=1M");
        code = child.try_wait().expect("it is ours");
        code.is_some()
    });
    if !ended {
        let _ = child.kill();
        panic!("it goes on without a reader");
    }
    assert_eq!(code.and_then(|code| code.code()), Some(0));
}
