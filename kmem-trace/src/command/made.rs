//! Cgroups that we make for a while, and remove.

use std::{
    fs,
    path::{Component, Path, PathBuf},
    process::Child,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

use crate::{kernel::cgroupfs::MemoryMount, workload::worker::sweeper};

/// A cgroup that we made, and remove.
pub struct Made {
    pub dir: PathBuf,
    /// Directories made on the way, lowest last.
    made: Vec<PathBuf>,
    /// Removes them should we be killed; ends when its standard input does.
    sweeper: Option<Child>,
}

impl Made {
    /// Makes the cgroup `name` below the hierarchy's root, and those above it that are missing.
    ///
    /// # Errors
    /// Where the name is no such path, or the directory cannot be made.
    pub fn new(mount: &MemoryMount, name: &str) -> Result<Self> {
        let relative = Path::new(name.trim_start_matches('/'));
        let plain = relative
            .components()
            .all(|part| matches!(part, Component::Normal(_)));
        if relative.as_os_str().is_empty() || !plain {
            bail!(
                "cannot make a cgroup called \"{name}\": give a path below the hierarchy's root, without \"..\""
            );
        }
        let mut dir = mount.mount_point.clone();
        let mut missing: Vec<PathBuf> = relative
            .ancestors()
            .map(|part| dir.join(part))
            .take_while(|part| !part.exists())
            .collect();
        missing.reverse();
        // Before they are there: no moment is left to be killed in.
        let sweeper = match missing.is_empty() {
            true => None,
            false => sweeper::start(&missing)
                .inspect_err(|error| log::debug!("nobody would remove it after us: {error}"))
                .ok(),
        };
        let mut made = Vec::new();
        for part in relative.components() {
            dir.push(part);
            match fs::create_dir(&dir) {
                Ok(()) => made.push(dir.clone()),
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => {
                    return Err(error).with_context(|| {
                        format!("cannot make the cgroup {}; run as root", dir.display())
                    });
                }
            }
        }
        Ok(Self { dir, made, sweeper })
    }

    /// Whether the cgroup itself was made, and was not there before.
    pub fn is_ours(&self) -> bool {
        self.made.last() == Some(&self.dir)
    }

    /// Removes what was made; the kernel may need a moment after the last task left.
    pub async fn remove(mut self) {
        for dir in std::mem::take(&mut self.made).into_iter().rev() {
            for _ in 0..50 {
                match fs::remove_dir(&dir) {
                    Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => break,
                    Err(error) => {
                        log::warn!("{} stays behind: {error}", dir.display());
                        break;
                    }
                    Ok(()) => break,
                }
            }
        }
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        for dir in self.made.iter().rev() {
            let _ = fs::remove_dir(dir);
        }
        if let Some(mut sweeper) = self.sweeper.take() {
            drop(sweeper.stdin.take());
            // It goes by itself; one that still waits for a busy cgroup is not waited for.
            let _ = sweeper.try_wait();
        }
    }
}
