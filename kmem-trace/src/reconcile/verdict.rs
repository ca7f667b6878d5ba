//! The sentences that a trace ends with: does the ledger hold. Of slab: [`super::slab`]. Pure.

use super::report::{Report, StreamCheck};
use crate::view::size::signed;

/// Of the last reports; `ever_beyond`: some residual exceeded its bound at some time.
pub fn sentences(
    reports: &[Report],
    ever_beyond: bool,
    stream: Option<&StreamCheck>,
) -> Vec<String> {
    let mut sentences = Vec::new();
    for report in reports {
        let residual = report.residual_bytes;
        let name = &report.cgroup;
        sentences.push(match residual {
            0 => format!("{name}: the ledger equals the kernel's figure to the byte."),
            _ => format!(
                "{name}: {} unexplained, {}.",
                signed(residual),
                report.fit().words()
            ),
        });
        for counter in report.counters.iter().filter(|counter| !counter.holds()) {
            sentences.push(format!(
                "{name}, {}: {} unexplained, {}.",
                counter.counter,
                signed(counter.residual_bytes),
                counter.fit().words()
            ));
        }
    }
    if ever_beyond && reports.iter().all(Report::holds) {
        sentences.push("At an earlier report the residual exceeded its bound.".to_owned());
    }
    if let Some(check) = stream {
        let lost = reports.first().map_or(0, |report| report.lost.ring);
        sentences.push(if check.agrees {
            format!("{} streamed records add up to the kernel-side totals.", check.records)
        } else if lost > 0 {
            format!("{} streamed records differ from the totals in {} places: {lost} records were lost.", check.records, check.differences)
        } else {
            format!("{} streamed records differ from the totals in {} places though none was lost.", check.records, check.differences)
        });
    }
    sentences
}
