//! JSON Lines: one object a line, `type` first. The keys are a contract (`docs/json.md`).

use std::io::{self, Write};

use serde::Serialize;

use crate::{
    diagnosis::page::Page,
    hooks::plan::Row,
    reconcile::{
        charged::ChargedLine,
        growth::GrowthLine,
        overhead::Decision,
        report::{Gone, Report, Summary},
        slab::{DeadLine, NodeLine, SlabLine, WrongPayerLine},
    },
};

/// What is in force when a trace begins.
#[derive(Clone, Debug, Serialize)]
pub struct PlanLine<'a> {
    pub kernel: &'a str,
    pub hierarchy: &'a str,
    pub lockdown: &'a str,
    pub mode: &'a str,
    /// Booted with `cgroup.memory=nokmem`: nobody pays for kernel memory.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub nokmem: bool,
    pub roles: &'a [Row],
}

/// Less is followed from now on.
#[derive(Clone, Debug, Serialize)]
pub struct StepLine {
    pub elapsed_s: f64,
    #[serde(flatten)]
    pub decision: Decision,
    pub off: &'static str,
    pub cannot_say: &'static str,
}

/// A line of figures that were read at one time.
#[derive(Clone, Debug, Serialize)]
pub struct At<'a, T> {
    pub elapsed_s: f64,
    #[serde(flatten)]
    pub line: &'a T,
}

/// Any line.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Line<'a> {
    Plan(PlanLine<'a>),
    Doctor(&'a Page),
    Event(&'a super::event::Event),
    Report(&'a Report),
    Step(&'a StepLine),
    Gone(&'a Gone),
    Slab(At<'a, SlabLine>),
    #[serde(rename = "charged-slab")]
    ChargedSlab(At<'a, ChargedLine>),
    #[serde(rename = "wrong-payer")]
    WrongPayer(At<'a, WrongPayerLine>),
    Growth(At<'a, GrowthLine>),
    Dead(At<'a, DeadLine>),
    Node(At<'a, NodeLine>),
    Summary(&'a Summary),
    Explain(&'a super::explain::Explained),
}

/// Writes one line.
///
/// # Errors
/// Where the output does not take it (a closed pipe, a full disk).
pub fn write(out: &mut impl Write, line: &Line<'_>) -> io::Result<()> {
    serde_json::to_writer(&mut *out, line)?;
    out.write_all(b"\n")?;
    out.flush()
}
