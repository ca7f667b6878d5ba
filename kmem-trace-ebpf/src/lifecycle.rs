//! Cgroups that come and go, and tasks that move between them.

use kmem_trace_ebpf::{
    config::ABSENT,
    record::{CgroupRecord, KIND_CGROUP, OP_RELEASE, PATH_LEN},
    totals::ROLE_CGROUP,
};

use crate::{
    maps::{CGROUPS, Context, PLACES, header, send},
    read::{config, read_kernel_str},
};

/// The fields of one `cgroup:*` tracepoint's record.
pub struct Fields {
    /// Number of the hierarchy.
    pub hierarchy: u32,
    pub level: u32,
    pub cgroup_id: u64,
    pub task: u32,
    /// Where the path's text is; 0 where it is not known.
    pub path: u64,
}

/// A `cgroup:*` tracepoint fired.
#[inline(always)]
pub fn cgroup_event(ctx: Context, op: u8, fields: &Fields) {
    let wanted = config!(hierarchy_id);
    if wanted != ABSENT && wanted != fields.hierarchy {
        return;
    }
    // Ids of different hierarchies may be the same.
    if op == OP_RELEASE && wanted != ABSENT {
        let_go(fields.cgroup_id);
    }
    send::<CgroupRecord>(ctx, ROLE_CGROUP, |record| unsafe {
        (&raw mut (*record).header).write(header(KIND_CGROUP, size_of::<CgroupRecord>()));
        (&raw mut (*record).cgroup_id).write(fields.cgroup_id);
        (&raw mut (*record).hierarchy).write(fields.hierarchy);
        (&raw mut (*record).task).write(fields.task);
        (&raw mut (*record).level).write(fields.level);
        (&raw mut (*record).op).write(op);
        (&raw mut (*record).reserved).write([0; 3]);
        let path = &raw mut (*record).path;
        path.write([0; PATH_LEN]);
        if config!(can_read) == 1 && fields.path != 0 {
            let text = fields.path as *const _;
            let _ = read_kernel_str(path.cast(), PATH_LEN as u32, text);
        }
    });
}

/// The kernel frees a cgroup only after its memory controller's part, to which no charge leads any
/// more (`css_free_rwork_fn`): what its place holds is final, and userspace may take it away.
#[inline(always)]
fn let_go(cgroup_id: u64) {
    let Some(place) = PLACES.get_ptr(cgroup_id) else {
        return;
    };
    if let Some(entry) = CGROUPS.get_ptr_mut(unsafe { *place }) {
        unsafe { (&raw mut (*entry).released).write_volatile(1) };
    }
    let _ = PLACES.remove(cgroup_id);
}
