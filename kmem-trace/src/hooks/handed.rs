//! Elements of the totals' arrays where the kernel maps no arrays: handed out by a program that is
//! run on request.
//!
//! A look-up by system call would keep the kernel from running kprobe programs on its CPU meanwhile
//! (`bpf_prog_active`); a run on request does not.

use anyhow::{Context as _, Result, anyhow, bail};
use aya::{
    Ebpf, Pod, TestRun as _, TestRunOptions,
    programs::{Program, SchedClassifier},
};
use kmem_trace_ebpf::handed::{ELEMENTS_AT, HANDED_OUT, MOST, MOST_BYTES, REQUEST_AT, Request};
use zerocopy::IntoBytes as _;

use super::allowed::cause;

const PROGRAM: &str = "sc_hand_out";

/// Loads the program.
///
/// # Errors
/// Where the kernel does not take it.
pub fn load(ebpf: &mut Ebpf) -> Result<()> {
    let program: &mut SchedClassifier = ebpf
        .program_mut(PROGRAM)
        .with_context(|| format!("the object has no program {PROGRAM}"))?
        .try_into()?;
    program.load().map_err(|error| {
        anyhow!(
            "the kernel did not take the program that hands out the totals: {}",
            cause(&error)
        )
    })
}

/// Elements of `T` that come in one run.
pub fn at_once<T>() -> usize {
    (MOST_BYTES / size_of::<T>()).min(MOST as usize)
}

/// The `count` elements from `first` on of one of the arrays that `handed` names.
///
/// # Errors
/// Where the kernel does not run the program, or the array has not so many.
pub fn elements<T: Pod>(ebpf: &Ebpf, array: u32, first: usize, count: usize) -> Result<Vec<T>> {
    let Some(Program::SchedClassifier(program)) = ebpf.program(PROGRAM) else {
        bail!("the object has no program {PROGRAM}");
    };
    let mut found = Vec::with_capacity(count);
    let mut packet = [0_u8; ELEMENTS_AT + MOST_BYTES];
    let mut answer = packet;
    while found.len() < count {
        let here = (count - found.len()).min(at_once::<T>());
        let request = Request {
            array,
            first: u32::try_from(first + found.len())?,
            count: u32::try_from(here)?,
            reserved: 0,
        };
        packet[REQUEST_AT..ELEMENTS_AT].copy_from_slice(request.as_bytes());
        let len = ELEMENTS_AT + here * size_of::<T>();
        let mut options = TestRunOptions::new();
        options.data_in = Some(&packet[..len]);
        options.data_out = Some(&mut answer[..len]);
        let result = program.test_run(options).map_err(|error| {
            anyhow!(
                "the kernel does not run the program that hands out the totals: {}",
                cause(&error)
            )
        })?;
        if result.return_value != HANDED_OUT || result.data_size_out as usize != len {
            bail!(
                "{here} totals from {} on were not handed out",
                request.first
            );
        }
        found.extend(
            answer[ELEMENTS_AT..len]
                .chunks_exact(size_of::<T>())
                // SAFETY: so many bytes are there; a `Pod` has no invalid value.
                .map(|bytes| unsafe { bytes.as_ptr().cast::<T>().read_unaligned() }),
        );
    }
    Ok(found)
}
