//! Finds the sources of `core` for the BPF target, and gives them to the compiler. Looked for in this order: the folder or
//! `.tar.xz` that `KMEM_TRACE_RUST_SRC` names, the toolchain's own component `rust-src`, what
//! `cargo xtask setup` unpacked, Debian's package `rust-src` of the same version.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::bpf::RUST;
use crate::{process, workspace};

pub const VARIABLE: &str = "KMEM_TRACE_RUST_SRC";

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
    let sysroot = process::output(workspace::rustc().args(["--print", "sysroot"]))?;
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

/// A sysroot of our own: the toolchain's libraries and these sources of `core`, by links.
///
/// Cargo hashes where `core`, and what builds it, lie into the names of symbols; relative to the
/// sysroot if they lie there. In one that always looks alike the names are always the same.
pub struct Sysroot {
    /// A rustc that uses it.
    pub compiler: PathBuf,
    /// The sources of `core` as this rustc sees them.
    pub library: PathBuf,
}

impl Sysroot {
    /// Makes the sysroot for the `rustc` in the path, or brings it up to date.
    pub fn make(library: &Path) -> Result<Self> {
        let print = |what| {
            process::output(workspace::rustc().args(["--print", what]))
                .map(|text| text.trim().to_owned())
        };
        let toolchain = PathBuf::from(print("sysroot")?);
        let host = print("host-tuple")?;
        // Not the target folder: cargo names what lies below the workspace relative to that, and
        // CARGO_TARGET_DIR may lie inside or outside.
        let root = workspace::root().join("target/bpf-sysroot");
        let libraries = root.join("lib/rustlib");
        let sysroot = Self {
            compiler: root.join("bin/rustc"),
            library: libraries.join("src/rust/library"),
        };
        link(library, &sysroot.library)?;
        link(
            &toolchain.join("lib/rustlib").join(&host),
            &libraries.join(&host),
        )?;
        let script = format!(
            "#!/bin/sh\nexec '{}' --sysroot '{}' \"$@\"\n",
            toolchain.join("bin/rustc").display(),
            root.display()
        );
        fs::create_dir_all(root.join("bin"))?;
        // Cargo asks a compiler whose file has changed everything anew.
        if !fs::read_to_string(&sysroot.compiler).is_ok_and(|text| text == script) {
            fs::write(&sysroot.compiler, script)?;
            fs::set_permissions(&sysroot.compiler, fs::Permissions::from_mode(0o755))?;
        }
        Ok(sysroot)
    }
}

/// Makes `place` a link to `target`, whatever link was there.
fn link(target: &Path, place: &Path) -> Result<()> {
    if fs::read_link(place).is_ok_and(|path| path == target) {
        return Ok(());
    }
    if let Some(parent) = place.parent() {
        fs::create_dir_all(parent)?;
    }
    if fs::symlink_metadata(place).is_ok() {
        fs::remove_file(place)?;
    }
    symlink(target, place).with_context(|| format!("cannot make the link {}", place.display()))
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
