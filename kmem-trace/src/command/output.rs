//! Where reports, events and JSON go: standard output, or the file of `--output`.

use std::{
    fs::File,
    io::{self, BufWriter, Write},
    path::Path,
};

use anyhow::{Context as _, Result};

/// What is printed to.
pub type Output = BufWriter<Box<dyn Write>>;

/// Opens it; a file that is there is written over.
///
/// # Errors
/// Where the file cannot be made.
pub fn open(file: Option<&Path>) -> Result<Output> {
    let out: Box<dyn Write> = match file {
        Some(path) => Box::new(
            File::create(path)
                .with_context(|| format!("cannot write the output to {}", path.display()))?,
        ),
        None => Box::new(io::stdout()),
    };
    Ok(BufWriter::new(out))
}
