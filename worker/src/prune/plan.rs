//! What is done to prune a backbone: distillation, then adaptation to flow and to the video VAE's latents.

use search_spaces::{Distillation, Prediction, Recipe, SpaceError, Stage, TrainingSettings, Trains};
use serde::Serialize;

use super::loss::LossWeights;
use super::process::Process;

/// The recipes of a pruning.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plan {
    /// From the full UNet to the pruned one.
    pub distillation: Recipe,
    /// To rectified flow and the video VAE's latents.
    pub adaptation: Option<Recipe>,
    /// Seed of every draw, and of the weights that the full UNet has nothing for.
    pub seed: u64,
}

/// Why recipes cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// One is no recipe.
    #[error("the recipe of the {which}: {source}")]
    Recipe {
        /// `distillation` or `adaptation`.
        which: &'static str,
        /// All that is wrong with it.
        source: SpaceError,
    },
    /// One is the recipe of something else.
    #[error("`{field}` of the recipe `{recipe}` for the {which} does not do; allowed: {allowed}")]
    Stage {
        /// Its name.
        recipe: String,
        /// `distillation` or `adaptation`.
        which: &'static str,
        /// The field.
        field: &'static str,
        /// What would do.
        allowed: &'static str,
    },
}

/// One stage of a plan.
#[derive(Debug, Clone, Copy)]
pub struct PlanStage<'a> {
    /// The recipe's name; part of the seed of its draws.
    pub name: &'a str,
    /// How weights move.
    pub settings: &'a TrainingSettings,
    /// How noise is added.
    pub process: Process,
    /// What counts.
    pub weights: LossWeights,
    /// What it learns to predict.
    pub predicts: Prediction,
    /// What the teacher predicts.
    pub teacher: Prediction,
}

impl Plan {
    /// Reads recipe files.
    ///
    /// # Errors
    /// Where a text is no recipe, or that of another stage.
    pub fn parse(distillation: &str, adaptation: Option<&str>, seed: u64) -> Result<Self, PlanError> {
        let read = |text: &str, which| Recipe::parse(text).map_err(|source| PlanError::Recipe { which, source });
        let adaptation = adaptation.map(|text| read(text, "adaptation")).transpose()?;
        Self::new(read(distillation, "distillation")?, adaptation, seed)
    }

    /// Of recipes that were read.
    ///
    /// # Errors
    /// Where one is that of another stage, or trains the temporal layers alone.
    pub fn new(distillation: Recipe, adaptation: Option<Recipe>, seed: u64) -> Result<Self, PlanError> {
        let refused = |recipe: &Recipe, which, field, allowed| PlanError::Stage {
            recipe: recipe.name.clone(),
            which,
            field,
            allowed,
        };
        if !matches!(distillation.stage, Stage::Pruning(_)) {
            return Err(refused(&distillation, "distillation", "stage", "pruning"));
        }
        let teacher = teacher_of(&distillation);
        if let Some(recipe) = &adaptation {
            match &recipe.stage {
                Stage::Adaptation => (),
                Stage::Pruning(Distillation {
                    predicts: Prediction::Velocity,
                    teacher_predicts,
                    ..
                }) if *teacher_predicts == teacher => (),
                _ => {
                    let allowed = "adaptation, or pruning that predicts velocities from the same teacher";
                    return Err(refused(recipe, "adaptation", "stage", allowed));
                }
            }
        }
        for (recipe, which) in [
            (Some(&distillation), "distillation"),
            (adaptation.as_ref(), "adaptation"),
        ] {
            if let Some(recipe) = recipe.filter(|recipe| recipe.trains != Trains::All) {
                return Err(refused(recipe, which, "trains", "all"));
            }
        }
        Ok(Self {
            distillation,
            adaptation,
            seed,
        })
    }

    /// In their order.
    #[must_use]
    pub fn stages(&self) -> Vec<PlanStage<'_>> {
        let teacher = teacher_of(&self.distillation);
        let stage = |recipe| stage_of(recipe, teacher);
        std::iter::once(&self.distillation)
            .chain(&self.adaptation)
            .map(stage)
            .collect()
    }

    /// Steps of all stages.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.stages().iter().map(|stage| u64::from(stage.settings.steps)).sum()
    }
}

fn teacher_of(distillation: &Recipe) -> Prediction {
    match &distillation.stage {
        Stage::Pruning(settings) => settings.teacher_predicts,
        _ => Prediction::default(),
    }
}

fn stage_of(recipe: &Recipe, teacher: Prediction) -> PlanStage<'_> {
    let (predicts, weights) = match &recipe.stage {
        Stage::Pruning(settings) => (settings.predicts, settings.into()),
        _ => (Prediction::Velocity, LossWeights::TASK),
    };
    PlanStage {
        name: &recipe.name,
        settings: &recipe.training,
        process: Process::of(predicts, &recipe.training),
        predicts,
        weights,
        teacher,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipes::recipe;

    #[test]
    fn the_papers_recipes_distil_from_noise_and_adapt_to_velocities() {
        let [pruning, adaptation] = ["pruning", "adaptation"].map(|name| recipe(name).unwrap());
        let plan = Plan::new(pruning.clone(), Some(adaptation.clone()), 1).unwrap();
        assert_eq!(plan.steps(), 150_000);
        let stages = plan.stages();
        assert_eq!(stages[0].process, Process::Diffusion);
        assert!(matches!(stages[1].process, Process::Flow(_)));
        let each = LossWeights {
            task: 1.0,
            output: 1.0,
            feature: 1.0,
        };
        assert_eq!((stages[0].weights, stages[1].weights), (each, LossWeights::TASK));

        let error = |first: &Recipe, second: &Recipe| {
            let second = Some(second.clone());
            Plan::new(first.clone(), second, 1).unwrap_err().to_string()
        };
        assert_eq!(
            error(&adaptation, &adaptation),
            "`stage` of the recipe `adaptation` for the distillation does not do; allowed: pruning"
        );
        assert!(error(&pruning, &pruning).contains("predicts velocities from the same teacher"));
        let temporal = Recipe {
            trains: Trains::Temporal,
            ..adaptation
        };
        assert!(error(&pruning, &temporal).contains("`trains` of the recipe `adaptation`"));
    }

    #[test]
    fn a_text_that_is_no_recipe_is_refused_with_its_fields() {
        let error = Plan::parse("name = \"x\"", None, 1).unwrap_err().to_string();
        assert!(
            error.contains("the recipe of the distillation") && error.contains("training"),
            "{error}"
        );
    }
}
