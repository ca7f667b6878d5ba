//! `cargo xtask setup`: installs what the other chores need, says what it does, and leaves alone
//! what is there already.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::bpf::LINKER;
use crate::vm::qemu;
use crate::{bpf, process, rust_src, workspace};

/// A file that must be there, and the Debian package that brings it.
const FILES: [(&str, &str); 9] = [
    ("/bin/busybox", "busybox-static"),
    (
        "/usr/share/keyrings/debian-archive-keyring.gpg",
        "debian-archive-keyring",
    ),
    ("/usr/bin/xz", "xz-utils"),
    ("/usr/bin/dpkg-deb", "dpkg"),
    ("/usr/bin/setpriv", "util-linux"),
    // For the test of a program with capabilities of its own.
    ("/sbin/setcap", "libcap2-bin"),
    // bpf-linker links to LLVM with the C++ compiler's help.
    ("/usr/bin/c++", "g++"),
    // The tests' kernel module, and its type information.
    ("/usr/bin/make", "make"),
    ("/usr/bin/pahole", "dwarves"),
];

pub fn main() -> Result<ExitCode> {
    packages()?;
    emulator()?;
    core_sources()?;
    linker()?;
    println!("all that the chores need is here");
    Ok(ExitCode::SUCCESS)
}

/// Tracers that `cargo xtask bench` compares with, and their Debian packages.
const RIVALS: [(&str, &str); 2] = [
    ("/usr/bin/bpftrace", "bpftrace"),
    ("/usr/bin/perf", "linux-perf"),
];

/// Installs what benchmarks compare with; nothing else needs it.
pub fn rivals() -> Result<()> {
    let mut missing = Vec::new();
    for (file, package) in RIVALS {
        if Path::new(file).exists() {
            println!("{package}: here ({file})");
        } else {
            missing.push(package);
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    install(&missing, None)
}

fn packages() -> Result<()> {
    let mut missing: Vec<_> = FILES
        .iter()
        .filter(|(file, _)| !Path::new(file).exists())
        .map(|(_, package)| *package)
        .collect();
    if !missing.contains(&"busybox-static") && !is_static(Path::new("/bin/busybox"))? {
        missing.push("busybox-static");
    }
    for (file, package) in FILES {
        if !missing.contains(&package) {
            println!("{package}: here ({file})");
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    install(&missing, None)
}

/// The dynamic busybox of package `busybox` would need libraries in the test machine.
fn is_static(program: &Path) -> Result<bool> {
    let status = Command::new("ldd")
        .arg(program)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .context("cannot start ldd")?;
    Ok(!status.success())
}

fn emulator() -> Result<()> {
    const PACKAGE: &str = "qemu-system-x86";
    match qemu::installed_major()? {
        Some(major) if major >= qemu::OLDEST_MAJOR => {
            println!("{PACKAGE}: here (version {major})");
            return Ok(());
        }
        Some(major) => println!("{PACKAGE}: version {major} is too old"),
        None => {}
    }
    let release = fs::read_to_string("/etc/os-release").context("cannot read /etc/os-release")?;
    let Some(codename) = codename(&release) else {
        bail!("/etc/os-release names no release: install QEMU 10 or newer by hand");
    };
    require_root(&[PACKAGE])?;
    update()?;
    let policy = process::output(Command::new("apt-cache").args(["policy", PACKAGE]))?;
    if candidate_major(&policy).is_some_and(|major| major >= qemu::OLDEST_MAJOR) {
        return install(&[PACKAGE], None);
    }
    let backports = format!("{codename}-backports");
    add_backports(&backports)?;
    install(&[PACKAGE], Some(&backports))?;
    qemu::check()
}

fn codename(os_release: &str) -> Option<&str> {
    os_release
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
        .map(|name| name.trim_matches('"'))
        .filter(|name| !name.is_empty())
}

/// The major version in `Candidate: 1:10.0.2+ds-2` of `apt-cache policy`.
fn candidate_major(policy: &str) -> Option<u32> {
    let version = policy
        .lines()
        .find_map(|line| line.trim().strip_prefix("Candidate: "))?;
    let upstream = version.split_once(':').map_or(version, |(_, rest)| rest);
    upstream.split('.').next()?.parse().ok()
}

/// Adds the backports suite, on the mirror that apt uses already, unless apt knows it.
fn add_backports(suite: &str) -> Result<()> {
    let targets = process::output(Command::new("apt-get").args([
        "indextargets",
        "--format",
        "$(RELEASE)",
        "Created-By: Packages",
    ]))?;
    if targets.lines().any(|release| release == suite) {
        return Ok(());
    }
    let mirror = crate::vm::mirror_address()?;
    let path = format!("/etc/apt/sources.list.d/{suite}.list");
    println!("adding {suite} in {path}");
    fs::write(
        &path,
        format!(
            "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] {mirror} {suite} main\n"
        ),
    )
    .with_context(|| format!("cannot write {path}"))?;
    update()
}

fn update() -> Result<()> {
    process::run(Command::new("apt-get").args(["--quiet=2", "update"]))
}

fn install(packages: &[&str], suite: Option<&str>) -> Result<()> {
    require_root(packages)?;
    println!("installing {}", packages.join(", "));
    if suite.is_none() {
        update()?;
    }
    let mut command = Command::new("apt-get");
    command
        .args(["--quiet=2", "install", "--yes", "--no-install-recommends"])
        .env("DEBIAN_FRONTEND", "noninteractive");
    if let Some(suite) = suite {
        command.args(["--target-release", suite]);
    }
    process::run(command.args(packages))
}

fn require_root(packages: &[&str]) -> Result<()> {
    let user = process::output(Command::new("id").arg("-u"))?;
    if user.trim() != "0" {
        bail!(
            "{} must be installed and that takes root: run `cargo xtask setup` as root, or apt-get \
             install them",
            packages.join(", ")
        );
    }
    Ok(())
}

fn core_sources() -> Result<()> {
    if let Ok(library) = rust_src::library() {
        println!("sources of core: here ({})", library.display());
        return Ok(());
    }
    if std::env::var_os(rust_src::VARIABLE).is_none()
        && Command::new("rustup").arg("--version").output().is_ok()
    {
        println!("installing the component rust-src");
        process::run(Command::new("rustup").args(["component", "add", "rust-src"]))?;
    }
    let library = rust_src::library()?;
    println!("sources of core: {}", library.display());
    Ok(())
}

fn linker() -> Result<()> {
    if let Ok(linker) = bpf::linker() {
        println!("bpf-linker {LINKER}: here ({})", linker.display());
        return Ok(());
    }
    println!(
        "building bpf-linker {LINKER} into {}",
        bpf::tools().display()
    );
    let llvm = llvm_prefix()?;
    process::run(
        workspace::cargo()
            .args(["install", "bpf-linker", "--locked", "--force", "--quiet"])
            .args(["--version", LINKER])
            // Built for another LLVM than it is linked with, it fails in puzzling ways.
            .arg("--no-default-features")
            .args(["--features", &format!("llvm-{}", llvm_major()?)])
            .arg("--root")
            .arg(bpf::tools())
            .env("LLVM_PREFIX", &llvm)
            // It links two small objects: a faster one would not make up for its own build.
            .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1")
            .env("CARGO_TARGET_DIR", workspace::target().join("bpf-linker")),
    )?;
    bpf::linker()?;
    Ok(())
}

/// The major version of the compiler's LLVM.
fn llvm_major() -> Result<u32> {
    let version = process::output(workspace::rustc().arg("-vV"))?;
    llvm_major_of(&version).context("`rustc -vV` names no LLVM version")
}

fn llvm_major_of(rustc_version: &str) -> Option<u32> {
    let version = rustc_version
        .lines()
        .find_map(|line| line.strip_prefix("LLVM version: "))?;
    version.split('.').next()?.parse().ok()
}

/// A folder that looks to bpf-linker's build like an installed LLVM: the compiler's own, under
/// the names that the build looks for. The one that made the bitcode must read it.
fn llvm_prefix() -> Result<PathBuf> {
    let sysroot = process::output(workspace::rustc().args(["--print", "sysroot"]))?;
    let libraries = Path::new(sysroot.trim()).join("lib");
    let prefix = workspace::target().join("llvm");
    let links = prefix.join("lib");
    if links.exists() {
        fs::remove_dir_all(&links)?;
    }
    fs::create_dir_all(&links)?;
    let mut names: Vec<String> = fs::read_dir(&libraries)
        .with_context(|| format!("cannot read {}", libraries.display()))?
        .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
        .filter(|name| name.starts_with("libLLVM"))
        .collect();
    names.sort();
    for name in &names {
        symlink(libraries.join(name), links.join(name))?;
    }
    let Some(library) = development_name(&names) else {
        bail!(
            "{} holds no libLLVM to build bpf-linker with: use a toolchain from rustup",
            libraries.display()
        );
    };
    if library != "libLLVM.so" {
        symlink(libraries.join(library), links.join("libLLVM.so"))?;
    }
    Ok(prefix)
}

/// Which of the compiler's files to call `libLLVM.so`.
fn development_name(names: &[String]) -> Option<&String> {
    names
        .iter()
        .find(|name| name.as_str() == "libLLVM.so")
        .or_else(|| names.iter().find(|name| name.ends_with(".so")))
        .or_else(|| names.first())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_candidates_major_version_is_read_past_the_epoch() {
        let policy = "qemu-system-x86:\n  Installed: (none)\n  Candidate: 1:7.2+dfsg-7\n";
        assert_eq!(candidate_major(policy), Some(7));
        assert_eq!(candidate_major("  Candidate: 10.0.2\n"), Some(10));
        assert_eq!(candidate_major("  Candidate: (none)\n"), None);
    }

    #[test]
    fn the_compilers_llvm_is_read_from_its_version() {
        let version = "rustc 1.95.0 (5980 2026-04-14)\nhost: x86\nLLVM version: 22.1.2\n";
        assert_eq!(llvm_major_of(version), Some(22));
        assert_eq!(llvm_major_of("rustc 1.95.0\n"), None);
    }

    #[test]
    fn the_release_is_read_with_and_without_quotes() {
        assert_eq!(
            codename("ID=debian\nVERSION_CODENAME=trixie\n"),
            Some("trixie")
        );
        assert_eq!(codename("VERSION_CODENAME=\"noble\"\n"), Some("noble"));
        assert_eq!(codename("ID=arch\n"), None);
    }

    #[test]
    fn the_library_to_link_with_is_found_among_versioned_names() {
        let names = ["libLLVM-22-rust.so", "libLLVM.so.22.1-rust"].map(str::to_owned);
        assert_eq!(development_name(&names), Some(&names[0]));
        assert_eq!(development_name(&names[1..]), Some(&names[1]));
        assert_eq!(development_name(&[]), None);
    }
}
