//! Jobs that someone asks for by themselves.

use protocol::{
    artifacts::{ArtifactRef, ArtifactRole},
    jobs::{BenchmarkInput, Bucket, EncodeLatentsInput, JobInput, JobKind, JobRequest, JobState, LookupInput},
};
use sqlx::PgPool;
use temponas_server::{
    MIGRATOR,
    job_requests::{self, JobRequestError},
    search::SearchError,
    store::jobs::JobFilter,
};

use crate::{
    gangs::{prune, pruned},
    harness::{Harness, NAMED, done},
};

fn encode() -> EncodeLatentsInput {
    EncodeLatentsInput {
        dataset: "films".to_owned(),
        parts: "shapes".to_owned(),
        base: Vec::new(),
        buckets: vec![Bucket {
            frames: 16,
            height: 64,
            width: 64,
            frame_rate_hz: 8.0,
            keep: 1.0,
        }],
        shard_bytes: 1 << 20,
        seed: 0,
    }
}

fn benchmark(weights: Vec<ArtifactRef>) -> BenchmarkInput {
    BenchmarkInput {
        model: "ours".to_owned(),
        space: NAMED.to_owned(),
        architecture: "012".to_owned(),
        weights,
        base: Vec::new(),
        evaluator: "vbench".to_owned(),
        dimensions: vec!["temporal_flickering".to_owned()],
        videos_per_prompt: 5,
        prompts: None,
        preset: None,
        sample_steps: 25,
        guidance: 7.0,
        seed: 0,
    }
}

fn request(input: JobInput) -> JobRequest {
    JobRequest {
        id: None,
        input,
        device: None,
        memory_bytes: 0,
    }
}

async fn weights(t: &Harness) -> ArtifactRef {
    ArtifactRef {
        role: ArtifactRole::Weights,
        digest: t.upload(b"weights").await,
        name: "weights.safetensors".to_owned(),
        media_type: "application/octet-stream".to_owned(),
        bytes: 7,
    }
}

const fn of_kind(kind: JobKind) -> JobFilter {
    JobFilter::Listed(None, None, Some(kind), None)
}

/// Fields at fault.
async fn wrong(t: &Harness, request: JobRequest) -> Vec<String> {
    match job_requests::submit(&t.app, request).await {
        Err(JobRequestError::Invalid(errors)) => errors.into_iter().map(|error| error.field).collect(),
        other => panic!("{other:?}"),
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_job_goes_to_a_worker_of_its_kind_and_evaluator(pool: PgPool) {
    let t = Harness::new(pool);
    let own = t.worker_with("x", &[JobKind::Benchmark], &["built-in"]).await;
    let official = t.worker_with("x", &[JobKind::Benchmark], &["built-in", "vbench"]).await;
    let encoder = t.worker_on("x", &[JobKind::EncodeLatents]).await;
    let weights = weights(&t).await;
    let scored = request(JobInput::Benchmark(benchmark(vec![weights])));
    let scored = job_requests::submit(&t.app, scored).await.unwrap();
    let encoded = job_requests::submit(&t.app, request(JobInput::EncodeLatents(encode())))
        .await
        .unwrap();
    assert!(t.claim(own).await.is_none(), "it brings another evaluator");
    assert_eq!(t.claim(official).await.unwrap().job_id, scored);
    assert_eq!(t.claim(encoder).await.unwrap().job_id, encoded);
    let found = t.app.store.job_views(of_kind(JobKind::Benchmark), 10).await.unwrap();
    assert_eq!(found.iter().map(|job| job.id).collect::<Vec<_>>(), [scored]);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn asking_again_under_the_same_id_asks_for_nothing_new(pool: PgPool) {
    let t = Harness::new(pool);
    let asked = JobRequest {
        id: Some(protocol::JobId::new()),
        ..request(JobInput::EncodeLatents(encode()))
    };
    let first = job_requests::submit(&t.app, asked.clone()).await.unwrap();
    assert_eq!(Some(first), asked.id);
    assert_eq!(job_requests::submit(&t.app, asked.clone()).await.unwrap(), first);
    let jobs = t
        .app
        .store
        .job_views(of_kind(JobKind::EncodeLatents), 10)
        .await
        .unwrap();
    assert_eq!(jobs.len(), 1, "one job");

    let other = JobRequest {
        device: Some("x".to_owned()),
        ..asked.clone()
    };
    t.worker_on("x", &[JobKind::EncodeLatents]).await;
    let error = job_requests::submit(&t.app, other).await.unwrap_err();
    assert!(matches!(error, JobRequestError::IdTaken(id) if id == first), "{error}");
    let unordered = JobRequest {
        id: Some("5a2e1f5c-0b7e-4f0e-9d0a-1c2b3a4d5e6f".parse().unwrap()),
        ..asked
    };
    assert_eq!(wrong(&t, unordered).await, ["id"]);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn every_field_at_fault_is_named(pool: PgPool) {
    let t = Harness::new(pool);
    let bad = EncodeLatentsInput {
        dataset: "../films".to_owned(),
        parts: String::new(),
        buckets: vec![Bucket {
            frames: 0,
            height: 12,
            width: 64,
            frame_rate_hz: f64::NAN,
            keep: 0.0,
        }],
        shard_bytes: 1,
        ..encode()
    };
    assert_eq!(
        wrong(&t, request(JobInput::EncodeLatents(bad))).await,
        [
            "input.dataset",
            "input.parts",
            "input.shard_bytes",
            "input.buckets[0].frames",
            "input.buckets[0].height",
            "input.buckets[0].frame_rate_hz",
            "input.buckets[0].keep"
        ]
    );
    let none = EncodeLatentsInput {
        buckets: Vec::new(),
        ..encode()
    };
    assert_eq!(
        wrong(&t, request(JobInput::EncodeLatents(none))).await,
        ["input.buckets"]
    );
    let missing = ArtifactRef {
        digest: "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
            .parse()
            .unwrap(),
        ..weights(&t).await
    };
    let bad = BenchmarkInput {
        architecture: "99".to_owned(),
        evaluator: String::new(),
        dimensions: vec!["color".to_owned(), "color".to_owned()],
        videos_per_prompt: 0,
        guidance: -1.0,
        ..benchmark(vec![missing.clone(), missing])
    };
    assert_eq!(
        wrong(&t, request(JobInput::Benchmark(bad))).await,
        [
            "input.architecture",
            "input.weights[0].digest",
            "input.weights[1].name",
            "input.weights[1].digest",
            "input.evaluator",
            "input.dimensions[1]",
            "input.videos_per_prompt",
            "input.guidance"
        ]
    );
    assert_eq!(
        wrong(&t, request(JobInput::Benchmark(benchmark(Vec::new())))).await,
        ["input.weights"]
    );
    let JobInput::PruneBackbone(input) = prune(0).input else {
        panic!()
    };
    let bad = protocol::jobs::PruneBackboneInput {
        space: NAMED.to_owned(),
        recipe: "steps =".to_owned(),
        scoring: protocol::jobs::PictureScoring {
            pictures: 1,
            sample_steps: 0,
            guidance: f64::NAN,
            prompts: vec!["a cat".to_owned(), String::new()],
        },
        ..input
    };
    let bad = JobRequest {
        device: Some("nowhere".to_owned()),
        ..request(JobInput::PruneBackbone(bad))
    };
    assert_eq!(
        wrong(&t, bad).await,
        [
            "input.space",
            "input.recipe",
            "input.ranks",
            "input.scoring.pictures",
            "input.scoring.sample_steps",
            "input.scoring.guidance",
            "input.scoring.prompts[1]",
            "device"
        ]
    );
    let lookup = LookupInput {
        search_id: protocol::SearchId::new(),
        candidate_id: protocol::CandidateId::new(),
        architecture: String::new(),
    };
    assert_eq!(wrong(&t, request(JobInput::Lookup(lookup))).await, ["input.kind"]);
    let no_space = BenchmarkInput {
        space: "name = 1".to_owned(),
        ..benchmark(vec![weights(&t).await])
    };
    let refused = job_requests::submit(&t.app, request(JobInput::Benchmark(no_space))).await;
    assert!(
        matches!(refused, Err(JobRequestError::Space(SearchError::Space(_)))),
        "{refused:?}"
    );
    let listed = JobFilter::Listed(None, None, None, None);
    assert!(
        t.app.store.job_views(listed, 10).await.unwrap().is_empty(),
        "nothing of it is stored"
    );
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_job_of_its_own_is_cancelled_and_one_of_a_search_is_not(pool: PgPool) {
    let t = Harness::new(pool);
    let worker = t.worker_on("x", &[JobKind::PruneBackbone, JobKind::Evaluate]).await;
    let now = t.app.clock.now();
    let waiting = job_requests::submit(&t.app, prune(1)).await.unwrap();
    for _ in 0..2 {
        job_requests::cancel(&t.app.store, waiting, now).await.unwrap();
    }
    assert_eq!(t.job(waiting).await.state, JobState::Cancelled);
    assert!(t.claim(worker).await.is_none());
    t.submit(NAMED).await;
    let job = t.claim(worker).await.unwrap();
    let refused = job_requests::cancel(&t.app.store, job.job_id, now).await;
    assert!(matches!(refused, Err(JobRequestError::OfSearch { .. })), "{refused:?}");
    t.report(&job, done(&job)).await.unwrap();
    let nowhere = job_requests::cancel(&t.app.store, protocol::JobId::new(), now).await;
    assert!(matches!(nowhere, Err(JobRequestError::NotFound(_))), "{nowhere:?}");
    let pruner = t.worker_on("y", &[JobKind::PruneBackbone]).await;
    let short = job_requests::submit(&t.app, prune(1)).await.unwrap();
    let lease = t.claim(pruner).await.unwrap();
    t.report_any(short, lease.lease_token, pruned()).await.unwrap();
    let ended = job_requests::cancel(&t.app.store, short, now).await;
    assert!(matches!(ended, Err(JobRequestError::Ended { .. })), "{ended:?}");
}
