//! `/proc/PID/mountinfo`: what is mounted where. Which of it is the memory controller's, or
//! tracefs, is decided elsewhere.

use std::{ffi::OsString, os::unix::ffi::OsStringExt, path::PathBuf};

use crate::kernel::file::{self, LineError};

/// The mounts that this process sees.
pub const SELF: &str = "/proc/self/mountinfo";

/// One mount. Paths are bytes, with the kernel's octal escapes undone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// The directory of the file system that shows at `mount_point`; `/` unless a part is bound.
    pub root: PathBuf,
    pub mount_point: PathBuf,
    pub fs_type: String,
    /// Options of the file system itself: for cgroup v1 the controllers, `name=systemd`.
    pub super_options: Vec<String>,
}

/// Parses mountinfo (`proc_pid_mountinfo(5)`).
///
/// # Errors
/// [`LineError`] for a line without the ` - ` part.
pub fn parse(bytes: &[u8]) -> Result<Vec<Mount>, LineError> {
    file::lines(bytes)
        .map(|(number, line)| {
            parse_line(line).ok_or_else(|| LineError::new(number, "not a line of mountinfo"))
        })
        .collect()
}

fn parse_line(line: &[u8]) -> Option<Mount> {
    let mut words = line.split(|byte| *byte == b' ');
    let root = words.nth(3)?;
    let mount_point = words.next()?;
    words.find(|word| *word == b"-")?;
    let fs_type = words.next()?;
    let _source = words.next()?;
    let options = words.next()?;
    if root.is_empty() || !mount_point.starts_with(b"/") {
        return None;
    }
    Some(Mount {
        root: path(root),
        mount_point: path(mount_point),
        fs_type: file::text(fs_type),
        super_options: options
            .split(|byte| *byte == b',')
            .map(file::text)
            .collect(),
    })
}

fn path(escaped: &[u8]) -> PathBuf {
    PathBuf::from(OsString::from_vec(unescape(escaped)))
}

/// Undoes `\040` and its like: the kernel escapes blank, tab, newline, backslash and `#` so.
fn unescape(escaped: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(escaped.len());
    let mut rest = escaped;
    while let [first, tail @ ..] = rest {
        match rest {
            [
                b'\\',
                a @ b'0'..=b'3',
                b @ b'0'..=b'7',
                c @ b'0'..=b'7',
                tail @ ..,
            ] => {
                plain.push(((a - b'0') << 6) | ((b - b'0') << 3) | (c - b'0'));
                rest = tail;
            }
            _ => {
                plain.push(*first);
                rest = tail;
            }
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use std::{ffi::OsStr, os::unix::ffi::OsStrExt, path::Path};

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_line_with_a_word_too_few_is_refused() {
        assert!(parse(b"35 31 0:32  /sys/fs/cgroup rw - cgroup cgroup rw,memory").is_err());
        assert!(parse(b"35 31 0:32 / rw,relatime - cgroup cgroup rw,memory").is_err());
    }

    #[test]
    fn optional_fields_before_the_dash_do_not_matter() {
        let mounts = parse(
            b"36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 shared:2 - ext3 /dev/root rw,errors=continue\n\
              32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct",
        )
        .expect("valid");
        assert_eq!(mounts[0].root, Path::new("/mnt1"));
        assert_eq!(mounts[0].mount_point, Path::new("/mnt2"));
        assert_eq!(mounts[1].fs_type, "cgroup");
        assert_eq!(mounts[1].super_options, ["rw", "cpu", "cpuacct"]);
    }

    #[test]
    fn escapes_and_bytes_that_are_no_text_survive() {
        let mounts =
            parse(b"1 0 0:1 / /a\\040b\\134\\012c\xff\\9 rw - tmpfs none rw").expect("valid");
        let expected = OsStr::from_bytes(b"/a b\\\nc\xff\\9");
        assert_eq!(mounts[0].mount_point, Path::new(expected));
    }

    #[test]
    fn a_line_that_is_cut_off_is_refused_with_its_number() {
        let good = "22 27 0:21 / /proc rw - proc proc rw\n";
        for bad in [
            "22 27 0:21 / /proc rw",
            "22 27",
            "22 27 0:21 / /proc rw - proc proc",
        ] {
            let text = format!("{good}{bad}");
            assert_eq!(parse(text.as_bytes()).map_err(|e| e.line), Err(2));
        }
        assert_eq!(parse(b""), Ok(Vec::new()));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes);
        }

        #[test]
        fn escaping_as_the_kernel_does_is_undone(name in prop::collection::vec(any::<u8>(), 0..40)) {
            let mut escaped = Vec::new();
            for byte in &name {
                if b" \t\n\\#".contains(byte) {
                    escaped.extend(format!("\\{byte:03o}").into_bytes());
                } else {
                    escaped.push(*byte);
                }
            }
            prop_assert_eq!(unescape(&escaped), name);
        }
    }
}
