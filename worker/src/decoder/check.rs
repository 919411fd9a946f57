//! `temponas-worker decoder-check`: is a separable decoder worth it at widths that a phone would see?
//!
//! The small VAE's own decoder has 8 to 32 channels and hardly anything that could be separated. So a dense decoder of 128
//! channels where its work is learns to decode for the same frozen encoder (recipe `decoder-wide`), unless it lies beside
//! already; it is the original here. A separable one then learns from it (recipe `decoder-wide-separable`),
//! and both decode clips that neither has seen.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use clap::Args;
use protocol::jobs::ExportPrecision;
use tch::{Device, Tensor};

use super::command::{CLIPS, Work, print};
use super::comparison::compare;
use super::material::Network;
use super::plan::Plan;
use crate::data::default_cache;
use crate::models::seeded::normal;
use crate::models::vae::latent_frames;
use crate::onnx::{Graph, INLINE_BYTES, LIBRARY, Runtime, Session, Tolerance};
use crate::profile::{InTurn, Settings, in_turn, runtime_name};
use crate::recipes::recipe;
use crate::scoring::images::Lpips;

/// What the separable decoder should reach: times as fast, and dB that it may lose.
const GOAL: (f64, f64) = (5.0, 0.5);

/// Check that a separable decoder is faster than the dense one that it learned from, and nearly as good. The last line
/// reads `separable decoder: X dB of Y dB (difference Z ± s), N times as fast in RUNTIME`.
#[derive(Debug, Args)]
pub struct DecoderCheckArgs {
    /// Folder of the trained parts whose encoder is used.
    #[arg(long, default_value = "assets/shapes")]
    parts: PathBuf,
    /// Recipe of the dense decoder; `none` for the parts' own.
    #[arg(long, default_value = "decoder-wide")]
    original: String,
    /// Recipe of the separable decoder.
    #[arg(long, default_value = "decoder-wide-separable")]
    recipe: String,
    /// Weights of LPIPS, as `scripts/lpips` lays them out; without them that column stays empty.
    #[arg(long, env = "TEMPONAS_LPIPS")]
    lpips: Option<PathBuf>,
    /// Seed of both trainings.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where clips are kept, and the decoders with their checkpoints.
    #[arg(long, env = "TEMPONAS_CACHE", default_value_os_t = default_cache())]
    cache: PathBuf,
    /// Threads of libtorch and ONNX Runtime.
    #[arg(long, default_value_t = 1)]
    threads: u32,
}

/// Runs the command; ends with an error where the goal was missed.
///
/// # Errors
/// Where parts or clips cannot be read, or the separable decoder is too slow or too bad.
pub fn command(args: &DecoderCheckArgs) -> anyhow::Result<()> {
    ensure!(args.threads > 0, "--threads is 0; it must be at least 1");
    tch::set_num_threads(args.threads.try_into().context("--threads is too large")?);
    let lpips = args
        .lpips
        .as_deref()
        .map(|path| Lpips::open(path, Device::Cpu))
        .transpose()?;
    let folder = args.cache.join("decoder-check");
    let name = args.parts.file_name().context("--parts names no folder")?;
    let train = |parts: &Path, of: &str| {
        let plan = Plan::new(recipe(of)?, args.seed)?;
        let out = folder.join(format!("{}-{}", plan.name(), args.seed));
        let work = Work {
            parts,
            dataset: None,
            plan,
            lpips: lpips.as_ref(),
            out: &out,
            cache: &args.cache,
            device: Device::Cpu,
        };
        Ok::<_, anyhow::Error>((work.train()?, out.join(name)))
    };
    let original = match args.original.as_str() {
        "none" => args.parts.clone(),
        of => train(&args.parts, of)?.1,
    };
    let ((material, trained), _) = train(&original, &args.recipe)?;
    let settings = Settings::new(Device::Cpu, args.threads, u64::MAX);
    let found = compare(&material, &trained, lpips.as_ref(), CLIPS, &settings, &mut |_, _| {
        ControlFlow::Continue(())
    })?;
    let libtorch = runtime_name(Device::Cpu, args.threads).name;
    print(&found, &libtorch);
    let (times, runtime) = match std::env::var_os(LIBRARY) {
        Some(_) => {
            let exported = exported_times([&material.original, &trained], found.clip, &settings, &folder)?;
            (exported, format!("ONNX Runtime on {} thread(s)", args.threads))
        }
        None => {
            println!("{LIBRARY} is not set: the exported graphs are not timed");
            (found.times.clone(), libtorch)
        }
    };
    for (part, times) in ["over time", "of single frames", "both"].iter().zip(&times) {
        let [old, new] = [&times.first_ms, &times.second_ms].map(|ms| ms.median().unwrap_or(f64::NAN));
        println!("{part:<17} {old:>8.2} to {new:>7.2} ms in {runtime}");
    }
    let quality = &found.quality;
    let mean = |of: &[crate::scoring::images::Likeness]| {
        of.iter().map(|likeness| likeness.psnr_db).sum::<f64>() / of.len() as f64
    };
    let difference = quality.psnr_difference_db();
    let speed_up = times[2].ratio.median().unwrap_or(0.0);
    println!(
        "separable decoder: {:.2} dB of {:.2} dB (difference {:.2} ± {:.2}), {speed_up:.2} times as fast in {runtime}",
        mean(&quality.compressed),
        mean(&quality.original),
        difference.value,
        difference.standard_error,
    );
    let (fastest, lost) = GOAL;
    ensure!(
        speed_up >= fastest && difference.value >= -lost,
        "the goal is {fastest} times as fast and at most {lost} dB less"
    );
    Ok(())
}

/// The decoders of a clip as graphs: both verified against libtorch, then timed in turn.
fn exported_times(
    networks: [&Network; 2],
    [frames, height, width]: [i64; 3],
    settings: &Settings,
    folder: &Path,
) -> anyhow::Result<[InTurn; 3]> {
    let runtime = Runtime::find(None)?;
    let latents = [1, 4, latent_frames(frames), height / 8, width / 8];
    let (latents, per_frame) = (
        normal(&latents, 1, Device::Cpu),
        normal(&[frames, 4, height / 8, width / 8], 2, Device::Cpu),
    );
    let ready = |network: &Network, name: &str| {
        let mut sessions = Vec::new();
        if let Some(temporal) = &network.vae.temporal {
            let expected = tch::no_grad(|| temporal.decode(&latents, frames));
            let build = |graph: &mut Graph| {
                let latents = graph.input("latents", &latents.size());
                temporal.export(graph, &latents, frames)
            };
            sessions.push(session(
                &runtime,
                &format!("{name}-temporal"),
                &latents,
                &expected,
                build,
                settings,
                folder,
            )?);
        }
        let expected = tch::no_grad(|| network.vae.spatial.decode(&per_frame));
        let build = |graph: &mut Graph| {
            let latents = graph.input("latents", &per_frame.size());
            network.vae.spatial.export(graph, &latents)
        };
        sessions.push(session(
            &runtime,
            &format!("{name}-spatial"),
            &per_frame,
            &expected,
            build,
            settings,
            folder,
        )?);
        Ok::<_, anyhow::Error>(sessions)
    };
    let old = ready(networks[0], "original")?;
    let new = ready(networks[1], "compressed")?;
    let inputs = [latents, per_frame].map(|input| vec![("latents".to_owned(), input)]);
    let timed = |parts: &[usize]| {
        let run = |sessions: &[std::cell::RefCell<Session>]| {
            for &part in parts {
                // It ran when it was verified.
                let _ = sessions[part].borrow_mut().run(&inputs[part]);
            }
        };
        in_turn(settings, [&|| run(&old), &|| run(&new)], &mut |_, _| {
            ControlFlow::Continue(())
        })
    };
    ensure!(old.len() == 2, "the VAE has no stage over time");
    Ok([timed(&[0])?, timed(&[1])?, timed(&[0, 1])?])
}

fn session(
    runtime: &Runtime,
    name: &str,
    input: &Tensor,
    expected: &Tensor,
    build: impl FnOnce(&mut Graph) -> crate::onnx::Value,
    settings: &Settings,
    folder: &Path,
) -> anyhow::Result<std::cell::RefCell<Session>> {
    let mut graph = Graph::new(name, ExportPrecision::F32);
    let decoded = build(&mut graph);
    graph.output("decoded", &decoded);
    let written = graph.write(folder, INLINE_BYTES)?;
    let threads = settings.threads as usize;
    let tolerance = Tolerance::of(ExportPrecision::F32);
    let error = runtime.verify(
        &written,
        &[("latents", input)],
        &[("decoded", expected)],
        tolerance,
        threads,
    )?;
    println!("{name}: off by {error:.1e} of the largest value in ONNX Runtime");
    Ok(runtime.session(&written, threads)?.into())
}
