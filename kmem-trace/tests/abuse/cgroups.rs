//! Cgroups without end: many, one after the other, and deep ones.

use std::{
    collections::HashSet,
    fs,
    io::{BufRead as _, BufReader, Read as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use crate::{
    figures, is_worth_it, own, scaled, storm,
    support::{
        cgroup::{self, Cgroup},
        lines::{self, number},
        load, machine, soon,
        tracer::Tracer,
    },
    traceable,
};

#[test]
fn cgroups_that_come_and_go_take_no_memory_and_their_places_are_used_again() {
    if !traceable() {
        return;
    }
    let count = scaled(48, 600, 10_000);
    // Less than the cgroups that come.
    let places = scaled(32, 384, 512);
    let parent = Cgroup::top(&own("churn"));
    let words = format!("-c {} -i 200ms --max-cgroups {places}", parent.name);
    let tracer = Tracer::start(&words);
    // Its ring takes all there is: what is lost need not be named.
    let names = Tracer::start(&format!(
        "-c {} --no-slab --events cgroup.lifecycle --ring 8192",
        parent.name
    ));
    let exact = tracer.plan()["mode"] == "exact";
    let rss = |report: &Value| number(&report["self"], "rss_bytes");
    let mut early = 0;
    for number in 0..count {
        let child = parent.child(&format!("c{number}"));
        storm::process(&child);
        assert!(child.remove(), "{} stays", child.name);
        if number == count / 5 {
            early = rss(&tracer.next_report(&parent.name));
        }
    }
    // The kernel lets go of the last ones a little later.
    thread::sleep(Duration::from_millis(500));
    let report = tracer.next_report(&parent.name);
    lines::assert_holds(&report);
    let skipped = number(&report["lost"], "skipped");
    if exact && skipped == 0 {
        lines::assert_exact(&report);
    }
    assert_eq!(number(&report["lost"], "map_full"), 0, "{report}");
    assert_eq!(number(&report, "descendants"), 0, "{report}");
    assert_eq!(number(&report, "dead_descendants"), count, "{report}");
    let grown = rss(&report) - early;
    figures(&format!(
        "{count} cgroups, {places} places: resident memory {early} + {grown} bytes, residual {} of {} bytes, {skipped} runs skipped",
        number(&report, "residual_bytes"),
        number(&report, "bound_bytes"),
    ));
    assert!(grown < 4 << 20, "{grown} bytes more than {early}");
    let nodes = tracer.all();
    if let Some(node) = lines::of_type(&nodes, "node").last() {
        assert_eq!(number(&node["lost"], "map_full"), 0, "{node}");
    }
    let ended = tracer.end();
    let summary = ended.assert_fine();
    if exact && number(&summary["lost"], "ring") == 0 {
        assert_eq!(summary["stream"]["agrees"], true, "{summary}");
    }
    let ended = names.end();
    let summary = ended.assert_fine();
    let made: HashSet<&str> = lines::of_type(&ended.lines, "event")
        .filter(|event| event["result"] == "made")
        .filter_map(|event| event["cgroup"].as_str())
        .collect();
    let lost = summary["lost"]["by_role"]["cgroup.lifecycle"]["ring"].as_i64();
    assert_eq!(lost.unwrap_or(0), 0, "{summary}");
    let missing = (0..count)
        .filter(|number| !made.contains(format!("{}/c{number}", parent.name).as_str()))
        .count();
    assert_eq!(missing, 0, "names missing of {count}");
}

#[test]
fn places_are_given_back_while_a_slow_reader_keeps_a_flood_of_events_waiting() {
    if !is_worth_it() || !traceable() {
        return;
    }
    let count = scaled(100, 1000, 4000);
    // Fewer than come, and more than wait for the kernel to let go of them on a busy machine.
    let places = scaled(64, 600, 600);
    let parent = Cgroup::top(&own("flood"));
    let mut tracer = Command::new(machine::program())
        .args(["-c", &parent.name, "--format", "json"])
        .arg("--events=cgroup.lifecycle,slab.alloc,slab.free")
        .args(["-i", "200ms", "--max-cgroups"])
        .arg(places.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut out = BufReader::new(tracer.stdout.take().expect("piped"));
    let mut line = String::new();
    out.read_line(&mut line).expect("the plan");
    let is_over = Arc::new(AtomicBool::new(false));
    let hurries = Arc::clone(&is_over);
    let reader = thread::spawn(move || {
        let mut last = Vec::new();
        let mut piece = vec![0; 64 * 1024];
        while let Ok(read @ 1..) = out.read(&mut piece) {
            last.extend_from_slice(&piece[..read]);
            let kept = last.len().saturating_sub(piece.len());
            last.drain(..kept);
            if !hurries.load(Ordering::Relaxed) {
                thread::sleep(Duration::from_millis(5));
            }
        }
        String::from_utf8_lossy(&last).into_owned()
    });
    for number in 0..count {
        let child = parent.child(&format!("c{number}"));
        storm::process(&child);
        assert!(child.remove(), "{} stays", child.name);
    }
    let pid = i32::try_from(tracer.id()).expect("a process id");
    kill(Pid::from_raw(pid), Signal::SIGINT).expect("it runs");
    is_over.store(true, Ordering::Relaxed);
    let last = reader.join().expect("all is read");
    assert!(tracer.wait().expect("it ends").success());
    let summary: Value = serde_json::from_str(last.lines().last().expect("a line")).expect("JSON");
    assert_eq!(summary["type"], "summary");
    figures(&format!(
        "{count} cgroups, {places} places, a slow reader: {} records lost, {} charges found no place",
        summary["lost"]["ring"], summary["lost"]["map_full"],
    ));
    assert_eq!(number(&summary["lost"], "map_full"), 0, "{summary}");
}

/// As [`storm::process`], with a file written that stays charged to `cgroup`.
fn writer(cgroup: &Cgroup, file: &Path) {
    let words = format!(
        "echo 0 > {}/cgroup.procs; head -c 65536 /dev/zero > {}",
        cgroup.dir.display(),
        file.display()
    );
    let status = Command::new("sh").args(["-c", &words]).status();
    assert!(status.expect("it starts").success(), "{words}");
}

#[test]
fn removed_cgroups_that_page_cache_keeps_from_release_leave_places_for_the_slab_of_others() {
    if !is_worth_it() || !traceable() {
        return;
    }
    let count = scaled(100, 300, 1000);
    let parent = Cgroup::top(&own("cached"));
    let files = tempfile::tempdir().expect("a directory");
    let tracer = Tracer::start(&format!("-c {} -i 200ms", parent.name));
    for number in 0..count {
        let child = parent.child(&format!("c{number}"));
        writer(&child, &files.path().join(number.to_string()));
        assert!(child.remove(), "{} stays", child.name);
    }
    let report = tracer.next_report(&parent.name);
    lines::assert_holds(&report);
    let cached = number(&report, "usage_bytes");
    thread::sleep(Duration::from_secs(1));
    let seen = tracer.all();
    if let Some(node) = lines::of_type(&seen, "node").last() {
        let said = |kind| lines::of_type(&seen, kind).last().map(Value::to_string);
        figures(&format!(
            "{count} removed cgroups with {cached} bytes of page cache: {} slab events found no place, resident memory {} bytes, {:?}",
            node["lost"]["map_full"],
            report["self"]["rss_bytes"],
            said("charged-slab"),
        ));
        assert_eq!(number(&node["lost"], "map_full"), 0, "{node}");
    } else {
        println!("no slab attribution here: places not looked at");
    }
    // The kernel lets go of them with the files.
    drop(files);
    thread::sleep(Duration::from_secs(1));
    lines::assert_holds(&tracer.next_report(&parent.name));
    let ended = tracer.end();
    lines::assert_holds(ended.assert_fine());
}

/// A chain of cgroups, removed lowest first.
struct Chain(Vec<PathBuf>);

impl Chain {
    fn below(top: &Cgroup, levels: usize) -> Self {
        let mut chain = Self(Vec::new());
        let mut dir = top.dir.clone();
        for level in 0..levels {
            if !cgroup::is_v1() {
                fs::write(dir.join("cgroup.subtree_control"), "+memory").expect("handed down");
            }
            dir.push("d");
            if let Err(error) = fs::create_dir(&dir) {
                println!("the kernel makes no more than {level} levels: {error}");
                break;
            }
            chain.0.push(dir.clone());
        }
        chain
    }
}

impl Drop for Chain {
    fn drop(&mut self) {
        for dir in self.0.iter().rev() {
            let gone = soon(Duration::from_secs(5), || fs::remove_dir(dir).is_ok());
            if !gone {
                eprintln!("{} stays behind", dir.display());
                return;
            }
        }
    }
}

#[test]
fn what_is_charged_hundreds_of_levels_down_is_counted_at_the_top() {
    if !is_worth_it() || !traceable() {
        return;
    }
    let parent = Cgroup::top(&own("deep"));
    let words = format!("-c {} -i 200ms --no-slab", parent.name);
    let tracer = Tracer::start(&words);
    let exact = tracer.plan()["mode"] == "exact";
    let chain = Chain::below(&parent, scaled(80, 200, 1000));
    let lowest = chain.0.last().expect("some levels").clone();
    let before = number(&tracer.next_report(&parent.name), "ledger_bytes");
    let held = load::start_in(&lowest, "anon=20M");
    let report = tracer.next_report(&parent.name);
    lines::assert_holds(&report);
    if exact && number(&report["lost"], "skipped") == 0 {
        assert_eq!(number(&report, "residual_bytes"), 0, "{report}");
    }
    let grown = number(&report, "ledger_bytes") - before;
    assert!(grown > 19 << 20, "the ledger grew by {grown}: {report}");
    let levels = i64::try_from(chain.0.len()).expect("few");
    assert_eq!(number(&report, "descendants"), levels, "{report}");
    figures(&format!(
        "{levels} levels: residual {} bytes",
        report["residual_bytes"]
    ));
    held.end();
    drop(chain);
    lines::assert_holds(tracer.end().assert_fine());
}
