//! A directory tree that looks like a memory hierarchy, for tests.

use std::{fs, path::PathBuf};

use tempfile::TempDir;

use super::{Hierarchy, MemoryMount};

pub struct Tree {
    pub mount: MemoryMount,
    _dir: TempDir,
}

impl Tree {
    /// A v1 hierarchy with these cgroups below its root.
    pub fn v1(cgroups: &[&str]) -> Tree {
        let dir = tempfile::tempdir().expect("temporary directory");
        let mount_point = fs::canonicalize(dir.path()).expect("its path");
        fs::write(mount_point.join("cgroup.sane_behavior"), "0\n").expect("written");
        for cgroup in cgroups {
            fs::create_dir_all(mount_point.join(cgroup)).expect("created");
        }
        Tree {
            mount: MemoryMount {
                hierarchy: Hierarchy::V1,
                mount_point,
                root: PathBuf::from("/"),
            },
            _dir: dir,
        }
    }

    /// Writes a file of the hierarchy.
    pub fn write(&self, path: &str, content: &[u8]) {
        fs::write(self.mount.mount_point.join(path), content).expect("written");
    }

    pub fn path(&self, path: &str) -> PathBuf {
        self.mount.mount_point.join(path)
    }
}
