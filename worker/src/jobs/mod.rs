//! What a worker does with a job: one file a kind.

mod benchmark;
mod compress_decoder;
mod context;
mod costs;
mod diary;
mod distill;
mod encode_latents;
mod evaluate;
mod export;
mod gang;
mod profile;
mod prune_backbone;
mod scoring;
mod subject;
mod train_final;
mod training;
mod verify;

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;

use job_client::{Attempt, Work};
use protocol::jobs::{JobInput, JobResult};

use crate::train::TrainError;
pub use context::{JobContext, Settings};
pub use job_client::{JobError, Pulse};

/// A worker's work: all its job kinds.
impl Work for Settings {
    fn run(&self, attempt: Attempt) -> Result<JobResult, JobError> {
        let mut context = JobContext::new(self.clone(), attempt.pulse, attempt.job.checkpoint, attempt.client);
        if let Some((gang, socket)) = attempt.gang {
            context.gang = Some(gang);
            context.store_socket = Mutex::new(socket);
        }
        run(&context, &attempt.job.input)
    }
}

impl From<TrainError> for JobError {
    fn from(error: TrainError) -> Self {
        match error {
            // Trainings go on from their checkpoints to the same numbers.
            TrainError::Diverged { .. } => Self::Input(error.to_string()),
            TrainError::Clips { .. } | TrainError::Sync(_) => Self::attempt(error),
        }
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
        JobInput::TrainFinal(input) => train_final::run(context, input),
        JobInput::Distill(input) => distill::run(context, input),
        JobInput::CompressDecoder(input) => compress_decoder::run(context, input),
        JobInput::Export(input) => export::run(context, input),
        JobInput::Lookup(_) | JobInput::ProfileModel(_) => {
            Err(JobError::Input(format!("this worker takes no {} jobs", input.kind())))
        }
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
