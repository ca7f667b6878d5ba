//! The candidate chosen for each role of the table, and why. Pure: facts in, plan out.

use std::collections::{BTreeSet, HashMap, HashSet};

use kmem_trace_ebpf::{config::Config, pairs::ProgramMembers};
use serde::Serialize;

use super::{
    allowed::Allowed,
    context,
    layout::{self, Layout, Sources},
    limits, memcg_stat,
    site::{AllSites, RETURN_THUNKS},
    slab_layout, slab_paths,
    table::{self, Candidate, Hook, Mechanism, Need, Place, ROLES, Role, Status},
    unwatched,
};

/// `--attach`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum AttachMode {
    /// Charges and limits by kprobe, slab by whatever is cheapest; tracepoints alone where the
    /// kernel allows no more.
    #[default]
    Auto,
    Kprobe,
    Fentry,
    Tracepoint,
}

/// A candidate of a role, by its place in the table.
pub type Struck = HashSet<(&'static str, usize)>;

/// Everything a plan depends on.
pub struct Facts<'a> {
    pub sources: Sources<'a>,
    pub allowed: &'a Allowed,
    /// Where probes stand inside functions.
    pub sites: &'a AllSites,
    /// Functions that kprobes and fentry can be put on; `None` where the list cannot be read.
    pub traceable: Option<&'a BTreeSet<String>>,
    pub attach: AttachMode,
    /// Candidates that are not to be used: they failed to attach, or a test struck them out.
    pub struck: &'a Struck,
    pub struck_why: &'a HashMap<(&'static str, usize), String>,
}

/// Roles beside slab events, and what is not seen without them.
const UNSEEN_SLAB: [(&str, &str); 5] = [
    ("slab.bulk", "what comes and goes in bulk"),
    ("slab.sheaf", "frees into sheaves"),
    ("slab.nolock", "kmalloc_nolock"),
    ("slab.charge", "what is charged late"),
    ("slab.socket", "whom sockets born in softirq work for"),
];

/// What serves a role.
#[derive(Clone, Debug)]
pub struct Resolved {
    pub role: &'static Role,
    pub choice: Option<(usize, &'static Candidate)>,
    pub status: Status,
    /// Why not something better, or what to know.
    pub why: String,
}

/// A resolved role as printed and put into JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Row {
    pub role: &'static str,
    pub symbol: Option<String>,
    pub mechanism: Option<&'static str>,
    pub status: Status,
    pub why: String,
    /// Attached in a plain `kmem-trace --cgroup`; others wait to be asked for.
    pub default: bool,
}

impl Resolved {
    /// Why nothing serves it, without what it then lacks.
    pub fn why_not(&self) -> &str {
        let lacks = self.why.strip_suffix(self.role.without);
        lacks.map_or(self.why.as_str(), |why| why.trim_end_matches("; "))
    }

    pub fn row(&self, default: bool) -> Row {
        Row {
            role: self.role.name,
            symbol: self.choice.map(|(_, candidate)| symbols_of(candidate)),
            mechanism: self.choice.map(|(_, candidate)| candidate.mechanism.name()),
            status: self.status,
            why: self.why.clone(),
            default,
        }
    }
}

/// The plan of a run.
#[derive(Clone, Debug)]
pub struct Plan {
    pub roles: Vec<Resolved>,
    pub config: Config,
    /// Whether payers can be read off slab objects, or why not.
    pub attribution: Result<(), String>,
    /// Slab is attributed in this run.
    pub slab: bool,
    /// How programs load kernel memory; `None`: by a helper.
    pub cast: Option<super::cast::Cast>,
    /// How the second program of a pair finds the first.
    pub program_members: ProgramMembers,
    /// The ledger follows page counters; otherwise `memory.stat` items, within a bound.
    pub exact: bool,
}

impl Plan {
    /// Slab that passes no tracepoint, where no program on functions follows it; `has`: the kernel has
    /// such a function.
    pub fn unseen_slab(&self, has: impl Fn(&str) -> bool) -> Option<String> {
        let is_here = |role: &Role| {
            let mut hooks = role.candidates.iter().flat_map(|it| it.hooks);
            hooks.any(|hook| has(hook.symbol))
        };
        let lacks = |(name, _): &(&str, &str)| {
            self.role(name)
                .is_some_and(|it| it.choice.is_none() && is_here(it.role))
        };
        let lacking: Vec<_> = UNSEEN_SLAB.into_iter().filter(lacks).collect();
        let first = lacking.first().and_then(|(role, _)| self.role(role))?;
        let what: Vec<&str> = lacking.iter().map(|(_, what)| *what).collect();
        Some(format!("of slab, {}: {}", what.join(", "), first.why_not()))
    }

    pub fn role(&self, name: &str) -> Option<&Resolved> {
        self.roles
            .iter()
            .find(|resolved| resolved.role.name == name)
    }

    /// How good the ledger is: by page counters of which no change is missed, or less.
    pub fn mode(&self) -> Status {
        let seen = |name| {
            self.role(name)
                .is_some_and(|resolved| resolved.status == Status::Exact)
        };
        match self.has_ledger() {
            true if seen("counter.charge") && seen("counter.uncharge") => Status::Exact,
            true => Status::Bounded,
            false => Status::Missing,
        }
    }

    /// Whether the ledger has something to go by.
    pub fn has_ledger(&self) -> bool {
        self.exact
            || self
                .role("memcg.state")
                .is_some_and(|resolved| resolved.choice.is_some())
    }

    /// The roles a run attaches: all that are on by default and those of `requested`. Items of
    /// `memory.stat` are the ledger's where there are no page counters.
    pub fn wanted(&self, requested: &HashSet<String>) -> Vec<&Resolved> {
        self.roles
            .iter()
            .filter(|resolved| {
                let name = resolved.role.name;
                self.is_default(resolved) || requested.contains(name)
            })
            .collect()
    }

    /// Whether a run that asks for `requested` attaches a role.
    pub fn attaches(&self, name: &str, requested: &HashSet<String>) -> bool {
        self.role(name).is_some_and(|resolved| {
            resolved.choice.is_some()
                && (self.is_default(resolved) || requested.contains(resolved.role.name))
        })
    }

    fn is_default(&self, resolved: &Resolved) -> bool {
        match resolved.role.name {
            "memcg.state" => !self.exact,
            name if table::is_slab(name) => self.slab && resolved.choice.is_some(),
            "charge.user" => !self.would_hide_charges(resolved),
            _ => !resolved.role.on_request,
        }
    }

    /// Frequent kprobes with interrupts on keep the ledger's own from running in those.
    fn would_hide_charges(&self, resolved: &Resolved) -> bool {
        let nests = |resolved: &Resolved| {
            resolved.choice.is_some_and(|(_, it)| {
                let plain = |hook: &Hook| matches!(hook.place, Place::Kprobe | Place::Kretprobe);
                it.hooks.iter().any(plain)
            })
        };
        let ledger = self.role("counter.charge");
        let by_kprobe = ledger.and_then(|it| it.choice);
        nests(resolved)
            && by_kprobe.is_some_and(|(_, it)| it.mechanism == Mechanism::Kprobe)
            && !ledger.is_some_and(nests)
    }

    pub fn rows(&self) -> Vec<Row> {
        self.roles
            .iter()
            .map(|resolved| resolved.row(self.is_default(resolved)))
            .collect()
    }

    /// The mechanisms in use, for the headline.
    pub fn mechanisms(&self, requested: &HashSet<String>) -> Vec<&'static str> {
        let mut names = Vec::new();
        for resolved in self.wanted(requested) {
            if let Some((_, candidate)) = resolved.choice
                && candidate.mechanism != Mechanism::Read
                && !names.contains(&candidate.mechanism.name())
            {
                names.push(candidate.mechanism.name());
            }
        }
        names
    }
}

/// Chooses.
pub fn resolve(facts: &Facts<'_>) -> Plan {
    let Layout { mut config, unmet } = layout::resolve(&facts.sources);
    config.can_read = u32::from(facts.allowed.reads.is_ok());
    let roles: Vec<_> = ROLES
        .iter()
        .map(|role| choose(role, facts, &unmet, &mut config))
        .collect();
    if roles.iter().any(|resolved| {
        table::is_slab(resolved.role.name)
            && matches!(resolved.choice, Some((_, it)) if it.mechanism == Mechanism::Tracepoint)
    }) {
        layout::slab_records(facts.sources.formats, &mut config);
    }
    let exact = ["counter.charge", "counter.uncharge"].iter().all(|name| {
        roles
            .iter()
            .any(|resolved| resolved.role.name == *name && resolved.choice.is_some())
    });
    let attribution = match (&facts.allowed.reads, unmet.get(&Need::SlabPlace)) {
        (Err(why), _) => Err(why.clone()),
        (_, Some(why)) => Err(why.clone()),
        _ => slab_layout::served(&roles),
    };
    Plan {
        roles,
        config,
        attribution,
        slab: false,
        cast: None,
        program_members: ProgramMembers::UNSET,
        exact,
    }
}

/// Why a candidate was passed over.
enum Passed {
    /// For the other cgroup version or for older kernels: no reason that anybody asked for.
    OtherHierarchy(String),
    /// An older or newer kernel's symbol.
    Absent(String),
    /// The kernel, or what is known of it, does not allow it.
    Refused(String),
}

impl Passed {
    fn text(&self) -> &str {
        match self {
            Self::OtherHierarchy(text) | Self::Absent(text) | Self::Refused(text) => text,
        }
    }
}

fn choose(
    role: &'static Role,
    facts: &Facts<'_>,
    unmet: &HashMap<Need, String>,
    config: &mut Config,
) -> Resolved {
    let mut passed = Vec::new();
    for (index, candidate) in order(role, facts.attach) {
        match fits(role, index, candidate, facts, unmet, config) {
            Ok(()) => {
                let refused = passed.iter().find_map(|reason| match reason {
                    Passed::Refused(text) => Some(text.as_str()),
                    _ => None,
                });
                let remark = (!candidate.remark.is_empty()).then_some(candidate.remark);
                let why: Vec<&str> = remark.into_iter().chain(refused).collect();
                return Resolved {
                    role,
                    choice: Some((index, candidate)),
                    status: candidate.gives,
                    why: why.join("; "),
                };
            }
            Err(reason) => passed.push(reason),
        }
    }
    Resolved {
        role,
        choice: None,
        status: Status::Missing,
        why: format!("{}; {}", most_telling(&passed), role.without),
    }
}

/// What was refused, each reason once; else an absence; else the other hierarchy.
fn most_telling(passed: &[Passed]) -> String {
    let mut refused: Vec<&str> = Vec::new();
    for reason in passed {
        match reason {
            Passed::Refused(text) if !refused.contains(&text.as_str()) => refused.push(text),
            _ => {}
        }
    }
    if !refused.is_empty() {
        return refused.join("; ");
    }
    let absent = passed.iter().find(|it| matches!(it, Passed::Absent(_)));
    let first = absent.or(passed.first());
    first
        .map_or("nothing in the table fits", Passed::text)
        .to_owned()
}

/// The candidates in the order in which `--attach` wants them tried.
fn order(role: &'static Role, attach: AttachMode) -> Vec<(usize, &'static Candidate)> {
    let all = role.candidates.iter().enumerate();
    let forced = match attach {
        AttachMode::Auto => {
            let mut ordered: Vec<_> = all.collect();
            // A kprobe is skipped while any other runs on the CPU it interrupts, so a page that a
            // softirq frees meanwhile is missed; fentry only guards against itself.
            if role.name.starts_with("counter.") || role.name == "charge.user" {
                ordered.sort_by_key(|(_, it)| it.mechanism != Mechanism::Fentry);
            }
            return ordered;
        }
        AttachMode::Kprobe => Mechanism::Kprobe,
        AttachMode::Fentry => Mechanism::Fentry,
        AttachMode::Tracepoint => Mechanism::Tracepoint,
    };
    // A role that has no candidate of the forced kind is served by tracepoints: they are all that
    // some roles have, but for frees on older kernels. Only `--attach tracepoint` may leave a role unserved.
    let has_forced = role
        .candidates
        .iter()
        .any(|it| it.mechanism == forced && !it.needs.contains(&Need::FreeToldAfter));
    all.filter(|(_, candidate)| {
        candidate.mechanism == forced
            || (forced == Mechanism::Tracepoint && candidate.mechanism == Mechanism::BtfTracepoint)
            || (!has_forced
                && forced != Mechanism::Tracepoint
                && matches!(
                    candidate.mechanism,
                    Mechanism::Tracepoint
                        | Mechanism::RawTracepoint
                        | Mechanism::BtfTracepoint
                        | Mechanism::Read
                ))
    })
    .collect()
}

fn fits(
    role: &'static Role,
    index: usize,
    candidate: &'static Candidate,
    facts: &Facts<'_>,
    unmet: &HashMap<Need, String>,
    config: &mut Config,
) -> Result<(), Passed> {
    if facts.struck.contains(&(role.name, index)) {
        let why = facts.struck_why.get(&(role.name, index)).cloned();
        return Err(Passed::Refused(
            why.unwrap_or_else(|| "struck out".to_owned()),
        ));
    }
    for need in [Need::V1, Need::V2, Need::FreeToldAfter] {
        if candidate.needs.contains(&need)
            && let Some(why) = unmet.get(&need)
        {
            return Err(Passed::OtherHierarchy(why.clone()));
        }
    }
    // What is not there is not there by any mechanism, and that tells more than a refusal.
    for hook in candidate.hooks {
        if let Err(absent @ Passed::Absent(_)) = present(hook.symbol, hook.place, facts)
            && matches!(candidate.mechanism, Mechanism::Kprobe | Mechanism::Fentry)
        {
            return Err(absent);
        }
    }
    let verdict = facts.allowed.mechanism(candidate.mechanism);
    verdict.clone().map_err(Passed::Refused)?;
    for hook in candidate.hooks {
        present(hook.symbol, hook.place, facts)?;
    }
    let lacking = &facts.allowed.lacking;
    if candidate
        .hooks
        .iter()
        .any(|hook| !lacking.object().has(hook.program))
    {
        return Err(Passed::Refused(format!(
            "no program by {} among those for kernels without {}",
            candidate.mechanism.name(),
            lacking.why_old()
        )));
    }
    for need in candidate.needs {
        if *need == Need::UserChargeArguments {
            let symbol = candidate.hooks.first().map_or("", |hook| hook.symbol);
            layout::user_charge(facts.sources.btf, symbol, config).map_err(Passed::Refused)?;
        } else if *need == Need::LimitArguments {
            let symbol = candidate.hooks.first().map_or("", |hook| hook.symbol);
            let open_file = unmet.get(&Need::OpenFile).map(String::as_str);
            limits::handler(facts.sources.btf, symbol, open_file, config)
                .map_err(Passed::Refused)?;
        } else if *need == Need::KmemLimitArguments {
            let symbol = candidate.hooks.first().map_or("", |hook| hook.symbol);
            limits::kmem_limit(facts.sources.btf, symbol, config).map_err(Passed::Refused)?;
        } else if *need == Need::PreemptCount {
            context::preempt_count(&facts.sources, config).map_err(Passed::Refused)?;
        } else if *need == Need::SlabPathArguments {
            slab_paths::arguments(&facts.sources, candidate.hooks, config)
                .map_err(Passed::Refused)?;
        } else if let Some(why) = unmet.get(need) {
            return Err(Passed::Refused(why.clone()));
        }
    }
    for hook in candidate.hooks {
        let depth = match facts.sites.get(hook.symbol) {
            Some(Ok(sites)) if matches!(hook.place, Place::Inside { .. }) => sites.depth,
            _ => 0,
        };
        match hook.program {
            "kp_counter_try_charge" => config.try_charge_depth = depth,
            "kp_user_charge" => config.user_charge_depth = depth,
            _ => {}
        }
    }
    Ok(())
}

/// Whether this kernel has what a hook goes on.
fn present(symbol: &str, place: Place, facts: &Facts<'_>) -> Result<(), Passed> {
    let there = |yes: bool, category: &str| {
        let name = if category.is_empty() {
            symbol.to_owned()
        } else {
            format!("{category}:{symbol}")
        };
        yes.then_some(())
            .ok_or_else(|| Passed::Absent(format!("this kernel has no tracepoint {name}")))
    };
    let btf_has = |name: &str| facts.sources.btf.is_ok_and(|btf| btf.has_function(name));
    match place {
        Place::Tracepoint(category) => there(
            facts.sources.formats.contains_key(&(category, symbol)),
            category,
        ),
        // `__traceiter_NAME` is what type information has of a tracepoint.
        Place::BtfTracepoint(category) => {
            there(btf_has(&format!("__traceiter_{symbol}")), category)
        }
        Place::RawTracepoint => there(
            facts
                .sources
                .symbols
                .has_function(&format!("__traceiter_{symbol}"))
                || facts.sources.formats.keys().any(|key| key.1 == symbol),
            "",
        ),
        Place::Kprobe
        | Place::Kretprobe
        | Place::Inside { .. }
        | Place::Returns
        | Place::Fentry
        | Place::Fexit => {
            if !facts.sources.symbols.has_function(symbol) {
                let twins = facts.sources.symbols.twins.get(symbol);
                return Err(match twins.and_then(|twins| twins.first()) {
                    Some(twin) => Passed::Refused(format!(
                        "no symbol {symbol}, only {twin}: the compiler took it apart"
                    )),
                    None => Passed::Absent(format!("no symbol {symbol}")),
                });
            }
            if facts.traceable.is_some_and(|list| !list.contains(symbol)) {
                return Err(Passed::Refused(format!(
                    "{symbol} is not in available_filter_functions"
                )));
            }
            if matches!(place, Place::Inside { .. } | Place::Returns) {
                let sites = match facts.sites.get(symbol) {
                    Some(Ok(sites)) => sites,
                    Some(Err(why)) => return Err(Passed::Refused(inside(symbol, why))),
                    None => {
                        return Err(Passed::Refused(
                            "breakpoints inside functions are placed on x86-64 alone".to_owned(),
                        ));
                    }
                };
                if place == Place::Returns
                    && let Err(why) = &sites.returns
                {
                    return Err(Passed::Refused(inside(symbol, why)));
                }
            }
            if matches!(place, Place::Fentry | Place::Fexit) && !btf_has(symbol) {
                return Err(Passed::Refused(format!(
                    "type information has no function {symbol}"
                )));
            }
            Ok(())
        }
    }
}

fn inside(symbol: &str, why: &str) -> String {
    format!("no place for a probe inside {symbol}: {why}")
}

/// `page_counter_charge + page_counter_try_charge`, each once; without what only watches whether the
/// programs on these run.
fn symbols_of(candidate: &Candidate) -> String {
    if candidate.needs.contains(&Need::PreemptCount) {
        return context::PREEMPT_COUNT.to_owned();
    }
    let mut names: Vec<String> = Vec::new();
    for hook in candidate.hooks {
        if unwatched::WATCHES.contains(&hook.program) {
            continue;
        }
        let name = match hook.place {
            Place::Tracepoint(category) | Place::BtfTracepoint(category) => {
                format!("{category}:{}", hook.symbol)
            }
            _ => hook.symbol.to_owned(),
        };
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names.join(" + ")
}

/// Every kernel symbol the table names, and those the layout needs: what to look for in kallsyms.
pub fn symbols_wanted() -> Vec<String> {
    let mut wanted: Vec<String> = ["memory_cgrp_subsys", "vmemmap_base", "page_offset_base"]
        .map(str::to_owned)
        .to_vec();
    let others = context::SYMBOLS.iter().chain(&memcg_stat::SYMBOLS);
    wanted.extend(others.chain(RETURN_THUNKS).map(|name| (*name).to_owned()));
    for hook in table::hooks() {
        let name = match hook.place {
            Place::Tracepoint(_) | Place::BtfTracepoint(_) => continue,
            Place::RawTracepoint => format!("__traceiter_{}", hook.symbol),
            _ => hook.symbol.to_owned(),
        };
        if !wanted.contains(&name) {
            wanted.push(name);
        }
    }
    wanted
}

/// Every classic tracepoint the table names, the slab ones included.
pub fn tracepoints_wanted() -> Vec<(&'static str, &'static str)> {
    let mut wanted = Vec::new();
    for hook in table::hooks() {
        if let Place::Tracepoint(category) = hook.place
            && !wanted.contains(&(category, hook.symbol))
        {
            wanted.push((category, hook.symbol));
        }
    }
    wanted
}
