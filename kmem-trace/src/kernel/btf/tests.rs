use std::path::Path;

use proptest::prelude::*;

use super::{build::*, *};

/// A kernel in miniature, in the shapes that the real one has.
fn kernel() -> Builder {
    let mut b = Builder::new();
    let int = b.int("int", 4, true);
    let ulong = b.int("long unsigned int", 8, false);
    let cgroup = b.strukt("cgroup", STRUCT, 8, &[("id", ulong, 0)]);
    let cgroup_ptr = b.pointer(cgroup);
    let css = b.strukt(
        "cgroup_subsys_state",
        STRUCT,
        16,
        &[("cgroup", cgroup_ptr, 0), ("flags", int, 64)],
    );
    let inner = b.strukt("", STRUCT, 16, &[("kmem", ulong, 0), ("tcpmem", ulong, 64)]);
    let either = b.strukt("", UNION, 16, &[("memsw", ulong, 0), ("", inner, 0)]);
    let array = b.raw("", ARRAY, 0, 0, &[ulong, int, 7]);
    let counter = b.strukt(
        "mem_cgroup",
        STRUCT | FLAG,
        104,
        &[
            ("css", css, 0),
            ("", either, 128),
            ("vmstats", array, 256),
            ("oom", int, (1 << 24) | 707),
        ],
    );
    let memcg_t = b.raw("memcg_t", TYPEDEF, 0, counter, &[]);
    let memcg_ptr = b.pointer(counter);
    let constant = b.raw("", CONST, 0, memcg_t, &[]);
    let constant_ptr = b.pointer(constant);
    b.enumeration(
        "memcg_stat_item",
        ENUM,
        &[("MEMCG_SOCK", 41), ("MEMCG_KMEM", 45)],
    );
    b.enumeration("", ENUM | FLAG, &[("RES_USAGE", 0), ("RES_NONE", -1)]);
    b.enumeration("one", ENUM, &[("TWICE", 1), ("BESIDE", 5)]);
    b.enumeration("two", ENUM, &[("TWICE", 2)]);
    b.function(
        "try_charge",
        int,
        &[("memcg", memcg_ptr), ("nr_pages", ulong)],
    );
    b.function("same", 0, &[("memcg", constant_ptr)]);
    b.function("same", 0, &[("memcg", constant_ptr)]);
    b.function("different", 0, &[("memcg", memcg_ptr)]);
    b.function("different", int, &[("n", int)]);
    b.function("printk", int, &[("fmt", constant_ptr), ("", 0)]);
    b.strukt("twin", STRUCT, 8, &[("a", ulong, 0), ("b", int, 0)]);
    b.strukt("twin", STRUCT, 16, &[("a", ulong, 64), ("c", int, 0)]);
    let itself = b.count() + 1;
    b.strukt("loop", STRUCT, 8, &[("", itself, 0)]);
    b
}

fn load(builder: &Builder) -> KernelBtf {
    KernelBtf::from_bytes(&builder.bytes(), Path::new("test.btf")).expect("valid BTF")
}

#[test]
fn members_of_embedded_and_anonymous_structs_are_found_at_their_byte() {
    let btf = load(&kernel());
    let cgroup = btf.member("mem_cgroup", "css.cgroup").expect("member");
    assert_eq!((cgroup.offset, cgroup.size), (0, 8));
    assert_eq!(cgroup.type_name, "struct cgroup *");
    let tcpmem = btf.member("mem_cgroup", "tcpmem").expect("member");
    assert_eq!((tcpmem.offset, tcpmem.size), (24, 8));
    assert_eq!(tcpmem.type_name, "long unsigned int");
    assert_eq!(
        btf.member("mem_cgroup", "css.flags")
            .expect("member")
            .offset,
        8
    );
    assert_eq!(btf.member("memcg_t", "kmem").expect("typedef").offset, 16);
}

#[test]
fn arrays_say_their_length_and_their_whole_size() {
    let member = load(&kernel())
        .member("mem_cgroup", "vmstats")
        .expect("member");
    assert_eq!(
        (member.offset, member.size, member.array_len),
        (32, 56, Some(7))
    );
    assert_eq!(member.type_name, "long unsigned int[7]");
}

#[test]
fn bit_fields_are_marked() {
    let member = load(&kernel()).member("mem_cgroup", "oom").expect("member");
    assert_eq!(member.offset, 88);
    assert_eq!(member.bits, Some(Bits { first: 3, width: 1 }));
}

#[test]
fn what_is_missing_is_named_in_the_error() {
    let btf = load(&kernel());
    let text = |error: BtfError| error.to_string();
    assert_eq!(
        btf.member("mem_cgroup", "swap").map_err(text),
        Err("struct mem_cgroup has no member swap in this kernel's BTF".to_owned())
    );
    assert_eq!(
        btf.member("mem_cgroup", "css.kn").map_err(text),
        Err("struct cgroup_subsys_state has no member kn in this kernel's BTF".to_owned())
    );
    assert_eq!(
        btf.member("nothing", "x").map_err(text),
        Err("there is no struct nothing in this kernel's BTF".to_owned())
    );
    assert_eq!(
        btf.function("gone").map_err(text),
        Err("function gone is not in this kernel's BTF".to_owned())
    );
    assert!(matches!(
        btf.member("mem_cgroup", "css.cgroup.id"),
        Err(BtfError::Missing { what }) if what.contains("struct cgroup *, not an embedded struct")
    ));
    for path in ["", ".", "css.", ".css"] {
        assert!(matches!(
            btf.member("mem_cgroup", path),
            Err(BtfError::Missing { .. })
        ));
    }
}

#[test]
fn namesake_structs_answer_only_what_they_agree_on() {
    let btf = load(&kernel());
    assert!(matches!(
        btf.member("twin", "a"),
        Err(BtfError::Ambiguous { .. })
    ));
    assert_eq!(btf.member("twin", "c").expect("only one has it").offset, 0);
    assert!(matches!(
        btf.size_of("twin"),
        Err(BtfError::Ambiguous { .. })
    ));
    assert_eq!(btf.size_of("mem_cgroup").expect("size"), 104);
}

#[test]
fn functions_of_one_name_count_as_one_only_if_their_prototypes_agree() {
    let btf = load(&kernel());
    let same = btf.function("same").expect("they agree");
    assert_eq!(same.params[0].type_name, "const memcg_t *");
    assert_eq!(
        (same.returns.type_name.as_str(), same.returns.size),
        ("void", 0)
    );
    assert!(matches!(
        btf.function("different"),
        Err(BtfError::Ambiguous { .. })
    ));
    assert!(btf.has_function("different") && !btf.has_function("mem_cgroup"));
    let charge = btf.function("try_charge").expect("function");
    assert_eq!(charge.position("nr_pages"), Some(1));
    assert_eq!((charge.params[1].size, charge.params[1].signed), (8, false));
    assert!(charge.returns.signed);
    assert_eq!(
        btf.function("printk").expect("function").params[1].name,
        "..."
    );
}

#[test]
fn enum_items_are_found_with_and_without_their_enum() {
    let btf = load(&kernel());
    assert_eq!(
        btf.enum_value(Some("memcg_stat_item"), "MEMCG_KMEM")
            .expect("item"),
        45
    );
    assert_eq!(btf.enum_value(None, "MEMCG_SOCK").expect("item"), 41);
    assert_eq!(btf.enum_value(None, "RES_NONE").expect("signed"), -1);
    assert!(matches!(
        btf.enum_value(None, "TWICE"),
        Err(BtfError::Ambiguous { .. })
    ));
    assert!(matches!(
        btf.enum_value(Some("one"), "X"),
        Err(BtfError::Missing { .. })
    ));
    assert!(matches!(
        btf.enum_value(None, "X"),
        Err(BtfError::Missing { .. })
    ));
}

#[test]
fn a_sibling_tells_which_of_two_enums_is_meant() {
    let btf = load(&kernel());
    assert_eq!(
        btf.enum_value_beside("TWICE", "BESIDE")
            .expect("in enum one"),
        1
    );
    assert!(matches!(
        btf.enum_value_beside("TWICE", "MEMCG_SOCK"),
        Err(BtfError::Missing { .. })
    ));
}

#[test]
fn a_struct_that_contains_itself_ends_in_an_answer() {
    assert!(load(&kernel()).member("loop", "x").is_err());
}

#[test]
fn files_that_are_no_btf_are_refused_with_their_path() {
    for bytes in [
        &b""[..],
        b"\x9f\xeb",
        b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
    ] {
        let error = KernelBtf::from_bytes(bytes, Path::new("some.btf")).err();
        assert!(error.is_some_and(|error| error.to_string().starts_with("some.btf: ")));
    }
    let error = KernelBtf::load(Path::new("/nowhere/vmlinux")).err();
    assert!(matches!(error, Some(BtfError::Read { .. })));
}

fn ask_everything(btf: &KernelBtf) {
    for name in [
        "mem_cgroup",
        "memcg_t",
        "twin",
        "loop",
        "one",
        "same",
        "try_charge",
        "",
    ] {
        for path in ["css.cgroup", "tcpmem", "a", "oom", "vmstats"] {
            let _ = btf.member(name, path);
        }
        let _ = btf.size_of(name);
        let _ = btf.function(name);
        let _ = btf.enum_value(Some(name), "TWICE");
    }
    let _ = btf.enum_value(None, "TWICE");
    let _ = btf.enum_value_beside("TWICE", "BESIDE");
}

proptest! {
    #[test]
    fn a_damaged_file_never_panics(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8), cut in any::<prop::sample::Index>()) {
        let mut bytes = kernel().bytes();
        for (at, value) in &changes {
            let at = at.index(bytes.len());
            bytes[at] = *value;
        }
        if changes.len() == 1 {
            bytes.truncate(cut.index(bytes.len()));
        }
        if let Ok(btf) = KernelBtf::from_bytes(&bytes, Path::new("x")) {
            ask_everything(&btf);
        }
    }
}
