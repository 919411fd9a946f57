//! `temponas-worker prune-check`: does a pruned backbone learn more from its full one than from nothing?
//!
//! The same small network is trained twice for the same number of steps on the same noised frames: once from the
//! weights of the full backbone and with its output and features to follow, once from drawn weights on the task alone.
//! Both are then asked for the velocity at frames of clips whose captions were never trained on.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, ensure};
use clap::Args;
use search_spaces::UnetConfig;
use tch::{Device, Kind, Tensor};

use crate::assets::Assets;
use crate::data::latents::Batch;
use crate::data::{ClipSource, Split, default_cache, to_tensor};
use crate::flow;
use crate::models::UNet;
use crate::models::seeded::{generator, normal_from, stream_of};
use crate::profile::Settings;
use crate::prune::comparison::compare;
use crate::prune::loss::LossWeights;
use crate::prune::material::backbone_of;
use crate::prune::process::Process;
use crate::prune::recipe::{PruneRecipe, Stage};
use crate::prune::training::{Network, Pruning};

/// Seed of the frames, times and noise that networks are measured on.
const HELD_OUT_SEED: u64 = 1;
/// Frames that are measured at once.
const CHUNK: i64 = 64;

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
    steps: u64,
    /// Frames a step.
    #[arg(long, default_value_t = 32)]
    batch: u64,
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

    fn losses(self) -> LossWeights {
        match self {
            Self::Distilled | Self::FollowingOnly => LossWeights::default(),
            Self::FromScratch | Self::CopiedOnly => LossWeights {
                task: 1.0,
                output: 0.0,
                feature: 0.0,
            },
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
    let clips = assets.training_set(&args.cache, &mut |_| std::ops::ControlFlow::Continue(()))?;
    let bench = Bench::new(&assets, &args.cache, usize::MAX)?;
    let batches = |seed: u64, stage: &Stage, step: u64| clips.batch(seed, step, stage.batch, stage.text_dropout);

    let settings = Settings::new(Device::Cpu, args.threads, u64::MAX);
    let pruned = bench.start(Way::Distilled, 1)?;
    let mut go_on = |_: f64, _: &str| std::ops::ControlFlow::Continue(());
    println!("{}", compare(&bench.full, &pruned, &settings, &mut go_on)?);
    println!(
        "held-out loss of the full backbone {:.4}",
        bench.held_out_loss(&bench.full.unet)
    );

    let mut ways = vec![Way::Distilled, Way::FromScratch];
    if args.halves {
        ways.extend([Way::CopiedOnly, Way::FollowingOnly]);
    }
    let mut losses: Vec<Vec<f64>> = vec![Vec::new(); ways.len()];
    for seed in 1..=args.seeds {
        for (way, found) in ways.iter().zip(&mut losses) {
            let started = Instant::now();
            let recipe = bench.recipe(*way, seed, args);
            let network = bench.train(*way, &recipe, &|stage, step| batches(seed, stage, step))?;
            let loss = bench.held_out_loss(&network.unet);
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
    /// How the full backbone was trained.
    process: Process,
    held_out: Coded,
}

/// Clips in latents with the embeddings of their captions.
struct Coded {
    /// `[n, 4, t, h, w]`
    latents: Tensor,
    /// `[n, tokens, width]`
    texts: Tensor,
}

impl Coded {
    /// Up to `most` clips of a split, spread over all of them.
    fn of(assets: &Assets, source: &dyn ClipSource, split: Split, most: usize) -> anyhow::Result<Self> {
        let count = source.len(split).min(most);
        ensure!(count > 0, "there are no clips to measure on");
        let (mut latents, mut captions) = (Vec::new(), Vec::new());
        for i in 0..count {
            let clip = source.clip(split, i * source.len(split) / count)?;
            latents.push(tch::no_grad(|| assets.vae.encode(&to_tensor(&[&clip.frames]))));
            captions.push(clip.prompt.caption);
        }
        let captions: Vec<&str> = captions.iter().map(String::as_str).collect();
        Ok(Self {
            latents: Tensor::cat(&latents, 0),
            texts: assets.text.embed(&captions),
        })
    }
}

impl Bench {
    fn new(assets: &Assets, cache: &Path, most_clips: usize) -> anyhow::Result<Self> {
        let recipe = &assets.manifest.recipe;
        let (noise_mean, noise_std) = recipe.training.backbone_times;
        let source = assets.source(cache)?;
        Ok(Self {
            full: backbone_of(assets)?,
            process: Process::Flow { noise_mean, noise_std },
            held_out: Coded::of(assets, source.as_ref(), Split::HeldOut, most_clips)?,
        })
    }

    fn recipe(&self, way: Way, seed: u64, args: &PruneCheckArgs) -> PruneRecipe {
        let stage = Stage {
            name: "distil".to_owned(),
            process: self.process,
            losses: way.losses(),
            steps: args.steps,
            batch: args.batch,
            learning_rate: args.learning_rate,
            warmup_steps: args.steps / 20,
            weight_decay: 0.01,
            text_dropout: 0.1,
            dataset: None,
        };
        PruneRecipe {
            seed,
            teacher: self.process,
            checkpoint_every: args.steps,
            stages: vec![stage],
        }
    }

    fn start(&self, way: Way, seed: u64) -> anyhow::Result<Network> {
        let config = pruned_config(&self.full.config);
        if way.copies() {
            Ok(self.full.pruned(&config, seed)?)
        } else {
            Ok(Network::seeded(&config, seed, Device::Cpu))
        }
    }

    fn train(&self, way: Way, recipe: &PruneRecipe, batches: &dyn Fn(&Stage, u64) -> Batch) -> anyhow::Result<Network> {
        let network = self.start(way, recipe.seed)?;
        let mut pruning = Pruning::new(&self.full, &network, recipe)?;
        let _ = pruning.run(batches, &mut |_, _, _| std::ops::ControlFlow::Continue(()));
        Ok(network)
    }

    /// Mean squared error of the velocity over every latent frame of the held-out clips, at times and with noise that
    /// are the same for every network.
    fn held_out_loss(&self, unet: &UNet) -> f64 {
        let Coded { latents, texts } = &self.held_out;
        let per_clip = latents.size()[2];
        let frames = latents.transpose(1, 2).flatten(0, 1).unsqueeze(2); // [n*t, 4, 1, h, w]
        let texts = texts.repeat_interleave_self_int(per_clip, 0, None);
        let count = frames.size()[0];
        let mut sum = 0.0;
        for start in (0..count).step_by(CHUNK as usize) {
            let length = CHUNK.min(count - start);
            let mut rng = generator(HELD_OUT_SEED ^ stream_of("held out"), start as u64);
            let clean = frames.narrow(0, start, length);
            let Process::Flow { noise_mean, noise_std } = self.process else {
                continue;
            };
            let time = flow::logit_normal(&mut rng, length, noise_mean, noise_std);
            let noise = normal_from(&mut rng, &clean.size(), Device::Cpu);
            let text = texts.narrow(0, start, length);
            let loss = tch::no_grad(|| flow::loss(unet, &clean, &noise, &time, &text));
            sum += loss.to_kind(Kind::Double).double_value(&[]) * length as f64;
        }
        sum / count as f64
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
    use super::*;

    /// One seed, a few steps: a network that starts from its teacher is ahead at once. One that copied wrongly, or
    /// followed another loss, would not be.
    #[test]
    fn a_distilled_network_is_ahead_of_one_from_scratch() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets");
        let assets = Assets::open(&root, "shapes", Device::Cpu).unwrap();
        let bench = Bench::new(&assets, Path::new("unused"), 16).unwrap();
        let source = assets.source(Path::new("unused")).unwrap();
        let train = Coded::of(&assets, source.as_ref(), Split::Train, 32).unwrap();
        let batches = |stage: &Stage, step: u64| {
            let first = (step * stage.batch % 32) as i64;
            Batch {
                latents: train.latents.narrow(0, first, stage.batch as i64),
                text: train.texts.narrow(0, first, stage.batch as i64),
            }
        };
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
        let [distilled, scratch] = [Way::Distilled, Way::FromScratch].map(|way| {
            let network = bench.train(way, &bench.recipe(way, 1, &args), &batches).unwrap();
            bench.held_out_loss(&network.unet)
        });
        let full = bench.held_out_loss(&bench.full.unet);
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
