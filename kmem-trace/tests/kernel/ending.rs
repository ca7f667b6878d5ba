//! How a trace ends, and what it leaves.

use std::{
    collections::HashSet,
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;

use crate::support::{
    bpf,
    cgroup::{self, Cgroup},
    lines, load, machine, soon,
    tracer::{Tracer, answer, ask, ask_with},
};

/// Whether anything can be traced on this machine; says so where it cannot.
fn traceable() -> bool {
    machine::is_vm() && machine::needs_ledger()
}

#[test]
fn ctrl_c_sigterm_and_hangup_end_with_a_summary() {
    if !traceable() {
        return;
    }
    let parent = Cgroup::top("test-signal");
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let tracer = Tracer::start("--no-slab -c test-signal -i 100ms");
        tracer.next_report(&parent.name);
        tracer.signal(signal);
        let ended = tracer.wait();
        let summary = ended.assert_fine();
        assert_eq!(summary["cgroup"], parent.name.as_str(), "{signal}");
        assert_eq!(ended.lines.last(), Some(summary), "{signal}");
    }
}

#[test]
fn a_duration_is_kept() {
    if !traceable() {
        return;
    }
    let _parent = Cgroup::top("test-duration");
    let tracer = Tracer::start("--no-slab -c test-duration -i 300ms -d 1500ms");
    let start = Instant::now();
    let ended = tracer.wait();
    ended.assert_fine();
    let took = start.elapsed();
    assert!(took > Duration::from_millis(1000), "{took:?}");
    assert!(took < Duration::from_secs(10), "{took:?}");
    assert!(lines::of_type(&ended.lines, "report").count() >= 3);
}

#[test]
fn run_passes_the_exit_code_on_and_leaves_no_cgroup() {
    if !traceable() {
        return;
    }
    let (root, _) = cgroup::hierarchy();
    let leftovers = || {
        let names = std::fs::read_dir(&root).expect("the hierarchy can be listed");
        names
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .filter(|name| name.starts_with("kmem-trace-run") || name == "test-run")
            .collect::<Vec<_>>()
    };
    let seven = ask_with(&["run", "--", "sh", "-c", "exit 7"]);
    assert_eq!(seven.code(), 7, "{seven:?}");
    assert_eq!(leftovers(), [""; 0]);
    let killed = ask_with(&["run", "--", "sh", "-c", "kill -TERM $$"]);
    assert_eq!(killed.code(), 128 + 15, "{killed:?}");

    let script = "cat /proc/self/cgroup; head -c 30000000 /dev/zero | tail -c 20000000 >/dev/null";
    let named = ask_with(&[
        "run", "-c", "test-run", "--format", "json", "--", "sh", "-c", script,
    ]);
    assert_eq!(named.code(), 0, "{named:?}");
    let inside = named
        .out
        .lines()
        .filter(|line| line.ends_with(":/test-run"));
    assert!(inside.count() > 0, "the command ran elsewhere: {named:?}");
    let summary = named.out.lines().last().expect("there is a summary");
    let summary: serde_json::Value = serde_json::from_str(summary).expect("the last line is JSON");
    assert_eq!(summary["type"], "summary");
    assert_eq!(summary["cgroup"], "/test-run");
    assert!(
        lines::number(&summary, "charged_bytes") > 1 << 20,
        "{summary}"
    );
    lines::assert_holds(&summary);
    assert_eq!(leftovers(), [""; 0]);
}

#[test]
fn a_command_that_is_not_there_leaves_no_cgroup_either() {
    if !traceable() {
        return;
    }
    let missing = ask("run -c test-no-command -- /nonexistent/command");
    assert_eq!(missing.code(), 1, "{missing:?}");
    assert_eq!(missing.error.lines().count(), 1, "{missing:?}");
    assert!(
        missing.error.contains("/nonexistent/command"),
        "{missing:?}"
    );
    assert!(!cgroup::hierarchy().0.join("test-no-command").exists());
}

#[test]
fn a_reader_that_goes_away_ends_the_trace_quietly() {
    if !traceable() {
        return;
    }
    let _parent = Cgroup::top("test-pipe");
    for format in ["table", "json"] {
        let mut child = Command::new(machine::program())
            .args(["-c", "test-pipe", "-i", "100ms", "--format", format])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("piped"))
            .read_line(&mut line)
            .expect("it speaks");
        assert!(!line.is_empty());
        let ended = soon(Duration::from_secs(10), || {
            child.try_wait().expect("our child").is_some()
        });
        if !ended {
            let _ = child.kill();
        }
        let output = child.wait_with_output().expect("it ended");
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(ended, "{format}: it goes on without a reader: {error}");
        assert_eq!(error, "", "{format}");
        assert_eq!(output.status.code(), Some(0), "{format}");
    }
}

#[test]
fn a_killed_tracer_leaves_nothing_loaded_and_the_next_trace_works_at_once() {
    if !traceable() {
        return;
    }
    let parent = Cgroup::top("test-kill");
    let before = bpf::all();
    let tracer = Tracer::start("--no-slab -c test-kill -i 50ms");
    assert!(bpf::all().len() > before.len(), "nothing was loaded");
    tracer.signal(Signal::SIGKILL);
    let ended = tracer.wait();
    assert_eq!(ended.status.code(), None);
    let next = Tracer::start("--no-slab -c test-kill -i 50ms");
    let held = load::start(&parent, "anon=20M");
    thread::sleep(Duration::from_secs(1));
    let report = next.next_report(&parent.name);
    lines::assert_holds(&report);
    assert!(lines::number(&report, "charged_bytes") > 20 << 20);
    held.end();
    next.end().assert_fine();
    let mut left = HashSet::new();
    let gone = soon(Duration::from_secs(10), || {
        left = bpf::all();
        left.retain(|object| !before.contains(object));
        left.is_empty()
    });
    assert!(gone, "{left:?} stay loaded");
}

#[test]
fn a_full_disk_is_said_in_one_line() {
    if !traceable() {
        return;
    }
    let _parent = Cgroup::top("test-full");
    let mut command = Command::new("sh");
    command.arg("-c").arg(format!(
        "exec {} -c test-full -d 1s > /dev/full",
        machine::program().display()
    ));
    let full = answer(command);
    let error = full.assert_refused();
    assert!(error.contains("No space left"), "{error}");
}
