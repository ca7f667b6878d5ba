//! Who pays for a slab object, who asked for it, and why nobody paid: asked of the object itself,
//! added up in the kernel.
//!
//! The charge is done before the allocation events fire and undone after the free events, so at
//! both moments the object's slab page knows its payer, on whatever path it came there; the same
//! holds for objects that are older than the trace.

use aya_ebpf::{
    bindings::{BPF_ANY, BPF_NOEXIST},
    helpers::{bpf_get_current_task, bpf_probe_read_kernel, generated::bpf_probe_read_kernel_str},
    macros::map,
    maps::{Array, HashMap, PerCpuArray, PerCpuHashMap},
};
use kmem_trace_ebpf::{
    config::ABSENT,
    sums::{
        CACHE_NAME, CAUSE_BEFORE_TRACE, CAUSE_CHARGED, CAUSE_HARDIRQ, CAUSE_KERNEL_THREAD,
        CAUSE_NOKMEM, CAUSE_NOT_ACCOUNTABLE, CAUSE_ROOT, CAUSE_SOFTIRQ, CAUSE_UNKNOWN, Cache,
        OTHERS, Origin, SlabKey, SlabSums,
    },
    totals::{LOST_OBJECTS, LOST_SLAB_KEYS, SLAB_MISREAD},
};

use crate::{
    maps::tally,
    memcg::{cgroup_of, id_of, is_traced},
    read::{config, member},
    slab::Object,
};

/// Sums by payer, asker, cache, call site and cause. Sized by userspace.
#[map]
pub static SLAB: PerCpuHashMap<SlabKey, SlabSums> = PerCpuHashMap::with_max_entries(8192, 0);

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

const SOFTIRQ: usize = 0;
const HARDIRQ: usize = 1;
const PAGE_SHIFT: u32 = 12;
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

/// The slab page of an object, and its cache.
struct Place {
    /// `struct slab` (5.17 and later) or the head `struct page`.
    slab: u64,
    cache: u64,
    size: u32,
}

/// Constant part of `virt_to_page` on x86-64 (`vmemmap + (addr - page_offset) / 4096`), with both
/// bases in one: they are variables under KASLR.
#[inline(always)]
fn memory_map() -> Option<u64> {
    let known = unsafe { *MEMORY_MAP.get_ptr(0)? };
    if known != 0 {
        return Some(known);
    }
    let vmemmap: u64 =
        unsafe { bpf_probe_read_kernel(config!(vmemmap_base) as *const u64) }.ok()?;
    let offset: u64 =
        unsafe { bpf_probe_read_kernel(config!(page_offset_base) as *const u64) }.ok()?;
    let pages = (offset >> PAGE_SHIFT).wrapping_mul(u64::from(config!(page_size)));
    keep_memory_map(vmemmap.wrapping_sub(pages))
}

#[inline(always)]
fn keep_memory_map(found: u64) -> Option<u64> {
    unsafe { *MEMORY_MAP.get_ptr_mut(0)? = found };
    Some(found)
}

/// The same from a cache, where the symbol table has no variables: a partial slab's `freelist` is
/// the address of an object in it, and slabs are aligned to their size.
#[inline(always)]
fn memory_map_from(cache: u64) -> Option<u64> {
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
    keep_memory_map(slab.wrapping_sub(first_page.wrapping_mul(u64::from(config!(page_size)))))
}

#[inline(always)]
fn place_of(address: u64, cache: u64) -> Option<Place> {
    let map = match memory_map() {
        Some(map) => map,
        None => memory_map_from(cache)?,
    };
    let pages = (address >> PAGE_SHIFT).wrapping_mul(u64::from(config!(page_size)));
    let mut slab = map.wrapping_add(pages);
    let head: u64 = member(slab, config!(page_compound_head))?;
    if head & 1 == 1 {
        slab = head.wrapping_sub(1);
    }
    if !is_slab(slab) {
        return None;
    }
    let cache: u64 = member(slab, config!(slab_cache))?;
    let size: u32 = member(cache, config!(kmem_cache_size))?;
    (size != 0).then_some(Place { slab, cache, size })
}

/// `PageSlab`: a flag of the page, or its type, by generation.
#[inline(always)]
fn is_slab(page: u64) -> bool {
    if config!(page_type) != ABSENT {
        let kind: u32 = member(page, config!(page_type)).unwrap_or(0);
        return kind >> 24 == config!(page_type_slab);
    }
    let flags: u64 = member(page, config!(page_flags)).unwrap_or(0);
    flags >> (config!(page_flag_slab) & 63) & 1 == 1
}

/// The memory cgroup that pays for an object: `slab_objcgs()[obj_to_index()]`.
#[inline(always)]
fn payer_of(place: &Place, address: u64) -> Option<u64> {
    let vector: u64 = member(place.slab, config!(slab_vector))?;
    // The low bits are flags (`MEMCG_DATA_OBJCGS`, `OBJEXTS_…`).
    let vector = vector & !7;
    if vector == 0 {
        return None;
    }
    let map = unsafe { *MEMORY_MAP.get_ptr(0)? };
    let first = (place.slab.wrapping_sub(map) / u64::from(config!(page_size))) << PAGE_SHIFT;
    let index = address.wrapping_sub(first) / u64::from(place.size);
    let mut stride = u64::from(config!(vector_stride));
    if config!(slab_in_object) != ABSENT {
        let word: u32 = member(place.slab, config!(slab_in_object)).unwrap_or(0);
        if word & config!(slab_in_object_mask) != 0 {
            stride = u64::from(place.size);
        }
    }
    let element = vector.wrapping_add(index.wrapping_mul(stride));
    let objcg: u64 = member(element, config!(vector_objcg)).filter(|objcg| *objcg != 0)?;
    member::<u64>(objcg & !7, config!(objcg_memcg)).filter(|memcg| *memcg != 0)
}

/// The memory cgroup of the task that runs: `task_css(current, memory_cgrp_id)`.
#[inline(always)]
fn asker() -> Option<u64> {
    let task = unsafe { bpf_get_current_task() };
    let set: u64 = member(task, config!(task_cgroups))?;
    member(set, config!(css_set_memory))
}

/// Writes a cache down, once.
#[inline(always)]
fn note_cache(cache: u64, size: u32) {
    if CACHES.get_ptr(cache).is_some() {
        return;
    }
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
            bpf_probe_read_kernel_str(
                (&raw mut entry.name).cast(),
                CACHE_NAME as u32,
                name as *const _,
            )
        };
    }
    let _ = CACHES.insert(cache, &entry, u64::from(BPF_NOEXIST));
}

#[inline(always)]
fn sums(key: &SlabKey) -> Option<*mut SlabSums> {
    if let Some(found) = SLAB.get_ptr_mut(key) {
        return Some(found);
    }
    let _ = SLAB.insert(key, &SlabSums::default(), u64::from(BPF_NOEXIST));
    let found = SLAB.get_ptr_mut(key);
    if found.is_none() {
        tally(LOST_SLAB_KEYS, 1);
    }
    found
}

/// Traced: the cgroup's id; not traced: [`OTHERS`]; none: 0.
#[inline(always)]
fn named(memcg: Option<u64>) -> u64 {
    let Some(cgroup) = memcg.and_then(cgroup_of) else {
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
#[inline(always)]
fn cause(object: &Object, place: &Place, asking: Option<u64>) -> u8 {
    let flags: u32 = member(place.cache, config!(kmem_cache_flags)).unwrap_or(0);
    let opted_in = object.gfp & config!(gfp_account) | flags & config!(slab_account);
    if opted_in == 0 {
        return CAUSE_NOT_ACCOUNTABLE;
    }
    if config!(nokmem) == 1 {
        return CAUSE_NOKMEM;
    }
    if let Some(context) = CONTEXT.get_ptr(0) {
        let [soft, hard] = unsafe { *context };
        if hard > 0 {
            return CAUSE_HARDIRQ;
        }
        if soft > 0 {
            return CAUSE_SOFTIRQ;
        }
    }
    let task = unsafe { bpf_get_current_task() };
    let flags: u32 = member(task, config!(task_flags)).unwrap_or(0);
    if flags & PF_KTHREAD != 0 {
        return CAUSE_KERNEL_THREAD;
    }
    let level = asking
        .and_then(cgroup_of)
        .and_then(|cgroup| member::<u32>(cgroup, config!(cgroup_level)));
    if level == Some(0) {
        return CAUSE_ROOT;
    }
    CAUSE_UNKNOWN
}

/// An object was handed out.
#[inline(always)]
pub fn allocated(object: &Object) {
    // NULL, and `ZERO_SIZE_PTR`.
    if object.address < 4096 {
        return;
    }
    let Some(place) = place_of(object.address, object.cache) else {
        large(object, true);
        return;
    };
    if object.cache != 0 && object.cache != place.cache {
        tally(SLAB_MISREAD, 1);
        return;
    }
    note_cache(place.cache, place.size);
    let paying = payer_of(&place, object.address);
    let asking = asker();
    let payer = named(paying);
    let asker = named(asking);
    let mut key = SlabKey {
        payer,
        asker,
        cache: place.cache,
        call_site: 0,
        cause: CAUSE_CHARGED,
        reserved: [0; 7],
    };
    if payer == 0 {
        key.cause = cause(object, &place, asking);
    }
    let ours = (payer != 0 && payer != OTHERS) || (asker != 0 && asker != OTHERS);
    if ours {
        key.call_site = object.call_site;
    }
    if payer == 0 && ours {
        let origin = Origin {
            asker,
            call_site: object.call_site,
            cause: key.cause,
            reserved: [0; 7],
        };
        if OWNERLESS
            .insert(object.address, &origin, u64::from(BPF_ANY))
            .is_err()
        {
            tally(LOST_OBJECTS, 1);
        }
    }
    if let Some(sums) = sums(&key) {
        unsafe {
            (*sums).allocated += 1;
            (*sums).allocated_bytes += u64::from(place.size);
        }
    }
}

/// An object was given back; its payer is still written on it.
#[inline(always)]
pub fn freed(object: &Object) {
    if object.address < 4096 {
        return;
    }
    let Some(place) = place_of(object.address, object.cache) else {
        large(object, false);
        return;
    };
    let payer = named(payer_of(&place, object.address));
    let mut key = SlabKey {
        payer,
        asker: 0,
        cache: place.cache,
        call_site: 0,
        cause: CAUSE_CHARGED,
        reserved: [0; 7],
    };
    if payer == 0 {
        // Reads outside of the branch, so that the entry is gone before another CPU reuses the
        // address.
        let origin = unsafe { OWNERLESS.get(object.address) }.copied();
        match origin {
            Some(origin) => {
                let _ = OWNERLESS.remove(object.address);
                key.asker = origin.asker;
                key.call_site = origin.call_site;
                key.cause = origin.cause;
            }
            None => {
                // Others' objects, or older than the trace: nothing says which.
                key.asker = OTHERS;
                key.cause = CAUSE_BEFORE_TRACE;
            }
        }
    }
    note_cache(place.cache, place.size);
    if let Some(sums) = sums(&key) {
        unsafe {
            (*sums).freed += 1;
            (*sums).freed_bytes += u64::from(place.size);
        }
    }
}

/// Pages, not slab: `__kmalloc_large`. Counted apart, under no cache.
#[inline(always)]
fn large(object: &Object, allocation: bool) {
    let asker = named(asker());
    let key = SlabKey {
        payer: 0,
        asker,
        cache: 0,
        call_site: if asker == OTHERS { 0 } else { object.call_site },
        cause: CAUSE_UNKNOWN,
        reserved: [0; 7],
    };
    if let Some(sums) = sums(&key) {
        unsafe {
            if allocation {
                (*sums).allocated += 1;
                (*sums).allocated_bytes += object.bytes_alloc;
            } else {
                (*sums).freed += 1;
            }
        }
    }
}

pub const IN_SOFTIRQ: usize = SOFTIRQ;
pub const IN_HARDIRQ: usize = HARDIRQ;
