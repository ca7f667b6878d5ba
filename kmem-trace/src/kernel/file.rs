//! Reading a kernel file whole, and what can go wrong with it. What the bytes mean is in the
//! modules beside this one.

use std::{
    io,
    path::{Path, PathBuf},
};

use thiserror::Error;

/// A file of the kernel could not be read or understood.
#[derive(Debug, Error)]
pub enum FileError {
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{}:{line}: {why}", path.display())]
    Parse {
        path: PathBuf,
        line: usize,
        why: String,
    },
}

impl FileError {
    /// Whether the file, or a directory of its path, is not there.
    pub fn is_absent(&self) -> bool {
        matches!(self, FileError::Read { source, .. } if matches!(
            source.raw_os_error(),
            Some(libc::ENOENT | libc::ENOTDIR)
        ))
    }

    /// Whether the kernel refused: permissions or lockdown.
    pub fn is_denied(&self) -> bool {
        matches!(self, FileError::Read { source, .. }
            if source.kind() == io::ErrorKind::PermissionDenied)
    }
}

/// A line that is not what it should be, before the file it came from is known.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("line {line}: {why}")]
pub struct LineError {
    /// From 1.
    pub line: usize,
    pub why: String,
}

impl LineError {
    pub fn new(line: usize, why: impl Into<String>) -> LineError {
        LineError {
            line,
            why: why.into(),
        }
    }

    /// Says which file it was.
    pub fn of(self, path: &Path) -> FileError {
        FileError::Parse {
            path: path.to_owned(),
            line: self.line,
            why: self.why,
        }
    }
}

/// Reads a file whole.
///
/// # Errors
/// [`FileError::Read`].
pub fn read(path: &Path) -> Result<Vec<u8>, FileError> {
    std::fs::read(path).map_err(|source| FileError::Read {
        path: path.to_owned(),
        source,
    })
}

/// Reads and parses a file.
///
/// # Errors
/// [`FileError`].
pub fn read_as<T>(
    path: &Path,
    parse: impl FnOnce(&[u8]) -> Result<T, LineError>,
) -> Result<T, FileError> {
    parse(&read(path)?).map_err(|error| error.of(path))
}

/// The lines of a file with their numbers from 1. A last line without newline counts; empty ones
/// are left out.
pub fn lines(bytes: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    let mut rest = Some(bytes);
    std::iter::from_fn(move || {
        let bytes = rest?;
        let end = memchr::memchr(b'\n', bytes);
        rest = end.map(|end| &bytes[end + 1..]);
        Some(&bytes[..end.unwrap_or(bytes.len())])
    })
    .enumerate()
    .map(|(at, line)| (at + 1, line))
    .filter(|(_, line)| !line.is_empty())
}

/// The words of a line, separated by blanks and tabs.
pub fn words(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    line.split(|byte| matches!(byte, b' ' | b'\t'))
        .filter(|word| !word.is_empty())
}

/// An unsigned decimal number, and nothing else.
pub fn number(word: &[u8]) -> Option<u64> {
    if !word.first()?.is_ascii_digit() {
        return None;
    }
    std::str::from_utf8(word).ok()?.parse().ok()
}

/// Bytes as text for names that are ASCII in practice; what is not UTF-8 becomes U+FFFD.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_digits_only_and_fit() {
        assert_eq!(number(b"18446744073709551615"), Some(u64::MAX));
        for wrong in [
            &b""[..],
            b"18446744073709551616",
            b"-1",
            b"+1",
            b"1k",
            b" 1",
            b"\xff",
        ] {
            assert_eq!(number(wrong), None);
        }
    }

    #[test]
    fn lines_are_numbered_with_empty_ones_counted_but_not_given() {
        let all: Vec<_> = lines(b"a\n\nb").collect();
        assert_eq!(all, [(1, &b"a"[..]), (3, &b"b"[..])]);
    }

    #[test]
    fn an_absent_file_is_told_from_an_unreadable_one() {
        let absent = read(Path::new("/proc/self/no-such-file")).expect_err("absent");
        assert!(absent.is_absent() && !absent.is_denied());
        let directory = read(Path::new("/proc/self")).expect_err("a directory");
        assert!(!directory.is_absent());
        assert!(
            directory
                .to_string()
                .starts_with("cannot read /proc/self: ")
        );
    }
}
