//! Cgroups that come and go, and tasks that move between them.

use aya_ebpf::helpers::generated::bpf_probe_read_kernel_str;
use kmem_trace_ebpf::{
    config::ABSENT,
    record::{CgroupRecord, KIND_CGROUP, PATH_LEN},
};

use crate::{
    maps::{header, send},
    read::{config, field_u32, field_u64},
};

/// Where one tracepoint's record keeps its fields.
pub struct Fields {
    pub root: u32,
    pub level: u32,
    pub id: u32,
    pub path: u32,
    pub task: u32,
}

/// A `cgroup:*` tracepoint fired; `context` is its record.
#[inline(always)]
pub fn cgroup_event(context: *const u8, op: u8, fields: &Fields) {
    let hierarchy = field_u32(context, fields.root);
    let wanted = config!(hierarchy_id);
    if wanted != ABSENT && wanted != hierarchy {
        return;
    }
    let cgroup_id = field_u64(context, fields.id);
    let level = field_u32(context, fields.level);
    let task = field_u32(context, fields.task);
    send::<CgroupRecord>(|record| unsafe {
        (&raw mut (*record).header).write(header(KIND_CGROUP, size_of::<CgroupRecord>()));
        (&raw mut (*record).cgroup_id).write(cgroup_id);
        (&raw mut (*record).hierarchy).write(hierarchy);
        (&raw mut (*record).task).write(task);
        (&raw mut (*record).level).write(level);
        (&raw mut (*record).op).write(op);
        (&raw mut (*record).reserved).write([0; 3]);
        let path = &raw mut (*record).path;
        path.write([0; PATH_LEN]);
        if config!(can_read) == 1 {
            // `__data_loc`: the low half is the string's offset from the record's beginning.
            let place = field_u32(context, fields.path) & 0xffff;
            let text = (context as u64).wrapping_add(u64::from(place));
            let _ = bpf_probe_read_kernel_str(path.cast(), PATH_LEN as u32, text as *const _);
        }
    });
}
