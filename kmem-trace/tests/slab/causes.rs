//! Each cause made to happen on purpose, and found by its name; and what is found beside the rows:
//! wrong payers, growth, the kernel's own counters.

use std::{
    fs,
    io::{Read as _, Write as _},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use nix::{
    fcntl::OFlag,
    sys::inotify::{AddWatchFlags, InitFlags, Inotify},
    unistd::{ForkResult, fork, pipe2},
};
use serde_json::Value;

use crate::{
    attribution::{is_possible, tracer},
    support::{
        cgroup::{self, Cgroup},
        lines::{self, number},
        load, machine, soon,
        tracer::{Tracer, ask_with},
    },
};

const PATIENCE: Duration = Duration::from_secs(60);

pub(super) fn booted_with_nokmem() -> bool {
    let line = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    line.split_whitespace()
        .filter_map(|word| word.strip_prefix("cgroup.memory="))
        .any(|words| words.split(',').any(|word| word == "nokmem"))
}

/// Whether it is possible here, and somebody pays for kernel memory.
pub(super) fn is_charged() -> bool {
    if is_possible() && booted_with_nokmem() {
        machine::skip("booted with cgroup.memory=nokmem: nobody pays for slab");
        return false;
    }
    is_possible()
}

pub(super) fn own(name: &str) -> Cgroup {
    Cgroup::top(&format!("kmem-trace-test-{name}-{}", std::process::id()))
}

/// The slab report that was printed last, whole: all lines up to a node line.
pub(super) fn latest(tracer: &Tracer) -> Vec<Value> {
    tracer.see(|all| {
        let ends: Vec<usize> = (0..all.len())
            .filter(|place| lines::is(&all[*place], "node"))
            .collect();
        match ends[..] {
            [] => Vec::new(),
            [end] => all[..=end].to_vec(),
            [.., before, end] => all[before + 1..=end].to_vec(),
        }
    })
}

/// Waits for a slab report of which `wanted` holds; the last one in any case.
#[track_caller]
pub(super) fn report(tracer: &Tracer, what: &str, wanted: impl Fn(&[Value]) -> bool) -> Vec<Value> {
    let mut last = Vec::new();
    let came = soon(PATIENCE, || {
        last = latest(tracer);
        wanted(&last)
    });
    let seen: Vec<&Value> = last
        .iter()
        .filter(|line| line["type"] != "report" && line["type"] != "plan")
        .collect();
    assert!(came, "no report with {what}: {seen:#?}");
    last
}

/// A whole report that began after this call.
#[track_caller]
pub(super) fn next(tracer: &Tracer) -> Vec<Value> {
    let seen = tracer.count("node");
    report(tracer, "anything new", |_| tracer.count("node") > seen + 1)
}

pub(super) fn sum(report: &[Value], key: &str, wanted: impl Fn(&Value) -> bool) -> i64 {
    lines::of_type(report, "slab")
        .filter(|line| wanted(line))
        .map(|line| number(line, key))
        .sum()
}

pub(super) fn at(line: &Value, function: &str) -> bool {
    line["call_site"]
        .as_str()
        .is_some_and(|site| site.starts_with(function))
}

/// A child in a cgroup, which holds what it made until dropped.
pub(super) struct Inside {
    release: Option<OwnedFd>,
    pid: nix::unistd::Pid,
}

impl Inside {
    pub(super) fn new<T>(cgroup: &Cgroup, make: impl FnOnce() -> T) -> Self {
        // Nobody who is started meanwhile is to hold them open.
        let (ready, say_ready) = pipe2(OFlag::O_CLOEXEC).expect("a pipe");
        let (wait, release) = pipe2(OFlag::O_CLOEXEC).expect("a pipe");
        // SAFETY: the child makes what it is told to, waits, and leaves without unwinding.
        match unsafe { fork() }.expect("a child") {
            ForkResult::Child => {
                drop((ready, release));
                fs::write(cgroup.dir.join("cgroup.procs"), "0").expect("it can enter");
                let held = make();
                fs::File::from(say_ready).write_all(b"r").expect("a reader");
                let _ = fs::File::from(wait).read(&mut [0]);
                drop(held);
                // SAFETY: ends the process.
                unsafe { libc::_exit(0) }
            }
            ForkResult::Parent { child } => {
                drop((say_ready, wait));
                let count = fs::File::from(ready).read(&mut [0]).expect("readable");
                assert_eq!(count, 1, "the child ended before it was ready");
                Self {
                    release: Some(release),
                    pid: child,
                }
            }
        }
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        drop(self.release.take());
        let _ = nix::sys::wait::waitpid(self.pid, None);
    }
}

/// A shell in a cgroup.
pub(super) fn shell(cgroup: &Cgroup, script: &str) -> Child {
    let entered = format!(
        "echo $$ > {}/cgroup.procs && {script}",
        cgroup.dir.display()
    );
    Command::new("sh")
        .args(["-c", &entered])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("there is a shell")
}

/// A directory of our own, gone when dropped.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("kmem-trace-{name}-{}", std::process::id()));
        fs::create_dir(&path).expect("a new directory");
        Self(path)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn objects_of_a_cache_that_nobody_opted_in_are_not_accountable() {
    if !is_possible() {
        return;
    }
    let group = own("plain");
    let Some(tracer) = tracer(&format!("-c {} -i 200ms", group.name)) else {
        return;
    };
    // 8 instances watch each file: one connector a file, of a cache without SLAB_ACCOUNT.
    let held = load::start(&group, "inotify=4000");
    let found = |report: &[Value]| {
        sum(report, "objects", |line| {
            line["cause"] == "not-accountable" && at(line, "fsnotify_")
        })
    };
    let report = report(&tracer, "500 connectors", |report| found(report) >= 500);
    held.end();
    tracer.end().assert_fine();
    assert!((500..520).contains(&found(&report)), "{}", found(&report));
}

#[test]
fn pages_of_large_kmallocs_are_gone_when_they_are_freed() {
    if !is_possible() {
        return;
    }
    let group = own("large");
    let Some(tracer) = tracer(&format!("-c {} -i 200ms", group.name)) else {
        return;
    };
    // The table of many open files, and its bits, are too large for a cache.
    let held = load::start(&group, "pipes=4000 forks=50");
    let large = |report: &[Value], key: &str| sum(report, key, |line| line["cause"] == "not-slab");
    let came = report(&tracer, "large kmallocs", |report| {
        large(report, "allocated_bytes") >= 64 << 10
    });
    held.end();
    let allocated = large(&came, "allocated_bytes");
    // The last table goes a grace period later.
    report(&tracer, "their end", |report| {
        large(report, "objects") <= 1 && large(report, "bytes") * 10 <= allocated
    });
    tracer.end().assert_fine();
}

#[test]
fn what_a_kernel_thread_of_the_cgroup_makes_is_put_down_to_it() {
    if !machine::is_vm() || !is_charged() {
        return;
    }
    let comm = |pid: &str| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let pids = fs::read_dir("/proc").expect("there is /proc");
    let thread = pids
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .find(|pid| comm(pid) == "kdevtmpfs\n");
    let (Some(pid), true) = (thread, Path::new("/dev/tty40").exists()) else {
        machine::skip("no kernel thread that makes files of devices, or no consoles");
        return;
    };
    let group = own("thread");
    let Some(tracer) = tracer(&format!("-c {} -i 200ms", group.name)) else {
        return;
    };
    group.enter(pid.parse().expect("a number"));
    // A console comes with three devices (vcs, vcsa, vcsu), whose files that thread makes.
    let consoles: Vec<_> = (20..40)
        .map(|number| fs::File::open(format!("/dev/tty{number}")).expect("a console"))
        .collect();
    let found = |report: &[Value]| {
        sum(report, "objects", |line| {
            line["cause"] == "kernel-thread" && line["cache"] == "dentry"
        })
    };
    let came = soon(Duration::from_secs(20), || found(&latest(&tracer)) >= 60);
    let last = latest(&tracer);
    let (root, _) = cgroup::hierarchy();
    fs::write(root.join("cgroup.procs"), &pid).expect("it can go home");
    drop(consoles);
    tracer.end().assert_fine();
    assert!(
        came,
        "{:#?}",
        lines::of_type(&last, "slab").collect::<Vec<_>>()
    );
    assert_eq!(
        sum(&last, "objects", |line| line["cause"] == "charged"
            && line["cache"] == "dentry"),
        0
    );
}

#[test]
fn events_that_one_cgroup_watches_and_another_makes_have_the_wrong_payer() {
    if !is_charged() {
        return;
    }
    let (watcher, maker) = (own("watches"), own("makes"));
    let directory = Directory::new("watched");
    let watched = directory.0.clone();
    // `inotify_handle_inode_event` charges whoever made the instance, whoever made the event.
    let held = Inside::new(&watcher, || {
        let instance = Inotify::init(InitFlags::IN_CLOEXEC).expect("an instance");
        instance
            .add_watch(&watched, AddWatchFlags::IN_CREATE)
            .expect("a watch");
        instance
    });
    let Some(tracer) = tracer(&format!("-c {} -c {} -i 200ms", watcher.name, maker.name)) else {
        return;
    };
    let script = format!(
        "i=0; while [ $i -lt 2000 ]; do : > {}/$i; i=$((i+1)); done",
        directory.0.display()
    );
    assert!(shell(&maker, &script).wait().expect("it ends").success());
    let found = |report: &[Value]| -> i64 {
        lines::of_type(report, "wrong-payer")
            .filter(|line| line["payer"] == watcher.name.as_str())
            .filter(|line| line["asker"] == maker.name.as_str() && line["cause"] == "other-cgroup")
            .filter(|line| at(line, "inotify_handle"))
            .map(|line| number(line, "allocated_bytes"))
            .sum()
    };
    // An event is 40 bytes and its name.
    report(&tracer, "wrong payers", |report| found(report) >= 2000 * 40);
    drop(held);
    tracer.end().assert_fine();
}

#[test]
fn booted_with_nokmem_everything_opted_in_is_put_down_to_that() {
    if !is_possible() {
        return;
    }
    if !booted_with_nokmem() {
        machine::skip("needs cargo xtask vm --kernel 5.10 --append cgroup.memory=nokmem");
        return;
    }
    let group = own("nokmem");
    let Some(tracer) = tracer(&format!("-c {} -i 200ms", group.name)) else {
        return;
    };
    let held = load::start(&group, "pipes=500");
    let report = report(&tracer, "files of 500 pipes", |report| {
        sum(report, "objects", |line| {
            line["cause"] == "nokmem" && line["cache"] == "filp"
        }) >= 1000
    });
    held.end();
    assert_eq!(tracer.plan()["nokmem"], true);
    let ended = tracer.end();
    ended.assert_fine();
    assert_eq!(
        sum(&report, "objects", |line| line["cause"] == "charged"),
        0
    );
    assert_eq!(
        sum(&report, "allocated_bytes", |line| line["cause"]
            == "unknown"),
        0,
        "{report:#?}"
    );
}

#[test]
fn booted_with_nokmem_the_screen_and_the_verdict_say_that_accounting_is_off() {
    if !is_possible() {
        return;
    }
    if !booted_with_nokmem() {
        machine::skip("needs cargo xtask vm --kernel 5.10 --append cgroup.memory=nokmem");
        return;
    }
    // Something that it holds when the trace ends.
    let words = "run -c kmem-trace-test-off -d 3s -- sh -c";
    let mut words: Vec<&str> = words.split_whitespace().collect();
    words.push("exec 3</ 4</ 5</ 6</ 7</ 8</; sleep 30");
    let said = ask_with(&words);
    assert!(
        said.out
            .contains("accounting of kernel memory is off since boot (cgroup.memory=nokmem)"),
        "{said:?}"
    );
    assert!(
        said.out
            .contains("Accounting of kernel memory is off since boot (cgroup.memory=nokmem): "),
        "{said:?}"
    );
}

#[test]
fn objects_that_are_older_than_the_trace_are_known_when_they_go() {
    if !is_charged() {
        return;
    }
    let group = own("older");
    let held = load::start(&group, "pipes=500 inotify=4000");
    let Some(tracer) = tracer(&format!("-c {} -i 200ms", group.name)) else {
        return;
    };
    next(&tracer);
    held.end();
    // Charged ones say themselves who paid.
    let charged = |report: &[Value]| {
        sum(report, "objects", |line| {
            line["cause"] == "charged" && line["cache"] == "filp"
        })
    };
    // Of the others nobody knows whose they were.
    let others = |report: &[Value]| {
        lines::of_type(report, "node")
            .flat_map(|node| node["others"].as_array().cloned().unwrap_or_default())
            .filter(|it| it["cause"] == "before-trace")
            .map(|it| number(&it, "bytes"))
            .sum::<i64>()
    };
    let report = report(&tracer, "files that went", |report| {
        charged(report) <= -1000 && others(report) <= -500 * 24
    });
    tracer.end().assert_fine();
    assert!(charged(&report) > -1100, "{}", charged(&report));
}

/// The line on the kernel's counters, or why there is none.
fn counters(report: &[Value], group: &Cgroup) -> Result<Value, String> {
    let line = lines::of_type(report, "charged-slab")
        .find(|line| line["cgroup"] == group.name.as_str())
        .expect("every traced cgroup has one");
    match line["why"].as_str() {
        Some(why) => Err(why.to_owned()),
        None => Ok(line.clone()),
    }
}

#[test]
fn what_is_charged_is_what_the_kernels_counters_of_the_cgroup_say() {
    if !is_charged() {
        return;
    }
    let group = own("counted");
    let Some(tracer) = tracer(&format!("-c {} -i 1s", group.name)) else {
        return;
    };
    let held = load::start(&group, "netns tcp=500 pipes=500 epoll=2000");
    // The kernel flushes its counters every two seconds.
    thread::sleep(Duration::from_secs(5));
    let report = next(&tracer);
    held.end();
    tracer.end().assert_fine();
    let line = match counters(&report, &group) {
        Ok(line) => line,
        Err(why) => {
            machine::skip(&why);
            return;
        }
    };
    println!("{line}");
    let terms = &line["bound_terms"];
    let all: i64 = ["stock", "lag", "in_flight", "skew", "large", "lost"]
        .iter()
        .map(|term| number(terms, term))
        .sum();
    assert_eq!(all, number(&line, "bound_bytes"), "{line}");
    // 500 connections are 500 sockets in a task, and their files.
    assert!(number(&line, "kernel_bytes") > 2 << 20, "{line}");
    let away = number(&line, "difference_bytes").abs();
    assert!(away <= all, "{line}");
    // By hand: rows of the same report, each object with a pointer.
    let rows = |key: &str| sum(&report, key, |it| it["cause"] == "charged");
    let by_hand = rows("bytes") + 8 * rows("objects");
    assert!(
        (by_hand - number(&line, "events_bytes")).abs() < 64 * 1024,
        "{by_hand} in {line}"
    );
    // Nearly all of it has a cause.
    let uncharged = sum(&report, "allocated_bytes", |it| it["cause"] != "charged");
    let unknown = sum(&report, "allocated_bytes", |it| it["cause"] == "unknown");
    println!("unknown: {unknown} of {uncharged} bytes");
    assert!(unknown * 100 <= uncharged, "{unknown} of {uncharged}");
}

#[test]
fn one_object_takes_a_page_and_a_batch_of_them_which_is_stock() {
    if !is_charged() {
        return;
    }
    let group = own("stock");
    let Some(tracer) = tracer(&format!("-c {} -i 200ms", group.name)) else {
        return;
    };
    let held = load::start(&group, "pipes=1");
    let stock = |line: &Value| line["breakdown"]["stock"].as_i64().unwrap_or(0);
    let came = soon(PATIENCE, || {
        tracer.see(|all| lines::reports(all, &group.name).any(|line| stock(line) > 0))
    });
    let report = next(&tracer);
    held.end();
    tracer.end().assert_fine();
    assert!(came, "no stock in {report:#?}");
    if let Ok(line) = counters(&report, &group) {
        let away = number(&line, "difference_bytes").abs();
        assert!(away <= number(&line, "bound_bytes"), "{line}");
        assert!(number(&line, "events_bytes") > 0, "{line}");
    }
}

#[test]
fn what_a_reader_of_proc_makes_is_its_own() {
    if !is_possible() {
        return;
    }
    let (idle, reader) = (own("idle"), own("reader"));
    let Some(tracer) = tracer(&format!("-c {} -c {} -i 200ms", idle.name, reader.name)) else {
        return;
    };
    let held = load::start(&idle, "pipes=10");
    // The load looks at its own limits there.
    let before = next(&tracer);
    let script = "for i in 1 2 3; do echo /proc/[0-9]*/task/*/*; done";
    assert!(shell(&reader, script).wait().expect("it ends").success());
    let made = |report: &[Value], group: &Cgroup| {
        sum(report, "allocated_bytes", |line| {
            line["cgroup"] == group.name.as_str() && line["cache"] == "proc_inode_cache"
        })
    };
    let report = report(&tracer, "inodes of /proc", |report| {
        made(report, &reader) > 50 * 500
    });
    held.end();
    tracer.end().assert_fine();
    assert_eq!(made(&report, &idle), made(&before, &idle));
}

#[test]
fn a_cache_that_only_grows_is_named_with_its_rate() {
    if !is_charged() {
        return;
    }
    let group = own("grows");
    let directory = Directory::new("grows");
    let Some(tracer) = tracer(&format!("-c {} -i 1s", group.name)) else {
        return;
    };
    let script = format!(
        "i=0; while :; do : > {}/a-name-of-some-length-$i; i=$((i+1)); done",
        directory.0.display()
    );
    let mut child = shell(&group, &script);
    let found = |line: &&Value| line["cgroup"] == group.name.as_str() && line["cache"] == "dentry";
    let report = report(&tracer, "growth", |report| {
        lines::of_type(report, "growth").any(|line| found(&line))
    });
    let _ = child.kill();
    let _ = child.wait();
    let ended = tracer.end();
    let line = lines::of_type(&report, "growth")
        .find(found)
        .expect("just seen");
    assert!(
        line["bytes_per_s"]
            .as_f64()
            .is_some_and(|rate| rate > 1000.0),
        "{line}"
    );
    assert!(
        line["call_site"]
            .as_str()
            .is_some_and(|site| site.contains("d_alloc")),
        "{line}"
    );
    ended.assert_fine();
}
