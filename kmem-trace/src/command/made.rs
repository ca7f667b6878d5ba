//! Cgroups that we make for a while, and remove.

use std::{
    fs,
    path::{Component, Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

use crate::kernel::cgroupfs::MemoryMount;

/// A cgroup that we made, and remove.
pub struct Made {
    pub dir: PathBuf,
    /// Directories made on the way, lowest last.
    made: Vec<PathBuf>,
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
        Ok(Self { dir, made })
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
    }
}
