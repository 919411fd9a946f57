//! `lut-accuracy`: predicted against measured latency and peak memory of whole architectures on this machine.

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
    #[arg(long, default_value_t = 60)]
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
    let entries = profile::profile_blocks(&space, &blocks, &settings, &mut say)?;
    let name = profile::runtime_name(Device::Cpu, args.threads);
    let mut table = Lut::new(
        "this machine",
        Runtime::new(name.name, name.version),
        profile::dtype_of(&space),
    );
    for (block, state) in entries {
        table.insert(block, state);
    }

    let costs = LutCosts::new(&table, &space);
    let drawn = stratified(&costs, args.architectures, args.seed);
    ensure!(!drawn.is_empty(), "no architecture of {} can be predicted", space.name);
    let architectures: Vec<Architecture> = drawn.iter().map(|(architecture, _, _)| architecture.clone()).collect();
    let states = profile::measure_wholes(&space, &architectures, &settings, &mut say)?;
    let rows: Vec<Row> = drawn.into_iter().zip(states).filter_map(row).collect();
    ensure!(!rows.is_empty(), "none of the architectures could be measured whole");
    print(&space, &table, &rows, args)
}

/// Distinct architectures at even steps of predicted latency, with predicted latency and memory.
fn stratified(costs: &LutCosts<'_>, count: usize, seed: u64) -> Vec<(Architecture, f64, f64)> {
    let mut rng = generator(seed, 0);
    let positions = &costs.space().positions;
    let mut drawn: Vec<(Architecture, f64, f64)> = Vec::new();
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..count.saturating_mul(DRAWN_FOR_EACH) {
        let choices: Vec<u16> = positions
            .iter()
            .map(|position| rng.random_range(0..position.choices.len()) as u16)
            .collect();
        let architecture = Architecture::new(choices);
        let Ok(cost) = costs.compose(&architecture) else {
            continue;
        };
        if let (Some(latency), Some(memory)) = (cost.latency_ms, cost.peak_memory_bytes)
            && seen.insert(architecture.clone())
        {
            drawn.push((architecture, latency.value, memory.value));
        }
    }
    drawn.sort_by(|a, b| a.1.total_cmp(&b.1));
    let (have, take) = (drawn.len(), count.min(drawn.len()));
    (0..take)
        .map(|i| drawn[if take > 1 { i * (have - 1) / (take - 1) } else { 0 }].clone())
        .collect()
}

fn row(((architecture, latency, memory), state): ((Architecture, f64, f64), EntryState)) -> Option<Row> {
    let EntryState::Measured(Measurement {
        latency_ms,
        peak_memory_bytes,
    }) = state
    else {
        return None;
    };
    let half = |parity: usize| {
        let values = latency_ms.values().iter().skip(parity).step_by(2).copied().collect();
        Samples::new(values).ok()?.median()
    };
    Some(Row {
        architecture,
        latency_ms: Pair {
            predicted: latency,
            measured: latency_ms.median()?,
        },
        memory_bytes: Pair {
            predicted: memory,
            measured: peak_memory_bytes.median()?,
        },
        repeated_ms: Pair {
            predicted: half(0)?,
            measured: half(1)?,
        },
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
