//! Runs one QEMU machine to its end, or kills it when its time is over.

use std::fs;
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::process;

const QEMU: &str = "qemu-system-x86_64";
/// Older ones emulate too little of a current processor: 7.2 hangs in newer kernels' boot.
pub const OLDEST_MAJOR: u32 = 10;

/// The machine that all kernels boot on.
const HARDWARE: [&str; 8] = [
    "-machine",
    "q35",
    "-cpu",
    "max",
    "-nodefaults",
    "-no-user-config",
    "-display",
    "none",
];

/// Who runs the machine's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    /// This machine's processor.
    Kvm,
    /// QEMU itself: slower, works everywhere.
    Tcg,
}

impl Accelerator {
    /// KVM if it works here. That it can be opened does not tell: a nested one may well fail
    /// when the first processor is set up, so QEMU tries just that. And one that does without the
    /// processor's help (`kvm_pvm`) passes for a KVM, but only runs kernels made for it: others hang.
    pub fn available() -> Self {
        let by_processor = ["kvm_intel", "kvm_amd"]
            .iter()
            .any(|module| Path::new("/sys/module").join(module).exists());
        if !by_processor {
            return Self::Tcg;
        }
        let mut command = Command::new("prlimit");
        command
            .args(["--core=0", QEMU])
            .args(HARDWARE)
            .args(["-accel", Self::Kvm.option(), "-S", "-monitor", "stdio"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let works = Path::new("/dev/kvm").exists()
            && command.spawn().is_ok_and(|mut child| {
                if let Some(mut stdin) = child.stdin.take() {
                    // A QEMU that has died already does not listen; its status tells.
                    let _ = stdin.write_all(b"quit\n");
                }
                child.wait().is_ok_and(|status| status.success())
            });
        if works { Self::Kvm } else { Self::Tcg }
    }

    fn option(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg,thread=multi",
        }
    }
}

/// What a machine consists of.
pub struct Machine<'a> {
    pub kernel: &'a Path,
    pub initramfs: &'a Path,
    /// More words for the kernel's command line.
    pub append: &'a [String],
    /// As QEMU takes it, such as `2G`.
    pub memory: &'a str,
    pub cpus: u32,
    pub accelerator: Accelerator,
    /// Receives what the kernel prints.
    pub console: &'a Path,
    /// Receives the archive of `/out`.
    pub out: &'a Path,
}

/// Fails unless a QEMU that can boot the kernels is installed.
pub fn check() -> Result<()> {
    match installed_major()? {
        Some(major) if major >= OLDEST_MAJOR => Ok(()),
        Some(major) => bail!(
            "{QEMU} is version {major}, which does not boot these kernels reliably: {OLDEST_MAJOR} or \
             newer is needed, `cargo xtask setup` installs it"
        ),
        None => bail!("{QEMU} is not installed: run `cargo xtask setup`"),
    }
}

/// The major version of the installed QEMU, if there is one.
pub fn installed_major() -> Result<Option<u32>> {
    if Command::new(QEMU)
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_err()
    {
        return Ok(None);
    }
    let text = process::output(Command::new(QEMU).arg("--version"))?;
    major_of(&text)
        .map(Some)
        .with_context(|| format!("cannot read the version from {text:?}"))
}

fn major_of(text: &str) -> Option<u32> {
    let version = text.split_once("version ")?.1;
    version.split('.').next()?.parse().ok()
}

impl Machine<'_> {
    fn command(&self) -> Command {
        // A machine must not outlive us, however we end.
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", QEMU])
            .args(HARDWARE)
            .args(["-accel", self.accelerator.option()])
            .args(["-no-reboot", "-m", self.memory])
            .args(["-smp", &self.cpus.to_string()])
            .arg("-kernel")
            .arg(self.kernel)
            .arg("-initrd")
            .arg(self.initramfs)
            .arg("-append")
            .arg(self.kernel_command_line());
        command
    }

    fn kernel_command_line(&self) -> String {
        let mut words = vec!["console=ttyS0 panic=-1 loglevel=5 rdinit=/init".to_owned()];
        words.extend(self.append.iter().cloned());
        words.join(" ")
    }

    /// Boots, hands what comes over the result line to `receive`, and returns whether the
    /// machine ended by itself within `timeout`.
    pub fn run(&self, timeout: Duration, mut receive: impl FnMut(&[u8])) -> Result<bool> {
        let deadline = Instant::now() + timeout;
        let mut child = self
            .command()
            .arg("-serial")
            .arg(format!("file:{}", self.console.display()))
            .args(["-chardev", "stdio,id=results,signal=off"])
            .args(["-serial", "chardev:results", "-serial"])
            .arg(format!("file:{}", self.out.display()))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot start setpriv (package util-linux)")?;
        let (Some(mut stdout), Some(mut stderr)) = (child.stdout.take(), child.stderr.take())
        else {
            bail!("{QEMU} has no output");
        };
        let errors = std::thread::spawn(move || {
            let mut text = String::new();
            // What can be read is what there is to tell.
            let _ = stderr.read_to_string(&mut text);
            text
        });
        let (sender, receiver) = mpsc::channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 16384];
            while let Ok(length @ 1..) = stdout.read(&mut buffer) {
                if sender.send(buffer[..length].to_vec()).is_err() {
                    break;
                }
            }
        });
        loop {
            match receiver.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(bytes) => receive(&bytes),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    kill(&mut child)?;
                    return Ok(false);
                }
            }
        }
        let status = child.wait()?;
        if !status.success() {
            let errors = errors.join().unwrap_or_default();
            let last = errors.lines().last().unwrap_or_default();
            bail!("{QEMU} ended with {status}: {last}");
        }
        Ok(true)
    }

    /// Boots with the console on this terminal.
    pub fn run_interactively(&self) -> Result<()> {
        process::run(self.command().args(["-serial", "mon:stdio"]))
    }
}

fn kill(child: &mut Child) -> Result<()> {
    child.kill()?;
    child.wait()?;
    Ok(())
}

/// The lines of a console log that a test run must not pass over: the kernel's own complaints.
pub fn complaints(console: &Path) -> Vec<String> {
    let text = fs::read(console).unwrap_or_default();
    complaints_in(&String::from_utf8_lossy(&text))
}

fn complaints_in(text: &str) -> Vec<String> {
    const SIGNS: [&str; 8] = [
        "Kernel panic",
        "BUG:",
        "Oops:",
        "WARNING: CPU",
        "general protection fault",
        "kernel BUG at",
        "INFO: task",
        "rcu: INFO:",
    ];
    text.lines()
        .map(str::trim)
        .filter(|line| SIGNS.iter().any(|sign| line.contains(sign)))
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_major_version_is_read_from_what_qemu_says() {
        let text = "QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)\nCopyright\n";
        assert_eq!(major_of(text), Some(10));
        assert_eq!(major_of("QEMU emulator version 7.2.19\n"), Some(7));
        assert_eq!(major_of("nonsense"), None);
    }

    #[test]
    fn complaints_of_the_kernel_are_found_in_its_log() {
        let log = "[ 1.0] Linux version 6.1\r\n[ 2.0] BUG: kernel NULL pointer dereference\r\n\
                   [ 2.1] Kernel panic - not syncing: Fatal exception\r\n";
        assert_eq!(
            complaints_in(log),
            [
                "[ 2.0] BUG: kernel NULL pointer dereference",
                "[ 2.1] Kernel panic - not syncing: Fatal exception"
            ]
        );
    }
}
