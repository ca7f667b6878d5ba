//! From `6.12`, `6.1-rt` or `newest` to an unpacked Debian kernel: which suites to look in, which
//! package is the newest of that line, and what it contains. Versions are never written down
//! here: they vanish from the archive within weeks.

use std::fmt;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;

use anyhow::{Context as _, Result, bail};

use super::apt::{self, Mirror, Package, Suite};
use crate::process;

/// Where kernels are found; the order has no meaning, the newest package wins.
const SUITES: [&str; 9] = [
    "bullseye",
    "bullseye-security",
    "bookworm",
    "bookworm-security",
    "bookworm-backports",
    "trixie",
    "trixie-security",
    "trixie-backports",
    "sid",
];

/// What the tests cannot do without: `=y` in the kernel's configuration.
const NEEDED: [&str; 8] = [
    "CONFIG_BPF_SYSCALL",
    "CONFIG_DEBUG_INFO_BTF",
    "CONFIG_MEMCG",
    "CONFIG_KPROBES",
    "CONFIG_SERIAL_8250_CONSOLE",
    "CONFIG_DEVTMPFS",
    "CONFIG_INET",
    "CONFIG_BLK_DEV_INITRD",
];

/// A kernel line as the user names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Such as `6.12`; `None` for the newest there is.
    version: Option<String>,
    /// Such as `rt` or `cloud`; empty for the ordinary kernel.
    flavour: String,
}

impl FromStr for Line {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (version, flavour) = text.split_once('-').unwrap_or((text, ""));
        let is_number =
            |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        let version = match version.split_once('.') {
            _ if version == "newest" => None,
            Some((major, minor)) if is_number(major) && is_number(minor) => {
                Some(version.to_owned())
            }
            _ => {
                return Err("a kernel is named by its line, such as 6.12, 6.1-rt or newest".into());
            }
        };
        Ok(Self {
            version,
            flavour: flavour.to_owned(),
        })
    }
}

impl fmt::Display for Line {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.version.as_deref().unwrap_or("newest"))?;
        if !self.flavour.is_empty() {
            write!(formatter, "-{}", self.flavour)?;
        }
        Ok(())
    }
}

impl Line {
    /// The suites where this line is at home: looking there first saves fetching the others.
    pub(super) fn home(&self) -> &'static [&'static str] {
        match self.version.as_deref() {
            Some("5.10") => &["bullseye", "bullseye-security"],
            Some("6.1") => &["bookworm", "bookworm-security"],
            Some("6.12") => &["trixie", "trixie-security"],
            _ => &["trixie-backports", "sid"],
        }
    }

    /// Whether `package` is a kernel image of this line and flavour, and no metapackage.
    fn is_served_by(&self, package: &str) -> bool {
        let Some(name) = package
            .strip_prefix("linux-image-")
            .and_then(|rest| rest.strip_suffix("-amd64"))
        else {
            return false;
        };
        let (release, flavour) = ["rt", "cloud"]
            .iter()
            .find_map(|flavour| {
                let release = name.strip_suffix(flavour)?.strip_suffix('-')?;
                Some((release, *flavour))
            })
            .unwrap_or((name, ""));
        let mut parts = release.splitn(3, '.');
        let (Some(major), Some(minor), Some(_)) = (parts.next(), parts.next(), parts.next()) else {
            return false;
        };
        let is_line = match &self.version {
            Some(version) => *version == format!("{major}.{minor}"),
            None => major.bytes().all(|byte| byte.is_ascii_digit()),
        };
        is_line && flavour == self.flavour
    }
}

/// A kernel on disk, ready to boot.
#[derive(Debug, Clone)]
pub struct Kernel {
    pub package: String,
    pub version: String,
    pub image: PathBuf,
}

/// Finds, downloads and unpacks the newest kernel of `line`. `Ok(None)` if the mirror has none;
/// what was missing has then been printed.
pub fn obtain(line: &Line, mirror: &Mirror, cache: &Path, refresh: bool) -> Result<Option<Kernel>> {
    let _lock = alone_in(cache)?;
    match newest(line, mirror, cache, refresh) {
        // The version in yesterday's lists may have left the archive.
        Err(error) if !refresh => {
            eprintln!("warning: {error:#}; trying again with fresh package lists");
            newest(line, mirror, cache, true)
        }
        result => result,
    }
}

/// Waits for whoever else is looking for kernels or fetching them into `cache`, in this process or
/// another: two at once would tear it from each other. Until the file is dropped.
pub(super) fn alone_in(cache: &Path) -> Result<File> {
    fs::create_dir_all(cache).with_context(|| format!("cannot make {}", cache.display()))?;
    let path = cache.join("lock");
    let file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    file.lock()
        .with_context(|| format!("cannot lock {}", path.display()))?;
    Ok(file)
}

fn newest(line: &Line, mirror: &Mirror, cache: &Path, refresh: bool) -> Result<Option<Kernel>> {
    let others: Vec<_> = SUITES
        .into_iter()
        .filter(|suite| !line.home().contains(suite))
        .collect();
    for suites in [line.home(), &others] {
        let mut newest: Option<(Suite, Package)> = None;
        for name in suites {
            let suite = match Suite::open(mirror, name, &cache.join("apt"), refresh) {
                Ok(suite) => suite,
                Err(error) => {
                    eprintln!("warning: no kernels from {name}: {error:#}");
                    continue;
                }
            };
            let mut names = suite.names("linux-image-")?;
            names.retain(|name| line.is_served_by(name));
            for package in suite.packages(&names)? {
                let is_newest = match &newest {
                    Some((_, other)) => apt::is_newer(&package.version, &other.version)?,
                    None => true,
                };
                if is_newest {
                    newest = Some((
                        Suite::open(mirror, name, &cache.join("apt"), false)?,
                        package,
                    ));
                }
            }
        }
        if let Some((suite, package)) = newest {
            return unpack(&suite, &package, cache).map(Some);
        }
    }
    Ok(None)
}

/// Downloads and unpacks `package`, once. Modules are left out: what we need is built in.
fn unpack(suite: &Suite, package: &Package, cache: &Path) -> Result<Kernel> {
    let folder = cache
        .join("kernels")
        .join(format!("{}_{}", package.name, package.version));
    let root = folder.join("root");
    let done = folder.join("unpacked");
    if !done.exists() {
        eprintln!(
            "kernel {} {} from {}",
            package.name, package.version, suite.name
        );
        if folder.exists() {
            fs::remove_dir_all(&folder)?;
        }
        fs::create_dir_all(&root)?;
        for name in parts(package) {
            // The archive drops these sooner than the image; only the configuration is in them.
            if name.starts_with("linux-base-") && !suite.names(&name)?.contains(&name) {
                continue;
            }
            let deb = suite.download(&name, &package.version, &folder)?;
            unpack_deb(&deb, &root)?;
            fs::remove_file(&deb)?;
        }
        fs::write(&done, "")?;
    }
    let image =
        find(&root, "vmlinuz").with_context(|| format!("{} contains no vmlinuz", package.name))?;
    match find(&root, "config") {
        Some(config) => {
            let text = fs::read_to_string(&config)
                .with_context(|| format!("cannot read {}", config.display()))?;
            let missing = missing_options(&text);
            if !missing.is_empty() {
                let missing = missing.join(", ");
                eprintln!("warning: {} is built without {missing}", package.name);
            }
        }
        None => eprintln!(
            "warning: the archive has no configuration of {} to check",
            package.name
        ),
    }
    Ok(Kernel {
        package: package.name.clone(),
        version: package.version.clone(),
        image,
    })
}

/// The packages that the image consists of: itself, or, where it is split up (7.x), the parts
/// that hold the image and its configuration.
fn parts(package: &Package) -> Vec<String> {
    let mut parts = vec![package.name.clone()];
    parts.extend(
        package
            .depends
            .iter()
            .filter(|name| {
                let is_versioned = |prefix: &str| {
                    name.strip_prefix(prefix)
                        .is_some_and(|rest| rest.starts_with(|first: char| first.is_ascii_digit()))
                };
                is_versioned("linux-binary-") || is_versioned("linux-base-")
            })
            .cloned(),
    );
    parts
}

pub(super) fn unpack_deb(deb: &Path, root: &Path) -> Result<()> {
    let mut archive = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(deb)
        .stdout(std::process::Stdio::piped())
        .spawn()
        .context("cannot start dpkg-deb")?;
    let Some(output) = archive.stdout.take() else {
        bail!("dpkg-deb has no output");
    };
    process::run(
        Command::new("tar")
            .args([
                "-x",
                "--no-same-owner",
                "--exclude=*.ko",
                "--exclude=*.ko.xz",
            ])
            .arg("-C")
            .arg(root)
            .stdin(output),
    )?;
    let status = archive.wait()?;
    if !status.success() {
        bail!("dpkg-deb could not read {}: {status}", deb.display());
    }
    Ok(())
}

/// A file called `stem` or `stem-VERSION`, in `boot` or in `usr/lib/modules/VERSION`.
fn find(root: &Path, stem: &str) -> Option<PathBuf> {
    let list = |folder: &Path| -> Vec<PathBuf> {
        let mut paths: Vec<_> = fs::read_dir(folder)
            .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
            .unwrap_or_default();
        paths.sort();
        paths
    };
    let mut candidates = list(&root.join("boot"));
    for modules in ["usr/lib/modules", "lib/modules"] {
        for folder in list(&root.join(modules)) {
            candidates.extend(list(&folder));
        }
    }
    candidates.into_iter().find(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let is_named = name.strip_prefix(stem);
        is_named.is_some_and(|rest| rest.is_empty() || rest.starts_with('-')) && path.is_file()
    })
}

/// Which of the needed options are not built in.
fn missing_options(config: &str) -> Vec<&'static str> {
    NEEDED
        .into_iter()
        .filter(|option| {
            !config
                .lines()
                .any(|line| line.strip_prefix(option) == Some("=y"))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> Line {
        text.parse().unwrap()
    }

    #[test]
    fn a_line_serves_its_own_images_and_neither_metapackages_nor_neighbours() {
        let names = [
            "linux-image-6.1.0-55-amd64",
            "linux-image-6.1.0-55-rt-amd64",
            "linux-image-6.1.0-55-cloud-amd64",
            "linux-image-6.1.0-55-amd64-unsigned",
            "linux-image-6.1.0-55-amd64-dbg",
            "linux-image-6.12-amd64",
            "linux-image-6.12.117+deb12-amd64",
            "linux-image-7.3.4+deb13-amd64",
            "linux-image-amd64",
            "linux-image-rt-amd64",
        ];
        let served = |text: &str| {
            let line = line(text);
            names
                .into_iter()
                .filter(|name| line.is_served_by(name))
                .collect::<Vec<_>>()
        };
        assert_eq!(served("6.1"), ["linux-image-6.1.0-55-amd64"]);
        assert_eq!(served("6.1-rt"), ["linux-image-6.1.0-55-rt-amd64"]);
        assert_eq!(served("6.12"), ["linux-image-6.12.117+deb12-amd64"]);
        assert_eq!(
            served("newest"),
            [
                "linux-image-6.1.0-55-amd64",
                "linux-image-6.12.117+deb12-amd64",
                "linux-image-7.3.4+deb13-amd64"
            ]
        );
    }

    #[test]
    fn a_kernel_that_is_not_a_line_is_refused() {
        for text in ["", "6", "six.one", "6.", "latest", "6.1.5"] {
            assert!(text.parse::<Line>().is_err(), "{text}");
        }
        assert_eq!(line("6.1-rt").to_string(), "6.1-rt");
        assert_eq!(line("newest").to_string(), "newest");
    }

    #[test]
    fn a_split_image_is_fetched_with_its_parts_but_without_modules() {
        let package = Package {
            name: "linux-image-7.2.13+deb14-amd64".into(),
            version: "7.2.13-1".into(),
            depends: [
                "dracut",
                "linux-base-7.2.13+deb14-amd64",
                "linux-binary-7.2.13+deb14-amd64",
                "linux-modules-7.2.13+deb14-amd64",
                "linux-base",
            ]
            .map(str::to_owned)
            .to_vec(),
        };
        assert_eq!(
            parts(&package),
            [
                "linux-image-7.2.13+deb14-amd64",
                "linux-base-7.2.13+deb14-amd64",
                "linux-binary-7.2.13+deb14-amd64"
            ]
        );
    }

    #[test]
    fn an_option_that_is_a_module_or_unset_is_missing() {
        let config = "CONFIG_BPF_SYSCALL=y\nCONFIG_DEBUG_INFO_BTF=y\nCONFIG_MEMCG=y\n\
                      # CONFIG_KPROBES is not set\nCONFIG_SERIAL_8250_CONSOLE=y\n\
                      CONFIG_DEVTMPFS=y\nCONFIG_INET=m\nCONFIG_BLK_DEV_INITRD=y\n";
        assert_eq!(missing_options(config), ["CONFIG_KPROBES", "CONFIG_INET"]);
    }
}
