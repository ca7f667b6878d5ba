//! Small loads for tests, made in the calling process and held until dropped.
//!
//! Lives here: the text form (`tcp=500 anon=50M hold=10s`), what each load is called, and running
//! them one after the other. How each is made: [`handles`] for what a file descriptor stands for,
//! [`names`] for what has a name in a directory. The process' own cgroup pays, so place it first,
//! or say `cgroup=DIR`. A test starts one as `kmem-trace __worker churn LOAD…`.

pub mod handles;
pub mod names;

use std::{
    fs,
    io::{self, Read, Write},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    str::FromStr,
    thread,
    time::Duration,
};

use super::{
    WorkloadError,
    error::advice,
    limits,
    worker::{
        memory::{self, Made},
        network,
    },
};

/// File descriptors left for everything else in the process.
const FILES_RESERVED: u64 = 16;

/// One load: what, and how much of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    pub kind: Kind,
    /// A number, or bytes for the kinds that are memory.
    pub amount: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Loopback connections, both ends in this process.
    Tcp,
    /// Bytes of anonymous memory.
    Anon,
    /// Bytes of page cache, of an unlinked file in `dir`.
    File,
    Pipes,
    /// Connected pairs of unix sockets.
    Unix,
    /// Empty files in a new directory in `dir`.
    Dentries,
    /// Names looked up in vain in a new directory in `dir`.
    Negative,
    /// Entries of epoll instances.
    Epoll,
    /// Watches.
    Inotify,
    /// Memory files of one page each.
    Memfd,
    /// Rings of 64 entries.
    IoUring,
    /// Processes that end at once, in waves.
    Forks,
}

const KINDS: [(&str, Kind); 12] = [
    ("tcp", Kind::Tcp),
    ("anon", Kind::Anon),
    ("file", Kind::File),
    ("pipes", Kind::Pipes),
    ("unix", Kind::Unix),
    ("dentries", Kind::Dentries),
    ("negative", Kind::Negative),
    ("epoll", Kind::Epoll),
    ("inotify", Kind::Inotify),
    ("memfd", Kind::Memfd),
    ("io_uring", Kind::IoUring),
    ("forks", Kind::Forks),
];

/// Loads to make one after the other, and how long to hold them.
///
/// Words: `KIND=AMOUNT` (`K`, `M`, `G` are powers of 1024 for bytes, and of 1000 for numbers),
/// `dir=DIR` for what needs files (default: the temporary directory), `cgroup=DIR` to enter
/// first, `netns` for a network namespace of its own, `hold=10s` (also `ms`, `m`; default: until
/// standard input ends).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Churn {
    pub loads: Vec<Load>,
    pub dir: PathBuf,
    pub cgroup: Option<PathBuf>,
    pub netns: bool,
    pub hold: Option<Duration>,
}

/// What loads hold; released when dropped.
#[derive(Debug, Default)]
pub struct Held {
    files: Vec<OwnedFd>,
    memory: Vec<Made>,
    dirs: Vec<names::Scratch>,
}

impl Held {
    fn add(&mut self, other: Self) {
        self.files.extend(other.files);
        self.memory.extend(other.memory);
        self.dirs.extend(other.dirs);
    }
}

impl Churn {
    /// Reads the words of a command line.
    ///
    /// # Errors
    /// [`WorkloadError::Syntax`] names the word.
    pub fn from_words<W: AsRef<str>>(words: &[W]) -> Result<Self, WorkloadError> {
        let mut churn = Self {
            loads: Vec::new(),
            dir: std::env::temp_dir(),
            cgroup: None,
            netns: false,
            hold: None,
        };
        for word in words {
            churn.take(word.as_ref())?;
        }
        if churn.loads.is_empty() {
            return Err(syntax("", "nothing to make; for example tcp=500"));
        }
        Ok(churn)
    }

    fn take(&mut self, word: &str) -> Result<(), WorkloadError> {
        match word.split_once('=') {
            None if word == "netns" => self.netns = true,
            Some(("dir", dir)) if !dir.is_empty() => self.dir = dir.into(),
            Some(("cgroup", dir)) if !dir.is_empty() => self.cgroup = Some(dir.into()),
            Some(("hold", time)) => {
                let time =
                    humantime::parse_duration(time).map_err(|e| syntax(word, &e.to_string()))?;
                self.hold = Some(time);
            }
            _ => self.loads.push(word.parse()?),
        }
        Ok(())
    }

    /// Makes all of it, writes `ready` to standard output, holds, and lets go.
    ///
    /// # Errors
    /// The first load that could not be made, with the reason.
    pub fn run(&self) -> Result<(), WorkloadError> {
        if let Some(cgroup) = &self.cgroup {
            let procs = cgroup.join("cgroup.procs");
            fs::write(&procs, "0").map_err(|source| WorkloadError::Cgroup {
                what: "enter",
                hint: advice(&source),
                path: procs,
                source,
            })?;
        }
        if self.netns {
            network::own_network().map_err(failed("make a network namespace"))?;
        }
        let mut held = Held::default();
        for load in &self.loads {
            held.add(load.make(&self.dir)?);
        }
        let mut out = io::stdout();
        writeln!(out, "ready")
            .and_then(|()| out.flush())
            .map_err(failed("say ready"))?;
        match self.hold {
            Some(time) => thread::sleep(time),
            None => {
                io::stdin()
                    .read_to_end(&mut Vec::new())
                    .map_err(failed("read standard input"))?;
            }
        }
        drop(held);
        Ok(())
    }
}

impl FromStr for Churn {
    type Err = WorkloadError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::from_words(&text.split_whitespace().collect::<Vec<_>>())
    }
}

impl Load {
    /// Makes it. `dir` is for those that need files.
    ///
    /// # Errors
    /// It does not fit into this process' limits, or the kernel refuses.
    pub fn make(self, dir: &Path) -> Result<Held, WorkloadError> {
        let n = self.amount;
        match self.kind {
            Kind::Tcp => handles::tcp(n),
            Kind::Anon => anon(n),
            Kind::File => page_cache(n, dir),
            Kind::Pipes => handles::pipes(n),
            Kind::Unix => handles::unix_sockets(n),
            Kind::Dentries => names::dentries(n, dir),
            Kind::Negative => names::negative_dentries(n, dir),
            Kind::Epoll => handles::epoll(n),
            Kind::Inotify => names::inotify(n, dir),
            Kind::Memfd => handles::memfd(n),
            Kind::IoUring => handles::io_uring(n),
            Kind::Forks => handles::forks(n).map(|()| Held::default()),
        }
    }
}

impl FromStr for Load {
    type Err = WorkloadError;

    fn from_str(word: &str) -> Result<Self, Self::Err> {
        let names = || KINDS.map(|(name, _)| name).join(", ");
        let (name, amount) = word
            .split_once('=')
            .ok_or_else(|| syntax(word, &format!("KIND=AMOUNT, with KIND one of {}", names())))?;
        let kind = KINDS
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, kind)| *kind);
        let kind = kind.ok_or_else(|| syntax(word, &format!("known are {}", names())))?;
        let unit = if matches!(kind, Kind::Anon | Kind::File) {
            1024
        } else {
            1000
        };
        let amount = number(amount, unit)
            .ok_or_else(|| syntax(word, "the amount is a number, also with K, M or G"))?;
        Ok(Self { kind, amount })
    }
}

/// `5`, `5K`, `5M`, `5G`: each letter is a power of `unit`.
fn number(text: &str, unit: u64) -> Option<u64> {
    let (digits, power) = match text.char_indices().last()? {
        (at, 'K') => (&text[..at], 1),
        (at, 'M') => (&text[..at], 2),
        (at, 'G') => (&text[..at], 3),
        _ => (text, 0),
    };
    let plain = digits.bytes().all(|b| b.is_ascii_digit());
    digits
        .parse::<u64>()
        .ok()
        .filter(|_| plain)?
        .checked_mul(unit.pow(power))
}

/// Touches `bytes` of anonymous memory.
///
/// # Errors
/// The kernel has none.
pub fn anon(bytes: u64) -> Result<Held, WorkloadError> {
    let mut made = Made::default();
    memory::anon(&mut made, bytes, &mut |_| {}).map_err(failed("make anonymous memory"))?;
    Ok(Held {
        memory: vec![made],
        ..Held::default()
    })
}

/// Writes `bytes` of page cache in `dir`.
///
/// # Errors
/// The file cannot be made or written.
pub fn page_cache(bytes: u64, dir: &Path) -> Result<Held, WorkloadError> {
    let mut made = Made::default();
    memory::page_cache(&mut made, bytes, dir, &mut |_| {})
        .map_err(failed(&format!("write a file in {}", dir.display())))?;
    Ok(Held {
        memory: vec![made],
        ..Held::default()
    })
}

/// Raises the soft limit of open files and refuses what does not fit: `each` for each of `n`.
fn need_files(what: &str, n: u64, each: u64) -> Result<(), WorkloadError> {
    let limit = limits::raise_open_files().map_err(failed("raise RLIMIT_NOFILE"))?;
    let open = fs::read_dir("/proc/self/fd")
        .map_err(failed("list /proc/self/fd"))?
        .count() as u64;
    let need = n.saturating_mul(each);
    if need.saturating_add(open + FILES_RESERVED) > limit {
        return Err(WorkloadError::DoesNotFit(format!(
            "{n} {what} × {each} files = {need}, but a process may open {limit} and has {open}: \
             ask for fewer, or raise `ulimit -Hn`"
        )));
    }
    Ok(())
}

fn failed(what: &str) -> impl Fn(io::Error) -> WorkloadError {
    move |error| WorkloadError::Worker(format!("cannot {what}: {error}{}", advice(&error)))
}

fn syntax(text: &str, why: &str) -> WorkloadError {
    WorkloadError::Syntax {
        text: text.into(),
        why: why.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_loads_is_read_word_by_word() {
        let churn: Churn = "cgroup=/c netns tcp=500 anon=50M  negative=2K dir=/d hold=1500ms"
            .parse()
            .unwrap();
        let load = |kind, amount| Load { kind, amount };
        assert_eq!(
            churn,
            Churn {
                loads: vec![
                    load(Kind::Tcp, 500),
                    load(Kind::Anon, 50 << 20),
                    load(Kind::Negative, 2_000),
                ],
                dir: "/d".into(),
                cgroup: Some("/c".into()),
                netns: true,
                hold: Some(Duration::from_millis(1500)),
            }
        );
    }

    #[test]
    fn without_hold_it_waits_for_the_end_of_its_input() {
        assert_eq!("pipes=1".parse::<Churn>().unwrap().hold, None);
    }

    #[test]
    fn nonsense_is_refused_and_named() {
        for text in [
            "tcp",
            "tcp=",
            "tcp=x",
            "tcp=-1",
            "tcp=+1",
            "tcp=1T",
            "tcp=K",
            "fish=3",
            "hold=soon",
            "cgroup=",
        ] {
            let error = format!("{text} anon=1")
                .parse::<Churn>()
                .unwrap_err()
                .to_string();
            assert!(error.contains(&format!("`{text}`")), "{error}");
        }
        assert!("hold=1s".parse::<Churn>().is_err());
        assert!(format!("anon={}G", u64::MAX).parse::<Churn>().is_err());
    }

    #[test]
    fn every_kind_can_be_written_and_is_known_once() {
        for (name, kind) in KINDS {
            assert_eq!(format!("{name}=1").parse::<Load>().unwrap().kind, kind);
        }
    }

    #[test]
    fn more_files_than_the_limit_are_refused_with_the_arithmetic() {
        let error = need_files("pipes", 1 << 40, 2).unwrap_err().to_string();
        assert!(
            error.contains("1099511627776 pipes × 2 files = 2199023255552"),
            "{error}"
        );
    }
}
