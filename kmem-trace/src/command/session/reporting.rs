//! Readings → reports.

use std::collections::{HashMap, HashSet};

use anyhow::Result;
use aya::util::online_cpus;

use super::{Session, reading::Key};
use crate::{
    kernel::cgroupfs::{self, CgroupDir},
    ledger::tree::Life,
    reconcile::{
        breakdown,
        report::{BoundTerms, CounterReport, Lost, Report},
        usage::{Bracket, Source, Terms, reconcile},
    },
    view::name,
};

/// A report is read again, at most so often, when something moved while it was read.
const REPORT_READINGS: usize = 3;

impl Session {
    /// Reports on every cgroup that is reported on, parents first.
    ///
    /// # Errors
    /// Where the maps cannot be read.
    pub fn reports(&mut self) -> Result<Vec<Report>> {
        self.look_around();
        let ids = self.ids();
        self.read_reports(&ids)
    }

    /// Reads again what is beyond its bound: a residual there is one that stays, each cgroup's by itself
    /// (see [`PATIENCE_MS`](super::PATIENCE_MS)).
    ///
    /// # Errors
    /// Where the maps cannot be read.
    pub fn read_again(&mut self, reports: &mut [Report]) -> Result<()> {
        let beyond = |report: &&Report| !report.holds();
        let ids = reports.iter().filter(beyond).map(|it| it.cgroup_id);
        let ids: HashSet<u64> = ids.collect();
        for again in self.read_reports(&ids)? {
            if let Some(report) = reports
                .iter_mut()
                .find(|it| it.cgroup_id == again.cgroup_id)
            {
                *report = again;
            }
        }
        Ok(())
    }

    fn read_reports(&mut self, ids: &HashSet<u64>) -> Result<Vec<Report>> {
        let mut best = self.best_brackets(ids)?;
        let mut reading = self.reading()?;
        // Whose pages these are is asked before they are compared with what holds them.
        if self.names_the_nameless(&reading) {
            best = self.best_brackets(ids)?;
            reading = self.reading()?;
        }
        let brackets: HashMap<_, _> = best.into_iter().collect();
        let lost = self.lost();
        let terms = Terms {
            page_bytes: self.page_bytes,
            online_cpus: online_cpus().map_or(1, |cpus| cpus.len()) as u64,
            source: if self.plan.exact {
                Source::Counters
            } else {
                Source::Items {
                    stock_pages: self.stock_pages(),
                }
            },
            largest_pages: 0,
            lost_pages: self.lost_pages(&lost, &reading),
            nameless_pages: self.nameless_pages(&reading),
        };
        let mut reports = Vec::new();
        for dir in self.reported.clone() {
            let Some(bracket) = brackets.get(&(dir.id, "memory")) else {
                continue;
            };
            let terms = Terms {
                largest_pages: bracket.after.largest,
                ..terms
            };
            reports.push(self.report(&dir, bracket, &brackets, lost.clone(), &terms));
        }
        Ok(reports)
    }

    /// Of several readings, the one during which least moved.
    fn best_brackets(&mut self, ids: &HashSet<u64>) -> Result<Vec<(Key, Bracket)>> {
        let mut best = self.brackets(ids)?;
        for _ in 1..REPORT_READINGS {
            if self.skew(&best) == 0 {
                break;
            }
            let again = self.brackets(ids)?;
            if again.len() >= best.len() && self.skew(&again) < self.skew(&best) {
                best = again;
            }
        }
        Ok(best)
    }

    /// Pages that moved while the files were read, over all brackets.
    fn skew(&self, brackets: &[(Key, Bracket)]) -> u64 {
        brackets
            .iter()
            .map(|((_, name), bracket)| bracket.skew_pages(self.slots(name)))
            .sum()
    }

    fn report(
        &self,
        dir: &CgroupDir,
        bracket: &Bracket,
        brackets: &HashMap<Key, Bracket>,
        lost: Lost,
        terms: &Terms,
    ) -> Report {
        let now = &bracket.after;
        let base = |name| self.bases.get(&(dir.id, name)).copied().unwrap_or_default();
        let slots = self.slots("memory");
        let usage = reconcile(bracket, &base("memory"), slots, terms);
        let counters: Vec<CounterReport> = self
            .counter_files()
            .iter()
            .filter_map(|file| {
                let bracket = brackets.get(&(dir.id, file.name))?;
                // These items follow their counter page for page: no stock between them.
                let terms = Terms {
                    source: Source::Counters,
                    ..*terms
                };
                let found = reconcile(bracket, &base(file.name), file.slots, &terms);
                Some(CounterReport::new(self.counter_name(file.name), &found))
            })
            .collect();
        let kmem_bytes = brackets
            .get(&(dir.id, "kmem"))
            .map(|bracket| bracket.file_bytes);
        let stat = cgroupfs::stat(&dir.dir).unwrap_or_default();
        let parts = breakdown::of(self.hierarchy, &stat, kmem_bytes, usage.kernel_bytes);
        let page = self.page_bytes;
        let net_bytes = slots.iter().map(|slot| now.net[*slot]).sum::<i64>() * page.cast_signed();
        let gross_bytes = slots.iter().map(|slot| now.gross[*slot]).sum::<u64>() * page;
        let (mut living, mut dead) = (0, 0);
        for (id, node) in self.tree.subtree(dir.id) {
            match node.life {
                _ if id == dir.id => {}
                // Without a name it was gone before anybody looked.
                Life::Living if node.path.is_some() => living += 1,
                _ => dead += 1,
            }
        }
        dead += self.tree.forgotten_below(dir.id);
        let sees_users = self.plan.attaches("charge.user", &self.request.roles);
        let streams = self.plan.exact && self.streams();
        let streamed_pages: i64 = slots
            .iter()
            .map(|slot| self.streamed.net(&self.tree, dir.id)[*slot])
            .sum();
        Report {
            elapsed_s: self.elapsed().as_secs_f64(),
            cgroup: name::path(dir.path_in_hierarchy.as_os_str()),
            cgroup_id: dir.id,
            descendants: living,
            dead_descendants: dead,
            usage_bytes: usage.kernel_bytes,
            ledger_bytes: usage.ledger_bytes,
            residual_bytes: usage.residual_bytes,
            bound_bytes: usage.bound.total_bytes(),
            bound_terms: BoundTerms {
                skew: usage.bound.skew_bytes,
                in_flight: usage.bound.in_flight_bytes,
                stock: usage.bound.stock_bytes,
                base: usage.bound.base_bytes,
                lost: usage.bound.lost_bytes,
                nameless: usage.bound.nameless_bytes,
            },
            kmem_bytes: kmem_bytes.or(parts.kernel),
            counters,
            breakdown: parts,
            charged_bytes: gross_bytes.wrapping_add_signed(net_bytes) / 2,
            uncharged_bytes: gross_bytes.wrapping_add_signed(-net_bytes) / 2,
            user_charges: sees_users.then_some(now.user_charges),
            user_refusals: sees_users.then_some(now.user_refusals),
            streamed_bytes: streams.then_some(streamed_pages * page.cast_signed()),
            totals_bytes: net_bytes,
            limits: self.limits(&lost),
            lost,
            own: None,
        }
    }
}
