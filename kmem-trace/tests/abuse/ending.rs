//! Killed, stopped, not listened to.

use std::{
    collections::HashSet,
    fs::{self, File},
    io::{BufRead as _, BufReader, Read as _, Seek as _},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    figures, is_emulated, is_worth_it, own, scaled,
    support::{
        bpf,
        cgroup::{self, Cgroup},
        lines, load, machine, soon,
        tracer::Tracer,
    },
    traceable,
};

fn spawn(words: &str) -> Child {
    Command::new(machine::program())
        .args(words.split_whitespace())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("the program starts")
}

/// Network namespaces that a process is in.
fn namespaces() -> HashSet<String> {
    let mut found = HashSet::new();
    for entry in fs::read_dir("/proc").expect("proc is there").flatten() {
        if let Ok(name) = fs::read_link(entry.path().join("ns/net")) {
            found.insert(name.display().to_string());
        }
    }
    found
}

/// What the killed and all that they started have in their environment.
const MARK: &str = "KMEM_TRACE_TEST_OF";

/// Processes that are marked so.
fn marked(mark: &str) -> Vec<String> {
    let mark = format!("{MARK}={mark}");
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").expect("proc is there").flatten() {
        let is_marked = fs::read(entry.path().join("environ")).is_ok_and(|all| {
            all.split(|byte| *byte == 0)
                .any(|one| one == mark.as_bytes())
        });
        if is_marked {
            found.push(entry.file_name().display().to_string());
        }
    }
    found
}

/// Starts a trace that is marked so, and what it prints: to a file, where nothing keeps it waiting.
fn start_marked(words: &str, mark: &str) -> (Child, File) {
    let out = tempfile::tempfile().expect("a file");
    let child = Command::new(machine::program())
        .args(words.split_whitespace())
        .args(["--format", "json"])
        .env(MARK, mark)
        .stdin(Stdio::null())
        .stdout(out.try_clone().expect("a descriptor"))
        .stderr(Stdio::null())
        .spawn()
        .expect("the program starts");
    (child, out)
}

#[test]
fn killed_at_any_moment_it_leaves_nothing() {
    if !traceable() {
        return;
    }
    let times = scaled(3, 6, 100);
    let objects_before = bpf::all();
    let namespaces_before = namespaces();
    let parent = Cgroup::top(&own("killed"));
    let demo = own("killed-demo");
    let dir = cgroup::hierarchy().0.join(&demo);
    // The longer of two: the machine may be busier by then.
    let one = || {
        let asked = Instant::now();
        let whole = Tracer::start(&format!("-c {} -i 50ms", parent.name));
        let start = asked.elapsed();
        whole.end().assert_fine();
        start
    };
    let start = one().max(one());
    let mut held = HashSet::new();
    let mut begun = 0;
    for time in 0..times {
        let words = match time % 3 {
            0 => format!("-c {} -i 50ms --bpf-stats", parent.name),
            1 => format!("-c {} -i 50ms --max-overhead 0.1", parent.name),
            _ => format!("demo -c {demo} --groups 1 --connections 50 --no-slab --keep"),
        };
        let (mut child, mut out) = start_marked(&words, &parent.name);
        // From before its first call to well into its work: no two alike, and each kind both early
        // and late where there are many.
        let place = time * 37 % times;
        thread::sleep(start * 3 * (2 * place + 1) / (2 * times));
        held.extend(bpf::held_by(child.id()));
        child.kill().expect("it is ours");
        child.wait().expect("it is ours");
        let gone = soon(Duration::from_secs(20), || !dir.exists());
        assert!(gone, "{} is left after kill {time}", dir.display());
        let mut said = String::new();
        out.rewind().expect("it is a file");
        out.read_to_string(&mut said).expect("it is text");
        begun += u32::from(said.starts_with("{\"type\":\"plan\""));
    }
    let mut alive = Vec::new();
    let gone = soon(Duration::from_secs(20), || {
        alive = marked(&parent.name);
        alive.is_empty()
    });
    assert!(gone, "processes {alive:?} live on");
    // Where few came to attach anything, little was tried.
    assert!(
        begun * 3 >= times,
        "{begun} of {times} had begun: {start:?}"
    );
    for kind in ["program", "map", "link"] {
        assert!(held.iter().any(|it| it.kind == kind), "no {kind} was held");
    }
    // Others may trace on the machine at hand, so that there it is what the killed had descriptors of; in
    // one of our own all that is new.
    let mut left = held.clone();
    if is_emulated() {
        left.extend(bpf::all().difference(&objects_before));
    }
    let gone = soon(Duration::from_secs(20), || {
        let loaded = bpf::all();
        left.retain(|object| loaded.contains(object));
        left.is_empty()
    });
    assert!(gone, "{left:?} stay loaded");
    figures(&format!(
        "{times} kills within {:?}, {begun} of them after the plan, {} objects of BPF seen: nothing left",
        start * 3,
        held.len()
    ));
    if !is_emulated() {
        // Nobody is left to hold a namespace or the switch of the statistics, and others come and go.
        return;
    }
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
