//! The memory controller's cgroup file system, v1 or v2: where it is, which directory somebody
//! means, who is below it, and what its files say.
//!
//! Only reads. Sums, comparisons and verdicts are made from these figures elsewhere. Names of
//! cgroups are bytes and stay [`Path`]s. Everything here may vanish at any time: a cgroup that has
//! gone is a typed error of its own, never a zero.

mod files;
mod member;
pub mod mountinfo;
mod mounts;
mod resolve;
mod stat;
mod walk;

#[cfg(test)]
mod tree;

use std::{
    io,
    os::unix::fs::MetadataExt,
    path::{Component, Path, PathBuf},
};

pub use files::{CgroupFileError, Counter, CounterValues, UsageFile, counters, task_count};
pub use member::{of_pid, parse_proc_cgroup};
pub use mounts::{Controller, Hierarchy, MemoryMount, MountError, parse_cgroups};
pub use resolve::{ResolveError, find, resolve};
pub use stat::{MemoryStat, stat};
pub use walk::{children, walk};

/// One cgroup of the memory hierarchy.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CgroupDir {
    /// As `/proc/PID/cgroup` would name it: starts with `/`.
    pub path_in_hierarchy: PathBuf,
    /// Where its files are.
    pub dir: PathBuf,
    /// The kernel's id of the cgroup, which is the inode number of the directory.
    pub id: u64,
    /// The id of the directory above; `None` at the mount point.
    pub parent_id: Option<u64>,
    /// Number of names in `path_in_hierarchy`; 0 for the root.
    pub level: u32,
}

impl CgroupDir {
    /// Whether its directory is there and still this cgroup's: another of its name may have followed.
    pub fn is_there(&self) -> bool {
        std::fs::metadata(&self.dir).is_ok_and(|found| found.ino() == self.id)
    }

    /// The top of what a mount shows.
    ///
    /// # Errors
    /// From the system.
    pub fn top(mount: &MemoryMount) -> io::Result<CgroupDir> {
        CgroupDir::at(mount, &mount.mount_point)
    }

    /// Looks at a directory below the mount point, or the mount point itself.
    ///
    /// # Errors
    /// From the system, `NotADirectory` for files.
    pub(crate) fn at(mount: &MemoryMount, dir: &Path) -> io::Result<CgroupDir> {
        let metadata = std::fs::metadata(dir)?;
        if !metadata.is_dir() {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        let below = dir.strip_prefix(&mount.mount_point).unwrap_or(dir);
        let parent_id = match dir.parent() {
            Some(parent) if !below.as_os_str().is_empty() => Some(std::fs::metadata(parent)?.ino()),
            _ => None,
        };
        let path_in_hierarchy = join(&mount.root, below);
        Ok(CgroupDir {
            level: level(&path_in_hierarchy),
            path_in_hierarchy,
            dir: dir.to_owned(),
            id: metadata.ino(),
            parent_id,
        })
    }
}

/// `join` that leaves no slash at the end when there is nothing to join.
fn join(root: &Path, below: &Path) -> PathBuf {
    if below.as_os_str().is_empty() {
        root.to_owned()
    } else {
        root.join(below)
    }
}

fn level(path: &Path) -> u32 {
    let names = path
        .components()
        .filter(|part| matches!(part, Component::Normal(_)));
    u32::try_from(names.count()).unwrap_or(u32::MAX)
}
