//! Pairs of programs on one event, of which the second does the work where the kernel skips the
//! first: which pairs there are, and what crosses between userspace and the program that looks for
//! the first of a pair on request.

/// The first programs, by the number of their pair.
pub const FIRSTS: [&str; PAIRS as usize] = [
    "rt_cache_alloc",
    "rt_kmalloc",
    "rt_cache_free",
    "rt_kfree",
    "tb_memcg_state",
    "tb_memcg_lruvec_state",
];
/// What the second is called more.
pub const SECOND: &str = "_2";

pub const PAIR_CACHE_ALLOC: u32 = 0;
pub const PAIR_KMALLOC: u32 = 1;
pub const PAIR_CACHE_FREE: u32 = 2;
pub const PAIR_KFREE: u32 = 3;
pub const PAIR_STATE: u32 = 4;
pub const PAIR_LRUVEC_STATE: u32 = 5;
/// How many there are.
pub const PAIRS: u32 = 6;

/// The counter of its runs under way was found.
pub const FOUND: u32 = 1;
/// A file descriptor leads nowhere.
pub const NO_FILE: u32 = 2;
/// It leads to another program than the one named.
pub const OTHER_PROGRAM: u32 = 3;
/// It leads to another map than the one named.
pub const OTHER_MAP: u32 = 4;
/// What should be the counter says that the program runs here and now.
pub const NO_COUNTER: u32 = 5;

/// From a task's open file to the program or map that it is; offsets in bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[cfg_attr(feature = "user", derive(zerocopy::IntoBytes, zerocopy::Immutable))]
pub struct ProgramMembers {
    /// `struct task_struct`: `files`.
    pub task_files: u32,
    /// `struct files_struct`: `fdt`.
    pub files_fdt: u32,
    /// `struct fdtable`: `fd`.
    pub fdtable_fd: u32,
    /// `struct file`: `private_data`, which is a `struct bpf_prog` or `struct bpf_map`.
    pub file_private: u32,
    /// `struct bpf_prog`: `aux`, with the program's id.
    pub prog_aux: u32,
    pub aux_id: u32,
    /// `struct bpf_prog`: `active`, where its runs under way on each CPU are counted.
    pub prog_active: u32,
    /// `struct bpf_map`: `id`.
    pub map_id: u32,
    /// `struct bpf_array`: `pptrs`, where the first element of each CPU is.
    pub array_pptrs: u32,
}

impl ProgramMembers {
    /// Nothing known.
    pub const UNSET: Self = Self {
        task_files: 0,
        files_fdt: 0,
        fdtable_fd: 0,
        file_private: 0,
        prog_aux: 0,
        aux_id: 0,
        prog_active: 0,
        map_id: 0,
        array_pptrs: 0,
    };
}
