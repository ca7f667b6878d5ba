//! From what a user types to one cgroup of the memory hierarchy, or to a sentence that says why
//! not and what would do.

use std::{
    ffi::OsStr,
    io,
    os::unix::ffi::OsStrExt,
    path::{Component, Path, PathBuf},
};

use thiserror::Error;

use super::{CgroupDir, MemoryMount, mountinfo::Mount, walk};
use crate::kernel::file::FileError;

/// Shortest text that is searched for in directory names.
const MIN_SEARCH: usize = 4;
/// Most names an error lists.
const MAX_LISTED: usize = 5;

/// Why an argument or a process does not lead to a memory cgroup.
#[derive(Debug, Error)]
pub enum ResolveError {
    #[error(
        "{arg} is the root cgroup, whose usage the kernel does not charge: name a cgroup below {}",
        mount_point.display()
    )]
    Root { arg: String, mount_point: PathBuf },
    #[error("no cgroup {arg} under {}{}", mount_point.display(), suggestion(close))]
    NotFound {
        arg: String,
        mount_point: PathBuf,
        /// Cgroups of similar name, closest first.
        close: Vec<PathBuf>,
    },
    #[error("{arg} could be {}{}: give more of the name or its path", listed(hits), and_more(*more))]
    Ambiguous {
        arg: String,
        hits: Vec<PathBuf>,
        /// Hits that are not listed.
        more: usize,
    },
    #[error("{arg} climbs with ..: give the path from the top of the hierarchy")]
    Escapes { arg: String },
    #[error(
        "{arg} is in the hierarchy of {controllers}, not of memory; the memory cgroup of that path {}",
        if *exists { format!("is {}", meant.display()) } else { format!("would be {}, which does not exist", meant.display()) }
    )]
    OtherHierarchy {
        arg: String,
        controllers: String,
        meant: PathBuf,
        exists: bool,
    },
    #[error("{} is not a directory: name the cgroup's directory", path.display())]
    NotADirectory { path: PathBuf },
    #[error("{} is not a cgroup: memory cgroups are under {}", path.display(), mount_point.display())]
    NotACgroup { path: PathBuf, mount_point: PathBuf },
    #[error("there is no process {pid}: give the number that it has outside of its container")]
    NoProcess { pid: u32 },
    #[error("process {pid} is in the memory cgroup {}, which has been removed", path.display())]
    Removed { pid: u32, path: PathBuf },
    #[error(
        "process {pid} is in the memory cgroup {}, which {} does not show: run outside of the container",
        path.display(), mount_point.display()
    )]
    NotVisible {
        pid: u32,
        path: PathBuf,
        mount_point: PathBuf,
    },
    #[error(transparent)]
    File(#[from] FileError),
}

fn listed(paths: &[PathBuf]) -> String {
    let all: Vec<_> = paths
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    all.join(", ")
}

fn and_more(more: usize) -> String {
    match more {
        0 => String::new(),
        more => format!(" and {more} more"),
    }
}

fn suggestion(close: &[PathBuf]) -> String {
    if close.is_empty() {
        ": give its path there, or a part of its name that no other has".to_owned()
    } else {
        format!("; did you mean {}?", listed(close))
    }
}

/// [`resolve`] with the mounts of this process.
///
/// # Errors
/// [`ResolveError`].
pub fn find(mount: &MemoryMount, arg: &str) -> Result<CgroupDir, ResolveError> {
    // Without the list, directories of other controllers are merely not found.
    let mounts =
        crate::kernel::file::read_as(Path::new(super::mountinfo::SELF), super::mountinfo::parse)
            .unwrap_or_default();
    resolve(mount, &mounts, arg)
}

/// Finds the cgroup that `arg` means: a path under the memory hierarchy (`docker/3f2a`, with or
/// without leading slash), a directory (`/sys/fs/cgroup/memory/docker/3f2a`), or a part of a name,
/// of 4 characters and more, that only one cgroup has. `mounts` are all mounts, to recognise
/// directories of other controllers.
///
/// # Errors
/// [`ResolveError`].
pub fn resolve(
    mount: &MemoryMount,
    mounts: &[Mount],
    arg: &str,
) -> Result<CgroupDir, ResolveError> {
    let path = Path::new(arg);
    if path.components().any(|part| part == Component::ParentDir) {
        return Err(ResolveError::Escapes {
            arg: arg.to_owned(),
        });
    }
    // /sys/fs/cgroup/cpu is a link to cpu,cpuacct on many systems.
    let real = path
        .is_absolute()
        .then(|| std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned()));
    if let Some(real) = &real {
        if let Some(other) = other_hierarchy(mount, mounts, real) {
            return Err(belongs_elsewhere(mount, other, arg, real));
        }
        if real.starts_with(&mount.mount_point) {
            return match at(mount, real, arg)? {
                Some(cgroup) => Ok(cgroup),
                None => Err(not_found(mount, arg)),
            };
        }
    }
    let below = path.strip_prefix("/").unwrap_or(path);
    let named = [
        mount.dir_of(&Path::new("/").join(below)),
        Some(super::join(&mount.mount_point, below)),
    ];
    for dir in named.into_iter().flatten() {
        if let Some(cgroup) = at(mount, &dir, arg)? {
            return Ok(cgroup);
        }
    }
    match real {
        Some(real) if real.is_dir() => Err(ResolveError::NotACgroup {
            path: real,
            mount_point: mount.mount_point.clone(),
        }),
        Some(real) if real.exists() => Err(ResolveError::NotADirectory { path: real }),
        _ => search(mount, arg),
    }
}

/// The cgroup at a directory of this mount; `None` if there is nothing.
fn at(mount: &MemoryMount, dir: &Path, arg: &str) -> Result<Option<CgroupDir>, ResolveError> {
    match CgroupDir::at(mount, dir) {
        Ok(_) if mount.is_root(dir) => Err(ResolveError::Root {
            arg: arg.to_owned(),
            mount_point: mount.mount_point.clone(),
        }),
        Ok(cgroup) => Ok(Some(cgroup)),
        Err(error) => match error.kind() {
            io::ErrorKind::NotFound => Ok(None),
            io::ErrorKind::NotADirectory => Err(ResolveError::NotADirectory {
                path: dir.to_owned(),
            }),
            // No directory can have such a name: too long, or with a NUL.
            io::ErrorKind::InvalidFilename | io::ErrorKind::InvalidInput => Ok(None),
            _ => Err(FileError::Read {
                path: dir.to_owned(),
                source: error,
            }
            .into()),
        },
    }
}

/// The cgroup mount that `path` is on, if it is another one than the memory controller's.
fn other_hierarchy<'a>(mount: &MemoryMount, mounts: &'a [Mount], path: &Path) -> Option<&'a Mount> {
    let deepest = mounts
        .iter()
        .filter(|m| path.starts_with(&m.mount_point))
        .max_by_key(|m| m.mount_point.components().count())?;
    let is_cgroup = deepest.fs_type == "cgroup" || deepest.fs_type == "cgroup2";
    (is_cgroup && deepest.mount_point != mount.mount_point && !has_memory(mount, deepest))
        .then_some(deepest)
}

/// Whether another mount shows the same hierarchy.
fn has_memory(mount: &MemoryMount, other: &Mount) -> bool {
    match mount.hierarchy {
        super::Hierarchy::V1 => {
            other.fs_type == "cgroup" && other.super_options.iter().any(|o| o == "memory")
        }
        super::Hierarchy::V2 => other.fs_type == "cgroup2",
    }
}

fn belongs_elsewhere(mount: &MemoryMount, other: &Mount, arg: &str, path: &Path) -> ResolveError {
    let below = path.strip_prefix(&other.mount_point).unwrap_or(path);
    let meant = super::join(&mount.mount_point, below);
    let ignored = [
        "rw",
        "ro",
        "xattr",
        "clone_children",
        "noprefix",
        "nsdelegate",
    ];
    let controllers: Vec<_> = other
        .super_options
        .iter()
        .filter(|option| {
            !ignored.contains(&option.as_str()) && !option.starts_with("release_agent=")
        })
        .cloned()
        .collect();
    ResolveError::OtherHierarchy {
        arg: arg.to_owned(),
        controllers: if other.fs_type == "cgroup2" {
            "cgroup v2".to_owned()
        } else {
            controllers.join(",")
        },
        exists: meant.is_dir(),
        meant,
    }
}

/// Looks for the one cgroup that has `arg` in its name.
fn search(mount: &MemoryMount, arg: &str) -> Result<CgroupDir, ResolveError> {
    if arg.len() < MIN_SEARCH || arg.contains('/') {
        return Err(not_found(mount, arg));
    }
    let mut hits: Vec<CgroupDir> = Vec::new();
    for cgroup in below_mount(mount) {
        let is_hit = cgroup
            .dir
            .file_name()
            .is_some_and(|name| contains(name, arg));
        // A container's own child cgroups often repeat its id: the outermost is meant.
        if is_hit && !hits.iter().any(|hit| cgroup.dir.starts_with(&hit.dir)) {
            hits.push(cgroup);
        }
    }
    match hits.len() {
        0 => Err(not_found(mount, arg)),
        1 => hits.pop().ok_or_else(|| not_found(mount, arg)),
        count => Err(ResolveError::Ambiguous {
            arg: arg.to_owned(),
            hits: hits
                .into_iter()
                .take(MAX_LISTED)
                .map(|hit| hit.path_in_hierarchy)
                .collect(),
            more: count.saturating_sub(MAX_LISTED),
        }),
    }
}

fn contains(name: &OsStr, part: &str) -> bool {
    name.as_bytes()
        .windows(part.len().max(1))
        .any(|window| window == part.as_bytes())
}

fn below_mount(mount: &MemoryMount) -> Vec<CgroupDir> {
    match CgroupDir::at(mount, &mount.mount_point) {
        Ok(top) => walk(&top).into_iter().skip(1).collect(),
        Err(_) => Vec::new(),
    }
}

fn not_found(mount: &MemoryMount, arg: &str) -> ResolveError {
    let wanted = arg.rsplit('/').find(|part| !part.is_empty()).unwrap_or(arg);
    let mut close: Vec<(usize, PathBuf)> = below_mount(mount)
        .into_iter()
        .filter_map(|cgroup| {
            let name = cgroup.dir.file_name()?.to_string_lossy().into_owned();
            let distance = distance(wanted, &name);
            (distance <= (wanted.len() / 3).max(1)).then_some((distance, cgroup.path_in_hierarchy))
        })
        .collect();
    close.sort();
    ResolveError::NotFound {
        arg: arg.to_owned(),
        mount_point: mount.mount_point.clone(),
        close: close.into_iter().take(3).map(|(_, path)| path).collect(),
    }
}

/// Levenshtein's edit distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
#[path = "resolve_tests.rs"]
mod tests;
