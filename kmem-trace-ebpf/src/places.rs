//! Places of the totals and of the slab sums: filled before anything is attached, given back when
//! userspace has taken what they held. A run on request, because a system call on a map would keep
//! kprobe programs from running meanwhile.

use aya_ebpf::maps::Stack;
use kmem_trace_ebpf::totals::{FILL, FILL_MOST, FILL_SLAB, FORGET_SLAB, GIVE_BACK, GIVE_BACK_SLAB};

use crate::{
    maps::FREE,
    slab_sums::{SLAB_FREE, SLAB_KEYS, SLAB_PLACES},
};

/// Userspace has taken what a place held, or is about to: a run on request, because a system call on
/// the map would keep kprobe programs from running meanwhile.
#[inline(always)]
pub fn give_back(what: u64, place: u32, count: u32) -> u32 {
    let done = match what {
        FILL => fill(&FREE, place, count),
        FILL_SLAB => fill(&SLAB_FREE, place, count),
        GIVE_BACK => FREE.push(place, 0).is_ok(),
        FORGET_SLAB => forget(place),
        GIVE_BACK_SLAB => SLAB_FREE.push(place, 0).is_ok(),
        _ => false,
    };
    u32::from(done)
}

/// Puts `count` places into a map of free ones, from the last one down: the first is to be taken first.
#[inline(always)]
fn fill(free: &Stack<u32>, last: u32, count: u32) -> bool {
    for below in 0..FILL_MOST {
        if below >= count {
            break;
        }
        if free.push(last.wrapping_sub(below), 0).is_err() {
            return false;
        }
    }
    true
}

/// In [`SlabKey::taken`]: still to be read, no longer to be added to.
const FORGOTTEN: u8 = 2;

#[inline(always)]
fn forget(place: u32) -> bool {
    let Some(entry) = SLAB_KEYS.get_ptr_mut(place) else {
        return false;
    };
    let mut key = unsafe { *entry };
    key.taken = 0;
    // It may have been made anew elsewhere meanwhile.
    let found = SLAB_PLACES.get_ptr(&key).map(|it| unsafe { *it });
    let done = found == Some(place) && SLAB_PLACES.remove(&key).is_ok();
    if done {
        // No CPU that used it last takes it for its own any more.
        unsafe { (&raw mut (*entry).taken).write_volatile(FORGOTTEN) };
    }
    done
}
