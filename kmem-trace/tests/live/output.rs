//! Where the output goes, may go away, fill up, or be read slowly; and the tracer itself may be
//! stopped. It says what it must and leaves nothing.

use std::{
    fs::{File, OpenOptions},
    io::{BufRead as _, BufReader, Read as _},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use nix::sys::signal::{Signal, kill};

use crate::{
    own,
    support::{
        cgroup::{self, Cgroup},
        lines, load, machine, soon,
        tracer::{Tracer, ask, ask_with},
    },
    traceable,
};

fn spawn(words: &str, out: impl Into<Stdio>) -> Child {
    Command::new(machine::program())
        .args(words.split_whitespace())
        .stdin(Stdio::null())
        .stdout(out)
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts")
}

/// Its exit code, and what it said on standard error.
#[track_caller]
fn end(mut child: Child) -> (Option<i32>, String) {
    let mut status = None;
    let ended = soon(Duration::from_secs(10), || {
        status = child.try_wait().expect("it is our child");
        status.is_some()
    });
    if !ended {
        let _ = child.kill();
        let _ = child.wait();
        panic!("it does not end");
    }
    let mut error = String::new();
    let mut from = child.stderr.take().expect("piped");
    from.read_to_string(&mut error).expect("it is text");
    (status.and_then(|status| status.code()), error)
}

#[test]
fn a_reader_that_goes_away_ends_it_quietly() {
    if !traceable() {
        return;
    }
    let parent = Cgroup::top(&own("closed"));
    for words in ["--format json", "", "--events --format json"] {
        let words = format!("-c {} -i 50ms {words}", parent.name);
        let mut child = spawn(&words, Stdio::piped());
        let mut line = String::new();
        let mut out = BufReader::new(child.stdout.take().expect("piped"));
        out.read_line(&mut line).expect("it says something");
        drop(out);
        assert_ne!(line, "");
        // Events come when something happens.
        load::pass(&parent, "anon=2M");
        assert_eq!(end(child), (Some(0), String::new()), "{words}");
    }
}

#[test]
fn a_command_whose_reader_goes_away_leaves_no_cgroup() {
    if !traceable() {
        return;
    }
    let name = own("closed-run");
    let words = format!("run -c {name} -i 50ms -- sleep 60");
    let mut child = spawn(&words, Stdio::piped());
    let mut line = String::new();
    let mut out = BufReader::new(child.stdout.take().expect("piped"));
    out.read_line(&mut line).expect("it says something");
    drop(out);
    let (code, error) = end(child);
    // The command went with it, by SIGTERM.
    assert_eq!((code, error.as_str()), (Some(128 + 15), ""));
    assert!(!cgroup::hierarchy().0.join(&name).exists());
}

#[test]
fn a_full_disk_is_said_in_one_line() {
    if !traceable() {
        return;
    }
    let parent = Cgroup::top(&own("full"));
    let held = load::start(&parent, "anon=1M");
    let run = own("full-run");
    for words in [
        format!("-c {} -i 50ms", parent.name),
        format!("-c {} -i 50ms --format json", parent.name),
        format!("run -c {run} -i 50ms -- sleep 60"),
        format!("explain -c {}", parent.name),
        format!("explain -c {} --format json", parent.name),
        "doctor".to_owned(),
        "doctor --format json".to_owned(),
        format!("-c {} -d 200ms --record /dev/full", parent.name),
    ] {
        let full = OpenOptions::new().write(true).open("/dev/full");
        let out = if words.contains("--record") {
            File::create("/dev/null").expect("it is there")
        } else {
            full.expect("it is there")
        };
        let (code, error) = end(spawn(&words, out));
        assert_eq!(code, Some(1), "{words}: {error}");
        assert_eq!(error.lines().count(), 1, "{words}: {error}");
        assert!(error.starts_with("kmem-trace: cannot "), "{words}: {error}");
        assert!(error.contains("No space left"), "{words}: {error}");
    }
    held.end();
    assert!(!cgroup::hierarchy().0.join(&run).exists());
}

#[test]
fn a_slow_reader_loses_no_line() {
    if !traceable() {
        return;
    }
    let parent = Cgroup::top(&own("slow"));
    let words = format!("-c {} -i 20ms --depth 1 --format json", parent.name);
    let mut child = spawn(&words, Stdio::piped());
    let mut out = BufReader::new(child.stdout.take().expect("piped"));
    let mut line = String::new();
    out.read_line(&mut line).expect("it says something");
    // More than the pipe holds.
    load::pass(&parent, "tcp=50 anon=5M");
    thread::sleep(Duration::from_millis(1500));
    let pid = i32::try_from(child.id()).expect("process ids fit");
    kill(nix::unistd::Pid::from_raw(pid), Signal::SIGINT).expect("it is ours");
    let mut last = String::new();
    for line in out.lines() {
        last = line.expect("it is text");
        let line: serde_json::Value = serde_json::from_str(&last).expect("each line is whole");
        if lines::is(&line, "report") {
            lines::assert_holds(&line);
        }
    }
    assert!(last.contains("\"summary\""), "{last}");
    assert_eq!(end(child), (Some(0), String::new()));
}

#[test]
fn stopped_for_a_while_it_goes_on_within_its_bound() {
    if !traceable() {
        return;
    }
    let parent = Cgroup::top(&own("stopped"));
    let tracer = Tracer::start(&format!("-c {} -i 100ms --ring 4", parent.name));
    tracer.next_report(&parent.name);
    tracer.signal(Signal::SIGSTOP);
    let held = load::start(&parent, "tcp=100 anon=20M");
    thread::sleep(Duration::from_secs(1));
    tracer.signal(Signal::SIGCONT);
    thread::sleep(Duration::from_millis(300));
    let report = tracer.next_report(&parent.name);
    lines::assert_holds(&report);
    assert!(
        lines::number(&report, "charged_bytes") > 20 << 20,
        "{report}"
    );
    held.end();
    lines::assert_holds(tracer.end().assert_fine());
}

#[test]
fn reports_go_to_a_file_apart_from_what_a_command_prints() {
    if !traceable() {
        return;
    }
    let folder = tempfile::tempdir().expect("there is room");
    let file = folder.path().join("reports.jsonl");
    let name = own("apart");
    let path = file.display().to_string();
    let script = "echo what the command says; sleep 0.3";
    let answer = ask_with(&[
        "run",
        "-c",
        &name,
        "--no-slab",
        "-i",
        "100ms",
        "--format",
        "json",
        "-o",
        &path,
        "--",
        "sh",
        "-c",
        script,
    ]);
    assert_eq!(answer.code(), 0, "{answer:?}");
    assert_eq!(answer.out, "what the command says\n");
    let text = std::fs::read_to_string(&file).expect("it was written");
    let kinds: Vec<serde_json::Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).expect("each line is JSON"))
        .collect();
    assert!(lines::is(&kinds[0], "plan"), "{text}");
    assert!(lines::of_type(&kinds, "report").count() > 0, "{text}");
    assert!(lines::is(kinds.last().expect("some"), "summary"), "{text}");
}

#[test]
fn a_file_that_cannot_be_made_is_named_in_one_line() {
    if !traceable() {
        return;
    }
    let parent = Cgroup::top(&own("unwritable"));
    let answer = ask(&format!("-c {} -d 100ms -o /nonexistent/file", parent.name));
    let error = answer.assert_refused();
    assert!(
        error.contains("cannot write the output to /nonexistent/file"),
        "{error}"
    );
    let full = ask(&format!("-c {} -d 100ms -o /dev/full", parent.name));
    let error = full.assert_refused();
    assert!(error.contains("No space left"), "{error}");
}
