//! The programs on the signatures of kernels before 5.10, those for kernels before 5.8 as well.

use std::path::Path;

use bytes::Bytes;
use kmem_trace::stream::{decode::Record, recording};
use serde_json::Value;

use crate::{
    module,
    support::{
        cgroup::{self, Cgroup},
        machine,
        tracer::Tracer,
    },
    without::ALL,
};

/// A trace of `cgroup` in which `role` goes to the module's `symbol`.
#[track_caller]
fn traced(cgroup: &Cgroup, role: &str, symbol: &str, types: &Path, more: &str) -> Tracer {
    let tracer = Tracer::start(&format!(
        "-c {} --attach kprobe --events {role} --strike {} --btf {} {more}",
        cgroup.name,
        module::all_before(role, symbol),
        types.display()
    ));
    let row = tracer.role(role);
    assert_eq!(row["symbol"], symbol, "{row}");
    assert_eq!(row["mechanism"], "kprobe", "{row}");
    assert_eq!(row["status"], "exact", "{row}");
    tracer
}

fn of(pid: u32, role: &str) -> impl Fn(&Value) -> bool {
    move |event: &Value| event["role"] == role && event["pid"] == pid
}

#[test]
fn a_charge_of_3_10_is_told_with_its_cgroup_pages_and_result() {
    charge("");
}

#[test]
fn a_charge_of_3_10_is_told_by_the_programs_for_kernels_before_5_8_too() {
    charge(&without());
}

/// What has those programs loaded.
fn without() -> String {
    format!("--forbid {ALL}")
}

fn charge(more: &str) {
    let Some(types) = module::loaded() else {
        return;
    };
    let cgroup = Cgroup::top("test-legacy-charge");
    let file = "/tmp/legacy-charges.bin";
    let tracer = traced(
        &cgroup,
        "charge.user",
        "__mem_cgroup_try_charge",
        &types,
        &format!("--record {file} {more}"),
    );

    let granted = module::call(&cgroup, "charge cc0 3 0");
    let event = tracer.event("a charge", of(granted, "charge.user"));
    assert_eq!(event["cgroup"], cgroup.name.as_str());
    assert_eq!(
        (&event["pages"], &event["result"]),
        (&3.into(), &"ok".into())
    );

    // The caller gets no cgroup back: it is the one that the process's memory belongs to.
    let refused = module::call(&cgroup, "charge d0 32 -12");
    let event = tracer.event("a refusal", of(refused, "charge.user"));
    assert_eq!(event["cgroup"], cgroup.name.as_str());
    assert_eq!(event["pages"], 32);
    assert!(
        event["result"]
            .as_str()
            .is_some_and(|it| it.starts_with("ENOMEM")),
        "{event}"
    );

    // Passed by: the root is charged instead.
    let passed_by = module::call(&cgroup, "charge d0 1 -4");
    let event = tracer.event("a bypass", of(passed_by, "charge.user"));
    assert!(
        event["result"]
            .as_str()
            .is_some_and(|it| it.starts_with("EINTR")),
        "{event}"
    );

    tracer.end().assert_fine();
    let batch = recording::read(Bytes::from(std::fs::read(file).expect("recorded"))).expect("ours");
    let seen: Vec<_> = batch
        .records()
        .filter_map(|record| match record {
            Ok(Record::UserCharge(it)) => Some((it.header.pid, it.gfp, it.pages, it.result)),
            _ => None,
        })
        .collect();
    assert_eq!(
        seen,
        [
            (granted, 0xcc0, 3, 0),
            (refused, 0xd0, 32, -12),
            (passed_by, 0xd0, 1, -4)
        ]
    );
}

#[test]
fn nothing_is_told_of_charges_for_other_cgroups() {
    let Some(types) = module::loaded() else {
        return;
    };
    let traced_one = Cgroup::top("test-legacy-this");
    let other = Cgroup::top("test-legacy-other");
    let tracer = traced(
        &traced_one,
        "charge.user",
        "__mem_cgroup_try_charge",
        &types,
        "",
    );
    let elsewhere = module::call(&other, "charge cc0 7 0");
    let here = module::call(&traced_one, "charge cc0 5 0");
    tracer.event("the one here", of(here, "charge.user"));
    let told = tracer.all();
    assert!(!told.iter().any(of(elsewhere, "charge.user")), "{told:#?}");
    tracer.end().assert_fine();
}

#[test]
fn a_kmem_limit_of_3_10_is_told_by_its_cgroup() {
    kmem_limit("memcg_update_kmem_limit", "limit", "");
}

#[test]
fn a_kmem_limit_of_3_10_is_told_by_the_programs_for_kernels_before_5_8_too() {
    kmem_limit("memcg_update_kmem_limit", "limit", &without());
}

#[test]
fn a_kmem_limit_of_4_5_to_5_15_is_told_by_its_memory_cgroup() {
    kmem_limit("memcg_update_kmem_max", "max", "");
}

#[test]
fn a_kmem_limit_of_4_5_to_5_15_is_told_by_the_programs_for_kernels_before_5_8_too() {
    kmem_limit("memcg_update_kmem_max", "max", &without());
}

fn kmem_limit(symbol: &str, word: &str, more: &str) {
    let Some(types) = module::loaded() else {
        return;
    };
    if !cgroup::is_v1() {
        machine::skip("kmem limits are of cgroup v1");
        return;
    }
    let cgroup = Cgroup::top("test-legacy-limit");
    let tracer = traced(&cgroup, "limit.kmem", symbol, &types, more);
    for (value, result, said) in [(5, 0, "ok"), (0, -16, "EBUSY"), (1 << 40, -22, "EINVAL")] {
        let pid = module::call(&cgroup, &format!("{word} {value} {result}"));
        let event = tracer.event("a limit", of(pid, "limit.kmem"));
        assert_eq!(event["cgroup"], cgroup.name.as_str());
        assert_eq!(event["result"], said, "{event}");
        // The counters of the kernel underneath count pages, whatever the function's own did.
        assert_eq!(event["value_bytes"], value * 4096_u64, "{event}");
    }
    tracer.end().assert_fine();
}
