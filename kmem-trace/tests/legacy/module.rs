//! The kernel module with the functions of old kernels: loaded, and called for a cgroup.

use std::{
    fs::{self, File},
    os::fd::AsRawFd as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
};

use kmem_trace::hooks::table;

use crate::support::{cgroup::Cgroup, machine};

const FILE: &str = "/kmem_trace_legacy.ko";
const TYPES: &str = "/sys/kernel/btf/kmem_trace_legacy";
const TRIGGER: &str = "/proc/kmem_trace_legacy";

/// Loads the module; the type information of kernel and module in one file. `None`, said so,
/// where there is none for this kernel.
pub fn loaded() -> Option<PathBuf> {
    static TYPES_FILE: OnceLock<PathBuf> = OnceLock::new();
    if !machine::is_vm() || !machine::needs_exact() {
        return None;
    }
    if !Path::new(FILE).exists() {
        machine::skip("no module built for this kernel: cargo xtask module --kernel 6.1");
        return None;
    }
    let types = TYPES_FILE.get_or_init(|| {
        let module = File::open(FILE).expect("readable");
        // SAFETY: a system call on an open file and an empty text.
        let result =
            unsafe { libc::syscall(libc::SYS_finit_module, module.as_raw_fd(), c"".as_ptr(), 0) };
        let error = std::io::Error::last_os_error();
        assert_eq!(result, 0, "the kernel does not take the module: {error}");
        let base = fs::read("/sys/kernel/btf/vmlinux").expect("the kernel has type information");
        let split = fs::read(TYPES).expect("the module has type information");
        let file = PathBuf::from("/tmp/kernel-and-module.btf");
        fs::write(&file, joined(&base, &split)).expect("there is room");
        file
    });
    Some(types.clone())
}

/// A module's type information counts types and strings on from the kernel's: put behind each
/// other, the two are one whole. Header: Documentation/bpf/btf.rst.
fn joined(base: &[u8], split: &[u8]) -> Vec<u8> {
    const HEADER: usize = 24;
    let sections = |btf: &[u8]| {
        let word = |at: usize| {
            let bytes = btf[at..at + 4].try_into().expect("four bytes");
            u32::from_le_bytes(bytes) as usize
        };
        assert_eq!((word(4), btf[0], btf[1]), (HEADER, 0x9f, 0xeb));
        let part = |offset: usize, len: usize| btf[HEADER + offset..HEADER + offset + len].to_vec();
        (part(word(8), word(12)), part(word(16), word(20)))
    };
    let (mut types, mut strings) = sections(base);
    let (more_types, more_strings) = sections(split);
    types.extend(more_types);
    strings.extend(more_strings);
    let mut whole = base[..8].to_vec();
    for word in [0, types.len(), types.len(), strings.len()] {
        whole.extend((word as u32).to_le_bytes());
    }
    whole.extend(types);
    whole.extend(strings);
    whole
}

/// A process in `cgroup` makes the module call one of its functions; returns the process's id.
pub fn call(cgroup: &Cgroup, words: &str) -> u32 {
    let script = format!(
        "echo $$ > {}/cgroup.procs && echo {words} > {TRIGGER}",
        cgroup.dir.display()
    );
    let child = Command::new("sh")
        .args(["-c", &script])
        .stdin(Stdio::null())
        .spawn()
        .expect("there is a shell");
    let pid = child.id();
    let done = child.wait_with_output().expect("it ends");
    assert!(done.status.success(), "{words}: {}", done.status);
    pid
}

/// `--strike` words that take away every candidate of `role` by kprobe before that on `symbol`.
pub fn all_before(role: &str, symbol: &str) -> String {
    let role = table::role(role).expect("it is in the table");
    let place = role
        .candidates
        .iter()
        .position(|candidate| candidate.hooks.iter().any(|hook| hook.symbol == symbol))
        .expect("the table has it");
    let words: Vec<_> = (0..place)
        .map(|index| format!("{}:{index}", role.name))
        .collect();
    // One that strikes nothing else, where there is nothing to strike.
    if words.is_empty() {
        format!("{}:999", role.name)
    } else {
        words.join(",")
    }
}
