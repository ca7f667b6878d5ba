//! `kmem-trace --cgroup`: the loop between the ring, the clock, signals and the output.

use std::{
    collections::{BTreeSet, HashSet},
    fs::File,
    io::{self, BufWriter, ErrorKind, Write},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use aya::util::online_cpus;
use kmem_trace_ebpf::{record::SOURCE_FILE, sums::SLAB_KEYS};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::{Instant, MissedTickBehavior, interval_at},
};

use super::{
    cli::{Common, Format, TraceArgs},
    names::SessionNames,
    output::{self, Output},
    privilege,
    session::{PATIENCE_MS, Request, Session},
};
use crate::{
    hooks::{
        attach::{RINGS, SMALLEST_RING, Sizes},
        plan::{Plan, Struck},
        table::{self, ROLES},
    },
    kernel::{
        cgroupfs::{self, CgroupDir, Hierarchy, MemoryMount, ResolveError},
        proc,
    },
    reconcile::{
        growth, limit,
        overhead::{Governor, Step},
        report::{Lost, Report, Summary},
        slab::{self as reconcile_slab, SlabReport},
        verdict,
    },
    stream::{
        decode::{Batch, Record},
        recording::Recorder,
        source::{Source, now_ns},
    },
    view::{
        event::{self, Event},
        json::{self, At, Line, PlanLine, StepLine},
        slab as view_slab, table as screen,
    },
};

/// Slab figures are told no more often: the kernel holds up allocations while it counts
/// `/proc/slabinfo`.
const SLAB_PAUSE: Duration = Duration::from_millis(900);
/// Longest that records are taken without a look at anything else.
const AT_A_TIME: Duration = Duration::from_millis(50);
/// How often the ring is looked at when the programs do not say that it fills.
const LOOK: Duration = Duration::from_millis(20);

/// Slab objects without a payer that are remembered, where nobody says how many.
pub const MAX_OBJECTS: u32 = 262_144;

/// How a trace ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Every residual was within its bound.
    Explained,
    /// At some report a residual exceeded its bound.
    Beyond,
}

/// `kmem-trace --cgroup …`.
///
/// # Errors
/// Where there is no such cgroup, or the kernel does not let us trace.
pub async fn main(args: TraceArgs) -> Result<Outcome> {
    let mount = MemoryMount::find()?;
    let mut targets: Vec<CgroupDir> = Vec::new();
    for argument in &args.cgroups {
        let found = match cgroupfs::find(&mount, argument) {
            // Only a ledger is impossible there; single events of all cgroups are not.
            Err(ResolveError::Root { .. }) if args.common.events.is_some() => {
                CgroupDir::top(&mount)?
            }
            Err(error @ ResolveError::Root { .. }) => {
                bail!("{error}, or add --events to see what happens in all of them")
            }
            other => other?,
        };
        if !targets.iter().any(|known| known.id == found.id) {
            targets.push(found);
        }
    }
    if let Some(pid) = args.pid {
        targets.push(cgroupfs::of_pid(&mount, pid)?);
    }
    let mut trace = Trace::start(&mount, targets, &args.common).await?;
    if let Err(error) = privilege::give_up() {
        log::warn!("this trace keeps its capabilities: {error:#}");
    }
    trace.follow(std::future::pending::<()>()).await
}

/// Those that end a trace.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "interrupted",
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.hangup.recv() => "SIGHUP",
        }
    }
}

/// A trace with its output.
pub struct Trace<'a> {
    session: Session,
    source: Source,
    common: &'a Common,
    out: Output,
    recorder: Option<Recorder<BufWriter<File>>>,
    /// Roles whose events are printed; `None`: reports instead.
    events: Option<HashSet<String>>,
    first_event_ns: Option<u64>,
    worst: Outcome,
    last: Vec<Report>,
    last_slab: Option<SlabReport>,
    slab_due: Instant,
    /// What it may cost.
    governor: Option<Governor>,
    /// No reports until the end.
    quiet: bool,
    /// The reader of our output is gone: finish without a word.
    closed: bool,
    signals: Signals,
    /// What ended it before what it was to follow.
    cut_short: Option<&'static str>,
}

impl<'a> Trace<'a> {
    /// Attaches and prints what is in force.
    ///
    /// # Errors
    /// As [`Session::start`]; or where a file to record to cannot be made.
    pub async fn start(
        mount: &MemoryMount,
        targets: Vec<CgroupDir>,
        common: &'a Common,
    ) -> Result<Self> {
        let events = common.events.as_ref().map(|named| requested_events(named));
        let out = output::open(common.output.as_deref(), common.format)?;
        let recorder = match &common.record {
            Some(path) => {
                let file = File::create(path)
                    .with_context(|| format!("cannot record to {}", path.display()))?;
                Some(Recorder::new(BufWriter::new(file))?)
            }
            None => None,
        };
        warn_if_inside(mount, &targets);
        let mut session = Session::start(Request {
            targets,
            mount: mount.clone(),
            attach: common.attach,
            btf: common.btf.clone(),
            roles: events.clone().unwrap_or_default(),
            slab: !common.no_slab,
            sizes: Sizes {
                ring_bytes: (common.ring * 1024).next_power_of_two().max(SMALLEST_RING),
                rings: common.rings.unwrap_or_else(rings_for_cpus),
                cgroups: common.max_cgroups,
                objects: common.max_objects.unwrap_or(MAX_OBJECTS),
                rows: common.rows.unwrap_or(SLAB_KEYS),
            },
            depth: common.depth,
            log_level: if common.verbose >= 2 { 4 } else { 0 },
            bpf_stats: common.bpf_stats,
            may_step_down: common.max_overhead.is_some(),
            strike: struck(&common.strike)?,
            forbidden: common.forbid.clone(),
            settle: common.settle,
        })
        .await?;
        if common.verbose >= 2
            && let Err(error) = aya_log::EbpfLogger::init(session.attached().ebpf())
        {
            log::warn!("the programs' log cannot be shown: {error}");
        }
        refuse_what_cannot_be_had(&session.plan, common.events.as_deref().unwrap_or_default())?;
        let source = session.source()?;
        let governor = common
            .max_overhead
            .map(|most| Governor::new(most, &session.possible_steps(events.is_some())));
        let mut trace = Self {
            session,
            source,
            common,
            out,
            recorder,
            events,
            first_event_ns: None,
            worst: Outcome::Explained,
            last: Vec::new(),
            last_slab: None,
            slab_due: Instant::now(),
            governor,
            quiet: false,
            closed: false,
            // From here on there is something to sum up, and soon a command to stop.
            signals: Signals::new()?,
            cut_short: None,
        };
        trace.print_plan()?;
        Ok(trace)
    }

    /// Prints no report before the last.
    pub fn quiet(&mut self) {
        self.quiet = true;
    }

    /// The last figures of slab; `None` where it is not attributed, or was not until the end.
    pub fn last_slab(&self) -> Option<&SlabReport> {
        let ended = self.session.stepped(Step::LedgerOnly).is_some();
        self.last_slab.as_ref().filter(|_| !ended)
    }

    /// Where all of it is printed.
    pub fn output(&mut self) -> &mut Output {
        &mut self.out
    }

    /// What ended the trace before what it was to follow: the deadline or a signal.
    pub fn cut_short(&self) -> Option<&'static str> {
        self.cut_short
    }

    /// Runs until `end`, the deadline or a signal, whichever comes first; then sums up.
    ///
    /// # Errors
    /// Where the output or the kernel's maps fail.
    pub async fn follow(&mut self, end: impl Future<Output = ()>) -> Result<Outcome> {
        let now = Instant::now();
        let mut look = interval_at(now + LOOK, LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut report = interval_at(now + self.common.interval, self.common.interval);
        report.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let deadline = self.common.duration.map(|duration| now + duration);
        let sleep = async move {
            match deadline {
                Some(deadline) => tokio::time::sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(sleep, end);
        while !self.closed && self.cut_short.is_none() {
            tokio::select! {
                _ = &mut end => break,
                () = &mut sleep => self.cut_short = Some("--duration"),
                which = self.signals.next() => self.cut_short = Some(which),
                _ = report.tick() => self.print_reports().await?,
                _ = look.tick() => {
                    self.drain()?;
                    self.govern()?;
                }
                () = self.source.filling() => {
                    self.drain()?;
                }
            }
        }
        self.sum_up().await?;
        Ok(self.worst)
    }

    fn print_plan(&mut self) -> Result<()> {
        let rows = self.session.plan.rows();
        let roles = self.events.clone().unwrap_or_default();
        let mechanisms = self.session.plan.mechanisms(&roles).join(" + ");
        let mode = self.session.plan.mode();
        let kernel = proc::release();
        let hierarchy = match self.session.hierarchy {
            Hierarchy::V1 => "v1",
            Hierarchy::V2 => "v2",
        };
        match self.common.format {
            Format::Json => {
                let lockdown = self.session.inspection.lockdown.to_string();
                let line = PlanLine {
                    kernel: &kernel,
                    hierarchy,
                    lockdown: &lockdown,
                    mode: mode.name(),
                    nokmem: self.session.is_nokmem(),
                    roles: &rows,
                };
                self.line(&Line::Plan(line))
            }
            Format::Table => {
                let head = screen::Headline {
                    kernel,
                    hierarchy: hierarchy.to_owned(),
                    mechanisms: format!("{mechanisms} ({})", mode.name()),
                    blind: self.session.blind_spots(),
                    nokmem: self.session.is_nokmem(),
                };
                let result = screen::headline(&mut self.out, &head);
                self.written(result)
            }
        }
    }

    async fn print_reports(&mut self) -> Result<()> {
        self.drain()?;
        let mut reports = self.session.reports()?;
        for pause in PATIENCE_MS {
            if reports.iter().all(Report::holds) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(pause)).await;
            self.drain()?;
            self.session.read_again(&mut reports)?;
        }
        for gone in self.session.newly_gone() {
            match self.common.format {
                Format::Json => self.line(&Line::Gone(&gone))?,
                Format::Table => {
                    let result = screen::gone(&mut self.out, &gone);
                    self.written(result)?;
                }
            }
        }
        if let Some(first) = reports.first_mut() {
            first.own = Some(self.session.own_cost());
        }
        for report in &reports {
            if !report.holds() {
                self.worst = Outcome::Beyond;
            }
        }
        if self.events.is_none() && !self.quiet {
            for report in &reports {
                match self.common.format {
                    Format::Json => self.line(&Line::Report(report))?,
                    Format::Table => {
                        let file = self.usage_file();
                        let result = screen::report(&mut self.out, report, file);
                        self.written(result)?;
                    }
                }
            }
        }
        if !self.quiet {
            self.print_slab()?;
        }
        if !reports.is_empty() {
            self.last = reports;
        }
        Ok(())
    }

    fn print_slab(&mut self) -> Result<()> {
        if self.events.is_some() {
            return Ok(());
        }
        if Instant::now() < self.slab_due {
            return Ok(());
        }
        let Some(slab) = self.session.slab_report() else {
            return Ok(());
        };
        self.slab_due = Instant::now() + SLAB_PAUSE;
        match self.common.format {
            Format::Json => self.slab_lines(&slab)?,
            Format::Table => {
                let result = view_slab::report(&mut self.out, &slab);
                self.written(result)?;
            }
        }
        self.last_slab = Some(slab);
        Ok(())
    }

    fn slab_lines(&mut self, slab: &SlabReport) -> Result<()> {
        macro_rules! lines {
            ($kind:ident, $lines:expr) => {
                for line in $lines {
                    let elapsed_s = slab.elapsed_s;
                    self.line(&Line::$kind(At { elapsed_s, line }))?;
                }
            };
        }
        lines!(Slab, slab.lines.iter().chain(&slab.large));
        lines!(ChargedSlab, &slab.findings.charged);
        lines!(WrongPayer, &slab.wrong_payers);
        lines!(Growth, &slab.findings.growing);
        lines!(Dead, &slab.dead);
        lines!(Node, [&slab.node]);
        Ok(())
    }

    /// Steps down where tracing costs more than it may, and says so.
    fn govern(&mut self) -> Result<()> {
        let Some(governor) = &mut self.governor else {
            return Ok(());
        };
        if !governor.is_due(self.session.elapsed()) {
            return Ok(());
        }
        let decided = governor.look(self.session.spent(), self.session.online_cpus());
        let Some(decision) = decided else {
            return Ok(());
        };
        let step = decision.step;
        if step == Step::LedgerOnly {
            // The last that there will be.
            self.slab_due = Instant::now();
            // Told at once, also by a trace that is quiet until its end: then they would be old.
            self.print_slab()?;
        }
        self.session.step_down(step)?;
        if step == Step::Aggregates {
            // Those that were sent before are told before.
            self.drain_all()?;
            self.events = None;
        }
        let line = StepLine {
            elapsed_s: self.session.elapsed().as_secs_f64(),
            decision,
            off: step.off(),
            cannot_say: step.cannot_say(),
        };
        match self.common.format {
            Format::Json => self.line(&Line::Step(&line))?,
            Format::Table => {
                let result = screen::step(&mut self.out, &line);
                self.written(result)?;
            }
        }
        Ok(())
    }

    fn usage_file(&self) -> &'static str {
        match self.session.hierarchy {
            Hierarchy::V1 => "usage_in_bytes",
            Hierarchy::V2 => "memory.current",
        }
    }

    /// Takes what waits. In a flood something always does, and more comes of what is printed: then
    /// no more than some time of it, so that reports, signals and the deadline get theirs.
    /// `false` where more waits.
    fn drain(&mut self) -> Result<bool> {
        let enough = Instant::now() + AT_A_TIME;
        while !self.closed {
            let batch = self.source.drain();
            if batch.as_bytes().is_empty() && !self.source.has_more() {
                self.session.lost_records(self.source.lost());
                self.session.look_if_needed();
                self.session.retire(self.source.settled_ns())?;
                break;
            }
            self.take(&batch)?;
            if Instant::now() >= enough {
                self.session.look_if_needed();
                // A flood may last, and cgroups come and go in it.
                self.session.retire(self.source.settled_ns())?;
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Takes all that was sent until now.
    fn drain_all(&mut self) -> Result<()> {
        let until = now_ns();
        // Whoever has no reader any more takes nothing, and what is still sent may never end.
        while !self.closed {
            if self.drain()? && (!self.source.holds_back() || self.source.settled_ns() >= until) {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    fn take(&mut self, batch: &Batch) -> Result<()> {
        if let Some(recorder) = &mut self.recorder {
            recorder.add(batch).context("cannot record")?;
        }
        for record in batch.records() {
            let record = record.context("the programs sent what is no record")?;
            self.session.apply(&record);
            if self.events.is_some() {
                // Whose a new cgroup is, its name may have to tell.
                self.session.look_if_needed();
            }
            if !self.is_wanted(&record) {
                continue;
            }
            let event = Event::of(&record, &SessionNames(&self.session));
            match self.common.format {
                Format::Json => self.line(&Line::Event(&event))?,
                Format::Table => {
                    // Among reports, time is told as they tell it: from the start.
                    let before_ns = match &self.events {
                        Some(_) => 0,
                        None => self.session.elapsed().as_nanos() as u64,
                    };
                    let start_ns = event.time_ns.saturating_sub(before_ns);
                    let since = *self.first_event_ns.get_or_insert(start_ns);
                    let result = writeln!(self.out, "{}", event.line(since));
                    self.written(result)?;
                }
            }
        }
        let result = self.out.flush();
        self.written(result)
    }

    /// Whether a record is printed: what `--events` names; without it, the writes to limit files,
    /// which are rare and change what the reports mean.
    fn is_wanted(&self, record: &Record<'_>) -> bool {
        let Some(roles) = &self.events else {
            return !self.quiet
                && matches!(record, Record::Limit(limit) if limit.source == SOURCE_FILE);
        };
        if !self.session.is_of_targets(record) {
            return false;
        }
        // Where one hook serves both roles, a write to the kernel memory file is of both.
        let is_kmem = matches!(record, Record::Limit(limit) if limit::is_kmem(limit));
        roles.contains(event::role(record)) || is_kmem && roles.contains("limit.kmem")
    }

    async fn sum_up(&mut self) -> Result<()> {
        let seen_nothing = std::mem::take(&mut self.quiet);
        // A person has just seen a report that is as good as the last one.
        let seen = !seen_nothing
            && self.common.format == Format::Table
            && self.last.first().is_some_and(|last| {
                let age = self.session.elapsed().as_secs_f64() - last.elapsed_s;
                age < self.common.interval.as_secs_f64() / 4.0
            });
        if !seen {
            self.slab_due = Instant::now();
            self.print_reports().await?;
        } else if self.common.interval.as_secs_f64() < SLAB_PAUSE.as_secs_f64() {
            self.slab_due = Instant::now();
            self.print_slab()?;
        }
        self.session.detach().await;
        self.drain_all()?;
        // Nothing runs any more: the last figures.
        let own = self.session.own_cost();
        if let Some(recorder) = &mut self.recorder {
            recorder.finish().context("cannot record")?;
        }
        let stream = self.session.stream_check()?;
        let Some(mut report) = self.last.first().cloned() else {
            return Ok(());
        };
        // The summary has the latest of these.
        report.own = None;
        // What its bound has of these stays what it is told by.
        report.lost = Lost {
            unwatched_softirqs: report.lost.unwatched_softirqs,
            unwatched_pages: report.lost.unwatched_pages,
            ..self.session.lost()
        };
        let ever_beyond = self.worst == Outcome::Beyond;
        let mut verdict = verdict::sentences(&self.last, ever_beyond, stream.as_ref());
        if let Some(at) = self.session.stepped(Step::Aggregates) {
            verdict.push(format!(
                "No records since +{:.1} s (--max-overhead): nothing checks the totals but the kernel's figures.",
                at.as_secs_f64()
            ));
        }
        if let Some(slab) = &self.last_slab {
            if let Some(at) = self.session.stepped(Step::LedgerOnly) {
                verdict.push(format!(
                    "Slab was followed until +{:.1} s (--max-overhead); until then:",
                    at.as_secs_f64()
                ));
            }
            verdict.extend(reconcile_slab::verdict(slab));
            verdict.extend(growth::sentences(&slab.findings.growing));
        }
        let summary = Summary {
            report,
            verdict,
            stream,
            own,
        };
        match self.common.format {
            Format::Json => self.line(&Line::Summary(&summary)),
            Format::Table => {
                let result = screen::summary(&mut self.out, &summary);
                self.written(result)
            }
        }
    }

    fn line(&mut self, line: &Line<'_>) -> Result<()> {
        let result = json::write(&mut self.out, line);
        self.written(result)
    }

    /// A reader that has gone away (`| head`) ends the trace quietly; a full disk does not.
    fn written(&mut self, result: io::Result<()>) -> Result<()> {
        match result {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {
                self.closed = true;
                Ok(())
            }
            other => other.context("cannot write the output"),
        }
    }
}

/// Whoever names a role waits for its events.
///
/// # Errors
/// Where this kernel gives none of those named; where it gives some, that is only said.
fn refuse_what_cannot_be_had(plan: &Plan, named: &[String]) -> Result<()> {
    let named: BTreeSet<&str> = named
        .iter()
        .map(String::as_str)
        .filter(|name| !name.is_empty())
        .collect();
    let missing: Vec<String> = named
        .iter()
        .filter_map(|name| plan.role(name))
        .filter(|role| role.choice.is_none())
        .map(|role| format!("{} ({})", role.role.name, role.why))
        .collect();
    let line = format!(
        "this kernel gives no events of {}",
        missing.join(", nor of ")
    );
    match missing.len() {
        0 => {}
        all if all == named.len() => {
            bail!("--events: {line}; `kmem-trace doctor` shows what it gives")
        }
        _ => log::warn!("--events: {line}"),
    }
    Ok(())
}

/// The roles that `--events` names; without a name all that are not expensive.
fn requested_events(named: &[String]) -> HashSet<String> {
    let named: HashSet<String> = named
        .iter()
        .filter(|name| !name.is_empty())
        .cloned()
        .collect();
    if !named.is_empty() {
        return named;
    }
    ROLES
        .iter()
        .filter(|role| !role.on_request)
        .map(|role| role.name.to_owned())
        .collect()
}

/// `role:index` of `--strike`.
pub fn struck(words: &[String]) -> Result<Struck> {
    let mut struck = Struck::new();
    for word in words {
        let parsed = word
            .split_once(':')
            .and_then(|(role, index)| Some((table::role(role)?.name, index.parse().ok()?)));
        match parsed {
            Some(key) => struck.insert(key),
            None => bail!("--strike {word}: write role:index, as in counter.charge:0"),
        };
    }
    Ok(struck)
}

/// The tracer's own maps are charged to its cgroup (5.11 and later): inside the traced subtree they
/// would be part of what is measured.
fn warn_if_inside(mount: &MemoryMount, targets: &[CgroupDir]) {
    let Ok(own) = cgroupfs::of_pid(mount, std::process::id()) else {
        return;
    };
    // No figure of the root is compared with anything.
    let measured = |target: &&CgroupDir| !mount.is_root(&target.dir);
    for target in targets.iter().filter(measured) {
        if own.path_in_hierarchy.starts_with(&target.path_in_hierarchy) {
            log::warn!(
                "this tracer itself runs in {}: its own memory is part of what it measures",
                crate::view::name::path(target.path_in_hierarchy.as_os_str())
            );
        }
    }
}

/// So many CPUs share a ring that they seldom wait for one another.
const CPUS_A_RING: usize = 8;

fn rings_for_cpus() -> u32 {
    let cpus = online_cpus().map_or(1, |cpus| cpus.len());
    let rings = (cpus / CPUS_A_RING).clamp(1, RINGS.len());
    1 << rings.ilog2()
}
