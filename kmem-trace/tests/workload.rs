//! Does a load come up, hold, and go away again, whatever happens to its processes? Needs root
//! and a memory cgroup hierarchy; says so and passes where there is none.

use std::{
    env, fs,
    io::{self, BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use kmem_trace::workload::{Hierarchy, Plan, Running, Workload, WorkloadError};
use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, geteuid},
};

const PROGRAM: &str = env!("CARGO_BIN_EXE_kmem-trace");
const PATIENCE: Duration = Duration::from_secs(60);
/// The caller's end in `a_killed_caller_leaves_nothing`: the parent cgroup to use.
const PARENT_VARIABLE: &str = "KMEM_TRACE_TEST_PARENT";

/// A parent cgroup of this name and its hierarchy, or `None`, saying why, where there can be none.
fn parent(name: &str) -> Option<(PathBuf, Hierarchy)> {
    // Not through the print macros: their output is only shown when a test fails.
    let skip = |why: &str| {
        let _ = writeln!(io::stderr(), "SKIPPED {name}: {why}");
    };
    if !geteuid().is_root() {
        skip("needs root, to make cgroups and network namespaces");
        return None;
    }
    for root in ["/sys/fs/cgroup/memory", "/sys/fs/cgroup"] {
        let path = Path::new(root).join(format!("kmem-trace-test-{name}-{}", std::process::id()));
        if let Ok(hierarchy) = Hierarchy::of(&path) {
            return Some((path, hierarchy));
        }
    }
    skip("no memory cgroup hierarchy is mounted under /sys/fs/cgroup");
    None
}

fn plan(parent: &Path, hierarchy: Hierarchy, connections: u64) -> Plan {
    Plan {
        groups: 2,
        connections,
        anon_bytes: 4 << 20,
        file_bytes: 2 << 20,
        parent: parent.into(),
        hierarchy,
        file_dir: env::temp_dir(),
    }
}

fn start(plan: Plan) -> Result<Running, WorkloadError> {
    Workload::new(plan).program(PROGRAM).start()
}

fn ready(plan: Plan) -> Running {
    let mut running = start(plan).unwrap();
    running.wait_ready(PATIENCE).unwrap();
    running
}

fn number(path: &Path) -> u64 {
    fs::read_to_string(path).unwrap().trim().parse().unwrap()
}

fn usage_bytes(cgroup: &Path) -> u64 {
    let v1 = cgroup.join("memory.usage_in_bytes");
    number(&if v1.exists() {
        v1
    } else {
        cgroup.join("memory.current")
    })
}

fn processes(cgroup: &Path) -> Vec<i32> {
    let text = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap();
    text.lines().map(|line| line.parse().unwrap()).collect()
}

fn process_named(running: &Running, comm: &str) -> i32 {
    let is = |pid: &i32| {
        fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == comm)
    };
    let group = running.groups().next().unwrap();
    processes(&group).into_iter().find(is).unwrap()
}

fn all_processes(running: &Running) -> Vec<i32> {
    running
        .groups()
        .flat_map(|group| processes(&group))
        .collect()
}

/// Whether `check` holds before long.
fn soon(mut check: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !check() {
        if Instant::now() > deadline {
            return false;
        }
        thread::sleep(Duration::from_millis(20));
    }
    true
}

fn is_gone(pids: &[i32]) -> bool {
    pids.iter()
        .all(|pid| !Path::new(&format!("/proc/{pid}")).exists())
}

#[test]
fn a_load_comes_up_in_its_cgroups_and_goes_without_a_trace() {
    let Some((parent, hierarchy)) = parent("whole") else {
        return;
    };
    let mut running = ready(plan(&parent, hierarchy, 200));
    let progress = running.progress().unwrap();
    assert_eq!(
        (progress.connections, progress.connections_total),
        (400, 400)
    );
    assert_eq!((progress.bytes, progress.bytes_total), (12 << 20, 12 << 20));

    let groups: Vec<PathBuf> = running.groups().collect();
    assert_eq!(groups.len(), 2);
    for group in &groups {
        let pids = processes(group);
        assert_eq!(pids.len(), 3, "keeper, server, client");
        let sockstat = fs::read_to_string(format!("/proc/{}/net/sockstat", pids[0])).unwrap();
        // Both ends of 200 connections, and the listening one.
        assert!(sockstat.contains("TCP: inuse 401 "), "{sockstat}");
        // 4 MiB anonymous, 2 MiB page cache, and something for the sockets.
        assert!(usage_bytes(group) > 6 << 20, "{}", usage_bytes(group));
        let kmem = group.join("memory.kmem.usage_in_bytes");
        if kmem.exists() {
            // The client ends at least: 200 × 2 KiB and more.
            assert!(number(&kmem) > 200 * 2048, "{}", number(&kmem));
        }
    }
    assert!(usage_bytes(&parent) >= 12 << 20);

    let pids = all_processes(&running);
    drop(running);
    assert!(!parent.exists());
    assert!(is_gone(&pids));
}

#[test]
fn a_killed_client_is_named_and_all_of_the_load_ends() {
    let Some((parent, hierarchy)) = parent("client") else {
        return;
    };
    let mut running = ready(plan(&parent, hierarchy, 100));
    let pids = all_processes(&running);
    kill(
        Pid::from_raw(process_named(&running, "load-client")),
        Signal::SIGKILL,
    )
    .unwrap();
    let mut error = String::new();
    assert!(soon(|| running
        .progress()
        .map_err(|e| error = e.to_string())
        .is_err()));
    assert!(
        error.contains("the keeper of group-00 lost client 0"),
        "{error}"
    );
    assert!(error.contains("SIGKILL"), "{error}");
    assert!(!parent.exists());
    assert!(is_gone(&pids));
}

#[test]
fn a_killed_supervisor_takes_the_load_with_it() {
    let Some((parent, hierarchy)) = parent("supervisor") else {
        return;
    };
    let mut running = ready(plan(&parent, hierarchy, 100));
    let pids = all_processes(&running);
    let supervisor = i32::try_from(running.supervisor_pid().unwrap()).unwrap();
    kill(Pid::from_raw(supervisor), Signal::SIGKILL).unwrap();
    let mut error = String::new();
    assert!(soon(|| running
        .progress()
        .map_err(|e| error = e.to_string())
        .is_err()));
    assert!(error.contains("supervisor"), "{error}");
    assert!(!parent.exists());
    assert!(soon(|| is_gone(&pids)));
}

#[test]
fn a_second_load_in_the_same_parent_is_refused_and_does_no_harm() {
    let Some((parent, hierarchy)) = parent("second") else {
        return;
    };
    let mut first = ready(plan(&parent, hierarchy, 10));
    let error = start(plan(&parent, hierarchy, 10)).unwrap_err();
    assert!(matches!(error, WorkloadError::Busy { .. }), "{error}");
    assert!(first.progress().unwrap().is_ready());
    assert_eq!(all_processes(&first).len(), 6);
    first.stop().unwrap();
    assert!(!parent.exists());
}

#[test]
fn empty_groups_of_an_earlier_load_are_removed_and_nothing_else() {
    let Some((parent, hierarchy)) = parent("leftover") else {
        return;
    };
    for name in ["", "group-00", "group-17", "group-x"] {
        fs::create_dir(parent.join(name)).unwrap();
    }
    let running = ready(plan(&parent, hierarchy, 0));
    assert!(
        running.notes()[0].contains("removed 2 empty groups"),
        "{:?}",
        running.notes()
    );
    assert!(!parent.join("group-17").exists());
    running.stop().unwrap();
    // Not made by the load, so not removed by it.
    for name in ["group-x", ""] {
        fs::remove_dir(parent.join(name)).unwrap();
    }
}

#[test]
fn a_load_that_does_not_fit_makes_nothing() {
    let Some((parent, hierarchy)) = parent("unfit") else {
        return;
    };
    let plan = Plan {
        anon_bytes: 1 << 50,
        ..plan(&parent, hierarchy, 0)
    };
    assert!(matches!(
        start(plan).unwrap_err(),
        WorkloadError::DoesNotFit(_)
    ));
    assert!(!parent.exists());
}

#[test]
fn a_load_that_the_kernel_kills_for_its_memory_says_so() {
    let Some((parent, hierarchy)) = parent("oom") else {
        return;
    };
    fs::create_dir(&parent).unwrap();
    if hierarchy == Hierarchy::V1 {
        fs::write(parent.join("memory.limit_in_bytes"), "16M").unwrap();
    } else {
        fs::write(parent.join("cgroup.subtree_control"), "+memory").unwrap();
        fs::write(parent.join("memory.max"), "16M").unwrap();
    }
    let plan = Plan {
        anon_bytes: 64 << 20,
        ..plan(&parent, hierarchy, 0)
    };
    let error = start(plan)
        .unwrap()
        .wait_ready(PATIENCE)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("the keeper of group-0") && error.contains("OOM"),
        "{error}"
    );
    fs::remove_dir(&parent).unwrap();
}

#[test]
#[ignore = "the caller that `a_killed_caller_leaves_nothing` kills; not a test of its own"]
fn caller_to_be_killed() {
    let Some(parent) = env::var_os(PARENT_VARIABLE).map(PathBuf::from) else {
        return;
    };
    let running = ready(plan(&parent, Hierarchy::of(&parent).unwrap(), 100));
    let _ = writeln!(
        io::stdout(),
        "\nready {}",
        running.supervisor_pid().unwrap()
    );
    thread::sleep(PATIENCE);
}

#[test]
fn a_killed_caller_leaves_nothing() {
    let Some((parent, _)) = parent("caller") else {
        return;
    };
    let mut caller = Command::new(env::current_exe().unwrap())
        .args(["--exact", "--ignored", "--nocapture", "caller_to_be_killed"])
        .env(PARENT_VARIABLE, &parent)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(caller.stdout.take().unwrap()).lines();
    let said = lines
        .map_while(Result::ok)
        .find(|line| line.starts_with("ready "))
        .unwrap();
    let mut pids = vec![said["ready ".len()..].parse().unwrap()];
    pids.extend(processes(&parent.join("group-01")));
    assert_eq!(pids.len(), 4);
    caller.kill().unwrap();
    caller.wait().unwrap();
    assert!(soon(|| !parent.exists()));
    assert!(soon(|| is_gone(&pids)));
}

#[test]
fn a_small_load_is_charged_to_the_cgroup_it_was_told_to_enter() {
    let Some((parent, _)) = parent("churn") else {
        return;
    };
    fs::create_dir(&parent).unwrap();
    let mut churn = Command::new(PROGRAM)
        .args([
            "__worker", "churn", "netns", "tcp=100", "anon=8M", "hold=1m",
        ])
        .arg(format!("cgroup={}", parent.display()))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = String::new();
    BufReader::new(churn.stdout.take().unwrap())
        .read_line(&mut said)
        .unwrap();
    let usage = usage_bytes(&parent);
    churn.kill().unwrap();
    churn.wait().unwrap();
    assert!(soon(|| fs::remove_dir(&parent).is_ok()));
    assert_eq!(said, "ready\n");
    assert!(usage > 8 << 20, "{usage}");
}
