//! Measures blocks of a space on this device, alone on it.

use std::ops::ControlFlow;
use std::time::Instant;

use protocol::jobs::{DeviceSeconds, JobResult, Outcome, ProfileInput, ProfileOutcome};
use search_spaces::{Block, Shape};

use super::{JobContext, JobError, parse};
use crate::profile::{self, dtype_of, profile_blocks, runtime_name, uploads};

pub(super) fn run(context: &JobContext, input: &ProfileInput) -> Result<JobResult, JobError> {
    let settings = measuring(context);
    let (space, _) = parse(&input.space, None)?;
    let blocks: Vec<Block> = input.blocks.iter().map(block).collect();
    context.log(&format!("measuring {} blocks of {}", blocks.len(), space.name));
    let started = Instant::now();
    let entries = profile_blocks(&space, &blocks, &settings, &mut |share, what| {
        tell(context, share, what)
    });
    let entries = entries.map_err(|_| JobError::Interrupted)?;
    let outcome = ProfileOutcome {
        runtime: runtime_name(settings.device, settings.threads),
        entries: uploads(entries, dtype_of(&space)),
    };
    Ok(result(started, Outcome::Profile(outcome)))
}

pub(super) fn measuring(context: &JobContext) -> profile::Settings {
    let settings = &context.settings;
    tch::set_num_threads(settings.threads as i32);
    profile::Settings::new(settings.device, settings.threads, settings.memory_bytes)
}

pub(super) fn tell(context: &JobContext, share: f64, what: &str) -> ControlFlow<()> {
    match context.progress(share, what) {
        Ok(()) => ControlFlow::Continue(()),
        Err(_) => ControlFlow::Break(()),
    }
}

pub(super) fn result(started: Instant, outcome: Outcome) -> JobResult {
    let profile = started.elapsed().as_secs_f64();
    JobResult {
        device_seconds: DeviceSeconds {
            profile,
            ..DeviceSeconds::default()
        },
        artifacts: Vec::new(),
        outcome,
    }
}

fn block(block: &protocol::luts::Block) -> Block {
    let shape: Shape = block.shape.iter().map(|(name, size)| (name.clone(), *size)).collect();
    Block {
        operator: block.operator.clone(),
        shape,
    }
}
