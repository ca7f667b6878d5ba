//! Which CPUs there are: the lists of `/sys/devices/system/cpu`.

use std::path::Path;

use crate::kernel::file::{self, FileError, LineError};

/// No kernel is built for more (`CONFIG_NR_CPUS` stays below 8192); guards against hostile lists.
const MAX_CPU: u64 = 65_535;

/// CPUs that run now, by number.
///
/// # Errors
/// [`FileError`].
pub fn online() -> Result<Vec<u32>, FileError> {
    list("online")
}

/// CPUs that could ever come: how long per-CPU map values are.
///
/// # Errors
/// [`FileError`].
pub fn possible() -> Result<Vec<u32>, FileError> {
    list("possible")
}

/// Nodes that there could ever be; none where the kernel is built without NUMA.
///
/// # Errors
/// [`FileError`].
pub fn possible_nodes() -> Result<Vec<u32>, FileError> {
    let path = Path::new("/sys/devices/system/node/possible");
    if !path.exists() {
        return Ok(Vec::new());
    }
    file::read_as(path, parse_list)
}

fn list(name: &str) -> Result<Vec<u32>, FileError> {
    file::read_as(&Path::new("/sys/devices/system/cpu").join(name), parse_list)
}

/// Parses a list such as `0-3,8`; an empty one is no CPU. Sorted, each once.
///
/// # Errors
/// [`LineError`].
pub fn parse_list(bytes: &[u8]) -> Result<Vec<u32>, LineError> {
    let mut cpus = Vec::new();
    let text = bytes.trim_ascii();
    if text.is_empty() {
        return Ok(cpus);
    }
    for part in text.split(|byte| *byte == b',') {
        let (first, last) = match part.iter().position(|byte| *byte == b'-') {
            Some(dash) => (&part[..dash], &part[dash + 1..]),
            None => (part, part),
        };
        match (file::number(first), file::number(last)) {
            (Some(first), Some(last)) if first <= last && last <= MAX_CPU => {
                // Fits: at most MAX_CPU.
                cpus.extend((first..=last).map(|cpu| cpu as u32));
            }
            _ => return Err(LineError::new(1, "not a list of CPUs")),
        }
        // Bounds the memory that many overlapping ranges could take.
        if cpus.len() > MAX_CPU as usize {
            cpus.sort_unstable();
            cpus.dedup();
        }
    }
    cpus.sort_unstable();
    cpus.dedup();
    Ok(cpus)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ranges_and_single_cpus_mix() {
        assert_eq!(
            parse_list(b"0-3,8,10-11\n"),
            Ok(vec![0, 1, 2, 3, 8, 10, 11])
        );
        assert_eq!(parse_list(b"0"), Ok(vec![0]));
        assert_eq!(parse_list(b"\n"), Ok(Vec::new()));
        assert_eq!(parse_list(b"1,0-1"), Ok(vec![0, 1]));
    }

    #[test]
    fn nonsense_and_endless_ranges_are_refused() {
        for bad in [
            &b"3-1"[..],
            b"0-",
            b"-3",
            b"0,,1",
            b"a",
            b"0-4294967295",
            b"\xff",
            b"0 1",
        ] {
            assert!(parse_list(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn every_online_cpu_is_possible() {
        let (online, possible) = (online().expect("online"), possible().expect("possible"));
        assert!(!online.is_empty() && online.iter().all(|cpu| possible.contains(cpu)));
    }

    proptest! {
        #[test]
        fn no_list_makes_the_parser_panic(text in "[0-9,\\- a]{0,30}") {
            let _ = parse_list(text.as_bytes());
        }
    }
}
