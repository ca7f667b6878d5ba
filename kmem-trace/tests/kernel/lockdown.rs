//! A kernel under lockdown=confidentiality: no kernel reads, hence no page counters.

use std::{thread, time::Duration};

use crate::support::{
    cgroup::Cgroup,
    lines::{self, number},
    load, machine,
    tracer::{Tracer, ask},
};

#[test]
fn under_lockdown_it_runs_on_tracepoints_by_itself_or_says_why_not() {
    if !machine::is_vm() {
        return;
    }
    if machine::is_exact() {
        machine::skip(
            "not locked down: cargo xtask vm --kernel newest --append lockdown=confidentiality",
        );
        return;
    }
    let parent = Cgroup::top("test-docker-memory");
    if !machine::has_memcg_tracepoints() {
        let answer = ask("-c test-docker-memory -d 1s");
        let error = answer.assert_refused();
        assert!(error.contains("lockdown"), "{error}");
        assert!(error.contains("memcg"), "{error}");
        assert!(error.contains("doctor"), "{error}");
        return;
    }
    let tracer = Tracer::start("-c test-docker-memory -i 50ms");
    let plan = tracer.plan();
    assert_eq!(plan["mode"], "bounded", "{plan}");
    assert_eq!(plan["lockdown"], "confidentiality", "{plan}");
    assert_eq!(tracer.role("memcg.state")["mechanism"], "BTF tracepoint");
    assert_eq!(tracer.role("counter.charge")["status"], "missing");
    let before = number(&tracer.next_report(&parent.name), "usage_bytes");
    let held = load::start(&parent, "netns tcp=500 anon=50M file=50M");
    thread::sleep(Duration::from_secs(3));
    let report = tracer.next_report(&parent.name);
    let grown = number(&report, "usage_bytes") - before;
    assert!(grown > 100 << 20, "{report}");
    assert!(
        number(&report, "ledger_bytes") - before > 95 << 20,
        "{report}"
    );
    // A bound that explains anything is worth nothing.
    assert!(number(&report, "bound_bytes") < 20 << 20, "{report}");
    held.end();
    thread::sleep(Duration::from_secs(2));
    let ended = tracer.end();
    let summary = ended.assert_fine();
    lines::assert_holds(summary);
    lines::of_type(&ended.lines, "report").for_each(lines::assert_holds);
}
