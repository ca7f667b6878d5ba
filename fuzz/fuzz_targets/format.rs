#![no_main]

#[path = "../../kmem-trace/tests/bad_input/checks.rs"]
mod checks;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| checks::format(bytes));
