//! Where the repository is, where its build results go, and what cargo built.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::process;

/// The root of the repository: the parent of this crate's folder.
pub fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_path_buf()
}

/// The folder for everything that may be thrown away (`CARGO_TARGET_DIR` or `target`).
pub fn target() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(folder) => root().join(folder),
        None => root().join("target"),
    }
}

/// The `cargo` that runs us, or the one in the path.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// The compiler in the path; under rustup that is the toolchain of the cargo that runs us.
pub fn rustc() -> Command {
    let mut command = Command::new("rustc");
    command.current_dir(root());
    command
}

/// kmem-trace as it is shipped, and test programs of it.
pub struct Built(Vec<PathBuf>);

impl Built {
    /// By the name of the program, or of the test target.
    pub fn get(&self, name: &str) -> Result<PathBuf> {
        let found = self.0.iter().find(|path| stem(path) == name);
        found
            .cloned()
            .with_context(|| format!("cargo built no {name}"))
    }
}

/// Builds kmem-trace and some of its test targets in one go: by itself the program is built anew, as its
/// dependencies then lack features that those of the tests turn on.
pub fn build_with_tests(names: &[&str]) -> Result<Built> {
    let mut arguments = vec!["test", "--no-run", "--release", "--package", "kmem-trace"];
    for name in names {
        arguments.extend(["--test", name]);
    }
    build_executables(&arguments).map(Built)
}

/// `kernel` from `deps/kernel-0123456789abcdef`.
pub fn stem(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    match name.rsplit_once('-') {
        Some((stem, hash)) if hash.len() == 16 => stem.to_owned(),
        _ => name.into_owned(),
    }
}

/// Runs cargo with `arguments` and returns the executables that it built, the tests' among them.
pub fn build_executables(arguments: &[&str]) -> Result<Vec<PathBuf>> {
    let messages = process::output(
        cargo()
            .args(arguments)
            .arg("--message-format=json-render-diagnostics"),
    )?;
    executables(&messages)
}

/// The executables in cargo's JSON messages, in the order in which they were built.
fn executables(messages: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for line in messages.lines().filter(|line| line.starts_with('{')) {
        let message: Value =
            serde_json::from_str(line).context("cargo printed a message that is not JSON")?;
        if message["reason"] == "compiler-artifact"
            && let Some(path) = message["executable"].as_str()
        {
            found.push(PathBuf::from(path));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_program_is_known_by_the_name_of_its_target() {
        assert_eq!(stem(Path::new("deps/kernel-0123456789abcdef")), "kernel");
        assert_eq!(stem(Path::new("release/kmem-trace")), "kmem-trace");
    }

    #[test]
    fn executables_are_read_from_cargos_messages_and_libraries_are_not() {
        let messages = concat!(
            r#"{"reason":"compiler-artifact","target":{"name":"lib"},"executable":null}"#,
            "\n",
            r#"{"reason":"compiler-artifact","target":{"name":"kernel"},"executable":"/t/kernel-1"}"#,
            "\n",
            r#"{"reason":"build-finished","success":true}"#,
            "\n",
        );
        assert_eq!(
            executables(messages).unwrap(),
            [PathBuf::from("/t/kernel-1")]
        );
    }
}
