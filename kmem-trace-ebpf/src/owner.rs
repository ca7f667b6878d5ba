//! Whose a slab object is: from what it is charged to (`struct obj_cgroup`) to the cgroup that it
//! was charged to first, which may have been removed since.
//!
//! When a cgroup is removed, its objcg is handed to the parent (`memcg_reparent_objcgs`): the
//! objects stay charged to the same objcg, and that from then on to the parent. As long as a cgroup
//! lives, its `objcg` member points back; so one comparison tells the two apart, and only objcgs of
//! the removed are looked up in a map. That is filled when a cgroup's directory is removed: its
//! objcg is handed over later, under the same `cgroup_mutex`.

use aya_ebpf::{bindings::BPF_ANY, helpers::bpf_get_current_task, macros::map, maps::LruHashMap};
use kmem_trace_ebpf::{
    config::{ABSENT, ROOTS},
    sums::{DEAD as MOST_DEAD, Dead, OTHERS},
    totals::DEAD_NOTED,
};

use crate::{
    maps::tally,
    read::{attributes, config, peek, peek_half},
};

/// Address of a `struct obj_cgroup` → the removed cgroup that it was made for. An address that is
/// used again leads here only until its new cgroup is removed too, and is then overwritten or, of a
/// cgroup that is not traced, taken out; an entry counts only while the objcg belongs to an older
/// cgroup than the removed one.
#[map]
pub static DEAD: LruHashMap<u64, Dead> = LruHashMap::with_max_entries(MOST_DEAD, 0);

/// Nodes whose objcgs are told apart, where each has its own, at most.
const NODES: u32 = 64;

/// The memory cgroup of a task; 0: none.
#[inline(always)]
pub fn asking() -> u64 {
    let set = peek(unsafe { bpf_get_current_task() }, config!(task_cgroups));
    let css = peek(set, config!(css_set_memory));
    if css == 0 {
        return 0;
    }
    css.wrapping_sub(u64::from(config!(memcg_css)))
}

/// `cgroup->kn->id`.
#[inline(always)]
fn id(cgroup: u64) -> u64 {
    let node = peek(cgroup, config!(cgroup_kn));
    peek(node, config!(kernfs_node_id)) & config!(kernfs_node_id_mask)
}

/// Traced: the cgroup's id; not traced: [`OTHERS`]; none: 0.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn named(memcg: u64) -> u64 {
    if !attributes() {
        return 0;
    }
    let cgroup = peek(memcg, config!(memcg_css_cgroup));
    if cgroup == 0 {
        return 0;
    }
    named_cgroup(cgroup)
}

#[inline(always)]
fn named_cgroup(cgroup: u64) -> u64 {
    let level = peek_half(cgroup, config!(cgroup_level));
    let mut root = 0;
    while root < ROOTS {
        if (root as u32) < config!(roots_len) {
            let top = config!(roots[root].level);
            // As `cgroup_is_descendant` finds it.
            if level >= top {
                let place = config!(cgroup_ancestors).wrapping_add(top.wrapping_mul(8));
                let mut above = peek(cgroup, place);
                if config!(cgroup_ancestors_are_ids) != 1 {
                    above = id(above);
                }
                if above == config!(roots[root].id) {
                    return id(cgroup);
                }
            }
        }
        root += 1;
    }
    OTHERS
}

/// The objcg of a memory cgroup for one node.
#[inline(always)]
fn objcg_of(memcg: u64, node: u32) -> u64 {
    if config!(memcg_objcg) != ABSENT {
        return peek(memcg, config!(memcg_objcg));
    }
    let place = config!(memcg_nodeinfo).wrapping_add(node.wrapping_mul(8));
    peek(peek(memcg, place), config!(per_node_objcg))
}

/// Whether this kernel's types tell an objcg of a removed cgroup.
#[inline(always)]
fn can_tell() -> bool {
    config!(memcg_serial) != ABSENT
        && (config!(memcg_objcg) != ABSENT
            || config!(memcg_nodeinfo) != ABSENT && config!(per_node_objcg) != ABSENT)
}

/// Whether an objcg may have been handed to `memcg` by a cgroup that was removed.
#[inline(always)]
pub fn is_inherited(objcg: u64, memcg: u64) -> bool {
    can_tell() && objcg_of(memcg, 0) != objcg
}

/// The removed cgroup whose an objcg was; 0 where it is `memcg`'s own after all, and [`OTHERS`] where
/// nothing says whose it was.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn former(objcg: u64, memcg: u64) -> u64 {
    if !attributes() {
        return OTHERS;
    }
    if config!(memcg_objcg) == ABSENT {
        let mut node = 1;
        while node < NODES {
            if node < config!(nodes) && objcg_of(memcg, node) == objcg {
                return 0;
            }
            node += 1;
        }
    }
    let Some(dead) = DEAD.get_ptr(objcg) else {
        return OTHERS;
    };
    // Ancestors are older.
    if unsafe { (*dead).serial } > peek(memcg, config!(memcg_serial)) {
        unsafe { (*dead).cgroup_id }
    } else {
        OTHERS
    }
}

/// A cgroup's directory was removed.
#[inline(always)]
pub fn removed(cgroup: u64) {
    if !attributes() || !can_tell() {
        return;
    }
    let css = peek(cgroup, config!(cgroup_memory_css));
    let cgroup_id = named_cgroup(cgroup);
    if css == 0 || config!(memcg_css) == ABSENT {
        return;
    }
    let memcg = css.wrapping_sub(u64::from(config!(memcg_css)));
    let dead = Dead {
        cgroup_id,
        serial: peek(memcg, config!(memcg_serial)),
    };
    let mut node = 0;
    while node < NODES {
        if node == 0 || config!(memcg_objcg) == ABSENT && node < config!(nodes) {
            let objcg = objcg_of(memcg, node);
            if cgroup_id == OTHERS {
                // Whose entry that may be had the address before.
                let _ = DEAD.remove(objcg);
            } else if objcg != 0 && DEAD.insert(objcg, &dead, u64::from(BPF_ANY)).is_ok() {
                tally(DEAD_NOTED, 1);
            }
        }
        node += 1;
    }
}
