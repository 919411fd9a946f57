//! Jobs that several workers do together.
//!
//! Each worker has a seat with a token of its own. While seats are free the job stays queued: what was given away is
//! only a promise, which ends when its worker is not heard of, or when the rest does not come in time. With the last
//! seat the job is leased under the token of rank 0, which alone reports. A rank that fails or falls silent ends the
//! attempt for all: their tokens are refused from then on.

use std::time::Duration;

use chrono::{DateTime, Utc};
use protocol::{
    JobId, SearchId,
    jobs::JobState,
    leases::{DoneReport, Meeting, RendezvousReply, RendezvousRequest},
};

use super::{
    DispatchError, Ending, LONGEST_WAIT_SECONDS, LOOK_AGAIN, Rules, at_fault, figures, holder::Holder, put_back,
};
use crate::{
    app::Clock,
    event_hub::{EventHub, Topic},
    store::{Store, StoreError, Tx, jobs, jobs::JobRow, seats},
};

/// Keeps a seat and waits, as long as the request says, until all of the gang are there and rank 0 has said where it
/// listens.
///
/// # Errors
/// When the seat is lost, the request does not fit its rank, or the store fails.
pub async fn rendezvous(
    store: &Store,
    hub: &EventHub,
    clock: &Clock,
    rules: Rules,
    id: JobId,
    request: &RendezvousRequest,
) -> Result<RendezvousReply, DispatchError> {
    let mut woken = hub.subscribe(Topic::Jobs);
    let wait = Duration::from_secs(request.wait_seconds.min(LONGEST_WAIT_SECONDS).into());
    let deadline = tokio::time::Instant::now() + wait;
    loop {
        woken.borrow_and_update();
        let now = clock.now();
        mend(store, rules, now).await?;
        let reply = meet(store, rules, id, request, now).await?;
        let left = deadline.saturating_duration_since(tokio::time::Instant::now());
        if reply.meeting.is_some() || left.is_zero() {
            return Ok(reply);
        }
        // Either way the next step is to look; that the hub is gone only means that nobody wakes us.
        let _ = tokio::time::timeout(left.min(LOOK_AGAIN), woken.changed()).await;
    }
}

/// Keeps a seat and looks whether the gang can meet.
async fn meet(
    store: &Store,
    rules: Rules,
    id: JobId,
    request: &RendezvousRequest,
    now: DateTime<Utc>,
) -> Result<RendezvousReply, DispatchError> {
    let expires_at = now + rules.lease;
    let mut tx = store.begin().await?;
    let job = jobs::lock(&mut tx, id).await?.ok_or(DispatchError::UnknownJob(id))?;
    let holder = Holder::of(&mut tx, &job, request.lease_token).await?;
    let Some(seat) = holder.seat() else {
        return Err(match holder {
            Holder::Alone => at_fault(
                id,
                "lease_token",
                "one worker does this job alone and has nobody to meet",
            ),
            _ => holder.refusal(&job),
        });
    };
    if (seat.rank == 0) != request.address.is_some() {
        let found = if seat.rank == 0 { "none" } else { "one" };
        let rank = seat.rank;
        let message = format!("found {found} of rank {rank}; rank 0 must say where its store listens, and no other");
        return Err(at_fault(id, "address", message));
    }
    let known = seats::store_address(&mut tx, id, seat.attempt).await?;
    let store_address = request.address.or(known);
    seats::renew(&mut tx, seat, expires_at, request.address).await?;
    if store_address != known {
        tx.wake_workers();
    }
    tx.commit(now).await?;
    store.hear_worker(seat.worker_id, now).await?;
    let is_complete = !matches!(holder, Holder::Waits(_));
    Ok(RendezvousReply {
        expires_at,
        meeting: store_address.filter(|_| is_complete).map(|store| Meeting {
            store,
            generation: format!("{id}/{}", seat.attempt),
        }),
    })
}

/// Ends the share of a rank other than 0; saying it again, or after the result of rank 0, is as good as the first time.
///
/// # Errors
/// When the seat is lost or rank 0's, or the store fails.
pub async fn done(store: &Store, id: JobId, report: &DoneReport, now: DateTime<Utc>) -> Result<(), DispatchError> {
    figures::require_seconds(id, "device_seconds", &report.device_seconds)?;
    let mut tx = store.begin().await?;
    let job = jobs::lock(&mut tx, id).await?.ok_or(DispatchError::UnknownJob(id))?;
    let seat = match seats::find(&mut tx, id, report.lease_token).await? {
        Some(seat) if job.state == JobState::Succeeded && seat.attempt == job.handovers => seat,
        _ => match Holder::of(&mut tx, &job, report.lease_token).await? {
            Holder::Other(seat) => seat,
            Holder::First(_) | Holder::Alone => {
                let message = "this is the token of the worker that reports a result; send that";
                return Err(at_fault(id, "lease_token", message));
            }
            holder @ (Holder::Waits(_) | Holder::Cancelled) => return Err(holder.refusal(&job)),
        },
    };
    seats::note(&mut tx, id, &seat, &report.device_seconds).await?;
    seats::finish(&mut tx, &seat, now).await?;
    tx.commit(now).await?;
    store.hear_worker(seat.worker_id, now).await?;
    Ok(())
}

/// Ends the attempt of every gang that has lost a worker, and frees the seats of workers that vanished or waited too
/// long for the rest; answers the searches of jobs that were given up.
///
/// # Errors
/// When the store fails; what was mended until then stays so.
pub(super) async fn mend(store: &Store, rules: Rules, now: DateTime<Utc>) -> Result<Vec<SearchId>, StoreError> {
    let overdue = now - rules.gather;
    let mut searches = Vec::new();
    loop {
        let mut tx = store.begin().await?;
        let Some(id) = seats::troubled(&mut tx, now, overdue).await? else {
            return Ok(searches);
        };
        let Some(job) = jobs::lock(&mut tx, id).await? else {
            return Ok(searches);
        };
        if job.state == JobState::Queued {
            free(&mut tx, rules, &job, now).await?;
        } else {
            let (lost, _) = seats::trouble(&mut tx, id, job.handovers, now, overdue).await?;
            let error = format!("lost {}: no heartbeat came in time", ranks(&lost));
            jobs::end_attempt(&mut tx, id, Some(&error), None, now).await?;
            let ending = Ending {
                retry: true,
                released: false,
            };
            put_back(&mut tx, rules, &job, ending, now).await?;
            searches.extend(job.search_id);
        }
        tx.commit(now).await?;
    }
}

/// Frees seats of a gang that is being gathered. One that waited too long gives way for a while, so that its workers
/// can take something else.
async fn free(tx: &mut Tx, rules: Rules, job: &JobRow, now: DateTime<Utc>) -> Result<(), StoreError> {
    let attempt = job.handovers + 1;
    let (_, is_overdue) = seats::trouble(tx, job.id, attempt, now, now - rules.gather).await?;
    if is_overdue {
        seats::free_some(tx, job.id, attempt, None).await?;
        jobs::put_off(tx, job.id, now + rules.lease).await
    } else {
        seats::free_some(tx, job.id, attempt, Some(now)).await
    }
}

fn ranks(lost: &[i32]) -> String {
    let numbers: Vec<String> = lost.iter().map(ToString::to_string).collect();
    let noun = if lost.len() == 1 { "rank" } else { "ranks" };
    format!("{noun} {}", numbers.join(", "))
}
