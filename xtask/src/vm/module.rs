//! `cargo xtask module`: builds the kernel module of `kmem-trace/tests/module` for a kernel of
//! `cargo xtask vm`. It has the functions that old kernels charge memory with, by name and
//! signature, so that the programs can be proved on kernels that no machine boots any more.
//!
//! The kernel's headers come from the suite that the kernel came from; its type information, which
//! the module's is built upon, from the kernel itself: a machine is booted for it once.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use super::apt::{Mirror, Package, Suite};
use super::kernel::{self, Kernel, Line};
use crate::{process, workspace};

/// The module's name, as `lsmod` has it.
pub const NAME: &str = "kmem_trace_legacy";

#[derive(Args)]
pub struct Arguments {
    /// Kernel line to build for.
    #[arg(long, value_name = "LINE", default_value = "6.1")]
    pub kernel: Line,
}

pub fn main(arguments: &Arguments) -> Result<ExitCode> {
    let module = build(&arguments.kernel)?;
    println!("{}", module.display());
    Ok(ExitCode::SUCCESS)
}

/// Builds the module for the newest kernel of `line`.
pub fn build(line: &Line) -> Result<PathBuf> {
    let (mirror, cache) = (Mirror::of_this_machine()?, folder());
    let kernel = obtain(line, &mirror)?;
    let headers = headers(line, &kernel, &mirror, &cache)?;
    let types = type_information(line)?;
    let work = cache.join("modules").join(identity(&kernel));
    if work.exists() {
        fs::remove_dir_all(&work)?;
    }
    fs::create_dir_all(&work)?;
    let source = workspace::root().join("kmem-trace/tests/module");
    for file in ["Kbuild".to_owned(), format!("{NAME}.c")] {
        fs::copy(source.join(&file), work.join(&file)).with_context(|| format!("no {file}"))?;
    }
    process::run(
        Command::new("make")
            .arg("--silent")
            .arg("-C")
            .arg(&headers)
            .arg(format!("M={}", work.display()))
            .arg("modules")
            .stdout(Stdio::null()),
    )?;
    let module = work.join(format!("{NAME}.ko"));
    // Debian's headers have no vmlinux, without which the kernel's own Makefile skips this step.
    process::run(
        Command::new("pahole")
            .arg("-J")
            .arg("--btf_base")
            .arg(&types)
            .arg(&module),
    )
    .context("the module has no type information; pahole is in Debian's package dwarves")?;
    process::run(Command::new("strip").arg("--strip-debug").arg(&module))?;
    Ok(module)
}

/// The type information of `line`'s newest kernel, as a raw BTF file.
pub fn type_information(line: &Line) -> Result<PathBuf> {
    let cache = folder();
    let kernel = obtain(line, &Mirror::of_this_machine()?)?;
    let file = cache.join("btf").join(identity(&kernel));
    if file.exists() {
        return Ok(file);
    }
    eprintln!("booting {line} for its type information");
    let arguments = super::Arguments {
        kernels: vec![line.clone()],
        bare: true,
        command: ["cp", "/sys/kernel/btf/vmlinux", "/out/vmlinux.btf"]
            .map(str::to_owned)
            .to_vec(),
        ..super::Arguments::default()
    };
    let bench = super::Bench::prepare(&arguments)?;
    let code = bench.command(line, &kernel)?;
    if code != 0 {
        bail!("{line} has no type information");
    }
    fs::create_dir_all(cache.join("btf"))?;
    fs::copy(bench.path("out", line, "").join("vmlinux.btf"), &file)?;
    Ok(file)
}

pub(super) fn folder() -> PathBuf {
    workspace::target().join("vm")
}

/// Whether the mirror has a kernel of `line` today.
pub fn on_mirror(line: &Line) -> Result<bool> {
    let mirror = Mirror::of_this_machine()?;
    Ok(kernel::obtain(line, &mirror, &folder(), false)?.is_some())
}

fn identity(kernel: &Kernel) -> String {
    format!("{}_{}", kernel.package, kernel.version)
}

fn obtain(line: &Line, mirror: &Mirror) -> Result<Kernel> {
    kernel::obtain(line, mirror, &folder(), false)?
        .with_context(|| format!("there is no {line} kernel on this machine's mirror"))
}

/// The kernel's headers, ready to build against.
fn headers(line: &Line, kernel: &Kernel, mirror: &Mirror, cache: &Path) -> Result<PathBuf> {
    let release = kernel
        .package
        .strip_prefix("linux-image-")
        .unwrap_or(&kernel.package);
    let wanted = format!("linux-headers-{release}");
    let folder = cache.join("headers").join(identity(kernel));
    let root = folder.join("root");
    let build = root.join("usr/src").join(&wanted);
    let done = folder.join("unpacked");
    let _lock = kernel::alone_in(cache)?;
    if done.exists() {
        return Ok(build);
    }
    for name in line.home() {
        let suite = Suite::open(mirror, name, &cache.join("apt"), false)?;
        if !suite.names(&wanted)?.contains(&wanted) {
            continue;
        }
        let Some(package) = suite
            .packages(std::slice::from_ref(&wanted))?
            .into_iter()
            .find(|package| package.version == kernel.version)
        else {
            continue;
        };
        if folder.exists() {
            fs::remove_dir_all(&folder)?;
        }
        fs::create_dir_all(&root)?;
        for part in parts(&package) {
            let deb = suite.download(&part, &package.version, &folder)?;
            kernel::unpack_deb(&deb, &root)?;
            fs::remove_file(&deb)?;
        }
        relocate(&build.join("Makefile"), &root)?;
        fs::write(&done, "")?;
        return Ok(build);
    }
    bail!(
        "there is no {wanted} {} on this machine's mirror",
        kernel.version
    );
}

/// The packages that the headers consist of. The compiler is the machine's own.
fn parts(package: &Package) -> Vec<String> {
    let needed = |name: &&String| {
        name.starts_with("linux-kbuild-")
            || (name.starts_with("linux-headers-") && name.contains("-common"))
    };
    std::iter::once(&package.name)
        .chain(package.depends.iter().filter(needed))
        .cloned()
        .collect()
}

/// The headers' Makefile includes another by its path when installed.
fn relocate(makefile: &Path, root: &Path) -> Result<()> {
    let text = fs::read_to_string(makefile)
        .with_context(|| format!("cannot read {}", makefile.display()))?;
    let moved = text.replace("include /usr/", &format!("include {}/usr/", root.display()));
    fs::write(makefile, moved)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_come_with_what_they_are_made_of_but_without_a_compiler() {
        let package = Package {
            name: "linux-headers-6.1.0-55-amd64".into(),
            version: "6.1.176-1".into(),
            depends: [
                "linux-headers-6.1.0-55-common",
                "linux-kbuild-6.1",
                "linux-compiler-gcc-12-x86",
            ]
            .map(str::to_owned)
            .to_vec(),
        };
        assert_eq!(
            parts(&package),
            [
                "linux-headers-6.1.0-55-amd64",
                "linux-headers-6.1.0-55-common",
                "linux-kbuild-6.1"
            ]
        );
    }
}
