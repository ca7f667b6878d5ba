//! Slab-heavy loops under each tracer, tracer after tracer within each round.

use std::collections::HashMap;

use anyhow::Result;

use super::document::Section;
use super::figures::{at_most, median, share_of, slowdowns, spread};
use super::table::Table;
use super::tracers::{LOOP_CPU, Running, Tracer, scratch};
use super::turns::Turns;
use super::{Bench, Cgroup};

/// The loops and what they are called in tables.
pub const KINDS: [(&str, &str); 5] = [
    ("pipe", "pipe, close"),
    ("socketpair", "socketpair, close"),
    ("open", "open, close"),
    ("stat", "look up a new name"),
    ("fork", "fork, exit, wait"),
];

/// How long a loop takes untraced, about.
const LOOP_NS: f64 = 100e6;

/// Parts of what a rival adds that we may add.
const OF_BPFTRACE: f64 = 1.0 / 3.0;
const OF_PERF: f64 = 1.0 / 5.0;

/// Nanoseconds a turn, by tracer and loop, one a round.
type Times = HashMap<(&'static str, &'static str), Vec<f64>>;

pub fn measure(bench: &Bench) -> Result<Section> {
    let cgroup = Cgroup::new()?;
    let mut loops = Turns::loops(&bench.turns, &cgroup.dir, LOOP_CPU, &scratch()?)?;
    let turns = calibrate(&mut loops)?;
    let mut remarks = Vec::new();
    let mut tracers = Vec::new();
    for tracer in Tracer::ALL {
        match tracer.missing() {
            None => tracers.push(tracer),
            Some(why) => remarks.push(format!("- {} was not measured: {why}.", tracer.name())),
        }
    }
    let mut times = Times::new();
    let mut lost = HashMap::new();
    for round in 0..bench.rounds as usize {
        eprintln!("  round {} of {}", round + 1, bench.rounds);
        // Nobody always comes after the same other.
        let first = round % tracers.len();
        let mut failed = None;
        for tracer in tracers[first..].iter().chain(&tracers[..first]) {
            if let Err(error) = one_round(
                *tracer, bench, &cgroup, &mut loops, &turns, &mut times, &mut lost,
            ) {
                if matches!(tracer, Tracer::Untraced | Tracer::Ours | Tracer::OursLedger) {
                    return Err(error);
                }
                remarks.push(format!(
                    "- {} does not work here: {error:#}.",
                    tracer.name()
                ));
                failed = Some(*tracer);
                break;
            }
        }
        if let Some(failed) = failed {
            tracers.retain(|tracer| *tracer != failed);
            // Rounds are compared one by one: each of them is whole or not there.
            times.clear();
        }
    }
    drop(loops);
    let (table, mut goals) = tabulate(&tracers, &times);
    goals.extend(remarks);
    for tracer in &tracers {
        if let Some(version) = tracer.version() {
            goals.push(format!("- {}: {version}.", tracer.name()));
        }
    }
    let mut lost: Vec<_> = lost.into_iter().collect();
    lost.sort();
    goals.extend(
        lost.into_iter()
            .map(|(name, said)| format!("- {name} said: {said}.")),
    );
    Ok(Section {
        title: "Slab-heavy loops".to_owned(),
        method: format!(
            "One process in the traced cgroup, on CPU {LOOP_CPU}; tracers on the others. Each of the \
             {} rounds runs all loops under each tracer in turn, from another beginning each time; \
             slowdown is the median over the rounds of a round's time by the same round's untraced \
             time, ± half of what the middle half of the rounds is apart. bpftrace adds up count \
             and bytes by call site on `kmem:kmem_cache_alloc`, `kmalloc`, `kmem_cache_free` and \
             `kfree`; perf records the events to a file. \"Of bpftrace\" is what we add as a part \
             of what it adds.",
            bench.rounds
        ),
        table,
        remarks: goals,
        ..Section::default()
    })
}

/// Turns of each loop that take [`LOOP_NS`] untraced.
fn calibrate(loops: &mut Turns) -> Result<HashMap<&'static str, u64>> {
    let mut turns = HashMap::new();
    for (kind, _) in KINDS {
        const FEW: u64 = 300;
        loops.run(kind, FEW)?;
        let each = loops.run(kind, FEW)? / FEW as f64;
        turns.insert(kind, (LOOP_NS / each).max(10.0) as u64);
    }
    Ok(turns)
}

fn one_round(
    tracer: Tracer,
    bench: &Bench,
    cgroup: &Cgroup,
    loops: &mut Turns,
    turns: &HashMap<&'static str, u64>,
    times: &mut Times,
    lost: &mut HashMap<&'static str, String>,
) -> Result<()> {
    let running = Running::start(tracer, bench, &cgroup.name, &[])?;
    let mut took = Vec::new();
    for (kind, _) in KINDS {
        took.push((kind, loops.run(kind, turns[kind])? / turns[kind] as f64));
    }
    if let Some(running) = running {
        let ended = running.stop()?;
        if let Some(why) = ended.idle(tracer) {
            anyhow::bail!(why);
        }
        let said = |line: &&str| {
            let line = line.to_lowercase();
            line.contains("lost") && !line.contains("\"lost\"")
        };
        if let Some(line) = ended.complaints.lines().find(said) {
            lost.insert(tracer.name(), line.trim().trim_end_matches('.').to_owned());
        }
    }
    for (kind, each) in took {
        times.entry((tracer.name(), kind)).or_default().push(each);
    }
    Ok(())
}

fn tabulate(tracers: &[Tracer], times: &Times) -> (Table, Vec<String>) {
    let of = |tracer: Tracer, kind| {
        times
            .get(&(tracer.name(), kind))
            .map_or(&[][..], Vec::as_slice)
    };
    let mut head = vec!["loop".to_owned(), "untraced, µs".to_owned()];
    let traced: Vec<Tracer> = tracers
        .iter()
        .copied()
        .filter(|tracer| *tracer != Tracer::Untraced)
        .collect();
    head.extend(traced.iter().map(|tracer| tracer.name().to_owned()));
    head.extend(["of bpftrace".to_owned(), "of perf".to_owned()]);
    let mut table = Table::new(head);
    let (mut of_bpftrace, mut of_perf) = (Vec::new(), Vec::new());
    for (kind, name) in KINDS {
        let untraced = of(Tracer::Untraced, kind);
        let slower = |tracer| slowdowns(untraced, of(tracer, kind));
        let mut row = vec![name.to_owned(), format!("{:.2}", median(untraced) / 1e3)];
        for tracer in &traced {
            let all = slower(*tracer);
            row.push(format!(
                "{:.2} × ± {:.2}",
                median(&all),
                spread(&all) * median(&all) / 2.0
            ));
        }
        let ours = median(&slower(Tracer::Ours));
        let share = |rival: Tracer, all: &mut Vec<f64>| {
            let found = tracers
                .contains(&rival)
                .then(|| share_of(ours, median(&slower(rival))))
                .flatten();
            all.extend(found);
            found.map_or("–".to_owned(), |share| format!("{share:.2}"))
        };
        row.push(share(Tracer::Bpftrace, &mut of_bpftrace));
        row.push(share(Tracer::Perf, &mut of_perf));
        table.row(row);
    }
    let worst = |all: &[f64]| all.iter().copied().max_by(f64::total_cmp);
    let goals = vec![
        at_most(
            "What slab attribution adds, as a part of what bpftrace adds, worst loop",
            worst(&of_bpftrace),
            OF_BPFTRACE,
            "",
        ),
        at_most(
            "… of what perf adds, worst loop",
            worst(&of_perf),
            OF_PERF,
            "",
        ),
    ];
    (table, goals)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_loop_decides_and_a_missing_rival_is_a_dash() {
        let mut times = Times::new();
        for (kind, _) in KINDS {
            let ours = if kind == "fork" { 1.5 } else { 1.1 };
            times.insert((Tracer::Untraced.name(), kind), vec![1000.0; 3]);
            times.insert((Tracer::Ours.name(), kind), vec![1000.0 * ours; 3]);
            times.insert((Tracer::Bpftrace.name(), kind), vec![2000.0; 3]);
        }
        let tracers = [Tracer::Untraced, Tracer::Ours, Tracer::Bpftrace];
        let (table, goals) = tabulate(&tracers, &times);
        let text = table.markdown();
        let fork = text.lines().last().expect("a row");
        assert!(
            fork.contains("1.50 × ± 0.00") && fork.contains("0.50"),
            "{text}"
        );
        assert!(fork.contains('–'), "{text}");
        assert!(
            goals[0].contains("0.50") && goals[0].contains("missed"),
            "{goals:?}"
        );
        assert!(goals[1].contains("not measured"), "{goals:?}");
    }
}
