//! `--max-overhead`: less is followed, step by step, each one said.

use std::{thread, time::Duration};

use serde_json::Value;

use crate::{
    is_worth_it, own, storm,
    support::{
        cgroup::Cgroup,
        lines::{self, number},
        load,
        machine::skip,
        soon,
        tracer::{Tracer, ask},
    },
    traceable,
};

const PATIENCE: Duration = Duration::from_secs(20);

fn steps(lines: &[Value]) -> Vec<String> {
    lines::of_type(lines, "step")
        .map(|step| step["step"].as_str().expect("a name").to_owned())
        .collect()
}

#[test]
fn a_storm_makes_it_step_down_and_every_step_is_said() {
    if !is_worth_it() || !traceable() {
        return;
    }
    let parent = Cgroup::top(&own("steps"));
    let words = format!("-c {} -i 100ms --max-overhead 0.1", parent.name);
    let tracer = Tracer::start(&words);
    let exact = tracer.plan()["mode"] == "exact";
    let followed_slab = soon(Duration::from_secs(2), || tracer.count("node") > 0);
    let ended = soon(PATIENCE, || {
        storm::pipes_for(Duration::from_millis(200));
        steps(&tracer.all())
            .last()
            .is_some_and(|step| step == "none-left")
    });
    assert!(ended, "{:?}", steps(&tracer.all()));
    let mut expected = Vec::new();
    if exact {
        expected.push("aggregates");
    }
    // One program an event is enough where the kernel skips none.
    let skips = !tracer.role("slab.alloc")["why"]
        .as_str()
        .is_some_and(|why| why.contains("lets a program interrupt itself"));
    if followed_slab && skips {
        expected.push("no-second-programs");
    }
    if followed_slab {
        expected.extend(["no-call-sites", "ledger-only"]);
    }
    expected.push("none-left");
    assert_eq!(steps(&tracer.all()), expected);
    // The ledger goes on.
    let held = load::start(&parent, "anon=20M");
    thread::sleep(Duration::from_millis(200));
    let report = tracer.next_report(&parent.name);
    held.end();
    lines::assert_holds(&report);
    assert!(number(&report, "charged_bytes") > 20 << 20, "{report}");
    let slab_so_far = tracer.count("slab");
    thread::sleep(Duration::from_millis(1200));
    let ended = tracer.end();
    let summary = ended.assert_fine();
    lines::assert_holds(summary);
    assert_eq!(lines::of_type(&ended.lines, "slab").count(), slab_so_far);
    for step in lines::of_type(&ended.lines, "step") {
        lines::assert_keys(step, &["elapsed_s", "off", "cannot_say"]);
        let over = step["overhead_pct"].as_f64().expect("a share");
        assert!(over > 0.1, "{step}");
    }
    // Measured no longer than it was asked for.
    let until = &summary["self"]["bpf_until_s"];
    assert!(until.as_f64().is_some_and(|until| until > 0.0), "{summary}");
    let notes = summary["limits"].to_string();
    assert_eq!(notes.contains("slab attribution"), followed_slab, "{notes}");
    if exact {
        assert_eq!(summary["stream"], Value::Null);
        assert_eq!(summary["streamed_bytes"], Value::Null);
    }
}

#[test]
fn events_become_reports_and_the_screen_says_when() {
    if !is_worth_it() || !traceable() {
        return;
    }
    let parent = Cgroup::top(&own("events"));
    let words = format!(
        "-c {} -i 100ms --events slab.alloc,slab.free --max-overhead 0.1",
        parent.name
    );
    let tracer = Tracer::start(&words);
    let stepped = soon(PATIENCE, || {
        storm::pipes_for(Duration::from_millis(200));
        !steps(&tracer.all()).is_empty()
    });
    assert!(stepped, "no step");
    assert_eq!(steps(&tracer.all())[0], "aggregates");
    tracer.next_report(&parent.name);
    let ended = tracer.end();
    ended.assert_fine();
    let step = ended.lines.iter().position(|line| lines::is(line, "step"));
    let after = &ended.lines[step.expect("it stepped")..];
    let late = lines::of_type(after, "event")
        .filter(|event| event["role"] != "cgroup.lifecycle")
        .count();
    // Those that were on their way are told before.
    assert_eq!(late, 0);
    let screen = thread::scope(|scope| {
        let storm = scope.spawn(|| storm::pipes_for(Duration::from_secs(3)));
        let screen = ask(&format!("-c {} -d 3s --max-overhead 0.1", parent.name));
        storm.join().expect("it runs");
        screen
    });
    assert!(screen.out.contains("step down at +"), "{}", screen.out);
    assert!(screen.out.contains("(--max-overhead)"), "{}", screen.out);
}

#[test]
fn a_demo_that_follows_slab_no_longer_shows_what_it_followed() {
    if !is_worth_it() || !traceable() {
        return;
    }
    let ended = Tracer::start(&format!(
        "demo -c {} --groups 4 --connections 10000 --max-overhead 0.001",
        own("steps-demo")
    ))
    .wait();
    let summary = ended.assert_fine();
    if !steps(&ended.lines).contains(&"ledger-only".to_owned()) {
        skip("the demo was over before it had stepped down to the ledger");
        return;
    }
    assert!(lines::of_type(&ended.lines, "slab").count() > 0);
    let node = lines::of_type(&ended.lines, "node").count();
    assert_eq!(node, 1, "{:?}", ended.lines);
    let verdict = summary["verdict"].to_string();
    assert!(verdict.contains("Slab was followed until"), "{verdict}");
    // Of what was in no usage at the end, these figures know nothing.
    let demo = lines::of_type(&ended.lines, "demo").next().expect("a demo");
    for key in ["not_charged_bytes", "not_charged_are"] {
        assert_eq!(demo.get(key), Some(&Value::Null), "{key} in {demo}");
    }
}

#[test]
fn what_costs_little_steps_nowhere() {
    if !is_worth_it() || !traceable() {
        return;
    }
    let parent = Cgroup::top(&own("calm"));
    let tracer = Tracer::start(&format!("-c {} -i 500ms --max-overhead 100", parent.name));
    load::pass(&parent, "anon=5M");
    thread::sleep(Duration::from_secs(1));
    let ended = tracer.end();
    assert_eq!(steps(&ended.lines), [""; 0]);
    let summary = ended.assert_fine();
    assert!(number(&summary["self"], "bpf_runs") > 0, "{summary}");
}
