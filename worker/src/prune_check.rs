//! `temponas-worker prune-check`: does a pruned backbone learn more from its full one than from nothing?
//!
//! The same small network is trained twice for the same number of steps on the same noised frames: once from the
//! weights of the full backbone and with its output and features to follow, once from drawn weights on the task alone.
//! Both are then asked for the velocity at frames of clips whose captions were never trained on.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, ensure};
use clap::Args;
use search_spaces::{
    Distillation, Precision, Prediction, Recipe, Stage, TimestepShift, TrainingSettings, Trains, UnetConfig,
};
use tch::Device;

use crate::assets::Assets;
use crate::data::default_cache;
use crate::data::latents::{Batch, single_frames};
use crate::models::seeded::{generator, stream_of};
use crate::profile::Settings;
use crate::prune::comparison::compare;
use crate::prune::held_out::Coded;
use crate::prune::network::Network;
use crate::prune::plan::{Plan, PlanStage};
use crate::prune::process::Process;
use crate::prune::training::Pruning;
use crate::train::ClipsError;

/// Share of captions that are dropped.
const TEXT_DROPOUT: f64 = 0.1;

/// Check that a pruned backbone learns more from its full one than from nothing. The last line reads
/// `held-out loss distilled X ± s, from scratch Y ± s, better in n of N seeds`.
#[derive(Debug, Args)]
pub struct PruneCheckArgs {
    /// Which dataset's trained parts hold the full backbone.
    #[arg(long, default_value = "shapes")]
    dataset: String,
    /// Folder of the trained parts.
    #[arg(long, default_value = "assets")]
    assets: PathBuf,
    /// Where clips and latents are kept.
    #[arg(long, env = "TEMPONAS_CACHE", default_value_os_t = default_cache())]
    cache: PathBuf,
    /// Optimizer steps of each training.
    #[arg(long, default_value_t = 600)]
    steps: u32,
    /// Frames a step.
    #[arg(long, default_value_t = 32)]
    batch: u32,
    /// Learning rate of both.
    #[arg(long, default_value_t = 2e-3)]
    learning_rate: f64,
    /// Seeds: of drawn weights, frames, times and noise.
    #[arg(long, default_value_t = 3)]
    seeds: u64,
    /// Also what each half of it does alone: the full backbone's weights without following it, and following it from
    /// drawn weights.
    #[arg(long)]
    halves: bool,
    /// Threads of libtorch.
    #[arg(long, default_value_t = 1)]
    threads: u32,
}

/// How the small network comes about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Distilled,
    FromScratch,
    CopiedOnly,
    FollowingOnly,
}

impl Way {
    const fn name(self) -> &'static str {
        match self {
            Self::Distilled => "distilled",
            Self::FromScratch => "from scratch",
            Self::CopiedOnly => "copied, task only",
            Self::FollowingOnly => "drawn, following",
        }
    }

    const fn copies(self) -> bool {
        matches!(self, Self::Distilled | Self::CopiedOnly)
    }

    const fn distillation(self) -> Distillation {
        let follows = match self {
            Self::Distilled | Self::FollowingOnly => 1.0,
            Self::FromScratch | Self::CopiedOnly => 0.0,
        };
        Distillation {
            teacher_predicts: Prediction::Velocity,
            predicts: Prediction::Velocity,
            task_weight: 1.0,
            output_weight: follows,
            feature_weight: follows,
        }
    }
}

/// Runs the command.
///
/// # Errors
/// Where parts or clips cannot be read.
pub fn command(args: &PruneCheckArgs) -> anyhow::Result<()> {
    ensure!(
        args.steps > 0 && args.batch > 0 && args.seeds > 0 && args.threads > 0,
        "--steps, --batch, --seeds and --threads must be at least 1"
    );
    tch::set_num_threads(args.threads.try_into().context("--threads is too large")?);
    let assets = Assets::open(&args.assets, &args.dataset, Device::Cpu)?;
    let clips = assets.training_set(&args.cache, &mut |_| ControlFlow::Continue(()))?;
    let held_out = Coded::held_out(&assets, &args.cache, usize::MAX)?.context("the dataset keeps no clips apart")?;
    let bench = Bench::new(&assets, held_out)?;
    let batches = |seed: u64, step: u64| Ok(clips.batch(seed, step, args.batch.into(), TEXT_DROPOUT)?);

    let settings = Settings::new(Device::Cpu, args.threads, u64::MAX);
    let start = bench.start(Way::Distilled, 1)?;
    println!(
        "{}",
        compare(&bench.full, &start, &settings, &mut |_, _| ControlFlow::Continue(()))?
    );
    println!(
        "held-out loss of the full backbone {:.4}",
        bench.held_out_loss(&bench.full)
    );

    let mut ways = vec![Way::Distilled, Way::FromScratch];
    if args.halves {
        ways.extend([Way::CopiedOnly, Way::FollowingOnly]);
    }
    let mut losses: Vec<Vec<f64>> = vec![Vec::new(); ways.len()];
    for seed in 1..=args.seeds {
        for (way, found) in ways.iter().zip(&mut losses) {
            let started = Instant::now();
            let network = bench.train(*way, bench.plan(*way, seed, args)?, &|step| batches(seed, step))?;
            let loss = bench.held_out_loss(&network);
            let (name, seconds) = (way.name(), started.elapsed().as_secs_f64());
            println!("seed {seed} {name:<18} held-out loss {loss:.4}  {seconds:.0} s");
            found.push(loss);
        }
    }
    for (way, losses) in ways.iter().zip(&losses).skip(2) {
        println!("held-out loss {} {}", way.name(), mean_and_error(losses));
    }
    let better = losses[0].iter().zip(&losses[1]).filter(|(a, b)| a < b).count();
    println!(
        "held-out loss distilled {}, from scratch {}, better in {better} of {} seeds",
        mean_and_error(&losses[0]),
        mean_and_error(&losses[1]),
        args.seeds
    );
    Ok(())
}

/// The small network: as Stable Diffusion's was made smaller, without its innermost block and with a narrower widest
/// level, to about two fifths of the parameters.
fn pruned_config(full: &UnetConfig) -> UnetConfig {
    let mut pruned = full.clone();
    pruned.middle = false;
    // Even heads and whole groups.
    let unit = 2 * full.heads * full.norm_groups / greatest_common_divisor(2 * full.heads, full.norm_groups);
    if let Some(widest) = pruned.channels.last_mut() {
        *widest = (*widest * 5 / 8 / unit).max(1) * unit;
    }
    pruned
}

const fn greatest_common_divisor(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

struct Bench {
    full: Network,
    /// Mean and standard deviation of the logit of the times at which the full backbone was trained.
    times: (f64, f64),
    held_out: Coded,
}

impl Bench {
    fn new(assets: &Assets, held_out: Coded) -> anyhow::Result<Self> {
        let training = assets
            .manifest
            .recipe
            .training
            .context("these parts were imported: nobody says how they were trained")?;
        Ok(Self {
            full: Network::of_parts(assets)?,
            times: training.backbone_times,
            held_out,
        })
    }

    fn settings(&self, steps: u32, batch: u32, learning_rate: f64) -> TrainingSettings {
        TrainingSettings {
            steps,
            batch,
            accumulate: 1,
            learning_rate,
            warmup_steps: steps / 20,
            betas: [0.9, 0.999],
            weight_decay: 0.01,
            max_gradient_norm: 1.0,
            ema: None,
            precision: Precision::F32,
            gradient_checkpointing: false,
            text_dropout: TEXT_DROPOUT,
            noise_mean: self.times.0,
            noise_std: self.times.1,
            timestep_shift: TimestepShift::None,
            checkpoint_every: steps,
        }
    }

    fn plan(&self, way: Way, seed: u64, args: &PruneCheckArgs) -> anyhow::Result<Plan> {
        let recipe = Recipe {
            name: "distil".to_owned(),
            title: String::new(),
            trains: Trains::All,
            training: self.settings(args.steps, args.batch, args.learning_rate),
            stage: Stage::Pruning(way.distillation()),
        };
        Ok(Plan::new(recipe, None, seed)?)
    }

    fn start(&self, way: Way, seed: u64) -> anyhow::Result<Network> {
        let config = pruned_config(&self.full.config);
        if way.copies() {
            Ok(self.full.pruned(&config, seed)?)
        } else {
            Ok(Network::seeded(&config, seed, Device::Cpu))
        }
    }

    fn train(&self, way: Way, plan: Plan, clips: &dyn Fn(u64) -> Result<Batch, ClipsError>) -> anyhow::Result<Network> {
        let pruning = Pruning {
            full: &self.full,
            start: &self.start(way, plan.seed)?,
            plan: &plan,
            group: None,
        };
        let batches = |_: usize, _: &PlanStage<'_>, step| {
            Ok(single_frames(
                clips(step)?,
                &mut generator(plan.seed ^ stream_of("frame"), step),
            ))
        };
        Ok(pruning.run(None, &batches, &mut |_| ControlFlow::Continue(()))?)
    }

    fn held_out_loss(&self, network: &Network) -> f64 {
        let process = Process::of(Prediction::Velocity, &self.settings(1, 1, 0.0));
        self.held_out.loss(network, &process)
    }
}

/// Mean and its standard error over seeds.
fn mean_and_error(values: &[f64]) -> String {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    let error = (squares / (count - 1.0).max(1.0) / count).sqrt();
    format!("{mean:.4} ± {error:.4}")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::data::Split;

    /// One seed, a few steps: a network that starts from its teacher is ahead at once. One that copied wrongly, or
    /// followed another loss, would not be.
    #[test]
    fn a_distilled_network_is_ahead_of_one_from_scratch() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets");
        let assets = Assets::open(&root, "shapes", Device::Cpu).unwrap();
        let source = assets.source(Path::new("unused")).unwrap();
        let coded = |split, most| Coded::of(&assets, source.as_ref(), split, most).unwrap().unwrap();
        let bench = Bench::new(&assets, coded(Split::HeldOut, 16)).unwrap();
        let train = coded(Split::Train, 32);
        let args = PruneCheckArgs {
            dataset: "shapes".to_owned(),
            assets: root,
            cache: PathBuf::new(),
            steps: 40,
            batch: 8,
            learning_rate: 2e-3,
            seeds: 1,
            halves: false,
            threads: 1,
        };
        let batches = |step: u64| {
            let first = (step * 8 % 32) as i64;
            Ok(Batch {
                latents: train.latents.narrow(0, first, 8),
                text: train.texts.narrow(0, first, 8),
                pooled: None,
            })
        };
        let [distilled, scratch] = [Way::Distilled, Way::FromScratch].map(|way| {
            let plan = bench.plan(way, 1, &args).unwrap();
            bench.held_out_loss(&bench.train(way, plan, &batches).unwrap())
        });
        let full = bench.held_out_loss(&bench.full);
        assert!(
            full < distilled && distilled < 0.8 * scratch,
            "{full} {distilled} {scratch}"
        );
    }

    #[test]
    fn the_small_network_is_a_network_of_two_fifths() {
        let full = crate::assets::Recipe::shapes().backbone;
        let pruned = pruned_config(&full);
        assert_eq!(pruned.channels, [32, 40]);
        let share = pruned.parameters(&[]) as f64 / full.parameters(&[]) as f64;
        assert!((share - 0.4).abs() < 0.02, "{share}");
    }

    #[test]
    fn the_error_of_a_mean_is_that_of_its_seeds() {
        assert_eq!(mean_and_error(&[1.0, 2.0, 3.0]), "2.0000 ± 0.5774");
        assert_eq!(mean_and_error(&[1.0]), "1.0000 ± 0.0000");
    }
}
