//! The model that a job on the way to the device is about: space, architecture, trained parts, how it is scored.

use std::collections::BTreeMap;

use protocol::artifacts::{ArtifactRef, ArtifactRole};
use protocol::jobs::Scoring;
use search_spaces::{Evaluation, Recipe, TemporalLayer, TrainingSettings, UnetConfig};
use tch::Tensor;

use super::{JobContext, JobError, parse};
use crate::assets::Assets;
use crate::checkpoint::decode_tensors;
use crate::models::trained::Trained;

/// What is trained.
pub(super) struct Subject {
    /// The architecture in printed form.
    pub architecture: String,
    /// Sizes of the UNet.
    pub config: UnetConfig,
    /// Its temporal layers.
    pub layers: Vec<Option<TemporalLayer>>,
    /// How it is scored.
    pub evaluation: Evaluation,
    /// Its trained parts.
    pub assets: Assets,
}

/// What a job says of its model.
pub(super) struct Description<'a> {
    pub space: &'a str,
    pub architecture: &'a str,
    pub base: &'a [ArtifactRef],
    pub scoring: &'a Scoring,
    /// How it is trained; it is sampled with the same shift of times.
    pub training: &'a TrainingSettings,
}

impl Subject {
    /// # Errors
    /// Where the description is wrong, naming the field, or its files cannot be had.
    pub(super) fn open(context: &JobContext, description: &Description<'_>) -> Result<Self, JobError> {
        let (space, architecture) = parse(description.space, Some(description.architecture))?;
        let architecture = architecture.ok_or_else(|| JobError::Input("no architecture".to_owned()))?;
        let config = space.unet();
        let config = config.ok_or_else(|| JobError::Input(format!("`{}` has no UNet to train", space.name)))?;
        let evaluation = space.evaluation.as_ref();
        let evaluation =
            evaluation.ok_or_else(|| JobError::Input("the space has no [evaluation] section".to_owned()))?;
        let evaluation = overridden(evaluation, description)?;
        context.progress(0.0, "reading trained parts")?;
        let root = context.assets(&evaluation.dataset, description.base)?;
        let assets = Assets::open(&root, &evaluation.dataset, context.settings.device).map_err(JobError::attempt)?;
        Ok(Self {
            architecture: description.architecture.to_owned(),
            config: config.clone(),
            layers: space.layers(&architecture),
            evaluation,
            assets,
        })
    }

    /// The model on the parts' backbone, its temporal layers drawn from a seed.
    pub(super) fn model(&self, seed: u64) -> Result<Trained, JobError> {
        let model = Trained::seeded(&self.config, &self.layers, seed, self.assets.device());
        self.assets.load_backbone(&model.vs).map_err(JobError::attempt)?;
        Ok(model)
    }
}

/// The space's evaluation with what the job asks for in its place.
fn overridden(evaluation: &Evaluation, description: &Description<'_>) -> Result<Evaluation, JobError> {
    let Scoring {
        prompts,
        videos_per_prompt,
        sample_steps,
        guidance,
    } = *description.scoring;
    let counts = [
        ("prompts", prompts, 2),
        ("videos_per_prompt", videos_per_prompt, 1),
        ("sample_steps", sample_steps, 1),
    ];
    for (field, found, least) in counts {
        if let Some(found) = found.filter(|found| *found < least) {
            let problem = format!("`scoring.{field}` is {found}; it must be at least {least}");
            return Err(JobError::Input(problem));
        }
    }
    if let Some(found) = guidance.filter(|found| !(0.0..=100.0).contains(found)) {
        let problem = format!("`scoring.guidance` is {found}; allowed: a number from 0 to 100");
        return Err(JobError::Input(problem));
    }
    Ok(Evaluation {
        training: description.training.clone(),
        prompts: prompts.unwrap_or(evaluation.prompts),
        videos_per_prompt: videos_per_prompt.unwrap_or(evaluation.videos_per_prompt),
        sample_steps: sample_steps.unwrap_or(evaluation.sample_steps),
        guidance: guidance.unwrap_or(evaluation.guidance),
        ..evaluation.clone()
    })
}

/// Reads a recipe and looks whether its batches come apart into `ranks` shares.
pub(super) fn recipe(text: &str, ranks: u32) -> Result<Recipe, JobError> {
    let recipe = Recipe::parse(text).map_err(|error| JobError::Input(format!("the recipe: {error}")))?;
    let batch = recipe.training.batch;
    if ranks == 0 || !batch.is_multiple_of(ranks) {
        let problem = format!("`ranks` is {ranks}; it must divide the recipe's `batch`, {batch}");
        return Err(JobError::Input(problem));
    }
    Ok(recipe)
}

/// The weights that a job brings: those of the one artifact in that role, or of the only one; none where there is none.
pub(super) fn weights(
    context: &JobContext,
    artifacts: &[ArtifactRef],
) -> Result<Option<BTreeMap<String, Tensor>>, JobError> {
    let artifact = match artifacts {
        [] => return Ok(None),
        [only] => only,
        several => {
            let in_role: Vec<&ArtifactRef> = several.iter().filter(|a| a.role == ArtifactRole::Weights).collect();
            let [one] = in_role[..] else {
                let found = in_role.len();
                let problem = format!("`weights` holds {found} artifacts in the role weights; allowed: 1");
                return Err(JobError::Input(problem));
            };
            one
        }
    };
    let bytes = context.fetch(artifact)?;
    let tensors = decode_tensors(&bytes);
    let tensors = tensors.map_err(|error| JobError::Input(format!("`weights`, {}: {error}", artifact.name)))?;
    Ok(Some(tensors))
}
