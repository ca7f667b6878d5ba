//! The chores of the repository, one subcommand and one file (or room) each.

mod bench;
mod bpf;
mod experiment;
mod libtest;
mod process;
mod rust_src;
mod setup;
mod test;
mod vm;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    about = "The chores of the kmem-trace repository"
)]
struct Arguments {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Measure what tracing costs, beside other tracers, and print it as tables.
    Bench(bench::Arguments),
    /// Build the BPF object that kmem-trace embeds, or check that it is fresh.
    Bpf(bpf::Arguments),
    /// The demo on a v1 kernel with kernel memory accounting on and off, side by side.
    Experiment(experiment::Arguments),
    /// Run the kernel tests on every kernel of the matrix, and compare each kernel's plan.
    Matrix(vm::matrix::Arguments),
    /// Build the tests' kernel module, which has the charge functions of old kernels.
    Module(vm::module::Arguments),
    /// Install what the other chores need.
    Setup,
    /// Run all tests: here, and on the kernels of the matrix.
    Test(test::Arguments),
    /// Boot a Debian kernel in QEMU and run the kernel tests, or a command, in it.
    Vm(Box<vm::Arguments>),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().chore {
        Chore::Bench(arguments) => bench::main(&arguments),
        Chore::Bpf(arguments) => bpf::main(&arguments),
        Chore::Experiment(arguments) => experiment::main(&arguments),
        Chore::Matrix(arguments) => vm::matrix::main(&arguments),
        Chore::Module(arguments) => vm::module::main(&arguments),
        Chore::Setup => setup::main(),
        Chore::Test(arguments) => test::main(&arguments),
        Chore::Vm(arguments) => vm::main(&arguments),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
