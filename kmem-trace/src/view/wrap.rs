//! Lines of a screen, folded at its width: between words, never within a figure, and under where
//! the words began.

use std::io::{self, Write};

use textwrap::{
    Options, WordSeparator, WordSplitter,
    core::{Word, display_width},
};

/// What stands between the columns of a row.
const GAP: &str = "   ";
/// Less room is none: such a line goes on under its label.
const ROOM: usize = 30;
/// How far a line goes on behind its own beginning.
const HANGING: usize = 4;

/// Folds what is written to it, line by line.
pub struct Wrapped<W, F> {
    out: W,
    /// Columns; asked again and again, as a terminal changes its size. `None`: as wide as it gets.
    width: F,
    /// The beginning of a line that is not finished.
    partial: Vec<u8>,
    /// Folded, and not yet taken by what is written to.
    folded: Vec<u8>,
}

impl<W: Write, F: Fn() -> Option<usize>> Wrapped<W, F> {
    pub fn new(out: W, width: F) -> Self {
        Self {
            out,
            width,
            partial: Vec::new(),
            folded: Vec::new(),
        }
    }

    /// What is taken is never offered again, so that an error in the middle doubles nothing.
    fn drain(&mut self) -> io::Result<()> {
        while !self.folded.is_empty() {
            match self.out.write(&self.folded) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(taken) => drop(self.folded.drain(..taken)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

impl<W: Write, F: Fn() -> Option<usize>> Write for Wrapped<W, F> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.drain()?;
        self.partial.extend_from_slice(bytes);
        if let Some(end) = self.partial.iter().rposition(|byte| *byte == b'\n') {
            let rest = self.partial.split_off(end + 1);
            let whole = std::mem::replace(&mut self.partial, rest);
            match (self.width)() {
                Some(width) => {
                    for line in String::from_utf8_lossy(&whole).lines() {
                        for piece in fold(line, width) {
                            self.folded.extend_from_slice(piece.as_bytes());
                            self.folded.push(b'\n');
                        }
                    }
                }
                None => self.folded = whole,
            }
            // These bytes are taken; an error is the next one's.
            let _ = self.drain();
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.folded.append(&mut self.partial);
        self.drain()?;
        self.out.flush()
    }
}

/// A line in pieces of at most `width` columns, where its words are no longer.
fn fold(line: &str, width: usize) -> Vec<String> {
    if display_width(line) <= width {
        return vec![line.to_owned()];
    }
    let own = line.len() - line.trim_start().len();
    // What stands in columns is no text to be folded.
    let column = remark(line)
        .map(|at| (at, display_width(&line[..at])))
        .filter(|(_, columns)| columns + ROOM <= width);
    let (at, indent) = column.unwrap_or((own, own + HANGING));
    under(&line[..at], &" ".repeat(indent), &line[at..], width)
}

/// Words behind `head`, and further ones behind `indent`, in lines of at most `width` columns; a
/// longer word gets a line of its own.
pub fn under(head: &str, indent: &str, text: &str, width: usize) -> Vec<String> {
    if text.is_empty() {
        return vec![head.trim_end().to_owned()];
    }
    let options = Options::new(width)
        .initial_indent(head)
        .subsequent_indent(indent)
        .break_words(false)
        .word_separator(WordSeparator::Custom(words))
        .word_splitter(WordSplitter::NoHyphenation);
    let pieces = textwrap::wrap(text, options);
    pieces
        .iter()
        .map(|piece| piece.trim_end().to_owned())
        .collect()
}

/// The byte at which a row's remark begins, behind its label and figures; `None` where the line is no
/// row.
fn remark(line: &str) -> Option<usize> {
    let text = line.len() - line.trim_start().len();
    let gap = line[text..].rfind(GAP)?;
    Some(text + gap + GAP.len())
}

/// Words between blanks; a figure with its groups of digits and its unit is one.
fn words(line: &str) -> Box<dyn Iterator<Item = Word<'_>> + '_> {
    let mut rest = line;
    Box::new(std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let mut end = 0;
        loop {
            let word = rest[end..].find(' ').unwrap_or(rest.len() - end);
            end += word;
            let blanks = rest[end..].len() - rest[end..].trim_start_matches(' ').len();
            let next = &rest[end + blanks..];
            let goes_on = blanks == 1 && goes_on(&rest[..end], next);
            end += blanks;
            if next.is_empty() || !goes_on {
                break;
            }
        }
        let (word, left) = rest.split_at(end);
        rest = left;
        Some(Word::from(word))
    }))
}

/// Whether what follows a blank belongs to the figure before it.
fn goes_on(before: &str, next: &str) -> bool {
    let starts_with_digit = next.starts_with(|first: char| first.is_ascii_digit());
    if before.ends_with(['≤', '≥', '≈']) {
        return starts_with_digit;
    }
    let word = next.split(' ').next().unwrap_or_default();
    let unit = word.trim_end_matches(|last: char| !last.is_ascii_alphabetic() && last != '%');
    let unit = unit.strip_suffix("/s").unwrap_or(unit);
    let is_unit = matches!(
        unit,
        "B" | "KiB" | "MiB" | "GiB" | "TiB" | "%" | "ms" | "s" | "ns"
    );
    before.ends_with(|last: char| last.is_ascii_digit()) && (is_unit || starts_with_digit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_goes_on_under_its_remark() {
        let row = format!(
            "{:<28}{:>16}   within the bound ✓  bound 4 096.0 KiB = in flight 512.0 KiB + per-CPU stocks 3 584.0 KiB",
            "unexplained", "+1 380.0 KiB"
        );
        let folded = fold(&row, 100);
        assert_eq!(folded.len(), 2, "{folded:#?}");
        assert_eq!(
            folded[1],
            format!("{}512.0 KiB + per-CPU stocks 3 584.0 KiB", " ".repeat(47))
        );
        assert_eq!(fold(&row, 200), [row.as_str()]);
    }

    #[test]
    fn a_narrow_screen_goes_on_under_the_label() {
        let row = format!(
            "{:<28}{:>16}   by words and words and words",
            "  kernel", "12.0 KiB"
        );
        let folded = fold(&row, 60);
        assert!(folded[0].starts_with("  kernel"), "{folded:#?}");
        assert!(folded[1].starts_with("      ") && folded[1].as_bytes()[6] != b' ');
        assert!(folded.iter().all(|piece| piece.len() <= 60), "{folded:#?}");
    }

    #[test]
    fn a_figure_stays_with_its_groups_and_its_unit() {
        let pieces: Vec<_> = words("of 1 234 567 objects, 12.0 KiB; 3 % a +1.2 MiB/s ≤ 59.3 MiB")
            .map(|word| word.word.to_owned())
            .collect();
        assert_eq!(
            pieces,
            [
                "of",
                "1 234 567",
                "objects,",
                "12.0 KiB;",
                "3 %",
                "a",
                "+1.2 MiB/s",
                "≤ 59.3 MiB"
            ]
        );
    }

    #[test]
    fn lines_are_folded_as_they_are_finished_and_nothing_is_lost() {
        let mut out = Vec::new();
        let mut wrapped = Wrapped::new(&mut out, || Some(20));
        write!(wrapped, "one two three ").expect("memory takes it");
        writeln!(wrapped, "four five six").expect("memory takes it");
        write!(wrapped, "unfinished").expect("memory takes it");
        wrapped.flush().expect("memory takes it");
        assert_eq!(
            String::from_utf8_lossy(&out),
            "one two three four\n    five six\nunfinished"
        );
        let mut out = Vec::new();
        let long = "word ".repeat(100);
        let mut wrapped = Wrapped::new(&mut out, || None);
        writeln!(wrapped, "{long}").expect("memory takes it");
        wrapped.flush().expect("memory takes it");
        assert_eq!(out.len(), long.len() + 1);
    }

    /// Takes a few bytes at a time, and refuses now and then.
    #[derive(Default)]
    struct Slow {
        taken: Vec<u8>,
        calls: usize,
    }

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.calls += 1;
            if self.calls.is_multiple_of(3) {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            let some = bytes.len().min(7);
            self.taken.extend_from_slice(&bytes[..some]);
            Ok(some)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn whoever_refuses_now_and_then_gets_each_line_once() {
        let text = "größer als \u{20ac}, ein Wort und noch eines\nund \u{4e16}\u{754c} mehr\n";
        for chunk in 1..20 {
            let mut slow = Slow::default();
            let mut wrapped = Wrapped::new(&mut slow, || Some(20));
            for bytes in text.as_bytes().chunks(chunk) {
                while wrapped.write(bytes).is_err() {}
            }
            while wrapped.flush().is_err() {}
            let pieces: Vec<String> = text.lines().flat_map(|line| fold(line, 20)).collect();
            let expected = pieces.join("\n") + "\n";
            assert_eq!(String::from_utf8_lossy(&slow.taken), expected, "{chunk}");
        }
    }

    #[test]
    fn a_word_that_is_longer_than_the_screen_is_left_whole() {
        let name = "/docker/".to_owned() + &"f".repeat(64);
        assert_eq!(fold(&name, 40), [name.as_str()]);
    }
}
