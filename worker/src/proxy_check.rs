//! `temponas-worker proxy-check`: does the score that a search maximises carry a signal?
//!
//! Candidates of a space are trained and scored as a search would, some with several seeds, and all once more from
//! scratch for several times as long. Each run's figures stay in a folder, so an interrupted check goes on.

mod statistics;

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context, bail, ensure};
use clap::Args;
use rand::RngExt;
use rand::seq::SliceRandom;
use search_spaces::{Architecture, Evaluation, Space, UnetConfig};
use serde::{Deserialize, Serialize};
use tch::{Device, nn};

use crate::assets::Assets;
use crate::data::{default_cache, latents::TrainingSet};
use crate::models::UNet;
use crate::models::seeded::{generator, seed_weights};
use crate::scoring::{PromptScore, Score, quality, score};
use crate::train::Training;
use statistics::{Signal, kendall_tau};

/// Check that the score of a space carries a signal: best against none, candidates against seeds, short against long
/// training. The last line reads `signal: best X s.e. above none, variance ratio R, tau T`.
#[derive(Debug, Args)]
pub struct ProxyCheckArgs {
    /// The space file.
    #[arg(long, default_value = "search-spaces/spaces/shapes-tiny.toml")]
    space: PathBuf,
    /// Candidates: the empty one, the space's references, and draws spread over the number of layers.
    #[arg(long, default_value_t = 20)]
    candidates: usize,
    /// How many of them are trained with several seeds.
    #[arg(long, default_value_t = 5)]
    seeded: usize,
    /// Seeds of those.
    #[arg(long, default_value_t = 3)]
    seeds: u64,
    /// How many times longer the long training is; 1 leaves it out.
    #[arg(long, default_value_t = 5)]
    longer: u32,
    /// Only these architectures, in printed form.
    #[arg(long)]
    only: Vec<String>,
    /// Where each run's figures are kept.
    #[arg(long)]
    out: Option<PathBuf>,
    /// Folder of the trained parts.
    #[arg(long, default_value = "assets")]
    assets: PathBuf,
    /// Where latents are kept.
    #[arg(long, env = "TEMPONAS_CACHE", default_value_os_t = default_cache())]
    cache: PathBuf,
    /// Threads of libtorch in each training.
    #[arg(long, default_value_t = 1)]
    threads: u32,
    /// Trainings at a time.
    #[arg(long, default_value_t = std::thread::available_parallelism().map_or(1, std::num::NonZero::get))]
    parallel: usize,
}

/// One training with its score.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Run {
    architecture: String,
    seed: u64,
    steps: u32,
    train_loss: f64,
    train_seconds: f64,
    score: Score,
}

/// Runs the command.
///
/// # Errors
/// Where the space, the parts or a run's file cannot be read.
pub fn command(args: &ProxyCheckArgs) -> anyhow::Result<()> {
    ensure!(args.parallel > 0, "--parallel is 0; it must be at least 1");
    let bench = Bench::open(args)?;
    println!("{}", bench.assets.evaluator_line());
    let candidates = bench.candidates(args)?;
    let seeded = if args.only.is_empty() {
        spread(&candidates, args.seeded)
    } else {
        candidates.iter().collect()
    };
    let (first_seed, short_steps) = (bench.evaluation.train_seed, bench.evaluation.training.steps);
    let plan = |architecture: &Architecture, seed: u64, times: u32| Plan {
        architecture: architecture.clone(),
        seed: first_seed + seed,
        steps: short_steps * times,
    };
    let short: Vec<Plan> = candidates.iter().map(|a| plan(a, 0, 1)).collect();
    let by_seed: Vec<Vec<Plan>> = seeded
        .iter()
        .map(|a| (0..args.seeds).map(|seed| plan(a, seed, 1)).collect())
        .collect();
    let long: Vec<Plan> = if args.longer > 1 {
        candidates.iter().map(|a| plan(a, 0, args.longer)).collect()
    } else {
        Vec::new()
    };

    let more_seeds = by_seed.iter().flat_map(|plans| plans.iter().skip(1));
    side_by_side(args, short.iter().chain(more_seeds).chain(&long).collect())?;
    let read = |plans: &[Plan]| {
        plans
            .iter()
            .map(|plan| bench.run(plan))
            .collect::<anyhow::Result<Vec<Run>>>()
    };
    let (short, long) = (read(&short)?, read(&long)?);
    let by_seed: anyhow::Result<Vec<Vec<f64>>> = by_seed
        .iter()
        .map(|plans| Ok(read(plans)?.iter().map(Run::quality).collect()))
        .collect();
    print_table(&short, &long);
    report(&bench.evaluation, &short, &by_seed?, &long)
}

/// A training that is asked for.
#[derive(Debug, Clone)]
struct Plan {
    architecture: Architecture,
    seed: u64,
    steps: u32,
}

/// Does all plans, `--parallel` at a time; each thread has parts and clips of its own, since tensors are not shared.
fn side_by_side(args: &ProxyCheckArgs, plans: Vec<&Plan>) -> anyhow::Result<()> {
    let next = AtomicUsize::new(0);
    let work = || {
        let bench = Bench::open(args)?;
        while let Some(plan) = plans.get(next.fetch_add(1, Ordering::Relaxed)) {
            bench.run(plan)?;
        }
        anyhow::Ok(())
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..args.parallel).map(|_| scope.spawn(work)).collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().unwrap_or_else(|_| bail!("a training panicked")))
    })
}

struct Bench {
    space: Space,
    unet: UnetConfig,
    evaluation: Evaluation,
    assets: Assets,
    clips: TrainingSet,
    folder: PathBuf,
}

impl Bench {
    fn open(args: &ProxyCheckArgs) -> anyhow::Result<Self> {
        // libtorch keeps this number for each thread that asks.
        tch::set_num_threads(args.threads.try_into().context("--threads is too large")?);
        let text = fs::read_to_string(&args.space).with_context(|| args.space.display().to_string())?;
        let space = Space::parse(&text)?;
        let evaluation = space
            .evaluation
            .clone()
            .context("the space has no [evaluation] section")?;
        let unet = space.unet().context("the space is no temporal-unet")?.clone();
        let assets = Assets::open(&args.assets, &evaluation.dataset, Device::Cpu)?;
        let clips = assets.training_set(&args.cache, &mut |_| ControlFlow::Continue(()))?;
        let folder = args
            .out
            .clone()
            .unwrap_or_else(|| args.cache.join("proxy-check").join(&assets.manifest.digest()[..12]));
        fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        Ok(Self {
            space,
            unet,
            evaluation,
            assets,
            clips,
            folder,
        })
    }

    fn candidates(&self, args: &ProxyCheckArgs) -> anyhow::Result<Vec<Architecture>> {
        if !args.only.is_empty() {
            return args
                .only
                .iter()
                .map(|text| Ok(self.space.architecture(text)?))
                .collect();
        }
        let mut candidates = vec![self.space.backbone().context("the space has no empty architecture")?];
        for reference in &self.space.references {
            if !candidates.contains(&reference.architecture) {
                candidates.push(reference.architecture.clone());
            }
        }
        let positions = self.space.positions.len();
        let mut rng = generator(self.evaluation.train_seed, 0);
        for draw in 0.. {
            if candidates.len() >= args.candidates {
                break;
            }
            ensure!(
                draw < 100 * args.candidates,
                "the space holds fewer than {} architectures",
                args.candidates
            );
            let mut places: Vec<usize> = (0..positions).collect();
            places.shuffle(&mut rng);
            let mut architecture = candidates[0].clone();
            for &place in &places[..1 + draw % positions] {
                let choices = self.space.positions[place].choices.len();
                let empty = candidates[0].choices()[place] as usize;
                let choice = (empty + rng.random_range(1..choices)) % choices;
                architecture = architecture.with(place, choice as u16);
            }
            if !candidates.contains(&architecture) {
                candidates.push(architecture);
            }
        }
        Ok(candidates)
    }

    /// Trains and scores, or reads what an earlier call found with the same settings.
    fn run(&self, plan: &Plan) -> anyhow::Result<Run> {
        let Plan {
            ref architecture,
            seed,
            steps,
        } = *plan;
        let printed = self.space.print(architecture);
        let mut evaluation = Evaluation {
            train_seed: seed,
            ..self.evaluation.clone()
        };
        evaluation.training.steps = steps;
        let settings = crate::assets::digest_of(&(&evaluation, &self.unet));
        let path = self
            .folder
            .join(format!("{printed} seed {seed} steps {steps} {}.json", &settings[..8]));
        if path.exists() {
            let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
            return serde_json::from_str(&text).with_context(|| path.display().to_string());
        }
        let run = self.train_and_score(architecture, &printed, &evaluation)?;
        write_whole(&path, &serde_json::to_vec_pretty(&run)?)?;
        fs::write(path.with_extension("png"), &run.score.sheet)?;
        fs::write(path.with_extension("gif"), &run.score.animation)?;
        println!(
            "{printed:<16} seed {seed} steps {steps:>5}  quality {:.3} ± {:.3}  consistency {:.3} ± {:.3}  object {:.3}  \
             color {:.3}  loss {:.4}  {:.0} s + {:.0} s + {:.0} s",
            run.metric("quality").0,
            run.metric("quality").1,
            run.metric("overall_consistency").0,
            run.metric("overall_consistency").1,
            run.metric("object_class").0,
            run.metric("color").0,
            run.train_loss,
            run.train_seconds,
            run.score.sample_seconds,
            run.score.score_seconds,
        );
        Ok(run)
    }

    fn train_and_score(
        &self,
        architecture: &Architecture,
        printed: &str,
        evaluation: &Evaluation,
    ) -> anyhow::Result<Run> {
        let vs = nn::VarStore::new(Device::Cpu);
        let unet = UNet::new(&vs.root(), &self.unet, &self.space.layers(architecture));
        seed_weights(&vs, evaluation.train_seed);
        self.assets.load_backbone(&vs)?;
        let started = Instant::now();
        let (settings, seed) = (&evaluation.training, evaluation.train_seed);
        let mut training = Training::new(&unet, &vs, settings, seed)?;
        let batches = |step| {
            self.clips
                .batch(seed, step, u64::from(settings.batch), settings.text_dropout)
        };
        let tail = settings.steps - settings.steps / 5;
        let (mut sum, mut count) = (0.0, 0.0);
        let _ = training.run(u64::from(settings.steps), &batches, &mut |training, loss| {
            if training.step_number() > u64::from(tail) {
                (sum, count) = (sum + loss, count + 1.0);
            }
            ControlFlow::Continue(())
        })?;
        training.finish()?;
        let train_seconds = started.elapsed().as_secs_f64();
        Ok(Run {
            architecture: printed.to_owned(),
            seed,
            steps: settings.steps,
            train_loss: if count > 0.0 { sum / count } else { 0.0 },
            train_seconds,
            score: score(&self.assets, evaluation, &unet, &mut |_| ())?,
        })
    }
}

impl Run {
    fn metric(&self, name: &str) -> (f64, f64) {
        self.score
            .metrics
            .get(name)
            .map_or((0.0, 0.0), |estimate| (estimate.value, estimate.standard_error))
    }

    fn quality(&self) -> f64 {
        self.metric("quality").0
    }
}

/// Some of the candidates, spread over the list; never the first, which has nothing to train.
fn spread(candidates: &[Architecture], count: usize) -> Vec<&Architecture> {
    let trained = &candidates[1.min(candidates.len())..];
    let count = count.min(trained.len());
    (0..count).map(|i| &trained[i * trained.len() / count]).collect()
}

fn print_table(short: &[Run], long: &[Run]) {
    println!(
        "\n{:<16} {:>16} {:>16} {:>16}",
        "architecture", "quality", "consistency", "quality, long"
    );
    let mut order: Vec<usize> = (0..short.len()).collect();
    order.sort_by(|&a, &b| short[b].quality().total_cmp(&short[a].quality()));
    let figure = |run: &Run, name: &str| {
        let (value, error) = run.metric(name);
        format!("{value:.3} ± {error:.3}")
    };
    for i in order {
        let longer = long.get(i).map_or(String::new(), |run| figure(run, "quality"));
        println!(
            "{:<16} {:>16} {:>16} {longer:>16}",
            short[i].architecture,
            figure(&short[i], "quality"),
            figure(&short[i], "overall_consistency"),
        );
    }
}

fn report(evaluation: &Evaluation, short: &[Run], by_seed: &[Vec<f64>], long: &[Run]) -> anyhow::Result<()> {
    let Some((none, trained)) = short
        .split_first()
        .filter(|(none, _)| none.architecture.chars().all(|c| "-.".contains(c)))
    else {
        bail!("the empty architecture is not among the candidates: nothing to compare with");
    };
    let best = trained
        .iter()
        .max_by(|a, b| a.quality().total_cmp(&b.quality()))
        .context("one candidate only")?;
    let qualities: Vec<f64> = short.iter().map(Run::quality).collect();
    let longer: Vec<f64> = long.iter().map(Run::quality).collect();
    let signal = Signal {
        best_above_none: paired(evaluation, &best.score.per_prompt, &none.score.per_prompt),
        variance_ratio: statistics::variance_ratio(&qualities, by_seed),
        tau: kendall_tau(&qualities, &longer),
    };
    println!(
        "best: {}; the empty architecture is {}the best",
        best.architecture,
        if none.quality() < best.quality() { "not " } else { "" }
    );
    println!("{signal}");
    Ok(())
}

/// The difference in quality over the standard error of the prompts' differences: the clips of a prompt start from the
/// same noise in both.
fn paired(evaluation: &Evaluation, a: &[PromptScore], b: &[PromptScore]) -> f64 {
    let difference = |(a, b): (&PromptScore, &PromptScore)| {
        let both = a
            .values
            .iter()
            .filter_map(|(name, value)| Some((name.clone(), value - b.values.get(name)?)));
        PromptScore {
            caption: a.caption.clone(),
            values: both.collect(),
        }
    };
    let differences: Vec<PromptScore> = a.iter().zip(b).map(difference).collect();
    let estimate = quality(&differences, &evaluation.dimensions);
    estimate.value / estimate.standard_error
}

fn write_whole(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let partial = path.with_extension("partial");
    fs::write(&partial, bytes).with_context(|| partial.display().to_string())?;
    fs::rename(&partial, path).with_context(|| path.display().to_string())
}
