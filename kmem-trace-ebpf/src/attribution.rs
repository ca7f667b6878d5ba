//! Who pays for a slab object, who asked for it, and why nobody paid: asked of the object itself,
//! added up in the kernel.
//!
//! The charge is done before the allocation events fire and undone after the free events, so at
//! both moments the object's slab page knows its payer, on whatever path it came there; the same
//! holds for objects that are older than the trace.
//!
//! In functions of their own, which stay so: each has its own stack frame, of which all that are
//! under way at a time share 512 bytes. They are global and pass numbers only, 0 for none, so that
//! the verifier looks into each once and not on each way that leads there; older ones look into
//! those too that nothing leads to, so each says itself when it is needed. Nothing is kept in
//! shared scratch memory: a run that an interrupt nests into another one disturbs nothing.

use aya_ebpf::{
    bindings::{BPF_ANY, BPF_F_MMAPABLE, BPF_NOEXIST},
    helpers::{bpf_get_current_task, bpf_get_smp_processor_id},
    macros::map,
    maps::{Array, HashMap, PerCpuArray, Stack},
};
use kmem_trace_ebpf::{
    config::ABSENT,
    sums::{
        CACHE_NAME, CAUSE_BEFORE_TRACE, CAUSE_BH_DISABLED, CAUSE_CHARGED, CAUSE_HARDIRQ,
        CAUSE_KERNEL_THREAD, CAUSE_NO_MM, CAUSE_NOKMEM, CAUSE_NOT_ACCOUNTABLE, CAUSE_NOT_SLAB,
        CAUSE_REPARENTED, CAUSE_ROOT, CAUSE_SOFTIRQ, CAUSE_UNASKED, CAUSE_UNKNOWN, Cache, LAST,
        OTHERS, Origin, SlabKey, SlabSums,
    },
    totals::{
        LOST_MAP_FULL, LOST_OBJECTS, ROLE_SLAB_ALLOC, ROLE_SLAB_FREE, SLAB_MISREAD,
        SWITCH_NO_CALL_SITES,
    },
};

use crate::{
    maps::{add, own_copy, switched, take, tally},
    owner::{asking, former, is_inherited, named},
    read::{config, member, peek, peek_half, read_kernel_str},
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

/// The places that a CPU used last, a share for each CPU: by a few bits of the key, place and 1 more.
/// Sized by userspace.
#[map]
pub static SLAB_LAST: Array<u32> = Array::with_max_entries(1, 0);

/// Whether an object of a cache was ever kept in [`OWNERLESS`], by a few bits of the cache's address.
#[map]
pub static REMEMBERED: Array<u32> = Array::with_max_entries(REMEMBERED_CACHES, 0);

/// `vmemmap_base` less what `page_offset_base` contributes to it; 0 until known.
#[map]
pub static MEMORY_MAP: Array<u64> = Array::with_max_entries(1, 0);

/// Whether this CPU is in a softirq, and whether in a hardirq handler.
#[map]
pub static CONTEXT: PerCpuArray<[u32; 2]> = PerCpuArray::with_max_entries(1, 0);

/// A listening socket is being copied on this CPU: by which task, or over which an interrupt does
/// it, and which memory cgroup pays for the listener.
#[map]
pub static LISTENER: PerCpuArray<[u64; 2]> = PerCpuArray::with_max_entries(1, 0);

/// Entries of [`REMEMBERED`]: a power of two, some ten times as many as there are caches.
const REMEMBERED_CACHES: u32 = 4096;
/// What leaves as many bits as tell [`LAST`] apart.
const LAST_SHIFT: u32 = 64 - LAST.trailing_zeros();
const SOFTIRQ: usize = 0;
const HARDIRQ: usize = 1;
const PAGE_SHIFT: u32 = 12;
/// The top 4 GiB of addresses are kernel text and what is fixed, none of it the memory map.
const COMPOUND_MASK: u64 = 0xffff_ffff_0000_0000;
/// `PF_KTHREAD` (include/linux/sched.h).
const PF_KTHREAD: u32 = 0x0020_0000;

/// A softirq or a hardirq handler begins (`inside` = 1) or ends (0) on this CPU. Neither nests in its
/// like, so nothing is counted: an end that is missed, as between the attaching of the two programs,
/// would be for ever.
#[inline(always)]
pub fn interrupt(kind: usize, inside: u32) {
    if let Some(context) = CONTEXT.get_ptr_mut(0) {
        unsafe { *(&raw mut (*context)).cast::<u32>().add(kind & 1) = inside };
    }
}

/// In what an object was asked for, as [`context`] says it.
const IN_HARDIRQ_HANDLER: u32 = 1;
const SERVING_SOFTIRQ: u32 = 2;
const BH_DISABLED: u32 = 3;
/// `SOFTIRQ_MASK` and `SOFTIRQ_OFFSET` (include/linux/preempt.h).
const SOFTIRQ_BITS: u32 = 0x0000_ff00;
const SERVING_BIT: u32 = 0x0000_0100;

/// What this CPU is in: its preempt count says so (`in_hardirq`, `in_serving_softirq`), or what was
/// noted at events. No program of ours that looks here changes those bits: only breakpoints' do.
#[inline(always)]
fn context() -> u32 {
    if config!(preempt_count) != 0 {
        let cpu = u64::from(unsafe { bpf_get_smp_processor_id() });
        let own = peek(config!(per_cpu_offset).wrapping_add(cpu << 3), 0);
        let mut count = peek_half(own.wrapping_add(config!(preempt_count)), 0);
        if config!(task_softirqs) != ABSENT {
            count |=
                peek_half(unsafe { bpf_get_current_task() }, config!(task_softirqs)) & SOFTIRQ_BITS;
        }
        return if count & config!(hardirq_bits) != 0 {
            IN_HARDIRQ_HANDLER
        } else if count & SERVING_BIT != 0 {
            SERVING_SOFTIRQ
        } else if count & SOFTIRQ_BITS != 0 {
            BH_DISABLED
        } else {
            0
        };
    }
    if let Some(context) = CONTEXT.get_ptr(0) {
        let inside = context.cast::<u32>();
        if unsafe { *inside.add(HARDIRQ) } != 0 {
            return IN_HARDIRQ_HANDLER;
        }
        if unsafe { *inside.add(SOFTIRQ) } != 0 {
            return SERVING_SOFTIRQ;
        }
    }
    0
}

/// Whether slab is attributed, for which objects have to be read.
#[inline(always)]
pub fn attributes() -> bool {
    config!(attribute_slab) == 1 && config!(can_read) == 1
}

/// `page_to_pfn` and back on x86-64 in one number: `vmemmap_base` less what `page_offset_base`
/// contributes to it. Both are variables under KASLR. 0 where they cannot be found yet.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn find_memory_map(cache: u64) -> u64 {
    if !attributes() {
        return 0;
    }
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
#[inline(always)]
fn slab_of(address: u64, map: u64) -> u64 {
    let pages = (address >> PAGE_SHIFT).wrapping_mul(u64::from(config!(page_size)));
    let mut slab = map.wrapping_add(pages);
    let head = peek(slab, config!(page_compound_head));
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
        return peek_half(page, config!(page_type)) >> 24 == config!(page_type_slab);
    }
    let flags = peek(page, config!(page_flags));
    (flags >> (config!(page_flag_slab) & 63)) & 1 == 1
}

/// The `struct obj_cgroup` that an object is charged to, `slab_objcgs()[obj_to_index()]`; 0: none.
#[inline(always)]
fn objcg_of(slab: u64, address: u64, map: u64, size: u32) -> u64 {
    // The low bits are flags (`MEMCG_DATA_OBJCGS`, `OBJEXTS_…`).
    let vector = peek(slab, config!(slab_vector)) & !7;
    let page_size = config!(page_size);
    if vector == 0 {
        return 0;
    }
    let bytes = slab.wrapping_sub(map);
    // What a page is described by has 64 bytes nearly everywhere, and dividing is slow.
    let page = match page_size {
        64 => bytes >> 6,
        other => bytes.checked_div(u64::from(other)).unwrap_or(0),
    };
    // A slab is far smaller than 4 GiB. Divisions that may panic are none that the verifier takes.
    let offset = address.wrapping_sub(page << PAGE_SHIFT) as u32;
    let index = offset.checked_div(size).unwrap_or(0);
    let mut stride = config!(vector_stride);
    if config!(slab_in_object) != ABSENT
        && peek_half(slab, config!(slab_in_object)) & config!(slab_in_object_mask) != 0
    {
        stride = size;
    }
    let element = vector.wrapping_add(u64::from(index).wrapping_mul(u64::from(stride)));
    peek(element, config!(vector_objcg)) & !7
}

/// The memory cgroup that an object is charged to now; 0: none.
#[inline(always)]
fn payer_of(slab: u64, address: u64, map: u64, size: u32) -> u64 {
    match objcg_of(slab, address, map, size) {
        0 => 0,
        objcg => peek(objcg, config!(objcg_memcg)),
    }
}

/// Writes a cache down.
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
    let _ = CACHES.insert(cache, &entry, u64::from(BPF_NOEXIST));
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
    let _ = SLAB_FREE.push(free, 0);
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
            if cache != 0 && CACHES.get_ptr(cache).is_none() {
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
fn count(key: &SlabKey, allocation: bool, bytes: u64) {
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

/// Why nobody was charged, by what the charge path itself looks at
/// (`memcg_slab_pre_alloc_hook`, `current_obj_cgroup`).
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn cause(gfp: u64, cache: u64, asking: u64) -> u64 {
    if !attributes() {
        return u64::from(CAUSE_UNKNOWN);
    }
    let flags = peek_half(cache, config!(kmem_cache_flags));
    let opted_in = (gfp as u32 & config!(gfp_account)) | (flags & config!(slab_account));
    if opted_in == 0 {
        return u64::from(CAUSE_NOT_ACCOUNTABLE);
    }
    if config!(nokmem) == 1 {
        return u64::from(CAUSE_NOKMEM);
    }
    let context = context();
    if context == IN_HARDIRQ_HANDLER {
        return u64::from(CAUSE_HARDIRQ);
    }
    if context == SERVING_SOFTIRQ {
        return u64::from(CAUSE_SOFTIRQ);
    }
    let task = unsafe { bpf_get_current_task() };
    if peek_half(task, config!(task_flags)) & PF_KTHREAD != 0 {
        return u64::from(CAUSE_KERNEL_THREAD);
    }
    if config!(task_mm) != ABSENT && peek(task, config!(task_mm)) == 0 {
        return u64::from(CAUSE_NO_MM);
    }
    let cgroup = peek(asking, config!(memcg_css_cgroup));
    if cgroup != 0 && peek_half(cgroup, config!(cgroup_level)) == 0 {
        return u64::from(CAUSE_ROOT);
    }
    // Last, for only `in_interrupt`, which older charge paths ask, takes it for an interrupt.
    if context == BH_DISABLED {
        return u64::from(CAUSE_BH_DISABLED);
    }
    u64::from(CAUSE_UNKNOWN)
}

/// Whether an object of this cache was ever remembered: most caches have none that nobody pays for,
/// and no need to be looked for.
#[inline(always)]
fn remembers(cache: u64) -> bool {
    match REMEMBERED.get_ptr((cache >> 6) as u32 & (REMEMBERED_CACHES - 1)) {
        Some(remembered) => unsafe { remembered.read_volatile() != 0 },
        None => true,
    }
}

/// Keeps where an object without a payer came from.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn keep_origin(
    address: u64,
    asker: u64,
    cache: u64,
    call_site: u64,
    bytes_and_cause: u64,
) -> u64 {
    if !attributes() {
        return 0;
    }
    let origin = Origin {
        asker,
        call_site,
        bytes: bytes_and_cause as u32,
        cause: (bytes_and_cause >> 32) as u8,
        reserved: [0; 3],
    };
    if let Some(seen) = REMEMBERED.get_ptr_mut((cache >> 6) as u32 & (REMEMBERED_CACHES - 1)) {
        unsafe { seen.write_volatile(1) };
    }
    let kept = OWNERLESS
        .insert(address, &origin, u64::from(BPF_ANY))
        .is_ok();
    if !kept {
        tally(LOST_OBJECTS, 1);
    }
    u64::from(kept)
}

/// Pages of a large kmalloc are remembered already: some of its paths fire two events for one
/// (`__do_kmalloc_node` and, below it, `__kmalloc_large_node_noprof`, 6.12 and later), of which the
/// later one knows the caller. The former's row gives them back.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn told_twice(address: u64) -> u64 {
    if !attributes() {
        return 0;
    }
    let Some(origin) = OWNERLESS.get_ptr(address) else {
        return 0;
    };
    let (asker, call_site, bytes) =
        unsafe { ((*origin).asker, (*origin).call_site, (*origin).bytes) };
    let key = SlabKey {
        payer: 0,
        asker,
        cache: 0,
        call_site,
        cause: CAUSE_NOT_SLAB,
        taken: 0,
        reserved: [0; 2],
        size: 0,
    };
    count(&key, false, u64::from(bytes));
    1
}

/// An object that nobody paid for is paid for now: from the sums of the unpaid to its payer's. One
/// that is not remembered leaves what is older than the trace, or others', if `always`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn move_to_payer(address: u64, cache: u64, size: u64, payer: u64, always: u64) -> u64 {
    if !attributes() {
        return 0;
    }
    let mut key = SlabKey {
        payer: 0,
        asker: OTHERS,
        cache,
        call_site: 0,
        cause: CAUSE_BEFORE_TRACE,
        taken: 0,
        reserved: [0; 2],
        size: size as u32,
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
    if !attributes() {
        return;
    }
    let map = memory_map(0);
    let slab = if map == 0 { 0 } else { slab_of(socket, map) };
    if slab == 0 {
        return;
    }
    let cache = peek(slab, config!(slab_cache));
    let size = peek_half(cache, config!(kmem_cache_size));
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

/// Of a socket that is being copied on this CPU: the memory cgroup that pays for the listener; else
/// 0.
#[inline(always)]
fn listening() -> u64 {
    if let Some(listener) = LISTENER.get_ptr(0) {
        let words = listener.cast::<u64>();
        let (by, payer) = unsafe { (*words, *words.add(1)) };
        if by != 0 && by == unsafe { bpf_get_current_task() } {
            return payer;
        }
    }
    0
}

/// `kmem_cache_charge` succeeded on an object.
#[inline(always)]
pub fn charged_late(address: u64) {
    if !attributes() {
        return;
    }
    let map = memory_map(0);
    if map == 0 {
        return;
    }
    let slab = slab_of(address, map);
    let cache = peek(slab, config!(slab_cache));
    let size = peek_half(cache, config!(kmem_cache_size));
    let payer = named(payer_of(slab, address, map, size));
    if slab != 0 && payer != 0 {
        move_to_payer(address, cache, u64::from(size), payer, 1);
    }
}

/// What was found out of an object.
pub struct Asked {
    /// As in [`SlabKey`].
    pub payer: u64,
    pub asker: u64,
    pub cache: u64,
    pub cause: u8,
}

/// An object was handed out (or, `allocation` false, given back: its payer is still written on it).
#[inline(always)]
pub fn moved(object: &Object, allocation: bool) -> Asked {
    let unasked = Asked {
        payer: 0,
        asker: 0,
        cache: 0,
        cause: CAUSE_UNASKED,
    };
    // NULL, and `ZERO_SIZE_PTR`.
    if object.address < 4096 {
        return unasked;
    }
    let map = memory_map(object.cache);
    if map == 0 {
        tally(SLAB_MISREAD, 1);
        return unasked;
    }
    // All of them others' until something says otherwise.
    let mut key = SlabKey {
        payer: OTHERS,
        asker: OTHERS,
        cache: 0,
        call_site: 0,
        cause: CAUSE_CHARGED,
        taken: 0,
        reserved: [0; 2],
        size: 0,
    };
    let slab = slab_of(object.address, map);
    let mut memcg = 0;
    if slab != 0 {
        key.cache = peek(slab, config!(slab_cache));
        key.size = peek_half(key.cache, config!(kmem_cache_size));
        if key.size == 0 || object.cache != 0 && object.cache != key.cache {
            tally(SLAB_MISREAD, 1);
            return unasked;
        }
        let objcg = objcg_of(slab, object.address, map, key.size);
        memcg = peek(objcg, config!(objcg_memcg));
        if memcg != 0 {
            key.payer = named(memcg);
            if is_inherited(objcg, memcg) {
                match former(objcg, memcg) {
                    0 => {}
                    OTHERS if key.payer == OTHERS => {}
                    OTHERS => key.cause = CAUSE_REPARENTED,
                    removed => key.payer = removed,
                }
            }
        }
    }
    if allocation {
        allocated(object, &mut key, memcg);
    } else {
        freed(object, &mut key, memcg);
    }
    Asked {
        payer: key.payer,
        asker: key.asker,
        cache: key.cache,
        cause: key.cause,
    }
}

#[inline(always)]
fn allocated(object: &Object, key: &mut SlabKey, memcg: u64) {
    let mut asking = asking();
    if memcg == 0
        && let payer @ 1.. = listening()
    {
        asking = payer;
    }
    let asker = if asking == memcg && memcg != 0 {
        key.payer
    } else {
        named(asking)
    };
    let paid = memcg != 0 && key.payer != OTHERS;
    if paid || asker != 0 && asker != OTHERS {
        key.asker = asker;
        if !switched(SWITCH_NO_CALL_SITES) {
            key.call_site = object.call_site;
        }
    }
    if memcg != 0 {
        if config!(late_charges_unseen) == 1
            && remembers(key.cache)
            && OWNERLESS.get_ptr(object.address).is_some()
        {
            // Of an object that was here before and whose end was not seen.
            let _ = OWNERLESS.remove(object.address);
        }
    } else {
        key.payer = 0;
        key.cause = if key.cache == 0 {
            CAUSE_NOT_SLAB
        } else {
            cause(u64::from(object.gfp), key.cache, asking) as u8
        };
    }
    if memcg == 0 && asker != 0 && asker != OTHERS {
        if key.cache == 0 {
            told_twice(object.address);
        }
        let bytes = if key.size == 0 {
            object.bytes_alloc
        } else {
            u64::from(key.size)
        };
        keep_origin(
            object.address,
            key.asker,
            key.cache,
            key.call_site,
            bytes & 0xffff_ffff | u64::from(key.cause) << 32,
        );
    }
    count(key, true, object.bytes_alloc);
}

#[inline(always)]
fn freed(object: &Object, key: &mut SlabKey, memcg: u64) {
    let mut bytes = object.bytes_alloc;
    if memcg != 0 {
        if key.payer != OTHERS {
            key.asker = 0;
        }
        if config!(late_charges_unseen) == 1 && remembers(key.cache) {
            let size = u64::from(key.size);
            move_to_payer(object.address, key.cache, size, key.payer, 0);
        }
    } else {
        // Others' objects, or older than the trace: nothing says which.
        key.payer = 0;
        key.cause = if key.cache == 0 {
            CAUSE_NOT_SLAB
        } else {
            CAUSE_BEFORE_TRACE
        };
        if remembers(key.cache)
            && let Some(origin) = OWNERLESS.get_ptr(object.address)
        {
            unsafe {
                key.asker = (*origin).asker;
                key.call_site = (*origin).call_site;
                key.cause = (*origin).cause;
                if key.cache == 0 {
                    bytes = u64::from((*origin).bytes);
                }
            }
            let _ = OWNERLESS.remove(object.address);
        }
    }
    count(key, false, bytes);
}

pub const IN_SOFTIRQ: usize = SOFTIRQ;
pub const IN_HARDIRQ: usize = HARDIRQ;
