//! What happens when it is overrun, starved, stopped or killed: nothing that goes missing is hidden,
//! nothing is left behind. Short here; `KMEM_TRACE_LONG=1` makes the loads as large and the waits as
//! long as they should be, and prints what was measured. Runs on the machine at hand, and in those
//! of `cargo xtask vm` with what takes a kernel of one's own.

#[path = "../support/mod.rs"]
mod support;

mod cgroups;
mod ending;
mod full;
mod machine;
mod steps;
mod storm;

use support::tracer::traceable;

/// A cgroup's name that no other run of these tests has.
fn own(name: &str) -> String {
    format!("kmem-trace-abuse-{name}-{}", std::process::id())
}

/// Whether the long versions were asked for.
fn is_long() -> bool {
    std::env::var_os("KMEM_TRACE_LONG").is_some()
}

/// How much of it: the short or the long version.
fn scaled<T>(short: T, long: T) -> T {
    if is_long() { long } else { short }
}

/// What was measured, for whoever asked for the long versions.
fn figures(text: &str) {
    if is_long() {
        println!("measured: {text}");
    }
}
