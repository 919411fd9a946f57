//! The recipes that ship: the paper's schedule, stage by stage, as files in `worker/recipes`.

use std::path::Path;

use search_spaces::Recipe;

/// Name and text of each: the paper's in the order of its schedule, then those for the small spaces.
pub const SHIPPED: [(&str, &str); 12] = [
    ("pruning", include_str!("../recipes/pruning.toml")),
    ("adaptation", include_str!("../recipes/adaptation.toml")),
    ("candidates", include_str!("../recipes/candidates.toml")),
    ("joint", include_str!("../recipes/joint.toml")),
    ("adversarial", include_str!("../recipes/adversarial.toml")),
    ("finetune-10fps", include_str!("../recipes/finetune-10fps.toml")),
    ("joint-small", include_str!("../recipes/joint-small.toml")),
    ("adversarial-small", include_str!("../recipes/adversarial-small.toml")),
    ("decoder", include_str!("../recipes/decoder.toml")),
    ("decoder-wide", include_str!("../recipes/decoder-wide.toml")),
    (
        "decoder-wide-separable",
        include_str!("../recipes/decoder-wide-separable.toml"),
    ),
    ("decoder-small", include_str!("../recipes/decoder-small.toml")),
];

/// Why there is no recipe.
#[derive(Debug, thiserror::Error)]
pub enum RecipeError {
    /// Neither a shipped name nor a file.
    #[error("no recipe `{found}`: {source}; allowed: a file or one of {}", names())]
    Unknown {
        /// What was asked for.
        found: String,
        /// What the system says to it as a file.
        source: std::io::Error,
    },
    /// A file that is no recipe.
    #[error("{found}:\n{source}")]
    Content {
        /// The file or the name.
        found: String,
        /// All that is wrong with it.
        source: search_spaces::SpaceError,
    },
}

fn names() -> String {
    SHIPPED.map(|(name, _)| name).join(", ")
}

/// The shipped recipe of a name, or else the one in a file.
///
/// # Errors
/// Where there is neither, or where the file is no recipe.
pub fn recipe(name_or_file: &str) -> Result<Recipe, RecipeError> {
    let found = || name_or_file.to_owned();
    let text = match SHIPPED.iter().find(|(name, _)| *name == name_or_file) {
        Some((_, text)) => (*text).to_owned(),
        None => std::fs::read_to_string(Path::new(name_or_file))
            .map_err(|source| RecipeError::Unknown { found: found(), source })?,
    };
    Recipe::parse(&text).map_err(|source| RecipeError::Content { found: found(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use search_spaces::{Adversarial, Heads, Joint, Space, Stage, Trains};

    /// The paper's section 4 and the spec's section 0.
    #[test]
    fn the_schedule_is_the_papers() {
        for (name, _) in SHIPPED {
            assert_eq!(recipe(name).unwrap().name, name);
        }
        let schedule = ["pruning", "adaptation", "candidates", "joint", "adversarial"];
        let all = schedule.map(|name| recipe(name).unwrap());
        assert_eq!(
            all.each_ref().map(|recipe| recipe.training.steps),
            [100_000, 50_000, 20_000, 100_000, 6000]
        );
        for recipe in &all[..4] {
            assert_eq!(recipe.training.learning_rate, 5e-5, "{}", recipe.name);
        }
        assert!(all.iter().all(|recipe| recipe.training.betas == [0.9, 0.999]));
        assert_eq!(all[2].trains, Trains::Temporal);
        assert_eq!((all[4].training.learning_rate, all[4].training.ema), (1e-7, Some(0.95)));
        let Stage::Adversarial(Adversarial {
            sample_steps,
            heads_learning_rate,
            heads_betas,
            noise_mean,
            noise_std,
            huber_scale,
            heads,
            ..
        }) = all[4].stage
        else {
            panic!("{:?}", all[4].stage);
        };
        assert_eq!(
            (sample_steps, heads_learning_rate, heads_betas),
            (4, 1e-4, [0.5, 0.999])
        );
        assert_eq!((noise_mean, noise_std), (-1.0, 1.0));
        assert_eq!(heads, Heads::Unified);
        let finetuning = recipe("finetune-10fps").unwrap();
        let Stage::Joint(Joint { mix }) = finetuning.stage else {
            panic!("{:?}", finetuning.stage);
        };
        assert_eq!(mix.frame_rate_hz, Some(10.0));
        let of_the_demo = huber_scale * f64::from(15 * 4 * 64 * 64).sqrt();
        assert!((of_the_demo - 0.268).abs() < 5e-4, "{of_the_demo}");
    }

    #[test]
    fn the_papers_space_trains_its_candidates_by_the_recipe() {
        let space = Space::parse(include_str!("../../search-spaces/spaces/snapgen-v.toml")).unwrap();
        let evaluation = space.evaluation.unwrap();
        assert_eq!(evaluation.training, recipe("candidates").unwrap().training);
        assert!(!evaluation.inherit, "the paper trains every candidate from scratch");
        assert_eq!(
            (evaluation.evaluator.as_str(), evaluation.preset.as_deref()),
            ("vbench", Some("paper-demo"))
        );
        // The longest of the package's lists of the three dimensions, 93 + 79 + 85.
        assert_eq!((evaluation.prompts, evaluation.videos_per_prompt), (93, 5));
    }

    #[test]
    fn what_is_no_recipe_is_refused_with_what_is() {
        let error = recipe("finetuning").unwrap_err().to_string();
        assert!(
            error.contains("one of pruning, adaptation, candidates, joint, adversarial, finetune-10fps"),
            "{error}"
        );
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mine.toml");
        std::fs::write(&path, SHIPPED[2].1.replace("warmup_steps", "warm_up")).unwrap();
        let error = recipe(path.to_str().unwrap()).unwrap_err().to_string();
        assert!(
            error.contains("training.warm_up: found an unknown key; allowed: the keys steps"),
            "{error}"
        );
    }
}
