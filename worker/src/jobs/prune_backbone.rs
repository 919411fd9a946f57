//! Prunes the backbone of trained parts: distils a smaller one from it and adapts that to rectified flow.

use std::ops::ControlFlow;

use protocol::artifacts::{ArtifactRef, ArtifactRole};
use protocol::jobs::{DeviceSeconds, JobResult, Outcome, PruneBackboneInput, PruneBackboneOutcome, ResultTable};
use protocol::{Figure, Metrics};

use super::costs;
use super::diary::{DIARY, Diary, resume};
use super::gang;
use super::{JobContext, JobError, parse};
use crate::assets::AssetsError;
use crate::checkpoint::Checkpoint;
use crate::profile::{InTurnError, Settings};
use crate::prune::comparison::{Comparison, ComparisonError, Size, compare};
use crate::prune::held_out::Coded;
use crate::prune::material::{Material, MaterialError, Parts, Sources};
use crate::prune::network::Network;
use crate::prune::plan::{Plan, PlanStage};
use crate::prune::scores::{self, Score, Scores, ScoresError};
use crate::prune::training::{Progress, Pruning, PruningError};
use crate::shim::{MemoryTracker, PeakBytes};

/// Shares of the job at which the comparison, and training, begin; and at which training ends, and scoring begins.
const SHARES: [f64; 4] = [0.05, 0.1, 0.95, 0.96];

pub(super) fn run(context: &JobContext, input: &PruneBackboneInput) -> Result<JobResult, JobError> {
    tch::set_num_threads(context.settings.threads as i32);
    let plan = Plan::parse(&input.recipe, input.adaptation.as_deref(), input.seed);
    let plan = plan.map_err(|error| JobError::Input(error.to_string()))?;
    if let Some(stage) = plan
        .stages()
        .iter()
        .find(|stage| stage.settings.batch % input.ranks.max(1) != 0)
    {
        let (batch, name, ranks) = (stage.settings.batch, stage.name, input.ranks);
        let problem = format!("`batch` of {name} is {batch}; it must be a multiple of `ranks`, {ranks}");
        return Err(JobError::Input(problem));
    }
    let mut material = material(context, input)?;
    if !gang::brings_result(context) {
        train(context, &mut material, &plan, &mut Vec::new())?;
        return Ok(share_done(context));
    }
    let comparison = comparison(context, &material)?;
    let memory = MemoryTracker::begin(context.settings.device, None);
    let mut step_milliseconds = Vec::new();
    let (trained, PeakBytes(peak)) = memory.peak_of(|| train(context, &mut material, &plan, &mut step_milliseconds));
    let (network, diary) = trained?;
    drop(memory);

    context.progress(SHARES[2], "measuring on clips kept apart")?;
    let mut metrics: Metrics = comparison
        .figures()
        .map(|(name, value, error)| figure(name, value, error))
        .collect();
    metrics.extend(diary.figure());
    metrics.extend(costs::of(&step_milliseconds, peak));
    metrics.extend(held_out_loss(context, &material, &plan, &network));
    let scores = scores(context, &mut material, &plan, &network, input)?;
    if let Some(scores) = &scores {
        metrics.extend(score_figures(scores));
    }
    let outcome = Outcome::PruneBackbone(PruneBackboneOutcome {
        metrics,
        table: table(&comparison, scores.as_ref()),
    });
    Ok(JobResult {
        device_seconds: spent(context),
        artifacts: keep_artifacts(context, &material, &network, &diary)?,
        outcome,
    })
}

/// What a rank other than 0 ends with: its seconds count, the figures are rank 0's to tell.
fn share_done(context: &JobContext) -> JobResult {
    let outcome = PruneBackboneOutcome {
        metrics: Metrics::new(),
        table: ResultTable::default(),
    };
    JobResult {
        device_seconds: spent(context),
        artifacts: Vec::new(),
        outcome: Outcome::PruneBackbone(outcome),
    }
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

/// Tells how far the job is, and whether to go on.
fn go_on(context: &JobContext, share: f64, status: &str) -> ControlFlow<()> {
    context.spent(spent(context));
    match context.progress(share, status) {
        Ok(()) => ControlFlow::Continue(()),
        Err(_) => ControlFlow::Break(()),
    }
}

fn material(context: &JobContext, input: &PruneBackboneInput) -> Result<Material, JobError> {
    let (space, _) = parse(&input.space, None)?;
    let config = space.unet();
    let config = config.ok_or_else(|| JobError::Input(format!("`{}` has no UNet", space.name)))?;
    context.progress(0.0, "reading trained parts")?;
    let root = context.assets(&input.parts, &input.base)?;
    let other = input.adaptation_parts.as_deref();
    let other_root = other
        .map(|parts| context.assets(parts, &input.adaptation_base))
        .transpose()?;
    let sources = Sources {
        distillation: Parts {
            assets: &root,
            dataset: &input.parts,
        },
        adaptation: other
            .zip(other_root.as_deref())
            .map(|(dataset, assets)| Parts { assets, dataset }),
        cache: &context.settings.cache,
        device: context.settings.device,
    };
    let material = Material::open(&sources, config, input.seed, &mut |share| {
        go_on(context, SHARES[0] * share, "encoding clips")
    });
    material.map_err(|error| match error {
        MaterialError::Assets(AssetsError::Interrupted) => JobError::Interrupted,
        MaterialError::Assets(error) => JobError::attempt(error),
        // No attempt can make these fit.
        error => JobError::Input(error.to_string()),
    })
}

fn comparison(context: &JobContext, material: &Material) -> Result<Comparison, JobError> {
    let worker = &context.settings;
    let settings = Settings::new(worker.device, worker.threads, worker.memory_bytes);
    let found = compare(&material.full, &material.start, &settings, &mut |share, status| {
        go_on(context, SHARES[0] + (SHARES[1] - SHARES[0]) * share, status)
    });
    let found = found.map_err(|error| match error {
        ComparisonError::Times(InTurnError::Interrupted) => JobError::Interrupted,
        error => JobError::attempt(error),
    })?;
    found.to_string().lines().for_each(|line| context.log(line));
    context.figures(found.figures().map(|(name, value, error)| figure(name, value, error)));
    Ok(found)
}

/// Goes through the plan, from the checkpoint of an earlier attempt where it can be used; notes the time of each step.
fn train(
    context: &JobContext,
    material: &mut Material,
    plan: &Plan,
    step_milliseconds: &mut Vec<f64>,
) -> Result<(Network, Diary), JobError> {
    let checkpoint = resume(context)?;
    let group = gang::join(context)?;
    material.compute_in(plan.distillation.training.precision);
    let mut follow = |checkpoint: Option<&Checkpoint>, diary: &mut Diary| {
        let pruning = Pruning {
            full: &material.full,
            start: &material.start,
            plan,
            group: group.as_ref(),
        };
        let batches = |index: usize, stage: &PlanStage<'_>, step| Ok(material.batch(index, stage, step)?);
        let (steps, mut failure) = (plan.steps(), None);
        let network = pruning.run(checkpoint, &batches, &mut |progress| {
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
    let (checkpoint, mut diary) = checkpoint.map_or((None, Diary::default()), |(c, diary)| (Some(c), diary));
    let mut ended = follow(checkpoint.as_ref(), &mut diary);
    if let (Err(PruningError::Checkpoint(problem)), _) = &ended {
        context.log(&format!(
            "starting again from step 0: the checkpoint cannot be used: {problem}"
        ));
        diary = Diary::default();
        ended = follow(None, &mut diary);
    }
    match ended {
        (Ok(network), _) => Ok((network, diary)),
        (Err(PruningError::Interrupted), failure) => Err(failure.unwrap_or(JobError::Interrupted)),
        (Err(PruningError::Train(error)), _) => Err(error.into()),
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
            figure("task_loss", terms.task, 0.0),
            figure("output_loss", terms.output, 0.0),
            figure("feature_loss", terms.feature, 0.0),
        ]);
    }
    context.spent(spent(context));
    let share = SHARES[1] + (SHARES[2] - SHARES[1]) * progress.step as f64 / steps as f64;
    let interrupted = context.progress(share, progress.stage.name);
    if progress.is_checkpoint_due() || interrupted.is_err() {
        let mut checkpoint = progress.checkpoint();
        let written = serde_json::to_string(diary).map_err(JobError::attempt)?;
        checkpoint.notes.insert(DIARY.to_owned(), written);
        context.save(&checkpoint.encode().map_err(JobError::attempt)?)?;
    }
    interrupted
}

/// Of what the last stage learned to predict, where the clips that were kept apart are at hand.
fn held_out_loss(
    context: &JobContext,
    material: &Material,
    plan: &Plan,
    network: &Network,
) -> Option<(String, Figure)> {
    const MOST_CLIPS: usize = 64;
    let clips = Coded::held_out(material.last_parts(), &context.settings.cache, MOST_CLIPS);
    match clips {
        Ok(clips) => Some(figure(
            "held_out_loss",
            clips?.loss(network, &plan.stages().last()?.process),
            0.0,
        )),
        Err(problem) => {
            context.log(&format!("no held-out loss: {problem}"));
            None
        }
    }
}

/// Of pictures of both, where the parts bring CLIP. That there are none is no reason to lose the backbone.
fn scores(
    context: &JobContext,
    material: &mut Material,
    plan: &Plan,
    network: &Network,
    input: &PruneBackboneInput,
) -> Result<Option<Scores>, JobError> {
    let mut progress = |share| go_on(context, SHARES[3] + (1.0 - SHARES[3]) * share, "scoring pictures");
    match scores::score(material, plan, network, &input.scoring, &mut progress) {
        Ok(scores) => {
            context.figures(scores.iter().flat_map(score_figures));
            Ok(scores)
        }
        Err(ScoresError::Interrupted) => Err(JobError::Interrupted),
        Err(problem) => {
            context.log(&format!("no scores of pictures: {problem}"));
            Ok(None)
        }
    }
}

fn score_figures(scores: &Scores) -> impl Iterator<Item = (String, Figure)> {
    let figures = scores.figures();
    figures.map(|(name, score)| figure(name, score.value, score.standard_error))
}

/// Table A2; cells of models that the parts do not bring are empty.
fn table(comparison: &Comparison, scores: Option<&Scores>) -> ResultTable {
    let row = |name: &str, size: Size, speed_up: String, score: Option<&Score>| {
        let [parameters, macs] = [(size.parameters, 1e6), (size.macs, 1e9)].map(|(count, unit)| count as f64 / unit);
        let known = [
            name.to_owned(),
            format!("{parameters:.3}"),
            format!("{macs:.3}"),
            speed_up,
        ];
        known.into_iter().chain(Score::cells(score)).collect()
    };
    let speed_up = comparison
        .speedup
        .median()
        .map_or(String::new(), |ratio| format!("{ratio:.2}"));
    ResultTable {
        title: "The spatial backbone (Table A2)".to_owned(),
        columns: [
            "model",
            "parameters (M)",
            "MACs (G)",
            "speed-up",
            "CLIP score",
            "aesthetic score",
        ]
        .map(str::to_owned)
        .to_vec(),
        rows: vec![
            row(
                "full",
                comparison.full,
                "1".to_owned(),
                scores.map(|scores| &scores.full),
            ),
            row(
                "pruned",
                comparison.pruned,
                speed_up,
                scores.map(|scores| &scores.pruned),
            ),
        ],
    }
}

/// The backbone and the manifest of parts that hold it; their other files are those that the job was given.
fn keep_artifacts(
    context: &JobContext,
    material: &Material,
    network: &Network,
    diary: &Diary,
) -> Result<Vec<ArtifactRef>, JobError> {
    let folder = tempfile::tempdir_in(&context.settings.cache).map_err(JobError::attempt)?;
    let parts = material.last_parts();
    let made_by = "a prune_backbone job";
    parts
        .write_with_backbone(folder.path(), &network.config, &network.vs, made_by)
        .map_err(JobError::attempt)?;
    let written = folder.path().join(crate::data::name_of(&parts.manifest.dataset));
    let bytes = |name: &str| std::fs::read(written.join(name)).map_err(JobError::attempt);
    let curve = serde_json::to_vec(&diary.points).map_err(JobError::attempt)?;
    let (weights, json) = ("application/octet-stream", "application/json");
    [
        (
            ArtifactRole::Weights,
            "backbone.safetensors",
            weights,
            bytes("backbone.safetensors")?,
        ),
        (ArtifactRole::Base, "manifest.json", json, bytes("manifest.json")?),
        (ArtifactRole::Curve, "curve.json", json, curve),
    ]
    .into_iter()
    .map(|(role, name, media_type, bytes)| context.keep(role, name, media_type, &bytes))
    .collect()
}

#[cfg(test)]
mod tests {
    use protocol::jobs::PictureScoring;

    use super::*;

    const RECIPE: &str = r#"
        name = "short"
        stage = "pruning"
        trains = "all"
        [training]
        steps = 4
        batch = 2
        learning_rate = 1e-3
        checkpoint_every = 3
        [distillation]
        teacher_predicts = "velocity"
    "#;

    fn input() -> PruneBackboneInput {
        let space = concat!(env!("CARGO_MANIFEST_DIR"), "/../search-spaces/spaces/shapes-tiny.toml");
        let space = std::fs::read_to_string(space).unwrap();
        PruneBackboneInput {
            space: space.replace("channels = [32, 64]", "channels = [16, 32]"),
            parts: "shapes".to_owned(),
            base: Vec::new(),
            recipe: RECIPE.to_owned(),
            adaptation: None,
            adaptation_parts: None,
            adaptation_base: Vec::new(),
            seed: 1,
            ranks: 1,
            scoring: PictureScoring::default(),
        }
    }

    /// Where the shipped parts lie beside three clips in latents.
    fn context(tokio: &tokio::runtime::Runtime, folder: &std::path::Path) -> JobContext {
        let mut context = JobContext::alone(tokio, folder);
        context.settings.assets = crate::prune::tests::shipped_with_latents(folder);
        context.settings.memory_bytes = 1 << 30;
        context
    }

    #[test]
    fn a_pruning_tells_table_a2_and_resumes_to_the_same_backbone() {
        let (folder, tokio) = (tempfile::tempdir().unwrap(), tokio::runtime::Runtime::new().unwrap());
        let straight = context(&tokio, folder.path());
        let result = run(&straight, &input()).unwrap();
        let Outcome::PruneBackbone(outcome) = &result.outcome else {
            panic!("{:?}", result.outcome)
        };
        assert_eq!(outcome.metrics["full_parameters"].value, 886_372.0);
        assert_eq!(outcome.metrics["parameters"].value, 228_404.0);
        assert!(outcome.metrics["train_step_ms"].value > 0.0 && outcome.metrics["train_peak_memory_bytes"].value > 1e6);
        assert!(outcome.metrics["speed_up"].value > 0.0 && outcome.metrics["held_out_loss"].value > 0.0);
        assert!(
            outcome.metrics.keys().all(|name| !name.contains("score")),
            "no score was made up"
        );
        for row in &outcome.table.rows {
            assert_eq!(row.len(), outcome.table.columns.len());
            assert!(row[4].is_empty() && row[5].is_empty());
        }
        let weights = |result: &JobResult| {
            let found = result
                .artifacts
                .iter()
                .find(|artifact| artifact.role == ArtifactRole::Weights);
            found.unwrap().digest.clone()
        };

        // The checkpoint after step 3 is what a killed attempt leaves.
        let mut second = context(&tokio, folder.path());
        let checkpoint = straight.pulse.saved().unwrap();
        second.checkpoint = Some(checkpoint);
        assert_eq!(weights(&run(&second, &input()).unwrap()), weights(&result));
        assert!(second.pulse.log().contains("going on from a checkpoint"));
    }

    #[test]
    fn where_the_parts_bring_clip_table_a2_is_whole() {
        let (folder, tokio) = (tempfile::tempdir().unwrap(), tokio::runtime::Runtime::new().unwrap());
        let mut context = JobContext::alone(&tokio, folder.path());
        context.settings.assets = crate::prune::tests::shipped_with_clip(folder.path());
        context.settings.memory_bytes = 1 << 30;
        let scoring = PictureScoring {
            pictures: 5,
            sample_steps: 2,
            ..PictureScoring::default()
        };
        let result = run(&context, &PruneBackboneInput { scoring, ..input() }).unwrap();
        let Outcome::PruneBackbone(outcome) = &result.outcome else {
            panic!("{:?}", result.outcome)
        };
        for (row, prefix) in outcome.table.rows.iter().zip(["full_", ""]) {
            for (cell, name) in row[4..].iter().zip(["clip_score", "aesthetic_score"]) {
                let Figure { value, standard_error } = outcome.metrics[&format!("{prefix}{name}")];
                assert!(
                    value > 0.0 && standard_error > 0.0,
                    "{prefix}{name}: {value} ± {standard_error}"
                );
                assert_eq!(*cell, format!("{value:.2} ± {standard_error:.2}"));
            }
        }
        assert!(context.pulse.news().metrics.contains_key("clip_score"));
        let manifest = result
            .artifacts
            .iter()
            .find(|artifact| artifact.name == "manifest.json");
        let manifest = String::from_utf8(context.fetch(manifest.unwrap()).unwrap()).unwrap();
        assert!(
            manifest.contains("\"clip.safetensors\""),
            "the pruned parts bring it too"
        );
    }

    #[test]
    fn scores_that_cannot_be_had_do_not_lose_the_backbone() {
        let (folder, tokio) = (tempfile::tempdir().unwrap(), tokio::runtime::Runtime::new().unwrap());
        let mut context = JobContext::alone(&tokio, folder.path());
        context.settings.assets = crate::prune::tests::shipped_with_clip(folder.path());
        context.settings.memory_bytes = 1 << 30;
        let manifest = context.settings.assets.join("shapes/manifest.json");
        let text = std::fs::read_to_string(&manifest).unwrap();
        std::fs::write(&manifest, text.replace("\"projection\":6", "\"projection\":7")).unwrap();
        crate::prune::tests::add_latents(&context.settings.assets);
        let result = run(&context, &input()).unwrap();
        let Outcome::PruneBackbone(outcome) = &result.outcome else {
            panic!("{:?}", result.outcome)
        };
        assert!(
            outcome
                .table
                .rows
                .iter()
                .all(|row| row[4].is_empty() && row[5].is_empty())
        );
        let log = context.pulse.log();
        assert!(
            log.contains("no scores of pictures") && log.contains("projection.weight"),
            "{log}"
        );
    }

    #[test]
    fn what_no_worker_can_do_is_refused_for_good() {
        let (folder, tokio) = (tempfile::tempdir().unwrap(), tokio::runtime::Runtime::new().unwrap());
        let context = context(&tokio, folder.path());
        let wider = |input: PruneBackboneInput| PruneBackboneInput {
            space: input.space.replace("channels = [16, 32]", "channels = [64, 64]"),
            ..input
        };
        for (input, words) in [
            (PruneBackboneInput { ranks: 3, ..input() }, "multiple of `ranks`, 3"),
            (wider(input()), "widths can only shrink"),
            (
                PruneBackboneInput {
                    recipe: RECIPE.replace("\"velocity\"", "\"speed\""),
                    ..input()
                },
                "teacher_predicts",
            ),
        ] {
            let error = run(&context, &input).unwrap_err();
            assert!(
                !error.is_worth_another_attempt() && error.to_string().contains(words),
                "{error}"
            );
        }
    }
}
