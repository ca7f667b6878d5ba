//! What happens when it is overrun, starved, stopped or killed: nothing that goes missing is hidden,
//! nothing is left behind. Short here; `KMEM_TRACE_LONG=1` makes the loads as large and the waits as
//! long as they should be, and prints what was measured; a larger number there is how many seconds the
//! soak takes. Runs on the machine at hand, and in those of `cargo xtask vm` with what takes a kernel of
//! one's own.

#[path = "../support/mod.rs"]
mod support;

mod cgroups;
mod ending;
mod full;
mod machine;
mod steps;
mod storm;

use std::time::Duration;

use support::tracer::traceable;

/// A cgroup's name that no other run of these tests has.
fn own(name: &str) -> String {
    format!("kmem-trace-abuse-{name}-{}", std::process::id())
}

/// Whether the long versions were asked for.
fn is_long() -> bool {
    std::env::var_os("KMEM_TRACE_LONG").is_some()
}

/// How much of it: in an emulated machine, where all takes ten times as long, in the short and in the
/// long version.
fn scaled<T>(emulated: T, short: T, long: T) -> T {
    if is_long() {
        long
    } else if is_emulated() {
        emulated
    } else {
        short
    }
}

/// How long the long soak takes: an hour, or as many seconds as `KMEM_TRACE_LONG` says.
fn soak_for() -> Duration {
    let text = std::env::var("KMEM_TRACE_LONG").unwrap_or_default();
    match text.parse() {
        Ok(seconds @ 2..) => Duration::from_secs(seconds),
        _ => Duration::from_secs(3600),
    }
}

fn is_emulated() -> bool {
    std::env::var_os("KMEM_TRACE_VM").is_some()
}

/// Whether this machine is where a test is worth its time: not an emulated one, where a start alone
/// takes seconds, for what is no matter of exactness; says so.
fn is_worth_it() -> bool {
    if is_emulated() && !is_long() {
        support::machine::skip("run on the machine at hand; KMEM_TRACE_LONG=1 has it run here too");
        return false;
    }
    true
}

/// What was measured, for whoever asked for the long versions.
fn figures(text: &str) {
    if is_long() {
        println!("measured: {text}");
    }
}
