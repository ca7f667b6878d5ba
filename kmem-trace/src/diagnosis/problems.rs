//! What stands in the way of an exact trace, and the command that mends it.

use serde::Serialize;

use super::page::Lack;
use crate::kernel::{proc::system::Cmdline, security::Lockdown};

/// Something that can be mended, or at least explained.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    pub problem: String,
    /// What to do, where a command alone does not say it; may be empty.
    pub mend: String,
    /// What to type.
    pub command: Option<String>,
}

/// Why there are no memory cgroups to look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoCgroups {
    /// Switched off at boot, or by default.
    Disabled,
    /// Left out of the kernel.
    NotBuilt,
    NotMounted,
    /// Another reason, in words.
    Other(String),
}

/// What problems are found in.
#[derive(Clone, Debug)]
pub struct Evidence {
    /// Effective user id.
    pub euid: u32,
    /// Capabilities that tracing uses and this process has.
    pub held: Vec<&'static str>,
    /// Those that it lacks.
    pub missing: Vec<Lack>,
    /// `kernel.perf_event_paranoid`, where it leaves `perf_event_open` to others than us.
    pub perf_restricted: Option<i64>,
    /// Making a BPF map, or the kernel's reason against it.
    pub bpf: Result<(), String>,
    /// Reading kernel memory from a program, or the reason against it.
    pub reads: Result<(), String>,
    pub lockdown: Lockdown,
    pub cgroups: Result<(), NoCgroups>,
    /// On v2: path of a `cgroup.subtree_control` without `memory` at the top of the tree, although
    /// the controller is there.
    pub memory_not_delegated: Option<String>,
    pub cmdline: Cmdline,
    pub tracefs_mounted: bool,
    /// Its directory can be listed.
    pub tracefs_readable: bool,
    pub btf: Result<(), String>,
    /// A file was given with `--btf`.
    pub btf_given: bool,
    /// All addresses in kallsyms are zero.
    pub addresses_hidden: bool,
    pub kptr_restrict: Option<u64>,
    /// The kernel has kprobes; `None` where it cannot be told.
    pub kprobes: Option<bool>,
    /// The ledger is exact without them.
    pub exact: bool,
}

/// Everything found, what hinders most first.
pub fn find(evidence: &Evidence) -> Vec<Problem> {
    [
        rights(evidence),
        perf(evidence),
        cgroups(evidence),
        delegation(evidence),
        nokmem(evidence),
        lockdown(evidence),
        tracefs(evidence),
        btf(evidence),
        addresses(evidence),
        kprobes(evidence),
        no_bpf(evidence),
        no_reads(evidence),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn problem(problem: impl Into<String>, mend: impl Into<String>) -> Option<Problem> {
    Some(Problem {
        problem: problem.into(),
        mend: mend.into(),
        command: None,
    })
}

fn mended_by(
    problem: impl Into<String>,
    mend: &str,
    command: impl Into<String>,
) -> Option<Problem> {
    Some(Problem {
        problem: problem.into(),
        mend: mend.to_owned(),
        command: Some(command.into()),
    })
}

fn rights(evidence: &Evidence) -> Option<Problem> {
    if evidence.missing.is_empty() {
        return None;
    }
    let names: Vec<_> = evidence
        .missing
        .iter()
        .map(|lack| lack.capability)
        .collect();
    if evidence.euid == 0 {
        // Root without them: a container, or a service with a bounding set.
        let added: Vec<_> = names
            .iter()
            .map(|name| name.trim_start_matches("CAP_"))
            .collect();
        return problem(
            format!("root, but without {} (a container?)", names.join(", ")),
            format!(
                "run on the node itself, or start the container with --cap-add {}",
                added.join(" --cap-add ")
            ),
        );
    }
    let all: Vec<_> = evidence
        .held
        .iter()
        .chain(&names)
        .map(|name| name.to_lowercase())
        .collect();
    mended_by(
        format!("not root, and without {}", names.join(", ")),
        "run it with sudo, or give the program its rights once and for all:",
        format!("sudo setcap {}+ep $(command -v kmem-trace)", all.join(",")),
    )
}

fn perf(evidence: &Evidence) -> Option<Problem> {
    let value = evidence.perf_restricted?;
    mended_by(
        format!(
            "kernel.perf_event_paranoid={value} leaves kprobes and tracepoints to CAP_SYS_ADMIN"
        ),
        "run it with sudo, or:",
        "sudo sysctl kernel.perf_event_paranoid=2",
    )
}

fn cgroups(evidence: &Evidence) -> Option<Problem> {
    let disabled = evidence
        .cmdline
        .disabled
        .iter()
        .any(|name| name == "memory");
    match evidence.cgroups.as_ref().err()? {
        NoCgroups::Disabled if disabled => problem(
            "the memory controller is switched off on the boot command line",
            "boot without cgroup_disable=memory",
        ),
        NoCgroups::Disabled => problem(
            "the memory controller is off",
            "boot with cgroup_enable=memory (some distributions leave it off by default)",
        ),
        NoCgroups::NotBuilt => problem(
            "the kernel is built without the memory controller",
            "boot a kernel with CONFIG_MEMCG=y",
        ),
        NoCgroups::NotMounted => mended_by(
            "the memory controller is not mounted",
            "",
            "sudo mount -t cgroup2 none /sys/fs/cgroup",
        ),
        NoCgroups::Other(why) => mended_by(
            format!("memory cgroups cannot be found: {why}"),
            "",
            "sudo mount -t proc proc /proc",
        ),
    }
}

fn delegation(evidence: &Evidence) -> Option<Problem> {
    let path = evidence.memory_not_delegated.as_ref()?;
    mended_by(
        "the memory controller is not switched on for the cgroups below the top",
        "as root:",
        format!("echo +memory > {path}"),
    )
}

fn nokmem(evidence: &Evidence) -> Option<Problem> {
    let options: Vec<_> = [
        (evidence.cmdline.nokmem, "nokmem", "kernel memory"),
        (evidence.cmdline.nosocket, "nosocket", "socket buffers"),
    ]
    .into_iter()
    .filter(|(set, ..)| *set)
    .collect();
    if options.is_empty() {
        return None;
    }
    let what: Vec<_> = options.iter().map(|(.., what)| *what).collect();
    let names: Vec<_> = options.iter().map(|(_, name, _)| *name).collect();
    let (verb, option) = match what.len() {
        1 if names[0] == "nokmem" => ("is", "cgroup.memory=nokmem".to_owned()),
        _ => ("are", format!("cgroup.memory={}", names.join(","))),
    };
    problem(
        format!("{} {verb} charged to nobody ({option})", what.join(" and ")),
        format!("boot without {option}"),
    )
}

fn lockdown(evidence: &Evidence) -> Option<Problem> {
    if evidence.lockdown != Lockdown::Confidentiality {
        return None;
    }
    problem(
        "lockdown=confidentiality: no kernel reads, so no probes and no exact ledger",
        "boot without lockdown=confidentiality (lockdown=integrity is no hindrance)",
    )
}

fn tracefs(evidence: &Evidence) -> Option<Problem> {
    if !evidence.tracefs_mounted {
        return mended_by(
            "tracefs is not mounted (kmem-trace mounts it itself when it is root)",
            "",
            "sudo mount -t tracefs nodev /sys/kernel/tracing",
        );
    }
    // Boot-time lockdown leaves it empty, and that is its own problem.
    if evidence.tracefs_readable
        || evidence.lockdown == Lockdown::Confidentiality
        || evidence.euid != 0
    {
        return None;
    }
    mended_by(
        "tracefs is mounted, but its events cannot be read",
        "",
        "sudo mount -o remount,mode=755 /sys/kernel/tracing",
    )
}

fn btf(evidence: &Evidence) -> Option<Problem> {
    let why = evidence.btf.as_ref().err()?;
    if evidence.btf_given {
        return problem(
            why.clone(),
            "give --btf a raw BTF file of this very kernel, or leave it out",
        );
    }
    problem(
        "no type information (BTF): struct offsets are unknown, and nothing is guessed",
        "boot a kernel with CONFIG_DEBUG_INFO_BTF=y (most distributions' own have it), or, with \
         the vmlinux of its debug package (Debian: linux-image-$(uname -r)-dbg): \
         pahole --btf_encode_detached=kernel.btf vmlinux, then --btf kernel.btf",
    )
}

fn addresses(evidence: &Evidence) -> Option<Problem> {
    // Without the capability it is the first problem already.
    let has_right = evidence
        .missing
        .iter()
        .all(|lack| lack.capability != "CAP_SYSLOG");
    if !evidence.addresses_hidden || !has_right {
        return None;
    }
    mended_by(
        match evidence.kptr_restrict {
            Some(value) => format!("kernel.kptr_restrict={value} hides kernel addresses"),
            None => "kernel addresses are hidden".to_owned(),
        },
        "",
        "sudo sysctl kernel.kptr_restrict=1",
    )
}

fn kprobes(evidence: &Evidence) -> Option<Problem> {
    // Whether fentry does, nobody knows who may not load programs.
    if evidence.exact || evidence.bpf.is_err() || evidence.kprobes != Some(false) {
        return None;
    }
    problem(
        "this kernel is built without kprobes, and fentry does not take their place",
        "boot a kernel with CONFIG_KPROBES=y; until then the ledger is bounded, not exact",
    )
}

/// What none of the others explains.
fn no_bpf(evidence: &Evidence) -> Option<Problem> {
    let why = evidence.bpf.as_ref().err()?;
    if !evidence.missing.is_empty() {
        return None;
    }
    problem(
        why.clone(),
        "boot a kernel with CONFIG_BPF_SYSCALL=y; in a container, allow the bpf system call \
         (--security-opt seccomp=unconfined)",
    )
}

fn no_reads(evidence: &Evidence) -> Option<Problem> {
    let why = evidence.reads.as_ref().err()?;
    if evidence.bpf.is_err()
        || !evidence.missing.is_empty()
        || evidence.lockdown == Lockdown::Confidentiality
    {
        return None;
    }
    mended_by(
        why.clone(),
        "see what locks the kernel down:",
        "cat /sys/kernel/security/lockdown",
    )
}
