//! Lines of a screen, folded at its width: between words, never within a figure, and under where
//! the words began.

use std::io::{self, Write};

use textwrap::{
    Options, WordSeparator, WordSplitter,
    core::{Word, display_width},
};

/// What stands between the columns of a row, and nowhere within one.
const GAP: &str = "   ";
/// Less room is none: such a line goes on under its label.
const ROOM: usize = 30;
/// How far a line goes on behind its own beginning.
const HANGING: usize = 4;

/// Folds what is written to it, line by line.
pub struct Wrapped<W, F> {
    out: W,
    /// Columns, asked anew for each line: a terminal changes its size. `None`: as wide as it gets.
    width: F,
    partial: Vec<u8>,
}

impl<W: Write, F: Fn() -> Option<usize>> Wrapped<W, F> {
    pub fn new(out: W, width: F) -> Self {
        Self {
            out,
            width,
            partial: Vec::new(),
        }
    }
}

impl<W: Write, F: Fn() -> Option<usize>> Write for Wrapped<W, F> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(end) = bytes.iter().rposition(|byte| *byte == b'\n') else {
            self.partial.extend_from_slice(bytes);
            return Ok(bytes.len());
        };
        let mut whole = std::mem::take(&mut self.partial);
        whole.extend_from_slice(&bytes[..=end]);
        self.partial.extend_from_slice(&bytes[end + 1..]);
        match (self.width)() {
            Some(width) => {
                for line in String::from_utf8_lossy(&whole).lines() {
                    for piece in fold(line, width) {
                        writeln!(self.out, "{piece}")?;
                    }
                }
            }
            None => self.out.write_all(&whole)?,
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let partial = std::mem::take(&mut self.partial);
        self.out.write_all(&partial)?;
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
            let is_figure =
                blanks == 1 && rest[..end].ends_with(|last: char| last.is_ascii_digit());
            end += blanks;
            if next.is_empty() || !(is_figure && goes_on(next)) {
                break;
            }
        }
        let (word, left) = rest.split_at(end);
        rest = left;
        Some(Word::from(word))
    }))
}

/// Whether what follows a digit and a blank belongs to the same figure.
fn goes_on(next: &str) -> bool {
    let word = next.split(' ').next().unwrap_or_default();
    let unit = word.trim_end_matches(|last: char| !last.is_ascii_alphabetic() && last != '%');
    matches!(
        unit,
        "B" | "KiB" | "MiB" | "GiB" | "TiB" | "%" | "ms" | "s" | "ns"
    ) || word.starts_with(|first: char| first.is_ascii_digit())
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
        let pieces: Vec<_> = words("of 1 234 567 objects, 12.0 KiB; 3 % a")
            .map(|word| word.word.to_owned())
            .collect();
        assert_eq!(
            pieces,
            ["of", "1 234 567", "objects,", "12.0 KiB;", "3 %", "a"]
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
        writeln!(Wrapped::new(&mut out, || None), "{long}").expect("memory takes it");
        assert_eq!(out.len(), long.len() + 1);
    }

    #[test]
    fn a_word_that_is_longer_than_the_screen_is_left_whole() {
        let name = "/docker/".to_owned() + &"f".repeat(64);
        assert_eq!(fold(&name, 40), [name.as_str()]);
    }
}
