//! Splits what comes over the result line of a test machine into output and markers. `init.sh`
//! and the script of `initramfs.rs` write the markers: a line break, a token that only this run
//! knows, a word.

/// A piece of what came over the line.
#[derive(Debug, PartialEq, Eq)]
pub enum Piece {
    Output(Vec<u8>),
    Marker(Marker),
}

/// What the machine tells about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Marker {
    /// Set up: cgroup version (`v1`, `v2`), kernel release, seconds since the kernel started.
    Ready {
        cgroup: String,
        release: String,
        uptime_s: String,
    },
    /// It cannot do what was asked.
    Refused(String),
    /// A program begins.
    Begin(String),
    /// The program ended with this exit code.
    End(i32),
}

/// Reads the line as it comes.
pub struct Session {
    token: String,
    line: Vec<u8>,
    /// A line break that is output only if no marker follows it.
    owed_break: bool,
}

impl Session {
    pub fn new(token: &str) -> Self {
        Self {
            token: token.to_owned(),
            line: Vec::new(),
            owed_break: false,
        }
    }

    /// Takes bytes in and gives the pieces that are complete.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<Piece> {
        let mut pieces = Vec::new();
        for byte in bytes {
            if *byte == b'\n' {
                let line = std::mem::take(&mut self.line);
                pieces.extend(self.piece(line));
            } else {
                self.line.push(*byte);
            }
        }
        pieces
    }

    /// What is left when nothing more will come.
    pub fn finish(mut self) -> Vec<u8> {
        let mut rest = std::mem::take(&mut self.line);
        if self.owed_break {
            rest.insert(0, b'\n');
        }
        rest
    }

    fn piece(&mut self, mut line: Vec<u8>) -> Option<Piece> {
        if let Some(marker) = self.marker(&line) {
            self.owed_break = false;
            return Some(Piece::Marker(marker));
        }
        if self.owed_break {
            line.insert(0, b'\n');
        }
        self.owed_break = true;
        (!line.is_empty()).then_some(Piece::Output(line))
    }

    fn marker(&self, line: &[u8]) -> Option<Marker> {
        let line = std::str::from_utf8(line).ok()?;
        let text = line.strip_prefix(&self.token)?.strip_prefix(' ')?;
        let (word, rest) = text.split_once(' ')?;
        match word {
            "ready" => {
                let mut fields = rest.split(' ').map(str::to_owned);
                Some(Marker::Ready {
                    cgroup: fields.next()?,
                    release: fields.next()?,
                    uptime_s: fields.next()?,
                })
            }
            "refused" => Some(Marker::Refused(rest.to_owned())),
            "begin" => Some(Marker::Begin(rest.to_owned())),
            "end" => Some(Marker::End(rest.parse().ok()?)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All output, and the markers, of these bytes fed in pieces of `size`.
    fn feed(bytes: &[u8], size: usize) -> (String, Vec<Marker>) {
        let mut session = Session::new("@@7");
        let (mut output, mut markers) = (Vec::new(), Vec::new());
        for chunk in bytes.chunks(size) {
            for piece in session.push(chunk) {
                match piece {
                    Piece::Output(bytes) => output.extend(bytes),
                    Piece::Marker(marker) => markers.push(marker),
                }
            }
        }
        output.extend(session.finish());
        (String::from_utf8(output).unwrap(), markers)
    }

    #[test]
    fn output_comes_through_unchanged_however_it_is_cut() {
        for output in ["", "a", "a\n", "a\n\n", "\n", "a\nb", "@@7\n@@70 end 3\n"] {
            let line = format!("\n@@7 begin x\n{output}\n@@7 end 3\n");
            for size in [1, 3, 1000] {
                let (read, markers) = feed(line.as_bytes(), size);
                assert_eq!(read, output, "in pieces of {size}");
                assert_eq!(markers, [Marker::Begin("x".into()), Marker::End(3)]);
            }
        }
    }

    #[test]
    fn output_that_is_cut_off_is_not_lost() {
        assert_eq!(feed(b"\n@@7 begin x\na\nhalf", 2).0, "a\nhalf");
    }

    #[test]
    fn a_machine_that_is_ready_says_what_it_is() {
        let (_, markers) = feed(b"\n@@7 ready v1 6.1.0-55-amd64 4.25\n", 5);
        assert_eq!(
            markers,
            [Marker::Ready {
                cgroup: "v1".into(),
                release: "6.1.0-55-amd64".into(),
                uptime_s: "4.25".into()
            }]
        );
    }
}
