//! `data-parallel`: what several processes on this machine gain over one, and how much of their talking the backward
//! pass hides.

use std::io::Read;
use std::net::{SocketAddr, TcpListener};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::Args;
use search_spaces::{Space, UnetConfig};
use serde::{Deserialize, Serialize};
use tch::{Device, nn};

use super::{Gang, Group, ReducerConfig};
use crate::data::latents::Batch;
use crate::models::UNet;
use crate::models::seeded::{generator, normal_from, seed_weights};
use crate::train::Training;

/// Steps before the clock runs: libtorch's first ones are slow.
const WARMUP: u64 = 3;

/// Compare steps of one process with steps of several at the same global batch.
#[derive(Debug, Clone, Args)]
pub struct DataParallelArgs {
    /// The space file.
    #[arg(long, default_value = "search-spaces/spaces/shapes-tiny.toml")]
    pub space: PathBuf,
    /// The architecture, as candidates are written.
    #[arg(long, default_value = "c3.c3.c3.c3.c3")]
    pub architecture: String,
    /// Number of processes.
    #[arg(long, default_value_t = 2)]
    pub ranks: u32,
    /// Clips of a step, over all processes.
    #[arg(long, default_value_t = 8)]
    pub batch: i64,
    /// Steps that are timed in each run.
    #[arg(long, default_value_t = 20)]
    pub steps: u64,
    /// Runs of each kind.
    #[arg(long, default_value_t = 5)]
    pub repeats: u32,
    /// Size of a bucket of gradients, in KiB.
    #[arg(long, default_value_t = 64)]
    pub bucket_kib: usize,
    /// Threads of libtorch in each process.
    #[arg(long, default_value_t = 1)]
    pub threads: u32,
    /// Give rank N the CUDA device N.
    #[arg(long)]
    pub cuda: bool,
    /// The process is this rank of a run; what follows belongs to it.
    #[arg(long, hide = true)]
    rank: Option<u32>,
    #[arg(long, hide = true, default_value = "127.0.0.1:0")]
    store: SocketAddr,
    #[arg(long, hide = true)]
    after_backward: bool,
}

/// What a rank tells of its run.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Run {
    step_ms: f64,
    waited_ms: f64,
    buckets: usize,
    weights: i64,
}

/// The runs of one repeat.
struct Repeat {
    alone: Run,
    overlapped: Run,
    after_backward: Run,
}

/// Runs the comparison and prints it.
///
/// # Errors
/// An unreadable space, an architecture that is not of it, a batch that cannot be shared, a rank that fails.
pub fn command(args: &DataParallelArgs) -> anyhow::Result<()> {
    if let Some(rank) = args.rank {
        println!("{}", serde_json::to_string(&run_rank(args, rank)?)?);
        return Ok(());
    }
    ensure!(
        args.ranks > 1 && args.repeats > 0 && args.steps > 0 && args.threads > 0,
        "--ranks must be at least 2, --repeats, --steps and --threads at least 1"
    );
    ensure!(
        args.batch > 0 && args.batch % i64::from(args.ranks) == 0,
        "--batch is {}; it must be a multiple of --ranks, {}",
        args.batch,
        args.ranks
    );
    println!(
        "repeat  one process  {0} processes  unhidden  {0} without overlap  unhidden",
        args.ranks
    );
    let mut repeats = Vec::new();
    for number in 1..=args.repeats {
        let repeat = Repeat {
            alone: run_all(args, 1, false)?,
            overlapped: run_all(args, args.ranks, false)?,
            after_backward: run_all(args, args.ranks, true)?,
        };
        println!(
            "{number:>6}  {:>8.2} ms  {:>8.2} ms  {:>5.2} ms  {:>14.2} ms  {:>5.2} ms",
            repeat.alone.step_ms,
            repeat.overlapped.step_ms,
            repeat.overlapped.waited_ms,
            repeat.after_backward.step_ms,
            repeat.after_backward.waited_ms
        );
        repeats.push(repeat);
    }
    let Run { buckets, weights, .. } = repeats[0].overlapped;
    println!(
        "{weights} trained weights in {buckets} buckets; global batch {}, {} threads each, {} steps a run",
        args.batch, args.threads, args.steps
    );
    let spread = |name: &str, of: &dyn Fn(&Repeat) -> f64| {
        let mut values: Vec<f64> = repeats.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        let (low, middle, high) = (values[0], values[values.len() / 2], values[values.len() - 1]);
        println!("{name}: median {middle:.3}, {low:.3} to {high:.3}");
    };
    spread("speed of a step against one process", &|r| {
        r.alone.step_ms / r.overlapped.step_ms
    });
    spread("speed of a step against no overlap", &|r| {
        r.after_backward.step_ms / r.overlapped.step_ms
    });
    spread("share of the all-reduce hidden by the backward pass", &|r| {
        1.0 - r.overlapped.waited_ms / r.after_backward.waited_ms
    });
    Ok(())
}

/// Runs this program once for each rank; what rank 0 tells.
fn run_all(args: &DataParallelArgs, ranks: u32, after_backward: bool) -> anyhow::Result<Run> {
    // The port is free again before rank 0 takes it; whoever comes between makes the run fail, and no figure wrong.
    let store = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let mut children: Vec<Rank> = (0..ranks)
        .map(|rank| Rank::start(args, rank, ranks, store, after_backward))
        .collect::<Result<_, _>>()?;
    let mut told = Vec::new();
    for (rank, child) in children.iter_mut().enumerate() {
        told.push(child.finish().with_context(|| format!("rank {rank} of {ranks}"))?);
    }
    Ok(told[0])
}

/// A process that does not outlive this one's interest in it.
struct Rank(Child);

impl Rank {
    fn start(
        args: &DataParallelArgs,
        rank: u32,
        ranks: u32,
        store: SocketAddr,
        after_backward: bool,
    ) -> anyhow::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("data-parallel").arg("--space").arg(&args.space);
        command.args(["--architecture", &args.architecture]);
        let numbers = [
            ("--ranks", u64::from(ranks)),
            ("--rank", u64::from(rank)),
            ("--batch", args.batch.unsigned_abs()),
            ("--steps", args.steps),
            ("--bucket-kib", args.bucket_kib as u64),
            ("--threads", u64::from(args.threads)),
        ];
        for (name, number) in numbers {
            command.args([name, &number.to_string()]);
        }
        command.args(["--store", &store.to_string()]);
        for (name, set) in [("--cuda", args.cuda), ("--after-backward", after_backward)] {
            command.args(set.then_some(name));
        }
        Ok(Self(command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?))
    }

    fn finish(&mut self) -> anyhow::Result<Run> {
        let mut text = String::new();
        if let Some(stdout) = &mut self.0.stdout {
            stdout.read_to_string(&mut text)?;
        }
        let status = self.0.wait()?;
        ensure!(status.success(), "it ended with {status}");
        serde_json::from_str(text.trim()).with_context(|| format!("it said `{text}`"))
    }
}

impl Drop for Rank {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The steps of one rank.
fn run_rank(args: &DataParallelArgs, rank: u32) -> anyhow::Result<Run> {
    tch::set_num_threads(i32::try_from(args.threads)?);
    let device = if args.cuda {
        Device::Cuda(rank as usize)
    } else {
        Device::Cpu
    };
    let text = std::fs::read_to_string(&args.space).with_context(|| args.space.display().to_string())?;
    let space = Space::parse(&text).map_err(|error| anyhow::anyhow!("{}: {error}", args.space.display()))?;
    let architecture = space.architecture(&args.architecture)?;
    let config = space.unet().with_context(|| format!("{} has no UNet", space.name))?;
    let settings = space
        .evaluation
        .as_ref()
        .with_context(|| format!("{} has no [evaluation]", space.name))?;
    let vs = nn::VarStore::new(device);
    let unet = UNet::new(&vs.root(), config, &space.layers(&architecture));
    seed_weights(&vs, settings.train_seed);
    let mut training = Training::new(&unet, &vs, &settings.training, settings.train_seed)?;
    if args.ranks > 1 {
        let gang = Gang {
            rank,
            ranks: args.ranks,
            store: args.store,
            generation: "measure".to_owned(),
        };
        let config = ReducerConfig {
            bucket_bytes: args.bucket_kib << 10,
            overlap: !args.after_backward,
        };
        let group = Group::join(&gang, device, Duration::from_secs(60))?;
        training = training.with_group(group, config)?;
    }
    let weights = training
        .variables()
        .iter()
        .map(|(_, weight)| weight.numel() as i64)
        .sum();
    let batch = drawn(config, args.batch, device);
    let (mut waited, mut started, mut buckets) = (Duration::ZERO, Instant::now(), 0);
    let batches = |_| {
        Ok(Batch {
            latents: batch.latents.shallow_clone(),
            text: batch.text.shallow_clone(),
            pooled: None,
        })
    };
    let _ = training.run(WARMUP + args.steps, &batches, &mut |training, _| {
        if training.step_number() <= WARMUP {
            started = Instant::now();
        } else if let Some(sync) = training.sync() {
            waited += sync.overlap().waited;
            buckets = sync.overlap().buckets;
        }
        ControlFlow::Continue(())
    })?;
    let per_step = |time: Duration| time.as_secs_f64() * 1000.0 / args.steps as f64;
    Ok(Run {
        step_ms: per_step(started.elapsed()),
        waited_ms: per_step(waited),
        buckets,
        weights,
    })
}

/// Latents and texts of noise: what they show does not matter to the time of a step.
fn drawn(config: &UnetConfig, batch: i64, device: Device) -> Batch {
    let noise = |stream, shape: &[u64]| {
        let shape: Vec<i64> = std::iter::once(batch).chain(shape.iter().map(|&n| n as i64)).collect();
        normal_from(&mut generator(1, stream), &shape, device)
    };
    let UnetConfig {
        latent_channels,
        frames,
        height,
        width,
        text_tokens,
        text_width,
        ..
    } = *config;
    Batch {
        latents: noise(0, &[latent_channels, frames, height, width].map(u64::from)),
        text: noise(1, &[text_tokens, text_width].map(u64::from)),
        pooled: None,
    }
}
