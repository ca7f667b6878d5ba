//! A command that is run goes with its trace, and all that it started with it; no process of anybody
//! else's is touched.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use nix::sys::signal::Signal;

use crate::{
    own,
    support::{
        cgroup::{self, Cgroup},
        soon,
        tracer::{Tracer, ask_with},
    },
    traceable,
};

/// Ends later than any trace here, and leaves a file if it gets that far.
fn slow(done: &Path) -> String {
    format!("sleep 4; echo > {}", done.display())
}

fn words<'a>(cgroup: &'a str, more: &[&'a str], script: &'a str) -> Vec<&'a str> {
    let mut all = vec!["run", "-c", cgroup];
    all.extend(more);
    all.extend(["--", "sh", "-c", script]);
    all
}

fn made(name: &str) -> PathBuf {
    cgroup::hierarchy().0.join(name)
}

#[test]
fn a_command_is_stopped_at_the_deadline_with_all_that_it_started() {
    if !traceable() {
        return;
    }
    let folder = tempfile::tempdir().expect("there is room");
    let done = folder.path().join("done");
    let name = own("run-deadline");
    // One below it, in a cgroup below and a session of its own.
    let below = made(&name).join("below");
    let script = format!(
        "mkdir {0}; setsid sh -c 'echo $$ > {0}/cgroup.procs; {1}' & {1}",
        below.display(),
        slow(&done)
    );
    let answer = ask_with(&words(&name, &["-d", "1s", "--no-slab"], &script));
    assert_eq!(answer.code(), 128 + 15, "{answer:?}");
    let line = answer.error.trim_end();
    assert!(
        line.starts_with("kmem-trace: the command was stopped (SIGTERM) after ")
            && line.ends_with(" s: --duration"),
        "{answer:?}"
    );
    assert!(!made(&name).exists());
    thread::sleep(Duration::from_secs(4));
    assert!(!done.exists(), "something went on");
}

#[test]
fn a_command_that_does_not_mind_sigterm_is_killed() {
    if !traceable() {
        return;
    }
    let name = own("run-deaf");
    let script = "trap '' TERM; while :; do sleep 1; done";
    let answer = ask_with(&words(&name, &["-d", "500ms", "--no-slab"], script));
    assert_eq!(answer.code(), 128 + 9, "{answer:?}");
    assert!(answer.error.contains("(SIGKILL)"), "{answer:?}");
    assert!(!made(&name).exists());
}

#[test]
fn ctrl_c_stops_the_command_and_says_so() {
    if !traceable() {
        return;
    }
    let name = own("run-interrupted");
    // What `Tracer` adds behind it is for the shell to ignore.
    let tracer = Tracer::start_with(&[
        "run",
        "-c",
        &name,
        "--no-slab",
        "--format",
        "json",
        "--",
        "sh",
        "-c",
        "sleep 60 >/dev/null 2>&1 & wait",
        "sh",
    ]);
    let inside = made(&name).join("cgroup.procs");
    assert!(soon(Duration::from_secs(10), || {
        fs::read_to_string(&inside).is_ok_and(|text| text.lines().count() == 2)
    }));
    tracer.signal(Signal::SIGINT);
    let ended = tracer.wait();
    assert_eq!(ended.status.code(), Some(128 + 15), "{}", ended.error);
    assert!(
        ended.error.ends_with(" s: interrupted\n"),
        "{}",
        ended.error
    );
    ended.summary();
    assert!(!made(&name).exists());
}

#[test]
fn a_cgroup_that_was_there_is_kept_with_whoever_is_in_it() {
    if !traceable() {
        return;
    }
    let parent = Cgroup::top(&own("run-existing"));
    let mut other = Command::new("sleep")
        .arg("60")
        .stdin(Stdio::null())
        .spawn()
        .expect("it starts");
    parent.enter(other.id());
    let name = parent.name.trim_start_matches('/');
    // What it leaves must not hold our pipes.
    let script = "sleep 60 >/dev/null 2>&1 & wait";
    let answer = ask_with(&words(name, &["-d", "500ms", "--no-slab"], script));
    assert_eq!(answer.code(), 128 + 15, "{answer:?}");
    assert!(
        answer.error.contains("the command was stopped"),
        "{answer:?}"
    );
    let lives = other.try_wait().expect("it is our child").is_none();
    let kept = parent.dir.exists();
    let _ = other.kill();
    let _ = other.wait();
    assert!(lives && kept, "lives: {lives}, kept: {kept}");
}

#[test]
fn a_command_that_ends_by_itself_ends_without_a_word() {
    if !traceable() {
        return;
    }
    let name = own("run-itself");
    let answer = ask_with(&words(&name, &["-d", "30s", "--no-slab"], "exit 7"));
    assert_eq!(
        (answer.code(), answer.error.as_str()),
        (7, ""),
        "{answer:?}"
    );
}
