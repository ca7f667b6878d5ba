//! The second program of a pair: whether it is its turn.
//!
//! The kernel skips a program that an interrupt nests in itself on its CPU, and counts for that how
//! many runs of it are under way there (`bpf_prog.active`, `__bpf_trace_run`). The second program on
//! the same event looks at that very count of the first: not zero says that the first is under way
//! beneath this event, and was skipped for it. An interrupt runs both of them above what it
//! interrupted, so there is no moment at which the two see different things, and nobody sets or
//! clears anything.
//!
//! Where tracepoints may be preempted (`tracepoint_srcu`, since about 7.0), another task may be what is
//! beneath, and may go on between the two: such an event is lost, and counts as that.
//!
//! The count is a variable of each CPU, as is the element of [`OWN`]: how far the one lies from the
//! other is the same on all of them.

use aya_ebpf::{
    macros::map,
    maps::{Array, PerCpuArray},
};
use kmem_trace_ebpf::{
    pairs::{FOUND, NO_COUNTER, NO_FILE, OTHER_MAP, OTHER_PROGRAM, PAIRS, ProgramMembers},
    totals::SECOND_RUNS,
};

use crate::{
    maps::tally,
    read::{member, peek_half},
};

/// Filled in by userspace before loading, as `CONFIG` is.
#[unsafe(no_mangle)]
static PROGRAM_MEMBERS: ProgramMembers = ProgramMembers::UNSET;

macro_rules! members {
    ($field:ident) => {{ unsafe { core::ptr::read_volatile(&raw const PROGRAM_MEMBERS.$field) } }};
}

/// Its own address.
#[map]
static OWN: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// Pair → from [`OWN`] to the count of the first's runs under way; 0: not known, and the second
/// leaves everything to the first.
#[map]
static TO_FIRST: Array<u64> = Array::with_max_entries(PAIRS, 0);

/// Whether the event at hand is the second program's: the kernel skipped the first one for it. Tallied.
#[inline(always)]
pub fn is_for_second(pair: u32) -> bool {
    let skipped = first_is_skipped(pair);
    if skipped {
        tally(SECOND_RUNS + pair, 1);
    }
    skipped
}

/// Whether the kernel skipped the first program of a pair for the event at hand.
#[inline(always)]
fn first_is_skipped(pair: u32) -> bool {
    let distance = match TO_FIRST.get_ptr(pair) {
        Some(distance) => unsafe { *distance },
        None => 0,
    };
    distance != 0 && count_at(distance) != 0
}

/// The count that lies so far from [`OWN`] on this CPU. Four bytes of it matter, whether they are
/// one number or one for each kind of context.
#[inline(always)]
fn count_at(distance: u64) -> u32 {
    let Some(own) = OWN.get_ptr_mut(0) else {
        return 0;
    };
    // Nobody calculates with an address of a map's element, but with a number from one.
    let here = unsafe {
        own.write_volatile(own as u64);
        own.read_volatile()
    };
    peek_half(here.wrapping_add(distance), 0)
}

/// Looks for the count of a program that `task` holds open, and notes how far it is from [`OWN`],
/// which `task` holds open too. The answer is one of `pairs`.
#[inline(always)]
pub fn find_first(
    task: u64,
    program: u64,
    program_id: u32,
    map: u64,
    map_id: u32,
    pair: u32,
) -> u32 {
    let (Some(program), Some(map)) = (opened(task, program), opened(task, map)) else {
        return NO_FILE;
    };
    let aux: u64 = member(program, members!(prog_aux)).unwrap_or(0);
    if member::<u32>(aux, members!(aux_id)) != Some(program_id) {
        return OTHER_PROGRAM;
    }
    if member::<u32>(map, members!(map_id)) != Some(map_id) {
        return OTHER_MAP;
    }
    let count: u64 = member(program, members!(prog_active)).unwrap_or(0);
    let own: u64 = member(map, members!(array_pptrs)).unwrap_or(0);
    let distance = count.wrapping_sub(own);
    // Nothing nests here.
    if count == 0 || own == 0 || count_at(distance) != 0 {
        return NO_COUNTER;
    }
    let Some(entry) = TO_FIRST.get_ptr_mut(pair) else {
        return NO_COUNTER;
    };
    unsafe { entry.write_volatile(distance) };
    FOUND
}

/// `task->files->fdt->fd[fd]->private_data`.
#[inline(always)]
fn opened(task: u64, fd: u64) -> Option<u64> {
    let files: u64 = member(task, members!(task_files))?;
    let table: u64 = member(files, members!(files_fdt))?;
    let array: u64 = member(table, members!(fdtable_fd))?;
    let file: u64 = member(array.wrapping_add(fd.wrapping_mul(8)), 0)?;
    member(file, members!(file_private)).filter(|found| *found != 0)
}
