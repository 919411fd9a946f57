//! Trains a model of the front to its end: all weights, on images and clips together, then samples and scores it.

use std::collections::HashMap;

use protocol::artifacts::ArtifactRef;
use protocol::jobs::{DeviceSeconds, JobResult, Outcome, TrainFinalInput, TrainFinalOutcome};
use protocol::{Figure, Metrics};
use search_spaces::{Joint, Recipe, Stage, Trains};

use super::costs;
use super::gang;
use super::scoring::{Scoring, figures};
use super::subject::{Description, Subject, recipe, weights};
use super::training::{Run, clips, keep_artifacts, resume, trained};
use super::{JobContext, JobError};
use crate::checkpoint::encode_tensors;
use crate::distributed::ReducerConfig;
use crate::models::trained::{Brought, Trained};
use crate::shim::{MemoryTracker, PeakBytes};
use crate::train::Training;
use job_client::digest_of;

/// Shares of the job at which training begins and ends.
const TRAINING: (f64, f64) = (0.05, 0.85);

pub(super) fn run(context: &JobContext, input: &TrainFinalInput) -> Result<JobResult, JobError> {
    tch::set_num_threads(context.settings.threads as i32);
    let recipe = recipe(&input.recipe, input.ranks)?;
    let Stage::Joint(Joint { mix }) = &recipe.stage else {
        return Err(JobError::Input(
            "`recipe.stage` is another stage; allowed: joint".to_owned(),
        ));
    };
    let settings = &recipe.training;
    let description = Description {
        space: &input.space,
        architecture: &input.architecture,
        base: &input.base,
        scoring: &input.scoring,
        training: settings,
    };
    let subject = Subject::open(context, &description)?;
    context.log(&format!("{}: {}", recipe.name, input.architecture));
    let clips = clips(context, &subject.assets, TRAINING.0)?;
    let clips = clips.with_mix(mix);
    let clips = clips.map_err(|error| JobError::Input(format!("`recipe.joint`: {error}")))?;

    let memory = MemoryTracker::begin(context.settings.device, None);
    let model = subject.model(input.seed)?;
    begin(context, &model, &input.weights)?;
    let mut training = training_of(&model, &recipe, input.seed)?;
    let diary = resume(context, &mut training)?;
    // From here on the ranks of a gang share the state of rank 0.
    if let Some(group) = gang::join(context)? {
        let shared = training.with_group(group, ReducerConfig::default());
        training = shared.map_err(JobError::attempt)?;
    }
    let standing_bytes = memory.in_use();
    let run = Run {
        context,
        settings,
        seed: input.seed,
        clips: &clips,
        share: TRAINING,
        status: "training",
    };
    let (diary, PeakBytes(above)) = memory.peak_of(|| run.go(&mut training, diary, &Metrics::new));
    let diary = diary?;
    drop(memory);
    let costs = costs::of(training.step_milliseconds(), standing_bytes + above);
    let mut device_seconds = trained(context);
    let moved = training.finish().map_err(JobError::attempt)?;
    if !gang::brings_result(context) {
        return Ok(share_done(device_seconds));
    }

    let weights = encode_tensors(&model.weights(moved), HashMap::new()).map_err(JobError::attempt)?;
    let scoring = Scoring {
        context,
        assets: &subject.assets,
        evaluation: &subject.evaluation,
        model: format!(
            "{} {} {}",
            subject.assets.manifest.digest(),
            subject.architecture,
            digest_of(&weights)
        ),
        share: (TRAINING.1, 1.0),
    };
    let (scored, evaluator) = scoring.run(&model.unet, &mut device_seconds)?;
    let artifacts = keep_artifacts(context, &weights, &diary, &scored)?;
    let mut metrics = figures(&scored.metrics);
    metrics.insert("parameters".to_owned(), exact(model.parameters() as f64));
    metrics.extend(diary.figure());
    metrics.extend(costs);
    let outcome = Outcome::TrainFinal(TrainFinalOutcome { metrics, evaluator });
    Ok(JobResult {
        device_seconds,
        artifacts,
        outcome,
    })
}

/// Takes over what the job starts from.
fn begin(context: &JobContext, model: &Trained, artifacts: &[ArtifactRef]) -> Result<(), JobError> {
    let Some(mut weights) = weights(context, artifacts)? else {
        context.log("fresh temporal layers on the backbone");
        return Ok(());
    };
    let dropped = model.drop_removed_layers(&mut weights);
    if dropped > 0 {
        context.log(&format!(
            "{dropped} tensors of temporal layers that this architecture leaves out"
        ));
    }
    let brought = model.take(&weights);
    let brought = brought.map_err(|error| JobError::Input(format!("`weights`: {error}")))?;
    context.log(match brought {
        Brought::All => "all layers of an earlier training",
        Brought::Temporal => "a candidate's temporal layers on the backbone",
    });
    Ok(())
}

pub(super) fn training_of<'a>(model: &'a Trained, recipe: &'a Recipe, seed: u64) -> Result<Training<'a>, JobError> {
    let Trained { vs, unet } = model;
    let training = match recipe.trains {
        Trains::All => Training::of_trainable(unet, vs, &recipe.training, seed),
        Trains::Temporal => Training::new(unet, vs, &recipe.training, seed),
    };
    training.map_err(JobError::attempt)
}

pub(super) const fn exact(value: f64) -> Figure {
    Figure {
        value,
        standard_error: 0.0,
    }
}

/// What a rank other than 0 ends with: its seconds count, the figures are rank 0's to tell.
fn share_done(device_seconds: DeviceSeconds) -> JobResult {
    let outcome = TrainFinalOutcome {
        metrics: Metrics::new(),
        evaluator: String::new(),
    };
    JobResult {
        device_seconds,
        artifacts: Vec::new(),
        outcome: Outcome::TrainFinal(outcome),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeMap;

    use protocol::artifacts::ArtifactRole;
    use protocol::jobs::Scoring;
    use tch::{Device, Tensor};

    use super::*;
    use crate::checkpoint::decode_tensors;
    use crate::models::seeded::normal;
    use crate::models::unet::is_temporal;

    pub(in crate::jobs) const RECIPE: &str = r#"
        name = "short"
        stage = "joint"
        trains = "all"
        [training]
        steps = 4
        batch = 2
        learning_rate = 1e-3
        ema = 0.5
        checkpoint_every = 3
        [joint]
        image_share = 0.5
    "#;
    pub(in crate::jobs) const ARCHITECTURE: &str = "c1.-.-.-.-";

    pub(in crate::jobs) fn space() -> String {
        let space = concat!(env!("CARGO_MANIFEST_DIR"), "/../search-spaces/spaces/shapes-tiny.toml");
        std::fs::read_to_string(space).unwrap()
    }

    /// As few clips in as few steps as can be scored.
    pub(in crate::jobs) const SCORING: Scoring = Scoring {
        prompts: Some(2),
        videos_per_prompt: Some(1),
        sample_steps: Some(2),
        guidance: None,
    };

    fn input() -> TrainFinalInput {
        TrainFinalInput {
            space: space(),
            architecture: ARCHITECTURE.to_owned(),
            weights: Vec::new(),
            base: Vec::new(),
            recipe: RECIPE.to_owned(),
            scoring: SCORING,
            seed: 1,
            ranks: 1,
        }
    }

    /// Where the shipped parts lie beside three clips in latents.
    pub(in crate::jobs) fn context(tokio: &tokio::runtime::Runtime, folder: &std::path::Path) -> JobContext {
        let mut context = JobContext::alone(tokio, folder);
        context.settings.assets = crate::prune::tests::shipped_with_latents(folder);
        context.settings.memory_bytes = 1 << 30;
        context
    }

    pub(in crate::jobs) fn weights_of(result: &JobResult) -> ArtifactRef {
        let found = result.artifacts.iter().find(|a| a.role == ArtifactRole::Weights);
        found.unwrap().clone()
    }

    #[test]
    fn a_final_training_moves_all_weights_and_resumes_to_the_same_ones() {
        let (folder, tokio) = (tempfile::tempdir().unwrap(), tokio::runtime::Runtime::new().unwrap());
        let straight = context(&tokio, folder.path());
        let result = run(&straight, &input()).unwrap();
        let Outcome::TrainFinal(outcome) = &result.outcome else {
            panic!("{:?}", result.outcome)
        };
        for name in [
            "quality",
            "object_class",
            "parameters",
            "train_loss",
            "train_step_ms",
            "train_peak_memory_bytes",
        ] {
            assert!(outcome.metrics[name].value >= 0.0, "{name}");
        }
        assert!(
            outcome.evaluator.starts_with("built-in shapes"),
            "{}",
            outcome.evaluator
        );
        let trained = decode_tensors(&straight.fetch(&weights_of(&result)).unwrap()).unwrap();
        let numbers: usize = trained.values().map(Tensor::numel).sum();
        assert_eq!(outcome.metrics["parameters"].value, numbers as f64);
        assert!(trained.keys().any(|name| is_temporal(name)) && trained.keys().any(|name| !is_temporal(name)));

        // The checkpoint after step 3 is what a killed attempt leaves.
        let mut second = context(&tokio, folder.path());
        second.checkpoint = Some(straight.pulse.saved().unwrap());
        let resumed = run(&second, &input()).unwrap();
        assert_eq!(weights_of(&resumed).digest, weights_of(&result).digest);
        assert!(second.pulse.log().contains("going on from step 3"));

        // A second run from all layers of the first goes on where it ended.
        let again = TrainFinalInput {
            weights: vec![weights_of(&result)],
            recipe: RECIPE.replace("learning_rate = 1e-3", "learning_rate = 0\nweight_decay = 0"),
            ..input()
        };
        let third = context(&tokio, folder.path());
        let unmoved = run(&third, &again).unwrap();
        assert!(third.pulse.log().contains("all layers of an earlier training"));
        let unmoved = decode_tensors(&third.fetch(&weights_of(&unmoved)).unwrap()).unwrap();
        for (name, weight) in &trained {
            assert!(weight.allclose(&unmoved[name], 1e-6, 1e-7, false), "{name}");
        }
    }

    #[test]
    fn an_attempt_that_is_stopped_leaves_a_checkpoint_of_where_it_was() {
        let (folder, tokio) = (tempfile::tempdir().unwrap(), tokio::runtime::Runtime::new().unwrap());
        let stopped = context(&tokio, folder.path());
        let long = TrainFinalInput {
            recipe: RECIPE
                .replace("steps = 4", "steps = 100000")
                .replace("checkpoint_every = 3", "checkpoint_every = 100000"),
            ..input()
        };
        let pulse = stopped.pulse.clone();
        let watch = std::thread::spawn(move || {
            while pulse.news().curve.is_empty() && pulse.news().progress <= TRAINING.0 {
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
            pulse.stop();
        });
        let error = run(&stopped, &long).unwrap_err();
        watch.join().unwrap();
        assert!(matches!(error, JobError::Interrupted), "{error}");
        let saved = stopped.pulse.saved().unwrap();
        let checkpoint = crate::checkpoint::Checkpoint::decode(&stopped.fetch(&saved).unwrap()).unwrap();
        assert!(checkpoint.step >= 1 && checkpoint.step < 100_000, "{}", checkpoint.step);
    }

    #[test]
    fn what_no_worker_can_do_is_refused_for_good_by_field() {
        let (folder, tokio) = (tempfile::tempdir().unwrap(), tokio::runtime::Runtime::new().unwrap());
        let context = context(&tokio, folder.path());
        let stranger = BTreeMap::from([("temporal.down_0.x".to_owned(), normal(&[2], 1, Device::Cpu))]);
        let stranger = encode_tensors(&stranger, HashMap::new()).unwrap();
        let kept = |role| {
            context
                .keep(role, "w.safetensors", "application/octet-stream", &stranger)
                .unwrap()
        };
        let with_recipe = |recipe: String| TrainFinalInput { recipe, ..input() };
        for (input, words) in [
            (TrainFinalInput { ranks: 3, ..input() }, "`ranks` is 3; it must divide"),
            (
                with_recipe(
                    RECIPE
                        .replace("\"joint\"", "\"candidates\"")
                        .replace("[joint]\n        image_share = 0.5", ""),
                ),
                "`recipe.stage`",
            ),
            (
                with_recipe(RECIPE.replace("image_share = 0.5", "image_share = 2")),
                "joint.image_share",
            ),
            (
                with_recipe(RECIPE.replace("image_share", "frame_rate_hz = 10\n image_share")),
                "`recipe.joint`: `frame_rate_hz` is 10",
            ),
            (
                TrainFinalInput {
                    architecture: "c9".to_owned(),
                    ..input()
                },
                "the architecture",
            ),
            (
                TrainFinalInput {
                    weights: vec![kept(ArtifactRole::Weights)],
                    ..input()
                },
                "`weights`: `temporal.down_0.x` is no tensor of this architecture",
            ),
            (
                TrainFinalInput {
                    weights: vec![kept(ArtifactRole::Curve), kept(ArtifactRole::Base)],
                    ..input()
                },
                "`weights` holds 0 artifacts",
            ),
            (
                TrainFinalInput {
                    scoring: Scoring {
                        prompts: Some(1),
                        ..SCORING
                    },
                    ..input()
                },
                "`scoring.prompts` is 1; it must be at least 2",
            ),
            (
                TrainFinalInput {
                    scoring: Scoring {
                        guidance: Some(-1.0),
                        ..SCORING
                    },
                    ..input()
                },
                "`scoring.guidance` is -1",
            ),
        ] {
            let error = run(&context, &input).unwrap_err();
            assert!(
                !error.is_worth_another_attempt() && error.to_string().contains(words),
                "{words}: {error}"
            );
        }
    }
}
