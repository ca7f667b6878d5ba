//! What this process itself costs: memory and CPU time.

use std::{collections::BTreeMap, path::Path, time::Duration};

use nix::sys::{
    resource::{UsageWho, getrusage},
    time::TimeVal,
};
use procfs::{FromRead, process::StatM};

use crate::kernel::file::{self, FileError, LineError};

/// What this process has taken so far.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct OwnCost {
    /// Seconds of CPU time of all threads, user and system.
    pub cpu_s: f64,
    /// Resident memory in bytes.
    pub rss_bytes: u64,
}

/// CPU time and memory of this process.
///
/// # Errors
/// [`FileError`].
pub fn own_cost() -> Result<OwnCost, FileError> {
    let time = cpu_time().map_err(|source| FileError::Read {
        path: "getrusage".into(),
        source: source.into(),
    })?;
    Ok(OwnCost {
        cpu_s: time.as_secs_f64(),
        rss_bytes: rss_bytes()?,
    })
}

/// Resident memory of this process in bytes.
///
/// # Errors
/// [`FileError`].
pub fn rss_bytes() -> Result<u64, FileError> {
    let pages = file::read_as(Path::new("/proc/self/statm"), parse_resident_pages)?;
    Ok(pages.saturating_mul(page_bytes()))
}

/// Memory of the BPF maps that this process has open, bytes; 0 where the kernel does not say.
pub fn bpf_map_bytes() -> u64 {
    let maps: BTreeMap<u64, u64> = descriptors()
        .filter_map(|(_, shown)| parse_bpf_map(&shown))
        .collect();
    maps.values()
        .fold(0, |sum, bytes| sum.saturating_add(*bytes))
}

/// Id and bytes of a BPF map from a `fdinfo` file (`bpf_map_show_fdinfo`, kernel/bpf/syscall.c);
/// `None` for any other descriptor.
pub fn parse_bpf_map(bytes: &[u8]) -> Option<(u64, u64)> {
    let value = |name: &[u8]| {
        file::lines(bytes).find_map(|(_, line)| {
            let mut words = file::words(line);
            (words.next()? == name).then(|| words.next().and_then(file::number))?
        })
    };
    Some((value(b"map_id:")?, value(b"memlock:")?))
}

/// Descriptors of the BPF links that this process has open (`bpf_link_show_fdinfo`,
/// kernel/bpf/syscall.c).
pub fn bpf_links() -> Vec<i32> {
    let is_link = |shown: &[u8]| file::lines(shown).any(|(_, line)| line.starts_with(b"link_id:"));
    // All of them before anybody makes more, which would be among them.
    descriptors()
        .filter(|(_, shown)| is_link(shown))
        .map(|(descriptor, _)| descriptor)
        .collect()
}

/// What this process has open, and what the kernel shows of each; nothing where it shows none.
fn descriptors() -> impl Iterator<Item = (i32, Vec<u8>)> {
    let entries = std::fs::read_dir("/proc/self/fdinfo");
    entries.into_iter().flatten().flatten().filter_map(|entry| {
        let descriptor = entry.file_name().to_str()?.parse().ok()?;
        Some((descriptor, file::read(&entry.path()).ok()?))
    })
}

/// Size of a page in bytes.
pub fn page_bytes() -> u64 {
    procfs::page_size()
}

/// Resident pages from `statm` (`proc_pid_statm(5)`).
///
/// # Errors
/// [`LineError`].
pub fn parse_resident_pages(bytes: &[u8]) -> Result<u64, LineError> {
    StatM::from_read(bytes)
        .map(|statm| statm.resident)
        .map_err(|error| LineError::new(1, error.to_string()))
}

/// CPU time of all threads of this process so far, user and system.
///
/// # Errors
/// From the system; never seen.
pub fn cpu_time() -> nix::Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    Ok(duration(usage.user_time()) + duration(usage.system_time()))
}

fn duration(time: TimeVal) -> Duration {
    let seconds = u64::try_from(time.tv_sec()).unwrap_or_default();
    let micros = u64::try_from(time.tv_usec()).unwrap_or_default();
    Duration::from_secs(seconds) + Duration::from_micros(micros)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn resident_pages_are_the_second_number() {
        assert_eq!(parse_resident_pages(b"765 440 412 5 0 123 0\n"), Ok(440));
        assert!(parse_resident_pages(b"765").is_err());
        assert!(parse_resident_pages(b"a b c d e f g").is_err());
        assert!(parse_resident_pages(b"\xff").is_err());
    }

    #[test]
    fn this_process_takes_some_memory_and_its_cpu_time_never_falls() {
        assert!(rss_bytes().expect("readable") >= page_bytes());
        let before = cpu_time().expect("known");
        assert!(cpu_time().expect("known") >= before);
        let cost = own_cost().expect("known");
        assert!(cost.cpu_s >= before.as_secs_f64() && cost.rss_bytes > 0);
    }

    #[test]
    fn a_map_is_told_from_other_descriptors() {
        let map = b"pos:\t0\nflags:\t02000002\nmap_type:\t2\nkey_size:\t4\nmemlock:\t8192\nmap_id:\t17\nfrozen:\t0\n";
        assert_eq!(parse_bpf_map(map), Some((17, 8192)));
        assert_eq!(
            parse_bpf_map(b"pos:\t0\nprog_id:\t4\nmemlock:\t4096\n"),
            None
        );
        assert_eq!(parse_bpf_map(b"map_id:\t17\nmemlock:\t-1\n"), None);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = parse_resident_pages(&bytes);
            let _ = parse_bpf_map(&bytes);
        }
    }
}
