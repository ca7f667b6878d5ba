//! Caches that only grow: live bytes that never fell over the reports of a trace, and rose in most
//! of them until the end. Pure.

use std::collections::HashMap;

use serde::Serialize;

use super::slab::{SlabLine, because};
use crate::view::size::human;

/// Fewer intervals show no trend: what a load makes when it starts would be one.
const INTERVALS: u32 = 5;
/// Intervals without a rise until a cache is said to stand still.
const LATEST: u32 = 3;
/// A cache that grew by less is noise.
const WORTH_BYTES: i64 = 64 * 1024;
/// Told of at the end.
const TOLD: usize = 3;

/// A cache that only grows.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct GrowthLine {
    pub cgroup: String,
    pub cache: String,
    /// `charged`, or why not.
    pub cause: &'static str,
    /// Where most of the bytes were asked for.
    pub call_site: Option<String>,
    pub bytes_per_s: f64,
    /// Within the window.
    pub grown_bytes: i64,
    /// From the first report that it was seen in, or from the one before, to the last.
    pub window_s: f64,
}

impl GrowthLine {
    /// `dentry +1.2 MiB/s over 12 s at __d_alloc+0x2d, charged to /a`.
    pub fn text(&self) -> String {
        let site = self
            .call_site
            .as_deref()
            .map_or(String::new(), |site| format!(" at {site}"));
        let whose = match self.cause {
            "charged" => format!("charged to {}", self.cgroup),
            cause => format!("asked for by {}, {}", self.cgroup, because(cause)),
        };
        // A rate is positive here, and far below 2^63.
        let rate = human(self.bytes_per_s.round() as u64);
        format!(
            "{} +{rate}/s over {:.0} s{site}, {whose}",
            self.cache, self.window_s
        )
    }
}

/// The sentences that a trace ends with.
pub fn sentences(growing: &[GrowthLine]) -> Vec<String> {
    growing
        .iter()
        .take(TOLD)
        .map(|line| {
            format!(
                "Only growing: {}; {} so far.",
                line.text(),
                human(line.grown_bytes.unsigned_abs())
            )
        })
        .collect()
}

/// A cgroup's live bytes of one cache and cause over the reports.
#[derive(Clone, Debug, Default)]
struct Series {
    began_s: f64,
    first_bytes: i64,
    last_bytes: i64,
    intervals: u32,
    rises: u32,
    /// One bit an interval, the latest lowest: it rose.
    recent: u64,
    fell: bool,
    /// As the latest report has it.
    call_site: Option<String>,
}

impl Series {
    fn add(&mut self, bytes: i64) {
        let rose = bytes > self.last_bytes;
        self.fell |= bytes < self.last_bytes;
        self.last_bytes = bytes;
        self.intervals += 1;
        self.rises += u32::from(rose);
        self.recent = self.recent << 1 | u64::from(rose);
    }

    /// Rose in more than half of all intervals, and of their later half, and in one of the latest
    /// ones, so that what has come to rest is no growth.
    fn only_grows(&self) -> bool {
        let half = (self.intervals / 2).clamp(1, u64::BITS - 1);
        let later = (self.recent & ((1 << half) - 1)).count_ones();
        !self.fell
            && self.intervals >= INTERVALS
            && self.last_bytes - self.first_bytes >= WORTH_BYTES
            && self.rises * 2 > self.intervals
            && later * 2 > half
            && self.recent & ((1 << LATEST) - 1) != 0
    }
}

/// The reports of one trace so far.
#[derive(Clone, Debug, Default)]
pub struct Watch {
    series: HashMap<(String, String, &'static str), Series>,
    last_s: f64,
}

impl Watch {
    /// Takes the lines of one report; returns what has only grown until then, fastest first.
    pub fn add(&mut self, at_s: f64, lines: &[SlabLine]) -> Vec<GrowthLine> {
        let mut now: HashMap<(String, String, &'static str), (i64, &SlabLine)> = HashMap::new();
        for line in lines {
            let key = (line.cgroup.clone(), line.cache.clone(), line.cause);
            let (bytes, largest) = now.entry(key).or_insert((0, line));
            *bytes += line.bytes;
            if line.bytes > largest.bytes {
                *largest = line;
            }
        }
        for (key, (bytes, largest)) in now {
            let series = self.series.entry(key).or_insert_with(|| Series {
                began_s: self.last_s,
                ..Series::default()
            });
            series.add(bytes);
            series.call_site.clone_from(&largest.call_site);
        }
        self.last_s = at_s;
        let mut growing: Vec<GrowthLine> = self
            .series
            .iter()
            .filter(|(_, series)| series.only_grows() && at_s > series.began_s)
            .map(|((cgroup, cache, cause), series)| {
                let window_s = at_s - series.began_s;
                let grown_bytes = series.last_bytes - series.first_bytes;
                GrowthLine {
                    cgroup: cgroup.clone(),
                    cache: cache.clone(),
                    cause,
                    call_site: series.call_site.clone(),
                    bytes_per_s: grown_bytes as f64 / window_s,
                    grown_bytes,
                    window_s,
                }
            })
            .collect();
        growing.sort_by(|one, other| {
            other
                .bytes_per_s
                .total_cmp(&one.bytes_per_s)
                .then_with(|| one.cache.cmp(&other.cache))
        });
        growing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: i64 = 1024;

    fn line(cache: &str, cause: &'static str, site: &str, bytes: i64) -> SlabLine {
        SlabLine {
            bytes_are: crate::reconcile::slab::Reading::Counted,
            cgroup: "/a".to_owned(),
            cache: cache.to_owned(),
            cause,
            call_site: Some(site.to_owned()),
            objects: bytes / KIB,
            bytes,
            allocated_bytes: bytes.unsigned_abs(),
            freed_bytes: 0,
            coverage: None,
            coverage_bound: None,
        }
    }

    /// What is said after reports of these KiB, one a second.
    fn after(kib: &[i64]) -> Vec<GrowthLine> {
        let mut watch = Watch::default();
        let mut said = Vec::new();
        for (second, kib) in kib.iter().enumerate() {
            said = watch.add(
                (second + 1) as f64,
                &[line("dentry", "charged", "d_alloc", kib * KIB)],
            );
        }
        said
    }

    #[test]
    fn a_cache_that_rises_with_every_report_is_named_with_its_rate_and_call_site() {
        let said = after(&[100, 200, 300, 400, 500, 600]);
        assert_eq!(said.len(), 1);
        assert_eq!(said[0].grown_bytes, 600 * KIB);
        assert!((said[0].bytes_per_s - 100.0 * KIB as f64).abs() < 1e-6);
        assert_eq!(
            sentences(&said),
            [
                "Only growing: dentry +100.0 KiB/s over 6 s at d_alloc, charged to /a; 600.0 KiB so far."
            ]
        );
    }

    #[test]
    fn a_pause_now_and_then_is_growth_still() {
        assert_eq!(after(&[100, 200, 200, 300, 400, 400, 500, 600]).len(), 1);
    }

    #[test]
    fn a_flat_cache_a_saw_tooth_and_a_ramp_that_ended_are_no_growth() {
        assert_eq!(after(&[500; 20]), []);
        assert_eq!(after(&[100, 200, 300, 400, 100, 200, 300, 400, 500]), []);
        assert_eq!(
            after(&[100, 200, 300, 400, 500, 600, 600, 600, 600, 600]),
            []
        );
    }

    #[test]
    fn what_came_to_rest_lately_is_no_growth_any_more() {
        let rising: Vec<i64> = (1..=20).map(|second| second * 100).collect();
        let rested = |more: usize| after(&[&rising[..], &vec![2000; more]].concat()).len();
        assert_eq!((rested(2), rested(3)), (1, 0));
    }

    #[test]
    fn few_reports_and_few_bytes_are_no_trend() {
        assert_eq!(after(&[100, 200, 300, 400]), []);
        assert_eq!(after(&[1, 2, 3, 4, 5, 6, 7, 8]), []);
    }

    #[test]
    fn charged_and_uncharged_objects_of_a_cache_are_told_apart_and_call_sites_added_up() {
        let mut watch = Watch::default();
        let mut said = Vec::new();
        for second in 1..=6_i64 {
            said = watch.add(
                second as f64,
                &[
                    line("TCP", "charged", "one", 1000 * KIB),
                    line("TCP", "softirq", "one", second * 10 * KIB),
                    line("TCP", "softirq", "other", second * 20 * KIB),
                ],
            );
        }
        assert_eq!(said.len(), 1);
        assert_eq!(
            (said[0].cause, said[0].call_site.as_deref()),
            ("softirq", Some("other"))
        );
        assert_eq!(said[0].grown_bytes, 180 * KIB);
    }

    #[test]
    fn a_cache_that_comes_late_is_measured_from_when_it_came() {
        let mut watch = Watch::default();
        for second in 1..=10 {
            watch.add(f64::from(second), &[]);
        }
        let mut said = Vec::new();
        for second in 11..=16_i64 {
            let bytes = (second - 10) * 100 * KIB;
            said = watch.add(second as f64, &[line("pid", "charged", "fork", bytes)]);
        }
        assert!((said[0].window_s - 6.0).abs() < 1e-9, "{said:?}");
        assert!((said[0].bytes_per_s - 100.0 * KIB as f64).abs() < 1e-6);
    }

    #[test]
    fn more_reports_than_bits_are_no_trouble() {
        let many: Vec<i64> = (1..300).map(|second| second * 10).collect();
        assert_eq!(after(&many).len(), 1);
    }
}
