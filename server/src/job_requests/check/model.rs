//! Jobs that make a model what a search starts from, and that score one.

use std::collections::BTreeSet;

use protocol::jobs::{BenchmarkInput, Bucket, EncodeLatentsInput, PictureScoring, PruneBackboneInput};

use super::{Check, JobRequestError, MOST_FILES, RANKS};
use crate::search::shortened;

/// The most buckets.
const MOST_BUCKETS: usize = 64;

/// The most dimensions; VBench has 16.
const MOST_DIMENSIONS: usize = 64;

/// The most captions of pictures.
const MOST_PROMPTS: usize = 10_000;

/// The longest caption, in bytes.
const LONGEST_PROMPT: usize = 1000;

impl Check<'_> {
    pub(super) async fn encode_latents(&mut self, input: &EncodeLatentsInput) -> Result<(), JobRequestError> {
        self.plain_name("input.dataset", &input.dataset);
        self.plain_name("input.parts", &input.parts);
        self.files("input.base", &input.base).await?;
        self.within("input.shard_bytes", input.shard_bytes, 4 << 10..=4 << 30);
        self.count("input.buckets", input.buckets.len(), 1..=MOST_BUCKETS);
        for (index, bucket) in input.buckets.iter().enumerate().take(MOST_BUCKETS) {
            self.bucket(&format!("input.buckets[{index}]"), bucket);
        }
        Ok(())
    }

    fn bucket(&mut self, field: &str, bucket: &Bucket) {
        self.within(format!("{field}.frames"), bucket.frames, 1..=10_000);
        for (name, pixels) in [("height", bucket.height), ("width", bucket.width)] {
            self.within(format!("{field}.{name}"), pixels, 8..=8192);
            if pixels % 8 != 0 {
                self.wrong(
                    format!("{field}.{name}"),
                    format!("found {pixels}; allowed: multiples of 8"),
                );
            }
        }
        self.within(format!("{field}.frame_rate_hz"), bucket.frame_rate_hz, 0.1..=1000.0);
        self.within(format!("{field}.keep"), bucket.keep, 1e-6..=1.0);
    }

    pub(super) async fn prune_backbone(&mut self, input: &PruneBackboneInput) -> Result<(), JobRequestError> {
        let space = self.space(&input.space).await?;
        if space.unet().is_none() {
            self.wrong("input.space", "it has no [unet]; that section is the pruned backbone");
        }
        self.plain_name("input.parts", &input.parts);
        self.files("input.base", &input.base).await?;
        self.recipe("input.recipe", &input.recipe);
        if let Some(adaptation) = &input.adaptation {
            self.recipe("input.adaptation", adaptation);
        }
        if let Some(parts) = &input.adaptation_parts {
            self.plain_name("input.adaptation_parts", parts);
            if input.adaptation.is_none() {
                let message = format!(
                    "found `{}` without `input.adaptation`, the recipe that uses them",
                    shortened(parts)
                );
                self.wrong("input.adaptation_parts", message);
            }
        }
        self.files("input.adaptation_base", &input.adaptation_base).await?;
        self.within("input.ranks", input.ranks, RANKS);
        self.picture_scoring(&input.scoring);
        Ok(())
    }

    fn picture_scoring(&mut self, scoring: &PictureScoring) {
        if scoring.pictures == 1 {
            self.wrong(
                "input.scoring.pictures",
                "found 1; allowed: 0 for no scores, or 2 and more, which a standard error takes",
            );
        }
        self.within("input.scoring.pictures", scoring.pictures, 0..=100_000);
        self.within("input.scoring.sample_steps", scoring.sample_steps, 1..=10_000);
        self.within("input.scoring.guidance", scoring.guidance, 0.0..=100.0);
        self.count("input.scoring.prompts", scoring.prompts.len(), 0..=MOST_PROMPTS);
        let mut prompts = scoring.prompts.iter().enumerate();
        if let Some((index, prompt)) = prompts.find(|(_, prompt)| !(1..=LONGEST_PROMPT).contains(&prompt.len())) {
            self.wrong(
                format!("input.scoring.prompts[{index}]"),
                format!("has {} bytes; allowed: 1 to {LONGEST_PROMPT}", prompt.len()),
            );
        }
    }

    pub(super) async fn benchmark(&mut self, input: &BenchmarkInput) -> Result<(), JobRequestError> {
        let space = self.space(&input.space).await?;
        if let Err(error) = space.architecture(&input.architecture) {
            self.wrong("input.architecture", error);
        }
        self.name("input.model", &input.model);
        self.count("input.weights", input.weights.len(), 1..=MOST_FILES);
        self.files("input.weights", &input.weights).await?;
        self.files("input.base", &input.base).await?;
        self.name("input.evaluator", &input.evaluator);
        self.count("input.dimensions", input.dimensions.len(), 0..=MOST_DIMENSIONS);
        let mut dimensions = BTreeSet::new();
        for (index, dimension) in input.dimensions.iter().enumerate().take(MOST_DIMENSIONS) {
            let field = format!("input.dimensions[{index}]");
            self.name(&field, dimension);
            if !dimensions.insert(dimension) {
                self.wrong(field, format!("`{}` stands twice", shortened(dimension)));
            }
        }
        self.within("input.videos_per_prompt", input.videos_per_prompt, 1..=1000);
        if let Some(prompts) = input.prompts {
            self.within("input.prompts", prompts, 1..=100_000);
        }
        if let Some(preset) = &input.preset {
            self.name("input.preset", preset);
        }
        self.within("input.sample_steps", input.sample_steps, 1..=10_000);
        self.within("input.guidance", input.guidance, 0.0..=100.0);
        Ok(())
    }
}
