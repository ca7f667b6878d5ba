//! Finds the sources of `core` for the BPF target. Looked for in this order: the folder or
//! `.tar.xz` that `KMEM_TRACE_RUST_SRC` names, the toolchain's own component `rust-src`, what
//! `cargo xtask setup` unpacked, Debian's package `rust-src` of the same version.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::bpf::RUST;
use crate::{process, workspace};

const VARIABLE: &str = "KMEM_TRACE_RUST_SRC";

/// The `library` folder of the pinned Rust's sources.
pub fn library() -> Result<PathBuf> {
    if let Some(given) = std::env::var_os(VARIABLE) {
        let given = workspace::root().join(given);
        let library = if given.is_dir() {
            given.clone()
        } else {
            unpack(&given)?
        };
        return folder(&library).with_context(|| {
            format!(
                "{VARIABLE} names {}, which holds no `library` folder of Rust's sources",
                given.display()
            )
        });
    }
    let sysroot = process::output(Command::new("rustc").args(["--print", "sysroot"]))?;
    let candidates = [
        Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library"),
        unpacked(),
        format!("/usr/src/rustc-{RUST}/library").into(),
        format!("/usr/lib/rust-{}/lib/rustlib/src/rust/library", series()).into(),
    ];
    candidates
        .iter()
        .find_map(|candidate| folder(candidate))
        .with_context(|| {
            format!(
                "the sources of `core` are missing: `rustup component add rust-src`, or set {VARIABLE} \
                 to the `library` folder (or its .tar.xz) of Rust {RUST}"
            )
        })
}

/// `1.95` of `1.95.0`.
fn series() -> &'static str {
    RUST.rsplit_once('.').map_or(RUST, |(series, _)| series)
}

/// Where an archive is unpacked.
fn unpacked() -> PathBuf {
    workspace::target().join("rust-src/library")
}

/// `path` itself or the `library` in it, if the sources of `core` are there.
fn folder(path: &Path) -> Option<PathBuf> {
    [path.to_path_buf(), path.join("library")]
        .into_iter()
        .find(|path| path.join("core/src/lib.rs").exists() && path.join("Cargo.lock").exists())
        // Debian's folders are links; the compiler names what they point to.
        .and_then(|path| fs::canonicalize(path).ok())
}

/// Unpacks the archive, once, and returns its `library` folder.
fn unpack(archive: &Path) -> Result<PathBuf> {
    if !archive.exists() {
        bail!(
            "{VARIABLE} names {}, which does not exist",
            archive.display()
        );
    }
    let library = unpacked();
    let stamp = library.with_file_name("archive");
    let source = fs::canonicalize(archive)?.display().to_string();
    if folder(&library).is_some() && fs::read_to_string(&stamp).is_ok_and(|text| text == source) {
        return Ok(library);
    }
    if let Some(parent) = library.parent() {
        if parent.exists() {
            fs::remove_dir_all(parent)?;
        }
        fs::create_dir_all(parent)?;
        eprintln!("unpacking {}", archive.display());
        process::run(
            Command::new("tar")
                .arg("-xJf")
                .arg(archive)
                .arg("-C")
                .arg(parent),
        )?;
    }
    fs::write(&stamp, source)?;
    Ok(library)
}
