//! Arithmetic on measurements.

/// The middle of what was measured; of an even number, the mean of the two in the middle. 0 of
/// nothing.
pub fn median(measured: &[f64]) -> f64 {
    let mut sorted = measured.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => 0.0,
        length if length % 2 == 1 => sorted[middle],
        _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

/// How far the middle half of what was measured is apart, as a part of the median.
pub fn spread(measured: &[f64]) -> f64 {
    let mut sorted = measured.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().saturating_sub(1) as f64;
    let at = |part: f64| sorted.get((last * part).round() as usize).copied();
    match (at(0.25), at(0.75)) {
        (Some(low), Some(high)) if median(measured) > 0.0 => (high - low) / median(measured),
        _ => 0.0,
    }
}

/// Times of the same rounds → how much slower than the first one each time was, round by round:
/// what drifts between rounds drops out.
pub fn slowdowns(untraced: &[f64], traced: &[f64]) -> Vec<f64> {
    untraced
        .iter()
        .zip(traced)
        .filter(|(untraced, _)| **untraced > 0.0)
        .map(|(untraced, traced)| traced / untraced)
        .collect()
}

/// What we add as a part of what another adds; `None` where the other adds nothing that could be
/// measured, or there is no other.
pub fn share_of(ours: f64, other: f64) -> Option<f64> {
    let added = other - 1.0;
    (added > 0.005).then(|| (ours - 1.0) / added)
}

/// A goal that is an upper limit, and how it was met.
pub fn at_most(what: &str, measured: Option<f64>, goal: f64, unit: &str) -> String {
    match measured {
        Some(measured) if measured <= goal => {
            format!("- {what}: {measured:.2}{unit}, goal at most {goal:.2}{unit}: met.")
        }
        Some(measured) => format!(
            "- {what}: {measured:.2}{unit}, goal at most {goal:.2}{unit}: **missed**, {:.1} times as much.",
            measured / goal
        ),
        None => format!("- {what}: not measured, goal at most {goal:.2}{unit}."),
    }
}

/// A goal that is a lower limit, and how it was met.
pub fn at_least(what: &str, measured: f64, goal: f64, unit: &str) -> String {
    if measured >= goal {
        format!("- {what}: {measured:.1}{unit}, goal at least {goal:.1}{unit}: met.")
    } else {
        format!(
            "- {what}: {measured:.1}{unit}, goal at least {goal:.1}{unit}: **missed**, {:.0} % of it.",
            100.0 * measured / goal
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_wild_measurement_does_not_move_the_median() {
        assert_eq!(median(&[3.0, 1.0, 900.0]), 3.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 900.0]), 3.0);
        assert_eq!(median(&[]), 0.0);
    }

    #[test]
    fn the_spread_is_that_of_the_middle_half() {
        assert_eq!(spread(&[9.0, 10.0, 10.0, 11.0, 500.0]), 0.1);
        assert_eq!(spread(&[]), 0.0);
    }

    #[test]
    fn drift_from_round_to_round_drops_out_of_slowdowns() {
        assert_eq!(slowdowns(&[10.0, 20.0], &[15.0, 30.0]), [1.5, 1.5]);
    }

    #[test]
    fn what_we_add_is_held_against_what_others_add() {
        assert_eq!(share_of(1.5, 2.0), Some(0.5));
        assert_eq!(share_of(1.5, 1.0), None);
    }

    #[test]
    fn a_goal_says_by_how_much_it_was_missed() {
        assert_eq!(
            at_most("ours", Some(3.0), 1.5, " ×"),
            "- ours: 3.00 ×, goal at most 1.50 ×: **missed**, 2.0 times as much."
        );
        assert!(at_most("ours", Some(1.5), 1.5, "").ends_with("met."));
        assert!(at_most("ours", None, 1.5, "").contains("not measured"));
        assert!(at_least("speed", 10.0, 20.0, " M").ends_with("50 % of it."));
        assert!(at_least("speed", 20.0, 20.0, " M").ends_with("met."));
    }
}
