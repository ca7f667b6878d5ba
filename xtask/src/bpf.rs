//! `cargo xtask bpf`: builds the BPF object that kmem-trace embeds, so that nobody else needs a
//! BPF toolchain. The same sources give the same bytes on any machine: the compiler's version is
//! pinned, paths are remapped, and an object that still names a path of this machine is refused.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::rust_src::{self, Sysroot};
use crate::{process, workspace};

/// Another compiler makes other bytes; change it together with the committed object.
pub const RUST: &str = "1.95.0";
/// The same holds for the linker.
pub const LINKER: &str = "0.13.0";

/// An object, and where it is committed, below the root of the repository.
struct Object {
    path: &'static str,
    /// Of kmem-trace-ebpf.
    feature: &'static str,
}

const OBJECTS: [Object; 2] = [
    Object {
        path: "kmem-trace/src/bpf/kmem-trace.bpf.o",
        feature: "bpf",
    },
    // For kernels before 5.8.
    Object {
        path: "kmem-trace/src/bpf/kmem-trace-old.bpf.o",
        feature: "old",
    },
];
const TARGET: &str = "bpfel-unknown-none";

#[derive(Args)]
pub struct Arguments {
    /// Build, but only compare with the committed object.
    #[arg(long)]
    pub check: bool,
}

pub fn main(arguments: &Arguments) -> Result<ExitCode> {
    check_compiler()?;
    let linker = linker()?;
    let library = rust_src::library()?;
    let sysroot = Sysroot::make(&library)?;
    for Object { path, feature } in OBJECTS {
        let built = build(feature, &linker, &library, &sysroot)?;
        let committed = workspace::root().join(path);
        if arguments.check {
            let is_fresh = match fs::read(&committed) {
                Ok(bytes) => bytes == built,
                Err(_) => false,
            };
            if !is_fresh {
                bail!("{path} is stale: run `cargo xtask bpf` and commit it");
            }
            println!("{path} is what its sources give ({} bytes)", built.len());
            continue;
        }
        if let Some(folder) = committed.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::write(&committed, &built)
            .with_context(|| format!("cannot write {}", committed.display()))?;
        println!("{path}: {} bytes", built.len());
    }
    Ok(ExitCode::SUCCESS)
}

/// Builds one object and returns its bytes.
fn build(feature: &str, linker: &Path, library: &Path, sysroot: &Sysroot) -> Result<Vec<u8>> {
    let folder = workspace::target().join("bpf");
    let mut cargo = workspace::cargo();
    // Flags, profiles and wrappers that the calling cargo or the user has set are not for this build.
    for (name, _) in std::env::vars_os() {
        if name
            .to_str()
            .is_some_and(|name| name.starts_with("CARGO_PROFILE_"))
        {
            cargo.env_remove(name);
        }
    }
    let status = cargo
        .args(["build", "--quiet", "--release", "-Z", "build-std=core"])
        .args(["--target", TARGET, "--package", "kmem-trace-ebpf"])
        .args(["--features", feature, "--bin", "kmem-trace-bpf"])
        .arg("--target-dir")
        .arg(&folder)
        // -Z build-std is not stable; nothing else of what we use is behind it.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("RUSTC", &sysroot.compiler)
        .env("CARGO_ENCODED_RUSTFLAGS", flags(sysroot, &folder)?)
        .env("PATH", path_with(linker)?)
        .env_remove("RUSTFLAGS")
        .env_remove("RUSTC_WRAPPER")
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .env_remove("CARGO_BUILD_TARGET")
        .env_remove("CARGO_INCREMENTAL")
        .status()
        .context("cannot start cargo")?;
    if !status.success() {
        bail!("the BPF programs do not build");
    }
    let linked = folder.join(TARGET).join("release/kmem-trace-bpf");
    let stripped = folder.join("kmem-trace.bpf.o");
    strip(&linked, &stripped)?;
    let object =
        fs::read(&stripped).with_context(|| format!("cannot read {}", stripped.display()))?;
    // Section names may be the ends of longer ones (".rel.BTF"), so nothing is asked of what
    // stands before them.
    for section in [".BTF\0", ".BTF.ext\0"] {
        if !contains(&object, section.as_bytes()) {
            bail!(
                "the object has no section {}: is {} the right bpf-linker?",
                section.trim_end_matches('\0'),
                linker.display()
            );
        }
    }
    if let Some(path) = machine_path(&object, &machine_folders(library)) {
        bail!("the object contains a path of this machine: {path}");
    }
    Ok(object)
}

fn check_compiler() -> Result<()> {
    let version = process::output(workspace::rustc().arg("--version"))?;
    if version.split(' ').nth(1) != Some(RUST) {
        bail!(
            "the object is built with Rust {RUST}, this is {}: run `cargo +{RUST} xtask bpf`",
            version.trim()
        );
    }
    Ok(())
}

/// Where `cargo xtask setup` puts programs.
pub fn tools() -> PathBuf {
    workspace::target().join("tools")
}

/// The bpf-linker of the pinned version: ours, else the one in the path.
pub fn linker() -> Result<PathBuf> {
    let ours = tools().join("bin/bpf-linker");
    for candidate in [ours, PathBuf::from("bpf-linker")] {
        let Ok(output) = Command::new(&candidate).arg("--version").output() else {
            continue;
        };
        let version = String::from_utf8_lossy(&output.stdout);
        if output.status.success() && version.trim() == format!("bpf-linker {LINKER}") {
            return Ok(candidate);
        }
    }
    bail!("there is no bpf-linker {LINKER} here: run `cargo xtask setup`")
}

/// The search path with the linker's folder first: by its name alone it is the same flag on
/// every machine.
fn path_with(linker: &Path) -> Result<OsString> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folder = linker.parent().filter(|folder| folder.is_absolute());
    let folders = folder.map(Path::to_path_buf).into_iter();
    std::env::join_paths(folders.chain(std::env::split_paths(&path)))
        .context("the linker's folder cannot be put into PATH")
}

/// The compiler's flags, as cargo wants them encoded.
fn flags(sysroot: &Sysroot, folder: &Path) -> Result<OsString> {
    let mut flags: Vec<OsString> = vec![
        "--cfg=bpf_target_arch=\"x86_64\"".into(),
        "-Cdebuginfo=2".into(),
        "-Clink-arg=--btf".into(),
        "-Clinker=bpf-linker".into(),
    ];

    for (path, name) in [
        (workspace::root(), "kmem-trace"),
        (folder.to_path_buf(), "target"),
        (sysroot.library.clone(), "rust/library"),
        // Cargo names what lies below the workspace relative to it.
        (relative(&sysroot.library), "rust/library"),
        (registry()?, "registry"),
    ] {
        let mut flag = OsString::from("--remap-path-prefix=");
        flag.push(path);
        flag.push(format!("=/{name}"));
        flags.push(flag);
    }
    Ok(flags.join(&OsString::from("\x1f")))
}

fn relative(path: &Path) -> PathBuf {
    path.strip_prefix(workspace::root())
        .unwrap_or(path)
        .to_path_buf()
}

/// The folder of downloaded crates: `~/.cargo/registry/src/NAME-HASH`, whose name depends on the
/// registry's address as this machine knows it.
fn registry() -> Result<PathBuf> {
    let metadata = process::output(workspace::cargo().args([
        "metadata",
        "--format-version=1",
        "--all-features",
        "--locked",
    ]))?;
    let metadata: serde_json::Value =
        serde_json::from_str(&metadata).context("cargo metadata printed no JSON")?;
    let packages = metadata["packages"].as_array();
    packages
        .into_iter()
        .flatten()
        .find(|package| package["name"] == "aya-ebpf")
        .and_then(|package| package["manifest_path"].as_str())
        .and_then(|manifest| Path::new(manifest).ancestors().nth(2))
        .map(Path::to_path_buf)
        .context("cargo metadata does not list aya-ebpf")
}

/// Drops DWARF, which names paths and is of no use to the kernel; BTF stays.
fn strip(linked: &Path, stripped: &Path) -> Result<()> {
    let sysroot = process::output(workspace::rustc().args(["--print", "sysroot"]))?;
    let host = process::output(workspace::rustc().args(["--print", "host-tuple"]))?;
    let objcopy = Path::new(sysroot.trim())
        .join("lib/rustlib")
        .join(host.trim())
        .join("bin/rust-objcopy");
    process::run(
        Command::new(&objcopy)
            .args(["--strip-debug"])
            .arg(linked)
            .arg(stripped),
    )
    .context("rust-objcopy, which comes with the toolchain, could not strip the object")
}

/// Folders whose names must not be in the object.
fn machine_folders(library: &Path) -> Vec<PathBuf> {
    let mut folders = vec![
        workspace::root(),
        workspace::target(),
        library.to_path_buf(),
    ];
    for variable in ["HOME", "CARGO_HOME", "RUSTUP_HOME"] {
        folders.extend(std::env::var_os(variable).map(PathBuf::from));
    }
    // "/" is in every object, and no path of this machine in particular.
    folders.retain(|folder| folder.components().count() > 1);
    folders
}

/// The first path in `object` that lies in one of `folders`.
fn machine_path(object: &[u8], folders: &[PathBuf]) -> Option<String> {
    folders.iter().find_map(|folder| {
        let mut needle = folder.as_os_str().as_encoded_bytes().to_vec();
        needle.push(b'/');
        let at = object
            .windows(needle.len())
            .position(|window| window == needle)?;
        let text = &object[at..];
        let end = text.iter().position(|byte| !(b' '..=b'~').contains(byte));
        Some(String::from_utf8_lossy(&text[..end.unwrap_or(text.len())]).into_owned())
    })
}

fn contains(bytes: &[u8], needle: &[u8]) -> bool {
    bytes.windows(needle.len()).any(|window| window == needle)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_of_this_machine_in_the_object_is_found_and_named() {
        let folders = [PathBuf::from("/home/somebody")];
        let object = b"\x7fELF\0/rust/library/core\0/home/somebody/src/main.rs\0tail";
        assert_eq!(
            machine_path(object, &folders).as_deref(),
            Some("/home/somebody/src/main.rs")
        );
        assert_eq!(machine_path(b"/home/somebodyelse/x", &folders), None);
    }
}
