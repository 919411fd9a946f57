//! Measuring what the device's table lacks.

use lut::Lut;
use protocol::{
    JobId, SearchId,
    devices::RuntimeName,
    jobs::{JobInput, JobKind, JobState, ProfileInput},
    searches::SearchState,
};
use search_spaces::{Block, Dtype, Space};

use super::{SearchError, advance::Move};
use crate::{
    dispatch::MAX_ATTEMPTS,
    samples,
    store::{
        StoreError, jobs,
        jobs::NewJob,
        luts::{self, LutFilter},
        searches::SearchRow,
    },
};

/// Blocks that one job measures: so much is lost with a killed worker.
pub(super) const BATCH: usize = 8;

/// Queues profile jobs for what is missing; goes on when nothing is.
pub(super) async fn step(step: &mut Move<'_>) -> Result<bool, SearchError> {
    let space = step.caches.space(step.search).await?;
    let Some((device, runtime)) = target(step.search, &space) else {
        step.go(SearchState::Eliminating, None).await?;
        return Ok(true);
    };
    let lut = table(step, &space, &device, &runtime).await?;
    let missing = missing(&space, &lut);
    if missing.is_empty() {
        jobs::cancel_open(step.tx, step.search.id, step.now).await?;
        step.go(SearchState::Eliminating, None).await?;
        return Ok(true);
    }
    let states = jobs::states(step.tx.connection(), step.search.id, JobKind::Profile).await?;
    if states.is_empty() {
        for blocks in missing.chunks(BATCH) {
            let search = Some(step.search.id);
            let job = profile_job(search, &step.search.space, &device, &runtime, blocks);
            jobs::insert(step.tx, &job, step.now).await?;
        }
    } else if let Some(reason) = dead_end(step, &states, &missing).await? {
        step.go(SearchState::Failed, Some(&reason)).await?;
    }
    Ok(false)
}

/// Device and runtime whose table the space needs; none where it has no blocks to measure.
pub(super) fn target(search: &SearchRow, space: &Space) -> Option<(String, RuntimeName)> {
    let target = search.device.clone().zip(search.runtime());
    target.filter(|_| !space.blocks().is_empty())
}

/// Number format of a space's blocks.
pub(crate) fn dtype(space: &Space) -> Dtype {
    space.unet().map_or(Dtype::F32, |unet| unet.dtype)
}

/// Blocks of a space that the table has no entry for.
pub(super) fn missing(space: &Space, lut: &Lut) -> Vec<Block> {
    space
        .blocks()
        .into_iter()
        .filter(|block| lut.state(block).is_none())
        .collect()
}

/// The device's table in the space's number format, as it stands.
pub(super) async fn table(
    step: &mut Move<'_>,
    space: &Space,
    device: &str,
    runtime: &RuntimeName,
) -> Result<Lut, StoreError> {
    let filter = LutFilter {
        runtime: Some(runtime),
        dtype: Some(dtype(space).as_str()),
        operator: None,
    };
    let entries = luts::entries(step.tx.connection(), device, &filter).await?;
    let mut lut = Lut::new(device, samples::lut_runtime(runtime), dtype(space));
    for entry in entries {
        lut.insert(entry.key.block, entry.state);
    }
    Ok(lut)
}

/// A job that measures blocks on a device, for a search or for whoever asked.
pub(super) fn profile_job(
    search: Option<SearchId>,
    space: &str,
    device: &str,
    runtime: &RuntimeName,
    blocks: &[Block],
) -> NewJob {
    NewJob {
        id: JobId::new(),
        search_id: search,
        candidate_id: None,
        input: JobInput::Profile(ProfileInput {
            space: space.to_owned(),
            blocks: blocks.iter().map(samples::wire_block).collect(),
            graphs: Vec::new(),
        }),
        device: Some(device.to_owned()),
        runtime: Some(runtime.clone()),
        ranks: 1,
        evaluator: None,
        memory_bytes: 0,
        max_attempts: MAX_ATTEMPTS,
    }
}

/// Why profiling cannot go on: every job has ended and blocks are still missing.
async fn dead_end(
    step: &mut Move<'_>,
    states: &[(JobId, Option<protocol::CandidateId>, JobState)],
    missing: &[Block],
) -> Result<Option<String>, StoreError> {
    if states
        .iter()
        .any(|(_, _, state)| matches!(state, JobState::Queued | JobState::Leased))
    {
        return Ok(None);
    }
    let blocks = missing
        .iter()
        .take(3)
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(", ");
    let mut reason = format!("{} blocks could not be measured, among them {blocks}", missing.len());
    if let Some((failed, _, _)) = states.iter().find(|(_, _, state)| *state == JobState::Failed) {
        for (attempt, error) in jobs::errors(step.tx.connection(), *failed).await? {
            reason.push_str(&format!("; job {failed}, attempt {attempt}: {error}"));
        }
    }
    Ok(Some(reason))
}
