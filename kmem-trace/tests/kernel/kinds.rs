//! `explain` on v1: kernel memory by kind, which no file of v1 shows.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    process::{Command, Stdio},
};

use serde_json::Value;

use crate::support::{
    cgroup::{self, Cgroup},
    lines::number,
    load, machine,
    tracer::{ask, ask_as_nobody},
};

const DENTRIES: i64 = 20_000;
/// A dentry and an inode of tmpfs take more on every kernel.
const BYTES_A_DENTRY: i64 = 500;
const TASKS: i64 = 60;
const STACK_BYTES: i64 = 16 << 10;

fn needs_v1() -> bool {
    if !machine::is_vm() {
        return false;
    }
    if !cgroup::is_v1() {
        machine::skip("v2 shows kernel memory by kind in memory.stat");
        return false;
    }
    true
}

fn explained(cgroup: &Cgroup) -> Value {
    let answer = ask(&format!("explain -c {} --format json", cgroup.name));
    assert_eq!(answer.code(), 0, "{answer:?}");
    serde_json::from_str(answer.out.trim()).expect("one line of JSON")
}

/// Bytes of a field; 0 where this kernel has no such counter.
fn field(explained: &Value, name: &str) -> i64 {
    let fields = explained["fields"].as_array().expect("a list");
    let found = fields.iter().find(|field| field["field"] == name);
    found.map_or(0, |field| number(field, "bytes"))
}

#[test]
fn slab_and_stacks_of_a_v1_cgroup_are_shown_and_grow_with_what_is_made() {
    if !needs_v1() || !machine::needs_exact() {
        return;
    }
    let cgroup = Cgroup::top("kinds");
    // Tasks that are born in it: their stacks are charged to it.
    let mut shell = Command::new("sh")
        .arg("-c")
        .arg(format!(
            "read go; for i in $(seq {TASKS}); do sleep 1000 </dev/null >/dev/null & done; echo made; wait"
        ))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("a shell starts");
    cgroup.enter(shell.id());
    let before = explained(&cgroup);
    let mut stdin = shell.stdin.take().expect("piped");
    stdin.write_all(b"go\n").expect("it reads");
    let mut said = String::new();
    BufReader::new(shell.stdout.take().expect("piped"))
        .read_line(&mut said)
        .expect("it speaks");
    let held = load::start(&cgroup, &format!("dentries={DENTRIES} dir=/dev/shm"));
    let after = explained(&cgroup);
    held.end();
    let _ = shell.kill();
    let _ = shell.wait();

    let kinds = &after["kernel_counters"];
    assert!(kinds["why"].is_null(), "{kinds}");
    let lag = number(kinds, "lag_bytes");
    // What may be late cannot be all there is.
    assert!(lag < 8 << 20, "{kinds}");
    let grown = |name| field(&after, name) - field(&before, name);
    println!(
        "slab +{} B, stacks +{} B, kmem +{} B, lag {lag} B, rest {} B",
        grown("slab"),
        grown("kernel_stack"),
        grown("memory.kmem.usage_in_bytes"),
        kinds["rest_bytes"]
    );
    assert!(grown("slab") > DENTRIES * BYTES_A_DENTRY, "{after}");
    assert!(
        grown("kernel_stack") >= TASKS * STACK_BYTES - lag,
        "{after}"
    );
    assert!(grown("kernel_stack") > 0, "{after}");
    let kmem = field(&after, "memory.kmem.usage_in_bytes");
    assert!(field(&after, "slab") <= kmem + lag, "{after}");
    // They are parts of the kernel memory, not beside it: the sum stays the usage.
    let slab = after["fields"].as_array().expect("a list");
    let slab = slab.iter().find(|field| field["field"] == "slab");
    assert_eq!(slab.expect("shown")["of"], "memory.kmem.usage_in_bytes");
    assert_eq!(after["verdict"], "explained", "{after}");
}

#[test]
fn who_may_not_read_the_kernel_is_told_so_and_gets_the_files_figures() {
    if !needs_v1() {
        return;
    }
    let cgroup = Cgroup::top("kinds-nobody");
    let answer = ask_as_nobody(&format!("explain -c {}", cgroup.name));
    assert_eq!(answer.code(), 0, "{answer:?}");
    assert_eq!(answer.error, "", "{answer:?}");
    let told = |line: &str| line.contains("not read by BPF") && line.contains("root");
    assert_eq!(
        answer.out.lines().filter(|line| told(line)).count(),
        1,
        "{answer:?}"
    );
    assert!(answer.out.contains("memory.usage_in_bytes"), "{answer:?}");
}
