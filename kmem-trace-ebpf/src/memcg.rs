//! From kernel pointers to memory cgroups: whose counter is it, is it traced, what is its id.

use kmem_trace_ebpf::{
    config::{ABSENT, ROOTS},
    totals::{ANCESTRY_DEPTH, Ancestry, COUNTERS, LOST_DEPTH, SLOT_MEMORY},
};

use crate::{
    maps::{ANCESTRY, tally},
    read::{config, member, typed},
};

/// The slot and the `struct mem_cgroup` that a `struct page_counter` is embedded in.
///
/// Other controllers have page counters too, so a candidate counts only if its `css.ss` is
/// `memory_cgrp_subsys`.
#[inline(always)]
pub fn owner(counter: u64) -> Option<(usize, u64)> {
    let subsys = config!(memory_cgrp_subsys);
    let mut slot = 0;
    while slot < COUNTERS {
        let offset = config!(memcg_counter[slot]);
        if offset != ABSENT {
            let memcg = counter.wrapping_sub(u64::from(offset));
            if member::<u64>(memcg, config!(memcg_css_ss)) == Some(subsys) {
                return Some((slot, memcg));
            }
        }
        slot += 1;
    }
    None
}

/// `memcg->css.cgroup`.
#[inline(always)]
pub fn cgroup_of(memcg: u64) -> Option<u64> {
    member(memcg, config!(memcg_css_cgroup))
}

/// `cgroup->kn->id`: the inode number of the cgroup's directory.
#[inline(always)]
pub fn id_of(cgroup: u64) -> Option<u64> {
    let node: u64 = member(cgroup, config!(cgroup_kn))?;
    member(node, config!(kernfs_node_id))
}

/// The id of a cgroup's ancestor at `level`, as `cgroup_is_descendant` finds it.
#[inline(always)]
fn ancestor_id(cgroup: u64, level: u32) -> Option<u64> {
    let place = config!(cgroup_ancestors).wrapping_add(level.wrapping_mul(8));
    let found: u64 = member(cgroup, place)?;
    if config!(cgroup_ancestors_are_ids) == 1 {
        Some(found)
    } else {
        id_of(found)
    }
}

/// Whether a cgroup is in one of the traced subtrees.
#[inline(always)]
pub fn is_traced(cgroup: u64) -> bool {
    let Some(level) = member::<u32>(cgroup, config!(cgroup_level)) else {
        return false;
    };
    let mut i = 0;
    while i < ROOTS {
        if (i as u32) < config!(roots_len) {
            let top = config!(roots[i].level);
            if level >= top && ancestor_id(cgroup, top) == Some(config!(roots[i].id)) {
                return true;
            }
        }
        i += 1;
    }
    false
}

/// Writes down whose parent is whose, from `memcg` up to the first cgroup that is known already.
///
/// Asked of the page counters, because they are what charges climb: without `use_hierarchy`
/// (v1 before 5.11) that is not the directory tree.
#[inline(always)]
pub fn note_ancestry(memcg: u64, cgroup_id: u64) {
    let memory = config!(memcg_counter[SLOT_MEMORY]);
    let mut id = cgroup_id;
    let mut counter = memcg.wrapping_add(u64::from(memory));
    let mut depth = 0;
    while depth < ANCESTRY_DEPTH {
        let parent = member::<u64>(counter, config!(page_counter_parent)).unwrap_or(0);
        let mut parent_id = 0;
        if parent != 0 {
            let parent_memcg = parent.wrapping_sub(u64::from(memory));
            parent_id = cgroup_of(parent_memcg).and_then(id_of).unwrap_or(0);
        }
        let known = ANCESTRY
            .insert(
                id,
                &Ancestry { parent_id },
                u64::from(aya_ebpf::bindings::BPF_NOEXIST),
            )
            .is_err();
        if known || parent_id == 0 {
            return;
        }
        id = parent_id;
        counter = parent;
        depth += 1;
    }
    tally(LOST_DEPTH, 1);
}

/// [`cgroup_of`] and [`id_of`] for a `struct mem_cgroup` that the verifier knows by its type.
#[inline(always)]
pub fn typed_id(memcg: *const u8) -> u64 {
    typed_cgroup_id(typed(memcg, config!(memcg_css_cgroup)))
}

/// [`id_of`] for a `struct cgroup` that the verifier knows by its type.
#[inline(always)]
pub fn typed_cgroup_id(cgroup: *const u8) -> u64 {
    let node: *const u8 = typed(cgroup, config!(cgroup_kn));
    typed(node, config!(kernfs_node_id))
}
