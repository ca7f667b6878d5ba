//! Names and settings: kernel release, distribution, boot command line.

use std::path::Path;

use crate::kernel::file::{self, FileError};

/// `uname -r`, for people to read; `unknown` without `/proc`. Nothing may be decided by it.
pub fn release() -> String {
    match file::read(Path::new("/proc/sys/kernel/osrelease")) {
        Ok(bytes) => file::text(bytes.trim_ascii()),
        Err(_) => "unknown".to_owned(),
    }
}

/// The distribution's own name for itself; `None` where it gives none.
pub fn distribution() -> Option<String> {
    ["/etc/os-release", "/usr/lib/os-release"]
        .iter()
        .find_map(|path| parse_pretty_name(&file::read(Path::new(path)).ok()?))
}

/// `PRETTY_NAME` of an `os-release(5)` file.
pub fn parse_pretty_name(bytes: &[u8]) -> Option<String> {
    let value = file::lines(bytes)
        .filter_map(|(_, line)| line.strip_prefix(b"PRETTY_NAME="))
        .last()?;
    let value = file::text(value.trim_ascii());
    let inner = ['"', '\'']
        .iter()
        .find_map(|quote| value.strip_prefix(*quote)?.strip_suffix(*quote));
    let mut plain = String::new();
    let mut escaped = false;
    for letter in inner.unwrap_or(&value).chars() {
        if letter == '\\' && !escaped && !value.starts_with('\'') {
            escaped = true;
        } else {
            plain.push(letter);
            escaped = false;
        }
    }
    (!plain.is_empty()).then_some(plain)
}

/// What the boot command line says about memory cgroups.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cmdline {
    /// `cgroup.memory=nokmem`: no kernel memory is charged to anybody.
    pub nokmem: bool,
    /// `cgroup.memory=nosocket`: no socket buffers are charged.
    pub nosocket: bool,
    /// `cgroup.memory=nobpf`: no memory of BPF maps is charged.
    pub nobpf: bool,
    /// Names after `cgroup_disable=`.
    pub disabled: Vec<String>,
    /// `slab_nomerge` (or `slub_nomerge`): caches of the same shape stay apart.
    pub nomerge: bool,
}

impl Cmdline {
    /// # Errors
    /// [`FileError`].
    pub fn read() -> Result<Cmdline, FileError> {
        Ok(Cmdline::parse(&file::read(Path::new("/proc/cmdline"))?))
    }

    /// As the kernel reads it: what stands after `--` is for init.
    pub fn parse(bytes: &[u8]) -> Cmdline {
        let mut cmdline = Cmdline::default();
        let words = bytes.split(u8::is_ascii_whitespace);
        for word in words.take_while(|word| *word != b"--") {
            let word = file::text(word).replace('"', "");
            let (key, value) = word.split_once('=').unwrap_or((&word, ""));
            match key.replace('-', "_").as_str() {
                "cgroup.memory" => {
                    for token in value.split(',') {
                        cmdline.nokmem |= token == "nokmem";
                        cmdline.nosocket |= token == "nosocket";
                        cmdline.nobpf |= token == "nobpf";
                    }
                }
                "cgroup_disable" => {
                    let names = value.split(',').filter(|name| !name.is_empty());
                    cmdline.disabled.extend(names.map(str::to_owned));
                }
                "slab_nomerge" | "slub_nomerge" => cmdline.nomerge = true,
                _ => {}
            }
        }
        cmdline
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_option_of_the_memory_controller_is_seen() {
        let cmdline = Cmdline::parse(
            b"quiet cgroup.memory=nokmem,nosocket cgroup_disable=cpu,pids slab_nomerge\n",
        );
        assert!(cmdline.nokmem && cmdline.nosocket && cmdline.nomerge && !cmdline.nobpf);
        assert_eq!(cmdline.disabled, ["cpu", "pids"]);
    }

    #[test]
    fn options_for_init_and_look_alikes_do_not_count() {
        for text in [
            "quiet -- cgroup.memory=nokmem",
            "cgroup.memory=nokmemory",
            "xcgroup.memory=nokmem",
            "",
        ] {
            assert_eq!(
                Cmdline::parse(text.as_bytes()),
                Cmdline::default(),
                "{text}"
            );
        }
    }

    #[test]
    fn a_pretty_name_loses_its_quotes_and_escapes() {
        let name = |text: &str| parse_pretty_name(text.as_bytes());
        let debian = "NAME=\"Debian\"\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n";
        assert_eq!(
            name(debian),
            Some("Debian GNU/Linux 12 (bookworm)".to_owned())
        );
        assert_eq!(name("PRETTY_NAME=Plain"), Some("Plain".to_owned()));
        assert_eq!(name("PRETTY_NAME='It is'"), Some("It is".to_owned()));
        assert_eq!(
            name("PRETTY_NAME=\"a \\\"b\\\"\""),
            Some("a \"b\"".to_owned())
        );
        assert_eq!(name("PRETTY_NAME=\"\""), None);
        assert_eq!(name("NAME=x"), None);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parsers_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            Cmdline::parse(&bytes);
            parse_pretty_name(&bytes);
        }

        #[test]
        fn nor_do_names_with_odd_quotes(text in "PRETTY_NAME=['\"\\\\aé]{0,6}") {
            parse_pretty_name(text.as_bytes());
        }
    }
}
