//! Where moves run: on threads of their own, because a move is long pure work between short waits; and each for
//! itself, because a move that panics is a fault of this program and ends the search that met it, nothing else.

use std::{any::Any, future::Future};

use protocol::{SearchId, searches::SearchState};
use tokio::{runtime::Handle, sync::Semaphore, task::spawn_blocking};
use tracing::Instrument;

use super::{SearchError, steering};
use crate::{app::App, store::searches};

/// Moves at once. Each holds a thread; files are read and written on the same kind of threads.
static TURNS: Semaphore = Semaphore::const_new(64);

/// Runs moves of a search. Should they panic, the search is failed with what was said, and all is well for others.
///
/// # Errors
/// Those of the moves; or the store fails while the search is given up.
pub async fn contain(
    app: &App,
    id: SearchId,
    moves: impl Future<Output = Result<(), SearchError>> + Send + 'static,
) -> Result<(), SearchError> {
    // The turn goes with the thread: a caller that gives up does not stop it. Nobody closes the semaphore.
    let turn = TURNS.acquire().await.ok();
    let (runtime, moves) = (Handle::current(), moves.in_current_span());
    let ran = spawn_blocking(move || {
        let moved = runtime.block_on(moves);
        drop(turn);
        moved
    });
    match ran.await {
        Ok(moved) => moved,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => {
                let said = said(panic.as_ref());
                tracing::error!(search.id = %id, said, "a search met a fault of the coordinator and is given up");
                give_up(app, id, said).await
            }
            // The coordinator ends; the next one's sweep goes on.
            Err(_) => Ok(()),
        },
    }
}

async fn give_up(app: &App, id: SearchId, said: &str) -> Result<(), SearchError> {
    let now = app.clock.now();
    let mut tx = app.store.begin().await?;
    let search = searches::lock(tx.connection(), id)
        .await?
        .ok_or(SearchError::NotFound(id))?;
    let ended = matches!(
        search.state,
        SearchState::Done | SearchState::Cancelled | SearchState::Failed
    );
    if !ended {
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
