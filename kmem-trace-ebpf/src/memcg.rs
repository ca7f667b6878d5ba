//! From kernel pointers to memory cgroups: whose counter is it, is it traced, what is its id.

use kmem_trace_ebpf::{
    config::{ABSENT, ROOTS},
    selfcheck::{HOLDS, NO_MEMCG, OTHER_ANCESTORS, OTHER_COUNTER, OTHER_ID, OTHER_SUBSYSTEM},
    totals::{ANCESTRY_DEPTH, COUNTERS, LOST_DEPTH, SLOT_MEMORY},
};

use crate::{
    maps::{CGROUPS, place, tally},
    read::{config, member, number, typed, word_at},
};

/// Deeper than any cgroup lies: what claims to be deeper is no cgroup.
const MOST_LEVELS: u32 = 1 << 12;

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
                return Some((unfollowed(slot), memcg));
            }
        }
        slot += 1;
    }
    None
}

/// The same number, of which the verifier does not know which it is: of all that comes after
/// [`owner`], one look is enough then.
#[inline(always)]
fn unfollowed(slot: usize) -> usize {
    #[unsafe(link_section = ".data")]
    static NUMBERS: [usize; COUNTERS] = [0, 1, 2, 3];
    unsafe {
        (&raw const NUMBERS)
            .cast::<usize>()
            .add(slot)
            .read_volatile()
    }
}

/// The memory cgroup of a task: `task->cgroups->subsys[memory_cgrp_id]`, less the place of `css`.
#[inline(always)]
pub fn memcg_of_task(task: u64) -> Option<u64> {
    let set: u64 = member(task, config!(task_cgroups))?;
    let css: u64 = member(set, config!(css_set_memory))?;
    let offset = config!(memcg_css);
    if css == 0 || offset == ABSENT {
        return None;
    }
    Some(css.wrapping_sub(u64::from(offset)))
}

/// Whether the offsets lead from a running task to the id that the directory of its memory cgroup
/// has, by every step that a ledger takes. The answer is one of `selfcheck`.
#[inline(always)]
pub fn check_offsets(task: u64) -> u32 {
    let Some(memcg) = memcg_of_task(task) else {
        return NO_MEMCG;
    };
    let subsys = config!(memory_cgrp_subsys);
    if member::<u64>(memcg, config!(memcg_css_ss)) != Some(subsys) {
        return OTHER_SUBSYSTEM;
    }
    let Some(cgroup) = cgroup_of(memcg) else {
        return OTHER_ID;
    };
    if id_of(cgroup) != Some(config!(own_cgroup)) {
        return OTHER_ID;
    }
    let Some(level) = member::<u32>(cgroup, config!(cgroup_level)) else {
        return OTHER_ANCESTORS;
    };
    if level > MOST_LEVELS || ancestor_id(cgroup, level) != Some(config!(own_cgroup)) {
        return OTHER_ANCESTORS;
    }
    let memory = config!(memcg_counter[SLOT_MEMORY]);
    let counter = memcg.wrapping_add(u64::from(memory));
    match member::<u64>(counter, config!(page_counter_parent)) {
        None => OTHER_COUNTER,
        // Of the root.
        Some(0) => HOLDS,
        Some(parent) => match owner(parent) {
            Some((SLOT_MEMORY, _)) => HOLDS,
            _ => OTHER_COUNTER,
        },
    }
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
    let id: u64 = member(node, config!(kernfs_node_id))?;
    Some(id & config!(kernfs_node_id_mask))
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
    note_ancestors(number(memcg), cgroup_id);
}

/// As global as `take_place`, and nothing in the loop branches but its end, or the verifier would look
/// at each turn twice. Returns nothing of use: a global function has to return a number.
#[cfg_attr(not(feature = "old"), unsafe(no_mangle))]
#[inline(never)]
extern "C" fn note_ancestors(memcg: u64, cgroup_id: u64) -> u64 {
    let (memory, up) = (
        config!(memcg_counter[SLOT_MEMORY]),
        config!(page_counter_parent),
    );
    // Asked here too, for whoever may not read looks into this all the same.
    if up == ABSENT || config!(can_read) != 1 {
        return 0;
    }
    let mut id = cgroup_id;
    let mut counter = memcg.wrapping_add(u64::from(memory));
    let mut depth = 0;
    while depth < ANCESTRY_DEPTH {
        let (parent, _) = word_at(counter.wrapping_add(u64::from(up)));
        id = note_parent(id, parent, depth as u64);
        if id == 0 {
            return 0;
        }
        counter = parent;
        depth += 1;
    }
    tally(LOST_DEPTH, 1);
    0
}

/// Writes down whose parent the owner of the counter `parent` is, and returns its id; 0 where there
/// is none, or where the rest is known.
#[cfg_attr(not(feature = "old"), unsafe(no_mangle))]
#[inline(never)]
extern "C" fn note_parent(id: u64, parent: u64, depth: u64) -> u64 {
    if config!(can_read) != 1 {
        return 0;
    }
    let mut parent_id = 0;
    if parent != 0 {
        let memory = config!(memcg_counter[SLOT_MEMORY]);
        let memcg = parent.wrapping_sub(u64::from(memory));
        parent_id = cgroup_of(memcg).and_then(id_of).unwrap_or(0);
    }
    let Some((found, new)) = place(id) else {
        return 0;
    };
    if let Some(entry) = CGROUPS.get_ptr_mut(found) {
        unsafe { (&raw mut (*entry).parent_id).write_volatile(parent_id) };
    }
    // The first one's place was taken by who called.
    if !new && depth > 0 {
        return 0;
    }
    parent_id
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
    typed::<u64>(node, config!(kernfs_node_id)) & config!(kernfs_node_id_mask)
}
