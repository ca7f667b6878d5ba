//! Where reports, events and JSON go: standard output, or the file of `--output`.

use std::{
    fs::File,
    io::{self, BufWriter, Write},
    path::Path,
};

use anyhow::{Context as _, Result};

use super::cli::Format;
use crate::view::wrap::Wrapped;

/// What is printed to.
pub type Output = BufWriter<Box<dyn Write>>;

/// Opens it; a file that is there is written over. Lines for a person are folded at the width of the
/// terminal, where there is one.
///
/// # Errors
/// Where the file cannot be made.
pub fn open(file: Option<&Path>, format: Format) -> Result<Output> {
    let out: Box<dyn Write> = match (file, format) {
        (Some(path), _) => Box::new(
            File::create(path)
                .with_context(|| format!("cannot write the output to {}", path.display()))?,
        ),
        (None, Format::Table) if columns().is_some() => {
            Box::new(Wrapped::new(io::stdout(), columns))
        }
        (None, _) => Box::new(io::stdout()),
    };
    Ok(BufWriter::new(out))
}

/// Of the terminal that is written to; `None` where it is none.
pub fn columns() -> Option<usize> {
    let size = console::Term::stdout().size_checked();
    size.map(|(_, columns)| usize::from(columns))
}
