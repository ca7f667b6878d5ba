//! Kernels made up for tests: just enough types and symbols to tell them apart.

use std::path::Path;

use super::{
    accounting::{Accounting, Sources},
    page::{Lack, Page, Rights, System},
    problems::{Evidence, Problem},
};
use crate::{
    hooks::{
        context::PREEMPT_COUNT,
        plan::Row,
        table::{ROLES, Status},
    },
    kernel::{
        btf::{
            KernelBtf,
            build::{ARRAY, Builder, STRUCT},
        },
        cgroupfs::Hierarchy,
        proc::system::Cmdline,
        security::Lockdown,
        symbols::{self, Symbols},
    },
};

/// A kernel with these structs. Each member is `name` (8 bytes) or `name[N]`; the cgroup of a
/// memory cgroup is there in all.
pub fn btf(structs: &[(&str, &[&str])]) -> KernelBtf {
    let mut builder = Builder::new();
    let long = builder.int("long unsigned int", 8, false);
    let css = builder.strukt("cgroup_subsys_state", STRUCT, 8, &[("cgroup", long, 0)]);
    for (name, members) in structs {
        let mut all = Vec::new();
        if *name == "mem_cgroup" {
            all.push(("css".to_owned(), css));
        }
        for member in *members {
            match member.strip_suffix(']').and_then(|it| it.split_once('[')) {
                Some((member, length)) => {
                    let length = length.parse().expect("a number");
                    let array = builder.raw("", ARRAY, 0, 0, &[long, long, length]);
                    all.push((member.to_owned(), array));
                }
                None => all.push(((*member).to_owned(), long)),
            }
        }
        let placed: Vec<_> = all
            .iter()
            .enumerate()
            .map(|(at, (member, id))| (member.as_str(), *id, at as u32 * 64))
            .collect();
        builder.strukt(name, STRUCT, placed.len() as u32 * 8, &placed);
    }
    KernelBtf::from_bytes(&builder.bytes(), Path::new("sample")).expect("valid")
}

pub fn functions(names: &[&str]) -> Symbols {
    let lines: String = names
        .iter()
        .map(|name| format!("ffffffff81000000 t {name}\n"))
        .collect();
    symbols::parse_kallsyms(lines.as_bytes(), &super::accounting::SYMBOLS).expect("valid")
}

/// 5.10 with v1: the limit's function is inlined, its state is not.
pub fn old() -> (KernelBtf, Symbols) {
    (
        btf(&[
            ("mem_cgroup", &["memory", "kmem", "kmem_state", "objcg"]),
            ("page", &["obj_cgroups"]),
            ("obj_cgroup", &["memcg"]),
            ("kmem_cache", &["size"]),
            ("page_counter", &["parent"]),
            ("memcg_stock_pcp", &["cached"]),
        ]),
        functions(&[
            "obj_cgroup_charge",
            "__memcg_kmem_charge",
            "mem_cgroup_write",
        ]),
    )
}

/// 7.x without the v1 files.
pub fn new() -> (KernelBtf, Symbols) {
    (
        btf(&[
            ("mem_cgroup", &["memory"]),
            ("mem_cgroup_per_node", &["objcg"]),
            ("slab", &["obj_exts", "obj_exts_in_object"]),
            ("obj_cgroup", &["memcg"]),
            ("kmem_cache", &["size"]),
            ("page_counter", &["parent"]),
            ("memcg_stock_pcp", &["cached[7]"]),
            ("bpf_link_info", &["perf_event"]),
        ]),
        functions(&["__memcg_slab_post_alloc_hook", "obj_cgroup_charge_pages"]),
    )
}

pub fn accounting(kernel: &(KernelBtf, Symbols), hierarchy: Hierarchy) -> Accounting {
    Accounting::of(&Sources {
        btf: Ok(&kernel.0),
        symbols: &kernel.1,
        hierarchy: Some(hierarchy),
        cpus: 2,
        page_bytes: 4096,
    })
}

/// Every role of the table with `status`, but for those named.
pub fn roles(status: Status, but: &[(&str, Status, &str)]) -> Vec<Row> {
    ROLES
        .iter()
        .map(|role| {
            let other = but.iter().find(|(name, ..)| *name == role.name);
            let (status, why) = other.map_or((status, ""), |(_, status, why)| (*status, *why));
            let served = (status != Status::Missing).then(|| &role.candidates[0]);
            Row {
                role: role.name,
                symbol: served.map(|candidate| {
                    let first = candidate.hooks.first();
                    first.map_or(PREEMPT_COUNT, |hook| hook.symbol).to_owned()
                }),
                mechanism: served.map(|candidate| candidate.mechanism.name()),
                status,
                why: why.to_owned(),
                default: !role.on_request,
            }
        })
        .collect()
}

/// Root on a machine where all is well.
pub fn evidence() -> Evidence {
    Evidence {
        euid: 0,
        held: vec!["CAP_BPF", "CAP_PERFMON", "CAP_SYSLOG"],
        missing: Vec::new(),
        perf_restricted: None,
        bpf: Ok(()),
        reads: Ok(()),
        lockdown: Lockdown::None,
        cgroups: Ok(()),
        memory_not_delegated: None,
        cmdline: Cmdline::default(),
        tracefs_mounted: true,
        tracefs_readable: true,
        btf: Ok(()),
        btf_given: false,
        addresses_hidden: false,
        kptr_restrict: Some(0),
        kprobes: Some(true),
        exact: true,
    }
}

pub const LACKS: [Lack; 2] = [
    Lack {
        capability: "CAP_BPF",
        purpose: "to make BPF maps and load programs",
    },
    Lack {
        capability: "CAP_SYSLOG",
        purpose: "to see kernel addresses",
    },
];

/// A page around its parts; the machine is the same on all.
pub fn page(
    accounting: Accounting,
    hierarchy: Hierarchy,
    roles: Vec<Row>,
    problems: Vec<Problem>,
) -> Page {
    let exact = roles[0].status == Status::Exact;
    let answers = super::answers::derive(&super::answers::Means {
        roles: &roles,
        accounting: &accounting,
        hierarchy: Some(hierarchy),
        reads_refused: (!exact).then_some("not allowed"),
        nokmem: false,
        unseen_slab: None,
    });
    Page {
        version: "0.0.0",
        system: System {
            kernel: "9.9.9-sample".to_owned(),
            machine: "x86_64".to_owned(),
            cpus_online: 2,
            distribution: Some("Sample GNU/Linux 99".to_owned()),
            hierarchy: Some(hierarchy.to_string()),
            memory_cgroups: Ok("/sys/fs/cgroup".to_owned()),
            lockdown: "none".to_owned(),
            boot_options: Ok("none that changes memory accounting".to_owned()),
            btf: Ok("/sys/kernel/btf/vmlinux".to_owned()),
            tracefs: Ok("/sys/kernel/tracing".to_owned()),
            kernel_addresses: Ok("shown in /proc/kallsyms".to_owned()),
        },
        rights: Rights {
            euid: 0,
            sys_admin: true,
            held: Some(vec!["CAP_BPF", "CAP_SYSLOG"]),
            missing: Vec::new(),
        },
        allowed: vec![("BPF", Ok(())), ("kprobe", Ok(()))],
        accounting,
        mode: if exact { "exact" } else { "bounded" },
        tried: Ok(()),
        answers,
        roles,
        problems,
    }
}
