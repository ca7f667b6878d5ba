//! Code of Debian's kernels as `/proc/kcore` shows it, and what is found in it.

use std::collections::BTreeSet;

use super::{Sites, find};

fn bytes(hex: &str) -> Vec<u8> {
    hex.as_bytes()
        .chunks(2)
        .map(|pair| {
            let digits = std::str::from_utf8(pair).expect("digits");
            u8::from_str_radix(digits, 16).expect("hexadecimal")
        })
        .collect()
}

fn sites(code: &[u8], arguments: u32) -> Result<Sites, String> {
    find(code, 0xffff_ffff_8100_0000, arguments, &BTreeSet::new())
}

/// page_counter_charge of Linux 5.10.
const CHARGE_5_10: &str = "66666666904885ff744041544989f455534889fb4c89e0f0480fc103498d2c044889df4889eee815ffffff48\
         8b43604839c5760448896b60488b5b284885db75d35b5d415cc3ccccccccc3cccccccc90";
/// page_counter_uncharge of Linux 5.10.
const UNCHARGE_5_10: &str = "666666669041554989f5415449f7dd55534885ff742e4889fd4989f44c89e8f0480fc145004c29e04889ef48\
         89c34889c6e8fafdffff4885db7814488b6d284885ed75d85b5d415c415dc3cccccccc0f0bebe866662e0f1f\
         8400000000006690";
/// page_counter_try_charge of Linux 5.10.
const TRY_CHARGE_5_10: &str = "66666666904885ff0f849a00000041564989d641554989fd41544989f455534889fbeb214889ee4889dfe8c1\
         feffff488b43604839c5760448896b60488b5b284885db74514c89e6f0480fc133498d2c3448396b2073cdf0\
         4c29234889ee4889dfe88afeffff488343680149891e4939dd74144c89ef4c89e6e8f2feffff4d8b6d284d39\
         2e75ec5b31c05d415c415d415ec3cccccccc5bb8010000005d415c415d415ec3ccccccccb801000000c3cccc\
         cccc66662e0f1f8400000000000f1f00";
/// page_counter_charge of Linux 6.1.
const CHARGE_6_1: &str = "0f1f4400004885ff744341544989f455534889fb4c89e0f0480fc103498d2c044889df4889eee8f5feffff48\
         8b43704839e8730448896b70488b9ba00000004885db75d05b5d415cc3ccccccccc3cccccccc66662e0f1f84\
         00000000000f1f00";
/// page_counter_uncharge of Linux 6.1.
const UNCHARGE_6_1: &str = "0f1f44000041544989f45549f7dc534885ff74274889fb4889f54c89e6f0480fc1334829ee781d4889dfe8e1\
         fdffff488b9ba00000004885db75df5b5d415cc3cccccccc803d31078c010075184889ea48c7c720a7f7b7c6\
         051e078c0101e83db2d5ff0f0b48c7030000000031f6ebb7";
/// page_counter_try_charge of Linux 6.1.
const TRY_CHARGE_6_1: &str = "0f1f4400004885ff0f849800000041564989d641554989fd41544989f455534889fbeb244889ee4889dfe891\
         feffff488b43704839e8730448896b70488b9ba00000004885db744c4c89e0f0480fc103498d2c044839ab98\
         00000073c7f04c2923488343780149891e4939dd74174c89ef4c89e6e8c7feffff4d8bada00000004d392e75\
         e95b31c05d415c415d415ec3cccccccc5bb8010000005d415c415d415ec3ccccccccb801000000c3cccccccc";
/// page_counter_charge of Linux 6.12.
const CHARGE_6_12: &str = "660f1f000f1f440000415541545553440fb6afc00000004885ff744c4889fb4989f4eb26488b43784839e873\
         1148896b78488b43704839e8730448896b70488b9be80000004885db741e4c89e0f0480fc103498d2c044584\
         ed74c94889ee4889dfe89afeffffebbc5b5d415c415dc3cccccccc66662e0f1f8400000000006690";
/// page_counter_uncharge of Linux 6.12.
const UNCHARGE_6_12: &str = "660f1f000f1f44000041544989f45549f7dc534885ff743e4889fb4889f5eb0c488b9be80000004885db742a\
         4c89e6f0480fc1334829ee782680bbc00000000074de4889dfe846fdffff488b9be80000004885db75d65b5d\
         415cc3cccccccc803da55da10100740b48c7030000000031f6ebc64889ea48c7c79098378ec605875da10101\
         e8f7e3caff0f0bebdb0f1f00";
/// page_counter_try_charge of Linux 6.12.
const TRY_CHARGE_6_12: &str = "660f1f000f1f44000041574156415541545553440fb6bfc00000004885ff745b4989fd4989f44989d64889fb\
         eb26488b43784839e8731148896b78488b43704839e8730448896b70488b9be80000004885db74274c89e0f0\
         480fc103498d2c044839abe000000072264584ff74c04889ee4889dfe8f7fdffffebb35bb8010000005d415c\
         415d415e415fc3ccccccccf04c2923488383800000000149891e4939dd74174c89ef4c89e6e852feffff4d8b\
         ade80000004d392e75e95b31c05d415c415d415e415fc3cccccccc0f1f440000";
/// page_counter_charge of Linux 7.3.
const CHARGE_7_3: &str = "0f1f40d60f1f440000415541545553440fb6af800000004885ff744c4889fb4989f4eb26488b43784839e873\
         1148896b78488b43704839e8730448896b70488b9ba80000004885db741e4c89e0f0480fc103498d2c044584\
         ed74c94889ee4889dfe8aafeffffebbc5b5d415c415dc3cccccccc66662e0f1f8400000000006690";
/// page_counter_uncharge of Linux 7.3.
const UNCHARGE_7_3: &str = "0f1f40d60f1f44000041544989f45549f7dc534885ff743e4889fb4889f5eb0c488b9ba80000004885db742a\
         4c89e6f0480fc1334829ee782680bb800000000074de4889dfe8f6fcffff488b9ba80000004885db75d65b5d\
         415cc3cccccccc488d3dca6ade014889ea67480fb93a31f648c70300000000ebc00f1f8000000000";
/// page_counter_try_charge of Linux 7.3.
const TRY_CHARGE_7_3: &str = "0f1f40d60f1f440000415741564155415455534883ec080fb68781000000440fb6b780000000884424074885\
         ff745b4989fc4989f74989d54889fbeb26488b43784839e8731148896b78488b43704839e8730448896b7048\
         8b9ba80000004885db74274c89f8f0480fc103498d2c074839aba0000000722a4584f674c04889ee4889dfe8\
         f8fdffffebb34883c408b8010000005b5d415c415d415e415fc3ccccccccf04c293b807c2407007405488343\
         08014c89fd49895d0048f7dd4939dc7510eb3d4d8ba424a80000004d396500742f4889eef0490fc134244c29\
         fe78364180bc24800000000074d94c89e7e88efdffff4d8ba424a80000004d39650075d14883c40831c05b5d\
         415c415d415e415fc3cccccccc488d3d446bde014c89fa67480fb93a31f649c7042400000000ebaf";
fn found(hex: &str) -> (u64, u32, Vec<u64>) {
    let sites = sites(&bytes(hex), 2).expect("there are sites");
    (sites.entry, sites.depth, sites.returns.expect("it returns"))
}

/// As `objdump -d` shows the same code: the instruction that is less than five bytes before the
/// first branch, the pushes before it, and every `ret`.
#[test]
fn real_functions_are_probed_before_their_first_branch() {
    assert_eq!(found(CHARGE_5_10), (0x5, 0, vec![0x45, 0x4a]));
    assert_eq!(found(UNCHARGE_5_10), (0x10, 24, vec![0x4a]));
    assert_eq!(found(TRY_CHARGE_5_10), (0x5, 0, vec![0x91, 0xa3, 0xad]));
    assert_eq!(found(CHARGE_6_1), (0x5, 0, vec![0x48, 0x4d]));
    assert_eq!(found(UNCHARGE_6_1), (0xe, 16, vec![0x3f]));
    assert_eq!(found(TRY_CHARGE_6_1), (0x5, 0, vec![0x8f, 0xa1, 0xab]));
    assert_eq!(found(CHARGE_6_12), (0x17, 32, vec![0x6e]));
    assert_eq!(found(UNCHARGE_6_12), (0x12, 16, vec![0x5a]));
    assert_eq!(found(TRY_CHARGE_6_12), (0x1b, 48, vec![0x8a, 0xc6]));
    assert_eq!(found(CHARGE_7_3), (0x17, 32, vec![0x6e]));
    assert_eq!(found(UNCHARGE_7_3), (0x12, 16, vec![0x5a]));
    assert_eq!(found(TRY_CHARGE_7_3), (0x2a, 56, vec![0x9d, 0x110]));
}

/// A breakpoint replaces the first byte of an instruction; a second tracer finds it there.
#[test]
fn another_tracers_breakpoints_are_good_places_too() {
    for hex in [TRY_CHARGE_6_1, TRY_CHARGE_6_12, TRY_CHARGE_7_3] {
        let clean = found(hex);
        let mut code = bytes(hex);
        code[clean.0 as usize] = 0xcc;
        for place in &clean.2 {
            code[*place as usize] = 0xcc;
        }
        let sites = sites(&code, 2).expect("there are sites");
        assert_eq!((sites.entry, sites.depth), (clean.0, clean.1));
        let returns = sites.returns.expect("it returns");
        for place in &clean.2 {
            assert!(returns.contains(place), "{place:#x} is not in {returns:x?}");
        }
    }
}

#[test]
fn a_function_that_ftrace_calls_from_has_the_same_places() {
    let mut code = bytes(TRY_CHARGE_6_12);
    code[4..9].copy_from_slice(&[0xe8, 0x10, 0x20, 0x30, 0x00]);
    let sites = sites(&code, 2).expect("there are sites");
    assert_eq!((sites.entry, sites.depth), (0x1b, 48));
}

#[test]
fn a_jump_to_a_return_thunk_is_a_return() {
    // test rdi, rdi; je +1; nop; xor eax, eax; jmp thunk
    let code = bytes("4885ff74019031c0e9f30f0000cccccc");
    let base = 0xffff_ffff_8100_0000;
    let thunk = base + 0x1000;
    let with = find(&code, base, 2, &BTreeSet::from([thunk])).expect("there are sites");
    assert_eq!(with.returns, Ok(vec![8]));
    let without = find(&code, base, 2, &BTreeSet::new()).expect("there is an entry");
    assert_eq!(
        without.returns,
        Err("it ends in a jump to elsewhere".to_owned())
    );
}

#[test]
fn what_cannot_be_probed_says_why() {
    // mov rdi, rsi; nops; ret
    let overwritten = bytes("4889f790909090909090c3cccccc");
    assert_eq!(
        sites(&overwritten, 2),
        Err("its arguments are gone before a place where a probe stays".to_owned())
    );
    let straight = bytes("909090909090909090909090c3");
    assert_eq!(
        sites(&straight, 2),
        Err("no place where a probe stays".to_owned())
    );
    // nop; test rdi, rdi; jne back to the nop; ret
    let looping = bytes("904885ff75fac3");
    assert_eq!(
        sites(&looping, 2),
        Err("its beginning is a loop".to_owned())
    );
    assert!(sites(&[], 2).is_err());
}
