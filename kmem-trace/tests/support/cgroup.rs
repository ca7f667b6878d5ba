//! Memory cgroups, made by a test and removed with their guard.

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

/// Where the memory hierarchy is, and of which version.
pub fn hierarchy() -> (PathBuf, &'static str) {
    let v1 = Path::new("/sys/fs/cgroup/memory");
    if v1.join("memory.usage_in_bytes").exists() {
        (v1.to_owned(), "v1")
    } else {
        (PathBuf::from("/sys/fs/cgroup"), "v2")
    }
}

/// Whether there is a memory hierarchy at all.
pub fn is_there() -> bool {
    let (root, _) = hierarchy();
    is_v1() || root.join("cgroup.controllers").exists()
}

pub fn is_v1() -> bool {
    hierarchy().1 == "v1"
}

/// A cgroup of the memory hierarchy; gone, with its processes, when dropped.
pub struct Cgroup {
    /// As the program prints it: `/a/b`.
    pub name: String,
    pub dir: PathBuf,
}

impl Cgroup {
    /// Makes `name` below the root, such as `a`.
    pub fn top(name: &str) -> Self {
        Self::made(format!("/{name}"))
    }

    /// Makes `name` below this one.
    pub fn child(&self, name: &str) -> Self {
        hand_down(&self.dir);
        Self::made(format!("{}/{name}", self.name))
    }

    fn made(name: String) -> Self {
        let (root, _) = hierarchy();
        hand_down(&root);
        let dir = root.join(name.trim_start_matches('/'));
        fs::create_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
        Self { name, dir }
    }

    /// The kernel's own figure, bytes.
    pub fn usage_bytes(&self) -> u64 {
        let file = if is_v1() {
            "memory.usage_in_bytes"
        } else {
            "memory.current"
        };
        let text = fs::read_to_string(self.dir.join(file)).expect("a cgroup has a usage");
        text.trim().parse().expect("it is a number")
    }

    pub fn enter(&self, pid: u32) {
        fs::write(self.dir.join("cgroup.procs"), pid.to_string()).expect("the task can move");
    }

    /// Removes the directory; false where it stays busy.
    pub fn remove(&self) -> bool {
        for _ in 0..200 {
            match fs::remove_dir(&self.dir) {
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                    thread::sleep(Duration::from_millis(10));
                }
                Err(error) => return error.kind() == std::io::ErrorKind::NotFound,
                Ok(()) => return true,
            }
        }
        false
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let Ok(text) = fs::read_to_string(self.dir.join("cgroup.procs")) else {
            return;
        };
        for pid in text.lines().filter_map(|line| line.parse().ok()) {
            // SAFETY: a system call on a number; the process is in our cgroup, hence ours.
            unsafe { libc::kill(pid, libc::SIGKILL) };
        }
        if !self.remove() {
            eprintln!("{} stays behind", self.dir.display());
        }
    }
}

/// v2: children of `dir` have memory files once it hands the controller down.
fn hand_down(dir: &Path) {
    if !is_v1() {
        fs::write(dir.join("cgroup.subtree_control"), "+memory").expect("memory is handed down");
    }
}
