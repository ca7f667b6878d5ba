//! What is found in made-up evidence, and the way out of it.

use super::{
    problems::{Evidence, NoCgroups, Problem, find},
    samples::{LACKS, evidence},
};
use crate::kernel::security::Lockdown;

/// What the screen shows of the way out.
fn remedy(problem: &Problem) -> String {
    format!(
        "{} {}",
        problem.mend,
        problem.command.as_deref().unwrap_or_default()
    )
}

/// The one problem that this evidence shows.
fn only(change: impl FnOnce(&mut Evidence)) -> Problem {
    let mut changed = evidence();
    change(&mut changed);
    let mut found = find(&changed);
    assert_eq!(found.len(), 1, "{found:?}");
    found.remove(0)
}

#[test]
fn where_all_is_well_nothing_is_found() {
    assert_eq!(find(&evidence()), []);
}

#[test]
fn a_user_without_rights_gets_sudo_and_setcap_with_all_that_is_used() {
    let found = only(|it| {
        it.euid = 1000;
        it.held = vec!["CAP_PERFMON"];
        it.missing = LACKS.to_vec();
        // What follows from it is not told again.
        it.bpf = Err("refused".to_owned());
        it.reads = Err("refused".to_owned());
        it.addresses_hidden = true;
    });
    assert!(
        remedy(&found).contains("sudo setcap cap_perfmon,cap_bpf,cap_syslog+ep"),
        "{found:?}"
    );
}

#[test]
fn root_in_a_container_is_told_what_to_add_to_it() {
    let found = only(|it| it.missing = LACKS.to_vec());
    assert!(
        remedy(&found)
            .trim_end()
            .ends_with("--cap-add BPF --cap-add SYSLOG"),
        "{found:?}"
    );
}

#[test]
fn each_hindrance_has_its_own_remedy() {
    type Change = fn(&mut Evidence);
    let cases: [(Change, &str); 12] = [
        (
            |it| it.perf_restricted = Some(3),
            "sudo sysctl kernel.perf_event_paranoid=2",
        ),
        (
            |it| it.tracefs_mounted = false,
            "sudo mount -t tracefs nodev /sys/kernel/tracing",
        ),
        (
            |it| it.cgroups = Err(NoCgroups::NotMounted),
            "mount -t cgroup2",
        ),
        (|it| it.cgroups = Err(NoCgroups::NotBuilt), "CONFIG_MEMCG=y"),
        (
            |it| it.cgroups = Err(NoCgroups::Disabled),
            "cgroup_enable=memory",
        ),
        (
            |it| {
                it.cgroups = Err(NoCgroups::Disabled);
                it.cmdline.disabled = vec!["memory".to_owned()];
            },
            "without cgroup_disable=memory",
        ),
        (
            |it| it.memory_not_delegated = Some("/cg/cgroup.subtree_control".to_owned()),
            "echo +memory > /cg/cgroup.subtree_control",
        ),
        (
            |it| it.cmdline.nokmem = true,
            "boot without cgroup.memory=nokmem",
        ),
        (
            |it| {
                it.addresses_hidden = true;
                it.kptr_restrict = Some(2);
            },
            "sysctl kernel.kptr_restrict=1",
        ),
        (
            |it| it.btf = Err("none".to_owned()),
            "CONFIG_DEBUG_INFO_BTF=y",
        ),
        (
            |it| {
                it.kprobes = Some(false);
                it.exact = false;
            },
            "CONFIG_KPROBES=y",
        ),
        (
            |it| {
                it.lockdown = Lockdown::Confidentiality;
                it.reads = Err("forbidden".to_owned());
                it.tracefs_readable = false;
            },
            "without lockdown=confidentiality",
        ),
    ];
    for (change, expected) in cases {
        let found = only(change);
        assert!(
            remedy(&found).contains(expected),
            "{found:?} does not say {expected}"
        );
    }
}

#[test]
fn no_kprobes_is_no_problem_where_fentry_does_their_work() {
    let mut fine = evidence();
    fine.kprobes = Some(false);
    assert_eq!(find(&fine), []);
}
