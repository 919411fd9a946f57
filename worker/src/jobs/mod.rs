//! What a worker does with a job: one file a kind.

mod benchmark;
mod compress_decoder;
mod context;
mod costs;
mod diary;
mod encode_latents;
mod evaluate;
mod gang;
mod profile;
mod prune_backbone;
mod scoring;
mod verify;

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use protocol::jobs::{JobInput, JobResult};

pub use context::{JobContext, Pulse, Settings};

/// Why an attempt ended without a result.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// The job is not wanted any more, or the worker stops.
    #[error("interrupted")]
    Interrupted,
    /// The input cannot be used by any worker: another attempt fails the same way.
    #[error("{0}")]
    Input(String),
    /// This attempt failed; another may not.
    #[error("{0}")]
    Attempt(String),
}

impl JobError {
    /// Whether another attempt can help.
    #[must_use]
    pub const fn is_worth_another_attempt(&self) -> bool {
        !matches!(self, Self::Input(_))
    }

    fn attempt(error: impl std::fmt::Display) -> Self {
        Self::Attempt(error.to_string())
    }
}

/// Does a job on the calling thread. A panic, which is how libtorch's errors surface in places, ends the attempt and
/// not the worker.
///
/// # Errors
/// As [`JobError`] says.
pub fn run(context: &JobContext, input: &JobInput) -> Result<JobResult, JobError> {
    let work = AssertUnwindSafe(|| match input {
        JobInput::Profile(input) => profile::run(context, input),
        JobInput::Evaluate(input) => evaluate::run(context, input),
        JobInput::Verify(input) => verify::run(context, input),
        JobInput::EncodeLatents(input) => encode_latents::run(context, input),
        JobInput::PruneBackbone(input) => prune_backbone::run(context, input),
        JobInput::Benchmark(input) => benchmark::run(context, input),
        JobInput::CompressDecoder(input) => compress_decoder::run(context, input),
        JobInput::Lookup(_)
        | JobInput::TrainFinal(_)
        | JobInput::Distill(_)
        | JobInput::Export(_)
        | JobInput::ProfileModel(_) => Err(JobError::Input(format!("this worker takes no {} jobs", input.kind()))),
    });
    catch_unwind(work).unwrap_or_else(|panic| Err(JobError::Attempt(format!("panicked: {}", message_of(&*panic)))))
}

fn message_of(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no message")
}

/// Parses what a job says of its space and architecture.
fn parse(
    space: &str,
    architecture: Option<&str>,
) -> Result<(search_spaces::Space, Option<search_spaces::Architecture>), JobError> {
    let space = search_spaces::Space::parse(space).map_err(|error| JobError::Input(format!("the space: {error}")))?;
    let architecture = architecture.map(|text| space.architecture(text)).transpose();
    let architecture = architecture.map_err(|error| JobError::Input(format!("the architecture: {error}")))?;
    Ok((space, architecture))
}
