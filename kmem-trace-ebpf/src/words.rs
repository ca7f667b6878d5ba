//! What crosses between userspace and the program that reads words of a memory cgroup on request:
//! which members lead there, which words to read, and how far it came.

/// Words that one run reads at most.
pub const WORDS: usize = 32;

/// Read the words at these places in the array of counters.
pub const FROM_COUNTERS: u64 = 0;
/// Read the words at these addresses.
pub const FROM_ADDRESS: u64 = 1;

/// Read the words at these places in the cgroup's `struct cgroup_subsys_state`.
pub const FROM_STATE: u64 = 2;

/// All words were read.
pub const READ: u32 = 1;
/// The file descriptor leads to no directory of a cgroup.
pub const NO_DIRECTORY: u32 = 2;
/// It leads to another directory than the one named.
pub const OTHER_DIRECTORY: u32 = 3;
/// The directory leads to no memory cgroup.
pub const NO_MEMCG: u32 = 4;
/// Its memory cgroup is of another directory.
pub const OTHER_MEMCG: u32 = 5;
/// A word cannot be read.
pub const UNREADABLE: u32 = 6;

/// From a task's open file to its memory cgroup's counters; offsets in bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[cfg_attr(feature = "user", derive(zerocopy::IntoBytes, zerocopy::Immutable))]
pub struct Members {
    /// `struct task_struct`: `files`.
    pub task_files: u32,
    /// `struct files_struct`: `fdt`.
    pub files_fdt: u32,
    /// `struct fdtable`: `fd`.
    pub fdtable_fd: u32,
    /// `struct file`: `f_inode`.
    pub file_inode: u32,
    /// `struct inode`: `i_private`, which for kernfs is its `struct kernfs_node`.
    pub inode_private: u32,
    /// `struct kernfs_node`: `priv`, which for a cgroup's directory is its `struct cgroup`.
    pub kernfs_node_priv: u32,
    /// `struct cgroup_subsys_state`: `cgroup`.
    pub css_cgroup: u32,
    /// `struct mem_cgroup`: the counters, or the pointer to what they are in.
    pub memcg_counters: u32,
    /// 1 where that is a pointer.
    pub is_pointer: u32,
    /// What the pointer leads to: the counters in it.
    pub counters: u32,
}

impl Members {
    /// Nothing known.
    pub const UNSET: Self = Self {
        task_files: 0,
        files_fdt: 0,
        fdtable_fd: 0,
        file_inode: 0,
        inode_private: 0,
        kernfs_node_priv: 0,
        css_cgroup: 0,
        memcg_counters: 0,
        is_pointer: 0,
        counters: 0,
    };
}
