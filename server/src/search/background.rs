//! What the coordinator does by itself: looking at every running search now and then, giving up spent jobs,
//! looking candidates up in tables.

use std::{future::Future, sync::Arc, time::Duration};

use tokio::task::JoinSet;

use super::{advance, advance_all, lookup};
use crate::{
    app::App,
    deployments,
    dispatch::{self, Rules},
};

/// How often spent jobs are looked for.
const REAP_EVERY: Duration = Duration::from_secs(2);

/// How long a task that ended stays away.
const RESTART_AFTER: Duration = Duration::from_secs(1);

/// Starts the coordinator's own tasks; they end when the answer is dropped.
#[must_use]
pub fn start(app: Arc<App>) -> JoinSet<()> {
    let (swept, reaped) = (Arc::clone(&app), Arc::clone(&app));
    let mut tasks = JoinSet::new();
    tasks.spawn(keep_up("sweep", move || sweep(Arc::clone(&swept))));
    tasks.spawn(keep_up("reaper", move || reap(Arc::clone(&reaped))));
    tasks.spawn(keep_up("look-ups", move || lookup::run(Arc::clone(&app))));
    tasks
}

/// Runs a task that is never done; one that panics all the same is started again.
async fn keep_up<T>(name: &'static str, task: impl Fn() -> T)
where
    T: Future<Output = ()> + Send + 'static,
{
    loop {
        // A set, so that the task ends with whoever keeps it up.
        let mut running = JoinSet::new();
        running.spawn(task());
        if let Some(Err(error)) = running.join_next().await {
            tracing::error!(task = name, %error, "a task of the coordinator ended; it is started again");
        }
        tokio::time::sleep(RESTART_AFTER).await;
    }
}

/// Advances every running search and deployment, at once and then now and again: a coordinator may have died between
/// taking a result and moving on, and jobs that are given up belong to deployments too.
async fn sweep(app: Arc<App>) {
    loop {
        if let Err(error) = advance_all(&app, &app.store).await {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "running searches could not be looked at"
            );
        }
        if let Err(error) = deployments::advance_all(&app).await {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "running deployments could not be looked at"
            );
        }
        tokio::time::sleep(app.config.sweep).await;
    }
}

async fn reap(app: Arc<App>) {
    loop {
        tokio::time::sleep(REAP_EVERY.min(app.config.lease)).await;
        match dispatch::reap(&app.store, Rules::of(&app.config), app.clock.now()).await {
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test]
    async fn a_task_that_panics_is_started_again_and_ends_with_its_keeper() {
        let alive = Arc::new(AtomicU32::new(0));
        let starts = AtomicU32::new(0);
        let task = || {
            let (alive, first) = (Arc::clone(&alive), starts.fetch_add(1, Ordering::Relaxed) == 0);
            async move {
                assert!(!first, "as the test wants it");
                loop {
                    alive.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
        };
        let kept = tokio::time::timeout(RESTART_AFTER * 10, async {
            tokio::select! {
                () = keep_up("test", task) => {}
                () = async { while alive.load(Ordering::Relaxed) == 0 { tokio::time::sleep(Duration::from_millis(1)).await } } => {}
            }
        });
        kept.await.expect("it runs again");
        tokio::time::sleep(Duration::from_millis(50)).await;
        let then = alive.load(Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(alive.load(Ordering::Relaxed), then, "it was ended with its keeper");
    }
}
