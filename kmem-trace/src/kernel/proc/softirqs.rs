//! `/proc/softirqs`: how many softirqs ran, as the kernel itself counts them.

use std::path::Path;

use crate::kernel::file::{self, FileError, LineError};

const PATH: &str = "/proc/softirqs";

/// Softirqs since boot by vector, in the kernel's order, all CPUs together
/// (`show_softirqs`, fs/proc/softirqs.c). A CPU's own count has 32 bits, and begins again after them.
///
/// # Errors
/// [`FileError`].
pub fn read() -> Result<Vec<u64>, FileError> {
    file::read_as(Path::new(PATH), parse)
}

/// Parses a line of CPUs and, for each vector, its name and a count for each CPU.
///
/// # Errors
/// [`LineError`].
pub fn parse(bytes: &[u8]) -> Result<Vec<u64>, LineError> {
    file::lines(bytes)
        .skip(1)
        .map(|(number, line)| {
            let wrong = || LineError::new(number, "not a line of a vector's name and its counts");
            let mut words = file::words(line);
            if !words.next().is_some_and(|name| name.ends_with(b":")) {
                return Err(wrong());
            }
            words
                .try_fold(0_u64, |sum, word| sum.checked_add(file::number(word)?))
                .ok_or_else(wrong)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn each_vector_is_summed_over_the_cpus() {
        let text = b"                    CPU0       CPU1       \n          HI:          0          1\n       TIMER:     469524     375667\n         RCU:   14379622   15021016\n";
        assert_eq!(parse(text), Ok(vec![1, 845_191, 29_400_638]));
        assert_eq!(parse(b""), Ok(Vec::new()));
    }

    #[test]
    fn nonsense_is_refused() {
        for bad in [
            &b"CPU0\nHI 1\n"[..],
            b"CPU0\nHI: x\n",
            b"CPU0\nHI: -1\n",
            b"CPU0\nHI: 18446744073709551615 1\n",
        ] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn this_kernel_counts_its_vectors() {
        let vectors = read().expect("softirqs");
        assert!(vectors.iter().any(|count| *count > 0), "{vectors:?}");
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "[A-Z0-9: \n-]{0,60}") {
            let _ = parse(text.as_bytes());
        }
    }
}
