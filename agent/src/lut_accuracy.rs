//! `lut-accuracy`: latency that a table of exported blocks predicts, against that of whole exported architectures, both
//! in ONNX Runtime on this machine.
//!
//! Blocks and architectures run in the same rounds, each round in an order drawn anew, so that the machine's changes of
//! pace fall on all alike. Odd and even samples of an architecture are two measurements of it, taken in turn: what they
//! differ by is the noise floor, and no prediction can be expected to be nearer.
//!
//! What a run takes with nothing in its graph is measured in the same rounds: it is part of every block's figure, but a
//! whole model's only once. Predictions are told both as tables are composed and with it counted once.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use clap::Args;
use lut::{Accuracy, EntryState, Lut, LutCosts, Measurement, Pair, Samples};
use ort::session::Session;
use ort::value::DynValue;
use protocol::jobs::{ExportManifest, ExportedGraph, TensorSpec};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use search_spaces::{Architecture, Block, Dtype, Shape, Space};
use serde::Deserialize;

use crate::inputs;
use crate::measure::timed_run;
use crate::runtime::Runtime;

/// Compare predicted with measured latency of exported architectures.
#[derive(Debug, Args)]
pub struct LutAccuracyArgs {
    /// The space file.
    #[arg(long, default_value = "search-spaces/spaces/shapes-tiny.toml")]
    pub space: PathBuf,
    /// Folder of exports as `temponas-worker export-space` writes it, each a folder with its `manifest.json` and files:
    /// one of the space's blocks, and one for each architecture, whose manifest has `"architecture"`.
    #[arg(long, value_name = "FOLDER")]
    pub graphs: PathBuf,
    /// Samples of each block and each architecture.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(2..=1000))]
    pub samples: u32,
    /// Runs, in rounds that follow each other, of which a sample is the fastest.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub runs_per_sample: u32,
    /// Print every architecture.
    #[arg(long)]
    pub verbose: bool,
}

/// An ONNX file of one `Identity`: `x`, one float, to `y`.
const EMPTY: &[u8] = include_bytes!("empty.onnx");

/// A manifest on disk.
#[derive(Debug, Deserialize)]
struct Export {
    /// What a whole model is of, in printed form; absent of blocks.
    #[serde(default)]
    architecture: Option<String>,
    #[serde(flatten)]
    manifest: ExportManifest,
}

/// Graphs that run one after the other, ready to run, with their samples in milliseconds.
struct Bench {
    sessions: Vec<(Session, Vec<(String, DynValue)>)>,
    samples: Vec<f64>,
}

impl Bench {
    fn open(runtime: &Runtime, folder: &Path, graphs: &[ExportedGraph]) -> anyhow::Result<Self> {
        let open = |graph: &ExportedGraph| {
            let first = graph
                .files
                .first()
                .with_context(|| format!("{}: no file", graph.name))?;
            let path = folder.join(&first.name);
            let session = runtime.open(&path, None);
            let session = session.map_err(|error| anyhow::anyhow!("{}: {error}", path.display()))?;
            anyhow::Ok((session, inputs::draw(&graph.inputs, 1).map_err(anyhow::Error::msg)?))
        };
        let sessions = graphs.iter().map(open).collect::<anyhow::Result<_>>()?;
        let samples = Vec::new();
        Ok(Self { sessions, samples })
    }

    fn empty(runtime: &Runtime) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("empty.onnx");
        std::fs::write(&file, EMPTY)?;
        let input = TensorSpec {
            name: "x".to_owned(),
            dtype: "f32".to_owned(),
            shape: vec![1],
        };
        let session = runtime.open(&file, None).map_err(|error| anyhow::anyhow!("{error}"))?;
        let inputs = inputs::draw(&[input], 1).map_err(anyhow::Error::msg)?;
        Ok(Self {
            sessions: vec![(session, inputs)],
            samples: Vec::new(),
        })
    }

    fn run(&mut self, runtime: &Runtime) -> anyhow::Result<f64> {
        let mut all = 0.0;
        for (session, inputs) in &mut self.sessions {
            all += timed_run(runtime, session, inputs).map_err(|error| anyhow::anyhow!("{error}"))?;
        }
        Ok(all)
    }
}

/// Runs the comparison and prints it.
///
/// # Errors
/// Graphs that are not of the space, or do not run; a table that does not tell.
pub fn command(runtime: &Runtime, args: &LutAccuracyArgs) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(&args.space).with_context(|| args.space.display().to_string())?;
    let space = Space::parse(&text).map_err(|error| anyhow::anyhow!("{}: {error}", args.space.display()))?;
    let (mut blocks, mut architectures, mut benches) = (Vec::new(), Vec::new(), Vec::new());
    let mut wholes = Vec::new();
    for (folder, export) in exports(&args.graphs)? {
        match export.architecture {
            Some(printed) => {
                let architecture = space.architecture(&printed);
                let architecture = architecture.map_err(|error| anyhow::anyhow!("{}: {error}", folder.display()))?;
                let mut parts = export.manifest.graphs;
                parts.retain(|graph| graph.name.starts_with("unet"));
                ensure!(!parts.is_empty(), "{}: no graph of the UNet", folder.display());
                architectures.push(architecture);
                wholes.push(Bench::open(runtime, &folder, &parts)?);
            }
            None => {
                for graph in export.manifest.graphs {
                    let block = graph
                        .block
                        .as_ref()
                        .with_context(|| format!("{} is no block", graph.name))?;
                    blocks.push(block_of(block));
                    benches.push(Bench::open(runtime, &folder, std::slice::from_ref(&graph))?);
                }
            }
        }
    }
    ensure!(!blocks.is_empty(), "{}: no blocks", args.graphs.display());
    ensure!(!architectures.is_empty(), "{}: no architectures", args.graphs.display());
    let count = blocks.len();
    benches.append(&mut wholes);
    benches.push(Bench::empty(runtime)?);
    run_rounds(runtime, &mut benches, args)?;
    let empty = benches.pop().context("no empty graph")?;
    let empty_ms = Samples::new(empty.samples)?.median().context("no samples")?;
    let wholes = benches.split_off(count);
    let as_measured = table(runtime, &space, &blocks, &benches, 0.0)?;
    let without_empty = table(runtime, &space, &blocks, &benches, empty_ms)?;
    let costs = [&as_measured, &without_empty].map(|table| LutCosts::new(table, &space));
    let rows = architectures
        .into_iter()
        .zip(wholes)
        .map(|(architecture, bench)| row(&costs, empty_ms, architecture, &bench));
    let rows = rows.collect::<anyhow::Result<Vec<Row>>>()?;
    print(&space, &as_measured, empty_ms, &rows, args)
}

/// Every export below a folder, in the order of their names.
fn exports(folder: &Path) -> anyhow::Result<Vec<(PathBuf, Export)>> {
    let entries = std::fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    let mut folders: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    folders.sort();
    let mut all = Vec::new();
    for folder in folders {
        let file = folder.join("manifest.json");
        if file.is_file() {
            let text = std::fs::read_to_string(&file)?;
            all.push((
                folder,
                serde_json::from_str(&text).with_context(|| file.display().to_string())?,
            ));
        }
    }
    Ok(all)
}

fn block_of(block: &protocol::luts::Block) -> Block {
    let shape: Shape = block.shape.iter().map(|(name, size)| (name.clone(), *size)).collect();
    Block::new(&block.operator, shape)
}

fn run_rounds(runtime: &Runtime, benches: &mut [Bench], args: &LutAccuracyArgs) -> anyhow::Result<()> {
    const WARMUPS: u32 = 2;
    let rounds = WARMUPS + args.samples * args.runs_per_sample;
    let mut order: Vec<usize> = (0..benches.len()).collect();
    for round in 0..rounds {
        if (round * 10) % rounds < 10 {
            eprintln!("{:>3} % of {rounds} rounds", round * 100 / rounds);
        }
        order.shuffle(&mut ChaCha8Rng::seed_from_u64(round.into()));
        for &at in &order {
            let bench = &mut benches[at];
            let took = bench.run(runtime)?;
            let Some(run) = round.checked_sub(WARMUPS) else {
                continue;
            };
            match bench.samples.last_mut() {
                Some(fastest) if !run.is_multiple_of(args.runs_per_sample) => *fastest = fastest.min(took),
                _ => bench.samples.push(took),
            }
        }
    }
    Ok(())
}

/// The blocks' samples, each less `empty_ms`.
fn table(runtime: &Runtime, space: &Space, blocks: &[Block], benches: &[Bench], empty_ms: f64) -> anyhow::Result<Lut> {
    let name = runtime.name();
    let runtime = lut::Runtime::new(name.name, name.version);
    let dtype = space.unet().map_or(Dtype::F32, |unet| unet.dtype);
    let mut table = Lut::new("this machine", runtime, dtype);
    for (block, bench) in blocks.iter().zip(benches) {
        let measurement = Measurement {
            latency_ms: Samples::new(bench.samples.iter().map(|ms| (ms - empty_ms).max(0.0)).collect())?,
            peak_memory_bytes: Samples::default(),
        };
        table.insert(block.clone(), EntryState::Measured(measurement));
    }
    Ok(table)
}

/// One architecture.
struct Row {
    printed: String,
    /// As tables are composed.
    latency_ms: Pair,
    /// With what an empty graph takes counted once.
    counted_once_ms: Pair,
    /// Medians of odd and even samples.
    repeated_ms: Pair,
}

fn row(costs: &[LutCosts<'_>; 2], empty_ms: f64, architecture: Architecture, bench: &Bench) -> anyhow::Result<Row> {
    let printed = costs[0].space().print(&architecture);
    let predicted = |costs: &LutCosts<'_>| {
        let cost = costs
            .compose(&architecture)
            .map_err(|error| anyhow::anyhow!("{printed}: {error}"))?;
        let latency = cost.latency_ms;
        let latency = latency.with_context(|| format!("{printed}: the table does not tell its latency"))?;
        anyhow::Ok(latency.value)
    };
    let median = |values: Vec<f64>| Samples::new(values)?.median().context("no samples");
    let half = |parity: usize| median(bench.samples.iter().skip(parity).step_by(2).copied().collect());
    let measured = median(bench.samples.clone())?;
    let pair = |predicted: f64| Pair { predicted, measured };
    Ok(Row {
        latency_ms: pair(predicted(&costs[0])?),
        counted_once_ms: pair(predicted(&costs[1])? + empty_ms),
        repeated_ms: Pair {
            predicted: half(0)?,
            measured: half(1)?,
        },
        printed,
    })
}

fn print(space: &Space, table: &Lut, empty_ms: f64, rows: &[Row], args: &LutAccuracyArgs) -> anyhow::Result<()> {
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
        println!("{:<24} {:>9} {:>9} {:>7}", "architecture", "ms pred.", "ms meas.", "%");
        for row in rows {
            let Pair { predicted, measured } = row.latency_ms;
            let percent = 100.0 * (predicted / measured - 1.0);
            println!("{:<24} {predicted:>9.3} {measured:>9.3} {percent:>+7.1}", row.printed);
        }
    }
    println!("a run of an empty graph takes {:.1} µs", 1000.0 * empty_ms);
    let of = |pairs: Vec<Pair>| Accuracy::of(&pairs).context("nothing was measured above zero");
    let latency = of(rows.iter().map(|row| row.latency_ms).collect())?;
    let once = of(rows.iter().map(|row| row.counted_once_ms).collect())?;
    let noise = of(rows.iter().map(|row| row.repeated_ms).collect())?;
    println!(
        "{:<34} {:>7} {:>9} {:>9} {:>9}",
        "", "MAPE %", "p95 %", "in 10 %", "tau"
    );
    for (name, accuracy) in [
        ("latency, predicted to measured", &latency),
        ("the same, empty runs counted once", &once),
        ("latency, measured to repeated", &noise),
    ] {
        let tau = accuracy.tau.map_or("-".to_owned(), |tau| format!("{tau:.3}"));
        println!(
            "{name:<34} {:>7.2} {:>9.2} {:>9.1} {tau:>9}",
            100.0 * accuracy.errors.mean,
            100.0 * accuracy.errors.p95,
            100.0 * accuracy.errors.within_10_percent
        );
    }
    Ok(())
}
