//! Tests: the plan for kernels that cannot be booted here, from excerpts of what they are.
//!
//! The excerpts (`tests/data/kernels`) name symbols, tracepoints, struct members and prototypes; a
//! small BTF file is built from them, so that what resolves is what would resolve there.

use std::{
    collections::{BTreeSet, HashMap},
    path::Path,
};

use super::{
    allowed::Allowed,
    layout::Sources,
    plan::{AttachMode, Facts, Plan, Struck, resolve, symbols_wanted, tracepoints_wanted},
    site::AllSites,
    table,
};
use crate::kernel::{
    btf::{
        KernelBtf,
        build::{Builder, STRUCT},
    },
    cgroupfs::Hierarchy,
    symbols::parse_kallsyms,
    tracefs::Format,
};

const FORWARD: u32 = 7;

/// A kernel as its excerpt has it.
struct Excerpt {
    kallsyms: String,
    events: Vec<(String, String)>,
    btf: KernelBtf,
}

/// Builds types by their C names; what is not described is only declared.
struct Types {
    builder: Builder,
    /// Id and bytes, by name.
    known: HashMap<String, (u32, u32)>,
}

impl Types {
    fn of(&mut self, name: &str) -> (u32, u32) {
        if let Some(found) = self.known.get(name) {
            return *found;
        }
        let made = match name.strip_suffix('*') {
            Some(target) => {
                let (target, _) = self.of(target.trim_end());
                (self.builder.pointer(target), 8)
            }
            None => match name.strip_prefix("struct ") {
                Some(tag) => (self.builder.raw(tag, FORWARD, 0, 0, &[]), 0),
                None => {
                    let bytes = match name {
                        "u8" | "char" => 1,
                        "u32" => 4,
                        _ => 8,
                    };
                    (self.builder.int(name, bytes, name.starts_with('s')), bytes)
                }
            },
        };
        self.known.insert(name.to_owned(), made);
        made
    }

    /// `name type, name type`, with the types resolved.
    fn list<'a>(&mut self, text: &'a str) -> Vec<(&'a str, u32, u32)> {
        text.split(", ")
            .map(|part| {
                let (name, of) = part.split_once(' ').expect("a name and a type");
                let (id, bytes) = self.of(of);
                (name, id, bytes)
            })
            .collect()
    }

    fn strukt(&mut self, name: &str, members: &str) {
        let mut end = 0_u32;
        let placed: Vec<_> = self
            .list(members)
            .into_iter()
            .map(|(member, id, bytes)| {
                let align = bytes.clamp(1, 8);
                let at = end.div_ceil(u32::max(align, 1)) * align;
                end = at + bytes;
                (member, id, at * 8)
            })
            .collect();
        let size = end.div_ceil(8) * 8;
        let id = self.builder.strukt(name, STRUCT, size, &placed);
        self.known.insert(format!("struct {name}"), (id, size));
    }
}

fn excerpt(text: &str) -> Excerpt {
    let mut types = Types {
        builder: Builder::new(),
        known: HashMap::new(),
    };
    let (mut kallsyms, mut events) = (String::new(), Vec::new());
    let int = types.of("int").0;
    for (number, line) in text.lines().enumerate() {
        let (word, rest) = line.split_once(' ').expect("every line has two words");
        let (name, list) = rest.split_once(": ").unwrap_or((rest, ""));
        match word {
            "#" => {}
            "event" => {
                let (category, name) = rest.split_once(':').expect("category:name");
                events.push((category.to_owned(), name.to_owned()));
            }
            "struct" => types.strukt(name, list),
            "enum" => {
                let items: Vec<_> = list
                    .split(", ")
                    .map(|item| {
                        let (name, value) = item.split_once(' ').expect("a name and a number");
                        (name, value.parse().expect("a number"))
                    })
                    .collect();
                types
                    .builder
                    .enumeration(name, crate::kernel::btf::build::ENUM, &items);
            }
            "fn" => {
                let params: Vec<_> = types
                    .list(list)
                    .into_iter()
                    .map(|it| (it.0, it.1))
                    .collect();
                types.builder.function(name, int, &params);
            }
            kind => {
                let address = 0xffff_ffff_8100_0000_u64 + number as u64 * 64;
                kallsyms.push_str(&format!("{address:x} {kind} {rest}\n"));
            }
        }
    }
    Excerpt {
        kallsyms,
        events,
        btf: KernelBtf::from_bytes(&types.builder.bytes(), Path::new("excerpt"))
            .expect("it is BTF"),
    }
}

/// What kernels of that age allow a program. No trampolines (fentry) before 5.5, whatever type
/// information is given; raw tracepoints since 4.17.
fn allowed(raw_tracepoints: bool) -> Allowed {
    let too_old = |what: &str| Err(format!("this kernel has no {what}"));
    Allowed {
        fentry: too_old("BPF trampolines"),
        btf_tracepoint: too_old("BPF trampolines"),
        raw_tracepoint: if raw_tracepoints {
            Ok(())
        } else {
            too_old("raw tracepoints")
        },
        ..Allowed::all()
    }
}

/// The plan where the kernel lets us do whatever it can: what counts is what it has.
fn plan(text: &str, allowed: &Allowed) -> Plan {
    let excerpt = excerpt(text);
    let wanted = symbols_wanted();
    let names: Vec<&str> = wanted.iter().map(String::as_str).collect();
    let symbols = parse_kallsyms(excerpt.kallsyms.as_bytes(), &names).expect("made above");
    let formats = tracepoints_wanted()
        .into_iter()
        .filter(|(category, name)| {
            excerpt
                .events
                .iter()
                .any(|event| event.0 == *category && event.1 == *name)
        })
        .map(|key| {
            let format = Format {
                name: key.1.to_owned(),
                id: 1,
                fields: Vec::new(),
            };
            (key, format)
        })
        .collect();
    let traceable: BTreeSet<String> = symbols.found.keys().cloned().collect();
    // An excerpt has no machine code to look for breakpoints' places in.
    let sites: AllSites = table::hooks()
        .map(|hook| (hook.symbol, Err("its code is not known".to_owned())))
        .collect();
    resolve(&Facts {
        sources: Sources {
            btf: Ok(&excerpt.btf),
            symbols: &symbols,
            formats: &formats,
            hierarchy: Hierarchy::V1,
        },
        allowed,
        traceable: Some(&traceable),
        attach: AttachMode::Auto,
        sites: &sites,
        struck: &Struck::new(),
        struck_why: &HashMap::new(),
    })
}

fn lines(plan: &Plan) -> String {
    plan.rows()
        .into_iter()
        .map(|row| {
            let on = row.symbol.as_deref().unwrap_or("-");
            let by = row.mechanism.unwrap_or("-");
            format!(
                "{} | {on} | {by} | {:?} | {}\n",
                row.role, row.status, row.why
            )
        })
        .collect()
}

#[test]
fn on_3_10_of_rhel_7_what_cannot_be_followed_is_said_to_be_missing() {
    let plan = plan(
        include_str!("../../tests/data/kernels/3.10-rhel7.txt"),
        &allowed(false),
    );
    insta::assert_snapshot!("3.10-rhel7", lines(&plan));
}

#[test]
fn on_4_4_charges_go_by_try_charge_and_kmem_limits_by_memcg_update_kmem_limit() {
    let plan = plan(
        include_str!("../../tests/data/kernels/4.4.txt"),
        &allowed(false),
    );
    insta::assert_snapshot!("4.4", lines(&plan));
    assert_eq!(plan.config.kernfs_node_id_mask, u64::from(u32::MAX));
    assert_eq!(plan.config.user_charge_memcg_is_out, 0);
}

#[test]
fn on_4_19_charges_go_by_try_charge_and_kmem_limits_by_memcg_update_kmem_max() {
    let plan = plan(
        include_str!("../../tests/data/kernels/4.19.txt"),
        &allowed(true),
    );
    insta::assert_snapshot!("4.19", lines(&plan));
    assert_eq!(plan.config.kernfs_node_id_mask, u64::from(u32::MAX));
}

#[test]
fn a_charge_function_that_hands_its_cgroup_out_is_known_by_its_pointer() {
    let rhel7 = excerpt(include_str!("../../tests/data/kernels/3.10-rhel7.txt"));
    let mut config = kmem_trace_ebpf::config::Config::UNSET;
    super::layout::user_charge(Ok(&rhel7.btf), "__mem_cgroup_try_charge", &mut config)
        .expect("all its arguments are known");
    assert_eq!(config.user_charge_memcg, 3);
    assert_eq!(config.user_charge_memcg_is_out, 1);
    assert_eq!((config.user_charge_mm, config.user_charge_gfp), (0, 1));
    assert_eq!((config.user_charge_pages, config.user_charge_args), (2, 5));
}
