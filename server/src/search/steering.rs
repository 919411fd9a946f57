//! Pausing, resuming and cancelling.

use chrono::{DateTime, Utc};
use protocol::{
    SearchId,
    events::EventBody,
    jobs::JobState,
    searches::{CandidateState, SearchState},
};

use super::{SearchError, views};
use crate::store::{Store, StoreError, Tx, candidates, jobs, searches, searches::SearchRow};

/// What a search's owner asks of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Steering {
    /// What runs is finished, nothing new starts.
    Pause,
    /// Go on where it stood.
    Resume,
    /// End it; what runs is told to stop.
    Cancel,
}

/// Steers a search; asking for what is so already changes nothing.
///
/// # Errors
/// When there is no such search, or it cannot be done in its state.
pub async fn steer(store: &Store, id: SearchId, wish: Steering, now: DateTime<Utc>) -> Result<(), SearchError> {
    use SearchState::{Cancelled, Done, Eliminating, Failed, Paused, Profiling, Searching, Verifying};
    let mut tx = store.begin().await?;
    let search = searches::lock(tx.connection(), id)
        .await?
        .ok_or(SearchError::NotFound(id))?;
    let refuse = |wish| {
        Err(SearchError::WrongState {
            id,
            state: search.state,
            wish,
        })
    };
    match (wish, search.state) {
        (Steering::Pause, Profiling | Eliminating | Searching | Verifying) => {
            searches::transition(&mut tx, id, search.state, Paused, Some("paused by its owner"), now).await?;
        }
        (Steering::Resume, Paused) => {
            let back = search.paused_from.unwrap_or(Searching);
            searches::transition(&mut tx, id, Paused, back, None, now).await?;
            tx.wake_workers();
        }
        (Steering::Cancel, Profiling | Eliminating | Searching | Verifying | Paused) => {
            end(&mut tx, &search, Cancelled, "cancelled by its owner", now).await?;
        }
        (Steering::Pause, Paused)
        | (Steering::Resume, Profiling | Eliminating | Searching | Verifying)
        | (Steering::Cancel, Cancelled) => return Ok(()),
        (Steering::Pause, Done | Cancelled | Failed) => return refuse("only a running search can be paused"),
        (Steering::Resume, Done | Cancelled | Failed) => return refuse("only a paused search can be resumed"),
        (Steering::Cancel, Done | Failed) => return refuse("it has ended already"),
    }
    tx.commit(now).await?;
    Ok(())
}

/// Ends a search before its time, in state `to`; what runs is told to stop.
pub(super) async fn end(
    tx: &mut Tx,
    search: &SearchRow,
    to: SearchState,
    reason: &str,
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    searches::transition(tx, search.id, search.state, to, Some(reason), now).await?;
    for job in jobs::cancel_open(tx, search.id, now).await? {
        if let Some(job) = jobs::lock(tx, job).await? {
            tx.tell(search.id, views::job_event(&job, JobState::Cancelled));
        }
    }
    let rows = candidates::list(tx.connection(), search.id, None, None).await?;
    for row in rows.into_iter().filter(|row| row.state == CandidateState::Evaluating) {
        candidates::set_proposed(tx, row.id).await?;
        if let Some(row) = candidates::get(tx.connection(), row.id).await? {
            tx.tell(
                search.id,
                EventBody::Candidate {
                    candidate: Box::new(views::candidate(row, &[])),
                },
            );
        }
    }
    Ok(())
}
