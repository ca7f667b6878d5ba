//! From an object's address to the slab that it lies in, and to who pays for it.

use aya_ebpf::{macros::map, maps::Array};
use kmem_trace_ebpf::config::ABSENT;

use crate::read::{attributes, config, member, peek, peek_half};

/// `vmemmap_base` less what `page_offset_base` contributes to it; 0 until known.
#[map]
pub static MEMORY_MAP: Array<u64> = Array::with_max_entries(1, 0);

const PAGE_SHIFT: u32 = 12;
/// The top 4 GiB of addresses are kernel text and what is fixed, none of it the memory map.
const COMPOUND_MASK: u64 = 0xffff_ffff_0000_0000;

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
    // Nobody holds its lock: only what is the same after as before was a slab of this cache.
    if member::<u64>(slab, config!(slab_cache)) != Some(cache)
        || member::<u64>(slab, config!(slab_freelist)) != Some(object)
    {
        return None;
    }
    let first_page = (object >> PAGE_SHIFT) & !((1u64 << order) - 1);
    Some(slab.wrapping_sub(first_page.wrapping_mul(u64::from(config!(page_size)))))
}

#[inline(always)]
pub fn memory_map(cache: u64) -> u64 {
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
pub fn slab_of(address: u64, map: u64) -> u64 {
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
pub fn objcg_of(slab: u64, address: u64, map: u64, size: u32) -> u64 {
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
    let mut index = offset.checked_div(size).unwrap_or(0);
    // An object of KFENCE's is alone in its slab (`obj_to_index`), wherever in its page it lies.
    if config!(slab_objects) != ABSENT {
        let word = peek_half(slab, config!(slab_objects));
        if (word >> (config!(slab_objects_shift) & 31)) & config!(slab_objects_mask) == 1 {
            index = 0;
        }
    }
    let mut stride = config!(vector_stride);
    if config!(slab_stride) != ABSENT {
        stride = peek_half(slab, config!(slab_stride)) & config!(slab_stride_mask);
    }
    if config!(slab_in_object) != ABSENT {
        let flags = peek_half(slab, config!(slab_in_object));
        let needed = config!(slab_needs_objcg_mask);
        if needed != 0 && flags & needed == 0 {
            return 0;
        }
        if flags & config!(slab_in_object_mask) != 0 {
            stride = size;
        }
    }
    let element = vector.wrapping_add(u64::from(index).wrapping_mul(u64::from(stride)));
    peek(element, config!(vector_objcg)) & !7
}

/// The memory cgroup that an object is charged to now; 0: none.
#[inline(always)]
pub fn payer_of(slab: u64, address: u64, map: u64, size: u32) -> u64 {
    match objcg_of(slab, address, map, size) {
        0 => 0,
        objcg => peek(objcg, config!(objcg_memcg)),
    }
}
