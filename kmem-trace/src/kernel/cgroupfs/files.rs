//! The figures that a memory cgroup's files show. Bytes, except where a name says otherwise.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use thiserror::Error;

use super::Hierarchy;
use crate::kernel::file;

/// Why a file of a cgroup gives no figure.
#[derive(Debug, Error)]
pub enum CgroupFileError {
    /// The cgroup was removed.
    #[error("cgroup {} is gone", dir.display())]
    Gone { dir: PathBuf },
    #[error("{} does not exist: this kernel has no such counter", path.display())]
    Absent { path: PathBuf },
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{}:{line}: {why}", path.display())]
    Parse {
        path: PathBuf,
        line: usize,
        why: String,
    },
}

/// The counters of a memory cgroup, subtree included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Counter {
    Memory,
    /// v1 only.
    Kmem,
    /// Memory and swap together, v1 only.
    Memsw,
    /// v2 only.
    Swap,
    /// v1 only.
    Tcpmem,
}

impl Counter {
    /// The file that shows it; `None` where the hierarchy has no such counter.
    pub fn file_name(self, hierarchy: Hierarchy) -> Option<&'static str> {
        match (self, hierarchy) {
            (Counter::Memory, Hierarchy::V1) => Some("memory.usage_in_bytes"),
            (Counter::Kmem, Hierarchy::V1) => Some("memory.kmem.usage_in_bytes"),
            (Counter::Memsw, Hierarchy::V1) => Some("memory.memsw.usage_in_bytes"),
            (Counter::Tcpmem, Hierarchy::V1) => Some("memory.kmem.tcp.usage_in_bytes"),
            (Counter::Memory, Hierarchy::V2) => Some("memory.current"),
            (Counter::Swap, Hierarchy::V2) => Some("memory.swap.current"),
            _ => None,
        }
    }
}

/// All counters of a cgroup at about the same time, in bytes; `None` where there is no such file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CounterValues {
    pub memory: u64,
    pub kmem: Option<u64>,
    pub memsw: Option<u64>,
    pub swap: Option<u64>,
    pub tcpmem: Option<u64>,
}

/// Reads all counters of the cgroup at `dir`.
///
/// # Errors
/// [`CgroupFileError::Gone`]; [`CgroupFileError::Absent`] if even the memory counter is missing.
pub fn counters(dir: &Path, hierarchy: Hierarchy) -> Result<CounterValues, CgroupFileError> {
    let optional = |counter| match UsageFile::open(dir, hierarchy, counter) {
        Ok(file) => file.read().map(Some),
        Err(CgroupFileError::Absent { .. }) => Ok(None),
        Err(error) => Err(error),
    };
    Ok(CounterValues {
        memory: UsageFile::open(dir, hierarchy, Counter::Memory)?.read()?,
        kmem: optional(Counter::Kmem)?,
        memsw: optional(Counter::Memsw)?,
        swap: optional(Counter::Swap)?,
        tcpmem: optional(Counter::Tcpmem)?,
    })
}

/// One counter, kept open so that reading it again is one system call without allocation.
#[derive(Debug)]
pub struct UsageFile {
    file: File,
    path: PathBuf,
}

impl UsageFile {
    /// # Errors
    /// [`CgroupFileError::Gone`], or [`CgroupFileError::Absent`] if this hierarchy or kernel has no
    /// such counter.
    pub fn open(
        dir: &Path,
        hierarchy: Hierarchy,
        counter: Counter,
    ) -> Result<UsageFile, CgroupFileError> {
        let Some(name) = counter.file_name(hierarchy) else {
            return Err(CgroupFileError::Absent {
                path: dir.join(format!("({counter:?} of cgroup {hierarchy})")),
            });
        };
        let path = dir.join(name);
        match File::open(&path) {
            Ok(file) => Ok(UsageFile { file, path }),
            Err(source) => Err(failed(path, source)),
        }
    }

    /// The counter now, in bytes.
    ///
    /// # Errors
    /// [`CgroupFileError::Gone`], [`CgroupFileError::Parse`].
    pub fn read(&self) -> Result<u64, CgroupFileError> {
        // The longest is 20 digits and a newline.
        let mut buffer = [0u8; 32];
        let length = self
            .file
            .read_at(&mut buffer, 0)
            .map_err(|source| failed(self.path.clone(), source))?;
        parse_value(&buffer[..length]).ok_or_else(|| CgroupFileError::Parse {
            path: self.path.clone(),
            line: 1,
            why: "not a number of bytes".to_owned(),
        })
    }
}

/// A file's only number.
pub(super) fn parse_value(bytes: &[u8]) -> Option<u64> {
    file::number(bytes.strip_suffix(b"\n").unwrap_or(bytes))
}

/// Reads a file of a cgroup whole.
///
/// # Errors
/// [`CgroupFileError::Gone`], [`CgroupFileError::Absent`], [`CgroupFileError::Read`].
pub(super) fn read(path: PathBuf) -> Result<Vec<u8>, CgroupFileError> {
    std::fs::read(&path).map_err(|source| failed(path, source))
}

/// Number of tasks in the cgroup itself, subtree not included: threads on v1, processes on v2.
///
/// # Errors
/// As [`counters`]; `Read` with `EOPNOTSUPP` in a threaded v2 cgroup.
pub fn task_count(dir: &Path, hierarchy: Hierarchy) -> Result<usize, CgroupFileError> {
    let name = match hierarchy {
        Hierarchy::V1 => "tasks",
        Hierarchy::V2 => "cgroup.procs",
    };
    Ok(file::lines(&read(dir.join(name))?).count())
}

/// Sorts a failure into "removed", "no such file" and the rest. A file of a removed cgroup that is
/// still open answers ENODEV.
fn failed(path: PathBuf, source: io::Error) -> CgroupFileError {
    let dir = path.parent().unwrap_or(&path);
    match source.raw_os_error() {
        Some(libc::ENODEV) => CgroupFileError::Gone {
            dir: dir.to_owned(),
        },
        Some(libc::ENOENT | libc::ENOTDIR) if !dir.is_dir() => CgroupFileError::Gone {
            dir: dir.to_owned(),
        },
        Some(libc::ENOENT) => CgroupFileError::Absent { path },
        _ => CgroupFileError::Read { path, source },
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::kernel::cgroupfs::tree::Tree;

    #[test]
    fn counters_that_the_kernel_lacks_are_none_and_not_zero() {
        let tree = Tree::v1(&["a"]);
        tree.write("a/memory.usage_in_bytes", b"4096\n");
        tree.write("a/memory.kmem.usage_in_bytes", b"0\n");
        let values = counters(&tree.path("a"), Hierarchy::V1).expect("readable");
        let expected = CounterValues {
            memory: 4096,
            kmem: Some(0),
            ..CounterValues::default()
        };
        assert_eq!(values, expected);
        assert!(matches!(
            counters(&tree.path("a"), Hierarchy::V2),
            Err(CgroupFileError::Absent { .. })
        ));
    }

    #[test]
    fn an_open_counter_follows_the_file() {
        let tree = Tree::v1(&["a"]);
        tree.write("a/memory.usage_in_bytes", b"18446744073709551615\n");
        let file = UsageFile::open(&tree.path("a"), Hierarchy::V1, Counter::Memory).expect("open");
        assert_eq!(file.read().expect("value"), u64::MAX);
        tree.write("a/memory.usage_in_bytes", b"8192\n");
        assert_eq!(file.read().expect("value"), 8192);
        for wrong in [
            &b""[..],
            b"max\n",
            b"-1\n",
            b"18446744073709551616\n",
            b"\xff\n",
            b"1\n2\n",
        ] {
            tree.write("a/memory.usage_in_bytes", wrong);
            assert!(matches!(
                file.read(),
                Err(CgroupFileError::Parse { line: 1, .. })
            ));
        }
    }

    #[test]
    fn a_removed_cgroup_is_gone_and_not_absent() {
        let tree = Tree::v1(&["a"]);
        assert!(matches!(
            counters(&tree.path("b"), Hierarchy::V1),
            Err(CgroupFileError::Gone { dir }) if dir == tree.path("b")
        ));
        assert!(matches!(
            failed(
                tree.path("a/tasks"),
                io::Error::from_raw_os_error(libc::ENODEV)
            ),
            CgroupFileError::Gone { .. }
        ));
        assert!(matches!(
            task_count(&tree.path("a"), Hierarchy::V1),
            Err(CgroupFileError::Absent { .. })
        ));
    }

    #[test]
    fn tasks_are_counted_by_line() {
        let tree = Tree::v1(&["a"]);
        tree.write("a/tasks", b"1\n22\n333\n");
        assert_eq!(
            task_count(&tree.path("a"), Hierarchy::V1).expect("count"),
            3
        );
    }

    proptest! {
        #[test]
        fn a_value_is_read_back_and_nothing_else_is_taken(value: u64, junk in "[^0-9\n][0-9]*") {
            prop_assert_eq!(parse_value(format!("{value}\n").as_bytes()), Some(value));
            prop_assert_eq!(parse_value(value.to_string().as_bytes()), Some(value));
            prop_assert_eq!(parse_value(junk.as_bytes()), None);
        }
    }
}
