//! What this kernel lets us do with BPF, found by trying: lockdown, build options and
//! capabilities all end in a yes or a no here, whatever their files say.

use std::path::Path;

use aya::maps::MapType;
use aya::{
    programs::ProgramType,
    sys::{BpfHelper, is_helper_supported, is_map_supported, is_program_supported},
};

use super::features::{Feature, Lacking, Object};
use crate::{hooks::table::Mechanism, kernel::security::Lockdown};

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
        btf: bool,
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
        let fentry = reads.clone().and_then(|()| {
            if btf {
                Ok(())
            } else {
                Err("this kernel has no type information (BTF)".to_owned())
            }
        });
        let tracepoint = bpf.clone().and_then(|()| match tracefs {
            Err(_) if lockdown == Lockdown::Confidentiality => {
                Err("lockdown=confidentiality hides tracefs".to_owned())
            }
            other => other,
        });
        let btf_tracepoint = bpf.clone().and_then(|()| {
            if btf {
                Ok(())
            } else {
                Err("this kernel has no type information (BTF)".to_owned())
            }
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

/// The innermost reason of an error, which is what the kernel said.
pub fn cause(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}
