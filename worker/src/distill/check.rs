//! `temponas-worker distill-check`: is the distilled model as good in 4 steps as the diffusion model in 25 guided ones?
//!
//! One architecture goes the whole way: its temporal layers are trained as a search trains them, then all weights on
//! images and clips together, then the result is distilled. What each stage leaves stays in a folder, so that an
//! interrupted check goes on with the stage it was in.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, bail, ensure};
use clap::Args;
use search_spaces::{Adversarial, Evaluation, Joint, Recipe, Space, Stage, TemporalLayer, Trains, UnetConfig};
use tch::{Device, Kind, Tensor};

use super::comparison::{Compared, Comparison, interval};
use super::discriminator::{Discriminator, Sources};
use super::objective::Adversary;
use crate::assets::Assets;
use crate::checkpoint::{decode_tensors, encode_tensors, write_atomically};
use crate::data::default_cache;
use crate::data::latents::TrainingSet;
use crate::models::trained::Trained;
use crate::recipes::recipe;
use crate::scoring::score;
use crate::train::Training;
use job_client::digest_of;

/// Check that a distilled model in few steps without guidance is as good as the diffusion model it came from. The last
/// line reads `4 steps against 25: ratio R [low, high], denoising S times faster`.
#[derive(Debug, Args)]
pub struct DistillCheckArgs {
    /// The space file.
    #[arg(long, default_value = "search-spaces/spaces/shapes-tiny.toml")]
    space: PathBuf,
    /// The architecture, in printed form.
    #[arg(long, default_value = "c1.c3.c3.c3.c1")]
    architecture: String,
    /// Recipe of the joint training: the name of one that ships, or a file.
    #[arg(long, default_value = "joint-small")]
    joint: String,
    /// Recipe of the distillation.
    #[arg(long, default_value = "adversarial-small")]
    adversarial: String,
    /// Clips scored for each prompt.
    #[arg(long, default_value_t = 16)]
    videos: u32,
    /// Seed of both trainings.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Timed pairs of samples.
    #[arg(long, default_value_t = 9)]
    repeats: u32,
    /// Where the weights of each stage are kept.
    #[arg(long)]
    out: Option<PathBuf>,
    /// Folder of the trained parts.
    #[arg(long, default_value = "assets")]
    assets: PathBuf,
    /// Where latents are kept.
    #[arg(long, env = "TEMPONAS_CACHE", default_value_os_t = default_cache())]
    cache: PathBuf,
    /// Threads of libtorch.
    #[arg(long, default_value_t = 1)]
    threads: i32,
}

/// Runs the command.
///
/// # Errors
/// Where the space, a recipe, the parts or a stage's file cannot be read.
pub fn command(args: &DistillCheckArgs) -> anyhow::Result<()> {
    ensure!(args.threads > 0, "--threads is {}; it must be at least 1", args.threads);
    tch::set_num_threads(args.threads);
    let bench = Bench::open(args)?;
    println!("{}", bench.assets.evaluator_line());
    let candidate = bench.candidate()?;
    let teacher = bench.joint(&candidate)?;
    let (student, steps) = bench.distilled(&teacher)?;
    let compared = bench.compare(&teacher, &student, steps)?;
    report(&bench.evaluation, &compared, &bench.assets.evaluator_line(), steps)
}

type Weights = BTreeMap<String, Tensor>;

struct Bench<'a> {
    args: &'a DistillCheckArgs,
    out: PathBuf,
    assets: Assets,
    config: UnetConfig,
    layers: Vec<Option<TemporalLayer>>,
    evaluation: Evaluation,
}

impl<'a> Bench<'a> {
    fn open(args: &'a DistillCheckArgs) -> anyhow::Result<Self> {
        let text = fs::read_to_string(&args.space).with_context(|| args.space.display().to_string())?;
        let space = Space::parse(&text)?;
        let architecture = space.architecture(&args.architecture)?;
        let config = space.unet().context("the space has no UNet")?.clone();
        let mut evaluation = space.evaluation.clone().context("the space has no [evaluation]")?;
        evaluation.videos_per_prompt = args.videos;
        Ok(Self {
            out: args.out.clone().unwrap_or_else(|| args.cache.join("distill-check")),
            assets: Assets::open(&args.assets, &evaluation.dataset, Device::Cpu)?,
            layers: space.layers(&architecture),
            config,
            evaluation,
            args,
        })
    }

    fn model(&self, seed: u64) -> anyhow::Result<Trained> {
        let model = Trained::seeded(&self.config, &self.layers, seed, Device::Cpu);
        self.assets.load_backbone(&model.vs)?;
        Ok(model)
    }

    fn clips(&self) -> anyhow::Result<TrainingSet> {
        Ok(self
            .assets
            .training_set(&self.args.cache, &mut |_| ControlFlow::Continue(()))?)
    }

    /// What a stage leaves, from its file where it is there already; `key` is all that it depends on.
    fn kept(&self, stage: &str, key: &str, make: impl FnOnce() -> anyhow::Result<Weights>) -> anyhow::Result<Weights> {
        let key = format!("{} {} {key}", self.assets.manifest.digest(), self.args.architecture);
        let digest = digest_of(key.as_bytes()).to_string();
        let path = self.out.join(format!("{stage}-{}.safetensors", &digest[..16]));
        if let Ok(bytes) = fs::read(&path) {
            println!("{stage}: {}", path.display());
            return Ok(decode_tensors(&bytes)?);
        }
        let started = Instant::now();
        let weights = make()?;
        println!("{stage}: {:.0} s", started.elapsed().as_secs_f64());
        write_atomically(&path, &encode_tensors(&weights, HashMap::new())?)?;
        Ok(weights)
    }

    /// The temporal layers as a search trains them.
    fn candidate(&self) -> anyhow::Result<Weights> {
        let (settings, seed) = (&self.evaluation.training, self.evaluation.train_seed);
        self.kept("candidate", &format!("{settings:?} {seed}"), || {
            let (model, clips) = (self.model(seed)?, self.clips()?);
            let training = Training::new(&model.unet, &model.vs, settings, seed)?;
            let trained = follow(training, &clips, settings, seed, &String::new)?;
            Ok(trained.into_iter().collect())
        })
    }

    fn joint(&self, candidate: &Weights) -> anyhow::Result<Weights> {
        let recipe = recipe(&self.args.joint)?;
        let Stage::Joint(Joint { mix }) = &recipe.stage else {
            bail!("--joint names a recipe of another stage");
        };
        let (settings, seed) = (&recipe.training, self.args.seed);
        self.kept("joint", &format!("{recipe:?} {seed} {}", digest(candidate)?), || {
            let model = self.model(seed)?;
            model.take(candidate)?;
            let clips = self.clips()?.with_mix(mix)?;
            let training = match recipe.trains {
                Trains::All => Training::of_trainable(&model.unet, &model.vs, settings, seed),
                Trains::Temporal => Training::new(&model.unet, &model.vs, settings, seed),
            }?;
            let trained = follow(training, &clips, settings, seed, &String::new)?;
            Ok(model.weights(trained))
        })
    }

    fn distilled(&self, teacher: &Weights) -> anyhow::Result<(Weights, u32)> {
        let recipe: Recipe = recipe(&self.args.adversarial)?;
        let Stage::Adversarial(adversarial) = &recipe.stage else {
            bail!("--adversarial names a recipe of another stage");
        };
        let key = format!("{recipe:?} {} {}", self.args.seed, digest(teacher)?);
        let student = self.kept("adversarial", &key, || self.distil(teacher, &recipe, adversarial))?;
        Ok((student, adversarial.sample_steps))
    }

    fn distil(&self, teacher: &Weights, recipe: &Recipe, adversarial: &Adversarial) -> anyhow::Result<Weights> {
        let (settings, seed) = (&recipe.training, self.args.seed);
        let model = self.model(seed)?;
        model.take(teacher)?;
        let sources = Sources {
            config: &self.config,
            layers: &self.layers,
            weights: teacher,
            caption_width: self.assets.manifest.recipe.text.width,
        };
        let discriminator = Discriminator::new(sources, adversarial.heads, Kind::Float, seed, Device::Cpu)?;
        let adversary = Adversary::new(discriminator, adversarial, settings);
        let clips = self.clips()?.with_mix(&adversarial.mix)?;
        let training = Training::of_trainable(&model.unet, &model.vs, settings, seed)?;
        let training = training.with_objective(Box::new(&adversary));
        let told = || {
            let terms = adversary.last();
            format!(
                "  D {:.3} (real {:+.3}, fake {:+.3})  reconstruction {:.3}",
                terms.discriminator, terms.real, terms.adversarial, terms.reconstruction
            )
        };
        let trained = follow(training, &clips, settings, seed, &told)?;
        Ok(model.weights(trained))
    }

    fn compare(&self, teacher: &Weights, student: &Weights, steps: u32) -> anyhow::Result<Compared> {
        let models = [teacher, student].map(|weights| {
            let model = self.model(self.args.seed)?;
            model.take(weights)?;
            anyhow::Ok(model)
        });
        let [teacher, student] = models;
        let (teacher, student) = (teacher?, student?);
        let text = &self.assets.manifest.recipe.text;
        let comparison = Comparison {
            teacher: &teacher.unet,
            student: &student.unet,
            evaluation: &self.evaluation,
            steps,
            latents: self.assets.latent_shape(),
            text: [text.tokens, text.width],
            device: Device::Cpu,
            repeats: self.args.repeats,
        };
        Ok(comparison.run(&mut |unet, evaluation, _| {
            score(&self.assets, evaluation, unet, &mut |_| ControlFlow::Continue(()))
        })?)
    }
}

/// Names weights.
fn digest(weights: &Weights) -> anyhow::Result<String> {
    Ok(digest_of(&encode_tensors(weights, HashMap::new())?).to_string())
}

/// Trains to the end and tells of it ten times.
fn follow(
    mut training: Training<'_>,
    clips: &TrainingSet,
    settings: &search_spaces::TrainingSettings,
    seed: u64,
    more: &dyn Fn() -> String,
) -> anyhow::Result<Vec<(String, Tensor)>> {
    let steps = u64::from(settings.steps);
    let batches = |step| Ok(clips.batch(seed, step, settings.batch.into(), settings.text_dropout)?);
    let every = (steps / 10).max(1);
    let (mut sum, started) = (0.0, Instant::now());
    let ended = training.run(steps, &batches, &mut |training, loss| {
        sum += loss;
        if training.step_number().is_multiple_of(every) {
            let seconds = started.elapsed().as_secs_f64();
            let mean = std::mem::take(&mut sum) / every as f64;
            println!(
                "  step {:>5}  loss {mean:.4}{}  {seconds:.0} s",
                training.step_number(),
                more()
            );
        }
        ControlFlow::Continue(())
    })?;
    ensure!(ended.is_continue(), "the training was broken off");
    Ok(training.finish()?)
}

fn report(evaluation: &Evaluation, compared: &Compared, evaluator: &str, steps: u32) -> anyhow::Result<()> {
    let table = compared.table(evaluator);
    println!("{}\n{}", table.title, table.columns.join(" | "));
    for row in &table.rows {
        println!("{}", row.join(" | "));
    }
    let prompts = compared.teacher.per_prompt.len();
    for (of, _) in &compared.student {
        let paired = compared.paired(*of).context("a score of each number of steps")?;
        let [low, high] = interval(paired.difference, prompts);
        println!(
            "{of} steps: difference {:+.4} [{low:+.4}, {high:+.4}]",
            paired.difference.value
        );
    }
    let ratio = compared.paired(steps).context("a score of the recipe's steps")?.ratio;
    let [low, high] = interval(ratio, prompts);
    println!(
        "{steps} steps against {}: ratio {:.4} [{low:.4}, {high:.4}], denoising {:.2} ± {:.2} times faster",
        evaluation.sample_steps,
        ratio.value,
        compared.speed_up.median().unwrap_or_default(),
        compared.speed_up.standard_error().unwrap_or_default(),
    );
    Ok(())
}
