//! From an object's address to its payer: the offsets of this kernel's generation, all of them
//! asked for by name. What is absent disables slab attribution, with the name of what is absent.

use std::path::Path;

use kmem_trace_ebpf::config::{ABSENT, Config};

use super::{layout::Sources, plan::Resolved, table::Mechanism};
use crate::kernel::{btf::KernelBtf, proc};

/// `___GFP_ACCOUNT` and `SLAB_ACCOUNT` of kernels where they are macros, of which type information
/// says nothing (include/linux/gfp.h, include/linux/slab.h: the same in 5.10 and 6.1).
const GFP_ACCOUNT: u32 = 0x0040_0000;
const SLAB_ACCOUNT: u32 = 0x0400_0000;

/// There while the kernel may profile allocations (`procfs_init`, lib/alloc_tag.c).
const ALLOCINFO: &str = "/proc/allocinfo";

/// Whether KFENCE takes allocations out of their caches, by its sample interval.
fn kfence_hands_out() -> bool {
    let interval = Path::new("/sys/module/kfence/parameters/sample_interval");
    std::fs::read(interval).is_ok_and(|text| text.trim_ascii() != b"0")
}

/// Fills in what attribution needs.
///
/// # Errors
/// What this kernel's type information does not have.
pub fn resolve(btf: &KernelBtf, sources: &Sources<'_>, config: &mut Config) -> Result<(), String> {
    pages(btf, config)?;
    slabs(btf, config)?;
    tasks(btf, config)?;
    let address = |name: &str| sources.symbols.address(name).unwrap_or(0);
    config.vmemmap_base = address("vmemmap_base");
    config.page_offset_base = address("page_offset_base");
    let bit = |name: &str| {
        let bit = btf.enum_value(None, name).ok()?;
        1u32.checked_shl(u32::try_from(bit).ok()?)
    };
    config.gfp_account = bit("___GFP_ACCOUNT_BIT").unwrap_or(GFP_ACCOUNT);
    config.slab_account = bit("_SLAB_ACCOUNT").unwrap_or(SLAB_ACCOUNT);
    config.nokmem = u32::from(proc::system::Cmdline::read().is_ok_and(|line| line.nokmem));
    Ok(())
}

/// The first of several members that this kernel has.
fn either(btf: &KernelBtf, names: &[(&str, &str)]) -> Result<u32, String> {
    let mut last = String::new();
    for (strukt, member) in names {
        match btf.member(strukt, member) {
            Ok(found) => return Ok(found.offset),
            Err(error) => last = error.to_string(),
        }
    }
    Err(last)
}

fn pages(btf: &KernelBtf, config: &mut Config) -> Result<(), String> {
    config.page_size = btf.size_of("page").map_err(|error| error.to_string())?;
    config.page_compound_head =
        either(btf, &[("page", "compound_info"), ("page", "compound_head")])?;
    // 6.12 tells slab pages by `page_type`, kernels before by a flag.
    if let Ok(slab) = btf.enum_value(Some("pagetype"), "PGTY_slab") {
        config.page_type = either(btf, &[("page", "page_type")])?;
        config.page_type_slab = u32::try_from(slab).map_err(|error| error.to_string())?;
    } else {
        config.page_flags = either(btf, &[("page", "flags")])?;
        let bit = btf
            .enum_value(Some("pageflags"), "PG_slab")
            .map_err(|error| error.to_string())?;
        config.page_flag_slab = u32::try_from(bit).map_err(|error| error.to_string())?;
    }
    Ok(())
}

fn slabs(btf: &KernelBtf, config: &mut Config) -> Result<(), String> {
    // SLAB, which went in 6.8, has its payers in another order.
    if btf.member("kmem_cache", "oo").is_err() {
        return Err("the slab allocator of this kernel is not SLUB".to_owned());
    }
    config.slab_cache = either(btf, &[("slab", "slab_cache"), ("page", "slab_cache")])?;
    config.slab_freelist = either(btf, &[("slab", "freelist"), ("page", "freelist")])?;
    config.slab_list = either(btf, &[("slab", "slab_list"), ("page", "slab_list")])?;
    if let Ok(found) = either(btf, &[("slab", "obj_exts")]) {
        config.slab_vector = found;
        config.vector_stride = btf
            .size_of("slabobj_ext")
            .map_err(|error| error.to_string())?;
        config.vector_objcg = either(btf, &[("slabobj_ext", "_objcg"), ("slabobj_ext", "objcg")])?;
    } else {
        config.slab_vector = either(
            btf,
            &[
                ("slab", "memcg_data"),
                ("page", "obj_cgroups"),
                ("page", "memcg_data"),
            ],
        )?;
        config.vector_stride = 8;
        config.vector_objcg = 0;
    }
    if let Ok(found) = btf.member("slab", "stride") {
        config.slab_stride = found.offset;
        // It was 16 bits at first, which the 16 after it make a word of: little endian.
        config.slab_stride_mask = match found.size {
            2 => 0xffff,
            _ => u32::MAX,
        };
    }
    // The aligned word around a bit field, where in it that begins, and as many ones as it has bits.
    let field = |strukt, name| {
        let member = btf.member(strukt, name).ok()?;
        let bits = member.bits?;
        let shift = (member.offset & 3) * 8 + bits.first;
        Some((member.offset & !3, shift, (1 << bits.width) - 1))
    };
    if let Some((word, shift, one)) = field("slab", "obj_exts_in_object") {
        config.slab_in_object = word;
        config.slab_in_object_mask = one << shift;
        if let Some((needs, shift, one)) = field("slab", "obj_exts_needs_objcg")
            && needs == word
        {
            config.slab_needs_objcg_mask = one << shift;
            // What allocations are profiled by then stands behind each payer (`slab_obj_ext_size`).
            if btf.member("slabobj_ext", "_ctref").is_ok() && Path::new(ALLOCINFO).exists() {
                config.vector_stride *= 2;
            }
        }
    }
    let objects = || field("slab", "objects").or_else(|| field("page", "objects"));
    if kfence_hands_out()
        && let Some((word, shift, mask)) = objects()
    {
        config.slab_objects = word;
        config.slab_objects_shift = shift;
        config.slab_objects_mask = mask;
    }
    config.objcg_memcg = either(btf, &[("obj_cgroup", "memcg")])?;
    // Where one of these is absent, what a removed cgroup holds counts as its parent's.
    config.memcg_serial = either(btf, &[("mem_cgroup", "css.serial_nr")]).unwrap_or(ABSENT);
    config.memcg_objcg = either(btf, &[("mem_cgroup", "objcg")]).unwrap_or(ABSENT);
    config.memcg_nodeinfo = either(btf, &[("mem_cgroup", "nodeinfo")]).unwrap_or(ABSENT);
    config.per_node_objcg = either(btf, &[("mem_cgroup_per_node", "objcg")]).unwrap_or(ABSENT);
    if config.kmem_cache_size == ABSENT || config.kmem_cache_flags == ABSENT {
        return Err("struct kmem_cache has no size or no flags in this kernel's BTF".to_owned());
    }
    // `nr_node_ids`.
    let nodes = proc::cpus::possible_nodes().unwrap_or_default();
    config.nodes = nodes.last().map_or(1, |last| last + 1);
    // Only for finding the memory map where the symbol table has no variables.
    config.kmem_cache_node = either(btf, &[("kmem_cache", "node")]).unwrap_or(ABSENT);
    config.kmem_cache_oo = either(btf, &[("kmem_cache", "oo")]).unwrap_or(ABSENT);
    config.kmem_cache_min = either(btf, &[("kmem_cache", "min")]).unwrap_or(ABSENT);
    config.node_partial = either(btf, &[("kmem_cache_node", "partial")]).unwrap_or(ABSENT);
    Ok(())
}

fn tasks(btf: &KernelBtf, config: &mut Config) -> Result<(), String> {
    config.task_flags = either(btf, &[("task_struct", "flags")])?;
    config.task_mm = either(btf, &[("task_struct", "mm")]).unwrap_or(ABSENT);
    config.task_softirqs = either(btf, &[("task_struct", "softirq_disable_cnt")]).unwrap_or(ABSENT);
    if [config.task_cgroups, config.css_set_memory, config.memcg_css].contains(&ABSENT) {
        return Err("from a task to its memory cgroup: not in this kernel's BTF".to_owned());
    }
    Ok(())
}

/// Whether the slab roles are served by what attribution can afford. A classic tracepoint shares its
/// guard with kprobes: a charge that nests in one would be missed by the ledger.
pub fn served(roles: &[Resolved]) -> Result<(), String> {
    for resolved in roles
        .iter()
        .filter(|resolved| ["slab.alloc", "slab.free"].contains(&resolved.role.name))
    {
        match resolved.choice {
            Some((_, candidate)) if candidate.mechanism != Mechanism::Tracepoint => {}
            _ => return Err(format!("{}: {}", resolved.role.name, resolved.why)),
        }
    }
    Ok(())
}
