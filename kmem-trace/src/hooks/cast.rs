//! Loads instead of calls: where the kernel has `bpf_rdonly_cast` (6.2 and later), a program may
//! read kernel memory by plain loads, which its fault handler watches over. A helper's call costs
//! several times as much, and a slab event reads a dozen words.
//!
//! The object has a call of no helper in the function's place ([`CAST_CALL`]), behind a constant that
//! is 0 by default. Whether the kernel takes it is found by trying.

use std::{borrow::Cow, path::Path};

use kmem_trace_ebpf::config::CAST_CALL;

use super::{bare, features::OBJECT};
use crate::kernel::btf::KernelBtf;

/// `BPF_JMP | BPF_CALL`.
const CALL: u8 = 0x85;
/// `BPF_PSEUDO_KFUNC_CALL`, in the upper half of an instruction's byte of registers.
const OF_KERNEL: u8 = 0x20;

/// Type ids of this kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cast {
    function: u32,
    /// A struct that begins with a `long`.
    pub words: u32,
}

/// The ids, where the kernel takes a program that uses them.
pub fn find(btf: &KernelBtf) -> Option<Cast> {
    // Ids of a file need not be the running kernel's.
    if btf.path() != Path::new(KernelBtf::VMLINUX) {
        return None;
    }
    let cast = Cast {
        function: btf.function_id("bpf_rdonly_cast")?,
        words: btf.struct_id("cpumask")?,
    };
    match bare::takes(&cast.trial()) {
        Ok(()) => Some(cast),
        Err(error) => {
            log::debug!("bpf_rdonly_cast: {error}");
            None
        }
    }
}

impl Cast {
    /// The instruction that stands for [`CAST_CALL`].
    fn call(self) -> [u8; 8] {
        instruction(CALL, OF_KERNEL, 0, self.function.cast_signed())
    }

    /// Reads one word and returns it.
    fn trial(self) -> Vec<u8> {
        [
            // r1 = 0; r2 = words
            instruction(0xb7, 1, 0, 0),
            instruction(0xb7, 2, 0, self.words.cast_signed()),
            self.call(),
            // r0 = *(u64 *)(r0 + 0); r0 = 0; exit
            instruction(0x79, 0, 0, 0),
            instruction(0xb7, 0, 0, 0),
            instruction(0x95, 0, 0, 0),
        ]
        .concat()
    }
}

fn instruction(code: u8, registers: u8, offset: i16, immediate: i32) -> [u8; 8] {
    let [low, high] = offset.to_le_bytes();
    let [a, b, c, d] = immediate.to_le_bytes();
    [code, registers, low, high, a, b, c, d]
}

/// The object for this kernel.
pub fn object(cast: Option<Cast>) -> Cow<'static, [u8]> {
    let Some(cast) = cast else {
        return Cow::Borrowed(OBJECT);
    };
    let mut object = OBJECT.to_vec();
    let stand_in = instruction(CALL, 0, 0, CAST_CALL);
    // Instructions lie at multiples of eight in sections that do.
    for place in object.chunks_exact_mut(8) {
        if place == stand_in {
            place.copy_from_slice(&cast.call());
        }
    }
    Cow::Owned(object)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_object_has_calls_to_put_the_kernels_function_into() {
        let cast = Cast {
            function: 0x0001_2345,
            words: 7,
        };
        let count =
            |object: &[u8], wanted: [u8; 8]| object.windows(8).filter(|at| *at == wanted).count();
        let stand_in = instruction(CALL, 0, 0, CAST_CALL);
        let found = count(OBJECT, stand_in);
        assert!(found > 0);
        let made = object(Some(cast));
        assert_eq!(count(&made, stand_in), 0);
        assert_eq!(count(&made, [0x85, 0x20, 0, 0, 0x45, 0x23, 1, 0]), found);
        assert_eq!(object(None), OBJECT);
    }
}
