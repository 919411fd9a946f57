//! A move that panics is a fault of this program. It ends the search that met it and nothing else.

use std::{any::Any, future::Future, panic::AssertUnwindSafe};

use futures::FutureExt;
use protocol::{SearchId, searches::SearchState};

use super::{SearchError, steering};
use crate::{app::App, store::searches};

/// Runs moves of a search. Should they panic, the search is failed with what was said, and all is well for others.
///
/// # Errors
/// Those of the moves; or the store fails while the search is given up.
pub async fn contain(
    app: &App,
    id: SearchId,
    moves: impl Future<Output = Result<(), SearchError>>,
) -> Result<(), SearchError> {
    // What a move holds is its transaction, which rolls back, and caches, which are written whole or not at all.
    match AssertUnwindSafe(moves).catch_unwind().await {
        Ok(moved) => moved,
        Err(panic) => {
            let said = said(panic.as_ref());
            tracing::error!(search.id = %id, said, "a search met a fault of the coordinator and is given up");
            give_up(app, id, said).await
        }
    }
}

async fn give_up(app: &App, id: SearchId, said: &str) -> Result<(), SearchError> {
    let now = app.clock.now();
    let mut tx = app.store.begin().await?;
    let search = searches::lock(tx.connection(), id)
        .await?
        .ok_or(SearchError::NotFound(id))?;
    if !matches!(
        search.state,
        SearchState::Done | SearchState::Cancelled | SearchState::Failed
    ) {
        let reason = format!("a fault of the coordinator, please report it: {said}");
        steering::end(&mut tx, &search, SearchState::Failed, &reason, now).await?;
        tx.commit(now).await?;
    }
    Ok(())
}

/// The message of a panic.
fn said(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("it gave no message")
}
