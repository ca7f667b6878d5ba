//! Names that the kernel takes as any bytes, made safe to print: nothing a cgroup or a process is
//! called can reach the terminal as a control sequence or break a line.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt as _;

/// A message as one line, whatever names it contains: as [`printable`], but backslashes stay, and
/// line ends become blanks.
pub fn one_line(message: &str) -> String {
    let blanks = message.trim_end().replace('\n', " ");
    printable(blanks.as_bytes()).replace("\\\\", "\\")
}

/// `bytes` as text: control characters and what is no UTF-8 as `\xNN`, a backslash as `\\`.
pub fn printable(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            match character {
                '\\' => out.push_str("\\\\"),
                // Direction marks reorder what follows them on the screen.
                '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}' => {
                    let _ = write!(out, "\\u{{{:x}}}", u32::from(character));
                }
                _ if character.is_control() => {
                    let mut utf8 = [0; 4];
                    for byte in character.encode_utf8(&mut utf8).bytes() {
                        let _ = write!(out, "\\x{byte:02x}");
                    }
                }
                _ => out.push(character),
            }
        }
        for byte in chunk.invalid() {
            let _ = write!(out, "\\x{byte:02x}");
        }
    }
    out
}

/// The same for a path.
pub fn path(name: &OsStr) -> String {
    printable(name.as_bytes())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn no_name_reaches_the_terminal_as_a_control_sequence() {
        assert_eq!(printable(b"a\x1b[2Jb\nc"), "a\\x1b[2Jb\\x0ac");
        assert_eq!(printable(b"\xff\xfeok \xc3\xa9"), "\\xff\\xfeok \u{e9}");
        assert_eq!(printable("a\u{9b}b".as_bytes()), "a\\xc2\\x9bb");
        assert_eq!(printable("a\u{202e}b".as_bytes()), "a\\u{202e}b");
    }

    #[test]
    fn a_message_is_one_line_whatever_it_quotes() {
        assert_eq!(
            one_line("no cgroup a\\b\x1b[2J\nin x\n"),
            "no cgroup a\\b\\x1b[2J in x"
        );
    }

    /// Undoes [`printable`].
    fn bytes(shown: &str) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut rest = shown;
        while let Some(first) = rest.chars().next() {
            let (what, len) = if let Some(tail) = rest.strip_prefix("\\u{") {
                let end = tail.find('}').expect("closed");
                let code = u32::from_str_radix(&tail[..end], 16).expect("hexadecimal");
                let character = char::from_u32(code).expect("a character");
                (character.to_string().into_bytes(), end + 4)
            } else if let Some(tail) = rest.strip_prefix("\\x") {
                let byte = u8::from_str_radix(&tail[..2], 16).expect("hexadecimal");
                (vec![byte], 4)
            } else if rest.starts_with("\\\\") {
                (b"\\".to_vec(), 2)
            } else {
                (first.to_string().into_bytes(), first.len_utf8())
            };
            bytes.extend(what);
            rest = &rest[len..];
        }
        bytes
    }

    proptest! {
        #[test]
        fn no_two_names_look_the_same(
            name in prop::collection::vec(prop_oneof![any::<u8>(), prop::sample::select(b"\\xu{}1b".to_vec())], 0..255)
        ) {
            let shown = printable(&name);
            prop_assert!(shown.chars().all(|character| !character.is_control()));
            prop_assert_eq!(bytes(&shown), name);
        }

        #[test]
        fn nor_do_names_of_odd_characters(name: String) {
            prop_assert_eq!(bytes(&printable(name.as_bytes())), name.into_bytes());
        }
    }
}
