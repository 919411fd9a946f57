//! What a job that several workers do together needs of them.

use std::sync::PoisonError;
use std::time::Duration;

use super::{JobContext, JobError};
use crate::distributed::Group;

/// How long a rank waits for the others: longer than any of them reads its clips or writes a checkpoint.
const PATIENCE: Duration = Duration::from_secs(15 * 60);

/// The group of this job's ranks, where it has several.
///
/// # Errors
/// Where the others do not come: another attempt may fare better.
pub(super) fn join(context: &JobContext) -> Result<Option<Group>, JobError> {
    let Some(gang) = &context.gang else {
        return Ok(None);
    };
    let device = context.settings.device;
    let socket = context
        .store_socket
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take();
    let group = match socket {
        Some(socket) => Group::join_listening(gang, socket, device, PATIENCE),
        None => Group::join(gang, device, PATIENCE),
    };
    let group = group.map_err(JobError::attempt)?;
    context.log(&format!(
        "rank {} of {}, through {}",
        gang.rank,
        gang.ranks,
        group.engine()
    ));
    Ok(Some(group))
}

/// Whether this worker brings the job's result: alone, or as rank 0.
pub(super) fn brings_result(context: &JobContext) -> bool {
    context.gang.as_ref().is_none_or(|gang| gang.rank == 0)
}
