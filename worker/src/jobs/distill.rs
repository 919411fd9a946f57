//! Distils a trained model to few steps without guidance, and compares it with the diffusion model it came from.

use std::collections::{BTreeMap, HashMap};

use protocol::Metrics;
use protocol::jobs::{DeviceSeconds, DistillInput, DistillOutcome, JobResult, Outcome, ResultTable, ScoredSteps};
use search_spaces::{Adversarial, Precision, Stage, Trains};
use tch::{Kind, Tensor};

use super::costs;
use super::gang;
use super::scoring::{Scoring, figures};
use super::subject::{Description, Subject, recipe, weights};
use super::train_final::{exact, training_of};
use super::training::{Run, clips, keep_artifacts, resume, trained};
use super::{JobContext, JobError};
use crate::checkpoint::encode_tensors;
use crate::distill::{Adversary, Compared, Comparison, ComparisonError, Discriminator, Sources, Terms};
use crate::distributed::ReducerConfig;
use crate::models::trained::{Brought, Trained};
use crate::shim::{MemoryTracker, PeakBytes};
use job_client::digest_of;

/// Shares of the job at which training begins and ends.
const TRAINING: (f64, f64) = (0.05, 0.75);
/// Timed pairs of samples.
const REPEATS: u32 = 9;

pub(super) fn run(context: &JobContext, input: &DistillInput) -> Result<JobResult, JobError> {
    tch::set_num_threads(context.settings.threads as i32);
    let recipe = recipe(&input.recipe, input.ranks)?;
    let Stage::Adversarial(adversarial) = &recipe.stage else {
        let problem = "`recipe.stage` is another stage; allowed: adversarial";
        return Err(JobError::Input(problem.to_owned()));
    };
    if recipe.trains != Trains::All {
        return Err(JobError::Input("`recipe.trains` is temporal; allowed: all".to_owned()));
    }
    let settings = &recipe.training;
    let description = Description {
        space: &input.space,
        architecture: &input.architecture,
        base: &input.base,
        scoring: &input.scoring,
        training: settings,
    };
    let subject = Subject::open(context, &description)?;
    let weights = weights(context, &input.weights)?;
    let weights = weights.ok_or_else(|| JobError::Input("`weights` is empty; allowed: all layers".to_owned()))?;
    context.log(&format!("{}: {}", recipe.name, input.architecture));
    let clips = clips(context, &subject.assets, TRAINING.0)?;
    let clips = clips.with_mix(&adversarial.mix);
    let clips = clips.map_err(|error| JobError::Input(format!("`recipe.adversarial`: {error}")))?;
    if !clips.has_pooled() {
        let problem =
            "`base`: the texts were encoded without embeddings of whole captions, which the discriminator needs";
        return Err(JobError::Input(problem.to_owned()));
    }

    let memory = MemoryTracker::begin(context.settings.device, None);
    let model = subject.model(input.seed)?;
    take_all(&model, &weights)?;
    let kind = match settings.precision {
        Precision::Bf16 => Kind::BFloat16,
        Precision::F32 => Kind::Float,
    };
    let sources = Sources {
        config: &subject.config,
        layers: &subject.layers,
        weights: &weights,
        caption_width: subject.assets.manifest.recipe.text.width,
    };
    let device = context.settings.device;
    let discriminator = Discriminator::new(sources, adversarial.heads, kind, input.seed, device);
    let discriminator = discriminator.map_err(|error| JobError::Input(format!("`weights`: {error}")))?;
    let adversary = Adversary::new(discriminator, adversarial, settings);
    let training = training_of(&model, &recipe, input.seed)?;
    let mut training = training.with_objective(Box::new(&adversary));
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
        status: "distilling",
    };
    let terms = || terms_of(&adversary);
    let (diary, PeakBytes(above)) = memory.peak_of(|| run.go(&mut training, diary, &terms));
    let diary = diary?;
    drop(memory);
    let mut metrics = costs::of(training.step_milliseconds(), standing_bytes + above);
    let mut device_seconds = trained(context);
    let moved = training.finish().map_err(JobError::attempt)?;
    if !gang::brings_result(context) {
        return Ok(share_done(device_seconds));
    }

    let teacher = subject.model(input.seed)?;
    take_all(&teacher, &weights)?;
    let student = model.weights(moved);
    let encoded = encode_tensors(&student, HashMap::new()).map_err(JobError::attempt)?;
    let models = Models {
        teacher: &teacher,
        student: &model,
        digest: digest_of(&encoded).to_string(),
    };
    let (compared, evaluator) = compare(context, &subject, &models, adversarial, &mut device_seconds)?;
    let score = compared.score();
    let score = score.ok_or_else(|| JobError::Attempt("no score at the recipe's steps".to_owned()))?;
    let artifacts = keep_artifacts(context, &encoded, &diary, score)?;
    metrics.extend(figures(&compared.figures().into_iter().collect()));
    metrics.insert("parameters".to_owned(), exact(model.parameters() as f64));
    metrics.extend(diary.figure());
    metrics.extend(terms_of(&adversary));
    let by_steps = compared.student.iter().map(|(steps, score)| ScoredSteps {
        steps: *steps,
        metrics: figures(&score.metrics),
    });
    let outcome = Outcome::Distill(DistillOutcome {
        metrics,
        table: compared.table(&evaluator),
        by_steps: by_steps.collect(),
        evaluator,
    });
    Ok(JobResult {
        device_seconds,
        artifacts,
        outcome,
    })
}

fn take_all(model: &Trained, weights: &BTreeMap<String, Tensor>) -> Result<(), JobError> {
    let has_layers = model.vs.variables().keys().any(|name| !weights.contains_key(name));
    match model.take(weights) {
        Ok(Brought::Temporal) if has_layers => Err(JobError::Input(
            "`weights` holds temporal layers alone; allowed: all layers, as a train_final job leaves them".to_owned(),
        )),
        Ok(_) => Ok(()),
        Err(error) => Err(JobError::Input(format!("`weights`: {error}"))),
    }
}

/// The terms of the last micro-batch, where this attempt has taken a step.
fn terms_of(adversary: &Adversary) -> Metrics {
    let terms = adversary.last();
    if terms == Terms::default() {
        return Metrics::new();
    }
    [
        ("discriminator_loss", terms.discriminator),
        ("adversarial_loss", terms.adversarial),
        ("reconstruction_loss", terms.reconstruction),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), exact(value)))
    .collect()
}

struct Models<'a> {
    teacher: &'a Trained,
    student: &'a Trained,
    /// Names the student's weights.
    digest: String,
}

fn compare(
    context: &JobContext,
    subject: &Subject,
    models: &Models<'_>,
    adversarial: &Adversarial,
    device_seconds: &mut DeviceSeconds,
) -> Result<(Compared, String), JobError> {
    let text = &subject.assets.manifest.recipe.text;
    let comparison = Comparison {
        teacher: &models.teacher.unet,
        student: &models.student.unet,
        evaluation: &subject.evaluation,
        steps: adversarial.sample_steps,
        latents: subject.assets.latent_shape(),
        text: [text.tokens, text.width],
        device: context.settings.device,
        repeats: REPEATS,
    };
    let mut evaluator = String::new();
    let compared = comparison.run(&mut |unet, evaluation, (number, of)| {
        let at = |number: usize| TRAINING.1 + (1.0 - TRAINING.1) * number as f64 / of as f64;
        let scoring = Scoring {
            context,
            assets: &subject.assets,
            evaluation,
            model: format!(
                "{} {} {} {} steps, guidance {}, number {number}",
                subject.assets.manifest.digest(),
                subject.architecture,
                models.digest,
                evaluation.sample_steps,
                evaluation.guidance
            ),
            share: (at(number), at(number + 1)),
        };
        let (score, line) = scoring.run(unet, device_seconds)?;
        evaluator = line;
        Ok(score)
    });
    match compared {
        Ok(compared) => Ok((compared, evaluator)),
        Err(ComparisonError::Score(error)) => Err(error),
        Err(error) => Err(JobError::attempt(error)),
    }
}

/// What a rank other than 0 ends with: its seconds count, the figures are rank 0's to tell.
fn share_done(device_seconds: DeviceSeconds) -> JobResult {
    let outcome = DistillOutcome {
        metrics: Metrics::new(),
        evaluator: String::new(),
        table: ResultTable::default(),
        by_steps: Vec::new(),
    };
    JobResult {
        device_seconds,
        artifacts: Vec::new(),
        outcome: Outcome::Distill(outcome),
    }
}

#[cfg(test)]
mod tests {
    use protocol::artifacts::{ArtifactRef, ArtifactRole};

    use super::super::train_final::tests::{ARCHITECTURE, SCORING, context, space, weights_of};
    use super::*;

    const RECIPE: &str = r#"
        name = "short"
        stage = "adversarial"
        trains = "all"
        [training]
        steps = 4
        batch = 2
        learning_rate = 1e-4
        ema = 0.5
        text_dropout = 0
        checkpoint_every = 3
        [adversarial]
        image_share = 0.25
        sample_steps = 2
        heads_learning_rate = 1e-3
        heads_betas = [0.5, 0.999]
        noise_mean = -1
        noise_std = 1
        reconstruction_weight = 0.1
        huber_scale = 0.00054
        r1_weight = 0.1
    "#;

    fn input(weights: Vec<ArtifactRef>) -> DistillInput {
        DistillInput {
            space: space(),
            architecture: ARCHITECTURE.to_owned(),
            weights,
            base: Vec::new(),
            recipe: RECIPE.to_owned(),
            scoring: SCORING,
            seed: 1,
            ranks: 1,
        }
    }

    fn model(context: &JobContext, keep: impl Fn(&str) -> bool) -> ArtifactRef {
        let (space, architecture) = super::super::parse(&space(), Some(ARCHITECTURE)).unwrap();
        let layers = space.layers(&architecture.unwrap());
        let model = Trained::seeded(space.unet().unwrap(), &layers, 3, context.settings.device);
        let mut weights = model.weights(Vec::new());
        weights.retain(|name, _| keep(name));
        let bytes = encode_tensors(&weights, HashMap::new()).unwrap();
        let kept = context.keep(
            ArtifactRole::Weights,
            "w.safetensors",
            "application/octet-stream",
            &bytes,
        );
        kept.unwrap()
    }

    #[test]
    fn a_distillation_tells_both_models_and_the_table_and_resumes_to_the_same_weights() {
        let (folder, tokio) = (tempfile::tempdir().unwrap(), tokio::runtime::Runtime::new().unwrap());
        let straight = context(&tokio, folder.path());
        let input = input(vec![model(&straight, |_| true)]);
        let result = run(&straight, &input).unwrap();
        let Outcome::Distill(outcome) = &result.outcome else {
            panic!("{:?}", result.outcome)
        };
        let metrics = &outcome.metrics;
        let own = metrics["quality"].value - metrics["teacher_quality"].value;
        assert!((metrics["quality_difference"].value - own).abs() < 1e-9);
        assert_eq!(metrics["quality_2_steps"], metrics["quality"]);
        assert!(metrics["denoise_speed_up"].value > 0.0 && metrics["reconstruction_loss"].value > 0.0);
        let steps: Vec<&str> = outcome.table.rows.iter().map(|row| row[1].as_str()).collect();
        assert_eq!(steps, ["2", "1", "2", "4"]);
        let columns = &outcome.table.columns;
        assert!(outcome.table.rows.iter().all(|row| row.len() == columns.len()));
        for column in columns.iter().skip(3).take(7) {
            let named = column.contains("(built-in shapes") || column == "aesthetic quality (no evaluator)";
            assert!(named, "{column}");
        }
        // The checkpoint after step 3 is what a killed attempt leaves.
        let mut second = context(&tokio, folder.path());
        second.checkpoint = Some(straight.pulse.saved().unwrap());
        let resumed = run(&second, &input).unwrap();
        assert_eq!(weights_of(&resumed).digest, weights_of(&result).digest);
        assert!(second.pulse.log().contains("going on from step 3"));
    }

    #[test]
    fn what_no_worker_can_do_is_refused_for_good_by_field() {
        let (folder, tokio) = (tempfile::tempdir().unwrap(), tokio::runtime::Runtime::new().unwrap());
        let context = context(&tokio, folder.path());
        let all = model(&context, |_| true);
        let with_recipe = |recipe: String| DistillInput {
            recipe,
            ..input(vec![all.clone()])
        };
        for (input, words) in [
            (input(Vec::new()), "`weights` is empty"),
            (
                input(vec![model(&context, |name| name.starts_with("temporal"))]),
                "`weights` holds temporal layers alone",
            ),
            (
                input(vec![model(&context, |name| name != "conv_in.bias")]),
                "`weights`: no tensor `conv_in.bias`",
            ),
            (
                with_recipe(RECIPE.replace("trains = \"all\"", "trains = \"temporal\"")),
                "`recipe.trains` is temporal; allowed: all",
            ),
            (
                with_recipe(super::super::train_final::tests::RECIPE.to_owned()),
                "`recipe.stage`",
            ),
            (
                with_recipe(RECIPE.replace("[adversarial]", "[adversarial]\n heads = \"separate\"")),
                "adversarial.image_share",
            ),
            (
                with_recipe(RECIPE.replace("[adversarial]", "[adversarial]\n frame_rate_hz = 10")),
                "`recipe.adversarial`: `frame_rate_hz` is 10",
            ),
            (
                DistillInput {
                    ranks: 5,
                    ..input(vec![all.clone()])
                },
                "`ranks` is 5; it must divide",
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
