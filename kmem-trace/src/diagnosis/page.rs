//! All of the page, as it goes into JSON; the screen is set from the same.

use serde::{Serialize, Serializer, ser::SerializeMap as _};

use super::{accounting::Accounting, answers::Answer, problems::Problem};
use crate::hooks::plan::Row;

/// A fact, or why it is not known.
pub type Fact = Result<String, String>;

/// What `kmem-trace doctor` found.
#[derive(Clone, Debug, Serialize)]
pub struct Page {
    /// Version of this program.
    pub version: &'static str,
    pub system: System,
    pub rights: Rights,
    /// What the kernel lets this process do, found by trying: (what, yes or why not).
    #[serde(serialize_with = "map_of_yes")]
    pub allowed: Vec<(&'static str, Result<(), String>)>,
    pub accounting: Accounting,
    /// How good the ledger is: `exact`, `bounded`, `missing`.
    pub mode: &'static str,
    /// The plan was tried: every hook of it was attached for a moment. Otherwise, why it was not.
    #[serde(serialize_with = "yes")]
    pub tried: Result<(), String>,
    pub answers: Vec<Answer>,
    pub roles: Vec<Row>,
    pub problems: Vec<Problem>,
}

impl Page {
    /// The one reason why nothing at all is allowed, where that is so.
    pub fn nothing_allowed(&self) -> Option<&str> {
        let (_, first) = self.allowed.first()?;
        let why = first.as_ref().err()?;
        self.allowed
            .iter()
            .all(|(_, verdict)| verdict.as_ref().err() == Some(why))
            .then_some(why)
    }
}

/// The machine and its kernel.
#[derive(Clone, Debug, Serialize)]
pub struct System {
    pub kernel: String,
    /// As `uname -m` says it.
    pub machine: String,
    pub cpus_online: u32,
    pub distribution: Option<String>,
    /// `v1` or `v2`; `None`: no memory cgroups.
    pub hierarchy: Option<String>,
    /// Where memory cgroups are mounted.
    #[serde(serialize_with = "fact")]
    pub memory_cgroups: Fact,
    pub lockdown: String,
    /// Options of the boot command line that change memory accounting.
    #[serde(serialize_with = "fact")]
    pub boot_options: Fact,
    /// Path of the kernel's type information.
    #[serde(serialize_with = "fact")]
    pub btf: Fact,
    /// Path of the mounted tracefs.
    #[serde(serialize_with = "fact")]
    pub tracefs: Fact,
    /// Whether addresses in kallsyms can be read: `shown`, or why not.
    #[serde(serialize_with = "fact")]
    pub kernel_addresses: Fact,
}

/// Who asks.
#[derive(Clone, Debug, Serialize)]
pub struct Rights {
    /// Effective user id.
    pub euid: u32,
    /// Has `CAP_SYS_ADMIN`, which stands in for some others.
    pub sys_admin: bool,
    /// Effective capabilities that tracing uses; `None` where they cannot be read.
    pub held: Option<Vec<&'static str>>,
    pub missing: Vec<Lack>,
}

/// A capability that is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Lack {
    pub capability: &'static str,
    /// What tracing uses it for.
    pub purpose: &'static str,
}

/// `{"is": …}` or `{"why_not": …}`.
pub(super) fn fact<S: Serializer>(fact: &Fact, serializer: S) -> Result<S::Ok, S::Error> {
    let mut map = serializer.serialize_map(Some(1))?;
    match fact {
        Ok(is) => map.serialize_entry("is", is)?,
        Err(why) => map.serialize_entry("why_not", why)?,
    }
    map.end()
}

/// `true`, or why not as text.
fn yes<S: Serializer>(verdict: &Result<(), String>, serializer: S) -> Result<S::Ok, S::Error> {
    match verdict {
        Ok(()) => serializer.serialize_bool(true),
        Err(why) => serializer.serialize_str(why),
    }
}

/// `{"kprobes": true, "fentry": "why not"}`.
fn map_of_yes<S: Serializer>(
    verdicts: &[(&'static str, Result<(), String>)],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let mut map = serializer.serialize_map(Some(verdicts.len()))?;
    for (what, verdict) in verdicts {
        match verdict {
            Ok(()) => map.serialize_entry(what, &true)?,
            Err(why) => map.serialize_entry(what, why)?,
        }
    }
    map.end()
}
