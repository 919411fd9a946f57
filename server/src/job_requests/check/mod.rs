//! What a request may say.

mod deploy;
mod model;

use std::{collections::BTreeSet, fmt::Display, ops::RangeInclusive};

use protocol::{
    FieldProblem,
    artifacts::ArtifactRef,
    jobs::{JobInput, JobKind, JobRequest},
};
use search_spaces::Space;

pub(crate) use deploy::{RUNS, SUSTAINED_SECONDS, UNET_PARTS};

use super::JobRequestError;
use crate::{
    app::App,
    search::{is_plain_name, read_space, shortened},
};

/// The most files of one list.
const MOST_FILES: usize = 256;

/// The longest recipe, in bytes.
const LONGEST_RECIPE: usize = 64 << 10;

/// The longest name, in characters.
const LONGEST_NAME: usize = 100;

/// Workers for one job.
pub(crate) const RANKS: RangeInclusive<u32> = 1..=1024;

/// Kinds that can be asked for by themselves.
const ASKED_FOR: [JobKind; 8] = [
    JobKind::EncodeLatents,
    JobKind::PruneBackbone,
    JobKind::Benchmark,
    JobKind::TrainFinal,
    JobKind::Distill,
    JobKind::CompressDecoder,
    JobKind::Export,
    JobKind::ProfileModel,
];

/// Checks a request against what is stored; everything that is wrong with it is told at once.
pub(super) async fn request(app: &App, request: &JobRequest) -> Result<(), JobRequestError> {
    let mut check = Check::new(app);
    match &request.input {
        JobInput::EncodeLatents(input) => check.encode_latents(input).await?,
        JobInput::PruneBackbone(input) => check.prune_backbone(input).await?,
        JobInput::Benchmark(input) => check.benchmark(input).await?,
        JobInput::TrainFinal(input) => check.train_final(input).await?,
        JobInput::Distill(input) => check.distill(input).await?,
        JobInput::CompressDecoder(input) => check.compress_decoder(input).await?,
        JobInput::Export(input) => check.export(input).await?,
        JobInput::ProfileModel(input) => check.profile_model(input, request.device.as_deref()).await?,
        JobInput::Profile(_) => check.wrong("input.kind", "profile: ask with POST /v1/luts/{device}/profile"),
        input @ (JobInput::Evaluate(_) | JobInput::Verify(_) | JobInput::Lookup(_)) => check.wrong(
            "input.kind",
            format!(
                "{} is for a search alone; allowed: {}",
                input.kind(),
                ASKED_FOR.map(JobKind::as_str).join(", ")
            ),
        ),
    }
    if let Some(device) = &request.device {
        check.device("device", device).await?;
    }
    if let Some(id) = request.id {
        check.fresh_id(id.0);
    }
    check.memory("memory_bytes", request.memory_bytes);
    check.finish()
}

/// Collects what is wrong, field by field.
pub(crate) struct Check<'a> {
    app: &'a App,
    errors: Vec<FieldProblem>,
}

impl<'a> Check<'a> {
    pub(crate) fn new(app: &'a App) -> Self {
        Self {
            app,
            errors: Vec::new(),
        }
    }

    /// Ends the check: everything that was found, if anything was.
    pub(crate) fn finish(self) -> Result<(), JobRequestError> {
        if self.errors.is_empty() {
            Ok(())
        } else {
            Err(JobRequestError::Invalid(self.errors))
        }
    }
}

impl Check<'_> {
    pub(crate) async fn device(&mut self, field: &str, device: &str) -> Result<(), JobRequestError> {
        if self.app.store.device(device).await?.is_none() {
            self.wrong(field, format!("`{}` is not registered", shortened(device)));
        }
        Ok(())
    }

    /// A number that the asker drew.
    pub(crate) fn fresh_id(&mut self, id: uuid::Uuid) {
        if id.get_version_num() != 7 {
            self.wrong("id", format!("found {id}; allowed: a UUID of version 7"));
        }
    }

    pub(crate) fn memory(&mut self, field: &str, bytes: u64) {
        if i64::try_from(bytes).is_err() {
            self.wrong(field, format!("found {bytes}; allowed: less than 2^63"));
        }
    }

    /// The space, which every other check of the input needs.
    pub(crate) async fn space(&self, text: &str) -> Result<Space, JobRequestError> {
        Ok(read_space(text).await?)
    }

    pub(crate) fn recipe(&mut self, field: &str, text: &str) {
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
    pub(crate) async fn files(&mut self, field: &str, files: &[ArtifactRef]) -> Result<(), JobRequestError> {
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

    pub(crate) fn plain_name(&mut self, field: &str, name: &str) {
        if !is_plain_name(name) {
            let message = format!(
                "`{}` is no plain name: it must name no folder and be not empty",
                shortened(name)
            );
            self.wrong(field, message);
        }
    }

    pub(crate) fn name(&mut self, field: &str, name: &str) {
        let length = name.chars().count();
        if length == 0 || length > LONGEST_NAME || name.chars().any(char::is_control) {
            self.wrong(
                field,
                format!("found {length} characters; allowed: 1 to {LONGEST_NAME}, none a control"),
            );
        }
    }

    pub(crate) fn count(&mut self, field: &str, count: usize, allowed: RangeInclusive<usize>) {
        if !allowed.contains(&count) {
            let message = format!("found {count}; allowed: {} to {}", allowed.start(), allowed.end());
            self.wrong(field, message);
        }
    }

    pub(crate) fn within<T: PartialOrd + Display>(
        &mut self,
        field: impl Into<String>,
        found: T,
        allowed: RangeInclusive<T>,
    ) {
        if !allowed.contains(&found) {
            self.wrong(
                field,
                format!("found {found}; allowed: {} to {}", allowed.start(), allowed.end()),
            );
        }
    }

    pub(crate) fn wrong(&mut self, field: impl Into<String>, message: impl Display) {
        self.errors.push(FieldProblem {
            field: field.into(),
            line: None,
            column: None,
            message: message.to_string(),
        });
    }
}
