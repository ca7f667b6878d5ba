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
use kmem_trace_ebpf::handed::{
    CLEAR, ELEMENTS_AT, GIVE_BACK, HANDED_OUT, MOST, MOST_BYTES, REQUEST_AT, Request,
};
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
    let mut found = Vec::with_capacity(count);
    let mut packet = [0_u8; ELEMENTS_AT + MOST_BYTES];
    let mut answer = packet;
    while found.len() < count {
        let here = (count - found.len()).min(at_once::<T>());
        let request = Request {
            what: array,
            first: u32::try_from(first + found.len())?,
            count: u32::try_from(here)?,
            copy: 0,
        };
        let len = ELEMENTS_AT + here * size_of::<T>();
        run(ebpf, request, &mut packet[..len], &mut answer[..len])
            .with_context(|| format!("{here} totals from {} on", request.first))?;
        found.extend(
            answer[ELEMENTS_AT..len]
                .chunks_exact(size_of::<T>())
                // SAFETY: so many bytes are there; a `Pod` has no invalid value.
                .map(|bytes| unsafe { bytes.as_ptr().cast::<T>().read_unaligned() }),
        );
    }
    Ok(found)
}

/// Clears the totals at a place, all copies of them, and gives the place back.
///
/// # Errors
/// Where the kernel does not run the program, or there is no such place.
pub fn give_back(ebpf: &Ebpf, place: usize, copies: usize) -> Result<()> {
    let place = u32::try_from(place)?;
    let mut packet = [0_u8; ELEMENTS_AT];
    let mut answer = packet;
    let mut ask = |what, copy: usize, count: usize| -> Result<()> {
        let request = Request {
            what,
            first: place,
            count: u32::try_from(count)?,
            copy: u32::try_from(copy)?,
        };
        run(ebpf, request, &mut packet, &mut answer)
            .with_context(|| format!("place {place} of the totals"))
    };
    for copy in (0..copies).step_by(MOST as usize) {
        ask(CLEAR, copy, (copies - copy).min(MOST as usize))?;
    }
    ask(GIVE_BACK, 0, 0)
}

/// Runs the program on a packet with the request put into it.
fn run(ebpf: &Ebpf, request: Request, packet: &mut [u8], answer: &mut [u8]) -> Result<()> {
    let Some(Program::SchedClassifier(program)) = ebpf.program(PROGRAM) else {
        bail!("the object has no program {PROGRAM}");
    };
    packet[REQUEST_AT..ELEMENTS_AT].copy_from_slice(request.as_bytes());
    let len = packet.len();
    let mut options = TestRunOptions::new();
    options.data_in = Some(packet);
    options.data_out = Some(answer);
    let result = program.test_run(options).map_err(|error| {
        anyhow!(
            "the kernel does not run the program that hands out the totals: {}",
            cause(&error)
        )
    })?;
    if result.return_value != HANDED_OUT || result.data_size_out as usize != len {
        bail!("the program that hands out the totals refused");
    }
    Ok(())
}
