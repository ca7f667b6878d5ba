//! The programs' entry points, by mechanism: each reads its arguments and calls one function of
//! the room that its role belongs to. How arguments arrive is all that differs between them.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]
// Parts of it serve the programs alone that kernels before 5.8 have no use for.
#![cfg_attr(feature = "old", allow(dead_code, unused_imports, unused_macros))]

/// The arguments of a limit file's handler; a position that is absent reads as 0.
macro_rules! handler {
    ($read:ident, $from:expr) => {
        Handler {
            open_file: $read($from, config!(limit_args.open_file)),
            cgroup: $read($from, config!(limit_args.cgroup)),
            cftype: $read($from, config!(limit_args.cftype)),
            text: $read($from, config!(limit_args.text)),
            text_len: $read($from, config!(limit_args.text_len)),
        }
    };
}

#[cfg(not(feature = "old"))]
mod attribution;
#[cfg(not(feature = "old"))]
mod bulk;
#[cfg(not(feature = "old"))]
mod context;
#[cfg(feature = "old")]
mod hand_out;
mod ledger;
mod lifecycle;
mod limit;
mod maps;
mod memcg;
#[cfg(not(feature = "old"))]
mod owner;
#[cfg(not(feature = "old"))]
mod places;
mod read;
#[cfg(not(feature = "old"))]
mod second;
#[cfg(not(feature = "old"))]
mod slab;
#[cfg(not(feature = "old"))]
mod slab_page;
#[cfg(not(feature = "old"))]
mod slab_sums;
#[cfg(not(feature = "old"))]
mod softirq;
#[cfg(not(feature = "old"))]
mod stat;
#[cfg(not(feature = "old"))]
mod trampolines;

use aya_ebpf::{
    EbpfContext as _,
    helpers::bpf_get_current_task,
    macros::{btf_tracepoint, kprobe, kretprobe, raw_tracepoint, tracepoint},
    programs::{
        BtfTracePointContext, ProbeContext, RawTracePointContext, RetProbeContext,
        TracePointContext,
    },
};
#[cfg(not(feature = "old"))]
use aya_log_ebpf::debug;
use kmem_trace_ebpf::{
    config::ABSENT,
    pairs::{
        PAIR_CACHE_ALLOC, PAIR_CACHE_FREE, PAIR_KFREE, PAIR_KMALLOC, PAIR_LRUVEC_STATE, PAIR_STATE,
    },
    record::{
        OP_ALLOC, OP_ATTACH, OP_CHARGE, OP_FREE, OP_MKDIR, OP_REFUSED, OP_RELEASE, OP_RENAME,
        OP_RMDIR, OP_TRY_CHARGE, OP_UNCHARGE,
    },
    totals::{LOST_MAP_FULL, LOST_UNREAD, ROLE_CHARGE, ROLE_USER_CHARGE},
};

#[cfg(not(feature = "old"))]
use crate::{
    context::{IN_HARDIRQ, IN_SOFTIRQ, interrupt},
    owner::removed,
    places::give_back,
    second::{find_first, is_for_second},
    slab::{Object, slab_event},
    softirq::{softirq_began, softirq_ended},
    stat::read_words,
};
use crate::{
    ledger::{counter_changed, state_changed, user_charged},
    lifecycle::{Fields, cgroup_event},
    limit::{Handler, kmem_limit_entered, kmem_limit_written, limit_entered, limit_written},
    maps::{Context, lose, recall, remember, tally},
    memcg::{check_offsets, memcg_of_task, typed_cgroup_id, typed_id},
    read::{
        argument, config, field_u32, field_u64, member, register_argument, returned, stack_pointer,
        typed,
    },
};

/// A kretprobe sees the stack pointer after the return address was popped.
const RETURN_ADDRESS: u64 = 8;

// --- kprobes -----------------------------------------------------------------------------------

#[kprobe]
pub fn kp_counter_charge(ctx: ProbeContext) -> u32 {
    counter_changed(
        ctx.regs.cast(),
        register_argument(ctx.regs, 0),
        register_argument(ctx.regs, 1),
        OP_CHARGE,
    );
    0
}

#[kprobe]
pub fn kp_counter_uncharge(ctx: ProbeContext) -> u32 {
    counter_changed(
        ctx.regs.cast(),
        register_argument(ctx.regs, 0),
        register_argument(ctx.regs, 1),
        OP_UNCHARGE,
    );
    0
}

#[kprobe]
pub fn kp_counter_try_charge(ctx: ProbeContext) -> u32 {
    let pages = register_argument(ctx.regs, 1);
    let at_entry = stack_pointer(ctx.regs).wrapping_add(u64::from(config!(try_charge_depth)));
    if !remember(at_entry, [register_argument(ctx.regs, 0), pages, 0]) {
        lose(LOST_UNREAD, ROLE_CHARGE, pages);
    }
    0
}

/// On the function's `ret`, where its stack pointer is what it was at entry.
#[kprobe]
pub fn kx_counter_try_charge(ctx: ProbeContext) -> u32 {
    try_charge_returned(ctx.regs.cast(), stack_pointer(ctx.regs), returned(ctx.regs))
}

#[kretprobe]
pub fn kr_counter_try_charge(ctx: RetProbeContext) -> u32 {
    let regs = ctx.as_ptr().cast_const().cast();
    try_charge_returned(
        ctx.as_ptr(),
        stack_pointer(regs).wrapping_sub(RETURN_ADDRESS),
        returned(regs),
    )
}

#[inline(always)]
fn try_charge_returned(ctx: Context, at_entry: u64, result: u64) -> u32 {
    if let Some([counter, pages, _]) = recall(at_entry) {
        // `bool`: only the low byte of the register is defined.
        let charged = result & 0xff != 0;
        counter_changed(
            ctx,
            counter,
            pages,
            if charged { OP_TRY_CHARGE } else { OP_REFUSED },
        );
    }
    0
}

#[kprobe]
pub fn kp_user_charge(ctx: ProbeContext) -> u32 {
    let memcg = register_argument(ctx.regs, config!(user_charge_memcg));
    let mm = register_argument(ctx.regs, config!(user_charge_mm));
    let pages = register_argument(ctx.regs, config!(user_charge_pages));
    let gfp = register_argument(ctx.regs, config!(user_charge_gfp));
    let at_entry = stack_pointer(ctx.regs).wrapping_add(u64::from(config!(user_charge_depth)));
    let arguments = [memcg, (gfp << 32) | (pages & 0xffff_ffff), asked(memcg, mm)];
    if !remember(at_entry, arguments) {
        tally(LOST_MAP_FULL + ROLE_USER_CHARGE, 1);
    }
    0
}

#[kprobe]
pub fn kx_user_charge(ctx: ProbeContext) -> u32 {
    probed_user_charge_returned(ctx.regs.cast(), stack_pointer(ctx.regs), returned(ctx.regs))
}

#[kretprobe]
pub fn kr_user_charge(ctx: RetProbeContext) -> u32 {
    let regs = ctx.as_ptr().cast_const().cast();
    probed_user_charge_returned(
        ctx.as_ptr(),
        stack_pointer(regs).wrapping_sub(RETURN_ADDRESS),
        returned(regs),
    )
}

#[inline(always)]
fn probed_user_charge_returned(ctx: Context, at_entry: u64, result: u64) -> u32 {
    if let Some([memcg, amount, asked]) = recall(at_entry) {
        user_charge_returned(ctx, memcg, asked, amount, amount >> 32, result);
    }
    0
}

/// Who a charge is for, before it is made: `*ptr` or, where that is empty, the owner of the `mm`.
#[inline(always)]
fn asked(memcg: u64, mm: u64) -> u64 {
    if config!(user_charge_memcg_is_out) != 1 {
        return memcg;
    }
    match member::<u64>(memcg, 0) {
        Some(0) | None => member::<u64>(mm, config!(mm_owner))
            .and_then(memcg_of_task)
            .unwrap_or(0),
        Some(given) => given,
    }
}

#[kprobe]
pub fn kp_limit_write(ctx: ProbeContext) -> u32 {
    limit_entered(handler!(register_argument, ctx.regs));
    0
}

#[kretprobe]
pub fn kr_limit_write(ctx: RetProbeContext) -> u32 {
    // A byte count or an errno: the lower half has it all, and `int` handlers define no more.
    limit_written(
        ctx.as_ptr(),
        i64::from(returned(ctx.as_ptr().cast_const().cast()) as i32),
    );
    0
}

#[kprobe]
pub fn kp_limit_kmem(ctx: ProbeContext) -> u32 {
    kmem_limit_entered(
        register_argument(ctx.regs, config!(kmem_limit_args.target)),
        register_argument(ctx.regs, config!(kmem_limit_args.value)),
    );
    0
}

#[kretprobe]
pub fn kr_limit_kmem(ctx: RetProbeContext) -> u32 {
    // `int`: the upper half of the register is not defined.
    kmem_limit_written(
        ctx.as_ptr(),
        i64::from(returned(ctx.as_ptr().cast_const().cast()) as i32),
    );
    0
}

#[inline(always)]
fn user_charge_returned(ctx: Context, memcg: u64, asked: u64, pages: u64, gfp: u64, result: u64) {
    let mut charged = asked;
    // Where it refuses, 3.10 hands out nothing, or the root instead of who it was for.
    if config!(user_charge_memcg_is_out) == 1 && result as i32 == 0 {
        charged = member(memcg, 0).unwrap_or(asked);
    }
    user_charged(ctx, charged, pages as u32, gfp as u32, result as i32);
}

// --- the offsets, checked ----------------------------------------------------------------------

/// Attached to nothing: run once, by the tracer, in its own context. Spelled out, because the
/// macro has a program return 0 whatever it found.
#[unsafe(no_mangle)]
#[unsafe(link_section = "raw_tracepoint")]
pub extern "C" fn rt_check_offsets(_ctx: *mut core::ffi::c_void) -> u32 {
    check_offsets(unsafe { bpf_get_current_task() })
}

// --- a memory cgroup's own counters, on request --------------------------------------------------

/// Attached to nothing and run as [`rt_check_offsets`] is; its arguments are those of
/// [`read_words`].
#[cfg(not(feature = "old"))]
#[unsafe(no_mangle)]
#[unsafe(link_section = "raw_tracepoint")]
pub extern "C" fn rt_read_words(ctx: *mut core::ffi::c_void) -> u32 {
    let ctx: *const u8 = ctx.cast_const().cast();
    read_words(
        unsafe { bpf_get_current_task() },
        argument(ctx, 0),
        argument(ctx, 1),
        argument(ctx, 2),
        argument(ctx, 3),
    )
}

// --- places filled and given back, on request ---------------------------------------------------------------

/// Attached to nothing and run as [`rt_check_offsets`] is; its arguments are those of
/// [`give_back`].
#[cfg(not(feature = "old"))]
#[unsafe(no_mangle)]
#[unsafe(link_section = "raw_tracepoint")]
pub extern "C" fn rt_give_back(ctx: *mut core::ffi::c_void) -> u32 {
    let ctx: *const u8 = ctx.cast_const().cast();
    give_back(
        argument(ctx, 0),
        argument(ctx, 1) as u32,
        argument(ctx, 2) as u32,
    )
}

// --- the first program of a pair, on request -----------------------------------------------------

/// Attached to nothing and run as [`rt_check_offsets`] is; its arguments are those of
/// [`find_first`].
#[cfg(not(feature = "old"))]
#[unsafe(no_mangle)]
#[unsafe(link_section = "raw_tracepoint")]
pub extern "C" fn rt_find_first(ctx: *mut core::ffi::c_void) -> u32 {
    let ctx: *const u8 = ctx.cast_const().cast();
    find_first(
        unsafe { bpf_get_current_task() },
        argument(ctx, 0),
        argument(ctx, 1) as u32,
        argument(ctx, 2),
        argument(ctx, 3) as u32,
        argument(ctx, 4) as u32,
    )
}

// --- tracepoints: memory.stat items ------------------------------------------------------------

#[tracepoint]
pub fn tp_memcg_state(ctx: TracePointContext) -> u32 {
    let context = ctx.as_ptr();
    let ctx = context.cast_const().cast();
    state_changed(
        context,
        0,
        field_u64(ctx, config!(memcg_state_id)),
        field_u32(ctx, config!(memcg_state_item)) as i32,
        field_u32(ctx, config!(memcg_state_val)) as i32,
        false,
    );
    0
}

#[tracepoint]
pub fn tp_memcg_lruvec_state(ctx: TracePointContext) -> u32 {
    let context = ctx.as_ptr();
    let ctx = context.cast_const().cast();
    state_changed(
        context,
        0,
        field_u64(ctx, config!(memcg_lruvec_id)),
        field_u32(ctx, config!(memcg_lruvec_item)) as i32,
        field_u32(ctx, config!(memcg_lruvec_val)) as i32,
        true,
    );
    0
}

// --- tracepoints: cgroups ----------------------------------------------------------------------

// Each field is loaded right after its offset: a constant that is kept in between ends up on the
// stack, where older verifiers no longer know it, and every possible load is then checked.

/// Where the text of a `__data_loc` field is: its low half is an offset from the record's beginning.
#[inline(always)]
fn text_at(record: *const u8, location: u32) -> u64 {
    (record as u64).wrapping_add(u64::from(location & 0xffff))
}

#[inline(always)]
fn cgroup_tracepoint(ctx: TracePointContext, op: u8) -> u32 {
    let record = ctx.as_ptr().cast_const().cast();
    let fields = Fields {
        hierarchy: field_u32(record, config!(cgroup_root)),
        level: field_u32(record, config!(cgroup_lvl)),
        cgroup_id: field_u64(record, config!(cgroup_id)),
        path: text_at(record, field_u32(record, config!(cgroup_path))),
        task: 0,
    };
    cgroup_event(ctx.as_ptr(), op, &fields);
    #[cfg(not(feature = "old"))]
    debug!(
        &ctx,
        "cgroup {} of hierarchy {}: event {}", fields.cgroup_id, fields.hierarchy, op
    );
    0
}

#[tracepoint]
pub fn tp_cgroup_mkdir(ctx: TracePointContext) -> u32 {
    cgroup_tracepoint(ctx, OP_MKDIR)
}

#[tracepoint]
pub fn tp_cgroup_rmdir(ctx: TracePointContext) -> u32 {
    cgroup_tracepoint(ctx, OP_RMDIR)
}

#[tracepoint]
pub fn tp_cgroup_release(ctx: TracePointContext) -> u32 {
    cgroup_tracepoint(ctx, OP_RELEASE)
}

#[tracepoint]
pub fn tp_cgroup_rename(ctx: TracePointContext) -> u32 {
    cgroup_tracepoint(ctx, OP_RENAME)
}

#[tracepoint]
pub fn tp_cgroup_attach_task(ctx: TracePointContext) -> u32 {
    let context = ctx.as_ptr();
    let ctx = context.cast_const().cast();
    let fields = Fields {
        hierarchy: field_u32(ctx, config!(attach_root)),
        level: field_u32(ctx, config!(attach_lvl)),
        cgroup_id: field_u64(ctx, config!(attach_id)),
        path: text_at(ctx, field_u32(ctx, config!(attach_path))),
        task: field_u32(ctx, config!(attach_pid)),
    };
    cgroup_event(context, OP_ATTACH, &fields);
    0
}

// --- BTF tracepoints: the same where lockdown hides tracefs, and with it all classic ones --------

#[inline(always)]
fn typed_state(ctx: BtfTracePointContext, lruvec: bool) -> i32 {
    let memcg: *const u8 = ctx.arg(0);
    let (item, pages) = (ctx.arg::<i32>(1), ctx.arg::<i32>(2));
    let id = typed_id(memcg);
    state_changed(ctx.as_ptr(), memcg as u64, id, item, pages, lruvec);
    0
}

#[cfg(not(feature = "old"))]
#[btf_tracepoint]
pub fn tb_memcg_state(ctx: BtfTracePointContext) -> i32 {
    typed_state(ctx, false)
}

#[cfg(not(feature = "old"))]
#[btf_tracepoint]
pub fn tb_memcg_lruvec_state(ctx: BtfTracePointContext) -> i32 {
    typed_state(ctx, true)
}

/// On the same event as the one above (see `second`): charges of interrupts nest.
#[cfg(not(feature = "old"))]
#[btf_tracepoint]
pub fn tb_memcg_state_2(ctx: BtfTracePointContext) -> i32 {
    if !is_for_second(PAIR_STATE) {
        return 0;
    }
    typed_state(ctx, false)
}

#[cfg(not(feature = "old"))]
#[btf_tracepoint]
pub fn tb_memcg_lruvec_state_2(ctx: BtfTracePointContext) -> i32 {
    if !is_for_second(PAIR_LRUVEC_STATE) {
        return 0;
    }
    typed_state(ctx, true)
}

/// Whether programs run in softirqs at all, which free most of what the ones above see (see `softirq`).
#[cfg(not(feature = "old"))]
#[btf_tracepoint]
pub fn tb_softirq_began(ctx: BtfTracePointContext) -> i32 {
    softirq_began(ctx.arg(0));
    0
}

#[cfg(not(feature = "old"))]
#[btf_tracepoint]
pub fn tb_softirq_ended(ctx: BtfTracePointContext) -> i32 {
    softirq_ended(ctx.arg(0));
    0
}

#[inline(always)]
fn typed_cgroup(ctx: BtfTracePointContext, op: u8) -> i32 {
    let cgroup: *const u8 = ctx.arg(0);
    let root: *const u8 = typed(cgroup, config!(cgroup_root_member));
    let mut task = 0;
    if op == OP_ATTACH {
        // (dst_cgrp, path, task, threadgroup)
        task = typed(ctx.arg(2), config!(task_pid));
    }
    let fields = Fields {
        hierarchy: typed(root, config!(cgroup_root_number)),
        level: typed(cgroup, config!(cgroup_level)),
        cgroup_id: typed_cgroup_id(cgroup),
        path: ctx.arg(1),
        task,
    };
    cgroup_event(ctx.as_ptr(), op, &fields);
    0
}

#[cfg(not(feature = "old"))]
#[btf_tracepoint]
pub fn tb_cgroup_mkdir(ctx: BtfTracePointContext) -> i32 {
    typed_cgroup(ctx, OP_MKDIR)
}

#[cfg(not(feature = "old"))]
#[btf_tracepoint]
pub fn tb_cgroup_rmdir(ctx: BtfTracePointContext) -> i32 {
    if config!(attribute_slab) == 1 && config!(can_read) == 1 {
        // Read rather than loaded: the verifier lets nobody calculate with a pointer whose type it knows.
        removed(member(ctx.as_ptr() as u64, 0).unwrap_or(0));
    }
    typed_cgroup(ctx, OP_RMDIR)
}

#[cfg(not(feature = "old"))]
#[btf_tracepoint]
pub fn tb_cgroup_release(ctx: BtfTracePointContext) -> i32 {
    typed_cgroup(ctx, OP_RELEASE)
}

#[cfg(not(feature = "old"))]
#[btf_tracepoint]
pub fn tb_cgroup_rename(ctx: BtfTracePointContext) -> i32 {
    typed_cgroup(ctx, OP_RENAME)
}

#[cfg(not(feature = "old"))]
#[btf_tracepoint]
pub fn tb_cgroup_attach_task(ctx: BtfTracePointContext) -> i32 {
    typed_cgroup(ctx, OP_ATTACH)
}

// --- slab: classic tracepoints, raw tracepoints and their BTF-typed form -----------------------

macro_rules! slab_programs {
    ($($tracepoint:ident $raw:ident $second:ident = $op:ident, $event:ident, $pair:ident;)*) => { $(
        #[tracepoint]
        pub fn $tracepoint(ctx: TracePointContext) -> u32 {
            let ctx = ctx.as_ptr().cast_const().cast();
            let accounted = match config!($event.accounted) {
                ABSENT => 2,
                // A `bool` at the end of a word: the record is padded to four bytes.
                place => (field_u32(ctx, place) & 1) as u8,
            };
            slab_event(Object {
                op: $op,
                address: field_u64(ctx, config!($event.object)),
                call_site: field_u64(ctx, config!($event.call_site)),
                bytes_req: field_u64(ctx, config!($event.bytes_req)),
                bytes_alloc: field_u64(ctx, config!($event.bytes_alloc)),
                gfp: field_u64(ctx, config!($event.gfp)) as u32,
                accounted,
                cache: 0,
            });
            0
        }

        #[raw_tracepoint]
        pub fn $raw(ctx: RawTracePointContext) -> i32 {
            slab_arguments!(ctx, $op, $event)
        }

        /// On the same event as the one above (see `second`).
        #[raw_tracepoint]
        pub fn $second(ctx: RawTracePointContext) -> i32 {
            if !is_for_second($pair) {
                return 0;
            }
            slab_arguments!(ctx, $op, $event)
        }
    )* };
}

macro_rules! slab_arguments {
    ($ctx:ident, $op:ident, $event:ident) => {{
        let ctx = $ctx.as_ptr().cast_const().cast();
        slab_event(Object {
            op: $op,
            address: argument(ctx, config!($event.object)),
            call_site: argument(ctx, config!($event.call_site)),
            bytes_req: argument(ctx, config!($event.bytes_req)),
            bytes_alloc: argument(ctx, config!($event.bytes_alloc)),
            gfp: argument(ctx, config!($event.gfp)) as u32,
            accounted: 2,
            cache: argument(ctx, config!($event.cache)),
        });
        0
    }};
}
#[cfg(not(feature = "old"))]
slab_programs! {
    tp_cache_alloc rt_cache_alloc rt_cache_alloc_2 = OP_ALLOC, cache_alloc, PAIR_CACHE_ALLOC;
    tp_kmalloc rt_kmalloc rt_kmalloc_2 = OP_ALLOC, kmalloc, PAIR_KMALLOC;
    tp_cache_free rt_cache_free rt_cache_free_2 = OP_FREE, cache_free, PAIR_CACHE_FREE;
    tp_kfree rt_kfree rt_kfree_2 = OP_FREE, kfree, PAIR_KFREE;
}

// --- context: softirqs and hardirq handlers ---------------------------------------------------

#[cfg(not(feature = "old"))]
#[raw_tracepoint]
pub fn rt_softirq_entry(_: RawTracePointContext) -> i32 {
    interrupt(IN_SOFTIRQ, 1);
    0
}

#[cfg(not(feature = "old"))]
#[raw_tracepoint]
pub fn rt_softirq_exit(_: RawTracePointContext) -> i32 {
    interrupt(IN_SOFTIRQ, 0);
    0
}

#[cfg(not(feature = "old"))]
#[raw_tracepoint]
pub fn rt_hardirq_entry(_: RawTracePointContext) -> i32 {
    interrupt(IN_HARDIRQ, 1);
    0
}

#[cfg(not(feature = "old"))]
#[raw_tracepoint]
pub fn rt_hardirq_exit(_: RawTracePointContext) -> i32 {
    interrupt(IN_HARDIRQ, 0);
    0
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// Kernel helpers that read memory are for GPL-compatible programs.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
