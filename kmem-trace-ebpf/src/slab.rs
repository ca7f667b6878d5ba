//! Slab objects: each attributed, and single events on request.

use kmem_trace_ebpf::{
    record::{CACHE_LEN, KIND_SLAB, OP_ALLOC, SlabRecord},
    sums::{CAUSE_UNASKED, OTHERS},
    totals::{ROLE_SLAB_ALLOC, ROLE_SLAB_FREE, SWITCH_NO_STREAM},
};

use crate::{
    attribution::{Asked, moved},
    maps::{header, reserve, submit, switched},
    read::{attributes, config, member, read_kernel_str},
};

/// What a slab tracepoint says of an object.
pub struct Object {
    pub op: u8,
    pub address: u64,
    pub call_site: u64,
    pub bytes_req: u64,
    pub bytes_alloc: u64,
    pub gfp: u32,
    pub accounted: u8,
    /// `struct kmem_cache *`, 0 where the event has none.
    pub cache: u64,
}

/// Attributes one object, and streams it where that was asked for.
#[inline(always)]
pub fn slab_event(mut object: Object) {
    let mut asked = Asked {
        payer: 0,
        asker: 0,
        cache: 0,
        cause: CAUSE_UNASKED,
    };
    if attributes() {
        asked = moved(&object, object.op == OP_ALLOC);
    }
    if config!(stream_slab) != 1 || switched(SWITCH_NO_STREAM) {
        return;
    }
    // Where objects are asked, those that have nothing to do with a traced cgroup are left out.
    let ours = |id: u64| id != 0 && id != OTHERS;
    if config!(attribute_slab) == 1 && !ours(asked.payer) && !ours(asked.asker) {
        return;
    }
    if asked.cache != 0 {
        object.cache = asked.cache;
    }
    let (mut bytes_req, mut bytes_alloc) = (object.bytes_req, object.bytes_alloc);
    if bytes_alloc == 0 && config!(can_read) == 1 {
        let size = member::<u32>(object.cache, config!(kmem_cache_object_size)).unwrap_or(0);
        bytes_req = u64::from(size);
        let size = member::<u32>(object.cache, config!(kmem_cache_size)).unwrap_or(0);
        bytes_alloc = u64::from(size);
    }
    let role = if object.op == OP_ALLOC {
        ROLE_SLAB_ALLOC
    } else {
        ROLE_SLAB_FREE
    };
    // There are only rings where slab is followed. Written here, not in a closure, which would have
    // all that it writes on the stack.
    let Some(mut entry) = reserve::<SlabRecord>(role) else {
        return;
    };
    let record = entry.as_mut_ptr();
    unsafe {
        (&raw mut (*record).header).write(header(KIND_SLAB, size_of::<SlabRecord>()));
        (&raw mut (*record).cgroup_id).write(asked.payer);
        (&raw mut (*record).asker).write(asked.asker);
        (&raw mut (*record).object).write(object.address);
        (&raw mut (*record).call_site).write(object.call_site);
        (&raw mut (*record).bytes_req).write(bytes_req);
        (&raw mut (*record).bytes_alloc).write(bytes_alloc);
        (&raw mut (*record).gfp).write(object.gfp);
        (&raw mut (*record).op).write(object.op);
        (&raw mut (*record).accounted).write(object.accounted);
        (&raw mut (*record).cause).write(asked.cause);
        (&raw mut (*record).reserved).write(0);
        let name = &raw mut (*record).cache;
        name.write([0; CACHE_LEN]);
        if config!(can_read) == 1 {
            let text = member::<u64>(object.cache, config!(kmem_cache_name)).unwrap_or(0);
            if text != 0 {
                let _ = read_kernel_str(name.cast(), CACHE_LEN as u32, text as *const _);
            }
        }
    }
    submit(entry);
}
