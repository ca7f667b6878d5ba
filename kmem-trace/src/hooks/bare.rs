//! bpf(2) for what aya has no call for.

use std::{
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use aya_obj::generated::{bpf_attr, bpf_cmd};

/// `r0 = 0; exit`
pub(super) const NOTHING: [u8; 16] = [0xb7, 0, 0, 0, 0, 0, 0, 0, 0x95, 0, 0, 0, 0, 0, 0, 0];

/// Makes an array that userspace may map, and lets it go again.
///
/// # Errors
/// From the kernel; `InvalidInput` where it knows no such arrays (before 5.5).
pub(super) fn make_mapped_array() -> io::Result<()> {
    let mut attr = empty();
    // SAFETY: plain numbers.
    let create = unsafe { &mut attr.__bindgen_anon_1 };
    create.map_type = aya_obj::generated::bpf_map_type::BPF_MAP_TYPE_ARRAY as u32;
    create.key_size = 4;
    create.value_size = 8;
    create.max_entries = 1;
    create.map_flags = aya_obj::generated::BPF_F_MMAPABLE;
    open(bpf_cmd::BPF_MAP_CREATE, &mut attr).map(drop)
}

/// Loads a program of these instructions, and lets go of it again.
///
/// # Errors
/// Why the kernel does not take it.
pub(super) fn takes(instructions: &[u8]) -> io::Result<()> {
    load(instructions, None).map(drop)
}

/// Loads a program that does nothing, for the entry of the function with this type id, and lets go of
/// it again.
///
/// # Errors
/// Why the kernel does not take it.
pub(super) fn takes_on_function(function: u32) -> io::Result<()> {
    load(&NOTHING, Some(function)).map(drop)
}

/// Runs a raw tracepoint's program of these instructions once, on request, and lets go of it again.
///
/// # Errors
/// Why the kernel does not take or run it.
pub(super) fn runs(instructions: &[u8]) -> io::Result<()> {
    let program = load(instructions, None)?;
    let mut attr = empty();
    attr.test.prog_fd = program.as_raw_fd().cast_unsigned();
    if bpf(bpf_cmd::BPF_PROG_TEST_RUN, &mut attr) < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// For a raw tracepoint, or for the entry of a function.
fn load(instructions: &[u8], function: Option<u32>) -> io::Result<OwnedFd> {
    let mut attr = empty();
    let license = c"GPL";
    // SAFETY: a member of plain numbers, all zero.
    let load = unsafe { &mut attr.__bindgen_anon_3 };
    load.prog_type = aya_obj::generated::bpf_prog_type::BPF_PROG_TYPE_RAW_TRACEPOINT as u32;
    if let Some(function) = function {
        load.prog_type = aya_obj::generated::bpf_prog_type::BPF_PROG_TYPE_TRACING as u32;
        load.expected_attach_type = aya_obj::generated::bpf_attach_type::BPF_TRACE_FENTRY as u32;
        load.attach_btf_id = function;
    }
    load.insns = instructions.as_ptr().expose_provenance() as u64;
    load.insn_cnt = (instructions.len() / 8) as u32;
    load.license = license.as_ptr().expose_provenance() as u64;
    open(bpf_cmd::BPF_PROG_LOAD, &mut attr)
}

/// A command that makes something, and hands out a descriptor of it.
///
/// # Errors
/// From the kernel.
pub(super) fn open(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<OwnedFd> {
    let result = bpf(command, attr);
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = i32::try_from(result).map_err(io::Error::other)?;
    // SAFETY: a descriptor that the kernel just made for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

pub(super) fn empty() -> bpf_attr {
    // SAFETY: plain data for which zero is a value.
    unsafe { std::mem::zeroed() }
}

pub(super) fn bpf(command: bpf_cmd, attr: &mut bpf_attr) -> i64 {
    // SAFETY: the attribute names buffers of the lengths it says; the kernel writes at most that.
    unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            (&raw mut *attr).expose_provenance(),
            size_of::<bpf_attr>(),
        )
    }
}

/// What the kernel says of a program or link; `T` is one of its plain structs for that.
pub(super) fn info<T>(fd: i32) -> Option<T> {
    // SAFETY: plain data for which zero is a value.
    let mut info: T = unsafe { std::mem::zeroed() };
    let mut attr = empty();
    attr.info.bpf_fd = fd as u32;
    attr.info.info_len = size_of::<T>() as u32;
    attr.info.info = (&raw mut info).expose_provenance() as u64;
    (bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attr) == 0).then_some(info)
}
