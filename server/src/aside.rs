//! Long pure work, beside the threads that answer requests.

use std::panic::resume_unwind;

/// Runs work that may take more than some milliseconds on a thread of its own. Should it panic, so does the caller.
pub(crate) async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => resume_unwind(panic),
            // Work that was begun is never cancelled; what waited when the runtime ended has nobody to answer.
            Err(_) => std::future::pending().await,
        },
    }
}
