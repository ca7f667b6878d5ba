//! What the kernel counts about a program that aya does not hand out: runs that it skipped.

use std::os::fd::{AsRawFd, BorrowedFd};

use aya_obj::generated::{bpf_attr, bpf_cmd, bpf_prog_info};

/// A program's own figures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProgramStats {
    /// Nanoseconds in the program; 0 unless `kernel.bpf_stats_enabled`.
    pub run_time_ns: u64,
    pub run_count: u64,
    /// Runs skipped because the program, or for kprobes and classic tracepoints any such program,
    /// was running on that CPU (`bpf_prog_inc_misses_counter`, kernel/trace/bpf_trace.c).
    pub skipped: u64,
}

/// Asks the kernel about a loaded program; `None` where it does not answer.
pub fn of(program: BorrowedFd<'_>) -> Option<ProgramStats> {
    // SAFETY: both are plain data for which zero is a value.
    let (mut info, mut attr): (bpf_prog_info, bpf_attr) =
        unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
    attr.info.bpf_fd = program.as_raw_fd() as u32;
    attr.info.info_len = size_of::<bpf_prog_info>() as u32;
    attr.info.info = (&raw mut info).expose_provenance() as u64;
    // SAFETY: the attribute names a buffer of the length it says; the kernel writes at most that.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            bpf_cmd::BPF_OBJ_GET_INFO_BY_FD,
            (&raw mut attr).expose_provenance(),
            size_of::<bpf_attr>(),
        )
    };
    (result == 0).then_some(ProgramStats {
        run_time_ns: info.run_time_ns,
        run_count: info.run_cnt,
        skipped: info.recursion_misses,
    })
}
