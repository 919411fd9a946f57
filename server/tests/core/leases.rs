//! Who gets a job, who may report on it, and what becomes of it when nobody does.

use chrono::TimeDelta;
use protocol::{
    Figure, LeaseToken, Metrics,
    artifacts::{ArtifactRef, ArtifactRole},
    events::EventBody,
    jobs::{CurvePoint, DeviceSeconds, JobKind, JobState},
    leases::Heartbeat,
    searches::{CandidateState, SearchState},
};
use sqlx::PgPool;
use temponas_server::{
    MIGRATOR,
    dispatch::{self, DispatchError},
    search,
};

use crate::harness::{Harness, LEASE, NAMED, SECOND, SHAPES, done, evaluated, new_search};

fn beat(token: LeaseToken, progress: f64) -> Heartbeat {
    Heartbeat {
        lease_token: token,
        progress,
        status: None,
        curve: Vec::new(),
        checkpoint: None,
        device_seconds: DeviceSeconds::default(),
        log: None,
        metrics: Metrics::new(),
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn an_expired_lease_goes_to_the_next_worker_and_the_old_token_changes_nothing(pool: PgPool) {
    let t = Harness::new(pool);
    let (a, b) = (t.worker("a").await, t.worker("b").await);
    t.submit(&NAMED.replace("width = 4", "width = 1")).await;
    let first = t.claim(a).await.unwrap();
    assert!(t.claim(b).await.is_none(), "the only job is taken");
    t.pass(LEASE + SECOND);
    let second = t.claim(b).await.unwrap();
    assert_eq!((first.job_id, second.attempt), (second.job_id, 2));
    assert_ne!(first.lease_token, second.lease_token);
    let lost = t.report(&first, done(&first)).await;
    assert!(matches!(lost, Err(DispatchError::LeaseLost { .. })), "{lost:?}");
    let now = t.app.clock.now();
    let lost = dispatch::heartbeat(
        &t.app.store,
        t.rules(),
        first.job_id,
        &beat(first.lease_token, 0.5),
        now,
    )
    .await;
    assert!(matches!(lost, Err(DispatchError::LeaseLost { .. })), "{lost:?}");
    assert_eq!(t.job(first.job_id).await.progress, 0.0);
    t.report(&second, done(&second)).await.unwrap();
    let job = t.job(first.job_id).await;
    assert_eq!(job.state, JobState::Succeeded);
    assert!(
        job.attempts[0]
            .error
            .as_ref()
            .is_some_and(|error| error.contains("ran out"))
    );
    assert!(job.attempts[1].error.is_none() && job.attempts[1].ended_at.is_some());
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_late_result_of_the_holder_counts(pool: PgPool) {
    let t = Harness::new(pool);
    let worker = t.worker("a").await;
    let search = t.submit(NAMED).await;
    let job = t.claim(worker).await.unwrap();
    t.pass(LEASE * 10);
    t.finish(&job).await;
    assert_eq!(t.candidates(search).await[0].state, CandidateState::Evaluated);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn heartbeats_keep_a_lease_and_carry_curve_and_progress(pool: PgPool) {
    let t = Harness::new(pool);
    let (a, b) = (t.worker("a").await, t.worker("b").await);
    let search = t.submit(&NAMED.replace("width = 4", "width = 1")).await;
    let job = t.claim(a).await.unwrap();
    for step in 1..=5_u64 {
        t.pass(LEASE - SECOND);
        let point = CurvePoint {
            step,
            loss: 1.0 / step as f64,
        };
        let heartbeat = Heartbeat {
            curve: vec![point],
            ..beat(job.lease_token, step as f64 / 10.0)
        };
        let now = t.app.clock.now();
        let reply = dispatch::heartbeat(&t.app.store, t.rules(), job.job_id, &heartbeat, now)
            .await
            .unwrap();
        assert!(!reply.cancelled);
        assert!(t.claim(b).await.is_none());
    }
    assert_eq!(t.job(job.job_id).await.progress, 0.5);
    let curve = t.app.store.curve(t.candidates(search).await[0].id).await.unwrap();
    assert_eq!(
        curve.iter().map(|point| point.step).collect::<Vec<_>>(),
        [1, 2, 3, 4, 5]
    );
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn device_seconds_of_every_attempt_count_once_the_killed_ones_up_to_their_last_heartbeat(pool: PgPool) {
    let t = Harness::new(pool);
    let (a, b) = (t.worker("a").await, t.worker("b").await);
    // 23.5 seconds: less than all attempts together, more than the last.
    let space = NAMED.replace("width = 4", "width = 1\nmax_device_hours = 0.0065");
    let search = t.submit(&space).await;
    let trained = |train| DeviceSeconds {
        train,
        ..DeviceSeconds::default()
    };
    let killed = t.claim(a).await.unwrap();
    // The second heartbeat was sent before the first and comes after it.
    for train in [12.0, 9.0] {
        let heartbeat = Heartbeat {
            device_seconds: trained(train),
            ..beat(killed.lease_token, 0.5)
        };
        let now = t.app.clock.now();
        dispatch::heartbeat(&t.app.store, t.rules(), killed.job_id, &heartbeat, now)
            .await
            .unwrap();
    }
    t.pass(LEASE + SECOND);
    let failed = t.claim(b).await.unwrap();
    let report = protocol::leases::FailureReport {
        lease_token: failed.lease_token,
        error: "cannot".to_owned(),
        log: None,
        retry: true,
        released: false,
        device_seconds: trained(8.0),
    };
    dispatch::fail(&t.app.store, t.rules(), failed.job_id, &report, t.app.clock.now())
        .await
        .unwrap();
    t.pass(SECOND * 10);
    let last = t.claim(a).await.unwrap();
    assert_eq!(last.job_id, killed.job_id);
    t.finish(&last).await;

    let job = t.job(last.job_id).await;
    let totals: Vec<f64> = job
        .attempts
        .iter()
        .map(|attempt| attempt.device_seconds.total())
        .collect();
    assert_eq!(totals, [12.0, 8.0, 3.5]);
    assert_eq!(job.device_seconds.unwrap().train, 22.0);
    assert_eq!(t.candidates(search).await[0].device_seconds.unwrap().total(), 23.5);
    let figures = t.app.store.search_figures(search).await.unwrap();
    assert_eq!(figures.device_seconds.total(), 23.5);
    let ended = t.search(search).await;
    assert!(
        ended.state_reason.unwrap().contains("max_device_hours"),
        "{:?}",
        ended.state
    );
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn the_log_of_a_worker_that_vanished_is_the_last_that_a_heartbeat_brought(pool: PgPool) {
    let t = Harness::new(pool);
    let (a, b) = (t.worker("a").await, t.worker("b").await);
    t.submit(&NAMED.replace("width = 4", "width = 1")).await;
    let job = t.claim(a).await.unwrap();
    let long = "x".repeat(2 * dispatch::LOG_LIMIT) + "the last line\0";
    for log in [Some("training".to_owned()), Some(long), None] {
        let heartbeat = Heartbeat {
            log,
            ..beat(job.lease_token, 0.5)
        };
        let now = t.app.clock.now();
        dispatch::heartbeat(&t.app.store, t.rules(), job.job_id, &heartbeat, now)
            .await
            .unwrap();
    }
    t.pass(LEASE + SECOND);
    t.claim(b).await.unwrap();
    let attempt = &t.job(job.job_id).await.attempts[0];
    let log = attempt.log.as_ref().unwrap();
    assert!(log.ends_with("the last line\u{fffd}") && log.len() <= dispatch::LOG_LIMIT + 2);
    assert!(attempt.error.as_ref().unwrap().contains("ran out"));
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn figures_of_a_running_job_are_shown_told_and_begun_anew_with_the_next_attempt(pool: PgPool) {
    let t = Harness::new(pool);
    let (a, b) = (t.worker("a").await, t.worker("b").await);
    let search = t.submit(&NAMED.replace("width = 4", "width = 1")).await;
    let job = t.claim(a).await.unwrap();
    let figures = |pairs: &[(&str, f64)]| -> Metrics {
        let figure = |value| Figure {
            value,
            standard_error: 0.01,
        };
        pairs
            .iter()
            .map(|(name, value)| ((*name).to_owned(), figure(*value)))
            .collect()
    };
    let tell = async |metrics: Metrics| {
        let heartbeat = Heartbeat {
            metrics,
            ..beat(job.lease_token, 0.5)
        };
        dispatch::heartbeat(&t.app.store, t.rules(), job.job_id, &heartbeat, t.app.clock.now()).await
    };
    tell(figures(&[("train_loss", 0.5)])).await.unwrap();
    tell(figures(&[("train_loss", 0.25), ("quality", 0.6)])).await.unwrap();
    tell(figures(&[])).await.unwrap();
    let expected = figures(&[("train_loss", 0.25), ("quality", 0.6)]);
    assert_eq!(t.job(job.job_id).await.metrics, expected);
    let events = t.app.store.events_after(search, 0, 1000).await.unwrap();
    let told = events
        .into_iter()
        .any(|event| matches!(&event.body, EventBody::Job { metrics, .. } if *metrics == expected));
    assert!(told);

    let many: Vec<String> = (0..33).map(|i| format!("figure {i}")).collect();
    let many: Vec<(&str, f64)> = many.iter().map(|name| (name.as_str(), 1.0)).collect();
    for wrong in [figures(&many), figures(&[("x".repeat(101).as_str(), 1.0)])] {
        let refused = tell(wrong).await;
        assert!(
            matches!(refused, Err(DispatchError::Unacceptable { .. })),
            "{refused:?}"
        );
    }
    t.pass(LEASE + SECOND);
    t.claim(b).await.unwrap();
    assert!(t.job(job.job_id).await.metrics.is_empty());
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn the_next_attempt_goes_on_from_the_last_checkpoint(pool: PgPool) {
    let t = Harness::new(pool);
    let (a, b) = (t.worker("a").await, t.worker("b").await);
    t.submit(&NAMED.replace("width = 4", "width = 1")).await;
    let job = t.claim(a).await.unwrap();
    assert!(job.checkpoint.is_none());
    let checkpoint = ArtifactRef {
        role: ArtifactRole::Checkpoint,
        digest: t.upload(b"state at step 100").await,
        name: "checkpoint.safetensors".to_owned(),
        media_type: "application/octet-stream".to_owned(),
        bytes: 17,
    };
    let heartbeat = Heartbeat {
        checkpoint: Some(checkpoint.clone()),
        ..beat(job.lease_token, 0.5)
    };
    let now = t.app.clock.now();
    dispatch::heartbeat(&t.app.store, t.rules(), job.job_id, &heartbeat, now)
        .await
        .unwrap();
    t.pass(LEASE + SECOND);
    assert_eq!(t.claim(b).await.unwrap().checkpoint, Some(checkpoint));
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_checkpoint_that_was_not_uploaded_is_refused(pool: PgPool) {
    let t = Harness::new(pool);
    let worker = t.worker("a").await;
    t.submit(NAMED).await;
    let job = t.claim(worker).await.unwrap();
    let checkpoint = ArtifactRef {
        role: ArtifactRole::Checkpoint,
        digest: "a".repeat(64).parse().unwrap(),
        name: "checkpoint".to_owned(),
        media_type: "application/octet-stream".to_owned(),
        bytes: 1,
    };
    let heartbeat = Heartbeat {
        checkpoint: Some(checkpoint),
        ..beat(job.lease_token, 0.5)
    };
    let now = t.app.clock.now();
    let refused = dispatch::heartbeat(&t.app.store, t.rules(), job.job_id, &heartbeat, now).await;
    assert!(
        matches!(refused, Err(DispatchError::Unacceptable { .. })),
        "{refused:?}"
    );
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_released_attempt_does_not_count(pool: PgPool) {
    let t = Harness::new(pool);
    let worker = t.worker("a").await;
    let search = t.submit(&NAMED.replace("width = 4", "width = 1")).await;
    for _ in 0..2 * dispatch::MAX_ATTEMPTS {
        let job = t.claim(worker).await.unwrap();
        t.fail(&job, "told to stop", true, true).await;
        assert_eq!(t.candidates(search).await[0].state, CandidateState::Proposed);
    }
    let job = t.claim(worker).await.unwrap();
    t.finish(&job).await;
    assert_eq!(t.candidates(search).await[0].state, CandidateState::Evaluated);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn spent_attempts_fail_the_job_with_every_error_and_log_kept(pool: PgPool) {
    let t = Harness::new(pool);
    let worker = t.worker("a").await;
    let search = t.submit(&NAMED.replace("width = 4", "width = 1")).await;
    let mut id = None;
    for error in ["first", "second", "third"] {
        let job = t.claim(worker).await.unwrap();
        id = Some(job.job_id);
        t.fail(&job, error, true, false).await;
        assert!(
            error == "third" || t.claim(worker).await.is_none(),
            "it waits before it is tried again"
        );
        t.pass(TimeDelta::seconds(10));
    }
    let job = t.job(id.unwrap()).await;
    assert_eq!(job.state, JobState::Failed);
    let kept: Vec<_> = job
        .attempts
        .iter()
        .map(|a| (a.error.clone().unwrap(), a.log.clone().unwrap()))
        .collect();
    let text = |error: &str| (error.to_owned(), format!("log of {error}"));
    assert_eq!(kept, [text("first"), text("second"), text("third")]);
    let failed = &t.candidates(search).await[0];
    assert_eq!(failed.state, CandidateState::Failed);
    assert_eq!(
        failed.state_reason.as_deref(),
        Some("attempt 1: first; attempt 2: second; attempt 3: third")
    );
    assert_eq!(
        t.state(search).await,
        SearchState::Searching,
        "one failure does not end a search"
    );
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn an_error_that_no_retry_can_help_fails_at_once(pool: PgPool) {
    let t = Harness::new(pool);
    let worker = t.worker("a").await;
    let search = t.submit(NAMED).await;
    let job = t.claim(worker).await.unwrap();
    t.fail(&job, "no such dataset", false, false).await;
    assert_eq!(t.candidates(search).await[0].state, CandidateState::Failed);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn of_an_endless_error_the_beginning_is_kept(pool: PgPool) {
    let t = Harness::new(pool);
    let worker = t.worker("a").await;
    let search = t.submit(NAMED).await;
    let job = t.claim(worker).await.unwrap();
    t.fail(&job, &format!("no such file: {}", "é".repeat(1 << 20)), false, false)
        .await;
    let reason = t.candidates(search).await[0].state_reason.clone().unwrap();
    assert!(reason.contains("no such file"), "{}", &reason[..40]);
    assert!(reason.len() <= dispatch::ERROR_LIMIT + 20, "{} bytes", reason.len());
    let attempt = &t.job(job.job_id).await.attempts[0];
    assert!(attempt.log.as_ref().unwrap().len() <= dispatch::LOG_LIMIT);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn the_reaper_gives_up_jobs_whose_workers_vanished(pool: PgPool) {
    let t = Harness::new(pool);
    let worker = t.worker("a").await;
    let search = t.submit(&NAMED.replace("width = 4", "width = 1")).await;
    for _ in 0..dispatch::MAX_ATTEMPTS {
        assert!(
            dispatch::reap(&t.app.store, t.rules(), t.app.clock.now())
                .await
                .unwrap()
                .is_empty()
        );
        t.claim(worker).await.unwrap();
        t.pass(LEASE + SECOND);
    }
    assert!(t.claim(worker).await.is_none(), "its attempts are spent");
    assert_eq!(
        dispatch::reap(&t.app.store, t.rules(), t.app.clock.now())
            .await
            .unwrap(),
        [search]
    );
    let failed = &t.candidates(search).await[0];
    assert_eq!(failed.state, CandidateState::Failed);
    assert_eq!(
        failed
            .state_reason
            .as_ref()
            .unwrap()
            .matches("no heartbeat in time")
            .count(),
        3
    );
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_result_sent_again_changes_nothing_and_another_one_is_refused(pool: PgPool) {
    let t = Harness::new(pool);
    let worker = t.worker("a").await;
    let search = t.submit(NAMED).await;
    let job = t.claim(worker).await.unwrap();
    t.finish(&job).await;
    let before = (
        t.candidates(search).await.len(),
        t.app.store.last_event(search).await.unwrap(),
    );
    t.pass(LEASE);
    t.finish(&job).await;
    assert_eq!(
        (
            t.candidates(search).await.len(),
            t.app.store.last_event(search).await.unwrap()
        ),
        before
    );
    let figures = t.app.store.search_figures(search).await.unwrap();
    assert_eq!(
        (figures.evaluations, figures.device_seconds.total()),
        (1, 3.5),
        "nothing is counted twice"
    );
    let other = t.report(&job, evaluated("222")).await;
    assert!(matches!(other, Err(DispatchError::ResultDiffers(_))), "{other:?}");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn an_outcome_of_another_kind_is_refused_and_changes_nothing(pool: PgPool) {
    let t = Harness::new(pool);
    let worker = t.worker("a").await;
    t.submit(NAMED).await;
    let job = t.claim(worker).await.unwrap();
    let outcome = protocol::jobs::Outcome::Lookup(protocol::jobs::LookupOutcome {
        metrics: Default::default(),
    });
    let refused = t.report(&job, outcome).await;
    assert!(
        matches!(refused, Err(DispatchError::Unacceptable { .. })),
        "{refused:?}"
    );
    assert_eq!(t.job(job.job_id).await.state, JobState::Leased);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn searches_take_turns_and_priority_goes_first(pool: PgPool) {
    let t = Harness::new(pool);
    let worker = t.worker("a").await;
    let first = t.submit(NAMED).await;
    t.pass(SECOND);
    let second = t.submit(NAMED).await;
    let mut served = Vec::new();
    for _ in 0..4 {
        t.pass(SECOND);
        let job = t.claim(worker).await.unwrap();
        served.push(t.job(job.job_id).await.search_id.unwrap());
    }
    assert_eq!(
        served,
        [first, second, first, second],
        "the earlier search does not starve the later one"
    );
    let urgent = t
        .try_submit(&protocol::searches::NewSearch {
            priority: 5,
            ..new_search(NAMED)
        })
        .await
        .unwrap();
    for _ in 0..3 {
        let job = t.claim(worker).await.unwrap();
        assert_eq!(t.job(job.job_id).await.search_id, Some(urgent));
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn an_evaluation_goes_to_a_worker_that_brings_its_evaluator(pool: PgPool) {
    let t = Harness::new(pool);
    let evaluate = [JobKind::Evaluate];
    let stock = t.worker_with("x", &evaluate, &["built-in"]).await;
    let foreign = t.worker_with("y", &evaluate, &["own"]).await;
    let idle = t.worker_with("z", &evaluate, &[]).await;
    let named = t.submit(NAMED).await;
    assert!(t.claim(stock).await.is_none(), "nobody can train a named choice");
    assert!(t.claim(idle).await.is_none());
    let job = t.claim(foreign).await.unwrap();
    assert_eq!(t.job(job.job_id).await.search_id, Some(named));
    let profiler = t.worker_on("x", &[JobKind::Profile]).await;
    let shapes = protocol::searches::NewSearch {
        device: Some("x".to_owned()),
        ..new_search(SHAPES)
    };
    let shapes = t.try_submit(&shapes).await.unwrap();
    t.work_off(profiler).await;
    for _ in 0..2 {
        let job = t.claim(stock).await.unwrap();
        assert_eq!(t.job(job.job_id).await.search_id, Some(shapes));
        let job = t.claim(foreign).await.unwrap();
        assert_eq!(t.job(job.job_id).await.search_id, Some(named), "it waits for its own");
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn many_workers_at_once_never_share_a_job(pool: PgPool) {
    let t = Harness::new(pool);
    for _ in 0..3 {
        t.submit(NAMED).await;
    }
    let mut workers = Vec::new();
    for name in ["a", "b", "c", "d", "e", "f", "g", "h"] {
        workers.push(t.worker(name).await);
    }
    let claims = workers.iter().map(|worker| t.claim(*worker));
    let jobs = futures::future::join_all(claims).await;
    let mut ids: Vec<_> = jobs.into_iter().flatten().map(|job| job.job_id).collect();
    assert_eq!(ids.len(), 8);
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 8);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_profile_job_holds_its_device_alone(pool: PgPool) {
    let t = Harness::new(pool);
    let (profiler, trainer) = (t.worker_on("x", &[JobKind::Profile]).await, t.worker("x").await);
    let elsewhere = t.worker("y").await;
    let named = t.submit(NAMED).await;
    let training = t.claim(trainer).await.unwrap();
    let shapes = protocol::searches::NewSearch {
        device: Some("x".to_owned()),
        ..new_search(SHAPES)
    };
    let shapes = t.try_submit(&shapes).await.unwrap();
    assert!(t.claim(profiler).await.is_none(), "the device is in use");
    assert!(
        t.claim(trainer).await.is_none(),
        "a profile job waits: nothing else starts there"
    );
    assert!(t.claim(elsewhere).await.is_some(), "another device goes on");
    t.finish(&training).await;
    let profile = t.claim(profiler).await.unwrap();
    assert_eq!(t.job(profile.job_id).await.search_id, Some(shapes));
    assert!(t.claim(profiler).await.is_none(), "not even a second profile job");
    assert!(t.claim(trainer).await.is_none(), "the device is held");
    t.work_off(profiler).await;
    t.finish(&profile).await;
    t.work_off(profiler).await;
    assert_eq!(t.state(shapes).await, SearchState::Searching);
    let next = t.claim(trainer).await.unwrap();
    let searches = [named, shapes];
    assert!(searches.contains(&t.job(next.job_id).await.search_id.unwrap()));
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_profile_job_that_no_living_worker_takes_keeps_nobody_waiting(pool: PgPool) {
    let t = Harness::new(pool);
    let profiler = t.worker_on("x", &[JobKind::Profile]).await;
    t.try_submit(&protocol::searches::NewSearch {
        device: Some("x".to_owned()),
        ..new_search(SHAPES)
    })
    .await
    .unwrap();
    t.submit(NAMED).await;
    let trainer = t.worker("x").await;
    assert!(t.claim(trainer).await.is_none());
    t.pass(LEASE * 10);
    assert!(
        t.claim(trainer).await.is_some(),
        "the only profiler has not been heard of for long"
    );
    assert!(t.claim(profiler).await.is_none(), "and now it has to wait");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_worker_that_nobody_registered_gets_nothing(pool: PgPool) {
    let t = Harness::new(pool);
    let request = protocol::leases::LeaseRequest {
        worker_id: protocol::WorkerId::new(),
        wait_seconds: 0,
    };
    let app = &t.app;
    let refused = dispatch::lease(&app.store, &app.events, &app.clock, t.rules(), &request).await;
    assert!(matches!(refused, Err(DispatchError::UnknownWorker(_))), "{refused:?}");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_waiting_worker_is_woken_by_a_new_job(pool: PgPool) {
    let t = Harness::new(pool);
    let worker = t.worker("a").await;
    let request = protocol::leases::LeaseRequest {
        worker_id: worker,
        wait_seconds: 30,
    };
    let app = t.app.clone();
    let rules = t.rules();
    let waiting =
        tokio::spawn(async move { dispatch::lease(&app.store, &app.events, &app.clock, rules, &request).await });
    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    t.submit(NAMED).await;
    let job = tokio::time::timeout(std::time::Duration::from_secs(10), waiting)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    assert!(job.is_some());
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_worker_of_a_cancelled_job_is_told_at_its_next_heartbeat(pool: PgPool) {
    let t = Harness::new(pool);
    let worker = t.worker("a").await;
    let search = t.submit(NAMED).await;
    let job = t.claim(worker).await.unwrap();
    let now = t.app.clock.now();
    search::steer(&t.app.store, search, search::Steering::Cancel, now)
        .await
        .unwrap();
    let reply = dispatch::heartbeat(&t.app.store, t.rules(), job.job_id, &beat(job.lease_token, 0.5), now)
        .await
        .unwrap();
    assert!(reply.cancelled);
    let lost = t.report(&job, done(&job)).await;
    assert!(matches!(lost, Err(DispatchError::LeaseLost { .. })), "{lost:?}");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_log_that_cannot_be_stored_as_it_is_does_not_lose_the_failure(pool: PgPool) {
    let t = Harness::new(pool);
    let worker = t.worker("a").await;
    t.submit(NAMED).await;
    let job = t.claim(worker).await.unwrap();
    t.fail(&job, "binary \0 output", false, false).await;
    let kept = t.job(job.job_id).await;
    assert_eq!(
        (kept.state, kept.attempts[0].error.as_deref()),
        (JobState::Failed, Some("binary \u{fffd} output"))
    );
}
