//! What was lost, of the ledger and of slab, in one line each.

use std::collections::BTreeMap;

use super::size::count;
use crate::reconcile::{
    report::{Lost, RoleLost, is_ledger},
    slab::SlabLost,
};

/// One kind of loss: how many of what, in which roles, and what that means.
struct Kind {
    lost: u64,
    what: &'static str,
    roles: Vec<(&'static str, u64)>,
    means: &'static str,
}

/// Of the ledger and of what is streamed.
pub fn of_ledger(lost: &Lost) -> String {
    if lost.is_nothing() {
        return "of the ledger, nothing lost".to_owned();
    }
    let by = |of| roles(&lost.by_role, of);
    let (charges, events): (Vec<_>, Vec<_>) = by(|it| it.map_full)
        .into_iter()
        .partition(|(role, _)| is_ledger(role));
    let (runs, other_runs): (Vec<_>, Vec<_>) = by(|it| it.skipped)
        .into_iter()
        .partition(|(role, _)| is_ledger(role));
    let sum = |roles: &[(&str, u64)]| roles.iter().map(|(_, lost)| lost).sum();
    told([
        Kind {
            lost: lost.ring,
            what: "records",
            roles: by(|it| it.ring),
            means: "ring full; totals not touched",
        },
        Kind {
            lost: lost.map_full,
            what: "charges",
            roles: charges,
            means: "map full or unreadable: totals are lower bounds",
        },
        Kind {
            lost: sum(&events),
            what: "other events",
            roles: events,
            means: "map full or unreadable",
        },
        Kind {
            lost: lost.skipped,
            what: "program runs",
            roles: runs,
            means: "skipped by the kernel: for each, the largest charge seen is in the bound",
        },
        Kind {
            lost: lost.unwatched_softirqs.unwrap_or(0),
            what: "softirqs",
            roles: Vec::new(),
            means: "the kernel ran no program in them: for each, the most that one was seen to move is in the bound",
        },
        Kind {
            lost: sum(&other_runs),
            what: "other program runs",
            roles: other_runs,
            means: "skipped by the kernel; not the ledger's",
        },
    ])
}

/// Of slab; nothing where nothing was lost.
pub fn of_slab(lost: &SlabLost) -> Option<String> {
    if lost.is_nothing() {
        return None;
    }
    let by = |of| roles(&lost.by_role, of);
    let told = told([
        Kind {
            lost: lost.map_full,
            what: "slab events",
            roles: by(|it| it.map_full),
            means: "map full: trace fewer cgroups",
        },
        Kind {
            lost: lost.objects,
            what: "objects not remembered",
            roles: Vec::new(),
            means: "--max-objects",
        },
        Kind {
            lost: lost.misread,
            what: "objects misread",
            roles: Vec::new(),
            means: "their cache is not known for certain",
        },
        Kind {
            lost: lost.skipped,
            what: "program runs",
            roles: by(|it| it.skipped),
            means: "skipped by the kernel",
        },
        Kind {
            lost: lost.unwatched_softirqs.unwrap_or(0),
            what: "softirqs",
            roles: Vec::new(),
            means: "the kernel ran no program in them",
        },
    ]);
    Some(format!("{told}: ≥ at least, ≤ at most, ≈ about"))
}

fn told<const N: usize>(kinds: [Kind; N]) -> String {
    let told: Vec<String> = kinds
        .into_iter()
        .filter(|kind| kind.lost > 0)
        .map(|kind| {
            format!(
                "{} {}{} ({})",
                count(kind.lost),
                kind.what,
                named(&kind.roles),
                kind.means
            )
        })
        .collect();
    format!("LOST: {}", told.join(", "))
}

/// The roles that lost any of one kind.
fn roles(
    by_role: &BTreeMap<&'static str, RoleLost>,
    of: fn(&RoleLost) -> u64,
) -> Vec<(&'static str, u64)> {
    by_role
        .iter()
        .map(|(role, lost)| (*role, of(lost)))
        .filter(|(_, count)| *count > 0)
        .collect()
}

/// ` [counter.charge 3, counter.uncharge 1]`; nothing where there is none.
fn named(roles: &[(&str, u64)]) -> String {
    if roles.is_empty() {
        return String::new();
    }
    let each: Vec<String> = roles
        .iter()
        .map(|(role, lost)| format!("{role} {}", count(*lost)))
        .collect();
    format!(" [{}]", each.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lost_is_told_by_role_and_only_the_ledgers_are_charges() {
        assert_eq!(of_ledger(&Lost::default()), "of the ledger, nothing lost");
        let of = |map_full| RoleLost {
            map_full,
            ..RoleLost::default()
        };
        let lost = Lost {
            map_full: 3,
            by_role: [("counter.charge", of(3)), ("limit.write", of(2))].into(),
            ..Lost::default()
        };
        let said = of_ledger(&lost);
        assert!(
            said.contains(
                "3 charges [counter.charge 3] (map full or unreadable: totals are lower bounds), 2 other events [limit.write 2] (map full or unreadable)"
            ),
            "{said}"
        );
        assert!(
            !said.contains("records") && !said.contains("runs"),
            "{said}"
        );
    }

    #[test]
    fn runs_skipped_beside_the_ledger_are_told_apart_from_its_own() {
        let of = |skipped| RoleLost {
            skipped,
            ..RoleLost::default()
        };
        let beside = Lost {
            by_role: [("charge.user", of(5))].into(),
            ..Lost::default()
        };
        let said = of_ledger(&beside);
        assert!(
            said.starts_with("LOST: 5 other program runs [charge.user 5]"),
            "{said}"
        );
        let both = Lost {
            skipped: 3,
            by_role: [("charge.user", of(5)), ("counter.charge", of(3))].into(),
            ..Lost::default()
        };
        let said = of_ledger(&both);
        assert!(
            said.starts_with("LOST: 3 program runs [counter.charge 3] (")
                && said.contains(", 5 other program runs [charge.user 5] ("),
            "{said}"
        );
    }

    #[test]
    fn softirqs_without_programs_are_a_loss_of_their_own() {
        let none = Lost {
            unwatched_softirqs: Some(0),
            unwatched_pages: Some(0),
            ..Lost::default()
        };
        assert!(none.is_nothing());
        let said = of_ledger(&Lost {
            unwatched_softirqs: Some(2),
            unwatched_pages: Some(78),
            ..Lost::default()
        });
        assert_eq!(
            said,
            "LOST: 2 softirqs (the kernel ran no program in them: for each, the most that one was seen to move is in the bound)"
        );
    }

    #[test]
    fn what_is_lost_of_slab_is_told_with_its_roles() {
        assert_eq!(of_slab(&SlabLost::default()), None);
        let of = |map_full, skipped| RoleLost {
            map_full,
            skipped,
            ..RoleLost::default()
        };
        let lost = SlabLost {
            map_full: 3,
            skipped: 2,
            unwatched_softirqs: Some(1),
            by_role: [("slab.alloc", of(3, 0)), ("slab.free", of(0, 2))].into(),
            ..SlabLost::default()
        };
        assert_eq!(
            of_slab(&lost).as_deref(),
            Some(
                "LOST: 3 slab events [slab.alloc 3] (map full: trace fewer cgroups), 2 program runs [slab.free 2] (skipped by the kernel), 1 softirqs (the kernel ran no program in them): ≥ at least, ≤ at most, ≈ about"
            )
        );
    }
}
