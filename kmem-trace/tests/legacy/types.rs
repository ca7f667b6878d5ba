//! Type information of another kernel is refused, whether or not this one has some of its own.

use std::{fs, os::unix::process::CommandExt as _, path::Path, process::Command};

use crate::support::{
    cgroup::Cgroup,
    machine,
    tracer::{answer, ask},
};

/// Of another kernel line; brought along by `cargo xtask matrix`.
const FOREIGN: &str = "/foreign.btf";

fn ready() -> bool {
    if !machine::is_vm() || !machine::needs_exact() {
        return false;
    }
    let there = Path::new(FOREIGN).exists();
    if !there {
        machine::skip("no type information of another kernel: cargo xtask matrix brings some");
    }
    there
}

#[test]
fn type_information_of_another_kernel_is_refused_by_what_this_one_says_of_itself() {
    if !ready() {
        return;
    }
    let _cgroup = Cgroup::top("test-foreign");
    let answer = ask(&format!("-c test-foreign -d 1s --btf {FOREIGN}"));
    let line = answer.assert_refused();
    assert!(line.contains("is of another kernel"), "{line}");
    assert!(line.contains(FOREIGN) && line.contains("here"), "{line}");
    let doctor = ask(&format!("doctor --btf {FOREIGN}"));
    assert!(doctor.out.contains("is of another kernel"), "{doctor:?}");
}

/// The same words in a mount namespace where the kernel's own type information is not to be seen.
fn without_own_types(words: &str) -> crate::support::tracer::Answer {
    let mut command = Command::new(machine::program());
    command.args(words.split_whitespace());
    // SAFETY: nothing but system calls between fork and exec.
    unsafe {
        command.pre_exec(|| {
            let done = libc::unshare(libc::CLONE_NEWNS) == 0
                && libc::mount(
                    c"none".as_ptr(),
                    c"/".as_ptr(),
                    std::ptr::null(),
                    libc::MS_REC | libc::MS_PRIVATE,
                    std::ptr::null(),
                ) == 0
                && libc::mount(
                    c"none".as_ptr(),
                    c"/sys/kernel/btf".as_ptr(),
                    c"tmpfs".as_ptr(),
                    0,
                    std::ptr::null(),
                ) == 0;
            if done {
                Ok(())
            } else {
                Err(std::io::Error::last_os_error())
            }
        });
    }
    answer(command)
}

#[test]
fn type_information_of_another_kernel_is_refused_by_where_its_offsets_lead() {
    if !ready() {
        return;
    }
    let _cgroup = Cgroup::top("test-offsets");
    let words = "-c test-offsets -d 1s --attach kprobe --btf";
    let line = without_own_types(&format!("{words} {FOREIGN}"));
    let line = line.assert_refused();
    assert!(line.contains("not that of this kernel"), "{line}");

    let right = "/tmp/right.btf";
    fs::copy("/sys/kernel/btf/vmlinux", right).expect("there is room");
    let fine = without_own_types(&format!("{words} {right} --format json"));
    assert_eq!(fine.code(), 0, "{fine:?}");
    assert!(fine.out.contains(r#""mode":"exact""#), "{fine:?}");
}

#[test]
fn a_file_that_is_no_type_information_is_refused() {
    if !ready() {
        return;
    }
    let _cgroup = Cgroup::top("test-no-types");
    let line = ask("-c test-no-types -d 1s --btf /bin/busybox");
    assert!(
        line.assert_refused().contains("not usable as BTF"),
        "{line:?}"
    );
}
