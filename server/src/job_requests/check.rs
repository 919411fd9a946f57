//! What a request may say.

use std::{collections::BTreeSet, fmt::Display, ops::RangeInclusive};

use protocol::{
    FieldProblem,
    artifacts::ArtifactRef,
    jobs::{BenchmarkInput, Bucket, EncodeLatentsInput, JobInput, JobRequest, PictureScoring, PruneBackboneInput},
};
use search_spaces::Space;

use super::JobRequestError;
use crate::{
    app::App,
    search::{is_plain_name, read_space, shortened},
};

/// The most files of one list.
const MOST_FILES: usize = 256;

/// The most buckets.
const MOST_BUCKETS: usize = 64;

/// The most dimensions; VBench has 16.
const MOST_DIMENSIONS: usize = 64;

/// The longest recipe, in bytes.
const LONGEST_RECIPE: usize = 64 << 10;

/// The most captions of pictures.
const MOST_PROMPTS: usize = 10_000;

/// The longest caption, in bytes.
const LONGEST_PROMPT: usize = 1000;

/// The longest name, in characters.
const LONGEST_NAME: usize = 100;

/// Workers for one job.
const RANKS: RangeInclusive<u32> = 1..=1024;

/// Checks a request against what is stored; everything that is wrong with it is told at once.
pub(super) async fn request(app: &App, request: &JobRequest) -> Result<(), JobRequestError> {
    let mut check = Check {
        app,
        errors: Vec::new(),
    };
    match &request.input {
        JobInput::EncodeLatents(input) => check.encode_latents(input).await?,
        JobInput::PruneBackbone(input) => check.prune_backbone(input).await?,
        JobInput::Benchmark(input) => check.benchmark(input).await?,
        JobInput::TrainFinal(_)
        | JobInput::Distill(_)
        | JobInput::CompressDecoder(_)
        | JobInput::Export(_)
        | JobInput::ProfileModel(_) => {}
        JobInput::Profile(_) => check.wrong("input.kind", "profile: ask with POST /v1/luts/{device}/profile"),
        input @ (JobInput::Evaluate(_) | JobInput::Verify(_) | JobInput::Lookup(_)) => check.wrong(
            "input.kind",
            format!(
                "{} is for a search alone; allowed: encode_latents, prune_backbone, benchmark",
                input.kind()
            ),
        ),
    }
    if let Some(device) = &request.device
        && app.store.device(device).await?.is_none()
    {
        check.wrong("device", format!("`{}` is not registered", shortened(device)));
    }
    if let Some(id) = request.id.filter(|id| id.0.get_version_num() != 7) {
        check.wrong("id", format!("found {id}; allowed: a UUID of version 7"));
    }
    if i64::try_from(request.memory_bytes).is_err() {
        check.wrong(
            "memory_bytes",
            format!("found {}; allowed: less than 2^63", request.memory_bytes),
        );
    }
    if check.errors.is_empty() {
        Ok(())
    } else {
        Err(JobRequestError::Invalid(check.errors))
    }
}

struct Check<'a> {
    app: &'a App,
    errors: Vec<FieldProblem>,
}

impl Check<'_> {
    async fn encode_latents(&mut self, input: &EncodeLatentsInput) -> Result<(), JobRequestError> {
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

    async fn prune_backbone(&mut self, input: &PruneBackboneInput) -> Result<(), JobRequestError> {
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
        self.scoring(&input.scoring);
        Ok(())
    }

    fn scoring(&mut self, scoring: &PictureScoring) {
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

    async fn benchmark(&mut self, input: &BenchmarkInput) -> Result<(), JobRequestError> {
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

    /// The space, which every other check of the input needs.
    async fn space(&self, text: &str) -> Result<Space, JobRequestError> {
        Ok(read_space(text).await?)
    }

    fn recipe(&mut self, field: &str, text: &str) {
        if text.len() > LONGEST_RECIPE {
            self.wrong(
                field,
                format!("has {} bytes; allowed: at most {LONGEST_RECIPE}", text.len()),
            );
        } else if let Err(error) = text.parse::<toml::Table>() {
            self.wrong(field, format!("is no TOML: {error}"));
        }
    }

    /// Files must be there, and fit side by side into one folder.
    async fn files(&mut self, field: &str, files: &[ArtifactRef]) -> Result<(), JobRequestError> {
        self.count(field, files.len(), 0..=MOST_FILES);
        let mut names = BTreeSet::new();
        for (index, file) in files.iter().enumerate().take(MOST_FILES) {
            let field = |name: &str| format!("{field}[{index}].{name}");
            self.plain_name(&field("name"), &file.name);
            if !names.insert(&file.name) {
                self.wrong(field("name"), format!("`{}` stands twice", shortened(&file.name)));
            }
            match self.app.store.artifact(&file.digest).await? {
                None => self.wrong(
                    field("digest"),
                    format!("there is no artifact {}; upload it first", file.digest),
                ),
                Some(stored) if stored.bytes != file.bytes => self.wrong(
                    field("bytes"),
                    format!("is {}, the artifact has {} bytes", file.bytes, stored.bytes),
                ),
                Some(_) => {}
            }
        }
        Ok(())
    }

    fn plain_name(&mut self, field: &str, name: &str) {
        if !is_plain_name(name) {
            let message = format!(
                "`{}` is no plain name: it must name no folder and be not empty",
                shortened(name)
            );
            self.wrong(field, message);
        }
    }

    fn name(&mut self, field: &str, name: &str) {
        let length = name.chars().count();
        if length == 0 || length > LONGEST_NAME || name.chars().any(char::is_control) {
            self.wrong(
                field,
                format!("found {length} characters; allowed: 1 to {LONGEST_NAME}, none a control"),
            );
        }
    }

    fn count(&mut self, field: &str, count: usize, allowed: RangeInclusive<usize>) {
        if !allowed.contains(&count) {
            let message = format!("found {count}; allowed: {} to {}", allowed.start(), allowed.end());
            self.wrong(field, message);
        }
    }

    fn within<T: PartialOrd + Display>(&mut self, field: impl Into<String>, found: T, allowed: RangeInclusive<T>) {
        if !allowed.contains(&found) {
            self.wrong(
                field,
                format!("found {found}; allowed: {} to {}", allowed.start(), allowed.end()),
            );
        }
    }

    fn wrong(&mut self, field: impl Into<String>, message: impl Display) {
        self.errors.push(FieldProblem {
            field: field.into(),
            line: None,
            column: None,
            message: message.to_string(),
        });
    }
}
