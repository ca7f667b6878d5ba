//! The program on the machine at hand, whatever its kernel allows: is what it says in itself
//! right, and are wrong words answered in a way that helps? Needs root for the first; says so
//! where it is not. What a kernel of our own is needed for is in `tests/kernel`.

#[path = "live/cost.rs"]
mod cost;
#[path = "live/events.rs"]
mod events;
#[path = "live/json.rs"]
mod json;
#[path = "live/names.rs"]
mod names;
#[path = "live/output.rs"]
mod output;
#[path = "live/privilege.rs"]
mod privilege;
#[path = "live/run.rs"]
mod run;
mod support;

use std::{
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use serde_json::Value;
use support::{
    cgroup::{self, Cgroup},
    lines::{self, number},
    load, machine,
    tracer::{Answer, Tracer, ask, ask_with, traceable},
};

const MIB: i64 = 1 << 20;

/// The plan comes before the doctor's page.
fn first_line(answer: &Answer) -> Value {
    let line = answer.out.lines().next().unwrap_or_default();
    serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))
}

fn last_line(answer: &Answer) -> Value {
    assert_eq!(answer.code(), 0, "{answer:?}");
    let line = answer.out.lines().last().expect("it says something");
    serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))
}

/// A cgroup's name that no other run of these tests has.
fn own(name: &str) -> String {
    format!("kmem-trace-test-{name}-{}", std::process::id())
}

#[test]
fn a_reader_that_goes_away_ends_each_command_quietly() {
    if !traceable() {
        return;
    }
    let cgroup = Cgroup::top(&own("pipe"));
    for words in [
        format!("explain -c {}", cgroup.name),
        format!("explain -c {} --format json", cgroup.name),
        "doctor".to_owned(),
        format!("-c {} -i 50ms -d 1s", cgroup.name),
    ] {
        let mut child = Command::new(machine::program())
            .args(words.split_whitespace())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        // As `| head -0` does, before it has written anything.
        drop(child.stdout.take());
        let ended = child.wait_with_output().expect("it ends");
        assert_eq!(ended.status.code(), Some(0), "{words}: {ended:?}");
        assert_eq!(String::from_utf8_lossy(&ended.stderr), "", "{words}");
    }
}

#[test]
fn slab_of_a_v1_cgroup_is_shown_and_grows_with_the_files_made() {
    if !traceable() {
        return;
    }
    let cgroup = Cgroup::top(&own("slab"));
    let explained = || last_line(&ask(&format!("explain -c {} --format json", cgroup.name)));
    let before = explained();
    if let Some(why) = before["kernel_counters"]["why"].as_str() {
        machine::skip(why);
        return;
    }
    if before["kernel_counters"].is_null() {
        machine::skip("v2 shows slab in memory.stat");
        return;
    }
    let files = 20_000;
    let held = load::start(&cgroup, &format!("dentries={files} dir=/dev/shm"));
    let after = explained();
    held.end();
    let slab = |explained: &Value| {
        let fields = explained["fields"].as_array().expect("a list");
        let field = fields.iter().find(|field| field["field"] == "slab");
        number(field.expect("slab is shown"), "bytes")
    };
    // A dentry and an inode of tmpfs take more than that on every kernel.
    assert!(slab(&after) - slab(&before) > files * 500, "{after}");
    let rest = number(&after["kernel_counters"], "rest_bytes");
    assert!(rest.abs() < 4 * MIB, "{after}");
}

#[test]
fn a_command_that_is_run_is_followed_within_the_bound() {
    if !traceable() {
        return;
    }
    let name = own("run");
    let program = machine::program().display().to_string();
    let words = format!("run -c {name} -i 100ms --format json -- {program} __worker churn");
    let mut arguments: Vec<&str> = words.split_whitespace().collect();
    arguments.extend(["tcp=200", "anon=30M", "pipes=100", "hold=1s"]);
    let answer = ask_with(&arguments);
    let summary = last_line(&answer);
    assert_eq!(summary["type"], "summary");
    lines::assert_keys(&summary, &lines::REPORT[1..]);
    lines::assert_holds(&summary);
    assert!(number(&summary, "charged_bytes") > 25 * MIB, "{summary}");
    let mut most = 0;
    for line in answer.out.lines().filter(|line| line.starts_with('{')) {
        let line: Value = serde_json::from_str(line).expect("it is JSON");
        if lines::is(&line, "report") {
            lines::assert_holds(&line);
            most = most.max(number(&line, "usage_bytes"));
            // Before and after it a cgroup is nearly empty; the ledger has to have seen it grow.
            if number(&line, "usage_bytes") > 25 * MIB {
                assert!(number(&line, "ledger_bytes") > 20 * MIB, "{line}");
            }
        }
    }
    assert!(most > 25 * MIB, "no report saw the load: {answer:?}");
    assert!(!cgroup::hierarchy().0.join(&name).exists());
}

#[test]
fn a_cgroup_is_followed_through_a_load_within_a_bound_that_means_something() {
    if !traceable() {
        return;
    }
    let parent = Cgroup::top(&own("trace"));
    let child = parent.child("child");
    let words = format!("-c {} -i 100ms --depth 1", parent.name);
    let tracer = Tracer::start(&words);
    let before = number(&tracer.next_report(&parent.name), "usage_bytes");
    let held = load::start(&child, "tcp=500 anon=50M file=50M");
    thread::sleep(Duration::from_secs(2));
    let exact = tracer.plan()["mode"] == "exact";
    let follows = tracer.role("memcg.state");
    for name in [&parent.name, &child.name] {
        let report = tracer.next_report(name);
        lines::assert_keys(&report, lines::REPORT);
        lines::assert_holds(&report);
        if exact {
            lines::assert_exact(&report);
        }
        let grown = number(&report, "usage_bytes") - before;
        assert!(
            grown > 50 * MIB,
            "the load shows as {grown} bytes: {report}"
        );
        let cpus = i64::try_from(thread::available_parallelism().map_or(1, usize::from));
        // Per-CPU stocks, and a few changes under way: never as much as what is explained.
        let most = cpus.expect("few") * 8 * MIB + 8 * MIB;
        assert!(number(&report, "bound_bytes") < most, "{report}");
    }
    held.end();
    let ended = tracer.end();
    let summary = ended.assert_fine();
    lines::assert_holds(summary);
    lines::of_type(&ended.lines, "report").for_each(lines::assert_holds);
    if follows["mechanism"] == "BTF tracepoint" && !exact {
        // Softirqs are watched, of slab too.
        let node = lines::of_type(&ended.lines, "node").last();
        for line in node.into_iter().chain([summary]) {
            number(&line["lost"], "unwatched_softirqs");
            number(&line["lost"], "unwatched_pages");
        }
    }
}

/// A cgroup that is gone has no directory to be named by, and its ancestors are charged with what it
/// held.
#[test]
fn what_a_cgroup_removed_before_the_trace_still_holds_is_its_parents() {
    if !traceable() {
        return;
    }
    let parent = Cgroup::top(&own("heir"));
    let gone = parent.child("gone");
    let held = format!("/dev/shm/{}", own("held"));
    let write = format!("dd if=/dev/zero of={held} bs=1M count=30 2>/dev/null");
    let enter = format!("echo $$ > {}/cgroup.procs && {write}", gone.dir.display());
    let wrote = Command::new("sh").args(["-c", &enter]).status();
    assert!(wrote.expect("a shell starts").success());
    assert!(gone.remove(), "its process has ended");
    let tracer = Tracer::start(&format!("--no-slab -c {} -i 100ms", parent.name));
    let before = tracer.next_report(&parent.name);
    assert!(number(&before, "usage_bytes") > 30 * MIB, "{before}");
    std::fs::remove_file(&held).expect("it is there");
    thread::sleep(Duration::from_secs(1));
    let after = tracer.next_report(&parent.name);
    tracer.signal(nix::sys::signal::Signal::SIGINT);
    let left = number(&after, "usage_bytes") - number(&before, "usage_bytes");
    assert!(left < -29 * MIB, "{left} bytes: {after}");
    lines::assert_holds(&after);
    let mode = tracer.plan()["mode"].clone();
    let by_types = tracer.role("memcg.state")["mechanism"] == "BTF tracepoint";
    if mode == "exact" || by_types && tracer.role("slab.alloc")["status"] == "exact" {
        assert_eq!(number(&after["bound_terms"], "nameless"), 0, "{after}");
        let went = number(&after, "ledger_bytes") - number(&before, "ledger_bytes");
        assert!((went - left).abs() < MIB, "{went} of {left}: {after}");
    }
    assert_eq!(number(&after, "descendants"), 0, "{after}");
    tracer.wait().assert_fine();
}

#[test]
fn the_screen_says_its_mode_and_what_that_cannot_see() {
    if !traceable() {
        return;
    }
    let parent = Cgroup::top(&own("screen"));
    let held = load::start(&parent, "anon=5M");
    let answer = ask(&format!("-c {} -d 500ms", parent.name));
    held.end();
    assert_eq!(answer.code(), 0, "{answer:?}");
    let doctor = ask("doctor --format json");
    let plan: Value = first_line(&doctor);
    let mode = plan["mode"].as_str().expect("a word");
    let head = answer.out.lines().next().expect("a headline");
    assert!(head.contains(&format!("({mode})")), "{head} is not {mode}");
    if mode == "bounded" {
        assert!(answer.out.contains("cannot see: "), "{}", answer.out);
    }
    for word in ["ledger", "unexplained", "bound", parent.name.as_str()] {
        assert!(answer.out.contains(word), "no {word} in {}", answer.out);
    }
    let mut lines = answer.out.lines();
    if cgroup::is_v1()
        && let Some(kernel) = lines.find(|line| line.starts_with("  kernel "))
    {
        assert!(
            kernel.ends_with("no v1 file divides it: kmem-trace explain"),
            "{kernel}"
        );
    }
    assert!(!answer.out.contains('\u{1b}'), "colours in a pipe");
}

/// What is not there, by any name a user might give.
const ABSENT: [&str; 8] = [
    "-c kmem-trace-no-such-cgroup -d 1s",
    "-c /kmem-trace/no/such -d 1s",
    "-c /nonexistent/dir -d 1s",
    "-c ../kmem-trace -d 1s",
    "-c /etc -d 1s",
    "-c / -d 1s",
    "-p 4194303 -d 1s",
    "run -c .. -- true",
];

#[test]
fn what_is_not_there_is_named_in_one_line() {
    if !cgroup::is_there() {
        machine::skip("no memory cgroup hierarchy below /sys/fs/cgroup");
        return;
    }
    for words in ABSENT {
        let answer = ask(words);
        let error = answer.assert_refused();
        let named = words.split_whitespace().nth(1).expect("what it is about");
        let named = if named == "-c" { ".." } else { named };
        assert!(error.contains(named), "{words}: {error}");
        assert!(!error.contains("  "), "{words}: {error}");
    }
}

#[test]
fn a_mechanism_that_the_kernel_does_not_allow_is_refused() {
    if !traceable() {
        return;
    }
    let parent = Cgroup::top(&own("attach"));
    for mechanism in ["kprobe", "fentry"] {
        let answer = ask(&format!(
            "--no-slab -c {} -d 200ms --attach {mechanism}",
            parent.name
        ));
        let begins = format!("kmem-trace: --attach {mechanism}: ");
        if answer.code() == 0 {
            let plan = first_line(&ask(&format!("doctor --format json --attach {mechanism}")));
            let mut rows = plan["roles"].as_array().expect("a list").iter();
            assert!(rows.any(|row| row["mechanism"] == mechanism), "{answer:?}");
            continue;
        }
        let error = answer.assert_refused();
        // What is allowed and then fails is named too, in other words.
        if error.starts_with(&begins) {
            assert!(
                error.ends_with("; leave --attach out to trace by what it allows"),
                "{error}"
            );
        }
    }
    let answer = ask(&format!(
        "--no-slab -c {} -d 200ms --attach tracepoint",
        parent.name
    ));
    assert!(!answer.error.contains("--attach"), "{answer:?}");
}
