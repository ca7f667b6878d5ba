//! What the tracer may do while it runs, and what it must be allowed to begin.

use std::{
    fs, io,
    os::unix::{
        fs::{PermissionsExt as _, chown},
        process::CommandExt as _,
    },
    path::Path,
    process::Command,
};

use caps::{CapSet, Capability, CapsHashSet};
use nix::{
    sys::{
        prctl::set_keepcaps,
        statvfs::{FsFlags, statvfs},
    },
    unistd::{Gid, Uid, setgid, setgroups, setuid},
};

use crate::{
    first_line, last_line, own,
    support::{
        cgroup::{self, Cgroup},
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

/// Has user `nobody`, who is in no other group, run the program with these capabilities and no other.
fn as_nobody(command: &mut Command, capabilities: &[Capability]) {
    let wanted: CapsHashSet = capabilities.iter().copied().collect();
    let become_nobody = move || {
        set_keepcaps(true)?;
        setgroups(&[])?;
        setgid(Gid::from_raw(65_534))?;
        setuid(Uid::from_raw(65_534))?;
        // What is not ambient does not outlive the start of a program.
        for set in [CapSet::Inheritable, CapSet::Ambient] {
            caps::set(None, set, &wanted).map_err(io::Error::other)?;
        }
        Ok(())
    };
    // SAFETY: nothing of the parent's is used but the set, which is this closure's own.
    unsafe { command.pre_exec(become_nobody) };
}

/// A trace by user `nobody` who has these capabilities and no other, and says these words too.
fn as_nobody_with(cgroup: &Cgroup, capabilities: &[Capability], words: &[&str]) -> Answer {
    let mut command = Command::new(machine::program());
    as_nobody(&mut command, capabilities);
    trace(command, cgroup, words)
}

/// A trace by this command, which is the program by some way.
fn trace(mut command: Command, cgroup: &Cgroup, words: &[&str]) -> Answer {
    command
        .args(["-d", "300ms", "--format", "json", "-c", &cgroup.name])
        .args(words);
    answer(command)
}

/// Whether user `nobody` may start `program`; says why not.
fn is_for_nobody(program: &Path) -> bool {
    let readable = program
        .ancestors()
        .skip(1)
        .filter_map(|dir| fs::metadata(dir).ok())
        .all(|dir| dir.permissions().mode() & 0o001 != 0);
    if !readable {
        machine::skip("the program is in a directory that others cannot enter");
    }
    readable
}

/// Traced within its bound, in the mode that root's trace of the same cgroup is in.
#[track_caller]
fn assert_as_good_as_roots(answer: &Answer, cgroup: &Cgroup) {
    assert_eq!(answer.code(), 0, "{answer:?}");
    lines::assert_holds(&last_line(answer));
    let root = trace(Command::new(machine::program()), cgroup, &[]);
    let (plan, roots) = (first_line(answer), first_line(&root));
    if plan["mode"] == roots["mode"] {
        return;
    }
    let paranoid = fs::read_to_string("/proc/sys/kernel/perf_event_paranoid").unwrap_or_default();
    let mut roles = roots["roles"].as_array().expect("a list").iter();
    let by_perf = roles.any(|role| role["mechanism"] == "kprobe");
    if by_perf && paranoid.trim().parse().is_ok_and(|level: i32| level > 2) {
        machine::skip(
            "kernel.perf_event_paranoid leaves kprobes to CAP_SYS_ADMIN: no mode as root's",
        );
        return;
    }
    panic!(
        "{} is not root's {}: {plan} and {roots}",
        plan["mode"], roots["mode"]
    );
}

/// All that docs/security.md names for a trace, but what old kernels ask for memory.
const NAMED: [Capability; 5] = [
    Capability::CAP_BPF,
    Capability::CAP_PERFMON,
    Capability::CAP_DAC_READ_SEARCH,
    Capability::CAP_SYSLOG,
    Capability::CAP_SYS_RAWIO,
];

#[test]
fn it_runs_without_root_with_exactly_the_capabilities_that_it_names() {
    if !traceable() || !is_for_nobody(&machine::program()) {
        return;
    }
    let parent = Cgroup::top(&own("nobody"));
    let needed = &NAMED[..3];
    assert_as_good_as_roots(&as_nobody_with(&parent, &NAMED, &[]), &parent);
    for without in needed {
        let rest: Vec<_> = needed
            .iter()
            .filter(|one| *one != without)
            .copied()
            .collect();
        let lacking = as_nobody_with(&parent, &rest, &[]);
        // What cannot be read makes a plan poorer; what cannot be loaded ends it, in a line.
        if lacking.code() == 0 {
            assert_eq!(*without, Capability::CAP_DAC_READ_SEARCH, "{lacking:?}");
        } else {
            assert_eq!(lacking.error.lines().count(), 1, "{without}: {lacking:?}");
        }
    }
}

#[test]
fn statistics_of_programs_take_one_capability_more_and_the_refusal_names_it() {
    if !traceable() || !is_for_nobody(&machine::program()) {
        return;
    }
    let parent = Cgroup::top(&own("stats"));
    for words in [&["--bpf-stats"][..], &["--max-overhead", "50%"]] {
        let refused = as_nobody_with(&parent, &NAMED, words);
        let error = refused.assert_refused();
        assert!(error.contains("CAP_SYS_ADMIN"), "{words:?}: {error}");
        assert!(error.contains(words[0]), "{words:?}: {error}");
        let with = [&NAMED[..], &[Capability::CAP_SYS_ADMIN]].concat();
        let allowed = as_nobody_with(&parent, &with, words);
        assert_eq!(allowed.code(), 0, "{words:?}: {allowed:?}");
    }
}

/// What `doctor` tells user `nobody` to type, so that this program may trace: `cap_bpf,…+ep`.
fn recommended(program: &Path) -> String {
    let mut command = Command::new(program);
    command.args(["doctor", "--format", "json"]);
    as_nobody(&mut command, &[]);
    let page = last_line(&answer(command));
    let mut problems = page["problems"].as_array().expect("a list").iter();
    let found = problems.find_map(|problem| {
        let words = problem["command"].as_str()?.strip_prefix("sudo setcap ")?;
        words.split(' ').next().map(str::to_owned)
    });
    found.unwrap_or_else(|| panic!("no setcap in {page}"))
}

#[test]
fn a_program_that_was_given_what_doctor_recommends_traces_as_well_as_root() {
    if !traceable() {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory can be made");
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("it is ours");
    let program = dir.path().join("kmem-trace");
    if !is_for_nobody(&program) {
        return;
    }
    let flags = statvfs(dir.path()).expect("it is there").flags();
    if flags.intersects(FsFlags::ST_NOSUID | FsFlags::ST_NOEXEC) {
        machine::skip("capabilities of files count for nothing where temporary files are (nosuid)");
        return;
    }
    if status(Path::new("/proc/self"), "NoNewPrivs:") != "0" {
        machine::skip(
            "nothing that these tests start gains by capabilities of files (no_new_privs)",
        );
        return;
    }
    // By another process: what this one had open for writing, a child that another test starts
    // meanwhile would hold, and the kernel executes no such file.
    let copied = Command::new("cp")
        .arg(machine::program())
        .arg(&program)
        .status();
    assert!(copied.expect("cp starts").success());
    let parent = Cgroup::top(&own("setcap"));
    let traced = || {
        let mut command = Command::new(&program);
        as_nobody(&mut command, &[]);
        trace(command, &parent, &[])
    };
    // So that it is not something else that lets nobody trace.
    traced().assert_refused();
    let given = Command::new("setcap")
        .arg(recommended(&program))
        .arg(&program)
        .output();
    match given {
        Err(_) => {
            machine::skip("needs setcap of libcap2-bin");
            return;
        }
        Ok(given) if !given.status.success() => {
            let why = String::from_utf8_lossy(&given.stderr).into_owned();
            if !caps::has_cap(None, CapSet::Effective, Capability::CAP_SETFCAP).unwrap_or(true) {
                machine::skip(&format!("files may not be given capabilities here: {why}"));
                return;
            }
            assert!(why.contains("not supported"), "setcap: {why}");
            machine::skip("where temporary files are, files have no capabilities");
            return;
        }
        Ok(_) => {}
    }
    assert_as_good_as_roots(&traced(), &parent);
}

/// Runs what follows the hierarchy's mount point where that is read-only, which nobody else sees;
/// 98 where that cannot be had, 99 where a cgroup can be made all the same.
const READ_ONLY: &str = r#"
mount --make-rprivate / && mount -o remount,bind,ro "$1" || exit 98
if mkdir "$1/kmem-trace-test-ro-$$" 2>/dev/null; then rmdir "$1/kmem-trace-test-ro-$$"; exit 99; fi
shift
exec "$@"
"#;

#[test]
fn a_trace_writes_to_no_cgroup() {
    if !traceable() {
        return;
    }
    let parent = Cgroup::top(&own("read-only"));
    let read_only = |words: &[&str]| {
        let mut command = Command::new("unshare");
        command
            .args(["-m", "sh", "-c", READ_ONLY, "sh"])
            .arg(cgroup::hierarchy().0)
            .args(words);
        command
    };
    match read_only(&["true"]).output() {
        Ok(made) if made.status.success() => {}
        made => {
            machine::skip(&format!(
                "no read-only cgroups in a mount namespace: {made:?}"
            ));
            return;
        }
    }
    let program = machine::program().display().to_string();
    // Who has to write is refused there, so that a write would show.
    let run = answer(read_only(&[
        &program,
        "run",
        "-c",
        &own("made"),
        "--",
        "true",
    ]));
    let error = run.assert_refused();
    assert!(error.contains("Read-only file system"), "{error}");
    let words = [&program, "-d", "1s", "--format", "json", "-c", &parent.name];
    let traced = answer(read_only(&words));
    assert_eq!(
        (traced.code(), traced.error.as_str()),
        (0, ""),
        "{traced:?}"
    );
    lines::assert_holds(&last_line(&traced));
}
