//! What the tracer costs against what it may (`--max-overhead`), and what it then leaves off. Pure.
//!
//! Only ever down: a tracer that took a step back would cost too much again, and figures that come
//! and go are worth less than figures that end.

use std::time::Duration;

use serde::Serialize;

/// Cost is looked at over spans of this length.
pub const SPAN: Duration = Duration::from_millis(250);
/// So many spans in a row have to cost too much: one may be a start or a storm that is over.
const PATIENCE: u32 = 2;

/// Something that is left off from then on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// No single events: no records of charges and objects are sent, reports are printed instead.
    Aggregates,
    /// Slab events that interrupt a program of ours are skipped, and counted as that.
    NoSecondPrograms,
    /// Slab is added up without call sites.
    NoCallSites,
    /// Slab is not followed any more.
    LedgerOnly,
    /// Nothing: no step is left.
    NoneLeft,
}

impl Step {
    /// What is switched off.
    pub fn off(self) -> &'static str {
        match self {
            Self::Aggregates => "single events",
            Self::NoSecondPrograms => "second programs on slab events",
            Self::NoCallSites => "call sites of slab",
            Self::LedgerOnly => "slab attribution",
            Self::NoneLeft => "nothing: the ledger is all that is left",
        }
    }

    /// What figures from then on do not say.
    pub fn cannot_say(self) -> &'static str {
        match self {
            Self::Aggregates => {
                "which single charges and objects there were; the sums go on, unchecked by records"
            }
            Self::NoSecondPrograms => {
                "what an interrupt in a slab program allocates or frees: that counts as skipped"
            }
            Self::NoCallSites => "which code asked for slab that came after this",
            Self::LedgerOnly => "whose slab it is; the slab figures end here",
            Self::NoneLeft => "",
        }
    }
}

/// What was spent until some moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spent {
    /// The moment, since the start.
    pub at: Duration,
    /// In the BPF programs, as the kernel's BPF statistics say.
    pub bpf: Duration,
    /// By the tracer's process.
    pub own: Duration,
}

/// A step to take, and why.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Decision {
    pub step: Step,
    /// Share of the CPU time of all online CPUs, percent.
    pub overhead_pct: f64,
    pub max_overhead_pct: f64,
}

/// Decides.
#[derive(Clone, Debug)]
pub struct Governor {
    max_pct: f64,
    /// First the one to take next.
    left: Vec<Step>,
    last: Option<Spent>,
    too_much: u32,
}

impl Governor {
    /// `steps`: what there is to leave off, in the order to do it.
    pub fn new(max_pct: f64, steps: &[Step]) -> Self {
        let mut left = steps.to_vec();
        left.push(Step::NoneLeft);
        Self {
            max_pct,
            left,
            last: None,
            too_much: 0,
        }
    }

    /// Whether there is anything left to decide.
    pub fn is_done(&self) -> bool {
        self.left.is_empty()
    }

    /// Whether a span has passed since the last look.
    pub fn is_due(&self, at: Duration) -> bool {
        !self.is_done() && self.last.is_none_or(|last| at >= last.at + SPAN)
    }

    /// Takes what was spent until now.
    pub fn look(&mut self, now: Spent, online_cpus: u64) -> Option<Decision> {
        let last = self.last.replace(now)?;
        let pct = overhead_pct(&last, &now, online_cpus)?;
        if pct <= self.max_pct {
            self.too_much = 0;
            return None;
        }
        self.too_much += 1;
        if self.too_much < PATIENCE || self.left.is_empty() {
            return None;
        }
        self.too_much = 0;
        // The step itself costs, and what is detached takes its run time with it.
        self.last = None;
        Some(Decision {
            step: self.left.remove(0),
            overhead_pct: pct,
            max_overhead_pct: self.max_pct,
        })
    }
}

/// Share of the CPU time of all online CPUs, percent; `None` where no time has passed.
fn overhead_pct(from: &Spent, to: &Spent, online_cpus: u64) -> Option<f64> {
    let wall = to.at.checked_sub(from.at)?.as_secs_f64() * online_cpus.max(1) as f64;
    let spent = to.bpf.saturating_sub(from.bpf) + to.own.saturating_sub(from.own);
    (wall > 0.0).then(|| spent.as_secs_f64() * 100.0 / wall)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Step; 3] = [Step::Aggregates, Step::NoCallSites, Step::LedgerOnly];

    /// Spans of 1 s on two CPUs, each costing so many milliseconds.
    fn steps(max_pct: f64, costs_ms: &[u64]) -> Vec<Option<Step>> {
        let mut governor = Governor::new(max_pct, &ALL);
        let mut spent = Spent::default();
        assert_eq!(governor.look(spent, 2), None);
        costs_ms
            .iter()
            .map(|cost| {
                spent.at += Duration::from_secs(1);
                spent.bpf += Duration::from_millis(*cost / 2);
                spent.own += Duration::from_millis(*cost - *cost / 2);
                governor.look(spent, 2).map(|decision| decision.step)
            })
            .collect()
    }

    #[test]
    fn what_stays_below_steps_nowhere() {
        // 20 ms of 2 s.
        assert_eq!(steps(1.0, &[20; 50]), [None; 50]);
    }

    #[test]
    fn one_dear_span_is_forgiven() {
        assert_eq!(steps(1.0, &[500, 10, 500, 10, 500, 10]), [None; 6]);
    }

    #[test]
    fn two_in_a_row_take_one_step_and_the_span_of_the_step_does_not_count() {
        assert_eq!(
            steps(1.0, &[21, 21, 900, 21, 21, 10]),
            [
                None,
                Some(Step::Aggregates),
                None,
                None,
                Some(Step::NoCallSites),
                None
            ]
        );
    }

    #[test]
    fn steps_come_in_order_end_with_a_word_and_never_go_back() {
        let mut taken = steps(1.0, &[100; 40]);
        taken.retain(Option::is_some);
        let all = [
            Step::Aggregates,
            Step::NoCallSites,
            Step::LedgerOnly,
            Step::NoneLeft,
        ];
        assert_eq!(taken, all.map(Some));
    }

    #[test]
    fn nothing_is_asked_once_nothing_is_left() {
        let mut governor = Governor::new(1.0, &[]);
        let mut spent = Spent::default();
        for second in 0..10 {
            spent.at = Duration::from_secs(second);
            spent.own = Duration::from_secs(second);
            governor.look(spent, 1);
        }
        assert!(governor.is_done() && !governor.is_due(Duration::from_secs(100)));
    }

    #[test]
    fn the_share_is_one_of_all_online_cpus() {
        let to = Spent {
            at: Duration::from_secs(1),
            bpf: Duration::from_millis(300),
            own: Duration::from_millis(100),
        };
        let share = |cpus| overhead_pct(&Spent::default(), &to, cpus);
        assert_eq!(share(1), Some(40.0));
        assert_eq!(share(4), Some(10.0));
        assert_eq!(overhead_pct(&to, &to, 4), None);
        // Run times fall where programs are gone.
        let gone = Spent {
            at: Duration::from_secs(2),
            bpf: Duration::ZERO,
            own: to.own,
        };
        assert_eq!(overhead_pct(&to, &gone, 1), Some(0.0));
    }
}
