//! Writes to limit files.

use aya_ebpf::helpers::generated::bpf_probe_read_kernel_str;
use kmem_trace_ebpf::record::{FILE_LEN, KIND_LIMIT, LimitRecord, TEXT_LEN};

use crate::{
    maps::{header, send},
    memcg::is_traced,
    read::{config, member},
};

/// `mem_cgroup_write(of, buf, nbytes, off)` and its v2 relatives returned `result`.
#[inline(always)]
pub fn limit_written(open_file: u64, text: u64, text_len: u64, result: i64) {
    let Some(node) = member::<u64>(open_file, config!(open_file_kn)) else {
        return;
    };
    let Some(directory) = member::<u64>(node, config!(kernfs_node_parent)) else {
        return;
    };
    // A cgroup directory's `kn->priv` is its `struct cgroup`.
    let Some(cgroup) = member::<u64>(directory, config!(kernfs_node_priv)) else {
        return;
    };
    if !is_traced(cgroup) {
        return;
    }
    let Some(cgroup_id) = member::<u64>(directory, config!(kernfs_node_id)) else {
        return;
    };
    let name = member::<u64>(node, config!(kernfs_node_name)).unwrap_or(0);
    send::<LimitRecord>(|record| unsafe {
        (&raw mut (*record).header).write(header(KIND_LIMIT, size_of::<LimitRecord>()));
        (&raw mut (*record).cgroup_id).write(cgroup_id);
        (&raw mut (*record).result).write(result);
        (&raw mut (*record).text_len).write(text_len as u32);
        (&raw mut (*record).reserved).write(0);
        // The ring's memory is not cleared; both strings are kept to what was read.
        let file = &raw mut (*record).file;
        file.write([0; FILE_LEN]);
        let _ = bpf_probe_read_kernel_str(file.cast(), FILE_LEN as u32, name as *const _);
        let written = &raw mut (*record).text;
        written.write([0; TEXT_LEN]);
        let _ = bpf_probe_read_kernel_str(written.cast(), TEXT_LEN as u32, text as *const _);
    });
}
