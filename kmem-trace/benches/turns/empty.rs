//! The emptiest program there is, on a raw tracepoint: what any program on that hook costs.

use std::{
    ffi::CString,
    io,
    os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd},
};

use anyhow::{Context as _, Result};
use aya_obj::generated::{bpf_attr, bpf_cmd, bpf_prog_type};
use kmem_trace::hooks::stats;

/// `r0 = 0; exit`, as the kernel encodes instructions.
const NOTHING: [u64; 2] = [0xb7, 0x95];

pub struct Empty {
    program: OwnedFd,
    /// Attached while this is open.
    _link: OwnedFd,
}

impl Empty {
    pub fn attach(tracepoint: &str) -> Result<Self> {
        // SAFETY: plain data for which zero is a value.
        let mut attr: bpf_attr = unsafe { std::mem::zeroed() };
        let license = c"GPL";
        // SAFETY: the members of the load command, all of them plain numbers.
        let load = unsafe { &mut attr.__bindgen_anon_3 };
        load.prog_type = bpf_prog_type::BPF_PROG_TYPE_RAW_TRACEPOINT as u32;
        load.insns = NOTHING.as_ptr().expose_provenance() as u64;
        load.insn_cnt = NOTHING.len() as u32;
        load.license = license.as_ptr().expose_provenance() as u64;
        let program = bpf(bpf_cmd::BPF_PROG_LOAD, &mut attr)
            .context("the kernel did not load an empty program")?;
        let name = CString::new(tracepoint)?;
        // SAFETY: as above.
        let mut attr: bpf_attr = unsafe { std::mem::zeroed() };
        attr.raw_tracepoint.name = name.as_ptr().expose_provenance() as u64;
        attr.raw_tracepoint.prog_fd = program.as_raw_fd() as u32;
        let link = bpf(bpf_cmd::BPF_RAW_TRACEPOINT_OPEN, &mut attr)
            .with_context(|| format!("no raw tracepoint {tracepoint}"))?;
        Ok(Self {
            program,
            _link: link,
        })
    }

    /// Runs so far, and nanoseconds in them.
    pub fn runs(&self) -> Result<(u64, u64)> {
        let found = stats::of(self.program.as_fd()).context("the kernel tells no run times")?;
        Ok((found.run_count, found.run_time_ns))
    }
}

/// A command that gives a descriptor.
fn bpf(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<OwnedFd> {
    // SAFETY: the attribute names buffers that live through the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            (&raw mut *attr).expose_provenance(),
            size_of::<bpf_attr>(),
        )
    };
    match i32::try_from(result) {
        // SAFETY: a descriptor that the kernel just made for us.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}
