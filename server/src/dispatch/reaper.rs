//! Giving up jobs whose last lease ran out, and ending attempts of gangs that lost a worker. All others come back by
//! themselves: an expired lease is claimable.

use chrono::{DateTime, Utc};
use protocol::SearchId;

use super::{Rules, gangs, give_up};
use crate::store::{Store, StoreError, jobs, seats};

/// Gives every worker one lease more to be heard of. For a coordinator that starts: how long there was none, nobody
/// could renew.
///
/// # Errors
/// When the store fails.
pub async fn wait_anew(store: &Store, rules: Rules, now: DateTime<Utc>) -> Result<(), StoreError> {
    let mut tx = store.begin().await?;
    seats::extend_all(&mut tx, now + rules.lease).await?;
    tx.commit(now).await?;
    Ok(())
}

/// Gives up every job whose attempts are spent and whose lease has run out, and mends gangs; answers the searches of
/// what was given up.
///
/// # Errors
/// When the store fails; what was given up until then stays so.
pub async fn reap(store: &Store, rules: Rules, now: DateTime<Utc>) -> Result<Vec<SearchId>, StoreError> {
    let mut searches = gangs::mend(store, rules, now).await?;
    loop {
        let mut tx = store.begin().await?;
        let Some(id) = jobs::spent(&mut tx, now).await? else {
            return Ok(searches);
        };
        let Some(job) = jobs::lock(&mut tx, id).await? else {
            return Ok(searches);
        };
        jobs::end_attempt(
            &mut tx,
            id,
            Some("the lease ran out: its worker sent no heartbeat in time"),
            None,
            now,
        )
        .await?;
        give_up(&mut tx, &job, now).await?;
        tx.commit(now).await?;
        searches.extend(job.search_id);
    }
}
