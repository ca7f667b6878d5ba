//! The maps, and the few operations on them that every program shares.

use aya_ebpf::{
    bindings::{BPF_ANY, BPF_NOEXIST, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP},
    helpers::{
        bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_get_smp_processor_id, bpf_ktime_get_ns,
    },
    macros::map,
    maps::{HashMap, PerCpuArray, PerCpuHashMap, RingBuf},
};
use kmem_trace_ebpf::{
    record::Header,
    totals::{Ancestry, LOST_RING, TALLIES, Totals},
};

use crate::read::config;

/// cgroup id → what its own counters were charged. Sized by userspace.
#[map]
pub static TOTALS: PerCpuHashMap<u64, Totals> = PerCpuHashMap::with_max_entries(16384, 0);

/// cgroup id → the cgroup that is charged with it.
#[map]
pub static ANCESTRY: HashMap<u64, Ancestry> = HashMap::with_max_entries(16384, 0);

/// What was lost, by kind.
#[map]
pub static TALLY: PerCpuArray<u64> = PerCpuArray::with_max_entries(TALLIES, 0);

/// The stream. Sized by userspace.
#[map]
pub static RING: RingBuf = RingBuf::with_byte_size(1 << 20, 0);

/// The arguments of a call between its entry and its return.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Pending {
    pub arguments: [u64; 3],
}

/// Stack pointer of a probed function → its arguments. No two calls that are under way share a
/// stack pointer, whatever interrupted what.
#[map]
pub static PENDING: HashMap<u64, Pending> = HashMap::with_max_entries(4096, 0);

/// Adds to one of the tallies.
#[inline(always)]
pub fn tally(which: u32, amount: u64) {
    if let Some(place) = TALLY.get_ptr_mut(which) {
        unsafe { *place = (*place).wrapping_add(amount) };
    }
}

/// The totals of a cgroup on this CPU, made on first use; `true` where it is new to all CPUs.
#[inline(always)]
pub fn totals(cgroup_id: u64) -> Option<(*mut Totals, bool)> {
    if let Some(found) = TOTALS.get_ptr_mut(cgroup_id) {
        return Some((found, false));
    }
    let empty = Totals::default();
    let inserted = TOTALS
        .insert(cgroup_id, &empty, u64::from(BPF_NOEXIST))
        .is_ok();
    TOTALS.get_ptr_mut(cgroup_id).map(|found| (found, inserted))
}

#[inline(always)]
pub fn remember(stack_pointer: u64, arguments: [u64; 3]) -> bool {
    PENDING
        .insert(stack_pointer, &Pending { arguments }, u64::from(BPF_ANY))
        .is_ok()
}

/// Takes back what [`remember`] kept.
#[inline(always)]
pub fn recall(stack_pointer: u64) -> Option<[u64; 3]> {
    let arguments = unsafe { PENDING.get(stack_pointer) }?.arguments;
    let _ = PENDING.remove(stack_pointer);
    Some(arguments)
}

/// Who runs now, on which CPU, when.
#[inline(always)]
pub fn header(kind: u16, len: usize) -> Header {
    let id = bpf_get_current_pid_tgid();
    Header {
        kind,
        len: len as u16,
        cpu: unsafe { bpf_get_smp_processor_id() },
        time_ns: unsafe { bpf_ktime_get_ns() },
        pid: (id >> 32) as u32,
        tid: id as u32,
        comm: bpf_get_current_comm().unwrap_or_default(),
    }
}

/// Sends one record, whose fields `fill` writes; a full ring is counted.
#[inline(always)]
pub fn send<T: 'static>(fill: impl FnOnce(*mut T)) {
    let Some(mut entry) = RING.reserve::<T>(0) else {
        tally(LOST_RING, 1);
        return;
    };
    fill(entry.as_mut_ptr());
    // Waking userspace costs more than the record: it looks by itself every few milliseconds,
    // and is woken only when the ring fills faster than that.
    let waiting = RING.query(0);
    let flags = if waiting >= u64::from(config!(wake_bytes)) {
        BPF_RB_FORCE_WAKEUP
    } else {
        BPF_RB_NO_WAKEUP
    };
    entry.submit(u64::from(flags));
}
