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
    bindings::BPF_ANY,
    helpers::bpf_get_current_task,
    macros::map,
    maps::{Array, HashMap, PerCpuArray},
};
use kmem_trace_ebpf::{
    config::ABSENT,
    sums::{
        CAUSE_BEFORE_TRACE, CAUSE_BH_DISABLED, CAUSE_CHARGED, CAUSE_HARDIRQ, CAUSE_KERNEL_THREAD,
        CAUSE_NO_MM, CAUSE_NOKMEM, CAUSE_NOT_ACCOUNTABLE, CAUSE_NOT_SLAB, CAUSE_REPARENTED,
        CAUSE_ROOT, CAUSE_SOFTIRQ, CAUSE_UNASKED, CAUSE_UNKNOWN, OTHERS, Origin, SlabKey,
    },
    totals::{LOST_OBJECTS, SLAB_MISREAD, SWITCH_NO_CALL_SITES},
};

use crate::{
    context::{BH_DISABLED, IN_HARDIRQ_HANDLER, SERVING_SOFTIRQ, context},
    maps::{switched, tally},
    owner::{asking, former, is_inherited, named},
    read::{attributes, config, peek, peek_half},
    slab::Object,
    slab_page::{memory_map, objcg_of, payer_of, slab_of},
    slab_sums::count,
};

/// Objects that nobody pays for have no owner to read: address → where they came from, for those
/// that a traced cgroup's task asked for. Sized by userspace.
#[map]
pub static OWNERLESS: HashMap<u64, Origin> = HashMap::with_max_entries(1, 0);

/// Whether an object of a cache was ever kept in [`OWNERLESS`], by a few bits of the cache's address.
#[map]
pub static REMEMBERED: Array<u32> = Array::with_max_entries(REMEMBERED_CACHES, 0);

/// A listening socket is being copied on this CPU: by which task, or over which an interrupt does
/// it, and which memory cgroup pays for the listener.
#[map]
pub static LISTENER: PerCpuArray<[u64; 2]> = PerCpuArray::with_max_entries(1, 0);

/// Entries of [`REMEMBERED`]: a power of two, some ten times as many as there are caches.
const REMEMBERED_CACHES: u32 = 4096;
/// `PF_KTHREAD` (include/linux/sched.h).
const PF_KTHREAD: u32 = 0x0020_0000;

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
    let (asker, call_site, bytes, cause) = unsafe {
        (
            (*origin).asker,
            (*origin).call_site,
            (*origin).bytes,
            (*origin).cause,
        )
    };
    // Of an object that was here before and whose end was not seen.
    if cause != CAUSE_NOT_SLAB {
        return 0;
    }
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
    if slab == 0 && object.cache != 0 {
        // Of a cache, and in none of its slabs.
        tally(SLAB_MISREAD, 1);
        return unasked;
    }
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
