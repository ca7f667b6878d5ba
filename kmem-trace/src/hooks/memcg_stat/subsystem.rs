//! The address of `memory_cgrp_subsys`, read from a memory cgroup that points to it: where the
//! symbol list has no data (no CONFIG_KALLSYMS_ALL) or hides addresses.

use std::os::unix::fs::MetadataExt as _;

use kmem_trace_ebpf::words::FROM_STATE;

use super::{super::layout, places, reader::Reader};
use crate::kernel::{btf::KernelBtf, cgroupfs::MemoryMount};

/// What the controller calls itself, with the byte that ends a name in C.
const NAME: &[u8] = b"memory\0";

/// Reads it. Kernel reads have to be allowed.
///
/// # Errors
/// In one line, where anything on the way is not as the type information says, or the controller
/// that it leads to is another one.
pub fn address(btf: &KernelBtf, mount: &MemoryMount) -> Result<u64, String> {
    let (config, members) = places::path(btf)?;
    let controller = u64::from(layout::offset(btf, "cgroup_subsys_state", "ss")?);
    let name = u64::from(layout::offset(btf, "cgroup_subsys", "name")?);
    let top = &mount.mount_point;
    let id = std::fs::metadata(top)
        .map_err(|error| format!("cannot look at {}: {error}", top.display()))?
        .ino();
    let mut reader = Reader::load(&config, &members)?;
    let found = reader.of_cgroup(top, id, FROM_STATE, &[controller])?;
    let word = |bytes: Vec<u8>| <[u8; 8]>::try_from(bytes).map(u64::from_le_bytes);
    let [address] = found[..] else {
        return Err("nothing was read".to_owned());
    };
    let text = word(reader.bytes(address.wrapping_add(name), 8)?)
        .map_err(|_| "nothing was read".to_owned())?;
    if reader.bytes(text, NAME.len())? != NAME {
        return Err("a memory cgroup leads to a controller of another name".to_owned());
    }
    Ok(address)
}
