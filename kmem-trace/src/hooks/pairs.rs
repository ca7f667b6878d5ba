//! The first program of each pair on one tracepoint, shown to the second: how many runs of it are
//! under way on a CPU, which the kernel counts in the program itself (`kmem-trace-ebpf`'s `second`).
//!
//! A program finds that on request, from the descriptors that we hold. Where it cannot, the second
//! programs do nothing, and what the kernel skips is lost and told as such.

use std::os::fd::{AsFd as _, AsRawFd as _};

use aya::{
    Ebpf, RawTracePointRunOptions, TestRun as _,
    maps::Map,
    programs::{Program, ProgramError, RawTracePoint},
};
use kmem_trace_ebpf::pairs::{FIRSTS, FOUND, ProgramMembers, SECOND};

use super::{layout, role::Hook};
use crate::kernel::btf::KernelBtf;

const PROGRAM: &str = "rt_find_first";

/// What leads from a descriptor of ours to a program's count of its runs.
///
/// # Errors
/// In one line, where the types lack a member on the way.
pub fn members(btf: &KernelBtf) -> Result<ProgramMembers, String> {
    let at = |strukt: &str, path: &str| layout::offset(btf, strukt, path);
    Ok(ProgramMembers {
        task_files: at("task_struct", "files")?,
        files_fdt: at("files_struct", "fdt")?,
        fdtable_fd: at("fdtable", "fd")?,
        file_private: at("file", "private_data")?,
        prog_aux: at("bpf_prog", "aux")?,
        aux_id: at("bpf_prog_aux", "id")?,
        prog_active: at("bpf_prog", "active")?,
        map_id: at("bpf_map", "id")?,
        array_pptrs: at("bpf_array", "pptrs")?,
    })
}

/// Whether a program is the second of a pair, which runs for the first where that is skipped.
pub fn is_second(program: &str) -> bool {
    program
        .strip_suffix(SECOND)
        .is_some_and(|first| FIRSTS.contains(&first))
}

/// Shows the first to the second of each pair that is to be attached, and loaded: before either is
/// attached, or what the kernel skips meanwhile would be lost.
pub(super) fn join(ebpf: &mut Ebpf, hooks: &[Hook]) {
    let is_ready = |ebpf: &Ebpf, name: &str| {
        let is_loaded = |program: &Program| program.fd().is_ok();
        hooks.iter().any(|hook| hook.program == name) && ebpf.program(name).is_some_and(is_loaded)
    };
    for (pair, first) in FIRSTS.iter().enumerate() {
        // Where the kernel refused one, attaching it says so.
        if ![first, format!("{first}{SECOND}").as_str()]
            .iter()
            .all(|name| is_ready(ebpf, name))
        {
            continue;
        }
        match find(ebpf, first, pair) {
            Ok(FOUND) => {}
            Ok(other) => log::debug!("{first} is not found by its descriptor: {other}"),
            Err(error) => log::debug!("{first} is not found by its descriptor: {error}"),
        }
    }
}

fn find(ebpf: &mut Ebpf, first: &str, pair: usize) -> Result<u32, ProgramError> {
    let program = ebpf.program(first).ok_or(ProgramError::NotLoaded)?;
    let (fd, id) = (program.fd()?.as_fd().as_raw_fd(), program.info()?.id());
    let Some(Map::PerCpuArray(own)) = ebpf.map("OWN") else {
        return Err(ProgramError::NotLoaded);
    };
    let own_id = own.info().map_err(ProgramError::MapError)?.id();
    let mut options = RawTracePointRunOptions::new();
    options.args[..5].copy_from_slice(&[
        u64::from(fd.cast_unsigned()),
        u64::from(id),
        u64::from(own.fd().as_fd().as_raw_fd().cast_unsigned()),
        u64::from(own_id),
        pair as u64,
    ]);
    let finder: &mut RawTracePoint = ebpf
        .program_mut(PROGRAM)
        .ok_or(ProgramError::NotLoaded)?
        .try_into()?;
    if finder.fd().is_err() {
        finder.load()?;
    }
    finder.test_run(options).map(|result| result.return_value)
}
