//! The text written to a limit file → the limit it means, as the kernel reads it
//! (`page_counter_memparse` and `memparse`; `res_counter_memparse_write_strategy` before 3.19).

use crate::hooks::limits::Unit;

/// A limit as the kernel understood it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Value {
    /// The limit in bytes, in whole pages; that of [`unlimited`] stands for none.
    pub bytes: u64,
    /// What the text says, before rounding; `None` for the word that means no limit.
    pub asked_bytes: Option<u64>,
    /// Digits or suffix were too large for 64 bits: what is left of them, as kernels before 7.3.4 go on
    /// with.
    pub wrapped: bool,
}

/// How limits are written here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Notation {
    /// The word for no limit: `-1` on v1, `max` on v2.
    pub no_limit: &'static str,
    pub unit: Unit,
    /// Bytes; a power of two.
    pub page_bytes: u64,
}

/// The limit that is none: `PAGE_COUNTER_MAX` pages in bytes, `RES_COUNTER_MAX` before.
pub fn unlimited(unit: Unit, page_bytes: u64) -> u64 {
    match unit {
        Unit::Pages => i64::MAX as u64 / page_bytes * page_bytes,
        Unit::Bytes => i64::MAX as u64,
    }
}

/// Reads a written text; `None` where the kernel says `EINVAL`.
///
/// Pages are rounded down (bytes, before page counters, up). As in the kernel, no digits at all
/// are 0, `0x` and a leading `0` change the base, and too many digits wrap around.
pub fn parse(text: &[u8], notation: &Notation) -> Option<Value> {
    let Notation {
        no_limit,
        unit,
        page_bytes,
    } = *notation;
    let none = unlimited(unit, page_bytes);
    let text = strip(text);
    if text == no_limit.as_bytes() {
        return Some(Value {
            bytes: none,
            asked_bytes: None,
            wrapped: false,
        });
    }
    let (asked, wrapped) = memparse(text)?;
    let bytes = match unit {
        Unit::Pages => asked / page_bytes * page_bytes,
        Unit::Bytes => asked.checked_next_multiple_of(page_bytes).unwrap_or(none),
    };
    Some(Value {
        bytes: bytes.min(none),
        asked_bytes: Some(asked),
        wrapped,
    })
}

/// `strstrip`: without the white space around it.
fn strip(text: &[u8]) -> &[u8] {
    let is_space = |byte: &u8| matches!(byte, b' ' | b'\t'..=b'\r' | 0xa0);
    let Some(start) = text.iter().position(|byte| !is_space(byte)) else {
        return &[];
    };
    let end = text
        .iter()
        .rposition(|byte| !is_space(byte))
        .map_or(start, |last| last + 1);
    &text[start..end]
}

/// `memparse` of the whole text: the number, and whether it wrapped.
fn memparse(text: &[u8]) -> Option<(u64, bool)> {
    let (base, digits) = match text {
        [b'0', b'x' | b'X', first, ..] if first.is_ascii_hexdigit() => (16, &text[2..]),
        [b'0', ..] => (8, text),
        _ => (10, text),
    };
    let mut value: u64 = 0;
    let mut wrapped = false;
    let mut rest = digits;
    while let Some((first, after)) = rest.split_first()
        && let Some(digit) = char::from(*first).to_digit(base)
    {
        let larger = value
            .checked_mul(u64::from(base))
            .and_then(|it| it.checked_add(u64::from(digit)));
        wrapped |= larger.is_none();
        value = value
            .wrapping_mul(u64::from(base))
            .wrapping_add(u64::from(digit));
        rest = after;
    }
    let shift = match rest {
        [] => 0,
        [b'K' | b'k'] => 10,
        [b'M' | b'm'] => 20,
        [b'G' | b'g'] => 30,
        [b'T' | b't'] => 40,
        [b'P' | b'p'] => 50,
        [b'E' | b'e'] => 60,
        _ => return None,
    };
    wrapped |= value != 0 && value.leading_zeros() < shift;
    Some((value << shift, wrapped))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const V1: Notation = Notation {
        no_limit: "-1",
        unit: Unit::Pages,
        page_bytes: 4096,
    };
    const V2: Notation = Notation {
        no_limit: "max",
        ..V1
    };

    fn bytes(text: &str, notation: &Notation) -> Option<u64> {
        parse(text.as_bytes(), notation).map(|value| value.bytes)
    }

    #[test]
    fn texts_become_what_kernels_made_of_them() {
        // As 5.10, 6.1, 6.12 and 7.0 read back after the write.
        for (text, became) in [
            ("0\n", Some(0)),
            ("10000", Some(8192)),
            ("5G", Some(5_368_709_120)),
            (" 2M \n", Some(2_097_152)),
            ("4k", Some(4096)),
            ("\n", Some(0)),
            ("99999999999999999999999", Some(200_376_420_520_685_568)),
            ("nonsense", None),
            ("-5", None),
        ] {
            assert_eq!(bytes(text, &V1), became, "{text:?} on v1");
            assert_eq!(bytes(text, &V2), became, "{text:?} on v2");
        }
    }

    #[test]
    fn each_hierarchy_has_its_own_word_for_no_limit() {
        assert_eq!(bytes("-1\n", &V1), Some(9_223_372_036_854_771_712));
        assert_eq!(bytes("-1", &V2), None);
        assert_eq!(bytes("max\n", &V2), Some(9_223_372_036_854_771_712));
        assert_eq!(bytes("max", &V1), None);
    }

    #[test]
    fn bases_and_suffixes_are_the_kernels() {
        assert_eq!(bytes("0x10000", &V1), Some(65536));
        assert_eq!(bytes("0X1E", &V1), Some(0));
        assert_eq!(bytes("010000", &V1), Some(4096));
        assert_eq!(bytes("09", &V1), None);
        assert_eq!(bytes("0x", &V1), None);
        assert_eq!(bytes("M", &V1), Some(0));
        assert_eq!(bytes("1MB", &V1), None);
        assert_eq!(bytes("1 M", &V1), None);
        assert_eq!(bytes("1t", &V1), Some(1 << 40));
        assert_eq!(bytes("8E", &V1), Some(9_223_372_036_854_771_712));
        assert_eq!(bytes("16E", &V1), Some(0));
    }

    #[test]
    fn what_does_not_fit_is_marked() {
        let wrapped = |text: &str| parse(text.as_bytes(), &V1).map(|value| value.wrapped);
        assert_eq!(wrapped("18446744073709551615"), Some(false));
        assert_eq!(wrapped("18446744073709551616"), Some(true));
        assert_eq!(wrapped("15E"), Some(false));
        assert_eq!(wrapped("16E"), Some(true));
        assert_eq!(wrapped("0E"), Some(false));
    }

    #[test]
    fn byte_counters_round_up() {
        let old = Notation {
            unit: Unit::Bytes,
            ..V1
        };
        assert_eq!(bytes("10000", &old), Some(12288));
        assert_eq!(bytes("-1", &old), Some(i64::MAX as u64));
    }

    proptest! {
        #[test]
        fn a_number_of_bytes_is_rounded_down_to_pages(number: u64) {
            let value = parse(number.to_string().as_bytes(), &V1).expect("digits are a size");
            prop_assert_eq!(value.asked_bytes, Some(number));
            prop_assert!(value.bytes <= number && value.bytes.is_multiple_of(4096));
            prop_assert!(number - value.bytes < 4096 || value.bytes == unlimited(Unit::Pages, 4096));
        }

        #[test]
        fn a_suffix_is_a_power_of_1024(number in 0u64..1 << 20, suffix in 0usize..4) {
            let text = format!(" {number}{}\n", ["k", "M", "g", "T"][suffix]);
            let value = parse(text.as_bytes(), &V2).expect("a size");
            prop_assert_eq!(value.asked_bytes, Some(number * 1024u64.pow(suffix as u32 + 1)));
            prop_assert!(!value.wrapped);
        }

        #[test]
        fn no_text_makes_it_panic_and_every_limit_is_whole_pages(text: Vec<u8>) {
            if let Some(value) = parse(&text, &V1) {
                prop_assert_eq!(value.bytes % 4096, 0);
                prop_assert!(value.bytes <= unlimited(Unit::Pages, 4096));
            }
        }
    }
}
