//! Loads that are names in a directory: dentries, watches.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU64, Ordering},
};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use super::{Held, failed, need_files};
use crate::workload::WorkloadError;

/// An inode has one watch of an instance: several instances need fewer files. A user may have
/// 128 by default.
const INSTANCES: u64 = 8;

/// A directory of our own; removed with all in it when dropped.
#[derive(Debug)]
pub struct Scratch(PathBuf);

impl Scratch {
    fn new(dir: &Path) -> io::Result<Self> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = dir.join(format!("kmem-trace-{}-{count}", process::id()));
        fs::create_dir(&path)?;
        Ok(Self(path))
    }

    fn file(&self, index: u64) -> PathBuf {
        self.0.join(format!(
            "a-name-long-enough-to-be-allocated-by-itself-{index:010}"
        ))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // By itself first: a directory of cgroupfs has files that nobody can remove.
        if let Err(error) = fs::remove_dir(&self.0).or_else(|_| fs::remove_dir_all(&self.0)) {
            log::warn!(
                "cannot remove {}: {error}; remove it by hand",
                self.0.display()
            );
        }
    }
}

/// `n` empty files with long names in `dir`: a dentry, a name and an inode each.
///
/// # Errors
/// A file could not be made.
pub fn dentries(n: u64, dir: &Path) -> Result<Held, WorkloadError> {
    let what = format!("make a file in {}", dir.display());
    let error = failed(&what);
    let scratch = Scratch::new(dir).map_err(&error)?;
    for index in 0..n {
        File::create(scratch.file(index)).map_err(&error)?;
    }
    Ok(Held {
        dirs: vec![scratch],
        ..Held::default()
    })
}

/// `n` names that are not there, looked up in `dir`: a dentry and a name each. tmpfs keeps no
/// such dentries; disk file systems do, and cgroupfs (where `dir` is a cgroup's) of later kernels.
///
/// # Errors
/// The directory could not be made, or a lookup failed otherwise.
pub fn negative_dentries(n: u64, dir: &Path) -> Result<Held, WorkloadError> {
    let what = format!("look up a name in {}", dir.display());
    let error = failed(&what);
    let scratch = Scratch::new(dir).map_err(&error)?;
    for index in 0..n {
        match fs::symlink_metadata(scratch.file(index)) {
            Err(not_there) if not_there.kind() == io::ErrorKind::NotFound => {}
            Err(other) => return Err(error(other)),
            Ok(_) => return Err(error(io::ErrorKind::AlreadyExists.into())),
        }
    }
    Ok(Held {
        dirs: vec![scratch],
        ..Held::default()
    })
}

/// `n` watches on files in `dir`.
///
/// # Errors
/// ENOSPC above `fs.inotify.max_user_watches`, EMFILE above `max_user_instances`.
pub fn inotify(n: u64, dir: &Path) -> Result<Held, WorkloadError> {
    need_files("inotify instances", INSTANCES, 1)?;
    let files = n.div_ceil(INSTANCES);
    let mut held = dentries(files, dir)?;
    let error = |errno: nix::Error| failed("watch a file with inotify")(errno.into());
    let mut left = n;
    while left > 0 {
        let instance = Inotify::init(InitFlags::IN_CLOEXEC).map_err(error)?;
        for index in 0..files.min(left) {
            let path = held.dirs[0].file(index);
            instance
                .add_watch(&path, AddWatchFlags::IN_ATTRIB)
                .map_err(error)?;
            left -= 1;
        }
        held.files.push(instance.into());
    }
    Ok(held)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn files_are_made_and_removed_with_the_guard() {
        let held = dentries(30, &std::env::temp_dir()).unwrap();
        let dir = held.dirs[0].0.clone();
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 30);
        drop(held);
        assert!(!dir.exists());
    }

    #[test]
    fn names_that_are_not_there_make_no_files() {
        let held = negative_dentries(30, &std::env::temp_dir()).unwrap();
        assert_eq!(fs::read_dir(&held.dirs[0].0).unwrap().count(), 0);
    }

    #[test]
    fn every_watch_asked_for_is_there() {
        let held = inotify(101, &std::env::temp_dir()).unwrap();
        let watches: usize = held
            .files
            .iter()
            .map(|file| {
                let path = format!("/proc/self/fdinfo/{}", file.as_raw_fd());
                let info = fs::read_to_string(path).unwrap();
                info.lines()
                    .filter(|line| line.starts_with("inotify wd"))
                    .count()
            })
            .sum();
        assert_eq!(watches, 101);
    }

    #[test]
    fn a_directory_that_is_not_there_is_an_error() {
        assert!(dentries(1, Path::new("/nonexistent")).is_err());
    }
}
