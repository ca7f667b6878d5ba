//! Who pays for a slab object, who asked for it, and why nobody paid: asked of the object itself,
//! added up in the kernel.
//!
//! The charge is done before the allocation events fire and undone after the free events, so at
//! both moments the object's slab page knows its payer, on whatever path it came there; the same
//! holds for objects that are older than the trace.
//!
//! In functions of their own, which stay so: each has its own stack frame, of which all that are
//! under way at a time share 512 bytes. They pass numbers only, 0 for none. Nothing is kept in
//! shared scratch memory, so a run that an interrupt nests into another one disturbs nothing.

use aya_ebpf::{
    bindings::{BPF_ANY, BPF_F_MMAPABLE, BPF_NOEXIST},
    helpers::{bpf_get_current_task, generated::bpf_probe_read_kernel_str},
    macros::map,
    maps::{Array, HashMap, PerCpuArray, Stack},
};
use kmem_trace_ebpf::{
    config::ABSENT,
    sums::{
        CACHE_NAME, CAUSE_BEFORE_TRACE, CAUSE_CHARGED, CAUSE_HARDIRQ, CAUSE_KERNEL_THREAD,
        CAUSE_NOKMEM, CAUSE_NOT_ACCOUNTABLE, CAUSE_NOT_SLAB, CAUSE_ROOT, CAUSE_SOFTIRQ,
        CAUSE_UNKNOWN, Cache, OTHERS, Origin, SlabKey, SlabSums,
    },
    totals::{
        FORGET_SLAB, GIVE_BACK, GIVE_BACK_SLAB, LOST_MAP_FULL, LOST_OBJECTS, ROLE_SLAB_ALLOC,
        ROLE_SLAB_FREE, SLAB_MISREAD, SWITCH_NO_CALL_SITES,
    },
};

use crate::{
    maps::{FREE, add, own_copy, switched, take, tally},
    memcg::{cgroup_of, id_of, is_traced, memcg_of_task},
    read::{config, member},
    slab::Object,
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

/// Objects that nobody pays for have no owner to read: address → where they came from, for those
/// that a traced cgroup's task asked for. Sized by userspace.
#[map]
pub static OWNERLESS: HashMap<u64, Origin> = HashMap::with_max_entries(1, 0);

/// `vmemmap_base` less what `page_offset_base` contributes to it; 0 until known.
#[map]
pub static MEMORY_MAP: Array<u64> = Array::with_max_entries(1, 0);

/// How deep this CPU is in softirqs and in hardirq handlers.
#[map]
pub static CONTEXT: PerCpuArray<[u32; 2]> = PerCpuArray::with_max_entries(1, 0);

/// A listening socket is being copied on this CPU: by which task, or over which an interrupt does
/// it, and which memory cgroup pays for the listener.
#[map]
pub static LISTENER: PerCpuArray<[u64; 2]> = PerCpuArray::with_max_entries(1, 0);

const SOFTIRQ: usize = 0;
const HARDIRQ: usize = 1;
const PAGE_SHIFT: u32 = 12;
/// The top 4 GiB of addresses are kernel text and what is fixed, none of it the memory map.
const COMPOUND_MASK: u64 = 0xffff_ffff_0000_0000;
/// `PF_KTHREAD` (include/linux/sched.h).
const PF_KTHREAD: u32 = 0x0020_0000;

/// A softirq or a hardirq handler begins (`by` = 1) or ends (−1) on this CPU.
#[inline(always)]
pub fn interrupt(kind: usize, by: i32) {
    if let Some(context) = CONTEXT.get_ptr_mut(0) {
        unsafe {
            let depth = (&raw mut (*context)).cast::<u32>().add(kind & 1);
            // An exit without its entry was under way when we attached.
            let now = (*depth).wrapping_add(by as u32);
            *depth = if now > 64 { 0 } else { now };
        }
    }
}

/// `page_to_pfn` and back on x86-64 in one number: `vmemmap_base` less what `page_offset_base`
/// contributes to it. Both are variables under KASLR. 0 where they cannot be found yet.
#[inline(never)]
fn find_memory_map(cache: u64) -> u64 {
    let found = match from_variables() {
        Some(found) => found,
        None => from_a_slab_of(cache).unwrap_or(0),
    };
    if found != 0
        && let Some(known) = MEMORY_MAP.get_ptr_mut(0)
    {
        unsafe { *known = found };
    }
    found
}

#[inline(always)]
fn from_variables() -> Option<u64> {
    if config!(vmemmap_base) == 0 || config!(page_offset_base) == 0 {
        return None;
    }
    let vmemmap: u64 = member(config!(vmemmap_base), 0)?;
    let offset: u64 = member(config!(page_offset_base), 0)?;
    let pages = (offset >> PAGE_SHIFT).wrapping_mul(u64::from(config!(page_size)));
    Some(vmemmap.wrapping_sub(pages))
}

/// The same from a cache, where the symbol table has no variables: a partial slab's `freelist` is
/// the address of an object in it, and slabs are aligned to their size.
#[inline(always)]
fn from_a_slab_of(cache: u64) -> Option<u64> {
    let node: u64 = member(cache, config!(kmem_cache_node))?;
    let first: u64 = member(node, config!(node_partial))?;
    if first == node.wrapping_add(u64::from(config!(node_partial))) {
        return None;
    }
    let slab = first.wrapping_sub(u64::from(config!(slab_list)));
    if member::<u64>(slab, config!(slab_cache)) != Some(cache) {
        return None;
    }
    let object: u64 = member(slab, config!(slab_freelist)).filter(|object| *object != 0)?;
    // `oo_order`: the upper half of `struct kmem_cache_order_objects`. A slab may have been made
    // with the smaller order `min`; where the two differ, this cache tells nothing.
    let order = member::<u32>(cache, config!(kmem_cache_oo))? >> 16;
    let smaller = member::<u32>(cache, config!(kmem_cache_min))? >> 16;
    if order != smaller || order > 10 {
        return None;
    }
    let first_page = (object >> PAGE_SHIFT) & !((1u64 << order) - 1);
    Some(slab.wrapping_sub(first_page.wrapping_mul(u64::from(config!(page_size)))))
}

#[inline(always)]
fn memory_map(cache: u64) -> u64 {
    let known = match MEMORY_MAP.get_ptr(0) {
        Some(known) => unsafe { *known },
        None => 0,
    };
    if known != 0 {
        return known;
    }
    find_memory_map(cache)
}

/// The `struct slab` (5.17 and later) or head `struct page` that an object lies in; 0 where it
/// lies in none, or where that cannot be told.
#[inline(never)]
fn slab_of(address: u64, map: u64) -> u64 {
    let pages = (address >> PAGE_SHIFT).wrapping_mul(u64::from(config!(page_size)));
    let mut slab = map.wrapping_add(pages);
    let head: u64 = member(slab, config!(page_compound_head)).unwrap_or(0);
    if head & 1 == 1 {
        // `_compound_head`: the address of the head, or a mask that makes it from the tail's
        // (`compound_info_has_mask`). No page has its `struct page` where masks are.
        slab = if head >= COMPOUND_MASK {
            slab & head
        } else {
            head.wrapping_sub(1)
        };
    }
    if is_slab(slab) { slab } else { 0 }
}

/// `PageSlab`: a flag of the page, or its type, by generation.
#[inline(always)]
fn is_slab(page: u64) -> bool {
    if config!(page_type) != ABSENT {
        let kind: u32 = member(page, config!(page_type)).unwrap_or(0);
        return kind >> 24 == config!(page_type_slab);
    }
    let flags: u64 = member(page, config!(page_flags)).unwrap_or(0);
    (flags >> (config!(page_flag_slab) & 63)) & 1 == 1
}

/// The memory cgroup that pays for an object, `slab_objcgs()[obj_to_index()]`; 0: nobody.
#[inline(never)]
fn payer_of(slab: u64, address: u64, map: u64, size: u64) -> u64 {
    // The low bits are flags (`MEMCG_DATA_OBJCGS`, `OBJEXTS_…`).
    let vector = member::<u64>(slab, config!(slab_vector)).unwrap_or(0) & !7;
    let page_size = u64::from(config!(page_size));
    // Said to the compiler too: a division that may panic is none that the verifier takes.
    if vector == 0 || size == 0 || page_size == 0 {
        return 0;
    }
    let first = (slab.wrapping_sub(map) / page_size) << PAGE_SHIFT;
    let index = address.wrapping_sub(first) / size;
    let mut stride = u64::from(config!(vector_stride));
    if config!(slab_in_object) != ABSENT {
        let word: u32 = member(slab, config!(slab_in_object)).unwrap_or(0);
        if word & config!(slab_in_object_mask) != 0 {
            stride = size;
        }
    }
    let element = vector.wrapping_add(index.wrapping_mul(stride));
    let objcg = member::<u64>(element, config!(vector_objcg)).unwrap_or(0) & !7;
    member(objcg, config!(objcg_memcg)).unwrap_or(0)
}

/// Writes a cache down.
#[inline(never)]
fn note_cache(cache: u64, size: u64) -> u64 {
    let mut entry = Cache {
        name: [0; CACHE_NAME],
        size: size as u32,
        object_size: member(cache, config!(kmem_cache_object_size)).unwrap_or(0),
        flags: member(cache, config!(kmem_cache_flags)).unwrap_or(0),
        reserved: 0,
    };
    let name: u64 = member(cache, config!(kmem_cache_name)).unwrap_or(0);
    if name != 0 {
        let _ = unsafe {
            bpf_probe_read_kernel_str(
                (&raw mut entry.name).cast(),
                CACHE_NAME as u32,
                name as *const _,
            )
        };
    }
    u64::from(CACHES.insert(cache, &entry, u64::from(BPF_NOEXIST)).is_ok())
}

/// Takes a place for a key: its number and 1 more; 0 where there is none.
#[inline(never)]
fn take_place(key: &SlabKey) -> u64 {
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
    let _ = SLAB_FREE.push(free, 0);
    match SLAB_PLACES.get_ptr(key) {
        Some(found) => u64::from(unsafe { *found }) + 1,
        None => 0,
    }
}

/// Adds one object to the sums of its key.
#[inline(always)]
fn count(key: &SlabKey, allocation: bool, bytes: u64) {
    let place = match SLAB_PLACES.get_ptr(key) {
        Some(found) => u64::from(unsafe { *found }) + 1,
        None => take_place(key),
    };
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
            add(&raw mut (*sums).allocated_bytes, bytes);
        } else {
            add(&raw mut (*sums).freed, 1);
            add(&raw mut (*sums).freed_bytes, bytes);
        }
    }
}

/// Traced: the cgroup's id; not traced: [`OTHERS`]; none: 0.
#[inline(never)]
fn named(memcg: u64) -> u64 {
    let Some(cgroup) = cgroup_of(memcg) else {
        return 0;
    };
    if is_traced(cgroup) {
        id_of(cgroup).unwrap_or(0)
    } else {
        OTHERS
    }
}

/// Why nobody was charged, by what the charge path itself looks at
/// (`memcg_slab_pre_alloc_hook`, `current_obj_cgroup`).
#[inline(never)]
fn cause(gfp: u64, cache: u64, asking: u64) -> u64 {
    let flags: u32 = member(cache, config!(kmem_cache_flags)).unwrap_or(0);
    let opted_in = (gfp as u32 & config!(gfp_account)) | (flags & config!(slab_account));
    if opted_in == 0 {
        return u64::from(CAUSE_NOT_ACCOUNTABLE);
    }
    if config!(nokmem) == 1 {
        return u64::from(CAUSE_NOKMEM);
    }
    if let Some(context) = CONTEXT.get_ptr(0) {
        let depths = context.cast::<u32>();
        if unsafe { *depths.add(HARDIRQ) } > 0 {
            return u64::from(CAUSE_HARDIRQ);
        }
        if unsafe { *depths.add(SOFTIRQ) } > 0 {
            return u64::from(CAUSE_SOFTIRQ);
        }
    }
    let task = unsafe { bpf_get_current_task() };
    let flags: u32 = member(task, config!(task_flags)).unwrap_or(0);
    if flags & PF_KTHREAD != 0 {
        return u64::from(CAUSE_KERNEL_THREAD);
    }
    let level = cgroup_of(asking).and_then(|cgroup| member::<u32>(cgroup, config!(cgroup_level)));
    if level == Some(0) {
        return u64::from(CAUSE_ROOT);
    }
    u64::from(CAUSE_UNKNOWN)
}

/// Keeps where an object without a payer came from.
#[inline(never)]
fn keep_origin(address: u64, asker: u64, call_site: u64, cause: u64, bytes: u64) -> u64 {
    let origin = Origin {
        asker,
        call_site,
        bytes: bytes as u32,
        cause: cause as u8,
        reserved: [0; 3],
    };
    let kept = OWNERLESS
        .insert(address, &origin, u64::from(BPF_ANY))
        .is_ok();
    if !kept {
        tally(LOST_OBJECTS, 1);
    }
    u64::from(kept)
}

/// An object that nobody paid for is paid for now: from the sums of the unpaid to its payer's. One
/// that is not remembered leaves what is older than the trace, or others', if `always`.
#[inline(never)]
fn move_to_payer(address: u64, cache: u64, size: u64, payer: u64, always: u64) -> u64 {
    let mut key = SlabKey {
        payer: 0,
        asker: OTHERS,
        cache,
        call_site: 0,
        cause: CAUSE_BEFORE_TRACE,
        taken: 0,
        reserved: [0; 6],
    };
    match OWNERLESS.get_ptr(address) {
        Some(origin) => {
            unsafe {
                key.asker = (*origin).asker;
                key.call_site = (*origin).call_site;
                key.cause = (*origin).cause;
            }
            let _ = OWNERLESS.remove(address);
        }
        None if always == 1 => {}
        None => return 0,
    }
    count(&key, false, size);
    key.payer = payer;
    key.cause = CAUSE_CHARGED;
    count(&key, true, size);
    1
}

/// A copy of a socket begins: whoever pays for the listener is whom the new one works for.
#[inline(always)]
pub fn socket_copied(socket: u64) {
    if config!(attribute_slab) != 1 || config!(can_read) != 1 {
        return;
    }
    let map = memory_map(0);
    let slab = if map == 0 { 0 } else { slab_of(socket, map) };
    if slab == 0 {
        return;
    }
    let cache: u64 = member(slab, config!(slab_cache)).unwrap_or(0);
    let size = u64::from(member::<u32>(cache, config!(kmem_cache_size)).unwrap_or(0));
    let payer = payer_of(slab, socket, map, size);
    note_listener(unsafe { bpf_get_current_task() }, payer);
}

/// It ends.
#[inline(always)]
pub fn socket_done() {
    note_listener(0, 0);
}

#[inline(always)]
fn note_listener(task: u64, payer: u64) {
    if let Some(listener) = LISTENER.get_ptr_mut(0) {
        let words = listener.cast::<u64>();
        unsafe {
            words.write(task);
            words.add(1).write(payer);
        }
    }
}

/// The memory cgroup that asks: the listener's, of a socket that is being copied; else the task's.
#[inline(never)]
fn asker_of(task: u64) -> u64 {
    if let Some(listener) = LISTENER.get_ptr(0) {
        let words = listener.cast::<u64>();
        let (by, payer) = unsafe { (*words, *words.add(1)) };
        if by == task && payer != 0 {
            return payer;
        }
    }
    memcg_of_task(task).unwrap_or(0)
}

/// `kmem_cache_charge` succeeded on an object.
#[inline(always)]
pub fn charged_late(address: u64) {
    if config!(attribute_slab) != 1 || config!(can_read) != 1 {
        return;
    }
    let map = memory_map(0);
    if map == 0 {
        return;
    }
    let slab = slab_of(address, map);
    let cache: u64 = member(slab, config!(slab_cache)).unwrap_or(0);
    let size = u64::from(member::<u32>(cache, config!(kmem_cache_size)).unwrap_or(0));
    let payer = named(payer_of(slab, address, map, size));
    if slab != 0 && payer != 0 {
        move_to_payer(address, cache, size, payer, 1);
    }
}

/// An object was handed out (or, `allocation` false, given back: its payer is still written on it).
#[inline(always)]
pub fn moved(object: &Object, allocation: bool) {
    // NULL, and `ZERO_SIZE_PTR`.
    if object.address < 4096 {
        return;
    }
    let map = memory_map(object.cache);
    if map == 0 {
        tally(SLAB_MISREAD, 1);
        return;
    }
    let slab = slab_of(object.address, map);
    let cache: u64 = member(slab, config!(slab_cache)).unwrap_or(0);
    let size = u64::from(member::<u32>(cache, config!(kmem_cache_size)).unwrap_or(0));
    if slab != 0 && (size == 0 || object.cache != 0 && object.cache != cache) {
        tally(SLAB_MISREAD, 1);
        return;
    }
    if slab != 0 && CACHES.get_ptr(cache).is_none() {
        note_cache(cache, size);
    }
    let mut payer = 0;
    if slab != 0 {
        payer = named(payer_of(slab, object.address, map, size));
    }
    let mut key = SlabKey {
        payer,
        asker: 0,
        cache,
        call_site: 0,
        cause: CAUSE_CHARGED,
        taken: 0,
        reserved: [0; 6],
    };
    let mut bytes = if slab == 0 { object.bytes_alloc } else { size };
    if allocation {
        if payer != 0 && config!(late_charges_unseen) == 1 {
            // Of an object that was here before and whose end was not seen.
            let _ = OWNERLESS.remove(object.address);
        }
        let asking = asker_of(unsafe { bpf_get_current_task() });
        key.asker = named(asking);
        let ours = (payer != 0 && payer != OTHERS) || (key.asker != 0 && key.asker != OTHERS);
        if ours && !switched(SWITCH_NO_CALL_SITES) {
            key.call_site = object.call_site;
        }
        if payer == 0 {
            key.cause = if slab == 0 {
                CAUSE_NOT_SLAB
            } else {
                cause(u64::from(object.gfp), cache, asking) as u8
            };
            if ours {
                keep_origin(
                    object.address,
                    key.asker,
                    key.call_site,
                    u64::from(key.cause),
                    bytes,
                );
            }
        }
    } else if payer != 0 {
        if config!(late_charges_unseen) == 1 {
            move_to_payer(object.address, cache, size, payer, 0);
        }
    } else {
        // Others' objects, or older than the trace: nothing says which.
        key.asker = OTHERS;
        key.cause = if slab == 0 {
            CAUSE_NOT_SLAB
        } else {
            CAUSE_BEFORE_TRACE
        };
        if let Some(origin) = OWNERLESS.get_ptr(object.address) {
            unsafe {
                key.asker = (*origin).asker;
                key.call_site = (*origin).call_site;
                key.cause = (*origin).cause;
                if slab == 0 {
                    bytes = u64::from((*origin).bytes);
                }
            }
            let _ = OWNERLESS.remove(object.address);
        }
    }
    count(&key, allocation, bytes);
}

/// Userspace has taken what a place held, or is about to: a run on request, because a system call on
/// the map would keep kprobe programs from running meanwhile.
#[inline(always)]
pub fn give_back(what: u64, place: u32) -> u32 {
    let done = match what {
        GIVE_BACK => FREE.push(place, 0).is_ok(),
        FORGET_SLAB => forget(place),
        GIVE_BACK_SLAB => SLAB_FREE.push(place, 0).is_ok(),
        _ => false,
    };
    u32::from(done)
}

#[inline(always)]
fn forget(place: u32) -> bool {
    let Some(entry) = SLAB_KEYS.get_ptr(place) else {
        return false;
    };
    let mut key = unsafe { *entry };
    key.taken = 0;
    // It may have been made anew elsewhere meanwhile.
    let found = SLAB_PLACES.get_ptr(&key).map(|it| unsafe { *it });
    found == Some(place) && SLAB_PLACES.remove(&key).is_ok()
}

pub const IN_SOFTIRQ: usize = SOFTIRQ;
pub const IN_HARDIRQ: usize = HARDIRQ;
