//! The maps, and the few operations on them that every program shares.

use core::ffi::c_void;

#[cfg(feature = "old")]
use aya_ebpf::{
    bindings::BPF_F_CURRENT_CPU,
    helpers::bpf_perf_event_output,
    maps::{PerCpuArray, PerfEventByteArray},
};
use aya_ebpf::{
    bindings::{BPF_ANY, BPF_NOEXIST},
    helpers::{
        bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_get_smp_processor_id, bpf_ktime_get_ns,
    },
    macros::map,
    maps::{Array, HashMap, Stack},
};
#[cfg(not(feature = "old"))]
use aya_ebpf::{
    bindings::{
        BPF_F_MMAPABLE, BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP, BPF_RB_RING_SIZE,
    },
    maps::{RingBuf, ring_buf::RingBufEntry},
};
#[cfg(feature = "old")]
use kmem_trace_ebpf::record::LARGEST_RECORD;
use kmem_trace_ebpf::{
    record::Header,
    totals::{LOST_PAGES, LOST_RING, Place, SWITCHES as SWITCH_COUNT, TALLIES, Totals},
};

use crate::read::config;

#[cfg(not(feature = "old"))]
const EBUSY: i32 = -16;
/// What the kernel puts before each record of a ring (`BPF_RINGBUF_HDR_SZ`), in bytes.
#[cfg(not(feature = "old"))]
const RECORD_HEADER: usize = 8;
/// How often a program in an NMI asks again for what another CPU holds.
const ATTEMPTS: u32 = 8;
/// Arrays that userspace maps; before 5.5 there are none, and a program hands their elements out.
#[cfg(not(feature = "old"))]
const READ_IN_PLACE: u32 = BPF_F_MMAPABLE;
#[cfg(feature = "old")]
const READ_IN_PLACE: u32 = 0;

/// A program's context, which the perf buffer's helper asks for.
pub type Context = *mut c_void;

/// cgroup id → its place in [`CGROUPS`] and [`TOTALS`]. Sized by userspace.
#[map]
pub static PLACES: HashMap<u64, u32> = HashMap::with_max_entries(16384, 0);

/// Places that no cgroup has taken yet; filled by userspace.
#[map]
pub static FREE: Stack<u32> = Stack::with_max_entries(16384, 0);

// The next three are read by userspace through a mapping, never by a system call: during a look-up
// the kernel runs no kprobe or tracepoint program on that CPU (`bpf_disable_instrumentation`), and
// what an interrupt frees meanwhile would be missed.

/// Place → whose it is.
#[map]
pub static CGROUPS: Array<Place> = Array::with_max_entries(16384, READ_IN_PLACE);

/// Place, a copy for each CPU → what the cgroup's own counters were charged.
#[map]
pub static TOTALS: Array<Totals> = Array::with_max_entries(16384, READ_IN_PLACE);

/// What was lost, by kind; a copy for each CPU.
#[map]
pub static TALLY: Array<u64> = Array::with_max_entries(TALLIES, READ_IN_PLACE);

/// Turned by userspace while the programs run; looked at only where it said that it might.
#[map]
pub static SWITCHES: Array<u32> = Array::with_max_entries(SWITCH_COUNT, 0);

/// The stream. Sized by userspace.
#[cfg(not(feature = "old"))]
#[map]
pub static RING: RingBuf = RingBuf::with_byte_size(4096, 0);

// Where many CPUs would wait for one another, each ring is for some of them. Userspace sizes those
// that it says are used.
#[cfg(not(feature = "old"))]
#[map]
pub static RING_1: RingBuf = RingBuf::with_byte_size(4096, 0);
#[cfg(not(feature = "old"))]
#[map]
pub static RING_2: RingBuf = RingBuf::with_byte_size(4096, 0);
#[cfg(not(feature = "old"))]
#[map]
pub static RING_3: RingBuf = RingBuf::with_byte_size(4096, 0);

/// For records that found their ring busy with another CPU.
#[cfg(not(feature = "old"))]
#[map]
pub static SPARE: RingBuf = RingBuf::with_byte_size(1 << 18, 0);

/// The stream where there are no rings: a buffer for each CPU, opened by userspace.
#[cfg(feature = "old")]
#[map]
pub static BUFFERS: PerfEventByteArray = PerfEventByteArray::new(0);

/// The record that is being written. The kernel runs no kprobe or classic tracepoint program while
/// another is under way on its CPU, and there are no others here.
#[cfg(feature = "old")]
#[map]
static WRITTEN: PerCpuArray<[u64; LARGEST_RECORD / 8]> = PerCpuArray::with_max_entries(1, 0);

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

/// Calls that a fentry program saw begin, by the address of their arguments on the stack: no two
/// calls under way share it.
#[cfg(not(feature = "old"))]
#[map]
pub static UNDER_WAY: HashMap<u64, u32> = HashMap::with_max_entries(4096, 0);

/// The same for a call that began in an interrupt while [`UNDER_WAY`] was being changed on its CPU:
/// before 6.2 a hash map refuses that with EBUSY.
#[cfg(not(feature = "old"))]
#[map]
pub static UNDER_WAY_MEANWHILE: HashMap<u64, u32> = HashMap::with_max_entries(256, 0);

/// Adds to one of the tallies.
#[inline(always)]
pub fn tally(which: u32, amount: u64) {
    if let Some(place) = own_tally(which) {
        unsafe { add(place, amount) };
    }
}

/// This CPU's copy of one.
#[inline(always)]
pub fn own_tally(which: u32) -> Option<*mut u64> {
    TALLY.get_ptr_mut(own_copy().wrapping_mul(TALLIES).wrapping_add(which))
}

/// A charge or uncharge that is in no total, for one of `LOST_MAP_FULL` and `LOST_UNREAD`.
#[inline(always)]
pub fn lose(why: u32, role: u32, pages: u64) {
    tally(why + role, 1);
    tally(LOST_PAGES, pages);
}

/// Whether userspace has turned a switch.
#[inline(always)]
pub fn switched(which: u32) -> bool {
    config!(may_switch) == 1
        && SWITCHES
            .get_ptr(which)
            .is_some_and(|it| unsafe { *it } != 0)
}

/// Which copy of the totals and tallies is this CPU's.
#[inline(always)]
pub fn own_copy() -> u32 {
    let cpu = unsafe { bpf_get_smp_processor_id() };
    cpu & config!(copies_mask)
}

/// A place that nobody has taken.
#[inline(always)]
pub fn take(from: &Stack<u32>) -> Option<u32> {
    let mut attempt = 0;
    while attempt < ATTEMPTS {
        match from.pop() {
            Ok(free) => return free,
            // Busy, and a breakpoint's program counts as an NMI, which does not wait.
            Err(_) => attempt += 1,
        }
    }
    None
}

/// A place that was taken for nothing: someone else named the same meanwhile, or the map refused.
#[inline(always)]
pub fn put_back(to: &Stack<u32>, place: u32) {
    let mut attempt = 0;
    // Busy, as in `take`; a place that is not put back is lost until the trace ends.
    while attempt < ATTEMPTS && to.push(place, 0).is_err() {
        attempt += 1;
    }
}

/// The place of a cgroup, taken on first use; `true` where it is new.
#[inline(always)]
pub fn place(cgroup_id: u64) -> Option<(u32, bool)> {
    if let Some(found) = unsafe { PLACES.get(cgroup_id) } {
        return Some((*found, false));
    }
    match take_place(cgroup_id) {
        0 => None,
        taken => Some((taken as u32, taken & NEW != 0)),
    }
}

/// In what [`take_place`] returns: there is one.
const THERE: u64 = 1 << 32;
/// The same: it is new.
const NEW: u64 = 1 << 33;

/// The place of a cgroup that had none a moment ago; 0 where there is none left or the map refuses it.
/// Global, of numbers alone, so that the verifier looks into it once and not on each way that leads
/// here. Not so in the object for old kernels: before 5.6 there are no such functions, and what is
/// tested on newer ones has to be what they get.
#[cfg_attr(not(feature = "old"), unsafe(no_mangle))]
#[inline(never)]
pub extern "C" fn take_place(cgroup_id: u64) -> u64 {
    let Some(free) = take(&FREE) else {
        return 0;
    };
    let Some(entry) = CGROUPS.get_ptr_mut(free) else {
        return 0;
    };
    // Named before anybody else can find it.
    unsafe { (&raw mut (*entry).cgroup_id).write_volatile(cgroup_id) };
    if PLACES
        .insert(cgroup_id, free, u64::from(BPF_NOEXIST))
        .is_ok()
    {
        return u64::from(free) | THERE | NEW;
    }
    unsafe { (&raw mut (*entry).cgroup_id).write_volatile(0) };
    put_back(&FREE, free);
    match unsafe { PLACES.get(cgroup_id) } {
        Some(found) => u64::from(*found) | THERE,
        None => 0,
    }
}

/// The totals of a cgroup on this CPU, made on first use; `true` where it is new to all CPUs.
#[inline(always)]
pub fn totals(cgroup_id: u64) -> Option<(*mut Totals, bool)> {
    let (place, new) = place(cgroup_id)?;
    let index = own_copy().wrapping_mul(config!(places)).wrapping_add(place);
    TOTALS.get_ptr_mut(index).map(|found| (found, new))
}

/// Adds without a window in which an interrupt's addition to the same place is lost.
#[inline(always)]
pub unsafe fn add(place: *mut u64, amount: u64) {
    unsafe {
        core::arch::asm!(
            "lock *(u64*)({place} + 0) += {amount}",
            place = in(reg) place,
            amount = in(reg) amount,
            options(nostack),
        );
    }
}

/// A call begins. Idempotent, for there are two programs for each function: the kernel skips a
/// program that interrupts itself (`bpf_prog_enter`), and then the other one runs. `false` where there
/// is no room left: the call's end will count nothing.
#[cfg(not(feature = "old"))]
#[inline(always)]
pub fn begin(call: u64) -> bool {
    if unsafe { UNDER_WAY.get(call) }.is_some() {
        return true;
    }
    match UNDER_WAY.insert(call, 1, u64::from(BPF_ANY)) {
        Ok(()) => true,
        Err(EBUSY) => UNDER_WAY_MEANWHILE
            .insert(call, 1, u64::from(BPF_ANY))
            .is_ok(),
        Err(_) => false,
    }
}

/// A call ends: `true` for one of the programs that see it end, whichever is first.
#[cfg(not(feature = "old"))]
#[inline(always)]
pub fn end(call: u64) -> bool {
    match UNDER_WAY.remove(call) {
        Ok(()) => true,
        Err(EBUSY) => UNDER_WAY_MEANWHILE.remove(call).is_ok(),
        // It may have begun while the map was busy, and end when it no longer is.
        Err(_) => {
            unsafe { UNDER_WAY_MEANWHILE.get(call) }.is_some()
                && UNDER_WAY_MEANWHILE.remove(call).is_ok()
        }
    }
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

/// Sends one record, whose fields `fill` writes; a full ring is counted, for its role.
#[cfg(not(feature = "old"))]
#[inline(always)]
pub fn send<T: 'static>(_ctx: Context, role: u32, fill: impl FnOnce(*mut T)) {
    if let Some(mut entry) = reserve::<T>(role) {
        fill(entry.as_mut_ptr());
        submit(entry);
    }
}

/// This CPU's ring.
#[cfg(not(feature = "old"))]
#[inline(always)]
fn ring() -> &'static RingBuf {
    match unsafe { bpf_get_smp_processor_id() } & config!(rings_mask) {
        0 => &RING,
        1 => &RING_1,
        2 => &RING_2,
        _ => &RING_3,
    }
}

/// Room for one record, to be written and then submitted; a full ring is counted, for its role.
#[cfg(not(feature = "old"))]
#[inline(always)]
pub fn reserve<T: 'static>(role: u32) -> Option<RingBufEntry<T>> {
    let ring = ring();
    if let Some(entry) = ring.reserve::<T>(0) {
        return Some(entry);
    }
    // A breakpoint's program counts as an NMI, and an NMI does not wait for the ring while another
    // CPU reserves (`__bpf_ringbuf_reserve`).
    let full = ring.query(u64::from(BPF_RB_AVAIL_DATA)) + (size_of::<T>() + RECORD_HEADER) as u64
        >= ring.query(u64::from(BPF_RB_RING_SIZE));
    let spare = if full { None } else { SPARE.reserve::<T>(0) };
    if spare.is_none() {
        tally(LOST_RING + role, 1);
    }
    spare
}

/// Hands a record over.
#[cfg(not(feature = "old"))]
#[inline(always)]
pub fn submit<T: 'static>(entry: RingBufEntry<T>) {
    // Waking userspace costs more than the record: it looks by itself every few milliseconds,
    // and is woken only when the ring fills faster than that.
    let waiting = ring().query(0);
    let flags = if waiting >= u64::from(config!(wake_bytes)) {
        BPF_RB_FORCE_WAKEUP
    } else {
        BPF_RB_NO_WAKEUP
    };
    entry.submit(u64::from(flags));
}

/// The same by way of this CPU's perf buffer; a full one is counted as far as the kernel says so.
#[cfg(feature = "old")]
#[inline(always)]
pub fn send<T: 'static>(ctx: Context, role: u32, fill: impl FnOnce(*mut T)) {
    const { assert!(size_of::<T>() <= LARGEST_RECORD) };
    let Some(record) = WRITTEN.get_ptr_mut(0) else {
        return;
    };
    fill(record.cast());
    let sent = unsafe {
        bpf_perf_event_output(
            ctx,
            (&raw const BUFFERS).cast_mut().cast(),
            BPF_F_CURRENT_CPU,
            record.cast(),
            size_of::<T>() as u64,
        )
    };
    if sent != 0 {
        tally(LOST_RING + role, 1);
    }
}
