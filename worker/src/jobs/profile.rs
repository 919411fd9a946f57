//! Measures blocks of a space on this device, alone on it.

use std::ops::ControlFlow;

use protocol::jobs::{DeviceSeconds, JobResult, Outcome, ProfileInput, ProfileOutcome};
use search_spaces::{Block, Shape};

use super::{JobContext, JobError, parse};
use crate::profile::{self, dtype_of, profile_blocks, runtime_name, uploads};

pub(super) fn run(context: &JobContext, input: &ProfileInput) -> Result<JobResult, JobError> {
    let settings = measuring(context);
    let (space, _) = parse(&input.space, None)?;
    let blocks: Vec<Block> = input.blocks.iter().map(block).collect();
    context.log(&format!("measuring {} blocks of {}", blocks.len(), space.name));
    let entries = profile_blocks(&space, &blocks, &settings, &mut |share, what| {
        tell(context, share, what)
    });
    let entries = entries.map_err(|_| JobError::Interrupted)?;
    let outcome = ProfileOutcome {
        runtime: runtime_name(settings.device, settings.threads),
        entries: uploads(entries, dtype_of(&space)),
    };
    Ok(result(context, Outcome::Profile(outcome)))
}

pub(super) fn measuring(context: &JobContext) -> profile::Settings {
    let settings = &context.settings;
    tch::set_num_threads(settings.threads as i32);
    profile::Settings::new(settings.device, settings.threads, settings.memory_bytes)
}

pub(super) fn tell(context: &JobContext, share: f64, what: &str) -> ControlFlow<()> {
    context.spent(measured(context));
    match context.progress(share, what) {
        Ok(()) => ControlFlow::Continue(()),
        Err(_) => ControlFlow::Break(()),
    }
}

fn measured(context: &JobContext) -> DeviceSeconds {
    DeviceSeconds {
        profile: context.elapsed_seconds(),
        ..DeviceSeconds::default()
    }
}

pub(super) fn result(context: &JobContext, outcome: Outcome) -> JobResult {
    JobResult {
        device_seconds: measured(context),
        artifacts: Vec::new(),
        outcome,
    }
}

pub(super) fn block(block: &protocol::luts::Block) -> Block {
    let shape: Shape = block.shape.iter().map(|(name, size)| (name.clone(), *size)).collect();
    Block {
        operator: block.operator.clone(),
        shape,
    }
}
