//! What this process itself costs: memory and CPU time.

use std::{path::Path, time::Duration};

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

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = parse_resident_pages(&bytes);
        }
    }
}
