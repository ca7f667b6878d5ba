//! Loads whose objects can be counted, and what the program says of them.

use std::{thread, time::Duration};

use nix::unistd::geteuid;
use serde_json::Value;

use crate::support::{
    cgroup::{self, Cgroup},
    lines::{self, number},
    load, machine,
    tracer::Tracer,
};

pub(super) const MIB: i64 = 1 << 20;
/// Connections have two ends each: one born in a system call, one in a softirq.
const CONNECTIONS: i64 = 1000;

/// Whether slab can be attributed here; says so where it cannot.
pub(crate) fn is_possible() -> bool {
    if !geteuid().is_root() || !cgroup::is_there() {
        machine::skip("needs root and a memory cgroup hierarchy");
        return false;
    }
    if machine::lockdown() == "confidentiality" {
        machine::skip("this kernel is locked down: objects cannot be asked who pays");
        return false;
    }
    true
}

/// A trace that attributes slab, or why there is none here.
pub(crate) fn tracer(words: &str) -> Option<Tracer> {
    if !is_possible() {
        return None;
    }
    let tracer = Tracer::start(words);
    let role = tracer.role("slab.alloc");
    if role["default"] != true {
        machine::skip(&format!("slab is not attributed here: {}", role["why"]));
        return None;
    }
    Some(tracer)
}

/// The slab lines of one report, with the node line that ends them.
pub(super) struct Slab {
    pub(super) lines: Vec<Value>,
    /// What is charged, by the kernel's counters.
    charged: Value,
    pub(super) node: Value,
}

impl Slab {
    /// The first whole one after this call.
    pub(super) fn next(tracer: &Tracer) -> Self {
        let seen = tracer.next_node();
        tracer.see(|all| Self::after(all, seen))
    }

    /// Those between the `nodes`th node line and the one after it.
    fn after(all: &[Value], nodes: usize) -> Self {
        let ends: Vec<usize> = (0..all.len())
            .filter(|place| lines::is(&all[*place], "node"))
            .collect();
        let (from, to) = (ends[nodes - 1], ends[nodes]);
        Self {
            lines: lines::of_type(&all[from..to], "slab").cloned().collect(),
            charged: lines::of_type(&all[from..to], "charged-slab")
                .next()
                .cloned()
                .unwrap_or_default(),
            node: all[to].clone(),
        }
    }

    pub(super) fn sum(&self, cache: &str, cause: &str, key: &str) -> i64 {
        self.lines
            .iter()
            .filter(|line| line["cache"] == cache && line["cause"] == cause)
            .map(|line| number(line, key))
            .sum()
    }
}

#[test]
fn server_side_sockets_are_born_in_softirq_and_charged_to_nobody_until_accepted() {
    let parent = Cgroup::top(&format!("kmem-trace-test-slab-{}", std::process::id()));
    let Some(tracer) = tracer(&format!("-c {} -i 200ms", parent.name)) else {
        return;
    };
    let charged_when_accepted = tracer.role("slab.charge")["default"] == true && !cgroup::is_v1();
    let held = load::start(&parent, &format!("netns tcp={CONNECTIONS}"));
    // Frees that wait for an RCU grace period have happened by then.
    thread::sleep(Duration::from_secs(1));
    let slab = Slab::next(&tracer);
    held.end();
    let charged = slab.sum("TCP", "charged", "objects");
    let uncharged = slab.sum("TCP", "softirq", "objects");
    let (in_task, in_softirq) = if charged_when_accepted {
        (2 * CONNECTIONS, 0)
    } else {
        (CONNECTIONS, CONNECTIONS)
    };
    // A listening socket each beside them.
    assert!(
        (in_task..in_task + 10).contains(&charged),
        "{charged} charged: {:#?}",
        slab.lines
    );
    // A softirq that ran over a task elsewhere is put down to that, where the parent of the new
    // socket is not seen.
    let least = in_softirq - in_softirq / 20;
    assert!(
        (least..=in_softirq).contains(&uncharged),
        "{uncharged} born in softirq: {:#?}",
        slab.lines
    );
    let born = slab
        .lines
        .iter()
        .find(|line| line["cache"] == "TCP" && line["cause"] == "softirq")
        .expect("a row of them");
    assert!(
        born["call_site"]
            .as_str()
            .is_some_and(|site| site.starts_with("sk_prot_alloc+")),
        "{born}"
    );
    assert!(number(born, "allocated_bytes") > MIB, "{born}");
    assert!(
        born["coverage"]
            .as_f64()
            // /proc/slabinfo counts what lies on per-CPU lists as in use.
            .is_some_and(|covered| (0.9..1.1).contains(&covered)),
        "{born}"
    );
    tracer.end().assert_fine();
}

#[test]
fn the_node_adds_up_and_what_is_charged_is_what_the_kernel_counts() {
    let parent = Cgroup::top(&format!("kmem-trace-test-node-{}", std::process::id()));
    let Some(tracer) = tracer(&format!("-c {} -i 200ms", parent.name)) else {
        return;
    };
    let held = load::start(&parent, "netns tcp=1000");
    thread::sleep(Duration::from_secs(3));
    let slab = Slab::next(&tracer);
    held.end();
    let ended = tracer.end();
    let node = &slab.node;
    let terms = [
        "charged_bytes",
        "not_charged_bytes",
        "other_cgroups_bytes",
        "large_kmalloc_bytes",
        "overhead_bytes",
        "unseen_bytes",
        "residual_bytes",
    ];
    let sum: i64 = terms.iter().map(|term| number(node, term)).sum();
    assert_eq!(sum, number(node, "slab_delta_bytes"), "{node}");
    // 1000 connections are two TCP objects, two sockets, two files each: more than 6 MB.
    let made = number(node, "charged_bytes") + number(node, "not_charged_bytes");
    assert!(made > 6 * MIB, "{node}");
    // Other work on the node makes this small change noisy; the large one is in the README.
    assert!(number(node, "residual_bytes").abs() < 2 * MIB, "{node}");

    // Objects at their size and a pointer each (`obj_full_size`), where the kernel's own counters
    // of a cgroup can be read; how late these can be depends on the kernel.
    if slab.charged["kernel_bytes"].is_null() {
        machine::skip(&format!("no counters to compare with: {}", slab.charged));
    } else {
        assert!(
            number(&slab.charged, "events_bytes") > 3 * MIB,
            "{}",
            slab.charged
        );
        assert!(
            number(&slab.charged, "difference_bytes").abs() <= number(&slab.charged, "bound_bytes"),
            "{}",
            slab.charged
        );
    }
    ended.assert_fine();
}

#[test]
fn whoever_wants_the_ledger_alone_gets_no_slab() {
    if !geteuid().is_root() || !cgroup::is_there() {
        machine::skip("needs root and a memory cgroup hierarchy");
        return;
    }
    if !machine::needs_ledger() {
        return;
    }
    let parent = Cgroup::top(&format!("kmem-trace-test-none-{}", std::process::id()));
    let tracer = Tracer::start(&format!("-c {} -i 100ms --no-slab", parent.name));
    tracer.next_report(&parent.name);
    assert_eq!(tracer.role("slab.alloc")["default"], false);
    let ended = tracer.end();
    ended.assert_fine();
    assert_eq!(lines::of_type(&ended.lines, "slab").count(), 0);
    assert_eq!(lines::of_type(&ended.lines, "node").count(), 0);
}
