//! Softirqs in which programs run, and how much one moves.
//!
//! A kernel may run no program at all while some task is current, as one does that shields its own
//! init from BPF; then neither runs one in the softirqs that come over that task, and counts no skip.
//! The kernel's own count of softirqs (`kstat_incr_softirqs_this_cpu`, shown in `/proc/softirqs`) has
//! them all: what it has more than this was not watched.

use aya_ebpf::{helpers::bpf_get_current_comm, macros::map, maps::PerCpuArray};
use kmem_trace_ebpf::totals::{PAGES_MOVED, SOFTIRQ_MOST, SOFTIRQS_SEEN, VECTORS};

use crate::maps::{own_tally, tally};

/// [`PAGES_MOVED`] of this CPU when its softirq began, and one more: 0 is not known.
#[map]
static SOFTIRQ_BEGAN: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// A softirq begins on this CPU.
#[inline(always)]
pub fn softirq_began(vector: u32) {
    if vector >= VECTORS {
        return;
    }
    tally(SOFTIRQS_SEEN + vector, 1);
    if let (Some(began), Some(moved)) = (SOFTIRQ_BEGAN.get_ptr_mut(0), own_tally(PAGES_MOVED)) {
        unsafe { began.write_volatile(moved.read_volatile().wrapping_add(1)) };
    }
}

/// Softirqs that pile up are worked off by a thread of their own, many at a time, and come over no
/// other task (`run_ksoftirqd`).
#[inline(always)]
fn in_ksoftirqd() -> bool {
    bpf_get_current_comm().is_ok_and(|name| name.starts_with(b"ksoftirqd/"))
}

/// It ends.
#[inline(always)]
pub fn softirq_ended(vector: u32) {
    if vector >= VECTORS {
        return;
    }
    if let (Some(began), Some(moved), Some(most)) = (
        SOFTIRQ_BEGAN.get_ptr(0),
        own_tally(PAGES_MOVED),
        own_tally(SOFTIRQ_MOST + vector),
    ) {
        unsafe {
            // Of one that was under way when the programs were attached the beginning is not known.
            if *began != 0 {
                let pages = moved.read_volatile().wrapping_add(1).wrapping_sub(*began);
                if pages > most.read_volatile() && !in_ksoftirqd() {
                    most.write_volatile(pages);
                }
            }
        }
    }
}
