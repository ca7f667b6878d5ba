//! Objects added up by payer, asker, cache, call site and cause: whose place in the sums is where, and
//! what it holds.

use aya_ebpf::{
    bindings::{BPF_ANY, BPF_F_MMAPABLE, BPF_NOEXIST},
    macros::map,
    maps::{Array, HashMap, Stack},
};
use kmem_trace_ebpf::{
    sums::{CACHE_NAME, Cache, LAST, SlabKey, SlabSums},
    totals::{LOST_MAP_FULL, ROLE_SLAB_ALLOC, ROLE_SLAB_FREE},
};

use crate::{
    maps::{add, own_copy, put_back, take, tally},
    read::{attributes, config, member, read_kernel_str},
};

/// Payer, asker, cache, call site and cause → place of their sums. These four sized by userspace.
#[map]
pub static SLAB_PLACES: HashMap<SlabKey, u32> = HashMap::with_max_entries(1, 0);

/// Places that no key has taken yet; filled by userspace.
#[map]
pub static SLAB_FREE: Stack<u32> = Stack::with_max_entries(1, 0);

/// Place → whose it is. Like the totals, read through a mapping (see `maps`).
#[map]
pub static SLAB_KEYS: Array<SlabKey> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Place, a copy for each CPU → sums.
#[map]
pub static SLAB_SUMS: Array<SlabSums> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Address of a `struct kmem_cache` → what it is called.
#[map]
pub static CACHES: HashMap<u64, Cache> = HashMap::with_max_entries(1024, 0);

/// The places that a CPU used last, a share for each CPU: by a few bits of the key, place and 1 more.
/// Sized by userspace.
#[map]
pub static SLAB_LAST: Array<u32> = Array::with_max_entries(1, 0);

/// What leaves as many bits as tell [`LAST`] apart.
const LAST_SHIFT: u32 = 64 - LAST.trailing_zeros();

/// Writes a cache down, over what was at its address before.
#[inline(always)]
fn note_cache(cache: u64, size: u32) {
    let mut entry = Cache {
        name: [0; CACHE_NAME],
        size,
        object_size: member(cache, config!(kmem_cache_object_size)).unwrap_or(0),
        flags: member(cache, config!(kmem_cache_flags)).unwrap_or(0),
        reserved: 0,
    };
    let name: u64 = member(cache, config!(kmem_cache_name)).unwrap_or(0);
    if name != 0 {
        let _ = unsafe {
            read_kernel_str(
                (&raw mut entry.name).cast(),
                CACHE_NAME as u32,
                name as *const _,
            )
        };
    }
    let _ = CACHES.insert(cache, &entry, u64::from(BPF_ANY));
}

/// Takes a place for a key: its number and 1 more; 0 where there is none.
#[inline(always)]
fn take_slab_place(key: &SlabKey) -> u64 {
    let Some(free) = take(&SLAB_FREE) else {
        return 0;
    };
    let Some(entry) = SLAB_KEYS.get_ptr_mut(free) else {
        return 0;
    };
    // Named before anybody else can find it.
    unsafe {
        *entry = *key;
        (&raw mut (*entry).taken).write_volatile(1);
    }
    if SLAB_PLACES
        .insert(key, free, u64::from(BPF_NOEXIST))
        .is_ok()
    {
        return u64::from(free) + 1;
    }
    unsafe { (&raw mut (*entry).taken).write_volatile(0) };
    put_back(&SLAB_FREE, free);
    match SLAB_PLACES.get_ptr(key) {
        Some(found) => u64::from(unsafe { *found }) + 1,
        None => 0,
    }
}

/// The place of a key and 1 more, where this CPU did not just use it; 0 where there is none. What of
/// the key does not fit in `size_and_cause` is 0.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn find_place(
    payer: u64,
    asker: u64,
    cache: u64,
    call_site: u64,
    size_and_cause: u64,
) -> u64 {
    if !attributes() {
        return 0;
    }
    let key = SlabKey {
        payer,
        asker,
        cache,
        call_site,
        cause: (size_and_cause >> 32) as u8,
        taken: 0,
        reserved: [0; 2],
        size: size_and_cause as u32,
    };
    let place = match SLAB_PLACES.get_ptr(&key) {
        Some(found) => u64::from(unsafe { *found }) + 1,
        None => {
            if cache != 0 {
                note_cache(cache, key.size);
            }
            take_slab_place(&key)
        }
    };
    if place != 0
        && let Some(last) = SLAB_LAST.get_ptr_mut(last_of(&key))
    {
        unsafe { last.write_volatile(place as u32) };
    }
    place
}

/// Where this CPU keeps which place a key was last found at.
#[inline(always)]
fn last_of(key: &SlabKey) -> u32 {
    let mixed =
        (key.cache ^ key.call_site.rotate_left(20) ^ key.payer.wrapping_add(key.asker << 8))
            .wrapping_mul(0x9e37_79b9_7f4a_7c15);
    own_copy()
        .wrapping_mul(LAST)
        .wrapping_add((mixed >> LAST_SHIFT) as u32)
}

/// Whether a place is this key's.
#[inline(always)]
fn is_at(place: u32, key: &SlabKey) -> bool {
    let Some(entry) = SLAB_KEYS.get_ptr(place) else {
        return false;
    };
    let there = unsafe { &*entry };
    there.cache == key.cache
        && there.payer == key.payer
        && there.call_site == key.call_site
        && there.asker == key.asker
        && there.size == key.size
        && there.cause == key.cause
        && there.taken == 1
}

/// Adds one object to the sums of its key.
#[inline(always)]
pub fn count(key: &SlabKey, allocation: bool, bytes: u64) {
    // A number, which is read and written whole, and points to what never changes: whatever
    // interrupts us between the two leaves either of them right.
    let mut place = match SLAB_LAST.get_ptr(last_of(key)) {
        Some(last) => u64::from(unsafe { last.read_volatile() }),
        None => 0,
    };
    if place == 0 || !is_at(place as u32 - 1, key) {
        place = find_place(
            key.payer,
            key.asker,
            key.cache,
            key.call_site,
            u64::from(key.size) | u64::from(key.cause) << 32,
        );
    }
    let found = if place == 0 {
        None
    } else {
        let copy = own_copy().wrapping_mul(config!(slab_places));
        SLAB_SUMS.get_ptr_mut(copy.wrapping_add(place as u32 - 1))
    };
    let Some(sums) = found else {
        let role = if allocation {
            ROLE_SLAB_ALLOC
        } else {
            ROLE_SLAB_FREE
        };
        tally(LOST_MAP_FULL + role, 1);
        return;
    };
    unsafe {
        if allocation {
            add(&raw mut (*sums).allocated, 1);
            if key.size == 0 {
                add(&raw mut (*sums).allocated_bytes, bytes);
            }
        } else {
            add(&raw mut (*sums).freed, 1);
            if key.size == 0 {
                add(&raw mut (*sums).freed_bytes, bytes);
            }
        }
    }
}
