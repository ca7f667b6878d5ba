//! Writes to limit files, and changes of the v1 kernel memory limit: what the counters said
//! before, what was written, what the counters said after.

use aya_ebpf::{bindings::BPF_ANY, helpers::bpf_get_current_pid_tgid, macros::map, maps::HashMap};
use kmem_trace_ebpf::{
    config::ABSENT,
    record::{
        FILE_LEN, KIND_LIMIT, LIMITS, LimitRecord, SOURCE_FILE, SOURCE_KMEM, TEXT_LEN, UNREAD,
        UNREAD_WORD,
    },
    totals::{COUNTERS, LOST_MAP_FULL, LOST_UNREAD, ROLE_LIMIT},
};

use crate::{
    maps::{Context, header, send, tally},
    memcg::{cgroup_of, id_of, is_traced},
    read::{config, member, read_kernel_str},
};

/// A write between its entry and its return.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Writing {
    cgroup: u64,
    memcg: u64,
    /// Address of the file's name; 0 where no file is known.
    name: u64,
    text: u64,
    text_len: u64,
    /// The value given to the kernel memory limit; [`UNREAD`] for a file.
    value: u64,
    before: [u64; LIMITS],
    kmem_before: u64,
}

/// Thread → its write. A thread writes one file at a time; the change of the kernel memory limit
/// that such a write makes has the top bit set, which no process id has.
#[map]
static WRITING: HashMap<u64, Writing> = HashMap::with_max_entries(1024, 0);

const NESTED: u64 = 1 << 63;

/// A limit of `memcg`, in the unit of this kernel's counters.
#[inline(always)]
fn limit_of(memcg: u64, offset: u32) -> u64 {
    member::<u64>(memcg, offset).unwrap_or(UNREAD)
}

/// Reads all limits into `into`, one by one: a loop would keep the offsets on the stack.
macro_rules! read_limits {
    ($memcg:expr, $into:expr) => {{
        let memcg = $memcg;
        let into: *mut u64 = $into;
        #[allow(unused_unsafe)] // it stands inside unsafe blocks too
        unsafe {
            into.write(limit_of(memcg, config!(limit_at[0])));
            into.add(1).write(limit_of(memcg, config!(limit_at[1])));
            into.add(2).write(limit_of(memcg, config!(limit_at[2])));
            into.add(3).write(limit_of(memcg, config!(limit_at[3])));
            into.add(4).write(limit_of(memcg, config!(limit_at[4])));
            into.add(5).write(limit_of(memcg, config!(limit_at[5])));
            into.add(6).write(limit_of(memcg, config!(limit_at[6])));
            into.add(7).write(limit_of(memcg, config!(limit_at[7])));
        }
    }};
}

/// The member that says whether kernel memory of this cgroup is accounted, raw.
#[inline(always)]
fn kmem_state(memcg: u64) -> u32 {
    let place = config!(memcg_kmem_state);
    match config!(memcg_kmem_state_bytes) {
        1 => member::<u8>(memcg, place).map_or(UNREAD_WORD, u32::from),
        4 => member::<u32>(memcg, place).unwrap_or(UNREAD_WORD),
        _ => UNREAD_WORD,
    }
}

/// `css` of the memory controller → `struct mem_cgroup`.
#[inline(always)]
fn memcg_of(css: u64) -> u64 {
    match config!(memcg_css) {
        ABSENT => 0,
        offset if css != 0 => css.wrapping_sub(u64::from(offset)),
        _ => 0,
    }
}

/// What names a limit write: the arguments of the handler, where this kernel has them.
pub struct Handler {
    /// `struct kernfs_open_file *`; 0 where the handler has none.
    pub open_file: u64,
    /// `struct cgroup *` or `struct cgroup_subsys_state *`, before 3.16.
    pub cgroup: u64,
    /// `struct cftype *`, before 3.16.
    pub cftype: u64,
    pub text: u64,
    pub text_len: u64,
}

/// `mem_cgroup_write` or one of its v2 relatives begins.
#[inline(always)]
pub fn limit_entered(handler: Handler) {
    let (cgroup, name) = if handler.open_file != 0 {
        let Some(node) = member::<u64>(handler.open_file, config!(open_file_kn)) else {
            return;
        };
        let Some(directory) = member::<u64>(node, config!(kernfs_node_parent)) else {
            return;
        };
        // A cgroup directory's `kn->priv` is its `struct cgroup`.
        let Some(cgroup) = member::<u64>(directory, config!(kernfs_node_priv)) else {
            return;
        };
        (
            cgroup,
            member::<u64>(node, config!(kernfs_node_name)).unwrap_or(0),
        )
    } else {
        let cgroup = if config!(limit_args.cgroup_is_css) == 1 {
            cgroup_of(memcg_of(handler.cgroup)).unwrap_or(0)
        } else {
            handler.cgroup
        };
        // `cftype.name` is an array inside the structure.
        let name = match config!(cftype_name) {
            ABSENT => 0,
            offset => handler.cftype.wrapping_add(u64::from(offset)),
        };
        (cgroup, name)
    };
    let css = member::<u64>(cgroup, config!(cgroup_memory_css)).unwrap_or(0);
    begin(
        0,
        Writing {
            cgroup,
            memcg: memcg_of(css),
            name,
            text: handler.text,
            text_len: handler.text_len,
            value: UNREAD,
            before: [UNREAD; LIMITS],
            kmem_before: 0,
        },
    );
}

/// `memcg_update_kmem_limit` or `memcg_update_kmem_max` begins.
#[inline(always)]
pub fn kmem_limit_entered(target: u64, value: u64) {
    let (cgroup, memcg) = if config!(kmem_limit_args.target_is_cgroup) == 1 {
        let css = member::<u64>(target, config!(cgroup_memory_css)).unwrap_or(0);
        (target, memcg_of(css))
    } else {
        (cgroup_of(target).unwrap_or(0), target)
    };
    begin(
        NESTED,
        Writing {
            cgroup,
            memcg,
            name: 0,
            text: 0,
            text_len: 0,
            value,
            before: [UNREAD; LIMITS],
            kmem_before: 0,
        },
    );
}

#[inline(always)]
fn begin(nested: u64, writing: Writing) {
    let mut writing = writing;
    if !is_traced(writing.cgroup) {
        return;
    }
    read_limits!(writing.memcg, (&raw mut writing.before).cast());
    writing.kmem_before = u64::from(kmem_state(writing.memcg));
    let kept = WRITING.insert(
        bpf_get_current_pid_tgid() | nested,
        &writing,
        u64::from(BPF_ANY),
    );
    if kept.is_err() {
        tally(LOST_MAP_FULL + ROLE_LIMIT, 1);
    }
}

/// The write that this thread began returned `result`.
#[inline(always)]
pub fn limit_written(ctx: Context, result: i64) {
    finish(ctx, 0, SOURCE_FILE, result);
}

/// The change of the kernel memory limit that this thread began returned `result`.
#[inline(always)]
pub fn kmem_limit_written(ctx: Context, result: i64) {
    finish(ctx, NESTED, SOURCE_KMEM, result);
}

#[inline(always)]
fn finish(ctx: Context, nested: u64, source: u32, result: i64) {
    let key = bpf_get_current_pid_tgid() | nested;
    let Some(found) = WRITING.get_ptr(key) else {
        return;
    };
    let writing = unsafe { &*found };
    let Some(cgroup_id) = id_of(writing.cgroup) else {
        let _ = WRITING.remove(key);
        tally(LOST_UNREAD + ROLE_LIMIT, 1);
        return;
    };
    send::<LimitRecord>(ctx, ROLE_LIMIT, |record| unsafe {
        (&raw mut (*record).header).write(header(KIND_LIMIT, size_of::<LimitRecord>()));
        (&raw mut (*record).cgroup_id).write(cgroup_id);
        (&raw mut (*record).result).write(result);
        (&raw mut (*record).before).write(writing.before);
        read_limits!(writing.memcg, (&raw mut (*record).after).cast());
        let usage: *mut u64 = (&raw mut (*record).usage).cast();
        const { assert!(COUNTERS == 4) };
        usage.write(limit_of(writing.memcg, config!(usage_at[0])));
        usage
            .add(1)
            .write(limit_of(writing.memcg, config!(usage_at[1])));
        usage
            .add(2)
            .write(limit_of(writing.memcg, config!(usage_at[2])));
        usage
            .add(3)
            .write(limit_of(writing.memcg, config!(usage_at[3])));
        (&raw mut (*record).value).write(writing.value);
        // The ring's memory is not cleared; both strings are kept to what was read.
        let file = &raw mut (*record).file;
        file.write([0; FILE_LEN]);
        if writing.name != 0 {
            let _ = read_kernel_str(file.cast(), FILE_LEN as u32, writing.name as *const _);
        }
        let text = &raw mut (*record).text;
        text.write([0; TEXT_LEN]);
        if writing.text != 0 {
            let _ = read_kernel_str(text.cast(), TEXT_LEN as u32, writing.text as *const _);
        }
        (&raw mut (*record).text_len).write(writing.text_len as u32);
        (&raw mut (*record).source).write(source);
        (&raw mut (*record).kmem_before).write(writing.kmem_before as u32);
        (&raw mut (*record).kmem_after).write(kmem_state(writing.memcg));
        let populated = member::<u32>(writing.cgroup, config!(cgroup_populated));
        (&raw mut (*record).populated).write(populated.unwrap_or(UNREAD_WORD));
        (&raw mut (*record).descendants).write(descendants(writing.cgroup));
    });
    let _ = WRITING.remove(key);
}

/// Living cgroups below; where the kernel keeps no number, 1 for some and 0 for none.
#[inline(always)]
fn descendants(cgroup: u64) -> u32 {
    if let Some(count) = member::<u32>(cgroup, config!(cgroup_descendants)) {
        return count;
    }
    let place = config!(cgroup_children);
    match member::<u64>(cgroup, place) {
        // An empty list points at its own head.
        Some(first) => u32::from(first != cgroup.wrapping_add(u64::from(place))),
        None => UNREAD_WORD,
    }
}
