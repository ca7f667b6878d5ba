//! Running other programs, with errors that name the program and how it ended.

use std::num::NonZero;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

/// Runs `command` with this process's own terminal; fails unless it ends with 0.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("cannot start {}", name(command)))?;
    if !status.success() {
        bail!("{} ended with {status}", name(command));
    }
    Ok(())
}

/// Runs `command` and returns its standard output; standard error passes through.
pub fn output(command: &mut Command) -> Result<String> {
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot start {}", name(command)))?;
    if !output.status.success() {
        bail!("{} ended with {}", name(command), output.status);
    }
    String::from_utf8(output.stdout)
        .with_context(|| format!("{} printed something that is not UTF-8", name(command)))
}

/// The program and its first arguments, short enough for an error line.
fn name(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    let arguments: Vec<_> = command.get_args().collect();
    words.extend(
        arguments
            .iter()
            .filter(|argument| !argument.to_string_lossy().starts_with("-o"))
            .take(4)
            .map(|argument| argument.to_string_lossy().into_owned()),
    );
    words.join(" ")
}

/// CPUs that this process may use; 1 where that cannot be told.
pub fn cpus() -> usize {
    std::thread::available_parallelism().map_or(1, NonZero::get)
}
