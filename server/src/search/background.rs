//! What the coordinator does by itself: looking at every running search now and then, giving up spent jobs,
//! looking candidates up in tables.

use std::{sync::Arc, time::Duration};

use tokio::task::JoinSet;

use super::{advance, advance_all, lookup};
use crate::{app::App, dispatch};

/// How often spent jobs are looked for.
const REAP_EVERY: Duration = Duration::from_secs(2);

/// Starts the coordinator's own tasks; they end when the answer is dropped.
#[must_use]
pub fn start(app: Arc<App>) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    tasks.spawn(sweep(Arc::clone(&app)));
    tasks.spawn(reap(Arc::clone(&app)));
    tasks.spawn(lookup::run(app));
    tasks
}

/// Advances every running search, at once and then now and again: a coordinator may have died between taking
/// a result and moving its search on.
async fn sweep(app: Arc<App>) {
    loop {
        if let Err(error) = advance_all(&app, &app.store).await {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "running searches could not be looked at"
            );
        }
        tokio::time::sleep(app.config.sweep).await;
    }
}

async fn reap(app: Arc<App>) {
    loop {
        tokio::time::sleep(REAP_EVERY.min(app.config.lease)).await;
        match dispatch::reap(&app.store, app.clock.now()).await {
            Ok(searches) => {
                for search in searches {
                    if let Err(error) = advance(&app, search).await {
                        tracing::error!(search.id = %search, error = &error as &dyn std::error::Error, "a search could not be advanced");
                    }
                }
            }
            Err(error) => tracing::warn!(
                error = &error as &dyn std::error::Error,
                "spent jobs could not be looked for"
            ),
        }
    }
}
