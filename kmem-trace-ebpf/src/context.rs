//! What an object was asked for in: a task, a softirq, a hardirq handler.

use aya_ebpf::{
    helpers::{bpf_get_current_task, bpf_get_smp_processor_id},
    macros::map,
    maps::PerCpuArray,
};
use kmem_trace_ebpf::config::ABSENT;

use crate::read::{config, peek, peek_half};

/// Whether this CPU is in a softirq, and whether in a hardirq handler.
#[map]
pub static CONTEXT: PerCpuArray<[u32; 2]> = PerCpuArray::with_max_entries(1, 0);

/// Places in [`CONTEXT`].
pub const IN_SOFTIRQ: usize = 0;
pub const IN_HARDIRQ: usize = 1;

/// A softirq or a hardirq handler begins (`inside` = 1) or ends (0) on this CPU. Neither nests in its
/// like, so nothing is counted: an end that is missed, as between the attaching of the two programs,
/// would be for ever.
#[inline(always)]
pub fn interrupt(kind: usize, inside: u32) {
    if let Some(context) = CONTEXT.get_ptr_mut(0) {
        unsafe { *(&raw mut (*context)).cast::<u32>().add(kind & 1) = inside };
    }
}

/// In what an object was asked for, as [`context`] says it.
pub const IN_HARDIRQ_HANDLER: u32 = 1;
pub const SERVING_SOFTIRQ: u32 = 2;
pub const BH_DISABLED: u32 = 3;
/// `SOFTIRQ_MASK` and `SOFTIRQ_OFFSET` (include/linux/preempt.h).
const SOFTIRQ_BITS: u32 = 0x0000_ff00;
const SERVING_BIT: u32 = 0x0000_0100;

/// What this CPU is in: its preempt count says so (`in_hardirq`, `in_serving_softirq`), or what was
/// noted at events. No program of ours that looks here changes those bits: only breakpoints' do.
#[inline(always)]
pub fn context() -> u32 {
    if config!(preempt_count) != 0 {
        let cpu = u64::from(unsafe { bpf_get_smp_processor_id() });
        let own = peek(config!(per_cpu_offset).wrapping_add(cpu << 3), 0);
        let mut count = peek_half(own.wrapping_add(config!(preempt_count)), 0);
        if config!(task_softirqs) != ABSENT {
            count |=
                peek_half(unsafe { bpf_get_current_task() }, config!(task_softirqs)) & SOFTIRQ_BITS;
        }
        return if count & config!(hardirq_bits) != 0 {
            IN_HARDIRQ_HANDLER
        } else if count & SERVING_BIT != 0 {
            SERVING_SOFTIRQ
        } else if count & SOFTIRQ_BITS != 0 {
            BH_DISABLED
        } else {
            0
        };
    }
    if let Some(context) = CONTEXT.get_ptr(0) {
        let inside = context.cast::<u32>();
        if unsafe { *inside.add(IN_HARDIRQ) } != 0 {
            return IN_HARDIRQ_HANDLER;
        }
        if unsafe { *inside.add(IN_SOFTIRQ) } != 0 {
            return SERVING_SOFTIRQ;
        }
    }
    0
}
