//! What the kernel holds of BPF: of all processes, or of one.

use std::{collections::HashSet, fs, io};

/// Kinds of objects, with the kernel's command to go through their ids and what `fdinfo` calls those.
const KINDS: [(&str, i32, &str); 3] = [
    ("program", 11, "prog_id:"),
    ("map", 12, "map_id:"),
    ("link", 31, "link_id:"),
];

/// An object of BPF. The kernel gives an id out again only once it has been through all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Object {
    pub kind: &'static str,
    pub id: u32,
}

/// All there are.
pub fn all() -> HashSet<Object> {
    let of = |(kind, command, _)| ids(command).into_iter().map(move |id| Object { kind, id });
    KINDS.into_iter().flat_map(of).collect()
}

/// Those that a process has descriptors of; nothing where it is gone.
pub fn held_by(pid: u32) -> HashSet<Object> {
    let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fdinfo")) else {
        return HashSet::new();
    };
    let texts = descriptors
        .flatten()
        .filter_map(|descriptor| fs::read_to_string(descriptor.path()).ok());
    // A link's names its program too, which the process need not hold.
    texts
        .filter_map(|text| {
            KINDS.into_iter().rev().find_map(|(kind, _, name)| {
                let id = text.lines().find_map(|line| line.strip_prefix(name))?;
                let id = id.trim().parse().expect("an id is a number");
                Some(Object { kind, id })
            })
        })
        .collect()
}

/// By one of `BPF_*_GET_NEXT_ID`.
fn ids(command: i32) -> Vec<u32> {
    /// The part of `union bpf_attr` of these commands.
    #[repr(C)]
    struct NextId {
        start_id: u32,
        next_id: u32,
        open_flags: u32,
    }
    let mut found = Vec::new();
    let mut attr = NextId {
        start_id: 0,
        next_id: 0,
        open_flags: 0,
    };
    loop {
        // SAFETY: the kernel reads and writes within `attr`, whose size is given.
        let result =
            unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut attr, size_of::<NextId>()) };
        if result != 0 {
            let error = io::Error::last_os_error();
            assert_eq!(error.raw_os_error(), Some(libc::ENOENT), "{error}");
            return found;
        }
        found.push(attr.next_id);
        attr.start_id = attr.next_id;
    }
}
