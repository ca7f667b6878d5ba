//! A memory cgroup's own counters (`memory.stat` items), read on request: no hook, no record, one
//! run in the tracer's own context, which holds the cgroup's directory open.

use aya_ebpf::{macros::map, maps::Array};
use kmem_trace_ebpf::words::{
    FROM_ADDRESS, FROM_STATE, Members, NO_DIRECTORY, NO_MEMCG, OTHER_DIRECTORY, OTHER_MEMCG, READ,
    UNREADABLE, WORDS,
};

use crate::read::{config, member, read_kernel};

/// Filled in by userspace before loading, as `CONFIG` is.
#[unsafe(no_mangle)]
static MEMBERS: Members = Members::UNSET;

macro_rules! members {
    ($field:ident) => {{ unsafe { core::ptr::read_volatile(&raw const MEMBERS.$field) } }};
}

/// What to read, and after the run what was read.
#[map]
static STAT_WORDS: Array<u64> = Array::with_max_entries(WORDS as u32, 0);

/// Reads the first `count` words of [`STAT_WORDS`]. `fd` is a directory that `task` holds open,
/// `cgroup_id` the id that its cgroup is to have.
#[inline(always)]
pub fn read_words(task: u64, fd: u64, cgroup_id: u64, from: u64, count: u64) -> u32 {
    let base = if from == FROM_ADDRESS {
        0
    } else {
        let css = match state_of(task, fd, cgroup_id) {
            Ok(found) => found,
            Err(how_far) => return how_far,
        };
        if from == FROM_STATE {
            css
        } else {
            match counters_of(css) {
                Some(found) => found,
                None => return UNREADABLE,
            }
        }
    };
    let mut i = 0;
    while i < WORDS as u32 {
        if u64::from(i) >= count {
            break;
        }
        let Some(word) = STAT_WORDS.get_ptr_mut(i) else {
            return UNREADABLE;
        };
        unsafe {
            let address = base.wrapping_add(*word) as *const u64;
            match read_kernel(address) {
                Ok(found) => *word = found,
                Err(_) => return UNREADABLE,
            }
        }
        i += 1;
    }
    READ
}

/// `struct cgroup_subsys_state` of the memory cgroup whose directory `fd` is.
#[inline(always)]
fn state_of(task: u64, fd: u64, cgroup_id: u64) -> Result<u64, u32> {
    let node = directory(task, fd).ok_or(NO_DIRECTORY)?;
    let id = member::<u64>(node, config!(kernfs_node_id)).ok_or(NO_DIRECTORY)?;
    if id & config!(kernfs_node_id_mask) != cgroup_id {
        return Err(OTHER_DIRECTORY);
    }
    let cgroup = member::<u64>(node, members!(kernfs_node_priv)).ok_or(NO_MEMCG)?;
    let css = member::<u64>(cgroup, config!(cgroup_memory_css)).ok_or(NO_MEMCG)?;
    if css == 0 {
        return Err(NO_MEMCG);
    }
    if member::<u64>(css, members!(css_cgroup)) != Some(cgroup) {
        return Err(OTHER_MEMCG);
    }
    Ok(css)
}

/// Address of a memory cgroup's counters.
#[inline(always)]
fn counters_of(css: u64) -> Option<u64> {
    let memcg = css.wrapping_sub(u64::from(config!(memcg_css)));
    if members!(is_pointer) == 1 {
        let all = member::<u64>(memcg, members!(memcg_counters)).filter(|all| *all != 0)?;
        Some(all.wrapping_add(u64::from(members!(counters))))
    } else {
        Some(memcg.wrapping_add(u64::from(members!(memcg_counters))))
    }
}

/// `task->files->fdt->fd[fd]->f_inode->i_private`.
#[inline(always)]
fn directory(task: u64, fd: u64) -> Option<u64> {
    let files: u64 = member(task, members!(task_files))?;
    let table: u64 = member(files, members!(files_fdt))?;
    let array: u64 = member(table, members!(fdtable_fd))?;
    if array == 0 {
        return None;
    }
    let file: u64 = member(array.wrapping_add(fd.wrapping_mul(8)), 0)?;
    let inode: u64 = member(file, members!(file_inode))?;
    member(inode, members!(inode_private)).filter(|node| *node != 0)
}
