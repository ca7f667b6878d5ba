//! Where the memory controller is mounted, and why it may not be.

use std::path::{Path, PathBuf};

use thiserror::Error;

use super::{
    join,
    mountinfo::{self, Mount},
};
use crate::kernel::{
    file::{self, FileError, LineError},
    proc::system::Cmdline,
};

/// Which of the two cgroup interfaces the memory controller is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Hierarchy {
    V1,
    V2,
}

impl std::fmt::Display for Hierarchy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Hierarchy::V1 => "v1",
            Hierarchy::V2 => "v2",
        })
    }
}

/// The mount through which memory cgroups are seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryMount {
    pub hierarchy: Hierarchy,
    pub mount_point: PathBuf,
    /// The cgroup that shows at `mount_point`; `/` unless a part of the tree is bound, as
    /// container engines do.
    pub root: PathBuf,
}

/// Why there are no memory cgroups to look at.
#[derive(Debug, Error)]
pub enum MountError {
    #[error(
        "this kernel runs without the memory controller: boot without cgroup_disable=memory (some distributions need cgroup_enable=memory)"
    )]
    Disabled,
    #[error("this kernel is built without the memory controller (CONFIG_MEMCG)")]
    NotBuilt,
    #[error(
        "the memory controller is not mounted: as root, mount -t cgroup2 none /sys/fs/cgroup, or for v1 mount -t cgroup -o memory none DIRECTORY"
    )]
    NotMounted,
    #[error(transparent)]
    File(#[from] FileError),
}

/// A row of `/proc/cgroups`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Controller {
    pub name: String,
    /// Number of the v1 hierarchy it is on; 0 for v2 or none.
    pub hierarchy: u64,
    pub cgroups: u64,
    pub enabled: bool,
}

/// Parses `/proc/cgroups`.
///
/// # Errors
/// [`LineError`] for a row that is not a name and three numbers.
pub fn parse_cgroups(bytes: &[u8]) -> Result<Vec<Controller>, LineError> {
    let mut controllers = Vec::new();
    for (number, line) in file::lines(bytes) {
        if line.starts_with(b"#") {
            continue;
        }
        let wrong = || LineError::new(number, "not a row of /proc/cgroups");
        let mut words = file::words(line);
        let name = words.next().ok_or_else(wrong)?;
        let numbers: Option<Vec<u64>> = words.map(file::number).collect();
        let Some([hierarchy, cgroups, enabled]) = numbers.as_deref() else {
            return Err(wrong());
        };
        controllers.push(Controller {
            name: file::text(name),
            hierarchy: *hierarchy,
            cgroups: *cgroups,
            enabled: *enabled != 0,
        });
    }
    Ok(controllers)
}

impl MemoryMount {
    /// Finds the memory controller as this process sees it.
    ///
    /// # Errors
    /// [`MountError`].
    pub fn find() -> Result<MemoryMount, MountError> {
        let mounts = file::read_as(Path::new(mountinfo::SELF), mountinfo::parse)?;
        MemoryMount::among(&mounts, |dir| {
            file::read(&dir.join("cgroup.controllers")).unwrap_or_default()
        })
        .map_or_else(|| Err(why_none()), Ok)
    }

    /// Picks it from mounts. `controllers` reads `cgroup.controllers` of a cgroup2 directory.
    ///
    /// A v1 mount goes first: a controller is on one hierarchy only, so if v1 has it, v2 has not.
    pub fn among(mounts: &[Mount], controllers: impl Fn(&Path) -> Vec<u8>) -> Option<MemoryMount> {
        let v1: Vec<_> = mounts
            .iter()
            .filter(|mount| {
                mount.fs_type == "cgroup" && mount.super_options.iter().any(|o| o == "memory")
            })
            .collect();
        let v2: Vec<_> = mounts
            .iter()
            .filter(|mount| {
                mount.fs_type == "cgroup2"
                    && file::words(controllers(&mount.mount_point).trim_ascii())
                        .any(|name| name == b"memory")
            })
            .collect();
        let (hierarchy, candidates) = if v1.is_empty() {
            (Hierarchy::V2, v2)
        } else {
            (Hierarchy::V1, v1)
        };
        // The whole tree is better than a part of it that is bound elsewhere.
        let best = candidates
            .iter()
            .find(|mount| mount.root == Path::new("/"))
            .or_else(|| candidates.first())?;
        Some(MemoryMount {
            hierarchy,
            mount_point: best.mount_point.clone(),
            root: best.root.clone(),
        })
    }

    /// The number that the kernel gives this hierarchy (`cgroup_root.hierarchy_id`): 0 on v2, the
    /// second column of `/proc/cgroups` on v1; `None` where that cannot be read.
    pub fn number(&self) -> Option<u32> {
        if self.hierarchy == Hierarchy::V2 {
            return Some(0);
        }
        let controllers = file::read_as(Path::new("/proc/cgroups"), parse_cgroups).ok()?;
        let memory = controllers
            .iter()
            .find(|controller| controller.name == "memory")?;
        u32::try_from(memory.hierarchy).ok()
    }

    /// The directory of a cgroup named as `/proc/PID/cgroup` does; `None` if this mount does not
    /// show it.
    pub fn dir_of(&self, path_in_hierarchy: &Path) -> Option<PathBuf> {
        let below = path_in_hierarchy.strip_prefix(&self.root).ok()?;
        let climbs = below
            .components()
            .any(|part| part == std::path::Component::ParentDir);
        (!climbs).then(|| join(&self.mount_point, below))
    }

    /// Whether `dir` is the root cgroup of the whole system, which has no ledger: newer kernels do
    /// not charge its counters. At a mount point inside a container it is not.
    pub fn is_root(&self, dir: &Path) -> bool {
        dir == self.mount_point
            && match self.hierarchy {
                // Only the root has this file (cgroup1_base_files, CFTYPE_ONLY_ON_ROOT).
                Hierarchy::V1 => dir.join("cgroup.sane_behavior").exists(),
                // The root has no such file (memory_files, CFTYPE_NOT_ON_ROOT).
                Hierarchy::V2 => !dir.join("memory.current").exists(),
            }
    }
}

fn why_none() -> MountError {
    match file::read_as(Path::new("/proc/cgroups"), parse_cgroups) {
        Err(error) => error.into(),
        Ok(controllers) => {
            let off = Cmdline::read().is_ok_and(|it| it.disabled.iter().any(|it| it == "memory"));
            why_none_of(&controllers, off)
        }
    }
}

/// `off`: the boot command line switches it off. Kernels without the v1 controller do not list it
/// at all.
fn why_none_of(controllers: &[Controller], off: bool) -> MountError {
    match controllers.iter().find(|c| c.name == "memory") {
        None if off => MountError::Disabled,
        None => MountError::NotBuilt,
        Some(memory) if !memory.enabled => MountError::Disabled,
        Some(_) => MountError::NotMounted,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn mounts(text: &str) -> Vec<Mount> {
        mountinfo::parse(text.as_bytes()).expect("valid mountinfo")
    }

    fn found(text: &str, controllers: &[u8]) -> Option<(Hierarchy, String, String)> {
        let mount = MemoryMount::among(&mounts(text), |_| controllers.to_vec())?;
        let show = |path: &Path| path.display().to_string();
        Some((mount.hierarchy, show(&mount.mount_point), show(&mount.root)))
    }

    const HYBRID: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";

    #[test]
    fn v1_wins_when_it_has_the_controller() {
        let expected = (Hierarchy::V1, "/sys/fs/cgroup/memory".into(), "/".into());
        assert_eq!(found(HYBRID, b"hugetlb\n"), Some(expected));
    }

    #[test]
    fn controllers_mounted_together_count_but_named_hierarchies_do_not() {
        let together = "35 31 0:32 / /cg/all rw - cgroup cgroup rw,cpu,memory,pids";
        assert_eq!(found(together, b"").map(|m| m.1), Some("/cg/all".into()));
        let named = "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,name=memory";
        assert_eq!(found(named, b""), None);
    }

    #[test]
    fn v2_counts_only_where_the_controller_is_available() {
        let v2 = "41 31 0:38 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate";
        let expected = (Hierarchy::V2, "/sys/fs/cgroup".into(), "/".into());
        assert_eq!(found(v2, b"cpuset cpu io memory pids\n"), Some(expected));
        assert_eq!(found(v2, b"cpu io hugetlb memory_not\n"), None);
    }

    #[test]
    fn a_bound_part_is_taken_only_if_the_whole_is_not_there() {
        let part = "50 31 0:32 /docker/3f2a /part rw - cgroup cgroup rw,memory\n";
        let expected = (Hierarchy::V1, "/part".into(), "/docker/3f2a".into());
        assert_eq!(found(part, b""), Some(expected));
        let both = format!("{part}{HYBRID}");
        assert_eq!(found(&both, b"").map(|m| m.2), Some("/".into()));
    }

    #[test]
    fn paths_outside_a_bound_part_have_no_directory() {
        let mount = MemoryMount {
            hierarchy: Hierarchy::V1,
            mount_point: "/part".into(),
            root: "/docker/3f2a".into(),
        };
        let dir = |path: &str| mount.dir_of(Path::new(path));
        assert_eq!(dir("/docker/3f2a"), Some("/part".into()));
        assert_eq!(dir("/docker/3f2a/x"), Some("/part/x".into()));
        assert_eq!(dir("/docker/3f2ab"), None);
        assert_eq!(dir("/docker/3f2a/../x"), None);
    }

    const CGROUPS: &[u8] = b"\
#subsys_name\thierarchy\tnum_cgroups\tenabled
cpuset\t3\t1\t1
memory\t4\t9\t0
";

    #[test]
    fn the_reason_for_no_memory_controller_comes_from_proc_cgroups() {
        let mut rows = parse_cgroups(CGROUPS).expect("valid");
        assert_eq!((rows[1].hierarchy, rows[1].cgroups), (4, 9));
        assert!(matches!(why_none_of(&rows, false), MountError::Disabled));
        rows[1].enabled = true;
        assert!(matches!(why_none_of(&rows, false), MountError::NotMounted));
        assert!(matches!(
            why_none_of(&rows[..1], false),
            MountError::NotBuilt
        ));
        assert!(matches!(
            why_none_of(&rows[..1], true),
            MountError::Disabled
        ));
    }

    #[test]
    fn rows_that_are_cut_off_are_refused_with_their_line() {
        for bad in [
            &b"cpu\t1\t1\t1\nmemory\t4\t9"[..],
            b"cpu 1 1 1\nmemory 4 9 x",
            b"cpu 1 1 1\n\xff 1 1 1 1",
        ] {
            assert_eq!(parse_cgroups(bad).map_err(|e| e.line), Err(2));
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse_cgroups(&bytes);
        }
    }
}
