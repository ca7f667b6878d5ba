//! Debian suites through apt, in an apt root of our own below `target/vm/apt`: the machine's
//! package lists and installed packages are neither used nor changed. The mirror is the one that
//! the machine's apt is configured with; its address stands nowhere in this repository.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, bail};

use crate::process;

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Package lists younger than this are used as they are.
const FRESH: Duration = Duration::from_secs(12 * 3600);

/// Where the machine's apt gets Debian from.
#[derive(Debug, PartialEq, Eq)]
pub struct Mirror {
    pub debian: String,
    /// Debian serves security updates from a second address; a mirror may lack it.
    security: Option<String>,
}

impl Mirror {
    /// Asks apt for its configured sources.
    pub fn of_this_machine() -> Result<Self> {
        let targets = process::output(
            Command::new("apt-get")
                .args(["indextargets", "--format", "$(REPO_URI) $(RELEASE)"])
                .arg("Created-By: Packages"),
        )?;
        Self::from_index_targets(&targets)
    }

    /// From lines of "address release". Debian is told from other repositories by the name of
    /// its releases.
    fn from_index_targets(targets: &str) -> Result<Self> {
        const RELEASES: [&str; 8] = [
            "bullseye", "bookworm", "trixie", "forky", "duke", "sid", "stable", "testing",
        ];
        let mut debian = None;
        let mut security = None;
        for line in targets.lines() {
            let Some((address, release)) = line.split_once(' ') else {
                continue;
            };
            let (name, rest) = match release.split_once(['-', '/']) {
                Some((name, rest)) => (name, rest),
                None => (release, ""),
            };
            if !RELEASES.contains(&name) {
                continue;
            }
            match rest {
                "security" => security = Some(address.to_owned()),
                "" => debian = Some(address.to_owned()),
                // Backports and updates lie beside the release itself.
                "backports" | "updates" if debian.is_none() => debian = Some(address.to_owned()),
                _ => {}
            }
        }
        let Some(debian) = debian else {
            bail!(
                "this machine's apt has no Debian release among its sources, so there is no mirror \
                 to take kernels from: add one (see sources.list(5))"
            );
        };
        Ok(Self { debian, security })
    }

    /// The address that serves `suite`, if this mirror has one for it.
    fn address_of(&self, suite: &str) -> Option<&str> {
        if suite.ends_with("-security") {
            self.security.as_deref()
        } else {
            Some(&self.debian)
        }
    }
}

/// One Debian suite, such as `bookworm-backports`, with its own package lists.
pub struct Suite {
    pub name: String,
    folder: PathBuf,
}

/// What apt says about one version of one package.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Package {
    pub name: String,
    pub version: String,
    pub depends: Vec<String>,
}

impl Suite {
    /// Brings the package lists of `suite` up to date, unless they are fresh.
    pub fn open(mirror: &Mirror, suite: &str, folder: &Path, refresh: bool) -> Result<Self> {
        let Some(address) = mirror.address_of(suite) else {
            bail!("this machine's apt has no source for security updates");
        };
        if !Path::new(KEYRING).exists() {
            bail!("{KEYRING} is missing: run `cargo xtask setup`");
        }
        let suite = Self {
            name: suite.to_owned(),
            folder: folder.join(suite),
        };
        fs::create_dir_all(suite.folder.join("lists/partial"))?;
        fs::create_dir_all(suite.folder.join("cache/archives/partial"))?;
        fs::write(suite.folder.join("status"), "")?;
        fs::write(
            suite.folder.join("sources.list"),
            format!(
                "deb [arch=amd64 signed-by={KEYRING}] {address} {} main\n",
                suite.name
            ),
        )?;
        if refresh || !suite.is_fresh() {
            suite.update()?;
        }
        Ok(suite)
    }

    /// Fetches the package lists again: versions vanish from the archive.
    pub fn update(&self) -> Result<()> {
        let output = self
            .apt("apt-get")
            .args(["--quiet", "--error-on=any", "update"])
            .stdout(Stdio::null())
            .output()
            .context("cannot start apt-get")?;
        if !output.status.success() {
            let errors = String::from_utf8_lossy(&output.stderr).into_owned();
            let first = errors
                .lines()
                .find(|line| line.starts_with("E:"))
                .unwrap_or("apt-get update failed");
            bail!("the mirror does not serve {}: {first}", self.name);
        }
        fs::write(self.stamp(), "")?;
        Ok(())
    }

    fn stamp(&self) -> PathBuf {
        self.folder.join("updated")
    }

    fn is_fresh(&self) -> bool {
        fs::metadata(self.stamp())
            .and_then(|metadata| metadata.modified())
            .is_ok_and(|time| {
                SystemTime::now()
                    .duration_since(time)
                    .is_ok_and(|age| age < FRESH)
            })
    }

    /// An apt command that sees nothing but this suite.
    fn apt(&self, program: &str) -> Command {
        let folder = self.folder.display();
        let mut command = Command::new(program);
        for option in [
            format!("Dir::Etc::sourcelist={folder}/sources.list"),
            "Dir::Etc::sourceparts=-".into(),
            format!("Dir::State::lists={folder}/lists"),
            format!("Dir::State::status={folder}/status"),
            format!("Dir::Cache={folder}/cache"),
            // The user that apt drops to cannot write below somebody's target folder.
            "APT::Sandbox::User=root".into(),
            "APT::Architecture=amd64".into(),
            "APT::Architectures=amd64".into(),
            "Acquire::Languages=none".into(),
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".into(),
            "Acquire::Retries=2".into(),
        ] {
            command.arg(format!("-o{option}"));
        }
        command.env("LC_ALL", "C.UTF-8");
        command
    }

    /// The names of all packages that begin with `prefix`.
    pub fn names(&self, prefix: &str) -> Result<Vec<String>> {
        let names = process::output(self.apt("apt-cache").args(["pkgnames", prefix]))?;
        Ok(names.lines().map(str::to_owned).collect())
    }

    /// All versions of the packages with these names.
    pub fn packages(&self, names: &[String]) -> Result<Vec<Package>> {
        if names.is_empty() {
            return Ok(Vec::new());
        }
        let text = process::output(self.apt("apt-cache").args(["show", "--"]).args(names))?;
        Ok(parse_packages(&text))
    }

    /// Downloads one package into `folder` and returns the file's path.
    pub fn download(&self, package: &str, version: &str, folder: &Path) -> Result<PathBuf> {
        fs::create_dir_all(folder)?;
        let fetch = |suite: &Self| {
            process::run(
                suite
                    .apt("apt-get")
                    .args(["--quiet=2", "download", &format!("{package}={version}")])
                    .current_dir(folder)
                    .stdout(Stdio::null()),
            )
        };
        fetch(self).with_context(|| format!("cannot download {package} {version}"))?;
        fs::read_dir(folder)?
            .filter_map(|entry| entry.ok().map(|entry| entry.path()))
            .find(|path| {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                name.starts_with(&format!("{package}_")) && name.ends_with(".deb")
            })
            .with_context(|| format!("apt-get downloaded no file for {package} {version}"))
    }
}

/// Reads the paragraphs that `apt-cache show` prints.
fn parse_packages(text: &str) -> Vec<Package> {
    text.split("\n\n")
        .filter_map(|paragraph| {
            let field = |name: &str| {
                paragraph.lines().find_map(|line| {
                    let value = line.strip_prefix(name)?.strip_prefix(':')?;
                    Some(value.trim())
                })
            };
            Some(Package {
                name: field("Package")?.to_owned(),
                version: field("Version")?.to_owned(),
                depends: field("Depends")
                    .unwrap_or_default()
                    .split(',')
                    .filter_map(|entry| entry.split_whitespace().next())
                    .map(str::to_owned)
                    .collect(),
            })
        })
        .collect()
}

/// Debian's order of versions, asked of dpkg itself.
pub fn is_newer(version: &str, than: &str) -> Result<bool> {
    let status = Command::new("dpkg")
        .args(["--compare-versions", version, "gt", than])
        .status()
        .context("cannot start dpkg")?;
    Ok(status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mirror_is_the_one_that_serves_debian_not_any_other_repository() {
        let mirror = Mirror::from_index_targets(
            "https://other.invalid/node nodistro\n\
             http://mirror.invalid/debian/ bookworm\n\
             http://mirror.invalid/debian-security/ bookworm-security\n\
             http://other.invalid/apt cloud-sdk-bookworm\n",
        )
        .unwrap();
        assert_eq!(
            mirror.address_of("trixie-backports"),
            Some("http://mirror.invalid/debian/")
        );
        assert_eq!(
            mirror.address_of("bullseye-security"),
            Some("http://mirror.invalid/debian-security/")
        );
    }

    #[test]
    fn a_machine_without_debian_sources_is_told_what_to_do() {
        let error = Mirror::from_index_targets("http://mirror.invalid/ubuntu noble\n").unwrap_err();
        assert!(error.to_string().contains("sources.list"), "{error}");
    }

    #[test]
    fn the_paragraphs_of_apt_cache_show_become_packages() {
        let text = "Package: linux-image-7.2.13+deb14-amd64\n\
                    Version: 7.2.13-1\n\
                    Depends: dracut | initramfs-tools (>= 0.1), linux-binary-7.2.13+deb14-amd64 (= 7.2.13-1)\n\
                    Description: Linux\n Package: not a field\n\n\
                    Package: linux-image-amd64\nVersion: 7.2.13-1\n\n";
        let packages = parse_packages(text);
        assert_eq!(packages.len(), 2);
        assert_eq!(
            packages[0].depends,
            ["dracut", "linux-binary-7.2.13+deb14-amd64"]
        );
        assert_eq!(packages[1].name, "linux-image-amd64");
        assert!(packages[1].depends.is_empty());
    }

    #[test]
    fn a_backport_is_older_than_what_it_was_made_from() {
        assert!(is_newer("6.12.117-1", "6.12.117-1~bpo12+1").unwrap());
        assert!(is_newer("6.12.117-1~bpo12+1", "6.12.95-1").unwrap());
        assert!(!is_newer("6.1.9-1", "6.1.10-1").unwrap());
    }
}
