//! What newer kernels have that the programs and their maps do without where they must, and the
//! object with the programs that fit.

use std::{borrow::Cow, collections::HashSet, io, sync::LazyLock};

use aya::{
    maps::MapType,
    programs::ProgramType,
    sys::{BpfHelper, is_helper_supported, is_map_supported},
};
use object::{Object as _, ObjectSymbol as _, SymbolKind};

use super::{
    bare,
    cast::{self, Cast},
};
use crate::kernel::security::Lockdown;

/// The compiled programs, built by `cargo xtask bpf`.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!("../bpf/kmem-trace.bpf.o");
/// Those that need no [`Feature`], built from the same sources.
pub static OLD_OBJECT: &[u8] = aya::include_bytes_aligned!("../bpf/kmem-trace-old.bpf.o");

/// Something that kernels before 5.8 lack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, clap::ValueEnum)]
pub enum Feature {
    /// One ring for the records of all CPUs.
    RingBuffer,
    /// Arrays that userspace maps.
    MappedArrays,
    /// A helper for kernel memory alone.
    KernelReads,
    /// Programs of raw tracepoints run on request.
    RunOnRequest,
}

impl Feature {
    /// As the doctor calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::RingBuffer => "BPF ring buffer",
            Self::MappedArrays => "mapped BPF arrays",
            Self::KernelReads => "bpf_probe_read_kernel",
            Self::RunOnRequest => "raw tracepoints on request",
        }
    }

    /// What is done where it is absent.
    pub fn instead(self) -> &'static str {
        match self {
            Self::RingBuffer => {
                "absent (Linux 5.8 was the first): records come through a perf buffer for each CPU"
            }
            Self::MappedArrays => {
                "absent (Linux 5.5 was the first): a program run on request hands the totals out"
            }
            Self::KernelReads => {
                "absent (Linux 5.5 was the first): programs read kernel memory by bpf_probe_read"
            }
            Self::RunOnRequest => {
                "absent (Linux 5.10 was the first): offsets are taken from type information unchecked, explain cannot read v1's counters, and places of removed cgroups are used again only where a program hands the totals out"
            }
        }
    }
}

/// All of them.
pub const FEATURES: [Feature; 4] = [
    Feature::RingBuffer,
    Feature::MappedArrays,
    Feature::KernelReads,
    Feature::RunOnRequest,
];

/// Which of them a kernel lacks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lacking(Vec<Feature>);

impl Lacking {
    /// Asks the kernel, which is taken to have nothing that is `forbidden`.
    pub fn probe(lockdown: Lockdown, forbidden: &[Feature]) -> Self {
        let absent = |feature: &Feature| {
            forbidden.contains(feature)
                || match feature {
                    Feature::RingBuffer => matches!(is_map_supported(MapType::RingBuf), Ok(false)),
                    Feature::MappedArrays => !maps_arrays(),
                    Feature::KernelReads => lacks_kernel_reads(lockdown),
                    Feature::RunOnRequest => lacks_runs_on_request(),
                }
        };
        Self(FEATURES.into_iter().filter(absent).collect())
    }

    pub fn lacks(&self, feature: Feature) -> bool {
        self.0.contains(&feature)
    }

    /// The object whose programs and maps this kernel takes.
    pub fn object(&self) -> Object {
        let newest = |feature: &Feature| *feature == Feature::RunOnRequest;
        if self.0.iter().all(newest) {
            Object::Newest
        } else {
            Object::Old
        }
    }

    /// Why programs are of the old object; empty where they are not.
    pub fn why_old(&self) -> String {
        let names: Vec<&str> = self
            .0
            .iter()
            .filter(|feature| **feature != Feature::RunOnRequest)
            .map(|feature| feature.name())
            .collect();
        names.join(", ")
    }
}

/// One of the two objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Object {
    Newest,
    Old,
}

impl Object {
    pub fn bytes(self, cast: Option<Cast>) -> Cow<'static, [u8]> {
        match self {
            Self::Newest => cast::object(cast),
            Self::Old => Cow::Borrowed(OLD_OBJECT),
        }
    }

    /// Whether a program is in it.
    pub fn has(self, program: &str) -> bool {
        static NEWEST: LazyLock<HashSet<String>> = LazyLock::new(|| functions(OBJECT));
        static OLD: LazyLock<HashSet<String>> = LazyLock::new(|| functions(OLD_OBJECT));
        match self {
            Self::Newest => NEWEST.contains(program),
            Self::Old => OLD.contains(program),
        }
    }
}

fn functions(object: &[u8]) -> HashSet<String> {
    let Ok(file) = object::File::parse(object) else {
        return HashSet::new();
    };
    file.symbols()
        .filter(|symbol| symbol.kind() == SymbolKind::Text && symbol.is_global())
        .filter_map(|symbol| symbol.name().ok().map(str::to_owned))
        .collect()
}

/// A refusal for any other reason would come back when the maps are made.
fn maps_arrays() -> bool {
    match bare::make_mapped_array() {
        Ok(()) => true,
        Err(error) => error.kind() != io::ErrorKind::InvalidInput,
    }
}

/// Where neither helper is offered, reads are what the kernel refuses, not this one helper.
fn lacks_kernel_reads(lockdown: Lockdown) -> bool {
    let offers = |helper| is_helper_supported(ProgramType::RawTracePoint, helper);
    lockdown != Lockdown::Confidentiality
        && matches!(offers(BpfHelper::BPF_FUNC_probe_read_kernel), Ok(false))
        && matches!(offers(BpfHelper::BPF_FUNC_probe_read), Ok(true))
}

/// `ENOTSUPP`, the kernel's own, which no library names.
const NOT_SUPPORTED: i32 = 524;

/// A refusal for any other reason is not of this alone (`bpf_prog_test_run`, kernel/bpf/syscall.c).
fn lacks_runs_on_request() -> bool {
    matches!(bare::runs(&bare::NOTHING), Err(error) if error.raw_os_error() == Some(NOT_SUPPORTED))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hooks::table;

    #[test]
    fn any_of_what_maps_and_records_need_calls_for_the_old_object() {
        for feature in FEATURES {
            let expected = if feature == Feature::RunOnRequest {
                Object::Newest
            } else {
                Object::Old
            };
            assert_eq!(Lacking(vec![feature]).object(), expected, "{feature:?}");
        }
        assert_eq!(Lacking::default().object(), Object::Newest);
    }

    #[test]
    fn every_program_of_the_old_object_is_in_the_other_too_but_what_hands_totals_out() {
        let only_old: Vec<String> = functions(OLD_OBJECT)
            .into_iter()
            .filter(|program| !Object::Newest.has(program))
            .collect();
        assert_eq!(only_old, ["sc_hand_out"]);
    }

    #[test]
    fn the_old_object_has_every_kprobe_of_the_table_and_no_trampoline() {
        for hook in table::hooks() {
            let expected = match hook.place {
                table::Place::Kprobe
                | table::Place::Kretprobe
                | table::Place::Inside { .. }
                | table::Place::Returns => true,
                table::Place::Tracepoint(category) => category != "kmem",
                _ => false,
            };
            assert_eq!(Object::Old.has(hook.program), expected, "{}", hook.program);
        }
    }
}
