//! Moving a search on.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use protocol::{SearchId, searches::SearchState};

use super::{
    SearchError,
    context::{Caches, Context},
    elimination, profiling, proposing, verification,
};
use crate::{
    app::App,
    artifacts::ArtifactStore,
    store::{
        Store, StoreError, Tx,
        searches::{self, SearchRow},
    },
};

/// What a move of a search works with. It has one connection and asks for no other: coordinators that hold one each
/// and wait for a second would wait for ever.
pub(super) struct Move<'a> {
    /// Its transaction, which holds the search's row.
    pub tx: &'a mut Tx,
    /// The search as it stands.
    pub search: &'a SearchRow,
    /// What never changes.
    pub caches: &'a Caches,
    /// Uploaded tables.
    pub artifacts: &'a ArtifactStore,
    /// Now.
    pub now: DateTime<Utc>,
}

impl Move<'_> {
    /// What never changes once the search is past elimination.
    pub(super) async fn context(&mut self) -> Result<Arc<Context>, SearchError> {
        self.caches
            .context(self.artifacts, self.tx.connection(), self.search)
            .await
    }

    /// Moves the search to another state.
    pub(super) async fn go(&mut self, to: SearchState, reason: Option<&str>) -> Result<(), StoreError> {
        let (id, from) = (self.search.id, self.search.state);
        searches::transition(self.tx, id, from, to, reason, self.now).await?;
        Ok(())
    }
}

/// Does all that can be done for a search now. Doing it again changes nothing; several coordinators may at once.
///
/// # Errors
/// When the store fails; the search is then as it was, and the next call goes on.
pub async fn advance(app: &App, id: SearchId) -> Result<(), SearchError> {
    while one_move(app, id).await? {}
    Ok(())
}

/// Advances every active search; what fails for one is logged and does not keep the others.
///
/// # Errors
/// When the list of searches cannot be read.
pub async fn advance_all(app: &App, store: &Store) -> Result<(), StoreError> {
    for id in store.active_searches().await? {
        if let Err(error) = advance(app, id).await {
            tracing::error!(search.id = %id, error = &error as &dyn std::error::Error, "a search could not be advanced");
        }
    }
    Ok(())
}

/// One move in one transaction under the search's row lock; true where another may follow at once.
async fn one_move(app: &App, id: SearchId) -> Result<bool, SearchError> {
    let now = app.clock.now();
    let mut tx = app.store.begin().await?;
    let search = searches::lock(tx.connection(), id)
        .await?
        .ok_or(SearchError::NotFound(id))?;
    let mut step = Move {
        tx: &mut tx,
        search: &search,
        caches: &app.searches,
        artifacts: &app.artifacts,
        now,
    };
    let again = match search.state {
        SearchState::Profiling => profiling::step(&mut step).await?,
        SearchState::Eliminating => elimination::step(&mut step).await?,
        SearchState::Searching => proposing::step(&mut step).await?,
        SearchState::Verifying => verification::step(&mut step).await?,
        SearchState::Paused => {
            finish_what_runs(&mut step).await?;
            false
        }
        SearchState::Done | SearchState::Cancelled | SearchState::Failed => false,
    };
    tx.commit(now).await?;
    Ok(again)
}

/// Shows the results of jobs that ran when the search was paused; nothing follows from them yet.
async fn finish_what_runs(step: &mut Move<'_>) -> Result<(), SearchError> {
    match step.search.paused_from {
        Some(SearchState::Searching) => {
            let context = step.context().await?;
            proposing::take_over(step, &context).await?;
        }
        Some(SearchState::Verifying) => {
            let context = step.context().await?;
            verification::take_over(step, &context).await?;
        }
        _ => {}
    }
    Ok(())
}
