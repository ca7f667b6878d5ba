//! Struct offsets, argument positions, item numbers and record fields of this kernel, from its
//! type information and `format` files. What is absent is said to be absent, never guessed.

use std::collections::HashMap;

use kmem_trace_ebpf::config::{ABSENT, Config, ITEMS, SlabFields};

use crate::{
    hooks::{limits, pairs, slab_layout, table::Need},
    kernel::{
        btf::{BtfError, KernelBtf},
        cgroupfs::Hierarchy,
        symbols::Symbols,
        tracefs::Format,
    },
};

/// What the layout is read from.
#[derive(Clone, Copy)]
pub struct Sources<'a> {
    pub btf: Result<&'a KernelBtf, &'a str>,
    pub symbols: &'a Symbols,
    pub formats: &'a HashMap<(&'static str, &'static str), Format>,
    pub hierarchy: Hierarchy,
}

/// The constants, and for each [`Need`] that is not met the reason.
#[derive(Clone, Debug)]
pub struct Layout {
    pub config: Config,
    pub unmet: HashMap<Need, String>,
}

/// Resolves everything but the user charge's arguments, which depend on the symbol chosen.
pub fn resolve(sources: &Sources<'_>) -> Layout {
    let mut config = Config::UNSET;
    let mut unmet = HashMap::new();
    match sources.btf {
        Ok(btf) => {
            note(&mut unmet, Need::MemcgId, memcg_id(btf, &mut config));
            note(
                &mut unmet,
                Need::CounterOwner,
                counter_owner(btf, sources, &mut config),
            );
            note(&mut unmet, Need::OpenFile, open_file(btf, &mut config));
            note(
                &mut unmet,
                Need::StatItems,
                stat_items(btf, sources.hierarchy, &mut config),
            );
            // Where a program runs in itself, a second one would see each call twice.
            let (lacking, why) = match btf.member("bpf_prog", "active") {
                Ok(_) => (
                    Need::UnguardedPrograms,
                    "this kernel skips a program that interrupts itself",
                ),
                Err(_) => (
                    Need::GuardedPrograms,
                    "this kernel lets a program interrupt itself",
                ),
            };
            unmet.insert(lacking, why.to_owned());
            note(&mut unmet, Need::OwnPrograms, pairs::members(btf).map(drop));
            // `(data, call_site, ptr)`; when it came to tell of the cache, it came to be first ("mm,
            // tracing: record slab name for kmem_cache_free()", 5.13).
            if btf
                .function("__traceiter_kmem_cache_free")
                .is_ok_and(|function| function.params.len() > 3)
            {
                let why = "this kernel tells of a free before it";
                unmet.insert(Need::LateFreeEvents, why.to_owned());
            }
            slab_cache(btf, &mut config);
            task_memcg(btf, &mut config);
            limits::layout(btf, &mut config);
            note(
                &mut unmet,
                Need::SlabPlace,
                slab_layout::resolve(btf, sources, &mut config),
            );
        }
        Err(why) => {
            for need in [
                Need::SlabPlace,
                Need::MemcgId,
                Need::CounterOwner,
                Need::OpenFile,
                Need::StatItems,
                Need::GuardedPrograms,
                Need::UnguardedPrograms,
                Need::OwnPrograms,
                Need::LateFreeEvents,
            ] {
                unmet.insert(need, why.to_owned());
            }
        }
    }
    let other = match sources.hierarchy {
        Hierarchy::V1 => (Need::V2, "the memory controller is on cgroup v1"),
        Hierarchy::V2 => (Need::V1, "the memory controller is on cgroup v2"),
    };
    unmet.insert(other.0, other.1.to_owned());
    record_fields(sources.formats, &mut config);
    if let Ok(btf) = sources.btf {
        raw_arguments(btf, &mut config);
    }
    Layout { config, unmet }
}

fn note(unmet: &mut HashMap<Need, String>, need: Need, result: Result<(), String>) {
    if let Err(why) = result {
        unmet.insert(need, why);
    }
}

pub(super) fn offset(btf: &KernelBtf, strukt: &str, path: &str) -> Result<u32, String> {
    btf.member(strukt, path)
        .map(|member| member.offset)
        .map_err(|error| error.to_string())
}

/// From a `struct mem_cgroup` to its id and its ancestors.
fn memcg_id(btf: &KernelBtf, config: &mut Config) -> Result<(), String> {
    config.memcg_css_cgroup = offset(btf, "mem_cgroup", "css.cgroup")?;
    config.memcg_css_ss = offset(btf, "mem_cgroup", "css.ss")?;
    config.cgroup_level = offset(btf, "cgroup", "level")?;
    config.cgroup_kn = offset(btf, "cgroup", "kn")?;
    // 6.1 replaced the ids by pointers.
    config.cgroup_ancestors = match offset(btf, "cgroup", "ancestors") {
        Ok(found) => found,
        Err(_) => {
            config.cgroup_ancestors_are_ids = 1;
            offset(btf, "cgroup", "ancestor_ids")?
        }
    };
    kernfs_id(btf, config)?;
    config.cgroup_root_member = offset(btf, "cgroup", "root")?;
    config.cgroup_root_number = offset(btf, "cgroup_root", "hierarchy_id")?;
    config.task_pid = offset(btf, "task_struct", "pid")?;
    Ok(())
}

/// What `cgroup_ino` (include/linux/cgroup.h) reads: `id` since 5.5, the lower half of it since
/// 4.14, `ino` before.
pub(super) fn kernfs_id(btf: &KernelBtf, config: &mut Config) -> Result<(), String> {
    let halves =
        offset(btf, "kernfs_node", "id.ino").or_else(|_| offset(btf, "kernfs_node", "ino"));
    if let Ok(half) = halves {
        config.kernfs_node_id = half;
        config.kernfs_node_id_mask = u64::from(u32::MAX);
        return Ok(());
    }
    let id = btf
        .member("kernfs_node", "id")
        .map_err(|error| error.to_string())?;
    if id.size != 8 {
        return Err(format!("kernfs_node.id has {} bytes here, not 8", id.size));
    }
    config.kernfs_node_id = id.offset;
    Ok(())
}

/// From a page counter to the `struct mem_cgroup` around it.
fn counter_owner(
    btf: &KernelBtf,
    sources: &Sources<'_>,
    config: &mut Config,
) -> Result<(), String> {
    config.page_counter_parent = offset(btf, "page_counter", "parent")?;
    config.memcg_counter[0] = offset(btf, "mem_cgroup", "memory")?;
    for (slot, names) in [
        (1, &["kmem"][..]),
        (2, &["memsw", "swap"]),
        (3, &["tcpmem"]),
    ] {
        let found = names
            .iter()
            .find_map(|name| offset(btf, "mem_cgroup", name).ok());
        config.memcg_counter[slot] = found.unwrap_or(ABSENT);
    }
    let subsys = sources.symbols.address("memory_cgrp_subsys");
    config.memory_cgrp_subsys = subsys.unwrap_or(0);
    match subsys {
        Some(_) => Ok(()),
        None if sources.symbols.addresses_hidden => Err(
            "kernel addresses are hidden (needs CAP_SYSLOG, or kernel.kptr_restrict=0)".to_owned(),
        ),
        None => Err(
            "this kernel lists no data symbols, and no cgroup showed where memory_cgrp_subsys is: whose page counter it is cannot be told"
                .to_owned(),
        ),
    }
}

/// From a file being written to its cgroup.
fn open_file(btf: &KernelBtf, config: &mut Config) -> Result<(), String> {
    config.open_file_kn = offset(btf, "kernfs_open_file", "kn")?;
    config.kernfs_node_name = offset(btf, "kernfs_node", "name")?;
    config.kernfs_node_priv = offset(btf, "kernfs_node", "priv")?;
    config.kernfs_node_parent =
        offset(btf, "kernfs_node", "parent").or_else(|_| offset(btf, "kernfs_node", "__parent"))?;
    Ok(())
}

/// The items that, together, are the usage but for the stocks (`memory_stats` in mm/memcontrol.c).
///
/// On v1, socket buffers are charged to `tcpmem`, beside `memory`; on v2 to `memory`.
fn stat_items(btf: &KernelBtf, hierarchy: Hierarchy, config: &mut Config) -> Result<(), String> {
    let item = |enumeration: &str, name: &str| -> Result<i32, BtfError> {
        btf.enum_value(Some(enumeration), name)
            .map(|value| value as i32)
    };
    let text = |error: BtfError| error.to_string();
    config.lruvec_items[0][0] = item("node_stat_item", "NR_ANON_MAPPED").map_err(text)?;
    config.lruvec_items[1][0] = item("node_stat_item", "NR_FILE_PAGES").map_err(text)?;
    config.state_items[2][0] = item("memcg_stat_item", "MEMCG_KMEM").map_err(text)?;
    if hierarchy == Hierarchy::V2 {
        config.state_items[3][0] = item("memcg_stat_item", "MEMCG_SOCK").map_err(text)?;
    }
    // Huge pages of hugetlbfs, where the kernel charges them to memory cgroups.
    if let Ok(huge) = item("node_stat_item", "NR_HUGETLB") {
        config.lruvec_items[1][ITEMS - 1] = huge;
    }
    Ok(())
}

/// From a task, or the `mm` that it owns, to its memory cgroup.
fn task_memcg(btf: &KernelBtf, config: &mut Config) {
    config.task_cgroups = offset(btf, "task_struct", "cgroups").unwrap_or(ABSENT);
    config.mm_owner = offset(btf, "mm_struct", "owner").unwrap_or(ABSENT);
    let subsys = offset(btf, "css_set", "subsys");
    config.css_set_memory = match (subsys, memory_subsystem(btf)) {
        (Ok(subsys), Some(id)) => subsys + id * 8,
        _ => ABSENT,
    };
}

/// `memory_cgrp_id`: the memory controller's place in arrays of controllers.
pub fn memory_subsystem(btf: &KernelBtf) -> Option<u32> {
    ["memory_cgrp_id", "mem_cgroup_subsys_id"]
        .iter()
        .find_map(|name| btf.enum_value(Some("cgroup_subsys_id"), name).ok())
        .and_then(|id| u32::try_from(id).ok())
}

fn slab_cache(btf: &KernelBtf, config: &mut Config) {
    let find = |path: &str| offset(btf, "kmem_cache", path).unwrap_or(ABSENT);
    config.kmem_cache_name = find("name");
    config.kmem_cache_size = find("size");
    config.kmem_cache_object_size = find("object_size");
    config.kmem_cache_flags = find("flags");
}

/// Positions of a user charge function's arguments, by their names.
///
/// # Errors
/// Where type information does not have the function or one of the arguments.
pub fn user_charge(
    btf: Result<&KernelBtf, &str>,
    symbol: &str,
    config: &mut Config,
) -> Result<(), String> {
    let function = btf
        .map_err(str::to_owned)?
        .function(symbol)
        .map_err(|error| error.to_string())?;
    let position = |wanted: &[&str]| {
        function
            .params
            .iter()
            .position(|param| wanted.contains(&param.name.as_str()))
            .map(|found| found as u32)
            .ok_or_else(|| format!("{symbol} has no argument {}", wanted.join(" or ")))
    };
    let memcg = position(&["memcg", "ptr", "memcgp"])?;
    config.user_charge_memcg = memcg;
    let is_out = function.params[memcg as usize]
        .type_name
        .matches('*')
        .count()
        == 2;
    config.user_charge_memcg_is_out = u32::from(is_out);
    config.user_charge_mm = position(&["mm"]).unwrap_or(ABSENT);
    config.user_charge_pages = position(&["nr_pages"])?;
    config.user_charge_gfp = position(&["gfp_mask", "gfp"])?;
    config.user_charge_args = function.params.len() as u32;
    Ok(())
}

fn field(
    formats: &HashMap<(&'static str, &'static str), Format>,
    event: (&'static str, &'static str),
    name: &str,
) -> u32 {
    formats
        .get(&event)
        .and_then(|format| format.fields.iter().find(|field| field.name == name))
        .map_or(ABSENT, |field| field.offset)
}

fn record_fields(formats: &HashMap<(&'static str, &'static str), Format>, config: &mut Config) {
    let state = ("memcg", "mod_memcg_state");
    config.memcg_state_id = field(formats, state, "id");
    config.memcg_state_item = field(formats, state, "item");
    config.memcg_state_val = field(formats, state, "val");
    let lruvec = ("memcg", "mod_memcg_lruvec_state");
    config.memcg_lruvec_id = field(formats, lruvec, "id");
    config.memcg_lruvec_item = field(formats, lruvec, "item");
    config.memcg_lruvec_val = field(formats, lruvec, "val");
    // mkdir, rmdir, release and rename are of one event class and so of one format.
    let mkdir = ("cgroup", "cgroup_mkdir");
    config.cgroup_root = field(formats, mkdir, "root");
    config.cgroup_lvl = field(formats, mkdir, "level");
    config.cgroup_id = field(formats, mkdir, "id");
    config.cgroup_path = field(formats, mkdir, "path");
    let attach = ("cgroup", "cgroup_attach_task");
    config.attach_root = field(formats, attach, "dst_root");
    config.attach_lvl = field(formats, attach, "dst_level");
    config.attach_id = field(formats, attach, "dst_id");
    config.attach_path = field(formats, attach, "dst_path");
    config.attach_pid = field(formats, attach, "pid");
}

/// The slab events' fields in their classic records.
pub fn slab_records(formats: &HashMap<(&'static str, &'static str), Format>, config: &mut Config) {
    for (name, place) in slab_events(config) {
        let find = |field_name: &str| field(formats, ("kmem", name), field_name);
        *place = SlabFields {
            call_site: find("call_site"),
            object: find("ptr"),
            bytes_req: find("bytes_req"),
            bytes_alloc: find("bytes_alloc"),
            gfp: find("gfp_flags"),
            accounted: find("accounted"),
            cache: ABSENT,
            name: find("name"),
        };
    }
}

/// The slab events' arguments as raw tracepoints: those of `__traceiter_NAME`, less the first.
fn raw_arguments(btf: &KernelBtf, config: &mut Config) {
    for (name, place) in slab_events(config) {
        let Ok(function) = btf.function(&format!("__traceiter_{name}")) else {
            continue;
        };
        let find = |wanted: &[&str]| {
            function
                .params
                .iter()
                .skip(1)
                .position(|param| wanted.contains(&param.name.as_str()))
                .map_or(ABSENT, |found| found as u32)
        };
        *place = SlabFields {
            call_site: find(&["call_site"]),
            object: find(&["ptr"]),
            bytes_req: find(&["bytes_req"]),
            bytes_alloc: find(&["bytes_alloc"]),
            gfp: find(&["gfp_flags"]),
            accounted: ABSENT,
            cache: find(&["s"]),
            name: ABSENT,
        };
    }
}

fn slab_events(config: &mut Config) -> [(&'static str, &mut SlabFields); 4] {
    [
        ("kmem_cache_alloc", &mut config.cache_alloc),
        ("kmalloc", &mut config.kmalloc),
        ("kmem_cache_free", &mut config.cache_free),
        ("kfree", &mut config.kfree),
    ]
}
