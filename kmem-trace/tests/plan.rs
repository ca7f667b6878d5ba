//! What the doctor plans on this kernel, left in `/out` for `cargo xtask matrix`, which compares it
//! with the one that is checked in. Runs in a machine of `cargo xtask vm` alone.

#[path = "support/mod.rs"]
mod support;

use std::{fs, path::Path};

use serde_json::Value;

use support::{lines, machine, tracer::ask};

#[test]
fn the_doctor_plans_every_role_and_what_is_planned_can_be_attached() {
    if !machine::is_vm() {
        return;
    }
    let answer = ask("doctor --format json");
    assert_eq!(answer.code(), 0, "{answer:?}");
    let mut plan = answer
        .out
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("each line is JSON"))
        .find(|line| lines::is(line, "plan"))
        .expect("the doctor prints its plan");
    lines::assert_keys(&plan, lines::PLAN);
    let rows = plan["roles"].as_array().expect("a list");
    for row in rows {
        lines::assert_keys(row, lines::ROLE);
        let served = !row["symbol"].is_null();
        assert_eq!(row["status"] != "missing", served, "{row}");
        // The doctor attaches what it plans: only a refusal, or a better candidate that this
        // kernel lacks, may leave a word.
        let why = row["why"].as_str().unwrap_or_default();
        assert!(served || !why.is_empty(), "{row}");
        assert!(
            !why.contains("refused"),
            "the kernel took no candidate as planned: {row}"
        );
    }
    // The only thing in it that another build of this kernel would change.
    if let Some(object) = plan.as_object_mut() {
        object.remove("kernel");
    }
    if Path::new("/out").is_dir() {
        let text = serde_json::to_string_pretty(&plan).expect("it was JSON") + "\n";
        fs::write("/out/plan.json", text).expect("there is room");
    }
}
