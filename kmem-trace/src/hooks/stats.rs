//! What the kernel counts about a program that aya does not hand out: runs that it skipped.

use std::{
    collections::{HashMap, HashSet},
    os::fd::{AsRawFd, BorrowedFd, OwnedFd},
};

use aya_obj::generated::{bpf_cmd, bpf_link_info, bpf_prog_info};

use super::bare::{empty, info, open};
use crate::kernel::proc::own;

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
#[derive(Debug)]
pub struct Kprobes {
    /// With the program's id.
    links: Vec<(u32, OwnedFd)>,
    has_all: bool,
}

impl Kprobes {
    /// Those of the programs with these ids, which this process has attached. None where the kernel
    /// has no links for kprobes (before 5.15).
    pub fn of(programs: &HashSet<u32>) -> Self {
        if programs.is_empty() {
            return Self {
                links: Vec::new(),
                has_all: true,
            };
        }
        // Asking the kernel for links takes CAP_SYS_ADMIN; our own are at hand, though aya keeps them.
        let own: Vec<(u32, i32)> = own::bpf_links()
            .into_iter()
            .filter_map(|link| Some((info::<bpf_link_info>(link)?.prog_id, link)))
            .filter(|(program, _)| programs.contains(program))
            .collect();
        let links: Vec<(u32, OwnedFd)> = own
            .iter()
            .filter_map(|(program, link)| {
                // SAFETY: open, for no link is given up while a plan is being attached.
                let link = unsafe { BorrowedFd::borrow_raw(*link) };
                Some((*program, link.try_clone_to_owned().ok()?))
            })
            .collect();
        let has_some = |id: &u32| links.iter().any(|(program, _)| program == id);
        Self {
            has_all: links.len() == own.len() && programs.iter().all(has_some),
            links,
        }
    }

    /// Closes the links.
    pub fn let_go(&mut self) {
        self.links.clear();
    }

    /// Whether each of the programs can be asked about, or could while they were attached.
    pub fn has_all(&self) -> bool {
        self.has_all
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
    open(bpf_cmd::BPF_ENABLE_STATS, &mut attr).map(|descriptor| Measuring {
        _descriptor: descriptor,
    })
}
