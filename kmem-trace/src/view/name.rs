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

/// `bytes` as text: control characters and what is no UTF-8 as `\xNN`, what is not seen as `\u{NNNN}`,
/// a backslash as `\\`.
pub fn printable(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            match character {
                '\\' => out.push_str("\\\\"),
                _ if character.is_control() => {
                    let mut utf8 = [0; 4];
                    for byte in character.encode_utf8(&mut utf8).bytes() {
                        let _ = write!(out, "\\x{byte:02x}");
                    }
                }
                _ if is_unseen(character) => {
                    let _ = write!(out, "\\u{{{:x}}}", u32::from(character));
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

/// Whether it turns the direction of what follows, ends a line, has no width, or is a blank that is no
/// space: by the standard library's table of what prints, and what Unicode has displayed as nothing
/// though it is a letter or a mark (`Default_Ignorable_Code_Point`), or a blank pattern.
fn is_unseen(character: char) -> bool {
    let is_nothing = matches!(
        character,
        '\u{34f}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' | '\u{180b}'..='\u{180f}'
            | '\u{2800}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{ffa0}'
            | '\u{e0000}'..='\u{e0fff}'
    );
    // After a letter, as marks that go with one are seen there.
    let shown = || String::from_iter(['a', character]).escape_debug().nth(1);
    is_nothing || !character.is_ascii() && shown() == Some('\\')
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
    fn what_is_not_seen_is_shown_and_writing_stays_as_it_is() {
        for unseen in [
            '\u{61c}', '\u{200b}', '\u{200d}', '\u{2028}', '\u{2069}', '\u{feff}', '\u{3164}',
            '\u{fe0f}', '\u{2800}', '\u{a0}',
        ] {
            let shown = format!("a\\u{{{:x}}}", u32::from(unseen));
            assert_eq!(printable(format!("a{unseen}").as_bytes()), shown);
        }
        for name in ["größe", "नमस्ते", "สวัสดี", "e\u{301}", "日本", "it's \"so\""]
        {
            assert_eq!(printable(name.as_bytes()), name);
        }
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
