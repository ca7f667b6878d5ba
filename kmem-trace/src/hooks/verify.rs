//! Is the type information that of the running kernel? Offsets of another kernel would read
//! garbage, and garbage looks like figures.
//!
//! Two questions, both asked before anything is attached: does a file given by `--btf` agree with
//! what the kernel says of itself, where it says anything ([`same_kernel`]); and do the offsets,
//! wherever they came from, lead from our own task to the cgroup that we know it is in
//! ([`offsets_hold`]).

use std::{fs, os::unix::fs::MetadataExt as _, path::Path};

use aya::{
    Ebpf, RawTracePointRunOptions, TestRun as _,
    programs::{ProgramError, RawTracePoint},
};
use kmem_trace_ebpf::{config::ABSENT, config::Config, selfcheck};

use super::{
    allowed::cause,
    features::{Feature, Lacking},
};
use crate::kernel::{
    btf::KernelBtf,
    cgroupfs::{self, Hierarchy, MemoryMount, ResolveError},
};

/// What is said where they cannot be checked.
const UNCHECKED: &str = "this kernel runs no tracing program on request (Linux 5.10 was the first to): that the type information is its own was not checked";

/// Types that no two kernel builds of different configuration or version share in all their sizes.
const SIZES: [&str; 7] = [
    "mem_cgroup",
    "page_counter",
    "cgroup",
    "kernfs_node",
    "kmem_cache",
    "task_struct",
    "mm_struct",
];

/// What the programs read, and what tells two kernels apart whose structs are of one size.
const MEMBERS: [(&str, &str); 12] = [
    ("mem_cgroup", "css"),
    ("mem_cgroup", "memory"),
    ("mem_cgroup", "objcg"),
    ("page_counter", "usage"),
    ("page_counter", "max"),
    ("page_counter", "parent"),
    ("cgroup", "kn"),
    ("cgroup", "level"),
    ("kernfs_node", "id"),
    ("kmem_cache", "size"),
    ("task_struct", "pid"),
    ("task_struct", "cgroups"),
];

/// Compares a file of type information with the kernel's own.
///
/// # Errors
/// The first difference, in words.
pub fn same_kernel(file: &KernelBtf, own: &KernelBtf) -> Result<(), String> {
    let differs = |what: String, there: Option<u32>, here: Option<u32>| {
        let say = |value: Option<u32>| match value {
            Some(value) => value.to_string(),
            None => "none".to_owned(),
        };
        if there == here {
            return Ok(());
        }
        Err(format!(
            "{} is of another kernel: {what} is {} there and {} here; leave --btf out, or pass the type information of this very kernel",
            file.path().display(),
            say(there),
            say(here)
        ))
    };
    for strukt in SIZES {
        let size = |btf: &KernelBtf| btf.size_of(strukt).ok();
        differs(
            format!("the size of struct {strukt}"),
            size(file),
            size(own),
        )?;
    }
    for (strukt, member) in MEMBERS {
        let place = |btf: &KernelBtf| btf.member(strukt, member).ok().map(|found| found.offset);
        differs(
            format!("the place of {strukt}.{member}"),
            place(file),
            place(own),
        )?;
    }
    Ok(())
}

/// The id that [`offsets_hold`] is to find: that of the directory of our own memory cgroup; 0
/// where no directory shows it.
pub fn own_cgroup(mount: &MemoryMount) -> u64 {
    let mut dir = match cgroupfs::of_pid(mount, std::process::id()) {
        Ok(own) => own.dir,
        Err(ResolveError::Root { .. }) => mount.mount_point.clone(),
        Err(error) => {
            log::debug!("offsets cannot be checked: {error}");
            return 0;
        }
    };
    // v2: where the controller was not handed down, the next cgroup above that has it counts.
    let has_memory = |dir: &Path| dir.join("memory.current").exists();
    while mount.hierarchy == Hierarchy::V2 && dir != mount.mount_point && !has_memory(&dir) {
        dir.pop();
    }
    if dir == mount.mount_point
        && mount.root != Path::new("/")
        && mount.hierarchy == Hierarchy::V2
        && !has_memory(&dir)
    {
        return 0;
    }
    fs::metadata(&dir).map_or(0, |metadata| metadata.ino())
}

/// Runs the program that checks the offsets, once, in our own context.
///
/// Before 5.10 the kernel cannot run a program on request; then nothing is checked, and that is
/// the answer.
///
/// # Errors
/// In one line, where the offsets lead anywhere but to our own cgroup.
pub fn offsets_hold(
    ebpf: &mut Ebpf,
    config: &Config,
    lacking: &Lacking,
) -> Result<Result<(), String>, String> {
    let known = [
        config.task_cgroups,
        config.css_set_memory,
        config.memcg_css,
        config.memcg_css_ss,
    ];
    if config.can_read == 0
        || config.own_cgroup == 0
        || config.memory_cgrp_subsys == 0
        || known.contains(&ABSENT)
    {
        log::debug!("offsets are not checked: not all that takes is known here");
        return Ok(Ok(()));
    }
    if lacking.lacks(Feature::RunOnRequest) {
        return Ok(Err(UNCHECKED.to_owned()));
    }
    let found = match run(ebpf) {
        Ok(found) => found,
        Err(error) => {
            return Ok(Err(format!(
                "the type information was not checked against this kernel, which did not run the program for it: {}",
                cause(&error)
            )));
        }
    };
    let what = match found {
        selfcheck::HOLDS => return Ok(Ok(())),
        selfcheck::NO_MEMCG => "a task to its memory cgroup",
        selfcheck::OTHER_SUBSYSTEM => "a memory cgroup to its controller",
        selfcheck::OTHER_ID => "a memory cgroup to its directory",
        selfcheck::OTHER_ANCESTORS => "a cgroup to its ancestors",
        selfcheck::OTHER_COUNTER => "a page counter to the one above it",
        _ => "anything known",
    };
    Err(format!(
        "the type information is not that of this kernel: by its offsets nothing leads from {what}; pass the right file with --btf"
    ))
}

fn run(ebpf: &mut Ebpf) -> Result<u32, ProgramError> {
    let Some(program) = ebpf.program_mut("rt_check_offsets") else {
        return Err(ProgramError::NotLoaded);
    };
    let program: &mut RawTracePoint = program.try_into()?;
    program.load()?;
    let result = program.test_run(RawTracePointRunOptions::default());
    program.unload()?;
    result.map(|result| result.return_value)
}
