//! Pausing, resuming and cancelling.

use protocol::{
    SearchId,
    jobs::JobState,
    searches::{CandidateState, SearchState},
};
use sqlx::PgPool;
use temponas_server::{
    MIGRATOR,
    search::{self, SearchError, Steering},
};

use crate::harness::{Harness, NAMED};

async fn steer(t: &Harness, id: SearchId, wish: Steering) -> Result<(), SearchError> {
    search::steer(&t.app.store, id, wish, t.app.clock.now()).await?;
    search::advance(&t.app, id).await
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_paused_search_finishes_what_runs_and_starts_nothing_new(pool: PgPool) {
    let t = Harness::new(pool);
    let worker = t.worker("a").await;
    let id = t.submit(NAMED).await;
    let job = t.claim(worker).await.unwrap();
    steer(&t, id, Steering::Pause).await.unwrap();
    assert!(t.claim(worker).await.is_none());
    t.finish(&job).await;
    assert_eq!(
        t.candidates(id).await[0].state,
        CandidateState::Evaluated,
        "its result counts"
    );
    assert_eq!(t.candidates(id).await.len(), 4, "nothing new is proposed");
    let search = t.search(id).await;
    assert_eq!(
        (search.state, search.paused_from),
        (SearchState::Paused, Some(SearchState::Searching))
    );
    steer(&t, id, Steering::Resume).await.unwrap();
    assert_eq!(t.candidates(id).await.len(), 5, "the result is made use of");
    t.work_off(worker).await;
    assert_eq!(t.state(id).await, SearchState::Done);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn results_that_come_in_a_pause_are_shown_on_the_front(pool: PgPool) {
    let t = Harness::new(pool);
    let worker = t.worker("a").await;
    let id = t.submit(NAMED).await;
    let mut running = Vec::new();
    while let Some(job) = t.claim(worker).await {
        running.push(job);
    }
    steer(&t, id, Steering::Pause).await.unwrap();
    t.finish(&running[0]).await;
    let shown = search::front(&t.app, id).await.unwrap();
    assert_eq!(shown.points.len(), 1, "the first result is the front");
    assert_eq!(shown.history.len(), 1);
    // A coordinator that dies after it has taken a result leaves the rest to the sweep.
    for job in &running[1..] {
        t.report(job, crate::harness::done(job)).await.unwrap();
    }
    search::advance_all(&t.another().app, &t.app.store).await.unwrap();
    let shown = search::front(&t.app, id).await.unwrap();
    assert_eq!(shown.history.len(), running.len());
    let figures = t.app.store.search_figures(id).await.unwrap();
    assert!(figures.hypervolume.unwrap() > 0.0);
    assert_eq!(figures.front_points, shown.points.len() as u64);
    assert_eq!(t.state(id).await, SearchState::Paused);
    assert_eq!(t.candidates(id).await.len(), running.len(), "nothing new is proposed");

    steer(&t, id, Steering::Resume).await.unwrap();
    t.work_off(worker).await;
    let straight = t.submit(NAMED).await;
    t.work_off(worker).await;
    assert_eq!(t.architectures(id).await, t.architectures(straight).await);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_pause_does_not_change_what_is_found(pool: PgPool) {
    let t = Harness::new(pool);
    let worker = t.worker("a").await;
    let straight = t.submit(NAMED).await;
    t.work_off(worker).await;
    let paused = t.submit(NAMED).await;
    for _ in 0..5 {
        let job = t.claim(worker).await.unwrap();
        steer(&t, paused, Steering::Pause).await.unwrap();
        t.finish(&job).await;
        steer(&t, paused, Steering::Resume).await.unwrap();
    }
    t.work_off(worker).await;
    assert_eq!(t.architectures(paused).await, t.architectures(straight).await);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_cancelled_search_ends_with_its_jobs(pool: PgPool) {
    let t = Harness::new(pool);
    let worker = t.worker("a").await;
    let id = t.submit(NAMED).await;
    t.claim(worker).await.unwrap();
    steer(&t, id, Steering::Cancel).await.unwrap();
    assert_eq!(t.state(id).await, SearchState::Cancelled);
    assert!(t.jobs(id).await.iter().all(|job| job.state == JobState::Cancelled));
    assert!(t.claim(worker).await.is_none());
    assert_eq!(t.app.store.search_figures(id).await.unwrap().evaluations, 0);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn steering_twice_is_once_and_an_ended_search_refuses(pool: PgPool) {
    let t = Harness::new(pool);
    let id = t.submit(NAMED).await;
    for wish in [
        Steering::Pause,
        Steering::Pause,
        Steering::Resume,
        Steering::Resume,
        Steering::Pause,
    ] {
        steer(&t, id, wish).await.unwrap();
    }
    steer(&t, id, Steering::Cancel).await.unwrap();
    steer(&t, id, Steering::Cancel).await.unwrap();
    for wish in [Steering::Pause, Steering::Resume] {
        let refused = steer(&t, id, wish).await.unwrap_err();
        assert!(
            matches!(
                refused,
                SearchError::WrongState {
                    state: SearchState::Cancelled,
                    ..
                }
            ),
            "{refused}"
        );
    }
    let unknown = steer(&t, SearchId::new(), Steering::Pause).await.unwrap_err();
    assert!(matches!(unknown, SearchError::NotFound(_)), "{unknown}");
}
