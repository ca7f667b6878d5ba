//! What cannot be done is said in one line: what, why, what to do next.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::support::{
    cgroup::{self, Cgroup},
    lines, load, machine,
    tracer::{Tracer, ask, ask_as_nobody},
};

#[test]
fn a_cgroup_that_is_not_there_is_named() {
    if !machine::is_vm() {
        return;
    }
    let answer = ask("-c test-no-such-cgroup -d 1s");
    let error = answer.assert_refused();
    assert!(error.contains("test-no-such-cgroup"), "{error}");
}

#[test]
fn a_path_of_another_hierarchy_is_refused_by_name() {
    if !machine::is_vm() {
        return;
    }
    let elsewhere = if cgroup::is_v1() {
        let dir = "/sys/fs/cgroup/pids/test-elsewhere";
        fs::create_dir_all(dir).expect("the pids hierarchy is there");
        dir
    } else {
        fs::create_dir_all("/tmp/test-elsewhere").expect("there is room");
        "/tmp/test-elsewhere"
    };
    let answer = ask(&format!("-c {elsewhere} -d 1s"));
    fs::remove_dir(elsewhere).expect("nothing is in it");
    let error = answer.assert_refused();
    assert!(error.contains("test-elsewhere"), "{error}");
}

#[test]
fn the_root_cgroup_is_refused_because_it_has_no_counter() {
    if !machine::is_vm() {
        return;
    }
    let (root, _) = cgroup::hierarchy();
    for name in ["/", &root.display().to_string()] {
        let answer = ask(&format!("-c {name} -d 1s"));
        let error = answer.assert_refused();
        assert!(error.contains("root"), "{error}");
    }
}

#[test]
fn without_root_the_line_says_so() {
    if !machine::is_vm() {
        return;
    }
    let _parent = Cgroup::top("test-nobody");
    for words in ["-c test-nobody -d 1s", "run -- true"] {
        let answer = ask_as_nobody(words);
        let error = answer.assert_refused();
        assert!(error.contains("root"), "{words}: {error}");
    }
    let doctor = ask_as_nobody("doctor");
    assert_eq!(doctor.code(), 0, "{doctor:?}");
    assert!(doctor.out.contains("counter.charge"), "{doctor:?}");
    assert!(doctor.out.contains("root"), "{doctor:?}");
}

#[test]
fn type_information_that_is_not_usable_is_named() {
    if !machine::is_vm() || !machine::needs_exact() {
        return;
    }
    let parent = Cgroup::top("test-btf");
    let _ = parent;
    let whole = fs::read("/sys/kernel/btf/vmlinux").expect("the kernel has type information");
    let cut = "/tmp/cut.btf";
    fs::write(cut, &whole[..whole.len() / 3]).expect("there is room");
    let elf = machine::program();
    let files = [
        PathBuf::from("/nonexistent"),
        PathBuf::from("/tmp"),
        PathBuf::from(cut),
        elf,
    ];
    for file in files {
        let name = file.display().to_string();
        let answer = ask(&format!("-c test-btf -d 1s --btf {name}"));
        let error = answer.assert_refused();
        assert!(error.contains(&name), "{error}");
    }
    fs::remove_file(cut).expect("it is there");
}

#[test]
fn the_kernels_own_type_information_can_be_passed_as_a_file() {
    if !machine::is_vm() || !machine::needs_exact() {
        return;
    }
    let parent = Cgroup::top("test-btf-copy");
    fs::copy("/sys/kernel/btf/vmlinux", "/tmp/copy.btf").expect("there is room");
    let tracer = Tracer::start("--no-slab -c test-btf-copy -i 50ms --btf /tmp/copy.btf");
    let held = load::start(&parent, "anon=5M");
    std::thread::sleep(std::time::Duration::from_secs(1));
    lines::assert_exact(&tracer.next_report(&parent.name));
    held.end();
    tracer.end().assert_fine();
    fs::remove_file("/tmp/copy.btf").expect("it is there");
}

#[test]
fn without_tracefs_it_mounts_it_or_says_how() {
    if !machine::is_vm() || !machine::needs_exact() {
        return;
    }
    let parent = Cgroup::top("test-tracefs");
    let umount = |dir: &str| {
        if Path::new(dir).join("events").exists() || fs::read_dir(dir).is_ok_and(|d| d.count() > 0)
        {
            let _ = Command::new("umount").arg("-l").arg(dir).status();
        }
    };
    umount("/sys/kernel/debug/tracing");
    umount("/sys/kernel/debug");
    umount("/sys/kernel/tracing");
    let unmounted = !Path::new("/sys/kernel/tracing/events").exists();
    let mut command = Command::new(machine::program());
    command.args(["-c", "test-tracefs", "-d", "500ms", "--format", "json"]);
    let answer = crate::support::tracer::answer(command);
    let _ = Command::new("mount")
        .args(["-t", "debugfs", "debugfs", "/sys/kernel/debug"])
        .status();
    if !Path::new("/sys/kernel/tracing/events").exists() {
        let mounted = Command::new("mount")
            .args(["-t", "tracefs", "tracefs", "/sys/kernel/tracing"])
            .status();
        assert!(mounted.expect("mount is there").success());
    }
    assert!(unmounted, "tracefs could not be unmounted for the test");
    if answer.code() == 0 {
        let summary = answer.out.lines().last().expect("it says something");
        let summary: serde_json::Value = serde_json::from_str(summary).expect("JSON");
        assert_eq!(summary["cgroup"], parent.name.as_str());
        assert_eq!(answer.error, "");
        let plan: serde_json::Value =
            serde_json::from_str(answer.out.lines().next().expect("a plan")).expect("JSON");
        let roles = plan["roles"].as_array().expect("roles");
        let lifecycle = roles.iter().find(|role| role["role"] == "cgroup.lifecycle");
        let lifecycle = lifecycle.expect("the role is listed");
        assert_ne!(
            lifecycle["status"], "missing",
            "it went on without tracefs instead of mounting it: {lifecycle}"
        );
    } else {
        let error = answer.assert_refused();
        assert!(error.contains("tracefs"), "{error}");
        assert!(error.contains("mount"), "{error}");
    }
}

#[test]
fn without_the_memory_controller_each_command_says_so_in_one_line() {
    if !machine::is_vm() {
        return;
    }
    let words = fs::read_to_string("/proc/cmdline").expect("it is there");
    if !words.contains("cgroup_disable=memory") {
        machine::skip("the controller is on: cargo xtask vm --append cgroup_disable=memory");
        return;
    }
    for words in ["-c /a", "explain -c /a", "enable -c /a", "run -- true"] {
        let answer = ask(words);
        let error = answer.assert_refused();
        assert!(error.contains("without the memory controller"), "{error}");
        assert!(error.contains("cgroup_disable=memory"), "{error}");
    }
    let answer = ask("doctor");
    assert_eq!(answer.code(), 0, "{answer:?}");
    let told = |line: &str| line.contains("memory controller is switched off");
    assert_eq!(
        answer.out.lines().filter(|line| told(line)).count(),
        1,
        "{answer:?}"
    );
}

#[test]
fn where_addresses_are_hidden_a_memory_cgroup_shows_the_one_that_counts() {
    if !machine::is_vm() || !machine::needs_exact() {
        return;
    }
    const SWITCH: &str = "/proc/sys/kernel/kptr_restrict";
    let before = fs::read_to_string(SWITCH).expect("it is there");
    fs::write(SWITCH, "2").expect("root may");
    let answer = ask("doctor --format json");
    fs::write(SWITCH, before.trim()).expect("root may");
    let plan: serde_json::Value =
        serde_json::from_str(answer.out.lines().next().expect("a plan")).expect("JSON");
    let roles = plan["roles"].as_array().expect("roles");
    let counter = roles.iter().find(|role| role["role"] == "counter.charge");
    let counter = counter.expect("the role is listed");
    assert_ne!(counter["status"], "missing", "{counter}");
}
