//! What this machine allows a load to take, read from `/proc` and the process' own limits.

use std::{
    fs, io,
    path::{Path, PathBuf},
    str::FromStr,
};

use nix::sys::{
    resource::{Resource, getrlimit, setrlimit},
    statvfs::statvfs,
};

use super::WorkloadError;

/// Figures that bound a load. Plain data: tests make their own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Open files a process may have, once it raised its soft limit to the hard one.
    pub files_per_process: u64,
    /// `fs.file-max`, and how many are open on the node now.
    pub files_max: u64,
    pub files_open: u64,
    /// The lower of `kernel.pid_max` and `kernel.threads-max`, and how many tasks there are now.
    pub tasks_max: u64,
    pub tasks: u64,
    /// `user.max_net_namespaces`.
    pub net_namespaces_max: u64,
    /// `MemAvailable` of `/proc/meminfo`, bytes.
    pub available_bytes: u64,
    /// Free in the file system where page cache files go, bytes.
    pub disk_bytes: u64,
}

impl Limits {
    /// Reads them. `file_dir` is where page cache files would go.
    ///
    /// # Errors
    /// A file under `/proc` or `file_dir` cannot be read or has another form.
    pub fn read(file_dir: &Path) -> Result<Self, WorkloadError> {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)
            .map_err(|e| read_error("RLIMIT_NOFILE", e.into()))?;
        let disk = statvfs(file_dir).map_err(|e| WorkloadError::Read {
            path: file_dir.into(),
            source: e.into(),
        })?;
        Ok(Self {
            files_per_process: hard,
            files_max: number("/proc/sys/fs/file-max", |t| t.split_whitespace().next())?,
            files_open: number("/proc/sys/fs/file-nr", |t| t.split_whitespace().next())?,
            tasks_max: number::<u64>("/proc/sys/kernel/pid_max", |t| Some(t.trim()))?
                .min(number("/proc/sys/kernel/threads-max", |t| Some(t.trim()))?),
            tasks: number("/proc/loadavg", tasks_in_loadavg)?,
            // Absent where the kernel has no user namespaces: then nothing counts them.
            net_namespaces_max: if Path::new("/proc/sys/user").exists() {
                number("/proc/sys/user/max_net_namespaces", |t| Some(t.trim()))?
            } else {
                u64::MAX
            },
            available_bytes: number::<u64>("/proc/meminfo", available_in_meminfo)?
                .saturating_mul(1024),
            disk_bytes: (disk.blocks_available() as u64)
                .saturating_mul(disk.fragment_size() as u64),
        })
    }
}

/// Raises this process' soft limit of open files to the hard one. Returns the limit.
pub(super) fn raise_open_files() -> io::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(hard)
}

fn number<T: FromStr>(path: &str, pick: impl Fn(&str) -> Option<&str>) -> Result<T, WorkloadError> {
    let text = fs::read_to_string(path).map_err(|source| read_error(path, source))?;
    pick(&text)
        .and_then(|word| word.parse().ok())
        .ok_or_else(|| WorkloadError::Parse {
            path: PathBuf::from(path),
            expected: "a number",
            found: text.chars().take(80).collect(),
        })
}

fn read_error(path: &str, source: io::Error) -> WorkloadError {
    WorkloadError::Read {
        path: path.into(),
        source,
    }
}

/// `0.10 0.20 0.30 1/123 4567`: the number of tasks is behind the slash.
fn tasks_in_loadavg(text: &str) -> Option<&str> {
    text.split_whitespace()
        .nth(3)?
        .split_once('/')
        .map(|(_, tasks)| tasks)
}

/// KiB of `MemAvailable`.
fn available_in_meminfo(text: &str) -> Option<&str> {
    text.lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))
        .and_then(|rest| rest.split_whitespace().next())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_stand_behind_the_slash_of_loadavg() {
        assert_eq!(tasks_in_loadavg("0.10 0.20 0.30 1/123 4567\n"), Some("123"));
        assert_eq!(tasks_in_loadavg("0.10 0.20\n"), None);
    }

    #[test]
    fn available_memory_is_found_between_other_lines() {
        let text = "MemTotal:  10 kB\nMemFree:  5 kB\nMemAvailable:   7 kB\n";
        assert_eq!(available_in_meminfo(text), Some("7"));
        assert_eq!(available_in_meminfo("MemTotal: 10 kB\n"), None);
    }

    #[test]
    fn this_machine_has_limits_that_can_be_read() {
        let limits = Limits::read(&std::env::temp_dir()).unwrap();
        assert!(limits.files_per_process > 0 && limits.tasks > 0);
        assert!(limits.tasks < limits.tasks_max && limits.files_open < limits.files_max);
        assert!(limits.available_bytes > 1 << 20);
    }
}
