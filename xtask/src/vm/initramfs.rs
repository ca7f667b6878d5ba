//! The file system of a test machine: busybox, the programs under test with their shared
//! libraries, `init.sh`, and the script of what is to run.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::cpio::Archive;
use crate::process;

const BUSYBOX: &str = "/bin/busybox";
const INIT: &str = include_str!("init.sh");

/// What the machine shall do.
pub enum Job {
    /// Run these test programs (name, program on this machine, arguments).
    Tests(Vec<(String, PathBuf)>, Vec<String>),
    /// Run one command line.
    Command(Vec<String>),
    /// Give people a shell.
    Shell,
}

/// Everything that goes into the archive.
pub struct Contents<'a> {
    pub job: &'a Job,
    /// Becomes `/bin/kmem-trace`.
    pub binary: Option<&'a Path>,
    /// More files: path on this machine, path in the machine.
    pub files: &'a [(PathBuf, String)],
    /// `auto`, `v1` or `v2`.
    pub cgroup: &'a str,
    /// Begins each marker line.
    pub token: &'a str,
}

/// Builds the archive.
pub fn build(contents: &Contents<'_>) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for folder in [
        "dev", "etc", "out", "proc", "root", "run", "sys", "tmp", "usr/bin", "usr/sbin", "sbin",
        "var",
    ] {
        archive.folder(folder)?;
    }
    // The kernel opens it for init before devtmpfs is there.
    archive.character_device("/dev/console", (5, 1))?;
    archive.file("/init", 0o755, INIT.as_bytes())?;
    archive.file(
        "/etc/passwd",
        0o644,
        b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n",
    )?;
    archive.file("/etc/group", 0o644, b"root:x:0:\nnogroup:x:65534:\n")?;
    archive.file("/etc/hosts", 0o644, b"127.0.0.1 localhost\n")?;
    archive.file(
        "/etc/vm.env",
        0o644,
        format!("TOKEN={}\nCGROUP={}\n", contents.token, contents.cgroup).as_bytes(),
    )?;
    match contents.job {
        Job::Shell => archive.file("/etc/vm-shell", 0o644, b"")?,
        job => archive.file("/etc/vm-run", 0o755, script(job, contents.token).as_bytes())?,
    }
    add_busybox(&mut archive)?;

    let mut programs = Vec::new();
    if let Some(binary) = contents.binary {
        programs.push((binary.to_path_buf(), "/bin/kmem-trace".to_owned(), 0o755));
    }
    if let Job::Tests(tests, _) = contents.job {
        for (name, path) in tests {
            programs.push((path.clone(), format!("/tests/{name}"), 0o755));
        }
    }
    for (path, inside) in contents.files {
        let permissions = fs::metadata(path)
            .with_context(|| format!("cannot read {}", path.display()))?
            .permissions();
        programs.push((path.clone(), inside.clone(), permissions.mode() & 0o7777));
    }
    let mut libraries = BTreeSet::new();
    for (path, inside, permissions) in &programs {
        let content = read(path)?;
        if content.starts_with(b"\x7fELF") && permissions & 0o111 != 0 {
            libraries.extend(libraries_of(path)?);
        }
        archive.file(inside, *permissions, &content)?;
    }
    for library in libraries {
        archive.file(&library, 0o755, &read(Path::new(&library))?)?;
    }
    archive.finish()
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

fn add_busybox(archive: &mut Archive) -> Result<()> {
    if !Path::new(BUSYBOX).exists() {
        bail!("{BUSYBOX} is missing: run `cargo xtask setup`");
    }
    if !libraries_of(Path::new(BUSYBOX))?.is_empty() {
        bail!("{BUSYBOX} is not the static one: run `cargo xtask setup`");
    }
    archive.file(BUSYBOX, 0o755, &read(Path::new(BUSYBOX))?)?;
    let applets = process::output(Command::new(BUSYBOX).arg("--list"))?;
    for applet in applets.lines().filter(|applet| *applet != "busybox") {
        archive.link(&format!("/bin/{applet}"), BUSYBOX)?;
    }
    Ok(())
}

/// The shared libraries of a program, and its loader, as absolute paths.
fn libraries_of(program: &Path) -> Result<Vec<String>> {
    let output = Command::new("ldd")
        .arg(program)
        .env("LC_ALL", "C")
        .output()
        .context("cannot start ldd")?;
    // ldd fails for a static program, and says so.
    if !output.status.success() {
        return Ok(Vec::new());
    }
    parse_ldd(&String::from_utf8_lossy(&output.stdout))
        .with_context(|| format!("{} cannot run on this machine", program.display()))
}

fn parse_ldd(text: &str) -> Result<Vec<String>> {
    let mut libraries = Vec::new();
    for line in text.lines().map(str::trim) {
        if line.ends_with("not found") {
            bail!("{line}");
        }
        let path = line.split_once(" => ").map_or(line, |(_, path)| path);
        if let Some((path, _)) = path.split_once(" (")
            && path.starts_with('/')
        {
            libraries.push(path.to_owned());
        }
    }
    Ok(libraries)
}

/// The shell script of what is to run, between markers.
fn script(job: &Job, token: &str) -> String {
    let mut script = String::from("cd /\n");
    let mut step = |name: &str, command: &str| {
        script.push_str(&format!(
            "printf '\\n%s begin %s\\n' {token} {}\n{command}\nprintf '\\n%s end %d\\n' {token} $?\n",
            quote(name)
        ));
    };
    match job {
        Job::Tests(tests, arguments) => {
            let arguments: String = arguments
                .iter()
                .map(|argument| format!(" {}", quote(argument)))
                .collect();
            for (name, _) in tests {
                let program = quote(&format!("/tests/{name}"));
                step(
                    name,
                    &format!("{program} --test-threads=1 --show-output{arguments}"),
                );
            }
        }
        Job::Command(words) => {
            // One word with blanks in it is a line for the shell, as with ssh.
            let command = match words.as_slice() {
                [line] => format!("sh -c {}", quote(line)),
                words => words
                    .iter()
                    .map(|word| quote(word))
                    .collect::<Vec<_>>()
                    .join(" "),
            };
            step("command", &command);
        }
        Job::Shell => {}
    }
    script
}

/// `text` as one word of a shell command.
fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ldd_lines_give_libraries_and_loader_but_not_the_vdso() {
        let text = "\tlinux-vdso.so.1 (0x00007ffd)\n\
                    \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        assert_eq!(
            parse_ldd(text).unwrap(),
            [
                "/lib/x86_64-linux-gnu/libc.so.6",
                "/lib64/ld-linux-x86-64.so.2"
            ]
        );
        assert!(parse_ldd("\tlibx.so => not found\n").is_err());
    }

    #[test]
    fn quotes_survive_the_shell() {
        let output = Command::new("sh")
            .arg("-c")
            .arg(format!("printf %s {}", quote("it's $HOME; \"x\"")))
            .output()
            .unwrap();
        assert_eq!(output.stdout, b"it's $HOME; \"x\"");
    }

    #[test]
    fn the_script_marks_begin_and_exit_code_of_each_step() {
        let run = |words: &[&str]| {
            let words = words.iter().map(|word| (*word).to_owned()).collect();
            let script = script(&Job::Command(words), "@@7");
            let output = Command::new("sh").arg("-c").arg(script).output().unwrap();
            String::from_utf8(output.stdout).unwrap()
        };
        assert_eq!(
            run(&["sh", "-c", "echo a b; exit 3"]),
            "\n@@7 begin command\na b\n\n@@7 end 3\n"
        );
        assert_eq!(
            run(&["echo a; exit 4"]),
            "\n@@7 begin command\na\n\n@@7 end 4\n"
        );
    }
}
