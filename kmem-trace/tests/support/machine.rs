//! The machine under the tests: is it ours to play with, what does its kernel have.

use std::{
    env, fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

/// The program under test.
pub fn program() -> PathBuf {
    env::var_os("KMEM_TRACE_BIN").map_or_else(
        || PathBuf::from(env!("CARGO_BIN_EXE_kmem-trace")),
        PathBuf::from,
    )
}

/// Whether this is a machine of `cargo xtask vm`; says so where it is not.
pub fn is_vm() -> bool {
    if env::var_os("KMEM_TRACE_VM").is_some() {
        return true;
    }
    skip(concat!(
        "needs a machine of its own: cargo xtask vm --kernel 6.12 --target ",
        env!("CARGO_CRATE_NAME")
    ));
    false
}

/// Says why a test does nothing here; `xtask vm` counts a test that printed this as skipped.
pub fn skip(why: &str) {
    println!("skipped: {why}");
    if env::var_os("KMEM_TRACE_VM").is_none() {
        // The harness shows captured output of failed tests alone.
        let name = std::thread::current().name().unwrap_or("a test").to_owned();
        let _ = writeln!(io::stderr(), "SKIPPED {name}: {why}");
    }
}

/// Whether interrupts and softirqs are threads here, but for a few.
pub fn is_realtime() -> bool {
    fs::read_to_string("/proc/version").is_ok_and(|version| version.contains("PREEMPT_RT"))
}

/// `none`, `integrity` or `confidentiality`.
pub fn lockdown() -> String {
    let text = fs::read_to_string("/sys/kernel/security/lockdown").unwrap_or_default();
    let chosen = text
        .split_once('[')
        .and_then(|(_, rest)| rest.split_once(']'));
    chosen.map_or_else(|| "none".to_owned(), |(word, _)| word.to_owned())
}

/// Whether the kernel has the `memcg:*` tracepoints: by tracefs, which is empty where it was booted locked
/// down, or by its types.
pub fn has_memcg_tracepoints() -> bool {
    const TRACER: &[u8] = b"\0__traceiter_mod_memcg_state\0";
    Path::new("/sys/kernel/tracing/events/memcg/mod_memcg_state").exists()
        || fs::read("/sys/kernel/btf/vmlinux")
            .is_ok_and(|types| types.windows(TRACER.len()).any(|it| it == TRACER))
}

/// Whether page counters can be traced here at all.
pub fn is_exact() -> bool {
    lockdown() != "confidentiality"
}

/// As [`is_exact`]; says so where they cannot.
pub fn needs_exact() -> bool {
    if is_exact() {
        return true;
    }
    skip("this kernel is locked down: no page counters to trace");
    false
}

/// Whether there is anything that a ledger can go by; says so where there is not.
pub fn needs_ledger() -> bool {
    if is_exact() || has_memcg_tracepoints() {
        return true;
    }
    skip("nothing can be traced on this kernel under lockdown");
    false
}
