//! Compresses the decoder of a VAE: trains a smaller one for the frozen encoder, and compares both.

use std::ops::ControlFlow;

use protocol::artifacts::{ArtifactRef, ArtifactRole};
use protocol::jobs::{CompressDecoderInput, CompressDecoderOutcome, DeviceSeconds, JobResult, Outcome};
use protocol::{Figure, Metrics};

use super::costs;
use super::diary::{DIARY, Diary, resume};
use super::{JobContext, JobError};
use crate::assets::{Assets, VAE};
use crate::checkpoint::Checkpoint;
use crate::decoder::comparison::{Comparison, ComparisonError, compare};
use crate::decoder::material::{Material, Network};
use crate::decoder::plan::Plan;
use crate::decoder::training::{Compression, CompressionError, Progress};
use crate::profile::{InTurnError, Settings, runtime_name};
use crate::scoring::images::Lpips;
use crate::shim::{MemoryTracker, PeakBytes};
use job_client::files::is_plain;

/// Shares of the job at which training begins and ends.
const SHARES: [f64; 2] = [0.02, 0.9];
/// Clips that are decoded to compare.
const CLIPS: usize = 64;

pub(super) fn run(context: &JobContext, input: &CompressDecoderInput) -> Result<JobResult, JobError> {
    let worker = &context.settings;
    tch::set_num_threads(worker.threads as i32);
    let plan = Plan::parse(&input.recipe, input.seed).map_err(|error| JobError::Input(error.to_string()))?;
    context.progress(0.0, "reading trained parts")?;
    let lpips = lpips(context)?;
    let material = material(context, input, &plan)?;
    let config = plan
        .config(&material.original.config)
        .map_err(|error| JobError::Input(error.to_string()))?;
    let start = material.original.compressed(&config, plan.seed);
    let (start, origin) = start.map_err(JobError::attempt)?;
    context.log(&format!(
        "the decoder begins with {} scalars of the original's, {} of its kernels taken apart, {} drawn",
        origin.copied, origin.separated, origin.drawn
    ));
    let compression = Compression {
        material: &material,
        start: &start,
        plan: &plan,
        lpips: lpips.as_ref(),
    };
    let mut step_milliseconds = Vec::new();
    let memory = MemoryTracker::begin(worker.device, None);
    let (trained, PeakBytes(peak)) = memory.peak_of(|| train(context, &compression, &mut step_milliseconds));
    let (network, diary) = trained?;
    drop(memory);

    let found = comparison(context, &material, &network, lpips.as_ref())?;
    let mut metrics: Metrics = found
        .figures()
        .into_iter()
        .map(|(name, value, error)| figure(&name, value, error))
        .collect();
    metrics.extend(diary.figure());
    metrics.extend(costs::of(&step_milliseconds, peak));
    Ok(JobResult {
        device_seconds: spent(context),
        artifacts: keep_artifacts(context, &material, &network, &diary)?,
        outcome: Outcome::CompressDecoder(CompressDecoderOutcome {
            metrics,
            table: found.table(&runtime_name(worker.device, worker.threads).name),
        }),
    })
}

fn figure(name: &str, value: f64, standard_error: f64) -> (String, Figure) {
    (name.to_owned(), Figure { value, standard_error })
}

fn spent(context: &JobContext) -> DeviceSeconds {
    DeviceSeconds {
        train: context.elapsed_seconds(),
        ..DeviceSeconds::default()
    }
}

/// A worker without the weights leaves the column empty.
fn lpips(context: &JobContext) -> Result<Option<Lpips>, JobError> {
    let path = context.settings.lpips.as_deref();
    let open = |path| Lpips::open(path, context.settings.device);
    path.map(open).transpose().map_err(JobError::attempt)
}

fn material(context: &JobContext, input: &CompressDecoderInput, plan: &Plan) -> Result<Material, JobError> {
    let folder = match &input.dataset {
        None => None,
        Some(name) if !is_plain(name) => {
            return Err(JobError::Input(format!("`dataset` is {name:?}; allowed: a plain name")));
        }
        Some(name) => {
            let folder = context.settings.data.join(name);
            if !folder.is_dir() {
                // Another worker may have it.
                return Err(JobError::Attempt(format!(
                    "this worker has no folder {}",
                    folder.display()
                )));
            }
            Some(folder)
        }
    };
    let root = context.assets(&input.parts, &input.base)?;
    let parts = Assets::open(&root, &input.parts, context.settings.device).map_err(JobError::attempt)?;
    let material = Material::open(parts, folder.as_deref(), plan, &context.settings.cache);
    material.map_err(JobError::attempt)
}

/// All steps, from the checkpoint of an earlier attempt where it can be used; notes the time of each.
fn train(
    context: &JobContext,
    compression: &Compression<'_>,
    step_milliseconds: &mut Vec<f64>,
) -> Result<(Network, Diary), JobError> {
    let steps = compression.steps();
    let mut follow = |checkpoint: Option<&Checkpoint>, diary: &mut Diary| {
        let mut failure = None;
        let network = compression.run(checkpoint, &mut |progress| {
            step_milliseconds.push(progress.step_milliseconds());
            match note(context, progress, steps, diary) {
                Ok(()) => ControlFlow::Continue(()),
                Err(error) => {
                    failure = Some(error);
                    ControlFlow::Break(())
                }
            }
        });
        (network, failure)
    };
    let (checkpoint, mut diary) = match resume(context)? {
        Some((checkpoint, diary)) => (Some(checkpoint), diary),
        None => (None, Diary::default()),
    };
    let mut ended = follow(checkpoint.as_ref(), &mut diary);
    if let (Err(CompressionError::Checkpoint(problem)), _) = &ended {
        context.log(&format!(
            "starting again from step 0: the checkpoint cannot be used: {problem}"
        ));
        diary = Diary::default();
        ended = follow(None, &mut diary);
    }
    match ended {
        (Ok(network), _) => Ok((network, diary)),
        (Err(CompressionError::Interrupted), failure) => Err(failure.unwrap_or(JobError::Interrupted)),
        (Err(error), _) => Err(JobError::attempt(error)),
    }
}

/// Writes a step down and tells of it; keeps a checkpoint where one is due, or the job is not to go on.
fn note(context: &JobContext, progress: &Progress<'_>, steps: u64, diary: &mut Diary) -> Result<(), JobError> {
    if let Some(point) = diary.note(progress.step, progress.loss, Diary::every(steps)) {
        let terms = progress.terms;
        context.curve(point);
        context.figures(diary.figure());
        context.figures([
            figure("reconstruction_loss", terms.reconstruction, 0.0),
            figure("distillation_loss", terms.distillation, 0.0),
            figure("feature_loss", terms.feature, 0.0),
            figure("perceptual_loss", terms.perceptual, 0.0),
        ]);
    }
    context.spent(spent(context));
    let share = SHARES[0] + (SHARES[1] - SHARES[0]) * progress.step as f64 / steps as f64;
    let interrupted = context.progress(share, &format!("{} decoder", progress.part.name()));
    if progress.is_checkpoint_due() || interrupted.is_err() {
        let mut checkpoint = progress.checkpoint();
        let written = serde_json::to_string(diary).map_err(JobError::attempt)?;
        checkpoint.notes.insert(DIARY.to_owned(), written);
        context.save(&checkpoint.encode().map_err(JobError::attempt)?)?;
    }
    interrupted
}

fn comparison(
    context: &JobContext,
    material: &Material,
    network: &Network,
    lpips: Option<&Lpips>,
) -> Result<Comparison, JobError> {
    let worker = &context.settings;
    let settings = Settings::new(worker.device, worker.threads, worker.memory_bytes);
    let found = compare(material, network, lpips, CLIPS, &settings, &mut |share, status| {
        context.spent(spent(context));
        match context.progress(SHARES[1] + (1.0 - SHARES[1]) * share, status) {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        }
    });
    found.map_err(|error| match error {
        ComparisonError::Times(InTurnError::Interrupted) => JobError::Interrupted,
        error => JobError::attempt(error),
    })
}

/// The VAE and the manifest of parts that hold it; their other files are those that the job was given.
fn keep_artifacts(
    context: &JobContext,
    material: &Material,
    network: &Network,
    diary: &Diary,
) -> Result<Vec<ArtifactRef>, JobError> {
    let folder = tempfile::tempdir_in(&context.settings.cache).map_err(JobError::attempt)?;
    let parts = &material.parts;
    parts
        .write_with_vae(folder.path(), &network.config, &network.vs, "a compress_decoder job")
        .map_err(JobError::attempt)?;
    let written = folder.path().join(crate::data::name_of(&parts.manifest.dataset));
    let bytes = |name: &str| std::fs::read(written.join(name)).map_err(JobError::attempt);
    let curve = serde_json::to_vec(&diary.points).map_err(JobError::attempt)?;
    let (weights, json) = ("application/octet-stream", "application/json");
    [
        (ArtifactRole::Weights, VAE, weights, bytes(VAE)?),
        (ArtifactRole::Base, "manifest.json", json, bytes("manifest.json")?),
        (ArtifactRole::Curve, "curve.json", json, curve),
    ]
    .into_iter()
    .map(|(role, name, media_type, bytes)| context.keep(role, name, media_type, &bytes))
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decoder::tests::{RECIPE, footage};

    fn input() -> CompressDecoderInput {
        CompressDecoderInput {
            parts: "shapes".to_owned(),
            base: Vec::new(),
            dataset: Some("clips".to_owned()),
            recipe: RECIPE.to_owned(),
            seed: 1,
        }
    }

    fn context(tokio: &tokio::runtime::Runtime, folder: &std::path::Path) -> JobContext {
        let mut context = JobContext::alone(tokio, folder);
        context.settings.assets = concat!(env!("CARGO_MANIFEST_DIR"), "/../assets").into();
        context.settings.memory_bytes = 1 << 30;
        footage(&context.settings.data.join("clips"), &[("a", 19), ("b", 17)]);
        context
    }

    #[test]
    fn a_compression_tells_table_a1_and_resumes_to_the_same_decoder() {
        let (folder, tokio) = (tempfile::tempdir().unwrap(), tokio::runtime::Runtime::new().unwrap());
        let straight = context(&tokio, folder.path());
        let result = run(&straight, &input()).unwrap();
        let Outcome::CompressDecoder(outcome) = &result.outcome else {
            panic!("{:?}", result.outcome)
        };
        let metrics = &outcome.metrics;
        assert!(metrics["macs"].value < metrics["original_macs"].value);
        assert!(metrics["psnr_db"].value > 0.0 && metrics["train_step_ms"].value > 0.0);
        assert!(
            metrics.keys().all(|name| !name.contains("lpips")),
            "no score was made up"
        );
        assert_eq!(outcome.table.rows.len(), 4);
        let digest = |result: &JobResult, role| {
            let found = result.artifacts.iter().find(|artifact| artifact.role == role);
            found.unwrap().digest.clone()
        };

        // The checkpoint after step 3 of the second part is what a killed attempt leaves.
        let mut second = context(&tokio, folder.path());
        second.checkpoint = Some(straight.pulse.saved().unwrap());
        let again = run(&second, &input()).unwrap();
        assert_eq!(
            digest(&again, ArtifactRole::Weights),
            digest(&result, ArtifactRole::Weights)
        );
        assert!(second.pulse.log().contains("going on from a checkpoint"));

        // The parts that come out are parts like any other.
        let shipped = straight.settings.assets.join("shapes");
        let mut base: Vec<ArtifactRef> = result
            .artifacts
            .iter()
            .filter(|artifact| artifact.name == VAE || artifact.name == "manifest.json")
            .cloned()
            .collect();
        for name in ["backbone.safetensors", "text.safetensors", "evaluators.safetensors"] {
            let bytes = std::fs::read(shipped.join(name)).unwrap();
            base.push(
                straight
                    .keep(ArtifactRole::Base, name, "application/octet-stream", &bytes)
                    .unwrap(),
            );
        }
        let root = straight.assets("shapes", &base).unwrap();
        let parts = Assets::open(&root, "shapes", tch::Device::Cpu).unwrap();
        assert!(!parts.manifest.recipe.vae.spatial.decoder().middle_attention);
    }

    #[test]
    fn what_no_worker_can_do_is_refused_for_good() {
        let (folder, tokio) = (tempfile::tempdir().unwrap(), tokio::runtime::Runtime::new().unwrap());
        let context = context(&tokio, folder.path());
        let recipe = |from: &str, to: &str| CompressDecoderInput {
            recipe: RECIPE.replace(from, to),
            ..input()
        };
        let elsewhere = CompressDecoderInput {
            dataset: Some("../clips".to_owned()),
            ..input()
        };
        for (input, words) in [
            (recipe("\"decoder\"", "\"adaptation\""), "decoder: found an unknown key"),
            (
                recipe("pictures = 4", "pictures = 3"),
                "a multiple of `training.accumulate`, 2",
            ),
            (
                recipe("pictures = 4", "pictures = 4\nspatial_channels = [8]"),
                "as many numbers",
            ),
            (elsewhere, "allowed: a plain name"),
        ] {
            let error = run(&context, &input).unwrap_err();
            assert!(
                !error.is_worth_another_attempt() && error.to_string().contains(words),
                "{error}"
            );
        }
        let missing = CompressDecoderInput {
            dataset: Some("others".to_owned()),
            ..input()
        };
        assert!(run(&context, &missing).unwrap_err().is_worth_another_attempt());
    }
}
