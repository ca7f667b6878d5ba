//! What the kernel counts about a program that aya does not hand out: runs that it skipped.

use std::{
    collections::{HashMap, HashSet},
    os::fd::{AsRawFd, BorrowedFd, FromRawFd as _, OwnedFd},
};

use aya_obj::generated::{bpf_attr, bpf_cmd, bpf_link_info, bpf_prog_info};

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
    info::<bpf_prog_info>(program.as_raw_fd()).map(|info| ProgramStats {
        run_time_ns: info.run_time_ns,
        run_count: info.run_cnt,
        skipped: info.recursion_misses,
    })
}

/// Kprobes that programs are attached to, to ask how often the kernel passed them over: because
/// another kprobe's handler was running (`kprobes_inc_nmissed_count`), before any program was asked.
#[derive(Debug, Default)]
pub struct Kprobes {
    /// With the program's id.
    links: Vec<(u32, OwnedFd)>,
}

impl Kprobes {
    /// Those of the programs with these ids. Empty where the kernel has no links for kprobes
    /// (before 5.15).
    pub fn of(programs: &HashSet<u32>) -> Self {
        let mut links = Vec::new();
        let mut id = 0;
        while let Some(next) = next_link(id) {
            id = next;
            if let Some(link) = link(id)
                && let Some(info) = info::<bpf_link_info>(link.as_raw_fd())
                && programs.contains(&info.prog_id)
            {
                links.push((info.prog_id, link));
            }
        }
        Self { links }
    }

    /// How often they were passed over, by the program's id, where the kernel tells (since about
    /// 6.7).
    pub fn missed(&self) -> HashMap<u32, u64> {
        let mut missed = HashMap::new();
        for (program, link) in &self.links {
            if let Some(info) = info::<bpf_link_info>(link.as_raw_fd()) {
                // SAFETY: plain numbers, zero where the kernel did not write them: it wrote this
                // member if the link is a kprobe's, and these are.
                *missed.entry(*program).or_default() += unsafe {
                    info.__bindgen_anon_1
                        .perf_event
                        .__bindgen_anon_1
                        .kprobe
                        .missed
                };
            }
        }
        missed
    }
}

/// Makes an array that userspace may map, and lets it go again.
///
/// # Errors
/// From the kernel; `InvalidInput` where it knows no such arrays (before 5.5).
pub fn make_mapped_array() -> std::io::Result<()> {
    let mut attr = empty();
    // SAFETY: plain numbers.
    let create = unsafe { &mut attr.__bindgen_anon_1 };
    create.map_type = aya_obj::generated::bpf_map_type::BPF_MAP_TYPE_ARRAY as u32;
    create.key_size = 4;
    create.value_size = 8;
    create.max_entries = 1;
    create.map_flags = aya_obj::generated::BPF_F_MMAPABLE;
    let result = bpf(bpf_cmd::BPF_MAP_CREATE, &mut attr);
    if result < 0 {
        return Err(std::io::Error::last_os_error());
    }
    let fd = i32::try_from(result).map_err(std::io::Error::other)?;
    // SAFETY: a descriptor that the kernel just made for us.
    drop(unsafe { OwnedFd::from_raw_fd(fd) });
    Ok(())
}

fn next_link(id: u32) -> Option<u32> {
    let mut attr = empty();
    attr.__bindgen_anon_6.__bindgen_anon_1.start_id = id;
    // SAFETY: the kernel wrote the id.
    (bpf(bpf_cmd::BPF_LINK_GET_NEXT_ID, &mut attr) >= 0)
        .then_some(unsafe { attr.__bindgen_anon_6.next_id })
}

fn link(id: u32) -> Option<OwnedFd> {
    let mut attr = empty();
    attr.__bindgen_anon_6.__bindgen_anon_1.link_id = id;
    let fd = i32::try_from(bpf(bpf_cmd::BPF_LINK_GET_FD_BY_ID, &mut attr)).ok()?;
    // SAFETY: a descriptor that the kernel just made for us.
    (fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(fd) })
}

/// What the kernel says of a program or link; `T` is one of its plain structs for that.
fn info<T>(fd: i32) -> Option<T> {
    // SAFETY: plain data for which zero is a value.
    let mut info: T = unsafe { std::mem::zeroed() };
    let mut attr = empty();
    attr.info.bpf_fd = fd as u32;
    attr.info.info_len = size_of::<T>() as u32;
    attr.info.info = (&raw mut info).expose_provenance() as u64;
    (bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attr) == 0).then_some(info)
}

/// Loads a program of these instructions, and lets go of it again.
///
/// # Errors
/// Why the kernel does not take it.
pub(super) fn takes(instructions: &[u8]) -> std::io::Result<()> {
    load(instructions).map(drop)
}

/// Runs a raw tracepoint's program of these instructions once, on request, and lets go of it again.
///
/// # Errors
/// Why the kernel does not take or run it.
pub(super) fn runs(instructions: &[u8]) -> std::io::Result<()> {
    let program = load(instructions)?;
    let mut attr = empty();
    attr.test.prog_fd = program.as_raw_fd().cast_unsigned();
    if bpf(bpf_cmd::BPF_PROG_TEST_RUN, &mut attr) < 0 {
        return Err(std::io::Error::last_os_error());
    }
    Ok(())
}

fn load(instructions: &[u8]) -> std::io::Result<OwnedFd> {
    let mut attr = empty();
    let license = c"GPL";
    // SAFETY: a member of plain numbers, all zero.
    let load = unsafe { &mut attr.__bindgen_anon_3 };
    load.prog_type = aya_obj::generated::bpf_prog_type::BPF_PROG_TYPE_RAW_TRACEPOINT as u32;
    load.insns = instructions.as_ptr().expose_provenance() as u64;
    load.insn_cnt = (instructions.len() / 8) as u32;
    load.license = license.as_ptr().expose_provenance() as u64;
    let result = bpf(bpf_cmd::BPF_PROG_LOAD, &mut attr);
    if result < 0 {
        return Err(std::io::Error::last_os_error());
    }
    let fd = i32::try_from(result).map_err(std::io::Error::other)?;
    // SAFETY: a descriptor that the kernel just made for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn empty() -> bpf_attr {
    // SAFETY: plain data for which zero is a value.
    unsafe { std::mem::zeroed() }
}

fn bpf(command: bpf_cmd, attr: &mut bpf_attr) -> i64 {
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

/// The kernel's BPF statistics, on for as long as this is kept: the kernel switches them off again
/// when the descriptor closes, however we end (`bpf_stats_release`, kernel/bpf/syscall.c).
#[derive(Debug)]
pub struct Measuring {
    _descriptor: OwnedFd,
}

/// Lets the kernel measure run time and runs of all BPF programs: a few dozen nanoseconds a run.
///
/// # Errors
/// From the kernel: not privileged, or older than 5.8.
pub fn measure() -> std::io::Result<Measuring> {
    let mut attr = empty();
    attr.enable_stats.type_ = aya_obj::generated::bpf_stats_type::BPF_STATS_RUN_TIME as u32;
    let result = bpf(bpf_cmd::BPF_ENABLE_STATS, &mut attr);
    if result < 0 {
        return Err(std::io::Error::last_os_error());
    }
    let fd = i32::try_from(result).map_err(std::io::Error::other)?;
    // SAFETY: a descriptor that the kernel just made for us.
    let descriptor = unsafe { OwnedFd::from_raw_fd(fd) };
    Ok(Measuring {
        _descriptor: descriptor,
    })
}
