//! `temponas-worker vbench-check`: the whole path with the package as it is published.
//!
//! `temporal_flickering` is the dimension that needs no weights. Clips for its prompts are sampled by a tiny model, written
//! as videos, scored by the package, and scored again here from the frames that ffmpeg decodes.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::Args;
use search_spaces::vbench::Dimension;
use search_spaces::{Evaluation, Space};
use tch::{Device, nn};

use super::super::{Log, temporal_flickering};
use super::{Environment, Run, videos};
use crate::assets::Assets;
use crate::data::default_cache;
use crate::models::UNet;
use crate::models::seeded::seed_weights;

/// The largest difference between the package's score and ours: two builds of ffmpeg may round colours differently. With
/// the same decoder it is 3e-9, of the package's single precision.
pub(super) const TOLERANCE: f64 = 1e-4;
/// How long the package may take.
const LIMIT: Duration = Duration::from_secs(3600);

/// Score sampled clips with the published package `vbench`, and compare with our own computation. The last line reads
/// `temporal_flickering: package P, ours O, largest difference of a prompt D`.
#[derive(Debug, Args)]
pub struct VbenchCheckArgs {
    /// Python of an environment with the package; `scripts/vbench-env` makes one.
    #[arg(long, env = "TEMPONAS_VBENCH_PYTHON")]
    vbench_python: PathBuf,
    /// The space file: its UNet, parts and sampling.
    #[arg(long, default_value = "search-spaces/spaces/shapes-tiny.toml")]
    space: PathBuf,
    /// The architecture, in printed form.
    #[arg(long, default_value = "-.-.-.-.-")]
    architecture: String,
    /// Prompts of the dimension's 75.
    #[arg(long, default_value_t = 75)]
    prompts: u32,
    /// Videos of each prompt.
    #[arg(long, default_value_t = 5)]
    videos: u32,
    /// Euler steps of a sample.
    #[arg(long, default_value_t = 4)]
    steps: u32,
    /// Length, size and rate by name, `paper-eval` or `paper-demo`; those of the parts where absent.
    #[arg(long)]
    preset: Option<String>,
    /// Folder of the trained parts.
    #[arg(long, default_value = "assets")]
    assets: PathBuf,
    /// Folder for the videos.
    #[arg(long, env = "TEMPONAS_CACHE", default_value_os_t = default_cache())]
    cache: PathBuf,
}

/// What the package and we ourselves make of the same videos.
#[derive(Debug)]
pub(super) struct Comparison {
    /// The package's score.
    pub package: f64,
    /// Our mean over videos.
    pub ours: f64,
    /// The largest difference of a prompt's mean.
    pub worst: f64,
    /// Videos.
    pub videos: usize,
    /// Seconds of sampling, and of decoding, writing and scoring.
    pub seconds: [f64; 2],
}

#[derive(Debug)]
struct Print;

impl Log for Print {
    fn log(&self, line: &str) {
        println!("{line}");
    }
}

/// Runs the command.
///
/// # Errors
/// Where a part of the path fails, or the scores differ.
pub fn command(args: &VbenchCheckArgs) -> anyhow::Result<()> {
    let started = Instant::now();
    let environment = Environment::probe(&args.vbench_python, LIMIT)?;
    println!(
        "{}, started in {:.1} s",
        environment.line(Device::Cpu),
        started.elapsed().as_secs_f64()
    );
    let text = std::fs::read_to_string(&args.space).with_context(|| args.space.display().to_string())?;
    let space = Space::parse(&text).with_context(|| args.space.display().to_string())?;
    let evaluation = space
        .evaluation
        .clone()
        .context("the space has no [evaluation] section")?;
    let evaluation = Evaluation {
        prompts: args.prompts,
        videos_per_prompt: args.videos,
        sample_steps: args.steps,
        preset: args.preset.clone(),
        ..evaluation
    };
    let folder = args.cache.join("vbench-check");
    let found = compare(
        &environment,
        &space,
        &args.architecture,
        evaluation,
        &args.assets,
        &folder,
        &Print,
    )?;
    println!(
        "{} videos: sampled in {:.1} s, decoded, written and scored in {:.1} s",
        found.videos, found.seconds[0], found.seconds[1]
    );
    println!(
        "temporal_flickering: package {:.6}, ours {:.6}, largest difference of a prompt {:.2e}",
        found.package, found.ours, found.worst
    );
    ensure!(found.worst < TOLERANCE, "they differ by {TOLERANCE} or more");
    Ok(())
}

/// Goes the whole path in `folder` and leaves nothing there.
pub(super) fn compare(
    environment: &Environment,
    space: &Space,
    architecture: &str,
    evaluation: Evaluation,
    assets: &Path,
    folder: &Path,
    log: &dyn Log,
) -> anyhow::Result<Comparison> {
    let flickering = Dimension::TemporalFlickering.name();
    let evaluation = Evaluation {
        dimensions: [(flickering.to_owned(), 1.0)].into(),
        ..evaluation
    };
    let architecture = space.architecture(architecture)?;
    let unet = space.unet().context("the space has no UNet")?;
    let assets = Assets::open(assets, &evaluation.dataset, Device::Cpu)?;
    let vs = nn::VarStore::new(Device::Cpu);
    let unet = UNet::new(&vs.root(), unet, &space.layers(&architecture));
    seed_weights(&vs, evaluation.train_seed);
    assets.load_backbone(&vs)?;

    let model = space.print(&architecture);
    let run = Run {
        environment,
        folder,
        model: &model,
        log,
    };
    let (score, place) = run.score_and_keep(&assets, &evaluation, &unet, &mut |_| ControlFlow::Continue(()))?;
    let size = super::sampling(&assets, &evaluation, &unet)?.size;
    let (mut worst, mut sum, mut count): (f64, f64, usize) = (0.0, 0.0, 0);
    for prompt in &score.per_prompt {
        let mut of_prompt = 0.0;
        for video in 0..evaluation.videos_per_prompt as usize {
            let path = place.videos.join(super::video_name(&prompt.caption, video)?);
            let frames = videos::read(&videos::ffmpeg(), &path, [size.height, size.width], size.frames + 1)?;
            ensure!(
                frames.size()[1] == size.frames,
                "{} has {} frames instead of {}",
                path.display(),
                frames.size()[1],
                size.frames
            );
            of_prompt += temporal_flickering(&frames);
            count += 1;
        }
        sum += of_prompt;
        let ours = of_prompt / f64::from(evaluation.videos_per_prompt);
        worst = worst.max((ours - prompt.values[flickering]).abs());
    }
    place.remove();
    Ok(Comparison {
        package: score.metrics[flickering].value,
        ours: sum / count as f64,
        worst,
        videos: count,
        seconds: [score.sample_seconds, score.score_seconds],
    })
}
