//! `temponas-worker full-size`: the model at the paper's size takes real training and sampling steps on this machine.
//!
//! The weights are random and so are the clips: the steps show that the model fits, what it takes, and how fast it is.
//! Figures of speed stand beside the matrix product's own, measured in the same run.

mod busy;
mod parts;
mod work;

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, ensure};
use clap::Args;
use lut::Samples;
use search_spaces::{Architecture, Precision, Space, TimestepShift, TrainingSettings, UnetConfig};
use tch::{Device, Kind, Tensor, nn};

use crate::data::latents::Batch;
use crate::flow::{PRESETS, Preset, Sampler};
use crate::models::UNet;
use crate::models::seeded::{generator, normal_from};
use crate::recipes::recipe;
use crate::shim::{MemoryTracker, PeakBytes};
use crate::train::Training;
use busy::Busy;

/// Temporal layers with which the backbone of `snapgen-v` comes to the paper's 0.6B: its two parts of 644 and 626.5 MB in
/// half precision are 635M parameters, of which the backbone has 327M.
pub(crate) const ARCHITECTURE: &str = "c1.s1.c3x3.c3x3.c3x3.c3x2.c1";

/// Take training and sampling steps with the model at the paper's size.
#[derive(Debug, Args)]
pub struct FullSizeArgs {
    /// The space file.
    #[arg(long, default_value = "search-spaces/spaces/snapgen-v.toml")]
    space: PathBuf,
    /// The temporal layers, position by position.
    #[arg(long, default_value = ARCHITECTURE)]
    architecture: String,
    /// Recipe that the settings of the optimizer come from: a shipped name or a file.
    #[arg(long, default_value = "candidates")]
    recipe: String,
    /// Where libtorch computes: `cpu` or `cuda:N`.
    #[arg(long, default_value = "cpu")]
    pub device: String,
    /// Threads of libtorch.
    #[arg(long, default_value_t = std::thread::available_parallelism().map_or(1, std::num::NonZero::get))]
    threads: usize,
    /// Frames and size of the paper's clips instead of `--frames` and `--size`: `paper-eval` or `paper-demo`.
    #[arg(long, value_parser = preset)]
    preset: Option<Preset>,
    /// Latent frames of a clip.
    #[arg(long, default_value_t = 5)]
    frames: u32,
    /// Rows and columns of the latents.
    #[arg(long, default_value_t = 32)]
    size: u32,
    /// Clips a step.
    #[arg(long, default_value_t = 1)]
    batch: u32,
    /// Micro-batches a step.
    #[arg(long, default_value_t = 1)]
    accumulate: u32,
    /// Training steps; the first is a warm-up and not timed where there are more.
    #[arg(long, default_value_t = 4)]
    steps: u32,
    /// Steps of the sample.
    #[arg(long, default_value_t = 4)]
    sample_steps: u32,
    /// Scale of guidance of the sample; 1 is none.
    #[arg(long, default_value_t = 1.0)]
    guidance: f64,
    /// Number format of the model.
    #[arg(long, value_enum, default_value = "bf16")]
    precision: PrecisionArg,
    /// Keep all activations for the backward pass instead of computing them again.
    #[arg(long)]
    keep_activations: bool,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum PrecisionArg {
    F32,
    Bf16,
}

fn preset(name: &str) -> Result<Preset, String> {
    let allowed = || PRESETS.map(|preset| preset.name).join(", ");
    Preset::named(name).ok_or_else(|| format!("allowed: {}", allowed()))
}

/// Runs the command on `device`.
///
/// # Errors
/// An unreadable space or recipe, an architecture that is none, a step that libtorch refuses.
pub fn command(args: &FullSizeArgs, device: Device) -> anyhow::Result<()> {
    let positive = [
        ("frames", args.frames),
        ("size", args.size),
        ("batch", args.batch),
        ("accumulate", args.accumulate),
        ("steps", args.steps),
        ("sample-steps", args.sample_steps),
    ];
    for (name, value) in positive {
        ensure!(value > 0, "--{name} is 0; it must be at least 1");
    }
    ensure!(
        args.batch.is_multiple_of(args.accumulate),
        "--accumulate is {}; it must divide the batch of {}",
        args.accumulate,
        args.batch
    );
    let text = std::fs::read_to_string(&args.space).with_context(|| args.space.display().to_string())?;
    let space = Space::parse(&text).map_err(|error| anyhow::anyhow!("{}: {error}", args.space.display()))?;
    let architecture = space.architecture(&args.architecture)?;
    let unet = space.unet().with_context(|| format!("`{}` has no UNet", space.name))?;
    let bench = Bench {
        config: sized(unet, args),
        settings: settings(args)?,
        sampler: Sampler {
            steps: args.sample_steps,
            shift: TimestepShift::None,
            guidance: args.guidance,
        },
        device,
        space: &space,
        architecture,
    };
    tch::set_num_threads(i32::try_from(args.threads)?);
    bench.introduce(args);
    parts::beside_the_unet();
    bench.run()
}

/// The space's UNet for clips of the size that was asked for.
fn sized(unet: &UnetConfig, args: &FullSizeArgs) -> UnetConfig {
    let [frames, height, width] = match args.preset {
        Some(preset) => {
            let [_, _, t, h, w] = preset.latent_shape(1, 1);
            [t, h, w].map(i64::unsigned_abs)
        }
        None => [args.frames, args.size, args.size].map(u64::from),
    };
    UnetConfig {
        frames,
        height,
        width,
        ..unet.clone()
    }
}

fn settings(args: &FullSizeArgs) -> anyhow::Result<TrainingSettings> {
    Ok(TrainingSettings {
        steps: args.steps,
        batch: args.batch,
        accumulate: args.accumulate,
        precision: match args.precision {
            PrecisionArg::F32 => Precision::F32,
            PrecisionArg::Bf16 => Precision::Bf16,
        },
        gradient_checkpointing: !args.keep_activations,
        ..recipe(&args.recipe)?.training
    })
}

struct Bench<'a> {
    space: &'a Space,
    architecture: Architecture,
    config: UnetConfig,
    settings: TrainingSettings,
    sampler: Sampler,
    device: Device,
}

impl Bench<'_> {
    fn kind(&self) -> Kind {
        match self.settings.precision {
            Precision::F32 => Kind::Float,
            Precision::Bf16 => Kind::BFloat16,
        }
    }

    fn introduce(&self, args: &FullSizeArgs) {
        let TrainingSettings {
            batch,
            accumulate,
            gradient_checkpointing,
            ..
        } = self.settings;
        let UnetConfig {
            frames, height, width, ..
        } = self.config;
        println!("space         {} with {}", self.space.name, args.architecture);
        println!(
            "device        {}, {} threads, libtorch {}",
            args.device,
            tch::get_num_threads(),
            env!("TEMPONAS_LIBTORCH_VERSION")
        );
        println!("latents       {frames}×{height}×{width}, {batch} a step in {accumulate} parts");
        println!(
            "arithmetic    {:?}{}, activations {}",
            self.settings.precision,
            if self.settings.precision == Precision::Bf16 {
                " over float32 masters"
            } else {
                ""
            },
            if gradient_checkpointing {
                "computed again"
            } else {
                "kept"
            }
        );
    }

    fn run(&self) -> anyhow::Result<()> {
        let memory = MemoryTracker::begin(self.device, None);
        let (built, PeakBytes(building)) = memory.peak_of(|| self.build());
        let (vs, unet) = built;
        parts::of_the_unet(&vs, &self.config);
        let ceiling = work::ceiling(self.kind(), self.device);
        println!(
            "ceiling       {:.0} GFLOP/s, the best of {} square products of {} in {:?}",
            ceiling.flops / 1e9,
            ceiling.repeats,
            ceiling.size,
            self.kind()
        );
        let standing = memory.in_use();
        let (trained, PeakBytes(above)) = memory.peak_of(|| self.train(&unet, &vs, &memory, ceiling.flops));
        trained?;
        println!(
            "memory        {:.2} GB at the peak of training, {:.2} GB at that of building",
            (standing + above) as f64 / 1e9,
            building as f64 / 1e9
        );
        let standing = memory.in_use();
        let ((), PeakBytes(above)) = memory.peak_of(|| self.sample(&unet, ceiling.flops));
        println!(
            "memory        {:.2} GB at the peak of sampling",
            (standing + above) as f64 / 1e9
        );
        Ok(())
    }

    fn build(&self) -> (nn::VarStore, UNet) {
        tch::manual_seed(1);
        let vs = nn::VarStore::new(self.device);
        let unet = UNet::new(&vs.root(), &self.config, &self.space.layers(&self.architecture));
        (vs, unet)
    }

    fn normal(&self, stream: u64, shape: &[u64]) -> Tensor {
        let shape: Vec<i64> = shape.iter().map(|&size| size as i64).collect();
        normal_from(&mut generator(1, stream), &shape, self.device)
    }

    fn clips(&self, batch: u64, stream: u64) -> Batch {
        let UnetConfig {
            latent_channels,
            frames,
            height,
            width,
            text_tokens,
            text_width,
            ..
        } = self.config;
        Batch {
            latents: self.normal(2 * stream, &[batch, latent_channels, frames, height, width]),
            text: self.normal(2 * stream + 1, &[batch, text_tokens, text_width]),
            pooled: None,
        }
    }

    /// Training steps, with what they took.
    fn train(&self, unet: &UNet, vs: &nn::VarStore, memory: &MemoryTracker, ceiling: f64) -> anyhow::Result<()> {
        let mut training = Training::new(unet, vs, &self.settings, 1)?;
        // The projections that make fresh temporal layers the identity: what they grow to is what was learned.
        let zeros: Vec<Tensor> = training
            .masters()
            .map(|(_, weight)| weight.detach())
            .filter(|weight| largest(weight) == 0.0)
            .collect();
        let mut losses = Vec::new();
        let batches = |step| Ok(self.clips(u64::from(self.settings.batch), step));
        let mut busy = None;
        let _ = training.run(u64::from(self.settings.steps), &batches, &mut |training, loss| {
            let ms = training.step_milliseconds().last().copied().unwrap_or_default();
            tracing::info!(step = training.step_number(), loss, seconds = ms / 1000.0);
            losses.push(format!("{loss:.4}"));
            // From the end of the first step on, which is not timed either.
            busy.get_or_insert_with(|| Busy::watch(self.device));
            ControlFlow::Continue(())
        })?;
        let share = busy.and_then(Busy::share);
        println!("training      losses {}", losses.join(" "));
        println!(
            "training      {} tensors that began at zero have weights of up to {:.1e}",
            zeros.len(),
            zeros.iter().map(largest).fold(0.0, f64::max)
        );
        println!(
            "memory        {:.2} GB stand between steps: weights, masters, moments, gradients",
            memory.in_use() as f64 / 1e9
        );
        let times = training.step_milliseconds();
        let timed = if times.len() > 1 { &times[1..] } else { times };
        let steps = Samples::new(timed.to_vec())?;
        let work = work::training(&self.config, &self.space.layers(&self.architecture), &self.settings);
        say_speed("training", "step", &steps, work, ceiling);
        if let Some(share) = share {
            println!(
                "training      the GPU is busy {:.0} % of the time (nvidia-smi)",
                100.0 * share
            );
        }
        Ok(())
    }

    /// A sample, with what a step of it took.
    fn sample(&self, unet: &UNet, ceiling: f64) {
        let Batch { latents, text, .. } = self.clips(1, 1000);
        let null_text = text.zeros_like();
        let started = Instant::now();
        let clip = self.sampler.sample(unet, &latents, &text, &null_text);
        // Reading a number waits for an accelerator to finish.
        let spread = clip.std(true).double_value(&[]);
        let ms = started.elapsed().as_secs_f64() * 1000.0;
        println!(
            "sampling      {:?}, standard deviation {spread:.3}, {:.1} s",
            clip.size(),
            ms / 1000.0
        );
        let passes = f64::from(self.sampler.passes());
        let forward = 2.0 * self.config.macs(&self.space.layers(&self.architecture)) as f64;
        let work = work::Work {
            model: forward,
            with_recomputation: forward,
        };
        if let Ok(pass) = Samples::new(vec![ms / passes]) {
            say_speed("sampling", "pass in the mean", &pass, work, ceiling);
        }
    }
}

fn largest(tensor: &Tensor) -> f64 {
    tensor.abs().max().to_kind(Kind::Double).double_value(&[])
}

/// Prints how long a step or pass took and how fast that is.
fn say_speed(what: &str, unit: &str, times: &Samples, work: work::Work, ceiling: f64) {
    let Some(median) = times.median() else { return };
    let spread = times.spread().map_or(String::new(), |spread| {
        format!(" (median of {}, spread {:.3} s)", times.len(), spread / 1000.0)
    });
    println!("{what:<13} {:.3} s a {unit}{spread}", median / 1000.0);
    let say = |flop: f64, of: &str| {
        let rate = flop / (median / 1000.0);
        println!(
            "{what:<13} {:.2} TFLOP {of}: {:.0} GFLOP/s, {:.0} % of the ceiling",
            flop / 1e12,
            rate / 1e9,
            100.0 * rate / ceiling
        );
    };
    say(work.model, "of the model");
    if work.with_recomputation > work.model {
        say(work.with_recomputation, "with what is computed again");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 644 and 626.5 MB of half precision are 635M (spec section 0).
    #[test]
    fn the_architecture_is_of_the_papers_class() {
        let space = Space::parse(include_str!("../../../search-spaces/spaces/snapgen-v.toml")).unwrap();
        let architecture = space.architecture(ARCHITECTURE).unwrap();
        let parameters = space.unet().unwrap().parameters(&space.layers(&architecture));
        assert!(parameters.abs_diff(635_000_000) < 10_000_000, "{parameters}");
    }
}
