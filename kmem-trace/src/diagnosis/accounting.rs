//! How this kernel accounts memory: told by the types and functions it has, never by its version.

use serde::Serialize;

use super::page::{Fact, fact};
use crate::{
    kernel::{btf::KernelBtf, cgroupfs::Hierarchy, symbols::Symbols},
    reconcile::usage::STOCK_PAGES,
};

/// Functions that tell one generation from another.
pub const SYMBOLS: [&str; 9] = [
    "obj_cgroup_charge",
    "obj_cgroup_charge_pages",
    "__memcg_slab_post_alloc_hook",
    "__memcg_kmem_charge",
    "memcg_kmem_get_cache",
    "memcg_update_kmem_max",
    "memcg_update_kmem_limit",
    "mem_cgroup_write",
    "res_counter_charge",
];

/// Where a slab page keeps who pays for its objects, newest first (`slab_obj_exts`,
/// `slab_objcgs`, `page_obj_cgroups`), and what an element is.
const PAYERS: [(&str, &str, &str); 5] = [
    ("slab", "obj_exts", "a slabobj_ext for each object"),
    ("slab", "memcg_data", "a pointer for each object"),
    ("page", "obj_cgroups", "a pointer for each object"),
    ("page", "memcg_data", "a pointer for each object"),
    ("slab", "obj_cgroups", "a pointer for each object"),
];

/// What became of `memory.kmem.limit_in_bytes`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum KmemLimit {
    /// A write limits kernel memory.
    Works,
    /// The file may be there, but the kernel has no kmem limit behind it.
    NoEffect,
    /// No v1 memory controller, so no such file.
    NotThere,
    /// Neither types nor symbols could be read.
    Unknown,
}

/// How this kernel accounts, in words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Accounting {
    /// How slab objects are charged.
    pub objects: String,
    /// What page counters are.
    pub counters: String,
    /// Where an object's payer is written, or why it cannot be read.
    #[serde(serialize_with = "fact")]
    pub payer: Fact,
    pub kmem_limit: KmemLimit,
    /// The v1 interface is built in; `None` where that cannot be told.
    pub memcg_v1: Option<bool>,
    /// By what that was told.
    pub memcg_v1_why: String,
    /// The kernel counts probe runs that it skips; `None` without type information.
    pub counts_skips: Option<bool>,
    pub stock: Stock,
}

/// Charged pages that wait on CPUs for the next charge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Stock {
    /// Cgroups that a CPU keeps pages for (`struct memcg_stock_pcp`); `None` without type
    /// information, where one is assumed.
    pub cgroups_per_cpu: Option<u32>,
    pub cpus: u32,
    /// Pages that all of them together can hold, and the same in bytes.
    pub bound_pages: u64,
    pub bound_bytes: u64,
}

/// What the answer depends on.
pub struct Sources<'a> {
    pub btf: Result<&'a KernelBtf, &'a str>,
    pub symbols: &'a Symbols,
    /// Of the mounted memory controller.
    pub hierarchy: Option<Hierarchy>,
    /// CPUs online.
    pub cpus: u32,
    pub page_bytes: u64,
}

impl Accounting {
    pub fn of(sources: &Sources<'_>) -> Self {
        let (memcg_v1, memcg_v1_why) = memcg_v1(sources);
        Self {
            objects: objects(sources),
            counters: counters(sources),
            payer: payer(sources),
            kmem_limit: kmem_limit(sources, memcg_v1),
            memcg_v1,
            memcg_v1_why,
            counts_skips: sources
                .btf
                .ok()
                .map(|btf| btf.has_member("bpf_link_info", "perf_event.kprobe.missed")),
            stock: stock(sources),
        }
    }
}

fn has_symbol(sources: &Sources<'_>, name: &str) -> bool {
    sources.symbols.has_function(name) || sources.symbols.twins.contains_key(name)
}

fn has_member(sources: &Sources<'_>, strukt: &str, path: &str) -> bool {
    sources.btf.is_ok_and(|btf| btf.has_member(strukt, path))
}

fn objects(sources: &Sources<'_>) -> String {
    let per_object = has_symbol(sources, "obj_cgroup_charge")
        || has_symbol(sources, "obj_cgroup_charge_pages")
        || sources.btf.is_ok_and(|btf| btf.has_struct("obj_cgroup"));
    if per_object {
        let owner = if has_member(sources, "mem_cgroup_per_node", "objcg") {
            "one objcg per node of each cgroup"
        } else if has_member(sources, "mem_cgroup", "objcg") {
            "one objcg per cgroup"
        } else {
            "by objcg"
        };
        let path = if has_symbol(sources, "obj_cgroup_charge") {
            "obj_cgroup_charge"
        } else if has_symbol(sources, "__memcg_slab_post_alloc_hook") {
            "__memcg_slab_post_alloc_hook"
        } else if has_symbol(sources, "obj_cgroup_charge_pages") {
            "obj_cgroup_charge_pages"
        } else {
            "struct obj_cgroup"
        };
        return format!("charged one by one, {owner} ({path})");
    }
    if has_member(sources, "kmem_cache", "memcg_params")
        || has_symbol(sources, "memcg_kmem_get_cache")
    {
        return "charged page by page, in caches of each cgroup's own (memcg_kmem_get_cache)"
            .to_owned();
    }
    match sources.btf {
        Err(why) if sources.symbols.found.is_empty() => format!("cannot be told: {why}"),
        _ => "not charged: this kernel is built without kmem accounting".to_owned(),
    }
}

fn counters(sources: &Sources<'_>) -> String {
    match sources.btf {
        Ok(btf) if btf.has_struct("page_counter") => "page_counter".to_owned(),
        Ok(btf) if btf.has_struct("res_counter") => "res_counter".to_owned(),
        Ok(_) => "none: no memory controller in this kernel".to_owned(),
        Err(_) if has_symbol(sources, "res_counter_charge") => "res_counter".to_owned(),
        Err(why) => format!("cannot be told: {why}"),
    }
}

fn payer(sources: &Sources<'_>) -> Fact {
    let btf = sources.btf.map_err(str::to_owned)?;
    let found = PAYERS
        .iter()
        .find(|(strukt, member, _)| btf.has_member(strukt, member));
    let Some((strukt, member, element)) = found else {
        return Err("no slab page of this kernel says who pays for its objects".to_owned());
    };
    // The way from there to a cgroup, and the stride.
    for (strukt, member) in [
        ("obj_cgroup", "memcg"),
        ("kmem_cache", "size"),
        ("mem_cgroup", "css.cgroup"),
    ] {
        btf.member(strukt, member)
            .map_err(|error| error.to_string())?;
    }
    let element = if btf.has_member(strukt, "obj_exts_in_object") {
        "a slabobj_ext for each object, or one inside it"
    } else {
        element
    };
    Ok(format!("{strukt}.{member}, {element}"))
}

/// The kmem limit went together with the state that its first write switched on
/// (`mem_cgroup.kmem_state`), so where the compiler inlined `memcg_update_kmem_max` the member
/// still tells.
fn kmem_limit(sources: &Sources<'_>, memcg_v1: Option<bool>) -> KmemLimit {
    if has_symbol(sources, "memcg_update_kmem_max")
        || has_symbol(sources, "memcg_update_kmem_limit")
        || has_member(sources, "mem_cgroup", "kmem_state")
    {
        return KmemLimit::Works;
    }
    match (memcg_v1, sources.btf) {
        (Some(false), _) => KmemLimit::NotThere,
        (_, Ok(_)) => KmemLimit::NoEffect,
        (_, Err(_)) if !sources.symbols.found.is_empty() => KmemLimit::NoEffect,
        (_, Err(_)) => KmemLimit::Unknown,
    }
}

fn memcg_v1(sources: &Sources<'_>) -> (Option<bool>, String) {
    if sources.hierarchy == Some(Hierarchy::V1) {
        return (Some(true), "mounted".to_owned());
    }
    if has_symbol(sources, "mem_cgroup_write") {
        return (Some(true), "mem_cgroup_write is there".to_owned());
    }
    if sources.symbols.found.is_empty() {
        return (None, "kernel symbols cannot be read".to_owned());
    }
    (Some(false), "no function mem_cgroup_write".to_owned())
}

fn stock(sources: &Sources<'_>) -> Stock {
    let member = sources
        .btf
        .ok()
        .and_then(|btf| btf.member("memcg_stock_pcp", "cached").ok());
    let cgroups_per_cpu = member.map(|member| member.array_len.unwrap_or(1));
    let bound_pages =
        u64::from(sources.cpus) * u64::from(cgroups_per_cpu.unwrap_or(1)) * STOCK_PAGES;
    Stock {
        cgroups_per_cpu,
        cpus: sources.cpus,
        bound_pages,
        bound_bytes: bound_pages * sources.page_bytes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diagnosis::samples;

    #[test]
    fn a_limit_that_the_compiler_inlined_is_known_by_its_state() {
        let found = samples::accounting(&samples::old(), Hierarchy::V1);
        assert_eq!(found.kmem_limit, KmemLimit::Works);
        assert_eq!(
            found.objects,
            "charged one by one, one objcg per cgroup (obj_cgroup_charge)"
        );
        assert_eq!(
            found.payer,
            Ok("page.obj_cgroups, a pointer for each object".to_owned())
        );
        assert_eq!(found.counts_skips, Some(false));
        assert_eq!(
            (found.stock.cgroups_per_cpu, found.stock.bound_pages),
            (Some(1), 128)
        );
    }

    #[test]
    fn v1_files_without_the_state_are_a_limit_without_effect() {
        let kernel = (
            samples::btf(&[
                ("mem_cgroup", &["memory", "kmem", "objcg"]),
                ("slab", &["memcg_data"]),
                ("obj_cgroup", &["memcg"]),
                ("kmem_cache", &["size"]),
            ]),
            samples::functions(&["obj_cgroup_charge", "mem_cgroup_write"]),
        );
        let found = samples::accounting(&kernel, Hierarchy::V1);
        assert_eq!(found.kmem_limit, KmemLimit::NoEffect);
        assert_eq!(
            found.payer,
            Ok("slab.memcg_data, a pointer for each object".to_owned())
        );
    }

    #[test]
    fn a_kernel_without_the_v1_files_has_no_kmem_limit_and_several_cgroups_a_stock() {
        let found = samples::accounting(&samples::new(), Hierarchy::V2);
        assert_eq!(found.kmem_limit, KmemLimit::NotThere);
        assert_eq!(found.memcg_v1, Some(false));
        assert_eq!(found.stock.bound_pages, 2 * 7 * 64);
        assert_eq!(found.stock.bound_bytes, 2 * 7 * 64 * 4096);
        assert!(
            found.objects.contains("one objcg per node"),
            "{}",
            found.objects
        );
        assert!(
            found
                .payer
                .as_ref()
                .is_ok_and(|is| is.ends_with("or one inside it")),
            "{:?}",
            found.payer
        );
    }

    #[test]
    fn caches_of_each_cgroups_own_are_the_generation_before_objects() {
        let kernel = (
            samples::btf(&[("kmem_cache", &["size", "memcg_params"])]),
            samples::functions(&["memcg_update_kmem_limit", "mem_cgroup_write"]),
        );
        let found = samples::accounting(&kernel, Hierarchy::V1);
        assert!(
            found.objects.starts_with("charged page by page"),
            "{}",
            found.objects
        );
        assert_eq!(found.kmem_limit, KmemLimit::Works);
        assert!(found.payer.is_err());
    }

    #[test]
    fn without_types_and_symbols_nothing_is_guessed() {
        let found = Accounting::of(&Sources {
            btf: Err("no BTF"),
            symbols: &Symbols::default(),
            hierarchy: Some(Hierarchy::V2),
            cpus: 1,
            page_bytes: 4096,
        });
        assert_eq!(found.objects, "cannot be told: no BTF");
        assert_eq!(found.payer, Err("no BTF".to_owned()));
        assert_eq!(found.kmem_limit, KmemLimit::Unknown);
        assert_eq!((found.memcg_v1, found.counts_skips), (None, None));
        assert_eq!(found.stock.cgroups_per_cpu, None);
    }

    #[test]
    fn a_payer_that_leads_to_no_cgroup_is_not_readable() {
        let types = samples::btf(&[("slab", &["obj_exts"]), ("kmem_cache", &["size"])]);
        let found = samples::accounting(&(types, Symbols::default()), Hierarchy::V1);
        assert!(found.payer.is_err_and(|why| why.contains("obj_cgroup")));
    }
}
