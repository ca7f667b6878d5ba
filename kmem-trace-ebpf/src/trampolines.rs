//! Entry points of the fentry and fexit programs: arguments and results as the trampolines hand
//! them over.

use aya_ebpf::{
    EbpfContext as _,
    macros::{fentry, fexit},
    programs::{FEntryContext, FExitContext},
};
use kmem_trace_ebpf::{
    record::{OP_CHARGE, OP_REFUSED, OP_TRY_CHARGE, OP_UNCHARGE},
    totals::{CALLS_BEGUN, CALLS_COUNTED, LOST_UNREAD, ROLE_CHARGE, ROLE_UNCHARGE},
};

use crate::{
    asked,
    attribution::{charged_late, socket_copied, socket_done},
    ledger::counter_changed,
    limit::{Handler, kmem_limit_entered, kmem_limit_written, limit_entered, limit_written},
    maps::{begin, end, lose, tally},
    read::{argument, config, member},
    user_charge_returned,
};

// The kernel skips a program that interrupts itself on its CPU, so that one program a function would
// miss what an interrupt frees meanwhile. Two see each call begin and two see it end; whichever takes
// it off the list of calls under way counts it. An interrupt of an interrupt may still be missed:
// begun less counted says how often.
macro_rules! counter_pairs {
    ($($begin:ident $end:ident = $first:literal, $op:path, $role:ident;)*) => { $(
        #[fentry]
        pub fn $begin(ctx: FEntryContext) -> i32 {
            let ctx: *const u8 = ctx.as_ptr().cast_const().cast();
            if $first {
                tally(CALLS_BEGUN, 1);
            }
            // The first's word counts: what is attached later runs earlier, so that it finds what the
            // second noted. Such a call is over as far as begun less counted is concerned.
            if !begin(ctx as u64) && $first {
                tally(CALLS_COUNTED, 1);
                lose(LOST_UNREAD, $role, argument(ctx, 1));
            }
            0
        }

        #[fexit]
        pub fn $end(ctx: FExitContext) -> i32 {
            let ctx: *const u8 = ctx.as_ptr().cast_const().cast();
            if end(ctx as u64) {
                tally(CALLS_COUNTED, 1);
                counter_changed(
                    ctx.cast_mut().cast(),
                    argument(ctx, 0),
                    argument(ctx, 1),
                    $op(ctx),
                );
            }
            0
        }
    )* };
}

#[inline(always)]
fn tried(ctx: *const u8) -> u8 {
    // `bool`: only the low byte of the register is defined.
    if argument(ctx, 3) & 0xff != 0 {
        OP_TRY_CHARGE
    } else {
        OP_REFUSED
    }
}

#[inline(always)]
fn charged(_: *const u8) -> u8 {
    OP_CHARGE
}

#[inline(always)]
fn uncharged(_: *const u8) -> u8 {
    OP_UNCHARGE
}

counter_pairs! {
    fe_charge_1 fx_charge_1 = true, charged, ROLE_CHARGE;
    fe_charge_2 fx_charge_2 = false, charged, ROLE_CHARGE;
    fe_uncharge_1 fx_uncharge_1 = true, uncharged, ROLE_UNCHARGE;
    fe_uncharge_2 fx_uncharge_2 = false, uncharged, ROLE_UNCHARGE;
    fe_try_charge_1 fx_try_charge_1 = true, tried, ROLE_CHARGE;
    fe_try_charge_2 fx_try_charge_2 = false, tried, ROLE_CHARGE;
}

// Where the kernel lets programs interrupt themselves (before 5.12), one a function is enough.

#[fentry]
pub fn fe_counter_charge(ctx: FEntryContext) -> i32 {
    let ctx: *const u8 = ctx.as_ptr().cast_const().cast();
    counter_changed(
        ctx.cast_mut().cast(),
        argument(ctx, 0),
        argument(ctx, 1),
        OP_CHARGE,
    );
    0
}

#[fentry]
pub fn fe_counter_uncharge(ctx: FEntryContext) -> i32 {
    let ctx: *const u8 = ctx.as_ptr().cast_const().cast();
    counter_changed(
        ctx.cast_mut().cast(),
        argument(ctx, 0),
        argument(ctx, 1),
        OP_UNCHARGE,
    );
    0
}

#[fexit]
pub fn fx_counter_try_charge(ctx: FExitContext) -> i32 {
    let ctx: *const u8 = ctx.as_ptr().cast_const().cast();
    counter_changed(
        ctx.cast_mut().cast(),
        argument(ctx, 0),
        argument(ctx, 1),
        tried(ctx),
    );
    0
}

#[fexit]
pub fn fx_user_charge(ctx: FExitContext) -> i32 {
    let ctx: *const u8 = ctx.as_ptr().cast_const().cast();
    let memcg = argument(ctx, config!(user_charge_memcg));
    user_charge_returned(
        ctx.cast_mut().cast(),
        memcg,
        asked(memcg, argument(ctx, config!(user_charge_mm))),
        argument(ctx, config!(user_charge_pages)),
        argument(ctx, config!(user_charge_gfp)),
        argument(ctx, config!(user_charge_args)),
    );
    0
}

/// `bool kmem_cache_charge(void *objp, gfp_t gfpflags)`.
#[fexit]
pub fn fx_cache_charge(ctx: FExitContext) -> i32 {
    let ctx = ctx.as_ptr().cast_const().cast();
    if argument(ctx, 2) & 0xff != 0 {
        charged_late(argument(ctx, 0));
    }
    0
}

/// `sk_clone_lock(const struct sock *sk, gfp_t priority)`, and `sk_clone` that begins like it.
#[fentry]
pub fn fe_sk_clone(ctx: FEntryContext) -> i32 {
    // Read rather than loaded: the verifier lets nobody calculate with a pointer whose type it knows.
    if let Some(socket) = member(ctx.as_ptr() as u64, 0) {
        socket_copied(socket);
    }
    0
}

#[fexit]
pub fn fx_sk_clone(_: FExitContext) -> i32 {
    socket_done();
    0
}

#[fentry]
pub fn fe_limit_kmem(ctx: FEntryContext) -> i32 {
    let ctx = ctx.as_ptr().cast_const().cast();
    kmem_limit_entered(
        argument(ctx, config!(kmem_limit_args.target)),
        argument(ctx, config!(kmem_limit_args.value)),
    );
    0
}

#[fexit]
pub fn fx_limit_kmem(ctx: FExitContext) -> i32 {
    let ctx: *const u8 = ctx.as_ptr().cast_const().cast();
    kmem_limit_written(
        ctx.cast_mut().cast(),
        i64::from(argument(ctx, config!(kmem_limit_args.count)) as i32),
    );
    0
}

/// A fentry or fexit program serves one function: one pair for each handler.
macro_rules! limit_handlers {
    ($($entry:ident $exit:ident;)*) => { $(
        #[fentry]
        pub fn $entry(ctx: FEntryContext) -> i32 {
            let ctx = ctx.as_ptr().cast_const().cast();
            limit_entered(handler!(argument, ctx));
            0
        }

        #[fexit]
        pub fn $exit(ctx: FExitContext) -> i32 {
            let ctx: *const u8 = ctx.as_ptr().cast_const().cast();
            limit_written(
                ctx.cast_mut().cast(),
                i64::from(argument(ctx, config!(limit_args.count)) as i32),
            );
            0
        }
    )* };
}
limit_handlers! {
    fe_limit_write fx_limit_write;
    fe_limit_high fx_limit_high;
    fe_limit_min fx_limit_min;
    fe_limit_low fx_limit_low;
    fe_limit_swap fx_limit_swap;
}
