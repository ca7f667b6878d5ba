//! `/proc/softirqs`: how many softirqs each CPU ran, as the kernel itself counts them.

use std::path::Path;

use crate::kernel::file::{self, FileError, LineError};

const PATH: &str = "/proc/softirqs";

/// Softirqs since boot, modulo 2³²: for each vector, in the kernel's order, a count for each possible
/// CPU (`show_softirqs`, fs/proc/softirqs.c), whose numbers have no gaps on x86
/// (`topology_init_possible_cpus`).
pub type ByVector = Vec<Vec<u32>>;

/// What this kernel counted.
///
/// # Errors
/// [`FileError`].
pub fn read() -> Result<ByVector, FileError> {
    file::read_as(Path::new(PATH), parse)
}

/// Parses a line of CPUs and, for each vector, its name and a count for each of them.
///
/// # Errors
/// [`LineError`].
pub fn parse(bytes: &[u8]) -> Result<ByVector, LineError> {
    let number = |word| u32::try_from(file::number(word)?).ok();
    let mut lines = file::lines(bytes);
    let cpus = lines
        .next()
        .map_or(0, |(_, line)| file::words(line).count());
    let vectors: ByVector = lines
        .map(|(at, line)| {
            let mut words = file::words(line);
            words
                .next()
                .filter(|name| name.ends_with(b":"))
                .and_then(|_| words.map(number).collect::<Option<Vec<_>>>())
                .filter(|counts| counts.len() == cpus)
                .ok_or_else(|| LineError::new(at, "not a vector's name and a count for each CPU"))
        })
        .collect::<Result<_, _>>()?;
    if cpus == 0 || vectors.is_empty() {
        return Err(LineError::new(1, "no CPUs or no vectors"));
    }
    Ok(vectors)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn each_vector_has_the_counts_of_its_cpus() {
        let text = b"                    CPU0       CPU1       \n          HI:          0          1\n       TIMER:     469524     375667\n         RCU:   14379622   15021016\n";
        let counts = [[0, 1], [469_524, 375_667], [14_379_622, 15_021_016]];
        assert_eq!(parse(text), Ok(counts.map(Vec::from).to_vec()));
    }

    #[test]
    fn nonsense_is_refused() {
        for bad in [
            &b""[..],
            b"CPU0\n",
            b"CPU0\nHI 1\n",
            b"CPU0\nHI: x\n",
            b"CPU0\nHI: -1\n",
            b"CPU0\nHI: 4294967296\n",
            b"CPU0 CPU1\nHI: 1\n",
            b"\nHI:\n",
        ] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn this_kernel_counts_its_vectors() {
        let counts = read().expect("softirqs");
        assert!(
            counts.iter().flatten().any(|count| *count > 0),
            "{counts:?}"
        );
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "[A-Z0-9: \n-]{0,60}") {
            let _ = parse(text.as_bytes());
        }
    }
}
