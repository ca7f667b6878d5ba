//! What this kernel lets us do with BPF, found by trying: lockdown, build options and
//! capabilities all end in a yes or a no here, whatever their files say.

use std::path::Path;

use aya::maps::MapType;
use aya::{
    programs::ProgramType,
    sys::{BpfHelper, is_helper_supported, is_map_supported, is_program_supported},
};

use super::{
    bare,
    features::{Feature, Lacking, Object},
    plan::AttachMode,
};
use crate::{
    hooks::table::Mechanism,
    kernel::{btf::KernelBtf, security::Lockdown},
};

const NO_TYPES: &str = "this kernel has no type information (BTF)";

/// Functions that every kernel has: of one alone, a refusal may be the function's own fault.
const TRIED: [&str; 2] = ["page_counter_charge", "kmem_cache_free"];

/// A yes, or why not.
pub type Verdict = Result<(), String>;

/// What may be done here.
#[derive(Clone, Debug)]
pub struct Allowed {
    /// Loading BPF programs at all.
    pub bpf: Verdict,
    /// Reading kernel memory from a program (`bpf_probe_read_kernel`).
    pub reads: Verdict,
    pub kprobe: Verdict,
    pub fentry: Verdict,
    pub raw_tracepoint: Verdict,
    pub tracepoint: Verdict,
    pub btf_tracepoint: Verdict,
    /// What the programs and maps have to do without.
    pub lacking: Lacking,
}

impl Allowed {
    /// A kernel that allows everything.
    #[cfg(test)]
    pub fn all() -> Self {
        Self {
            bpf: Ok(()),
            reads: Ok(()),
            kprobe: Ok(()),
            fentry: Ok(()),
            raw_tracepoint: Ok(()),
            tracepoint: Ok(()),
            btf_tracepoint: Ok(()),
            lacking: Lacking::default(),
        }
    }

    /// Asks the kernel, which is taken to have nothing that is `forbidden`.
    pub fn probe(
        lockdown: Lockdown,
        btf: Option<&KernelBtf>,
        tracefs: Result<(), String>,
        forbidden: &[Feature],
    ) -> Self {
        let bpf = match is_map_supported(MapType::Array) {
            Ok(true) => Ok(()),
            Ok(false) => Err("this kernel has no BPF maps".to_owned()),
            Err(error) => Err(format!(
                "the kernel refused to make a BPF map: {}",
                cause(&error)
            )),
        };
        let lacking = match bpf {
            Ok(()) => Lacking::probe(lockdown, forbidden),
            Err(_) => Lacking::default(),
        };
        let reads = reads(&bpf, lockdown, &lacking);
        let kprobe = reads.clone().and_then(|()| {
            if Path::new("/sys/bus/event_source/devices/kprobe/type").exists() {
                Ok(())
            } else {
                Err("this kernel is built without kprobes".to_owned())
            }
        });
        let fentry = reads.clone().and_then(|()| match btf {
            Some(btf) => takes_on_functions(btf),
            None => Err(NO_TYPES.to_owned()),
        });
        let tracepoint = bpf.clone().and_then(|()| match tracefs {
            Err(_) if lockdown == Lockdown::Confidentiality => {
                Err("lockdown=confidentiality hides tracefs".to_owned())
            }
            other => other,
        });
        let btf_tracepoint = bpf.clone().and_then(|()| match btf {
            Some(_) => Ok(()),
            None => Err(NO_TYPES.to_owned()),
        });
        Self {
            btf_tracepoint,
            raw_tracepoint: reads.clone(),
            bpf,
            reads,
            kprobe,
            fentry,
            tracepoint,
            lacking,
        }
    }

    /// The verdict on one mechanism.
    pub fn mechanism(&self, mechanism: Mechanism) -> &Verdict {
        match mechanism {
            Mechanism::Kprobe => &self.kprobe,
            Mechanism::Fentry => &self.fentry,
            // A raw tracepoint has pointers for arguments: without reads they tell nothing.
            Mechanism::RawTracepoint => &self.raw_tracepoint,
            Mechanism::Tracepoint => &self.tracepoint,
            Mechanism::BtfTracepoint => &self.btf_tracepoint,
            Mechanism::Read => &self.reads,
        }
    }

    /// Whether what `--attach` forces is allowed at all. Roles that no function serves are served by
    /// tracepoints all the same, and would hide that nothing is as it was asked for.
    ///
    /// # Errors
    /// In one line: what, why, and what to do.
    pub fn forced(&self, attach: AttachMode) -> Verdict {
        let (name, verdict) = match attach {
            AttachMode::Kprobe => ("kprobe", &self.kprobe),
            AttachMode::Fentry => ("fentry", &self.fentry),
            AttachMode::Auto | AttachMode::Tracepoint => return Ok(()),
        };
        verdict.clone().map_err(|why| {
            format!("--attach {name}: {why}; leave --attach out to trace by what it allows")
        })
    }
}

fn reads(bpf: &Verdict, lockdown: Lockdown, lacking: &Lacking) -> Verdict {
    bpf.clone()?;
    match is_program_supported(ProgramType::RawTracePoint) {
        Ok(true) => {}
        Ok(false) => return Err("this kernel has no BPF for tracing".to_owned()),
        Err(error) => {
            return Err(format!(
                "the kernel refused to load a program: {}",
                cause(&error)
            ));
        }
    }
    let helper = if lacking.lacks(Feature::KernelReads) {
        BpfHelper::BPF_FUNC_probe_read
    } else {
        BpfHelper::BPF_FUNC_probe_read_kernel
    };
    match is_helper_supported(ProgramType::RawTracePoint, helper) {
        // Before 5.7 such a program is loaded all the same, and reads nothing.
        Ok(true) if lockdown == Lockdown::Confidentiality && lacking.object() == Object::Old => {
            Err("lockdown=confidentiality forbids reading kernel memory".to_owned())
        }
        Ok(true) => Ok(()),
        _ if lockdown == Lockdown::Confidentiality => {
            Err("lockdown=confidentiality forbids reading kernel memory".to_owned())
        }
        _ => Err("the kernel does not let programs read its memory (lockdown?)".to_owned()),
    }
}

/// Loads a program for the entry of a function, of which the kernel may be built to take none, and
/// lets go of it again. What it loads and then does not let onto its function is found when it is
/// attached ([`super::attach::Refused::closed`]).
fn takes_on_functions(btf: &KernelBtf) -> Verdict {
    // Ids of a file need not be the running kernel's, which has to have its own for that.
    let own = Path::new(KernelBtf::VMLINUX);
    let loaded;
    let btf = if btf.path() == own {
        btf
    } else {
        loaded = KernelBtf::load(own).map_err(|_| {
            format!(
                "this kernel takes no programs on functions without {}",
                own.display()
            )
        })?;
        &loaded
    };
    let mut refused = None;
    for id in TRIED.iter().filter_map(|name| btf.function_id(name)) {
        match bare::takes_on_function(id) {
            Ok(()) => return Ok(()),
            Err(error) => refused = Some(error),
        }
    }
    // Without any of them nothing was refused.
    refused.map_or(Ok(()), |error| {
        Err(format!(
            "this kernel takes no programs on functions: {error}"
        ))
    })
}

/// The innermost reason of an error, which is what the kernel said.
pub fn cause(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_forced_and_not_allowed_is_refused_with_the_kernels_reason() {
        let allowed = Allowed {
            kprobe: Err("this kernel is built without kprobes".to_owned()),
            ..Allowed::all()
        };
        assert_eq!(
            allowed.forced(AttachMode::Kprobe),
            Err("--attach kprobe: this kernel is built without kprobes; leave --attach out to trace by what it allows".to_owned())
        );
        for attach in [AttachMode::Auto, AttachMode::Fentry, AttachMode::Tracepoint] {
            assert_eq!(allowed.forced(attach), Ok(()));
        }
    }
}
