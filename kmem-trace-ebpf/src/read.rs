//! The one way to read: kernel memory, constants of the kernel, and the context of a program.

use core::{arch::asm, ffi::c_void};

use aya_ebpf::bindings::pt_regs;
#[cfg(feature = "old")]
use aya_ebpf::helpers::generated::bpf_probe_read as read_bytes;
#[cfg(not(feature = "old"))]
use aya_ebpf::helpers::generated::bpf_probe_read_kernel as read_bytes;
/// The helper that reads kernel memory; before 5.5 there is one for all memory.
#[cfg(feature = "old")]
pub use aya_ebpf::helpers::{
    bpf_probe_read as read_kernel, generated::bpf_probe_read_str as read_kernel_str,
};
#[cfg(not(feature = "old"))]
pub use aya_ebpf::helpers::{
    bpf_probe_read_kernel as read_kernel, generated::bpf_probe_read_kernel_str as read_kernel_str,
};
use kmem_trace_ebpf::config::{ABSENT, Config};

/// Filled in by userspace before loading; volatile reads keep the compiler from folding the
/// values it has at compile time.
///
/// Before 5.5 the verifier does not look into read-only data. The object for such kernels keeps this
/// where no verifier looks, so that one that accepts it on a newer kernel was not helped.
#[cfg_attr(feature = "old", unsafe(link_section = ".data"))]
#[unsafe(no_mangle)]
pub static CONFIG: Config = Config::UNSET;

/// A field of [`CONFIG`] as userspace set it.
macro_rules! config {
    ($($field:tt)+) => {{
        #[allow(unused_unsafe)] // it stands inside unsafe blocks too
        let value = unsafe { core::ptr::read_volatile(&raw const $crate::read::CONFIG.$($field)+) };
        value
    }};
}
pub(crate) use config;

/// Whether slab is attributed, for which objects have to be read.
#[cfg(not(feature = "old"))]
#[inline(always)]
pub fn attributes() -> bool {
    config!(attribute_slab) == 1 && config!(can_read) == 1
}

/// Reads the member at `offset` of the kernel object at `base`. `None` where this kernel has no
/// such member or the address cannot be read.
#[inline(always)]
pub fn member<T>(base: u64, offset: u32) -> Option<T> {
    if base == 0 || offset == ABSENT {
        return None;
    }
    let address = base.wrapping_add(u64::from(offset)) as *const T;
    unsafe { read_kernel(address) }.ok()
}

/// Eight bytes of kernel memory, 0 where they cannot be read, and 1 where that is so. Nothing branches
/// on it: in a loop, or on the way to one, each branch would double what the verifier has to walk.
#[inline(always)]
pub fn word_at(address: u64) -> (u64, u64) {
    let mut value = 0u64;
    let result = unsafe { read_bytes((&raw mut value).cast(), 8, address as *const c_void) };
    // Below zero: the top bit.
    (value, (result as u64) >> 63)
}

/// The same value, of which the verifier does not know that it is a pointer: no global function
/// takes one. Where it is on the stack, it is read as any kernel memory is.
#[inline(always)]
pub fn number(pointer: u64) -> u64 {
    word_at(&raw const pointer as u64).0
}

/// A function of the kernel (`bpf_rdonly_cast`) by a number that no helper has: userspace puts the
/// call of the function in its place before loading (`hooks/cast`). Dead code where it did not.
const CAST: i32 = kmem_trace_ebpf::config::CAST_CALL;

/// As [`member`], of eight bytes, 0 where that is absent or cannot be read. Where the kernel has
/// `bpf_rdonly_cast` this is a load, checked by the kernel's fault handler, and no call.
#[inline(always)]
pub fn peek(base: u64, offset: u32) -> u64 {
    if offset == ABSENT {
        return 0;
    }
    let words = config!(cast_to);
    if words == 0 {
        return member(base, offset).unwrap_or(0);
    }
    let value: u64;
    unsafe {
        asm!(
            "call {cast}",
            "r0 = *(u64*)(r0 + 0)",
            cast = const CAST,
            inlateout("r1") base.wrapping_add(u64::from(offset)) => _,
            inlateout("r2") u64::from(words) => _,
            lateout("r0") value,
            lateout("r3") _,
            lateout("r4") _,
            lateout("r5") _,
        );
    }
    value
}

/// As [`peek`], of four bytes.
#[inline(always)]
pub fn peek_half(base: u64, offset: u32) -> u32 {
    if offset == ABSENT {
        return 0;
    }
    let words = config!(cast_to);
    if words == 0 {
        return member(base, offset).unwrap_or(0);
    }
    let value: u64;
    unsafe {
        asm!(
            "call {cast}",
            "r0 = *(u32*)(r0 + 0)",
            cast = const CAST,
            inlateout("r1") base.wrapping_add(u64::from(offset)) => _,
            inlateout("r2") u64::from(words) => _,
            lateout("r0") value,
            lateout("r3") _,
            lateout("r4") _,
            lateout("r5") _,
        );
    }
    value as u32
}

/// The `N`th 8-byte word of a program's context. In assembly, because the verifier takes loads
/// from a context at fixed offsets only and the compiler would merge them into one computed one.
#[inline(always)]
fn word<const BYTES: i32>(context: *const u8) -> u64 {
    let value: u64;
    unsafe {
        asm!(
            "{value} = *(u64*)({context} + {offset})",
            value = out(reg) value,
            context = in(reg) context,
            offset = const BYTES,
            options(nostack, readonly),
        );
    }
    value
}

/// The 4-byte word at `BYTES` of a program's context.
#[inline(always)]
fn half<const BYTES: i32>(context: *const u8) -> u32 {
    let value: u64;
    unsafe {
        asm!(
            "{value} = *(u32*)({context} + {offset})",
            value = out(reg) value,
            context = in(reg) context,
            offset = const BYTES,
            options(nostack, readonly),
        );
    }
    value as u32
}

/// Argument `n` of a fentry, fexit or raw tracepoint program.
#[inline(always)]
pub fn argument(context: *const u8, n: u32) -> u64 {
    match n {
        0 => word::<0>(context),
        1 => word::<8>(context),
        2 => word::<16>(context),
        3 => word::<24>(context),
        4 => word::<32>(context),
        5 => word::<40>(context),
        6 => word::<48>(context),
        _ => 0,
    }
}

/// Argument `n` of a kprobe program: the System V calling convention.
#[inline(always)]
pub fn register_argument(regs: *const pt_regs, n: u32) -> u64 {
    let context: *const u8 = regs.cast();
    match n {
        0 => word::<{ core::mem::offset_of!(pt_regs, rdi) as i32 }>(context),
        1 => word::<{ core::mem::offset_of!(pt_regs, rsi) as i32 }>(context),
        2 => word::<{ core::mem::offset_of!(pt_regs, rdx) as i32 }>(context),
        3 => word::<{ core::mem::offset_of!(pt_regs, rcx) as i32 }>(context),
        4 => word::<{ core::mem::offset_of!(pt_regs, r8) as i32 }>(context),
        5 => word::<{ core::mem::offset_of!(pt_regs, r9) as i32 }>(context),
        _ => 0,
    }
}

/// What the probed function returned (kretprobe).
#[inline(always)]
pub fn returned(regs: *const pt_regs) -> u64 {
    word::<{ core::mem::offset_of!(pt_regs, rax) as i32 }>(regs.cast())
}

/// The stack pointer of the probed function.
#[inline(always)]
pub fn stack_pointer(regs: *const pt_regs) -> u64 {
    word::<{ core::mem::offset_of!(pt_regs, rsp) as i32 }>(regs.cast())
}

/// An 8-byte field of a tracepoint's record, at an offset that its `format` file gave.
///
/// Where the verifier does not know the offset, it takes every load of the other variant to be
/// possible, some of them beyond the record's end (EACCES on attaching).
#[cfg(feature = "old")]
#[inline(always)]
pub fn field_u64(context: *const u8, offset: u32) -> u64 {
    member(context as u64, offset).unwrap_or(0)
}

/// A 4-byte field of a tracepoint's record.
#[cfg(feature = "old")]
#[inline(always)]
pub fn field_u32(context: *const u8, offset: u32) -> u32 {
    member(context as u64, offset).unwrap_or(0)
}

/// An 8-byte field of a tracepoint's record, at an offset that its `format` file gave.
#[cfg(not(feature = "old"))]
#[inline(always)]
pub fn field_u64(context: *const u8, offset: u32) -> u64 {
    match offset {
        8 => word::<8>(context),
        16 => word::<16>(context),
        24 => word::<24>(context),
        32 => word::<32>(context),
        40 => word::<40>(context),
        48 => word::<48>(context),
        56 => word::<56>(context),
        64 => word::<64>(context),
        _ => 0,
    }
}

/// A 4-byte field of a tracepoint's record.
#[cfg(not(feature = "old"))]
#[inline(always)]
pub fn field_u32(context: *const u8, offset: u32) -> u32 {
    match offset {
        8 => half::<8>(context),
        12 => half::<12>(context),
        16 => half::<16>(context),
        20 => half::<20>(context),
        24 => half::<24>(context),
        28 => half::<28>(context),
        32 => half::<32>(context),
        36 => half::<36>(context),
        40 => half::<40>(context),
        44 => half::<44>(context),
        48 => half::<48>(context),
        52 => half::<52>(context),
        56 => half::<56>(context),
        60 => half::<60>(context),
        _ => 0,
    }
}

/// Follows the pointer at `offset` of an object that the verifier knows by its type: an argument
/// of a BTF tracepoint, or what such a load gave. No helper is called, and the verifier checks the
/// offset against the type, so this works where lockdown forbids `bpf_probe_read_kernel`.
#[inline(always)]
pub fn typed<T: Copy>(object: *const u8, offset: u32) -> T {
    unsafe { core::ptr::read_volatile(object.wrapping_add(offset as usize).cast::<T>()) }
}
