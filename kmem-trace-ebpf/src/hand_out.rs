//! The totals handed out and cleared on request, where userspace cannot map them (before 5.5).
//!
//! Not by a look-up from userspace: during one the kernel runs no kprobe program on that CPU
//! (`bpf_prog_active`), and what an interrupt frees meanwhile would be missed. A run on request does
//! not take that guard (`bpf_prog_test_run_skb`, net/bpf/test_run.c).

use aya_ebpf::{macros::classifier, maps::Array, programs::TcContext};
use kmem_trace_ebpf::{
    handed::{self, ELEMENTS_AT, HANDED_OUT, MOST, REQUEST_AT, Request},
    totals::{Place, Totals},
};

use crate::{
    maps::{CGROUPS, FREE, TALLY, TOTALS},
    read::config,
};

const REFUSED: i32 = 0;

/// Attached to nothing.
#[classifier]
pub fn sc_hand_out(ctx: TcContext) -> i32 {
    let Ok(request) = ctx.load::<Request>(REQUEST_AT) else {
        return REFUSED;
    };
    match request.what {
        handed::CGROUPS => hand_out(&ctx, &CGROUPS, &request),
        handed::TOTALS => hand_out(&ctx, &TOTALS, &request),
        handed::TALLY => hand_out(&ctx, &TALLY, &request),
        handed::CLEAR => clear(&request),
        handed::GIVE_BACK => give_back(request.first),
        _ => REFUSED,
    }
}

#[inline(always)]
fn hand_out<T: Copy>(ctx: &TcContext, array: &Array<T>, request: &Request) -> i32 {
    let mut i = 0;
    while i < MOST {
        if i >= request.count {
            return HANDED_OUT as i32;
        }
        let Some(element) = array.get_ptr(request.first.wrapping_add(i)) else {
            return REFUSED;
        };
        // Each word whole, though another CPU writes to it: the helper copies by bytes.
        let copy = unsafe { element.read_volatile() };
        let place = ELEMENTS_AT + i as usize * size_of::<T>();
        if ctx.store(place, &copy, 0).is_err() {
            return REFUSED;
        }
        i += 1;
    }
    HANDED_OUT as i32
}

/// Clears totals that no program adds to any more.
#[inline(always)]
fn clear(request: &Request) -> i32 {
    let mut i = 0;
    while i < MOST {
        if i >= request.count {
            return HANDED_OUT as i32;
        }
        let copy = request.copy.wrapping_add(i);
        let index = copy
            .wrapping_mul(config!(places))
            .wrapping_add(request.first);
        let Some(totals) = TOTALS.get_ptr_mut(index) else {
            return REFUSED;
        };
        unsafe { totals.write_volatile(Totals::default()) };
        i += 1;
    }
    HANDED_OUT as i32
}

#[inline(always)]
fn give_back(place: u32) -> i32 {
    let Some(entry) = CGROUPS.get_ptr_mut(place) else {
        return REFUSED;
    };
    unsafe { entry.write_volatile(Place::default()) };
    match FREE.push(place, 0) {
        Ok(()) => HANDED_OUT as i32,
        Err(_) => REFUSED,
    }
}
