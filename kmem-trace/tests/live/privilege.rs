//! What the tracer may do while it runs, and what it must be allowed to begin.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, chown},
    path::Path,
    process::Command,
};

use crate::{
    own,
    support::{
        cgroup::Cgroup,
        lines, load, machine,
        tracer::{Answer, Tracer, answer},
    },
    traceable,
};

/// `CAP_DAC_READ_SEARCH` and `CAP_BPF`, by their numbers in `linux/capability.h`.
const KEPT: u64 = 1 << 2 | 1 << 39;

fn status(task: &Path, key: &str) -> String {
    let text = fs::read_to_string(task.join("status")).expect("it runs");
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    line.expect("the kernel says so").trim().to_owned()
}

#[test]
fn a_running_trace_has_given_up_all_but_reading() {
    if !traceable() {
        return;
    }
    let parent = Cgroup::top(&own("caps"));
    let tracer = Tracer::start(&format!("-c {} -i 100ms --depth 1", parent.name));
    tracer.next_report(&parent.name);
    let tasks = fs::read_dir(format!("/proc/{}/task", tracer.pid())).expect("it runs");
    for task in tasks.flatten() {
        for set in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
            let held = u64::from_str_radix(&status(&task.path(), set), 16).expect("a set");
            assert_eq!(held & !KEPT, 0, "{set} {held:#x}");
        }
        assert_eq!(status(&task.path(), "NoNewPrivs:"), "1");
    }
    // A cgroup that comes now, and is somebody else's alone, is followed all the same.
    let child = parent.child("closed");
    chown(&child.dir, Some(65_534), Some(65_534)).expect("root can");
    fs::set_permissions(&child.dir, fs::Permissions::from_mode(0o700)).expect("root can");
    load::pass(&child, "anon=5M pipes=20");
    let report = tracer.next_report(&child.name);
    lines::assert_holds(&report);
    assert!(
        lines::number(&report, "charged_bytes") > 4 << 20,
        "{report}"
    );
    lines::assert_holds(tracer.end().assert_fine());
}

/// A trace by user `nobody` who has these capabilities and no other.
fn as_nobody_with(cgroup: &Cgroup, capabilities: &[&str]) -> Answer {
    let words: Vec<String> = capabilities.iter().map(|name| format!("+{name}")).collect();
    let set = format!("-all,{}", words.join(","));
    let set = set.trim_end_matches(',');
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid", "65534", "--regid", "65534", "--clear-groups"])
        .args(["--inh-caps", set, "--ambient-caps", set])
        .arg(machine::program())
        .args(["-d", "300ms", "--format", "json", "-c", &cgroup.name]);
    answer(command)
}

#[test]
fn it_runs_without_root_with_exactly_the_capabilities_that_it_names() {
    if !traceable() {
        return;
    }
    if Command::new("setpriv").arg("--version").output().is_err() {
        machine::skip("needs setpriv of util-linux");
        return;
    }
    let program = machine::program();
    let readable = program
        .ancestors()
        .skip(1)
        .filter_map(|dir| fs::metadata(dir).ok())
        .all(|dir| dir.permissions().mode() & 0o001 != 0);
    if !readable {
        machine::skip("the program is in a directory that others cannot enter");
        return;
    }
    let parent = Cgroup::top(&own("nobody"));
    let needed = ["bpf", "perfmon", "dac_read_search"];
    let all = as_nobody_with(&parent, &[&needed[..], &["syslog"]].concat());
    assert_eq!(all.code(), 0, "{all:?}");
    for without in needed {
        let rest: Vec<&str> = needed.into_iter().filter(|one| *one != without).collect();
        let lacking = as_nobody_with(&parent, &rest);
        // What cannot be read makes a plan poorer; what cannot be loaded ends it, in a line.
        if lacking.code() == 0 {
            assert_eq!(without, "dac_read_search", "{lacking:?}");
        } else {
            assert_eq!(lacking.error.lines().count(), 1, "{without}: {lacking:?}");
        }
    }
}
