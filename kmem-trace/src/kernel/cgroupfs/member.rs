//! Which memory cgroup a process is in: `/proc/PID/cgroup`.

use std::{
    ffi::OsStr,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use super::{CgroupDir, Hierarchy, MemoryMount, ResolveError};
use crate::kernel::file::{self, FileError, LineError};

/// What the kernel appends to the path of a removed cgroup.
const DELETED: &[u8] = b" (deleted)";

/// The path of the process's cgroup in the memory hierarchy, as it stands in the file; `None` if
/// the file names none.
///
/// # Errors
/// [`LineError`] for a line that is not `number:controllers:path`.
pub fn parse_proc_cgroup(bytes: &[u8], hierarchy: Hierarchy) -> Result<Option<PathBuf>, LineError> {
    let mut found = None;
    for (number, line) in file::lines(bytes) {
        let mut parts = line.splitn(3, |byte| *byte == b':');
        let (Some(id), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next())
        else {
            return Err(LineError::new(number, "not number:controllers:path"));
        };
        let is_it = match hierarchy {
            Hierarchy::V1 => controllers
                .split(|byte| *byte == b',')
                .any(|c| c == b"memory"),
            Hierarchy::V2 => id == b"0" && controllers.is_empty(),
        };
        if is_it && found.is_none() {
            found = Some(PathBuf::from(OsStr::from_bytes(path)));
        }
    }
    Ok(found)
}

/// The memory cgroup of a process.
///
/// # Errors
/// [`ResolveError::NoProcess`], [`ResolveError::Removed`], [`ResolveError::Root`],
/// [`ResolveError::NotVisible`].
pub fn of_pid(mount: &MemoryMount, pid: u32) -> Result<CgroupDir, ResolveError> {
    let file = PathBuf::from(format!("/proc/{pid}/cgroup"));
    let bytes = match file::read(&file) {
        Err(FileError::Read { source, .. })
            if matches!(source.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) =>
        {
            return Err(ResolveError::NoProcess { pid });
        }
        other => other?,
    };
    let path = parse_proc_cgroup(&bytes, mount.hierarchy)
        .map_err(|error| error.of(&file))?
        .ok_or_else(|| LineError::new(1, "names no memory cgroup").of(&file))?;
    at_path(mount, pid, &path)
}

fn at_path(mount: &MemoryMount, pid: u32, path: &Path) -> Result<CgroupDir, ResolveError> {
    let Some(dir) = mount.dir_of(path) else {
        return Err(ResolveError::NotVisible {
            pid,
            path: path.to_owned(),
            mount_point: mount.mount_point.clone(),
        });
    };
    if mount.is_root(&dir) {
        return Err(ResolveError::Root {
            arg: format!("the memory cgroup of process {pid}"),
            mount_point: mount.mount_point.clone(),
        });
    }
    CgroupDir::at(mount, &dir).map_err(|_| {
        // A living cgroup may really be called so, but then its directory is there.
        let bytes = path.as_os_str().as_bytes();
        let plain = bytes.strip_suffix(DELETED).unwrap_or(bytes);
        ResolveError::Removed {
            pid,
            path: PathBuf::from(OsStr::from_bytes(plain)),
        }
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::kernel::cgroupfs::tree::Tree;

    const HYBRID: &[u8] = b"\
9:name=systemd:/
5:cpu,memory,pids:/system.slice/1d2c:x
3:cpuset:/
0::/user.slice
";

    fn path(bytes: &[u8], hierarchy: Hierarchy) -> Result<Option<PathBuf>, usize> {
        parse_proc_cgroup(bytes, hierarchy).map_err(|error| error.line)
    }

    #[test]
    fn the_line_of_the_memory_controller_is_taken_colons_and_all() {
        assert_eq!(
            path(HYBRID, Hierarchy::V1),
            Ok(Some("/system.slice/1d2c:x".into()))
        );
        assert_eq!(path(HYBRID, Hierarchy::V2), Ok(Some("/user.slice".into())));
    }

    #[test]
    fn a_hierarchy_that_is_only_named_memory_does_not_count() {
        assert_eq!(path(b"5:name=memory:/x\n", Hierarchy::V1), Ok(None));
        assert_eq!(path(b"", Hierarchy::V2), Ok(None));
        assert_eq!(path(b"3:cpuset:/\n5:memory", Hierarchy::V1), Err(2));
    }

    #[test]
    fn names_that_are_no_text_survive() {
        let expected = PathBuf::from(OsStr::from_bytes(b"/a\xff"));
        assert_eq!(path(b"0::/a\xff", Hierarchy::V2), Ok(Some(expected)));
    }

    #[test]
    fn a_removed_cgroup_is_told_from_one_called_so() {
        let tree = Tree::v1(&["odd (deleted)", "docker"]);
        let at = |path: &str| at_path(&tree.mount, 7, Path::new(path));
        assert!(at("/odd (deleted)").is_ok());
        assert!(matches!(
            at("/docker/gone (deleted)"),
            Err(ResolveError::Removed { pid: 7, path }) if path == Path::new("/docker/gone")
        ));
        assert!(matches!(at("/"), Err(ResolveError::Root { .. })));
        assert!(matches!(at("/../x"), Err(ResolveError::NotVisible { .. })));
    }

    #[test]
    fn a_process_that_does_not_exist_is_said_so() {
        let tree = Tree::v1(&[]);
        // Above PID_MAX_LIMIT.
        let result = of_pid(&tree.mount, 4_194_305);
        assert!(matches!(
            result,
            Err(ResolveError::NoProcess { pid: 4_194_305 })
        ));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse_proc_cgroup(&bytes, Hierarchy::V1);
            let _ = parse_proc_cgroup(&bytes, Hierarchy::V2);
        }
    }
}
