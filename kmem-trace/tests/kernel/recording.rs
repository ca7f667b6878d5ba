//! A run written down: what `tests/recorded.rs` reads without root and without BPF.

use std::{fs, io::Write as _, path::Path, thread, time::Duration};

use crate::support::{
    cgroup::Cgroup,
    lines::{self, number},
    load, machine,
    tracer::Tracer,
};

/// Small enough for the repository.
const RECORDING_BYTES: u64 = 200_000;

/// Leaves the recording and the lines that belong to it in `/out`; a copy of the two in
/// `tests/data` is test data.
#[test]
fn a_recorded_run_holds_every_record_of_it() {
    if !machine::is_vm() || !machine::needs_exact() {
        return;
    }
    let parent = Cgroup::top("test-recorded");
    let first = parent.child("first");
    let out = Path::new("/out");
    let tracer =
        Tracer::start("--no-slab -c test-recorded -i 100ms --depth 1 --record /out/run.kmt");
    let held = load::start(&first, "netns tcp=400 pipes=300 anon=8M forks=15");
    let second = parent.child("second");
    load::pass(&second, "anon=16M file=1M");
    assert!(second.remove());
    thread::sleep(Duration::from_secs(2));
    let last = [&parent, &first].map(|cgroup| tracer.next_report(&cgroup.name));
    last.iter().for_each(lines::assert_exact);
    last.iter().for_each(lines::assert_nothing_lost);
    let plan = tracer.plan();
    let ended = tracer.end();
    let summary = ended.assert_fine();
    lines::assert_exact(summary);
    assert_eq!(summary["stream"]["agrees"], true, "{summary}");

    let recorded = fs::metadata(out.join("run.kmt")).expect("it was written");
    let records = u64::try_from(number(&summary["stream"], "records")).expect("a count");
    assert!(records > 100, "{summary}");
    assert!(recorded.len() > 16 + records * 64, "{}", recorded.len());
    assert!(recorded.len() < RECORDING_BYTES, "{}", recorded.len());
    let mut file = fs::File::create(out.join("run.jsonl")).expect("there is room");
    for line in [&plan].into_iter().chain(&last).chain([summary]) {
        writeln!(file, "{line}").expect("there is room");
    }
    drop(held);
}
