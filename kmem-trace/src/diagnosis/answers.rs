//! Our answers, each as good as the roles and facts that it stands on.

use serde::Serialize;

use super::accounting::Accounting;
use crate::{
    hooks::{
        plan::Row,
        table::{Mechanism, Status},
    },
    kernel::cgroupfs::Hierarchy,
};

/// A question that users ask, and how well it can be answered here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Answer {
    pub answer: &'static str,
    /// What it says, in a few words.
    pub says: &'static str,
    pub status: Status,
    /// Why not better, or what to know; may be empty.
    pub why: String,
    /// Roles and facts that it stands on.
    pub needs: &'static [&'static str],
}

/// What answers are derived from.
pub struct Means<'a> {
    pub roles: &'a [Row],
    pub accounting: &'a Accounting,
    /// Of the mounted memory controller; `None`: there is none.
    pub hierarchy: Option<Hierarchy>,
    /// Why programs may not read kernel memory, where that is so.
    pub reads_refused: Option<&'a str>,
    /// Booted with `cgroup.memory=nokmem`.
    pub nokmem: bool,
    /// Slab that comes or goes without an event here, and why (`Plan::unseen_slab`).
    pub unseen_slab: Option<String>,
}

type Verdict = (Status, String);

/// Name, what it says, how it is judged, what it stands on.
type Rule = (
    &'static str,
    &'static str,
    fn(&Means<'_>) -> Verdict,
    &'static [&'static str],
);

/// Every answer, in the order in which users ask.
pub fn derive(means: &Means<'_>) -> Vec<Answer> {
    let rules: [Rule; 7] = [
        (
            "usage ledger",
            "how a cgroup's usage comes about, reconciled with the kernel's own figure",
            usage,
            &["counter.charge", "counter.uncharge", "memcg.state"],
        ),
        (
            "kmem ledger",
            "the same for kernel memory",
            kmem,
            &["counter.charge", "counter.uncharge", "memcg.state"],
        ),
        (
            "user charges",
            "who asks for pages, and who is refused",
            |means| one(means, "charge.user"),
            &["charge.user"],
        ),
        (
            "limit writes",
            "who wrote which limit, and what came of it",
            |means| one(means, "limit.write"),
            &["limit.write"],
        ),
        (
            "cgroup names",
            "names of the living and the dead",
            names,
            &["cgroup.lifecycle"],
        ),
        (
            "slab events",
            "objects allocated and freed, by call site",
            slab_events,
            &["slab.alloc", "slab.free"],
        ),
        (
            "slab attribution",
            "who pays for each slab object",
            attribution,
            &["slab.alloc", "slab.free", "kernel reads", "payer"],
        ),
    ];
    rules
        .into_iter()
        .map(|(answer, says, verdict, needs)| {
            let (status, why) = match means.hierarchy {
                // Objects are seen without memory cgroups too; the rest is about cgroups.
                None if answer != "slab events" => {
                    (Status::Missing, "there are no memory cgroups".to_owned())
                }
                _ => verdict(means),
            };
            Answer {
                answer,
                says,
                status,
                why,
                needs,
            }
        })
        .collect()
}

fn one(means: &Means<'_>, role: &str) -> Verdict {
    means.roles.iter().find(|row| row.role == role).map_or_else(
        || (Status::Missing, format!("no role {role}")),
        |row| (row.status, row.why.clone()),
    )
}

/// The worst of two, with its reason; of equals both reasons.
fn worst(first: Verdict, second: Verdict) -> Verdict {
    let rank = |status| match status {
        Status::Missing => 0,
        Status::Bounded => 1,
        Status::Exact => 2,
    };
    match rank(first.0).cmp(&rank(second.0)) {
        std::cmp::Ordering::Less => first,
        std::cmp::Ordering::Greater => second,
        std::cmp::Ordering::Equal => (first.0, once(&first.1, &second.1)),
    }
}

/// The clauses of two reasons, each once.
fn once(first: &str, second: &str) -> String {
    let mut clauses: Vec<&str> = Vec::new();
    for clause in first.split("; ").chain(second.split("; ")) {
        if !clause.is_empty() && !clauses.contains(&clause) {
            clauses.push(clause);
        }
    }
    clauses.join("; ")
}

/// By page counters; else by items of `memory.stat`; else not.
fn usage(means: &Means<'_>) -> Verdict {
    let counters = worst(one(means, "counter.charge"), one(means, "counter.uncharge"));
    if counters.0 != Status::Missing {
        // fentry's are counted wherever they happen.
        let by_kprobe = means.roles.iter().any(|row| {
            row.role.starts_with("counter.") && row.mechanism == Some(Mechanism::Kprobe.name())
        });
        let skips = match means.accounting.counts_skips {
            Some(false) if by_kprobe => "this kernel does not count probe runs that it skips",
            _ => "",
        };
        return worst(counters, (Status::Exact, skips.to_owned()));
    }
    let items = one(means, "memcg.state");
    if items.0 == Status::Missing {
        return worst(counters, items);
    }
    (
        Status::Bounded,
        format!(
            "by items of memory.stat, pages in per-CPU stocks (at most {}) within the bound",
            means.accounting.stock.bound_pages
        ),
    )
}

fn kmem(means: &Means<'_>) -> Verdict {
    if means.nokmem {
        return (
            Status::Missing,
            "booted with cgroup.memory=nokmem: kernel memory is charged to nobody".to_owned(),
        );
    }
    let usage = usage(means);
    match (usage.0, means.hierarchy) {
        (Status::Exact, Some(Hierarchy::V2)) => (
            Status::Bounded,
            "cgroup v2 has no counter of kernel memory: the figure is memory.stat's, which lags"
                .to_owned(),
        ),
        _ => usage,
    }
}

fn names(means: &Means<'_>) -> Verdict {
    let (status, why) = one(means, "cgroup.lifecycle");
    match status {
        // Directories still tell the names, each time they are looked at.
        Status::Missing => (Status::Bounded, why),
        _ => (status, why),
    }
}

fn slab_events(means: &Means<'_>) -> Verdict {
    let events = worst(one(means, "slab.alloc"), one(means, "slab.free"));
    match &means.unseen_slab {
        Some(unseen) => worst(events, (Status::Bounded, format!("not seen {unseen}"))),
        None => events,
    }
}

fn attribution(means: &Means<'_>) -> Verdict {
    let events = slab_events(means);
    if events.0 == Status::Missing {
        return events;
    }
    let payer = means.accounting.payer.as_ref().map_err(String::as_str);
    let payers = match (means.reads_refused, payer) {
        (None, Ok(_)) => (Status::Exact, String::new()),
        (Some(why), _) | (None, Err(why)) => (
            Status::Bounded,
            format!("the payer is not readable, only the cgroup of the task that asks: {why}"),
        ),
    };
    worst(events, payers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diagnosis::samples;

    const ALL: [&str; 7] = [
        "usage ledger",
        "kmem ledger",
        "user charges",
        "limit writes",
        "cgroup names",
        "slab events",
        "slab attribution",
    ];

    fn on(
        roles: &[Row],
        hierarchy: Option<Hierarchy>,
        change: impl FnOnce(&mut Means<'_>),
    ) -> Vec<Answer> {
        let accounting = samples::accounting(&samples::old(), Hierarchy::V1);
        let mut means = Means {
            roles,
            accounting: &accounting,
            hierarchy,
            reads_refused: None,
            nokmem: false,
            unseen_slab: None,
        };
        change(&mut means);
        derive(&means)
    }

    fn status(answers: &[Answer], name: &str) -> Status {
        let found = answers.iter().find(|answer| answer.answer == name);
        found.expect("an answer of that name").status
    }

    #[test]
    fn with_every_role_exact_every_answer_is() {
        let answers = on(
            &samples::roles(Status::Exact, &[]),
            Some(Hierarchy::V1),
            |_| {},
        );
        let names: Vec<_> = answers.iter().map(|answer| answer.answer).collect();
        assert_eq!(names, ALL);
        assert!(
            answers.iter().all(|answer| answer.status == Status::Exact),
            "{answers:?}"
        );
    }

    #[test]
    fn each_answer_goes_down_with_its_roles_and_no_other_does() {
        for (role, hit, becomes) in [
            ("charge.user", &["user charges"][..], Status::Missing),
            ("limit.write", &["limit writes"], Status::Missing),
            // Directories still name what is there.
            ("cgroup.lifecycle", &["cgroup names"], Status::Bounded),
            (
                "slab.alloc",
                &["slab events", "slab attribution"],
                Status::Missing,
            ),
            (
                "slab.free",
                &["slab events", "slab attribution"],
                Status::Missing,
            ),
            // memory.stat's items stand in.
            (
                "counter.charge",
                &["usage ledger", "kmem ledger"],
                Status::Bounded,
            ),
            (
                "counter.uncharge",
                &["usage ledger", "kmem ledger"],
                Status::Bounded,
            ),
        ] {
            let roles = samples::roles(Status::Exact, &[(role, Status::Missing, "gone")]);
            let answers = on(&roles, Some(Hierarchy::V1), |_| {});
            for name in ALL {
                let expected = if hit.contains(&name) {
                    becomes
                } else {
                    Status::Exact
                };
                assert_eq!(status(&answers, name), expected, "{role} missing, {name}");
            }
        }
    }

    #[test]
    fn a_ledger_with_nothing_to_go_by_is_missing_and_says_both_reasons() {
        let roles = samples::roles(
            Status::Exact,
            &[
                ("counter.charge", Status::Missing, "no probes"),
                ("memcg.state", Status::Missing, "no events"),
            ],
        );
        let answers = on(&roles, Some(Hierarchy::V1), |_| {});
        assert_eq!(status(&answers, "usage ledger"), Status::Missing);
        assert_eq!(answers[0].why, "no probes; no events");
    }

    #[test]
    fn what_two_roles_say_alike_is_said_once() {
        let roles = samples::roles(
            Status::Exact,
            &[
                ("slab.alloc", Status::Missing, "refused; no allocations"),
                ("slab.free", Status::Missing, "refused; no frees"),
            ],
        );
        let answers = on(&roles, Some(Hierarchy::V1), |_| {});
        assert_eq!(answers[5].why, "refused; no allocations; no frees");
    }

    #[test]
    fn kernel_memory_has_no_ledger_of_its_own_on_v2_and_none_with_nokmem() {
        let roles = samples::roles(Status::Exact, &[]);
        let v2 = on(&roles, Some(Hierarchy::V2), |_| {});
        assert_eq!(status(&v2, "usage ledger"), Status::Exact);
        assert_eq!(status(&v2, "kmem ledger"), Status::Bounded);
        let off = on(&roles, Some(Hierarchy::V1), |means| means.nokmem = true);
        assert_eq!(status(&off, "kmem ledger"), Status::Missing);
        assert_eq!(status(&off, "usage ledger"), Status::Exact);
    }

    #[test]
    fn attribution_is_bounded_where_the_payer_cannot_be_read() {
        let roles = samples::roles(Status::Exact, &[]);
        let blind = on(&roles, Some(Hierarchy::V1), |means| {
            means.reads_refused = Some("locked")
        });
        assert_eq!(status(&blind, "slab attribution"), Status::Bounded);
        assert!(blind[6].why.ends_with("locked"), "{}", blind[6].why);

        let mut accounting = samples::accounting(&samples::old(), Hierarchy::V1);
        accounting.payer = Err("no member".to_owned());
        let unknown = derive(&Means {
            roles: &roles,
            accounting: &accounting,
            hierarchy: Some(Hierarchy::V1),
            reads_refused: None,
            nokmem: false,
            unseen_slab: None,
        });
        assert_eq!(status(&unknown, "slab attribution"), Status::Bounded);
    }

    #[test]
    fn slab_that_comes_without_an_event_bounds_both_answers_about_slab() {
        let roles = samples::roles(Status::Exact, &[]);
        let answers = on(&roles, Some(Hierarchy::V1), |means| {
            means.unseen_slab = Some("of slab, frees into sheaves: no fentry".to_owned());
        });
        for answer in answers {
            let expected = match answer.answer {
                "slab events" | "slab attribution" => Status::Bounded,
                _ => Status::Exact,
            };
            assert_eq!(answer.status, expected, "{answer:?}");
        }
    }

    #[test]
    fn without_memory_cgroups_only_slab_events_are_left() {
        let answers = on(&samples::roles(Status::Exact, &[]), None, |_| {});
        for answer in answers {
            let expected = match answer.answer {
                "slab events" => Status::Exact,
                _ => Status::Missing,
            };
            assert_eq!(answer.status, expected, "{}", answer.answer);
        }
    }
}
