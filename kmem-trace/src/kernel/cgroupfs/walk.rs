//! The cgroups below a cgroup. Directories may vanish while we look; they are left out then.

use std::{collections::VecDeque, os::unix::fs::DirEntryExt};

use super::CgroupDir;

/// The cgroup and all below it, parents before their children, siblings by name.
///
/// What vanished meanwhile, or may not be listed, is not in it. Empty if the cgroup itself has
/// gone.
pub fn walk(top: &CgroupDir) -> Vec<CgroupDir> {
    let mut all = Vec::new();
    let mut waiting = VecDeque::from([top.clone()]);
    while let Some(cgroup) = waiting.pop_front() {
        if let Ok(below) = list(&cgroup) {
            waiting.extend(below);
        } else if !cgroup.dir.exists() {
            continue;
        }
        all.push(cgroup);
    }
    all
}

/// The cgroups directly below, by name. Empty if the cgroup has gone.
pub fn children(of: &CgroupDir) -> Vec<CgroupDir> {
    list(of).unwrap_or_default()
}

fn list(of: &CgroupDir) -> std::io::Result<Vec<CgroupDir>> {
    let mut below = Vec::new();
    for entry in std::fs::read_dir(&of.dir)? {
        let entry = entry?;
        // Both come with the directory entry, without a call per cgroup.
        if entry.file_type()?.is_dir() {
            let name = entry.file_name();
            below.push(CgroupDir {
                path_in_hierarchy: of.path_in_hierarchy.join(&name),
                dir: of.dir.join(&name),
                id: entry.ino(),
                parent_id: Some(of.id),
                level: of.level.saturating_add(1),
            });
        }
    }
    below.sort_by(|a, b| a.dir.cmp(&b.dir));
    Ok(below)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::cgroupfs::{resolve, tree::Tree};

    #[test]
    fn parents_come_before_children_and_ids_are_inodes() {
        let tree = Tree::v1(&["a/b/c", "a/d", "z"]);
        let a = resolve(&tree.mount, &[], "a").expect("a");
        let all = walk(&a);
        let paths: Vec<_> = all
            .iter()
            .map(|c| c.path_in_hierarchy.display().to_string())
            .collect();
        assert_eq!(paths, ["/a", "/a/b", "/a/d", "/a/b/c"]);
        assert_eq!(all[3].parent_id, Some(all[1].id));
        assert_eq!(all[3].level, 3);
        let alone = resolve(&tree.mount, &[], "a/b/c").expect("c");
        assert_eq!(alone, all[3]);
        assert_eq!(children(&a).len(), 2);
    }

    #[test]
    fn a_cgroup_that_has_gone_has_nobody_below() {
        let tree = Tree::v1(&["a/b"]);
        let a = resolve(&tree.mount, &[], "a").expect("a");
        std::fs::remove_dir_all(&a.dir).expect("removed");
        assert_eq!(walk(&a), []);
        assert_eq!(children(&a), []);
    }
}
