//! From a device without a table to verified finalists.

use protocol::{
    jobs::{JobInput, JobKind, JobState, Outcome, ProfileOutcome},
    luts::{BlockSet, EntryOutcome, ProfileRequest},
    searches::{CandidateState, NewSearch, SearchState},
};
use sqlx::PgPool;
use temponas_server::{MIGRATOR, search, store::luts::LutFilter};

use crate::harness::{Harness, LEASE, SECOND, SHAPES, done, new_search};

fn on(device: &str, space: &str) -> NewSearch {
    NewSearch {
        device: Some(device.to_owned()),
        ..new_search(space)
    }
}

/// Every kind of job that has to do with a device.
const ALL: [JobKind; 3] = [JobKind::Profile, JobKind::Evaluate, JobKind::Verify];

fn full_attention_does_not_fit(outcome: Outcome) -> Outcome {
    let Outcome::Profile(ProfileOutcome { runtime, mut entries }) = outcome else {
        return outcome;
    };
    for entry in &mut entries {
        if entry.block.operator == "self_attention3d" && entry.block.shape.get("h") == Some(&8) {
            entry.outcome = EntryOutcome::OutOfMemory {
                detail: "tried to allocate 9 GiB".to_owned(),
            };
        }
    }
    Outcome::Profile(ProfileOutcome { runtime, entries })
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_search_goes_from_an_empty_table_to_verified_finalists(pool: PgPool) {
    let t = Harness::new(pool);
    let worker = t.worker_on("x", &ALL).await;
    let id = t.try_submit(&on("x", SHAPES)).await.unwrap();
    assert_eq!(t.state(id).await, SearchState::Profiling);
    assert!(t.jobs(id).await.len() > 1, "in batches");
    while t.state(id).await == SearchState::Profiling {
        let job = t.claim(worker).await.unwrap();
        let search = t.report(&job, full_attention_does_not_fit(done(&job))).await.unwrap();
        search::advance(&t.app, search).await.unwrap();
    }
    let elimination = t.search(id).await.elimination.unwrap().0;
    assert!(!elimination.removed.is_empty());
    assert!(
        elimination
            .removed
            .iter()
            .all(|gone| gone.choice.contains("attention") || gone.choice.contains("Attention"))
    );
    assert!(
        elimination.removed.iter().all(|gone| gone.reason.contains("9 GiB")),
        "{elimination:?}"
    );
    assert_ne!(elimination.architectures_before, elimination.architectures_after);
    let references: Vec<_> = t
        .candidates(id)
        .await
        .into_iter()
        .filter(|c| c.reference.is_some())
        .collect();
    assert_eq!(references.len(), 4);
    let infeasible: Vec<_> = references
        .iter()
        .filter(|c| c.state == CandidateState::Infeasible)
        .collect();
    assert_eq!(infeasible.len(), 1, "full attention everywhere");
    assert!(infeasible[0].state_reason.as_ref().unwrap().contains("out of memory"));
    t.work_off(worker).await;
    let search = t.search(id).await;
    assert_eq!(search.state, SearchState::Done, "{:?}", search.state_reason);
    let candidates = t.candidates(id).await;
    let gone = |c: &protocol::searches::CandidateView| {
        c.reference.is_none()
            && elimination.removed.iter().any(|gone| {
                c.layers
                    .iter()
                    .any(|l| l.position == gone.position && l.choice == gone.choice)
            })
    };
    assert!(!candidates.iter().any(gone), "what was eliminated is not proposed");
    let verified: Vec<_> = candidates.iter().filter(|c| !c.verified.is_empty()).collect();
    assert_eq!(
        verified.len(),
        3,
        "as many finalists as asked for, all within the limits"
    );
    let whole_front = candidates.iter().filter(|c| c.on_front).all(|c| !c.verified.is_empty());
    assert!(whole_front || verified.iter().all(|c| c.on_front), "the front first");
    let calibration = search.calibration.unwrap().0;
    assert_eq!(calibration.iter().map(|c| c.architectures).collect::<Vec<_>>(), [3, 3]);
    let front = search::front(&t.app, id).await.unwrap();
    let point = front.points.iter().find(|point| !point.verified.is_empty()).unwrap();
    assert_eq!(point.verified_within_limits, Some(true));
    assert!(point.calibrated.contains_key("latency_ms") && point.metrics.contains_key("latency_ms"));
    let recommendation = search::recommend(&t.app, id, search::Within::default()).await.unwrap();
    assert!(
        !recommendation.best.unwrap().verified.is_empty(),
        "the recommendation rests on a measurement"
    );
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn finalists_that_truly_break_a_limit_make_room_for_others(pool: PgPool) {
    let t = Harness::new(pool);
    let worker = t.worker_on("x", &ALL).await;
    let id = t.try_submit(&on("x", SHAPES)).await.unwrap();
    let mut refused = 0;
    while let Some(job) = t.claim(worker).await {
        let mut outcome = done(&job);
        if let Outcome::Verify(verify) = &mut outcome
            && refused < 2
        {
            refused += 1;
            verify.metrics.get_mut("peak_memory_bytes").unwrap().value = 1e12;
        }
        let search = t.report(&job, outcome).await.unwrap();
        search::advance(&t.app, search).await.unwrap();
    }
    let search = t.search(id).await;
    assert_eq!(search.state, SearchState::Done);
    let reason = search.state_reason.unwrap();
    assert!(reason.contains("3 of 5 measured finalists"), "{reason}");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_finalist_that_the_device_cannot_hold_keeps_no_limit_and_makes_room_for_another(pool: PgPool) {
    let t = Harness::new(pool);
    let worker = t.worker_on("x", &ALL).await;
    let id = t.try_submit(&on("x", SHAPES)).await.unwrap();
    let mut too_large = None;
    while let Some(job) = t.claim(worker).await {
        let mut outcome = done(&job);
        if let (JobInput::Verify(input), Outcome::Verify(verify)) = (&job.input, &mut outcome)
            && too_large.is_none()
        {
            too_large = Some(input.candidate_id);
            verify.metrics.clear();
            verify.latency_ms_samples.clear();
            verify.out_of_memory = Some("5000000 bytes asked for, 1000000 allowed".to_owned());
        }
        let search = t.report(&job, outcome).await.unwrap();
        search::advance(&t.app, search).await.unwrap();
    }
    let too_large = too_large.unwrap();
    let reason = t.search(id).await.state_reason.unwrap();
    assert!(reason.contains("3 of 4 measured finalists"), "{reason}");
    let asked: Vec<_> = t
        .jobs(id)
        .await
        .into_iter()
        .filter(|job| job.candidate_id == Some(too_large))
        .collect();
    assert!(asked.iter().all(|job| job.attempts.len() == 1), "it is not tried again");
    let candidates = t.candidates(id).await;
    let candidate = candidates.iter().find(|candidate| candidate.id == too_large).unwrap();
    assert!(candidate.out_of_memory.as_ref().unwrap().contains("1000000 allowed"));
    let front = search::front(&t.app, id).await.unwrap();
    let point = front.points.iter().find(|point| point.candidate_id == too_large);
    assert_eq!(
        point.and_then(|point| point.verified_within_limits),
        Some(false),
        "the front's first was measured first"
    );
    let recommended = search::recommend(&t.app, id, search::Within::default()).await.unwrap();
    let recommended = [recommended.best, recommended.best_unverified];
    assert!(
        recommended
            .iter()
            .flatten()
            .all(|point| point.candidate_id != too_large)
    );
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_device_that_is_known_is_not_measured_again_and_later_samples_change_no_running_search(pool: PgPool) {
    let t = Harness::new(pool);
    let worker = t.worker_on("x", &ALL).await;
    let first = t.try_submit(&on("x", SHAPES)).await.unwrap();
    t.work_off(worker).await;
    let second = t.try_submit(&on("x", SHAPES)).await.unwrap();
    assert!(t.jobs(second).await.iter().all(|job| job.kind != JobKind::Profile));
    // Samples that make everything ten times slower come in the middle of the second search.
    let entries = t.app.store.lut_entries("x", &LutFilter::default()).await.unwrap();
    let slower: Vec<lut::Entry> = entries
        .into_iter()
        .map(|entry| {
            let measured = lut::Measurement {
                latency_ms: lut::Samples::new(vec![10.0; 9]).unwrap(),
                peak_memory_bytes: lut::Samples::new(vec![1e5]).unwrap(),
            };
            lut::Entry {
                state: lut::EntryState::Measured(measured),
                ..entry
            }
        })
        .collect();
    let (now, runtime) = (t.app.clock.now(), crate::harness::runtime());
    let mut tx = t.app.store.begin().await.unwrap();
    let batch = temponas_server::store::luts::Batch {
        id: uuid::Uuid::now_v7(),
        device: "x",
        runtime: &runtime,
        digest: "slower",
        entries: &slower,
    };
    temponas_server::store::luts::insert_batch(tx.connection(), &batch, now)
        .await
        .unwrap();
    tx.commit(now).await.unwrap();
    // A restarted coordinator has nothing cached.
    let restarted = t.another();
    restarted.work_off(worker).await;
    let predicted = |candidates: Vec<protocol::searches::CandidateView>| {
        candidates
            .into_iter()
            .map(|c| (c.architecture, c.predicted))
            .collect::<Vec<_>>()
    };
    assert_eq!(
        predicted(t.candidates(second).await),
        predicted(t.candidates(first).await)
    );
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_killed_profiler_loses_only_its_batch_and_nothing_is_stored_twice(pool: PgPool) {
    let t = Harness::new(pool);
    let (a, b) = (
        t.worker_on("x", &[JobKind::Profile]).await,
        t.worker_on("x", &[JobKind::Profile]).await,
    );
    let id = t.try_submit(&on("x", SHAPES)).await.unwrap();
    let first = t.claim(a).await.unwrap();
    t.finish(&first).await;
    t.finish(&first).await;
    let stored = t.app.store.lut_entries("x", &LutFilter::default()).await.unwrap().len();
    let JobInput::Profile(input) = &first.input else {
        panic!("a profile job")
    };
    assert_eq!(stored, input.blocks.len());
    t.claim(a).await.unwrap();
    t.pass(LEASE + SECOND);
    t.work_off(b).await;
    assert_eq!(t.state(id).await, SearchState::Searching);
    let blocks = search_spaces::Space::parse(SHAPES).unwrap().blocks().len();
    let entries = t.app.store.lut_entries("x", &LutFilter::default()).await.unwrap();
    assert_eq!(entries.len(), blocks, "each block once");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_device_that_cannot_be_measured_fails_the_search_with_the_reason(pool: PgPool) {
    let t = Harness::new(pool);
    let worker = t.worker_on("x", &[JobKind::Profile]).await;
    let id = t.try_submit(&on("x", SHAPES)).await.unwrap();
    while let Some(job) = t.claim(worker).await {
        t.fail(&job, "the device is gone", false, false).await;
    }
    let search = t.search(id).await;
    assert_eq!(search.state, SearchState::Failed);
    assert!(search.state_reason.unwrap().contains("the device is gone"));
    assert!(t.jobs(id).await.iter().all(|job| job.state == JobState::Failed));
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_profile_result_without_all_its_blocks_is_refused(pool: PgPool) {
    let t = Harness::new(pool);
    let worker = t.worker_on("x", &[JobKind::Profile]).await;
    t.try_submit(&on("x", SHAPES)).await.unwrap();
    let job = t.claim(worker).await.unwrap();
    let Outcome::Profile(mut outcome) = done(&job) else {
        panic!("a profile job")
    };
    outcome.entries.pop();
    assert!(t.report(&job, Outcome::Profile(outcome)).await.is_err());
    assert!(
        t.app
            .store
            .lut_entries("x", &LutFilter::default())
            .await
            .unwrap()
            .is_empty()
    );
    t.finish(&job).await;
}

fn figure3(space: &str, sizes: &[u64]) -> ProfileRequest {
    ProfileRequest {
        space: space.to_owned(),
        runtime: None,
        blocks: BlockSet::Figure3 { sizes: sizes.to_vec() },
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn blocks_that_someone_asks_for_are_measured_for_no_search(pool: PgPool) {
    let t = Harness::new(pool);
    let worker = t.worker_on("x", &ALL).await;
    let asked = search::measure(&t.app, "x", &figure3("shapes-tiny", &[4, 8]))
        .await
        .unwrap();
    assert_eq!((asked.queued, asked.known, asked.waiting), (12, 0, 0));
    assert_eq!(asked.jobs.len(), 2, "in batches");
    let again = search::measure(&t.app, "x", &figure3("shapes-tiny", &[8, 16]))
        .await
        .unwrap();
    assert_eq!(
        (again.queued, again.known, again.waiting),
        (6, 0, 6),
        "nothing waits twice"
    );

    let searched = t.try_submit(&on("x", SHAPES)).await.unwrap();
    let elsewhere = t.worker_on("y", &ALL).await;
    assert!(
        t.claim(elsewhere).await.is_none(),
        "another device measures nothing of it"
    );
    let mut of_no_search = 0;
    while let Some(job) = t.claim(worker).await {
        let view = t.job(job.job_id).await;
        let outcome = full_attention_does_not_fit(done(&job));
        let search = t.report_any(job.job_id, job.lease_token, outcome).await.unwrap();
        assert_eq!(search, view.search_id);
        of_no_search += usize::from(search.is_none());
        if t.state(searched).await != SearchState::Profiling {
            break;
        }
        search::advance_all(&t.app, &t.app.store).await.unwrap();
    }
    assert_eq!(of_no_search, 3);
    let all = figure3("shapes-tiny", &[4, 8, 16]);
    let measured = search::measure(&t.app, "x", &all).await.unwrap();
    assert_eq!((measured.queued, measured.known), (0, 18), "out of memory is known too");
    let entries = t.app.store.lut_entries("x", &LutFilter::default()).await.unwrap();
    assert!(entries.iter().any(|entry| entry.state.label() == "out_of_memory"));
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_job_of_no_search_is_given_up_after_its_attempts_and_keeps_their_logs(pool: PgPool) {
    let t = Harness::new(pool);
    let worker = t.worker_on("x", &ALL).await;
    let wish = figure3("shapes-tiny", &[8]);
    let asked = search::measure(&t.app, "x", &wish).await.unwrap();
    let first = t.claim(worker).await.unwrap();
    t.fail_any(&first, "no libtorch").await;
    t.pass(SECOND * 2);
    let second = t.claim(worker).await.unwrap();
    assert_eq!(second.job_id, first.job_id);
    t.pass(LEASE * 2);
    let third = t.claim(worker).await.unwrap();
    assert_eq!(third.attempt, 3);
    t.pass(LEASE * 2);
    let now = t.app.clock.now();
    assert_eq!(
        temponas_server::dispatch::reap(&t.app.store, t.rules(), now)
            .await
            .unwrap(),
        []
    );
    let job = t.job(asked.jobs[0]).await;
    assert_eq!(job.state, JobState::Failed);
    assert_eq!(job.attempts[0].log.as_deref(), Some("log of no libtorch"));
    assert_eq!(
        search::measure(&t.app, "x", &wish).await.unwrap().queued,
        6,
        "asked for anew"
    );
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_wish_that_cannot_be_measured_is_refused_by_field(pool: PgPool) {
    let t = Harness::new(pool);
    t.worker_on("x", &ALL).await;
    let many = vec![8; 50];
    let refusals = [
        (
            figure3("nas-bench-201", &[8]),
            "space: `nas-bench-201` is none of emoji-small, shapes-tiny, snapgen-v",
        ),
        (figure3("shapes-tiny", &[0]), "blocks.sizes: 0 is not from 1 to 1024"),
        (
            figure3("shapes-tiny", &many),
            "blocks.sizes: has 50 sizes; at most 42 are allowed",
        ),
        (
            ProfileRequest {
                blocks: BlockSet::List { blocks: Vec::new() },
                ..figure3("shapes-tiny", &[])
            },
            "blocks.blocks: has 0; allowed: 1 to 256",
        ),
    ];
    for (wish, message) in refusals {
        let error = search::measure(&t.app, "x", &wish).await.unwrap_err();
        assert_eq!(error.to_string(), message);
    }
}
