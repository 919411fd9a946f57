//! `lut-accuracy`: predicted against measured latency and peak memory of whole architectures on this machine.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::PathBuf;

use anyhow::{Context, ensure};
use clap::Args;
use lut::{Accuracy, EntryState, Lut, LutCosts, Measurement, Pair, Runtime, Samples};
use rand::RngExt;
use search_spaces::{Architecture, Space};
use tch::Device;

use crate::models::seeded::generator;
use crate::profile::{self, Settings};

/// Architectures that are drawn for each one that is measured.
const DRAWN_FOR_EACH: usize = 20;

/// Compare predicted with measured figures of whole architectures.
#[derive(Debug, Args)]
pub struct LutAccuracyArgs {
    /// The space file.
    #[arg(long, default_value = "search-spaces/spaces/shapes-tiny.toml")]
    pub space: PathBuf,
    /// Architectures to measure, stratified by predicted latency.
    #[arg(long, default_value_t = 100)]
    pub architectures: usize,
    /// Samples of each block and each architecture.
    #[arg(long, default_value_t = 15)]
    pub samples: u32,
    /// Threads of libtorch.
    #[arg(long, default_value_t = 1)]
    pub threads: u32,
    /// Memory that one architecture may use, in MiB.
    #[arg(long, default_value_t = 4096)]
    pub memory_mb: u64,
    /// Seed of the draw.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Print every architecture.
    #[arg(long)]
    pub verbose: bool,
}

/// One architecture, predicted and measured in two halves of the rounds.
struct Row {
    architecture: Architecture,
    latency_ms: Pair,
    memory_bytes: Pair,
    /// Medians of odd and even rounds: what a repeated measurement would differ by.
    repeated_ms: Pair,
}

/// Runs the comparison and prints it.
///
/// # Errors
/// An unreadable space, a space without a UNet, a table that does not tell.
pub fn command(args: &LutAccuracyArgs) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(&args.space).with_context(|| args.space.display().to_string())?;
    let space = Space::parse(&text).map_err(|error| anyhow::anyhow!("{}: {error}", args.space.display()))?;
    ensure!(space.unet().is_some(), "{} has no UNet to measure whole", space.name);
    ensure!(
        args.threads > 0 && args.samples > 1,
        "--threads must be at least 1, --samples at least 2"
    );
    tch::set_num_threads(i32::try_from(args.threads)?);
    let settings = Settings {
        samples: args.samples,
        ..Settings::new(Device::Cpu, args.threads, args.memory_mb << 20)
    };

    let mut say = teller();
    let blocks = space.blocks();
    let name = profile::runtime_name(Device::Cpu, args.threads);
    let table_of = |entries: Vec<profile::MeasuredBlock>| {
        let runtime = Runtime::new(name.name.clone(), name.version.clone());
        let mut table = Lut::new("this machine", runtime, profile::dtype_of(&space));
        entries
            .into_iter()
            .for_each(|(block, state)| table.insert(block, state));
        table
    };

    // A first, short profile only spreads the draw over the range of costs.
    let short = Settings {
        samples: 2,
        ..settings.clone()
    };
    let rough = table_of(profile::profile_blocks(&space, &blocks, &short, &mut say)?);
    let architectures = stratified(&LutCosts::new(&rough, &space), args.architectures, args.seed);
    ensure!(
        !architectures.is_empty(),
        "no architecture of {} can be predicted",
        space.name
    );

    let (entries, states) = profile::measure_together(&space, &blocks, &architectures, &settings, &mut say)?;
    let table = table_of(entries);
    let costs = LutCosts::new(&table, &space);
    let rows: Vec<Row> = architectures
        .into_iter()
        .zip(states)
        .filter_map(|(architecture, state)| row(&costs, architecture, state))
        .collect();
    ensure!(!rows.is_empty(), "none of the architectures could be measured whole");
    print(&space, &table, &rows, args)
}

/// A table whose latencies are the blocks' multiply-accumulates: enough to spread a draw over the range of costs
/// without measuring.
pub(crate) fn by_macs(space: &Space) -> anyhow::Result<Lut> {
    let dtype = profile::dtype_of(space);
    let mut table = Lut::new("no device", Runtime::new("closed-form", "1"), dtype);
    for block in space.blocks() {
        if let Some(work) = search_spaces::work(&block, dtype) {
            let measurement = Measurement {
                latency_ms: Samples::new(vec![work.macs as f64])?,
                peak_memory_bytes: Samples::new(vec![work.activation_bytes as f64])?,
            };
            table.insert(block, EntryState::Measured(measurement));
        }
    }
    Ok(table)
}

/// Distinct architectures at even steps of predicted latency.
pub(crate) fn stratified(costs: &LutCosts<'_>, count: usize, seed: u64) -> Vec<Architecture> {
    let mut rng = generator(seed, 0);
    let positions = &costs.space().positions;
    let mut latencies: BTreeMap<Architecture, f64> = BTreeMap::new();
    for _ in 0..count.saturating_mul(DRAWN_FOR_EACH) {
        let choices: Vec<u16> = positions
            .iter()
            .map(|position| rng.random_range(0..position.choices.len()) as u16)
            .collect();
        let architecture = Architecture::new(choices);
        if let Some(latency) = costs.compose(&architecture).ok().and_then(|cost| cost.latency_ms) {
            latencies.insert(architecture, latency.value);
        }
    }
    nearest_to_even_steps(latencies.into_iter().collect(), count)
}

/// For each of `count` values at even steps from the lowest to the highest latency the nearest one not yet taken;
/// cheapest first.
fn nearest_to_even_steps(mut drawn: Vec<(Architecture, f64)>, count: usize) -> Vec<Architecture> {
    let latencies = drawn.iter().map(|(_, latency)| *latency);
    let (low, high) = (
        latencies.clone().fold(f64::INFINITY, f64::min),
        latencies.fold(0.0, f64::max),
    );
    let mut taken = Vec::new();
    for i in 0..count.min(drawn.len()) {
        let wanted = low + (high - low) * i as f64 / count.saturating_sub(1).max(1) as f64;
        let distance = |(_, latency): &(Architecture, f64)| (latency - wanted).abs();
        let nearest = (0..drawn.len()).min_by(|&a, &b| distance(&drawn[a]).total_cmp(&distance(&drawn[b])));
        taken.extend(nearest.map(|at| drawn.swap_remove(at)));
    }
    taken.sort_by(|a, b| a.1.total_cmp(&b.1));
    taken.into_iter().map(|(architecture, _)| architecture).collect()
}

fn row(costs: &LutCosts<'_>, architecture: Architecture, state: EntryState) -> Option<Row> {
    let EntryState::Measured(Measurement {
        latency_ms,
        peak_memory_bytes,
    }) = state
    else {
        return None;
    };
    let predicted = costs.compose(&architecture).ok()?;
    let half = |parity: usize| {
        let values = latency_ms.values().iter().skip(parity).step_by(2).copied().collect();
        Samples::new(values).ok()?.median()
    };
    Some(Row {
        latency_ms: Pair {
            predicted: predicted.latency_ms?.value,
            measured: latency_ms.median()?,
        },
        memory_bytes: Pair {
            predicted: predicted.peak_memory_bytes?.value,
            measured: peak_memory_bytes.median()?,
        },
        repeated_ms: Pair {
            predicted: half(0)?,
            measured: half(1)?,
        },
        architecture,
    })
}

fn print(space: &Space, table: &Lut, rows: &[Row], args: &LutAccuracyArgs) -> anyhow::Result<()> {
    println!(
        "{}: {} blocks, {} architectures of {}, {} samples each, {}",
        space.name,
        table.len(),
        rows.len(),
        space.size(),
        args.samples,
        table.runtime()
    );
    if args.verbose {
        println!(
            "{:<24} {:>9} {:>9} {:>7}   {:>9} {:>9} {:>7}",
            "architecture", "ms pred.", "ms meas.", "%", "MiB pred.", "MiB meas.", "%"
        );
        for Row {
            architecture,
            latency_ms: ms,
            memory_bytes: mem,
            ..
        } in rows
        {
            let percent = |pair: &Pair| 100.0 * (pair.predicted / pair.measured - 1.0);
            println!(
                "{:<24} {:>9.3} {:>9.3} {:>+7.1}   {:>9.3} {:>9.3} {:>+7.1}",
                space.print(architecture),
                ms.predicted,
                ms.measured,
                percent(ms),
                mem.predicted / f64::from(1 << 20),
                mem.measured / f64::from(1 << 20),
                percent(mem)
            );
        }
    }
    let of = |pairs: Vec<Pair>| Accuracy::of(&pairs).context("nothing was measured above zero");
    let latency = of(rows.iter().map(|row| row.latency_ms).collect())?;
    let memory = of(rows.iter().map(|row| row.memory_bytes).collect())?;
    let noise = of(rows.iter().map(|row| row.repeated_ms).collect())?;
    println!(
        "{:<34} {:>7} {:>9} {:>9} {:>9}",
        "", "MAPE %", "p95 %", "in 10 %", "tau"
    );
    for (name, accuracy) in [
        ("latency, predicted to measured", &latency),
        ("latency, measured to repeated", &noise),
        ("peak memory, predicted to measured", &memory),
    ] {
        let tau = accuracy.tau.map_or("-".to_owned(), |tau| format!("{tau:.3}"));
        let errors = accuracy.errors;
        println!(
            "{name:<34} {:>7.2} {:>9.2} {:>9.1} {tau:>9}",
            100.0 * errors.mean,
            100.0 * errors.p95,
            100.0 * errors.within_10_percent
        );
    }
    println!(
        "within 10 %: latency {:.0} %, memory {:.0} %, tau {:.3}",
        100.0 * latency.errors.within_10_percent,
        100.0 * memory.errors.within_10_percent,
        latency.tau.unwrap_or(0.0)
    );
    Ok(())
}

/// Says on standard error what is being measured, at most once a tenth of the way.
fn teller() -> impl FnMut(f64, &str) -> ControlFlow<()> {
    let mut last = -1;
    move |share, what| {
        let tenth = (share * 10.0) as i32;
        if tenth != last {
            last = tenth;
            eprintln!("{:>3.0} % {what}", share * 100.0);
        }
        ControlFlow::Continue(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_draw_spans_the_range_of_costs_in_even_steps_without_repeats() {
        let text = include_str!("../../search-spaces/spaces/shapes-tiny.toml");
        let space = Space::parse(text).expect("the shipped space");
        let table = by_macs(&space).expect("finite");
        let costs = LutCosts::new(&table, &space);
        let latency = |a: &Architecture| costs.compose(a).expect("in the table").latency_ms.expect("known").value;
        let drawn = stratified(&costs, 40, 1);
        assert_eq!(drawn, stratified(&costs, 40, 1), "one seed, one draw");
        assert_eq!(drawn.iter().collect::<std::collections::BTreeSet<_>>().len(), 40);
        let latencies: Vec<f64> = drawn.iter().map(latency).collect();
        assert!(latencies.is_sorted());
        let (low, high) = (latencies[0], latencies[39]);
        let heaviest = latency(&space.architecture("s3.c3.c3.c3.c3").expect("of the space"));
        assert!(low <= 1.15 * latency(&space.backbone().expect("all null")) && high > 0.85 * heaviest);
        let widest = latencies.windows(2).map(|pair| pair[1] - pair[0]).fold(0.0, f64::max);
        assert!(widest < 8.0 * (high - low) / 39.0, "{latencies:?}");
    }
}
