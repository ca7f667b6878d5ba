//! Giving up what a trace no longer needs once its programs are attached.
//!
//! Not here: which capabilities attaching takes (see `kernel::security`).

use anyhow::{Context as _, Result};
use caps::{CapSet, Capability, CapsHashSet};

/// What a running trace goes on using, if it has it:
/// - `CAP_BPF`: before 5.19 the kernel refuses every call of `bpf` without it, the question for
///   skipped runs among them, where `kernel.unprivileged_bpf_disabled` is set (`__sys_bpf`).
/// - `CAP_DAC_READ_SEARCH`: the files of cgroups that their owner has closed to others, made at any
///   time.
const KEPT: [Capability; 2] = [Capability::CAP_BPF, Capability::CAP_DAC_READ_SEARCH];

/// Gives up all capabilities but those that a running trace uses, and the way to regain any by
/// executing a file.
///
/// # Errors
/// Where the kernel does not let us; nothing is lost then but the precaution.
pub fn give_up() -> Result<()> {
    let held = caps::read(None, CapSet::Permitted).context("cannot read own capabilities")?;
    let kept = kept(&held);
    // First the set that bounds the other.
    for set in [CapSet::Ambient, CapSet::Inheritable] {
        caps::clear(None, set).context("cannot give up capabilities")?;
    }
    for set in [CapSet::Effective, CapSet::Permitted] {
        caps::set(None, set, &kept).context("cannot give up capabilities")?;
    }
    nix::sys::prctl::set_no_new_privs().context("cannot set no_new_privs")
}

/// What is kept of what is held.
fn kept(held: &CapsHashSet) -> CapsHashSet {
    let mut kept: CapsHashSet = KEPT
        .into_iter()
        .filter(|capability| held.contains(capability))
        .collect();
    // It includes CAP_BPF, and somebody may have been given it instead.
    if !kept.contains(&Capability::CAP_BPF) && held.contains(&Capability::CAP_SYS_ADMIN) {
        kept.insert(Capability::CAP_SYS_ADMIN);
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_kept_than_is_used_and_was_held() {
        assert_eq!(kept(&caps::all()), CapsHashSet::from(KEPT));
        assert_eq!(kept(&CapsHashSet::new()), CapsHashSet::new());
        let admin = CapsHashSet::from([Capability::CAP_SYS_ADMIN, Capability::CAP_NET_ADMIN]);
        let only = CapsHashSet::from([Capability::CAP_SYS_ADMIN]);
        assert_eq!(kept(&admin), only);
    }
}
