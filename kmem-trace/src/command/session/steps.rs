//! Less is followed, to cost less: what `--max-overhead` switches while the programs run.

use std::time::Duration;

use anyhow::{Context as _, Result};
use aya::util::online_cpus;
use kmem_trace_ebpf::totals::{SWITCH_NO_CALL_SITES, SWITCH_NO_STREAM};

use super::Session;
use crate::{
    hooks::{pairs, table::is_slab},
    kernel::proc::own,
    reconcile::overhead::{Spent, Step},
};

impl Session {
    /// The steps that would leave anything off here, in their order.
    pub fn possible_steps(&self, prints_events: bool) -> Vec<Step> {
        let mut steps = Vec::new();
        // Page counters are streamed whether printed or not, to check the totals by.
        if prints_events || self.plan.exact {
            steps.push(Step::Aggregates);
        }
        let mut programs = self.attached.programs.iter();
        if programs.any(|(role, program)| is_slabs_second(role, program)) {
            steps.push(Step::NoSecondPrograms);
        }
        if self.plan.slab {
            steps.extend([Step::NoCallSites, Step::LedgerOnly]);
        }
        steps
    }

    /// What this tracer has spent so far.
    pub fn spent(&self) -> Spent {
        Spent {
            at: self.elapsed(),
            bpf: Duration::from_nanos(self.attached.run_time().map_or(0, |(ns, _)| ns)),
            own: own::cpu_time().unwrap_or_default(),
        }
    }

    pub fn online_cpus(&self) -> u64 {
        online_cpus().map_or(1, |cpus| cpus.len()) as u64
    }

    /// Takes a step.
    ///
    /// # Errors
    /// Where the kernel does not take the switch.
    pub fn step_down(&mut self, step: Step) -> Result<()> {
        match step {
            Step::Aggregates => self.attached.switch(SWITCH_NO_STREAM),
            Step::NoCallSites => self.attached.switch(SWITCH_NO_CALL_SITES),
            Step::NoSecondPrograms => {
                self.attached.detach_some(is_slabs_second);
                Ok(())
            }
            Step::LedgerOnly => {
                self.attached.detach_some(|role, _| is_slab(role));
                Ok(())
            }
            Step::NoneLeft => {
                // Nobody asks any more what the programs cost.
                if !self.request.bpf_stats {
                    self.measuring = None;
                }
                Ok(())
            }
        }
        .with_context(|| format!("cannot switch off {}", step.off()))?;
        self.steps.push((step, self.elapsed()));
        Ok(())
    }

    /// When a step was taken.
    pub fn stepped(&self, step: Step) -> Option<Duration> {
        let taken = self.steps.iter().find(|(taken, _)| *taken == step);
        taken.map(|(_, at)| *at)
    }

    /// Whether each change of a page counter is sent.
    pub(super) fn streams(&self) -> bool {
        self.stepped(Step::Aggregates).is_none()
    }

    pub(super) fn slab_ended(&self) -> bool {
        self.stepped(Step::LedgerOnly).is_some()
    }

    /// What reports since then do not say.
    pub(super) fn stepped_down(&self) -> impl Iterator<Item = String> {
        self.steps
            .iter()
            .filter(|(step, _)| *step != Step::NoneLeft)
            .map(|(step, at)| {
                format!(
                    "since +{:.1} s without {} (--max-overhead): no figure says {}",
                    at.as_secs_f64(),
                    step.off(),
                    step.cannot_say()
                )
            })
    }
}

/// Those of the ledger stay to the end: what they would miss is in its bound.
fn is_slabs_second(role: &str, program: &str) -> bool {
    is_slab(role) && pairs::is_second(program)
}
