//! How a backbone is pruned: what it learns, in which order, how long.

use serde::{Deserialize, Serialize};

use super::loss::LossWeights;
use super::process::Process;

/// The recipe of a pruning; a TOML file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PruneRecipe {
    /// Seed of every draw, and of the weights that the full UNet has nothing for.
    pub seed: u64,
    /// How the full UNet was trained.
    pub teacher: Process,
    /// Steps between checkpoints.
    #[serde(default = "hundred")]
    pub checkpoint_every: u64,
    /// One after the other: the paper distils first and then adapts to rectified flow and to the video VAE's latents.
    pub stages: Vec<Stage>,
}

/// One stage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stage {
    /// Its name; part of the seed of its draws.
    pub name: String,
    /// What is predicted.
    pub process: Process,
    /// What it is held to.
    #[serde(default)]
    pub losses: LossWeights,
    /// Optimizer steps.
    pub steps: u64,
    /// Latent frames a step.
    pub batch: u64,
    /// Height of the learning rate.
    pub learning_rate: f64,
    /// Steps over which the learning rate rises to its height.
    #[serde(default)]
    pub warmup_steps: u64,
    /// Decay of the weights, a share of the learning rate.
    #[serde(default = "weight_decay")]
    pub weight_decay: f64,
    /// Share of captions that are dropped.
    #[serde(default = "text_dropout")]
    pub text_dropout: f64,
    /// The trained parts whose VAE made the latents: those of the full UNet, unless another is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dataset: Option<String>,
}

const fn hundred() -> u64 {
    100
}

const fn weight_decay() -> f64 {
    0.01
}

const fn text_dropout() -> f64 {
    0.1
}

/// Why a recipe cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum RecipeError {
    /// It is no such TOML file.
    #[error("the recipe: {0}")]
    Format(#[from] toml::de::Error),
    /// A setting is out of range.
    #[error("the recipe's `{field}` is {found}; allowed: {allowed}")]
    Setting {
        /// Where it stands.
        field: String,
        /// What was found.
        found: String,
        /// What would do.
        allowed: &'static str,
    },
}

impl PruneRecipe {
    /// Reads a recipe.
    ///
    /// # Errors
    /// Where the text is no recipe or a setting is out of range.
    pub fn parse(text: &str) -> Result<Self, RecipeError> {
        let recipe: Self = toml::from_str(text)?;
        recipe.check()?;
        Ok(recipe)
    }

    /// Steps of all stages.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.stages.iter().map(|stage| stage.steps).sum()
    }

    /// The stage in which a step falls, and the steps taken in it before; none once all are taken.
    #[must_use]
    pub fn stage_of(&self, step: u64) -> Option<(usize, u64)> {
        let mut before = 0;
        for (i, stage) in self.stages.iter().enumerate() {
            if step < before + stage.steps {
                return Some((i, step - before));
            }
            before += stage.steps;
        }
        None
    }

    fn check(&self) -> Result<(), RecipeError> {
        let demand = |holds: bool, field: String, found: String, allowed| match holds {
            true => Ok(()),
            false => Err(RecipeError::Setting { field, found, allowed }),
        };
        let positive = |count: u64, field: String| demand(count > 0, field, count.to_string(), "at least 1");
        positive(self.checkpoint_every, "checkpoint_every".to_owned())?;
        demand(
            !self.stages.is_empty(),
            "stages".to_owned(),
            "empty".to_owned(),
            "at least one stage",
        )?;
        check_process(&self.teacher, "teacher", &demand)?;
        for (i, stage) in self.stages.iter().enumerate() {
            let field = |name: &str| format!("stages[{i}].{name}");
            positive(stage.steps, field("steps"))?;
            positive(stage.batch, field("batch"))?;
            check_process(&stage.process, &field("process"), &demand)?;
            let within = |value: f64, name: &str, most: f64, allowed| {
                demand((0.0..=most).contains(&value), field(name), value.to_string(), allowed)
            };
            within(stage.learning_rate, "learning_rate", 1.0, "0 to 1")?;
            within(stage.weight_decay, "weight_decay", 1.0, "0 to 1")?;
            within(stage.text_dropout, "text_dropout", 1.0, "0 to 1")?;
            let LossWeights { task, output, feature } = stage.losses;
            for (name, value) in [("task", task), ("output", output), ("feature", feature)] {
                within(value, &format!("losses.{name}"), f64::MAX, "0 or more")?;
            }
            demand(
                task + output + feature > 0.0,
                field("losses"),
                "all zero".to_owned(),
                "at least one above 0",
            )?;
            demand(
                !stage.losses.need_teacher() || self.teacher.can_teach(&stage.process),
                field("process"),
                "diffusion".to_owned(),
                "flow, as the teacher is a flow model, or no losses `output` and `feature`",
            )?;
        }
        Ok(())
    }
}

fn check_process(
    process: &Process,
    field: &str,
    demand: &impl Fn(bool, String, String, &'static str) -> Result<(), RecipeError>,
) -> Result<(), RecipeError> {
    let Process::Flow { noise_mean, noise_std } = *process else {
        return Ok(());
    };
    demand(
        noise_mean.is_finite(),
        format!("{field}.noise_mean"),
        noise_mean.to_string(),
        "a number",
    )?;
    demand(
        noise_std.is_finite() && noise_std > 0.0,
        format!("{field}.noise_std"),
        noise_std.to_string(),
        "a number above 0",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECIPE: &str = r#"
        seed = 1
        teacher = { kind = "diffusion" }

        [[stages]]
        name = "distil"
        process = { kind = "diffusion" }
        steps = 10
        batch = 4
        learning_rate = 5e-5

        [[stages]]
        name = "adapt"
        process = { kind = "flow", noise_mean = 0.0, noise_std = 1.0 }
        losses = { output = 0, feature = 0 }
        steps = 5
        batch = 4
        learning_rate = 5e-5
    "#;

    #[test]
    fn a_recipe_is_read_with_bk_sdms_weights_where_it_names_none() {
        let recipe = PruneRecipe::parse(RECIPE).unwrap();
        assert_eq!(recipe.stages[0].losses, LossWeights::default());
        let task_only = LossWeights {
            task: 1.0,
            output: 0.0,
            feature: 0.0,
        };
        assert_eq!(recipe.stages[1].losses, task_only);
        assert_eq!(recipe.steps(), 15);
        assert_eq!(
            [0, 9, 10, 14, 15].map(|step| recipe.stage_of(step)),
            [Some((0, 0)), Some((0, 9)), Some((1, 0)), Some((1, 4)), None]
        );
    }

    #[test]
    fn a_setting_that_cannot_be_followed_is_named() {
        let error = |from: &str, to: &str| {
            PruneRecipe::parse(&RECIPE.replacen(from, to, 1))
                .unwrap_err()
                .to_string()
        };
        assert_eq!(
            error("batch = 4", "batch = 0"),
            "the recipe's `stages[0].batch` is 0; allowed: at least 1"
        );
        assert_eq!(
            error("noise_std = 1.0", "noise_std = 0"),
            "the recipe's `stages[1].process.noise_std` is 0; allowed: a number above 0"
        );
        assert!(error("learning_rate", "learning_rat").contains("learning_rat"));
        let flow = r#"teacher = { kind = "flow", noise_mean = 0, noise_std = 1 }"#;
        let refused = error(r#"teacher = { kind = "diffusion" }"#, flow);
        assert!(
            refused.starts_with("the recipe's `stages[0].process` is diffusion"),
            "{refused}"
        );
        assert!(error("output = 0, feature = 0", "output = 0, feature = 0, task = 0").contains("all zero"));
    }
}
