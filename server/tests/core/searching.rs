//! Proposals, fronts and ends of searches, whatever the order in which results come.

use std::collections::BTreeMap;

use protocol::{
    events::EventBody,
    jobs::JobState,
    searches::{CandidateState, NewSearch, SearchState},
};
use sqlx::PgPool;
use temponas_server::{MIGRATOR, search};

use crate::harness::{Harness, NAMED, new_search};

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_search_goes_from_submission_to_its_front(pool: PgPool) {
    let t = Harness::new(pool);
    let worker = t.worker("a").await;
    let id = t.submit(NAMED).await;
    assert_eq!(t.work_off(worker).await, 20);
    let search = t.search(id).await;
    assert_eq!(search.state, SearchState::Done);
    assert!(search.state_reason.unwrap().contains("max_evaluations"));
    let view = search::front(&t.app, id).await.unwrap();
    assert!(view.points.len() >= 3, "{}", view.points.len());
    let qualities: Vec<f64> = view.points.iter().map(|point| point.metrics["quality"].value).collect();
    assert!(qualities.is_sorted_by(|a, b| a >= b), "best quality first");
    assert_eq!(view.history.len(), 20);
    assert!(
        view.history.is_sorted_by(|a, b| a.hypervolume <= b.hypervolume),
        "hypervolume never shrinks"
    );
    let figures = t.app.store.search_figures(id).await.unwrap();
    assert_eq!((figures.evaluations, figures.device_seconds.train), (20, 40.0));
    assert_eq!(figures.front_points, view.points.len() as u64);
    let on_front = t
        .candidates(id)
        .await
        .into_iter()
        .filter(|candidate| candidate.on_front)
        .count();
    assert_eq!(on_front, view.points.len());
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn the_order_in_which_results_come_does_not_change_the_proposals(pool: PgPool) {
    let t = Harness::new(pool);
    let straight = t.submit(NAMED).await;
    let worker = t.worker("a").await;
    t.work_off(worker).await;
    let shuffled = t.submit(NAMED).await;
    let workers = [
        t.worker("b").await,
        t.worker("c").await,
        t.worker("d").await,
        t.worker("e").await,
    ];
    let mut held = Vec::new();
    let mut round = 0_usize;
    while t.state(shuffled).await == SearchState::Searching {
        for worker in workers {
            held.extend(t.claim(worker).await);
        }
        // Some middle one first, another each time, so that results overtake each other.
        round += 1;
        let next = (round * 7) % held.len();
        let job = held.swap_remove(next);
        t.finish(&job).await;
    }
    let other_seed = t
        .try_submit(&NewSearch {
            seed: Some(2),
            ..new_search(NAMED)
        })
        .await
        .unwrap();
    t.work_off(worker).await;
    let expected = t.architectures(straight).await;
    assert_eq!(expected.len(), 20);
    assert_eq!(t.architectures(shuffled).await, expected);
    assert_ne!(t.architectures(other_seed).await, expected, "the seed matters");
    let fronts = (
        search::front(&t.app, straight).await.unwrap(),
        search::front(&t.app, shuffled).await.unwrap(),
    );
    let points = |front: &protocol::searches::FrontView| {
        front
            .points
            .iter()
            .map(|p| (p.number, p.metrics.clone()))
            .collect::<Vec<_>>()
    };
    assert_eq!(points(&fronts.0), points(&fronts.1));
    let volumes = |front: &protocol::searches::FrontView| {
        front
            .history
            .iter()
            .map(|p| (p.evaluations, p.hypervolume.to_bits()))
            .collect::<Vec<_>>()
    };
    assert_eq!(volumes(&fronts.0), volumes(&fronts.1), "to the last bit");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn two_coordinators_at_once_insert_each_proposal_once(pool: PgPool) {
    let t = Harness::new(pool);
    let other = t.another();
    let worker = t.worker("a").await;
    let id = t.submit(NAMED).await;
    while let Some(job) = t.claim(worker).await {
        t.report(&job, crate::harness::done(&job)).await.unwrap();
        let moves = (0..8).map(|i| {
            let app = if i % 2 == 0 { t.app.clone() } else { other.app.clone() };
            tokio::spawn(async move { search::advance(&app, id).await })
        });
        for moved in futures::future::join_all(moves).await {
            moved.unwrap().unwrap();
        }
    }
    assert_eq!(t.state(id).await, SearchState::Done);
    let candidates = t.candidates(id).await;
    assert_eq!(candidates.len(), 20);
    assert!(
        candidates
            .iter()
            .enumerate()
            .all(|(i, candidate)| candidate.number == i as u64)
    );
    assert_eq!(t.jobs(id).await.len(), 20);
    assert_eq!(t.app.store.history(id).await.unwrap().len(), 20);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn what_was_left_undone_after_a_result_is_made_up_for(pool: PgPool) {
    let t = Harness::new(pool);
    let worker = t.worker("a").await;
    let id = t.submit(&NAMED.replace("width = 4", "width = 1")).await;
    let job = t.claim(worker).await.unwrap();
    t.report(&job, crate::harness::done(&job)).await.unwrap();
    // The coordinator dies here: the result counts, the search has not moved.
    assert_eq!(t.candidates(id).await.len(), 1);
    assert!(t.claim(worker).await.is_none());
    let restarted = t.another();
    search::advance_all(&restarted.app, &restarted.app.store).await.unwrap();
    assert_eq!(t.candidates(id).await.len(), 2);
    assert!(t.claim(worker).await.is_some());
    let figures = t.app.store.search_figures(id).await.unwrap();
    assert_eq!(figures.evaluations, 1, "nothing is counted twice, nothing is lost");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn advancing_again_changes_nothing(pool: PgPool) {
    let t = Harness::new(pool);
    let worker = t.worker("a").await;
    let id = t.submit(NAMED).await;
    let job = t.claim(worker).await.unwrap();
    t.finish(&job).await;
    let before = t.app.store.last_event(id).await.unwrap();
    for _ in 0..5 {
        search::advance(&t.another().app, id).await.unwrap();
    }
    assert_eq!(t.app.store.last_event(id).await.unwrap(), before);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn events_are_numbered_without_gaps_and_tell_the_whole_search(pool: PgPool) {
    let t = Harness::new(pool);
    let worker = t.worker("a").await;
    let id = t.submit(NAMED).await;
    t.work_off(worker).await;
    let events = t.app.store.events_after(id, 0, 10_000).await.unwrap();
    assert!(
        events
            .iter()
            .enumerate()
            .all(|(i, event)| event.sequence == i as i64 + 1)
    );
    let mut states = Vec::new();
    let mut evaluated = 0;
    let mut jobs = BTreeMap::new();
    let mut last_front = 0;
    for event in events {
        match event.body {
            EventBody::SearchState { state, .. } => states.push(state),
            EventBody::Candidate { candidate } if candidate.state == CandidateState::Evaluated => evaluated += 1,
            EventBody::Candidate { .. } => {}
            EventBody::Job { job_id, state, .. } => drop(jobs.insert(job_id, state)),
            EventBody::Front { points, .. } => last_front = points.len(),
        }
    }
    use SearchState::{Done, Eliminating, Profiling, Searching};
    assert_eq!(states, [Profiling, Eliminating, Searching, Done]);
    assert_eq!((evaluated, jobs.len()), (20, 20));
    assert!(jobs.values().all(|state| *state == JobState::Succeeded));
    assert_eq!(last_front, search::front(&t.app, id).await.unwrap().points.len());
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_reader_of_events_never_sees_a_later_one_before_an_earlier_one(pool: PgPool) {
    let t = Harness::new(pool);
    let id = t.submit(NAMED).await;
    let mut workers = Vec::new();
    for name in ["a", "b", "c", "d"] {
        workers.push(t.worker(name).await);
    }
    let app = t.app.clone();
    let reader = tokio::spawn(async move {
        let mut last = 0;
        loop {
            for event in app.store.events_after(id, last, 100).await.unwrap() {
                assert_eq!(event.sequence, last + 1, "no event was skipped");
                last = event.sequence;
            }
            if app.store.search(id).await.unwrap().unwrap().state == SearchState::Done {
                return;
            }
        }
    });
    futures::future::join_all(workers.into_iter().map(|worker| t.work_off_until_done(id, worker))).await;
    reader.await.unwrap();
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_stalled_search_ends_by_itself(pool: PgPool) {
    let t = Harness::new(pool);
    let worker = t.worker("a").await;
    let space = NAMED.replace("max_evaluations = 20", "max_evaluations = 27\nstall_evaluations = 3");
    let id = t.submit(&space).await;
    let evaluations = t.work_off(worker).await;
    let search = t.search(id).await;
    assert_eq!(search.state, SearchState::Done);
    assert!(search.state_reason.unwrap().contains("stall_evaluations"));
    assert!(evaluations < 27, "{evaluations}");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_search_ends_when_its_device_hours_are_spent(pool: PgPool) {
    let t = Harness::new(pool);
    let worker = t.worker("a").await;
    // Each evaluation holds its device for 3.5 seconds.
    let space = NAMED.replace("max_evaluations = 20", "max_evaluations = 20\nmax_device_hours = 0.005");
    let id = t.submit(&space).await;
    t.work_off(worker).await;
    let search = t.search(id).await;
    assert!(search.state_reason.unwrap().contains("max_device_hours"));
    let spent = t.app.store.search_figures(id).await.unwrap().device_seconds.total();
    assert!((18.0..18.0 + 4.0 * 3.5 + 3.5).contains(&spent), "{spent}");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_search_without_any_result_fails_and_says_why(pool: PgPool) {
    let t = Harness::new(pool);
    let worker = t.worker("a").await;
    let id = t
        .submit(&NAMED.replace("max_evaluations = 20", "max_evaluations = 4"))
        .await;
    while let Some(job) = t.claim(worker).await {
        t.fail(&job, "no dataset here", false, false).await;
    }
    let search = t.search(id).await;
    assert_eq!(search.state, SearchState::Failed);
    assert!(search.state_reason.unwrap().contains("no dataset here"));
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_recommendation_names_the_best_within_limits_and_what_to_try(pool: PgPool) {
    let t = Harness::new(pool);
    let worker = t.worker("a").await;
    let id = t
        .submit(&NAMED.replace("max_evaluations = 20", "max_evaluations = 8"))
        .await;
    t.work_off(worker).await;
    let recommendation = search::recommend(&t.app, id, search::Within::default()).await.unwrap();
    let best = t
        .candidates(id)
        .await
        .into_iter()
        .map(|c| c.measured["quality"].value)
        .fold(0.0, f64::max);
    assert_eq!(recommendation.best.unwrap().metrics["quality"].value, best);
    assert_eq!(recommendation.budget.evaluations, 8);
    let tried = t.architectures(id).await;
    assert!(!recommendation.next_actions.is_empty());
    assert!(
        recommendation
            .next_actions
            .iter()
            .all(|action| !tried.contains(&action.architecture))
    );
    let gains = recommendation
        .next_actions
        .iter()
        .map(|action| action.expected_gain.value);
    assert!(gains.is_sorted_by(|a, b| a >= b), "most promising first");
    let within = search::Within {
        latency_ms: Some(20.0),
        ..search::Within::default()
    };
    let Err(search::SearchError::Invalid { field, message }) = search::recommend(&t.app, id, within).await else {
        panic!("nothing in the search has a latency")
    };
    assert_eq!(field, "latency_ms");
    assert!(message.contains("quality, size"), "{message}");
}
