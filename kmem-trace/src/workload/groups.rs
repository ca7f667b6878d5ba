//! The cgroups a load runs in: a parent and `group-NN` below it. Made, taken over, removed.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    sys::statfs::{CGROUP_SUPER_MAGIC, CGROUP2_SUPER_MAGIC, statfs},
};
use serde::{Deserialize, Serialize};

use super::WorkloadError;

/// How long a cgroup whose last process has ended may stay busy.
const REMOVE_PATIENCE: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Hierarchy {
    V1,
    V2,
}

impl Hierarchy {
    /// What `dir`, or its nearest parent that exists, belongs to.
    ///
    /// # Errors
    /// It is no cgroup with a memory controller.
    pub fn of(dir: &Path) -> Result<Self, WorkloadError> {
        let not = |why| WorkloadError::NotACgroup {
            path: dir.into(),
            why,
        };
        let existing = dir
            .ancestors()
            .find(|a| a.is_dir())
            .ok_or_else(|| not("no such directory"))?;
        let kind = statfs(existing)
            .map_err(|e| WorkloadError::Read {
                path: existing.into(),
                source: e.into(),
            })?
            .filesystem_type();
        if kind == CGROUP_SUPER_MAGIC {
            if existing.join("memory.usage_in_bytes").exists() {
                return Ok(Self::V1);
            }
            return Err(not(
                "it is another v1 hierarchy; the memory one is usually /sys/fs/cgroup/memory",
            ));
        }
        if kind != CGROUP2_SUPER_MAGIC {
            return Err(not(
                "it is no cgroup file system; see `grep cgroup /proc/mounts`",
            ));
        }
        let controllers =
            fs::read_to_string(existing.join("cgroup.controllers")).unwrap_or_default();
        let enabled = existing.ancestors().any(|a| {
            fs::read_to_string(a.join("cgroup.controllers")).is_ok_and(|c| has_memory(&c))
        });
        if has_memory(&controllers) || enabled {
            return Ok(Self::V2);
        }
        Err(not(
            "v2 has no memory controller here; a v1 hierarchy may hold it",
        ))
    }
}

fn has_memory(controllers: &str) -> bool {
    controllers.split_whitespace().any(|c| c == "memory")
}

/// The cgroups of one load, by name only: it owns no process and removes nothing by itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Tree {
    parent: PathBuf,
    groups: u32,
    /// Directories that were not there before, outermost first; the groups are not among them.
    made: Vec<PathBuf>,
}

/// Nobody else starts a load in this parent while this lives.
pub type Lock = Flock<File>;

impl Tree {
    /// Makes the parent if it is missing and the groups below it. Groups of an earlier load that
    /// hold no process are removed first. Returns what is worth telling the user besides.
    ///
    /// # Errors
    /// Another load lives there, or the kernel refuses; nothing that was made stays then.
    pub fn create(
        parent: &Path,
        hierarchy: Hierarchy,
        groups: u32,
    ) -> Result<(Self, Lock, Vec<String>), WorkloadError> {
        if Hierarchy::of(parent)? != hierarchy {
            let why = match hierarchy {
                Hierarchy::V1 => "it is v2, not v1 as asked for",
                Hierarchy::V2 => "it is v1, not v2 as asked for",
            };
            return Err(WorkloadError::NotACgroup {
                path: parent.into(),
                why,
            });
        }
        let mut tree = Self {
            parent: parent.into(),
            groups,
            made: Vec::new(),
        };
        let result = tree.fill(hierarchy);
        if result.is_err() {
            tree.remove_made();
        }
        let (lock, notes) = result?;
        Ok((tree, lock, notes))
    }

    fn fill(&mut self, hierarchy: Hierarchy) -> Result<(Lock, Vec<String>), WorkloadError> {
        let mut notes = Vec::new();
        let missing: Vec<PathBuf> = self
            .parent
            .ancestors()
            .take_while(|a| !a.is_dir())
            .map(Into::into)
            .collect();
        for dir in missing.into_iter().rev() {
            make(&dir)?;
            self.made.push(dir);
        }
        let lock = lock(&self.parent)?;
        let leftover = sweep(&self.parent)?;
        if leftover > 0 {
            notes.push(format!(
                "removed {leftover} empty groups that an earlier load left in {}",
                self.parent.display()
            ));
        }
        match hierarchy {
            Hierarchy::V1 => notes.extend(count_children(&self.parent)),
            Hierarchy::V2 => enable_memory(&self.parent)?,
        }
        for group in 0..self.groups {
            if let Err(error) = make(&self.group(group)) {
                (0..group).for_each(|made| drop(fs::remove_dir(self.group(made))));
                return Err(error);
            }
        }
        Ok((lock, notes))
    }

    pub fn parent(&self) -> &Path {
        &self.parent
    }

    pub fn group(&self, index: u32) -> PathBuf {
        self.parent.join(name(index))
    }

    pub fn groups(&self) -> impl Iterator<Item = PathBuf> + '_ {
        (0..self.groups).map(|index| self.group(index))
    }

    /// Removes the groups, and the parent if it was made by us. What is gone already is fine.
    /// Waits for exiting processes. Returns what is still there.
    pub fn remove(&self) -> Vec<PathBuf> {
        let deadline = Instant::now() + REMOVE_PATIENCE;
        let mut left: Vec<PathBuf> = self
            .groups()
            .chain(self.made.iter().rev().cloned())
            .collect();
        loop {
            left.retain(|dir| !gone(fs::remove_dir(dir)));
            if left.is_empty() || Instant::now() >= deadline {
                return left;
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn remove_made(&self) {
        for dir in self.made.iter().rev() {
            let _ = fs::remove_dir(dir);
        }
    }
}

/// `group-00`; three digits from the hundredth on.
pub fn name(index: u32) -> String {
    format!("group-{index:02}")
}

fn is_group_name(name: &str) -> bool {
    name.strip_prefix("group-").is_some_and(|digits| {
        digits
            .parse()
            .is_ok_and(|index: u32| self::name(index) == format!("group-{digits}"))
    })
}

fn gone(removed: io::Result<()>) -> bool {
    match removed {
        Ok(()) => true,
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

fn make(dir: &Path) -> Result<(), WorkloadError> {
    fs::create_dir(dir).map_err(|source| cgroup_error("make", dir, source))
}

fn lock(parent: &Path) -> Result<Lock, WorkloadError> {
    let dir = File::open(parent).map_err(|source| cgroup_error("open", parent, source))?;
    Flock::lock(dir, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        Errno::EWOULDBLOCK => WorkloadError::Busy {
            path: parent.into(),
            why: "it holds the lock".into(),
        },
        _ => cgroup_error("lock", parent, errno.into()),
    })
}

/// Removes groups without processes, unless one has some: then there is another load.
fn sweep(parent: &Path) -> Result<usize, WorkloadError> {
    let read = |source| cgroup_error("list", parent, source);
    let mut groups = Vec::new();
    for entry in fs::read_dir(parent).map_err(read)? {
        let entry = entry.map_err(read)?;
        if entry.file_name().to_str().is_some_and(is_group_name) {
            groups.push(entry.path());
        }
    }
    for group in &groups {
        let file = group.join("cgroup.procs");
        let processes = fs::read_to_string(&file)
            .map_err(|source| WorkloadError::Read { path: file, source })?;
        if let Some(first) = processes.lines().next() {
            let group = group.file_name().unwrap_or_default().to_string_lossy();
            return Err(WorkloadError::Busy {
                path: parent.into(),
                why: format!("{group} has process {first}"),
            });
        }
    }
    for group in &groups {
        fs::remove_dir(group).map_err(|source| cgroup_error("remove", group, source))?;
    }
    Ok(groups.len())
}

/// v1 below 5.11: a cgroup counts its children only after this, and it cannot be changed once
/// there are some.
fn count_children(parent: &Path) -> Option<String> {
    let file = parent.join("memory.use_hierarchy");
    match fs::read_to_string(&file) {
        Ok(text) if text.trim() == "0" => {}
        _ => return None,
    }
    let error = fs::write(&file, "1").err()?;
    Some(format!(
        "{} does not count its groups and cannot be made to ({error}): remove what is below it and \
         try again",
        parent.display()
    ))
}

/// v2: a cgroup has the memory files if its parent hands the controller down. Stays on
/// afterwards: others may have come to use it.
fn enable_memory(parent: &Path) -> Result<(), WorkloadError> {
    let chain: Vec<&Path> = parent
        .ancestors()
        .take_while(|a| a.join("cgroup.controllers").exists())
        .collect();
    for dir in chain.into_iter().rev() {
        let file = dir.join("cgroup.subtree_control");
        let text = fs::read_to_string(&file).map_err(|source| WorkloadError::Read {
            path: file.clone(),
            source,
        })?;
        if !has_memory(&text) {
            fs::write(&file, "+memory").map_err(|source| WorkloadError::Cgroup {
                hint: if source.raw_os_error() == Some(libc::EBUSY) {
                    ": it has processes of its own; give a parent cgroup that has none"
                } else {
                    ""
                },
                what: "enable memory in",
                path: file,
                source,
            })?;
        }
    }
    Ok(())
}

fn cgroup_error(what: &'static str, path: &Path, source: io::Error) -> WorkloadError {
    let hint = match source.kind() {
        io::ErrorKind::PermissionDenied => "; run as root",
        io::ErrorKind::ReadOnlyFilesystem => "; remount the cgroup file system writable",
        _ => "",
    };
    WorkloadError::Cgroup {
        what,
        path: path.into(),
        source,
        hint,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_we_give_are_taken_for_ours() {
        for ours in ["group-00", "group-07", "group-99", "group-100"] {
            assert!(is_group_name(ours), "{ours}");
        }
        for other in [
            "group-",
            "group-7",
            "group-007",
            "group-+1",
            "group-0a",
            "groups-00",
            "x",
        ] {
            assert!(!is_group_name(other), "{other}");
        }
    }

    #[test]
    fn a_directory_elsewhere_is_no_cgroup() {
        let error = Hierarchy::of(&std::env::temp_dir().join("none")).unwrap_err();
        assert!(
            error.to_string().contains("no cgroup file system"),
            "{error}"
        );
    }

    #[test]
    fn removing_what_is_gone_leaves_nothing() {
        let parent = std::env::temp_dir().join("kmem-trace-no-such-parent");
        let tree = Tree {
            parent: parent.clone(),
            groups: 3,
            made: vec![parent],
        };
        assert!(tree.remove().is_empty());
    }

    #[test]
    fn memory_is_a_word_of_its_own_among_controllers() {
        assert!(has_memory("cpu memory pids\n"));
        assert!(!has_memory("cpu memory_recursiveprot\n") && !has_memory(""));
    }
}
