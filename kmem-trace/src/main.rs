//! Arguments in, exit code out.

use std::process::ExitCode;

use kmem_trace::workload::worker;

fn main() -> ExitCode {
    if worker::is_worker_invocation() {
        return worker::main();
    }
    ExitCode::SUCCESS
}
