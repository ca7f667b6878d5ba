//! Slab objects that pass no tracepoint: many in one call, `kfree_rcu` into sheaves, and what BPF
//! maps allocate in any context; and frees whose tracepoint comes too late. Entry points and the
//! walk over an array of objects; what is done with each is `slab_event`'s.
//!
//! But for the latter, none of these functions falls back to one that fires an event for the same
//! object (mm/slub.c: they share `slab_post_alloc_hook` and `slab_free_hook` with those that do, below
//! the tracepoints), so nothing is counted twice.

use aya_ebpf::{
    EbpfContext as _,
    macros::{fentry, fexit},
    programs::{FEntryContext, FExitContext},
};
use kmem_trace_ebpf::{
    record::{OP_ALLOC, OP_FREE},
    totals::SLAB_MISREAD,
};

use crate::{
    maps::tally,
    read::{config, member, word_at},
    slab::{Object, slab_event},
};

/// Objects of one call that are looked at; what is beyond counts as misread. The largest batch that
/// the kernel makes is a page of pointers less a header (`KVFREE_BULK_MAX_ENTR`).
const MOST: u32 = 512;
/// Kernel text and modules are the top 2 GiB of addresses.
const TEXT: u64 = 0xffff_ffff_8000_0000;
/// How far into a function the call of its trampoline can be: `endbr64` and `call`.
const CALL_WITHIN: u64 = 32;

/// One object, with the operation in the upper half of `how` and gfp flags in the lower. Global, of
/// numbers alone, so that the verifier looks into it once and not at each turn of the walk.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn slab_object(address: u64, cache: u64, call_site: u64, how: u64) -> u64 {
    slab_event(Object {
        op: (how >> 32) as u8,
        address,
        call_site,
        bytes_req: 0,
        bytes_alloc: 0,
        gfp: how as u32,
        accounted: 2,
        cache,
    });
    0
}

/// Argument `n`, read rather than loaded: no verifier hands a pointer whose type it knows to a
/// function of numbers, and older ones load no pointer to a pointer at all.
#[inline(always)]
fn argument(ctx: u64, n: u32) -> u64 {
    word_at(ctx.wrapping_add(u64::from(n) * 8)).0
}

#[inline(always)]
fn how(op: u8, gfp: u64) -> u64 {
    (u64::from(op) << 32) | (gfp & 0xffff_ffff)
}

/// Each object of `array`. Nothing in here branches but the end, or the verifier would have two
/// states for each turn.
#[inline(always)]
fn each(array: u64, count: u32, cache: u64, call_site: u64, how: u64) {
    let mut unread = 0;
    let mut place = 0;
    while place < MOST {
        if place >= count {
            break;
        }
        let (object, failed) = word_at(array.wrapping_add(u64::from(place) * 8));
        unread += failed;
        slab_object(object, cache, call_site, how);
        place += 1;
    }
    let beyond = if count > MOST { count - MOST } else { 0 };
    if unread + u64::from(beyond) > 0 {
        tally(SLAB_MISREAD, unread + u64::from(beyond));
    }
}

/// Who called `kmem_cache_alloc_bulk`, from its trampoline's stack frame
/// (`arch_prepare_bpf_trampoline`): four arguments and the result, then the frame pointer, then
/// where the trampoline returns to. That is in the function, and the caller above it; where the
/// function jumps to its trampoline it is the caller itself. Else the function.
#[inline(always)]
fn bulk_caller(ctx: u64) -> u64 {
    const BACK: u32 = 6 * 8;
    let function = config!(bulk_alloc);
    let mut caller: u64 = member(ctx, BACK).unwrap_or(0);
    if function == 0 {
        return 0;
    }
    if caller.wrapping_sub(function) < CALL_WITHIN {
        caller = member(ctx, BACK + 8).unwrap_or(0);
    }
    if caller >= TEXT { caller } else { function }
}

/// `kmem_cache_alloc_bulk(struct kmem_cache *s, gfp_t flags, size_t size, void **p)`: all of them
/// or none.
#[fexit]
pub fn fx_alloc_bulk(ctx: FExitContext) -> i32 {
    let ctx = ctx.as_ptr() as u64;
    let result = argument(ctx, 4);
    let made = if config!(slab_paths.bulk_returns_bool) == 1 {
        result & 0xff
    } else {
        result & 0xffff_ffff
    };
    if made != 0 {
        each(
            argument(ctx, 3),
            argument(ctx, 2) as u32,
            argument(ctx, 0),
            bulk_caller(ctx),
            how(OP_ALLOC, argument(ctx, 1)),
        );
    }
    0
}

/// `kmem_cache_free_bulk(struct kmem_cache *s, size_t size, void **p)`; no cache: of any.
#[fentry]
pub fn fe_free_bulk(ctx: FEntryContext) -> i32 {
    let ctx = ctx.as_ptr() as u64;
    each(
        argument(ctx, 2),
        argument(ctx, 1) as u32,
        argument(ctx, 0),
        0,
        how(OP_FREE, 0),
    );
    0
}

/// `bool __kfree_rcu_sheaf(struct kmem_cache *s, void *obj)`: taken, to be freed after a grace
/// period. Counted now, a little early; where it is not taken, it goes by `kmem_cache_free_bulk`.
#[fexit]
pub fn fx_rcu_sheaf(ctx: FExitContext) -> i32 {
    let ctx = ctx.as_ptr() as u64;
    if argument(ctx, config!(slab_paths.sheaf_args)) & 0xff != 0 {
        slab_object(argument(ctx, 1), argument(ctx, 0), 0, how(OP_FREE, 0));
    }
    0
}

/// `void *kmalloc_nolock(size_t size, gfp_t gfp_flags, int node)`.
#[fexit]
pub fn fx_kmalloc_nolock(ctx: FExitContext) -> i32 {
    let ctx = ctx.as_ptr() as u64;
    let object = argument(ctx, config!(slab_paths.nolock_args));
    let gfp = argument(ctx, config!(slab_paths.nolock_gfp));
    slab_object(object, 0, 0, how(OP_ALLOC, gfp));
    0
}

/// `kfree_nolock(const void *object)`.
#[fentry]
pub fn fe_kfree_nolock(ctx: FEntryContext) -> i32 {
    let ctx = ctx.as_ptr() as u64;
    slab_object(argument(ctx, 0), 0, 0, how(OP_FREE, 0));
    0
}

/// `kmem_cache_free(struct kmem_cache *s, void *x)`, where its event comes when the object no longer
/// says who paid.
#[fentry]
pub fn fe_cache_free(ctx: FEntryContext) -> i32 {
    let ctx = ctx.as_ptr() as u64;
    slab_object(argument(ctx, 1), argument(ctx, 0), 0, how(OP_FREE, 0));
    0
}

/// `kfree(const void *objp)`: its event comes in time, but a role is served by one mechanism.
#[fentry]
pub fn fe_kfree(ctx: FEntryContext) -> i32 {
    let ctx = ctx.as_ptr() as u64;
    slab_object(argument(ctx, 0), 0, 0, how(OP_FREE, 0));
    0
}
