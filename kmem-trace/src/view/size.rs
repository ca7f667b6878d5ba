//! Bytes for people.

const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];

/// `1 942.0 MiB`; bytes below 1 KiB as they are. Beyond the bound of a terabyte it stays in TiB.
pub fn human(bytes: u64) -> String {
    let mut value = bytes as f64;
    let mut unit = 0;
    // Thousands of a unit are still read at a glance: 1 942.0 MiB rather than 1.9 GiB.
    while value >= 10_000.0 || (unit == 0 && value >= 1024.0) {
        if unit + 1 == UNITS.len() {
            break;
        }
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 {
        return format!("{bytes} B");
    }
    format!("{} {}", grouped(&format!("{value:.1}")), UNITS[unit])
}

/// The same with a sign.
pub fn signed(bytes: i64) -> String {
    match bytes {
        0 => "0 B".to_owned(),
        _ if bytes < 0 => format!("-{}", human(bytes.unsigned_abs())),
        _ => format!("+{}", human(bytes.unsigned_abs())),
    }
}

/// The same with a sign only below zero.
pub fn plain(bytes: i64) -> String {
    let sign = if bytes < 0 { "-" } else { "" };
    format!("{sign}{}", human(bytes.unsigned_abs()))
}

/// `12.5 %`; nothing of nothing.
pub fn share(part: u64, whole: u64) -> String {
    if whole == 0 {
        return String::new();
    }
    format!("{:.1} %", part as f64 * 100.0 / whole as f64)
}

/// What a bound is the sum of, without what is nothing: `in flight 32.0 KiB + lost 4.0 KiB`.
pub fn terms(terms: &[(&str, u64)]) -> String {
    let parts: Vec<String> = terms
        .iter()
        .filter(|(_, bytes)| *bytes > 0)
        .map(|(name, bytes)| format!("{name} {}", human(*bytes)))
        .collect();
    parts.join(" + ")
}

/// `1234567` → `1 234 567`.
pub fn count(number: u64) -> String {
    grouped(&number.to_string())
}

fn grouped(text: &str) -> String {
    let (whole, rest) = text
        .split_once('.')
        .map_or((text, ""), |(whole, rest)| (whole, rest));
    let mut out = String::new();
    for (place, digit) in whole.chars().enumerate() {
        if place > 0 && (whole.len() - place).is_multiple_of(3) {
            out.push(' ');
        }
        out.push(digit);
    }
    if !rest.is_empty() {
        out.push('.');
        out.push_str(rest);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_at_a_glance() {
        assert_eq!(human(0), "0 B");
        assert_eq!(human(1023), "1023 B");
        assert_eq!(human(4096), "4.0 KiB");
        assert_eq!(human(2_036_244_480), "1 941.9 MiB");
        assert_eq!(human(1 << 45), "32.0 TiB");
        assert_eq!(signed(-4096), "-4.0 KiB");
        assert_eq!(count(1_234_567), "1 234 567");
    }
}
