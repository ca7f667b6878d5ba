//! What this kernel and this process may do: lockdown, capabilities, sysctls, kprobes.
//!
//! These are the stated facts. securityfs may be unmounted and policies differ, so what is really
//! allowed is found out by trying, where programs are loaded; this only explains a refusal.

use std::{
    collections::BTreeSet,
    io::{self, Read},
    path::{Path, PathBuf},
};

use caps::{CapSet, Capability};

use super::{
    file::{self, FileError},
    proc::system,
    tracefs::Tracefs,
};

/// Most bytes of an unpacked `/proc/config.gz` that are looked at; real ones have 300 000.
const MAX_CONFIG: u64 = 8 << 20;

/// Lockdown of the kernel against root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lockdown {
    None,
    /// The kernel may not be changed.
    Integrity,
    /// Kernel memory may not be read either: no kprobes, no BPF kernel reads, no tracefs.
    Confidentiality,
    /// securityfs is not mounted, or the kernel has no lockdown.
    Unknown,
}

impl Lockdown {
    /// Parses `none [integrity] confidentiality`: the state in brackets holds.
    pub fn parse(bytes: &[u8]) -> Lockdown {
        let mut state = Lockdown::Unknown;
        for word in file::words(bytes.trim_ascii()) {
            state = match word {
                b"[none]" => Lockdown::None,
                b"[integrity]" => Lockdown::Integrity,
                b"[confidentiality]" => Lockdown::Confidentiality,
                _ => continue,
            };
        }
        state
    }
}

/// As in the kernel's file, or `unknown`.
impl std::fmt::Display for Lockdown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Lockdown::None => "none",
            Lockdown::Integrity => "integrity",
            Lockdown::Confidentiality => "confidentiality",
            Lockdown::Unknown => "unknown",
        })
    }
}

/// Lockdown of the running kernel.
pub fn lockdown() -> Lockdown {
    file::read(Path::new("/sys/kernel/security/lockdown"))
        .map_or(Lockdown::Unknown, |bytes| Lockdown::parse(&bytes))
}

/// What this process may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Privileges {
    /// Effective user id; 0 does not mean that all capabilities are there.
    pub euid: u32,
    /// Has `CAP_SYS_ADMIN`.
    pub sys_admin: bool,
    /// Names of the capabilities that tracing uses and this process has.
    pub held: Vec<&'static str>,
    /// Those that it lacks, with what they are for.
    pub missing: Vec<(&'static str, &'static str)>,
}

/// A capability that tracing uses.
struct Use {
    capability: Capability,
    name: &'static str,
    /// Has the same effect.
    stands_in: Option<Capability>,
    purpose: &'static str,
}

/// What tracing uses, found by taking each away from a trace that worked.
const USED: [Use; 6] = [
    Use {
        capability: Capability::CAP_BPF,
        name: "CAP_BPF",
        stands_in: Some(Capability::CAP_SYS_ADMIN),
        purpose: "to make BPF maps and load programs",
    },
    Use {
        capability: Capability::CAP_PERFMON,
        name: "CAP_PERFMON",
        stands_in: Some(Capability::CAP_SYS_ADMIN),
        purpose: "to attach programs and let them read kernel memory",
    },
    Use {
        capability: Capability::CAP_SYSLOG,
        name: "CAP_SYSLOG",
        stands_in: None,
        purpose: "to see kernel addresses in /proc/kallsyms, for an exact ledger",
    },
    Use {
        capability: Capability::CAP_SYS_RAWIO,
        name: "CAP_SYS_RAWIO",
        stands_in: None,
        purpose: "to read the kernel's code in /proc/kcore, for exact kprobes",
    },
    Use {
        capability: Capability::CAP_DAC_READ_SEARCH,
        name: "CAP_DAC_READ_SEARCH",
        stands_in: Some(Capability::CAP_DAC_OVERRIDE),
        purpose: "to read tracefs and /proc/slabinfo, which are root's",
    },
    Use {
        capability: Capability::CAP_SYS_RESOURCE,
        name: "CAP_SYS_RESOURCE",
        stands_in: None,
        purpose: "to lift the memlock limit, which counts BPF maps before Linux 5.11",
    },
];

impl Privileges {
    /// Of the calling thread.
    ///
    /// # Errors
    /// From the system.
    pub fn read() -> Result<Privileges, caps::errors::CapsError> {
        let effective: BTreeSet<u8> = caps::read(None, CapSet::Effective)?
            .iter()
            .map(Capability::index)
            .collect();
        let has = |capability: Capability| effective.contains(&capability.index());
        let (held, missing) = sorted(has);
        Ok(Privileges {
            euid: nix::unistd::geteuid().as_raw(),
            sys_admin: has(Capability::CAP_SYS_ADMIN),
            held,
            missing,
        })
    }
}

type Named = Vec<&'static str>;

/// What is used, by whether it is had. Before Linux 5.8 `CAP_SYS_ADMIN` was all of `CAP_BPF` and
/// `CAP_PERFMON`, and it still includes them.
fn sorted(has: impl Fn(Capability) -> bool) -> (Named, Vec<(&'static str, &'static str)>) {
    let (held, missing): (Vec<_>, Vec<_>) = USED
        .iter()
        .partition(|used| has(used.capability) || used.stands_in.is_some_and(&has));
    (
        held.iter().map(|used| used.name).collect(),
        missing
            .iter()
            .map(|used| (used.name, used.purpose))
            .collect(),
    )
}

/// What it takes to switch the kernel's BPF statistics on, by its answer to who tried. The call asks
/// for this capability alone (`bpf_enable_stats`, kernel/bpf/syscall.c). It is not among those that
/// tracing uses: doctor need not recommend it for what two options alone take.
pub fn statistics_need(refused: &io::Error) -> &'static str {
    match refused.raw_os_error() {
        Some(libc::EPERM) => "this takes CAP_SYS_ADMIN",
        // EINVAL: an older kernel knows no such call.
        _ => "Linux 5.8 and later have them",
    }
}

/// `kernel.kptr_restrict`: 0 shows kernel addresses to those with `CAP_SYSLOG` and perf rights,
/// 1 with `CAP_SYSLOG`, 2 to nobody.
///
/// # Errors
/// [`FileError`].
pub fn kptr_restrict() -> Result<u64, FileError> {
    sysctl("kptr_restrict")
}

/// `kernel.perf_event_paranoid`. Mainline knows values up to 2; Debian and Ubuntu add 3, which
/// leaves `perf_event_open`, and with it kprobes and tracepoints, to `CAP_SYS_ADMIN` alone.
///
/// # Errors
/// [`FileError`].
pub fn perf_event_paranoid() -> Result<i64, FileError> {
    let path = Path::new("/proc/sys/kernel/perf_event_paranoid");
    file::read_as(path, |bytes| {
        let text = file::text(bytes.trim_ascii());
        text.parse()
            .map_err(|_| file::LineError::new(1, "not a number"))
    })
}

fn sysctl(name: &str) -> Result<u64, FileError> {
    let path = Path::new("/proc/sys/kernel").join(name);
    file::read_as(&path, |bytes| {
        file::number(bytes.trim_ascii()).ok_or_else(|| file::LineError::new(1, "not a number"))
    })
}

/// What can be seen of kprobes, before it is judged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KprobeEvidence {
    /// Any of the kprobe files in sysfs, debugfs or tracefs is there.
    pub file: bool,
    /// The kernel's build configuration.
    pub config: Option<Vec<u8>>,
    /// tracefs can be listed, so a kprobe file would be seen.
    pub tracefs_listed: bool,
}

impl KprobeEvidence {
    /// Looks around; finding nothing is an answer, so there are no errors.
    pub fn gather(tracefs: Option<&Tracefs>) -> KprobeEvidence {
        // The perf device exists exactly when kprobes can be made through perf, mounts or not.
        let mut files = vec![
            PathBuf::from("/sys/bus/event_source/devices/kprobe"),
            PathBuf::from("/sys/kernel/debug/kprobes"),
        ];
        files.extend(tracefs.map(|tracefs| tracefs.root.join("kprobe_events")));
        KprobeEvidence {
            file: files.iter().any(|path| path.exists()),
            config: build_config(),
            tracefs_listed: tracefs.is_some_and(|tracefs| tracefs.root.join("events").is_dir()),
        }
    }

    /// Whether the kernel has kprobes; `None` if it cannot be told.
    pub fn verdict(&self) -> Option<bool> {
        if self.file {
            return Some(true);
        }
        let configured = self
            .config
            .as_deref()
            .and_then(|config| config_has(config, "CONFIG_KPROBES"));
        configured.or(self.tracefs_listed.then_some(false))
    }
}

/// The build configuration of the running kernel, where it or its distribution shows it.
fn build_config() -> Option<Vec<u8>> {
    if let Ok(packed) = file::read(Path::new("/proc/config.gz")) {
        return unpack(&packed);
    }
    let name = format!("config-{}", system::release());
    file::read(&Path::new("/boot").join(name)).ok()
}

fn unpack(packed: &[u8]) -> Option<Vec<u8>> {
    let mut config = Vec::new();
    let mut reader = flate2::read::GzDecoder::new(packed).take(MAX_CONFIG);
    reader.read_to_end(&mut config).ok()?;
    Some(config)
}

/// Whether a build option is on; `None` for a file that is no kernel configuration. An option that
/// is not mentioned is off: its prerequisites were.
pub fn config_has(config: &[u8], option: &str) -> Option<bool> {
    let mut is_config = false;
    for (_, line) in file::lines(config) {
        is_config |= line.starts_with(b"CONFIG_");
        if let Some(value) = line.strip_prefix(option.as_bytes())
            && (value == b"=y" || value == b"=m")
        {
            return Some(true);
        }
    }
    is_config.then_some(false)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_bracketed_state_of_lockdown_holds() {
        for (text, state) in [
            ("[none] integrity confidentiality\n", Lockdown::None),
            ("none [integrity] confidentiality", Lockdown::Integrity),
            (
                "none integrity [confidentiality]\n",
                Lockdown::Confidentiality,
            ),
            ("none integrity confidentiality\n", Lockdown::Unknown),
            ("", Lockdown::Unknown),
            ("[something]", Lockdown::Unknown),
        ] {
            assert_eq!(Lockdown::parse(text.as_bytes()), state, "{text}");
        }
    }

    #[test]
    fn sys_admin_includes_bpf_and_perfmon_but_not_the_others() {
        let missing = |has: &dyn Fn(Capability) -> bool| -> Vec<&str> {
            sorted(has).1.into_iter().map(|(name, _)| name).collect()
        };
        assert_eq!(
            missing(&|c| c == Capability::CAP_SYS_ADMIN),
            [
                "CAP_SYSLOG",
                "CAP_SYS_RAWIO",
                "CAP_DAC_READ_SEARCH",
                "CAP_SYS_RESOURCE"
            ]
        );
        assert_eq!(missing(&|_| true), [""; 0]);
        assert_eq!(missing(&|_| false).len(), USED.len());
        let modern = [Capability::CAP_BPF, Capability::CAP_PERFMON];
        assert!(!missing(&|c| modern.contains(&c)).contains(&"CAP_BPF"));
    }

    #[test]
    fn what_is_held_and_what_is_missing_is_all_that_is_used() {
        let (held, missing) = sorted(|c| c == Capability::CAP_DAC_OVERRIDE);
        assert_eq!(held, ["CAP_DAC_READ_SEARCH"]);
        assert_eq!(held.len() + missing.len(), USED.len());
    }

    #[test]
    fn capability_names_are_the_kernels() {
        for used in USED {
            assert_eq!(used.capability.to_string(), used.name);
        }
    }

    #[test]
    fn a_kernel_that_refuses_statistics_is_told_from_one_that_has_none() {
        let need = |code| statistics_need(&io::Error::from_raw_os_error(code));
        assert!(need(libc::EPERM).contains("CAP_SYS_ADMIN"));
        for code in [libc::EINVAL, libc::ENOMEM] {
            assert!(need(code).contains("5.8"), "{code}");
        }
    }

    const CONFIG: &[u8] = b"#\n# Linux/x86 6.18.44 Kernel Configuration\n#\nCONFIG_MEMCG=y\n# CONFIG_KPROBES is not set\nCONFIG_KPROBES_SANITY=y\n";

    #[test]
    fn an_option_that_is_off_is_told_from_a_file_that_says_nothing() {
        assert_eq!(config_has(CONFIG, "CONFIG_MEMCG"), Some(true));
        assert_eq!(config_has(CONFIG, "CONFIG_KPROBES"), Some(false));
        assert_eq!(config_has(CONFIG, "CONFIG_NEVER_HEARD"), Some(false));
        assert_eq!(config_has(b"hello\n", "CONFIG_MEMCG"), None);
        assert_eq!(config_has(b"", "CONFIG_MEMCG"), None);
    }

    #[test]
    fn kprobes_are_judged_by_files_then_by_config_then_by_their_absence() {
        let evidence = |file, config: Option<&[u8]>, tracefs_listed| KprobeEvidence {
            file,
            config: config.map(<[u8]>::to_vec),
            tracefs_listed,
        };
        assert_eq!(evidence(true, Some(CONFIG), true).verdict(), Some(true));
        assert_eq!(evidence(false, Some(CONFIG), false).verdict(), Some(false));
        assert_eq!(
            evidence(false, Some(b"CONFIG_KPROBES=y"), false).verdict(),
            Some(true)
        );
        assert_eq!(evidence(false, None, true).verdict(), Some(false));
        assert_eq!(evidence(false, None, false).verdict(), None);
    }

    #[test]
    fn a_packed_configuration_is_unpacked_and_a_damaged_one_is_none() {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(CONFIG).expect("in memory");
        let packed = encoder.finish().expect("in memory");
        assert_eq!(unpack(&packed).as_deref(), Some(CONFIG));
        assert_eq!(unpack(&packed[..packed.len() / 2]), None);
        assert_eq!(unpack(b"not gzip"), None);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parsers_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            Lockdown::parse(&bytes);
            config_has(&bytes, "CONFIG_KPROBES");
            unpack(&bytes);
        }
    }
}
