//! Jobs that several workers do together: gathering, meeting, losing one.

use std::net::SocketAddr;

use chrono::TimeDelta;
use protocol::{
    JobId, LeaseToken, Metrics, WorkerId,
    artifacts::{ArtifactRef, ArtifactRole},
    jobs::{
        DeviceSeconds, JobInput, JobKind, JobRequest, JobResult, JobState, Outcome, PictureScoring, PruneBackboneInput,
        PruneBackboneOutcome, ResultTable,
    },
    leases::{
        DoneReport, FailureReport, Heartbeat, HeartbeatReply, LeasedJob, RendezvousReply, RendezvousRequest,
        ResultReport, Seat,
    },
};
use sqlx::PgPool;
use temponas_server::{
    MIGRATOR,
    dispatch::{self, DispatchError},
    job_requests,
};

use crate::harness::{Harness, LEASE, SECOND, SHAPES};

const PRUNE: [JobKind; 1] = [JobKind::PruneBackbone];

pub(crate) fn prune(ranks: u32) -> JobRequest {
    JobRequest {
        id: None,
        input: JobInput::PruneBackbone(PruneBackboneInput {
            space: SHAPES.to_owned(),
            parts: "shapes".to_owned(),
            base: Vec::new(),
            recipe: "steps = 1".to_owned(),
            adaptation: None,
            adaptation_parts: None,
            adaptation_base: Vec::new(),
            seed: 1,
            ranks,
            scoring: PictureScoring::default(),
        }),
        device: None,
        memory_bytes: 0,
    }
}

pub(crate) fn pruned() -> Outcome {
    Outcome::PruneBackbone(PruneBackboneOutcome {
        metrics: Metrics::new(),
        table: ResultTable {
            title: "Table A2".to_owned(),
            columns: Vec::new(),
            rows: Vec::new(),
        },
    })
}

impl Harness {
    async fn ask(&self, ranks: u32) -> JobId {
        job_requests::submit(&self.app, prune(ranks)).await.unwrap()
    }

    async fn pruner(&self, device: &str) -> WorkerId {
        self.worker_on(device, &PRUNE).await
    }

    /// Looks once whether all are there; rank 0 listens on port 1000.
    async fn meet(&self, job: &LeasedJob) -> Result<RendezvousReply, DispatchError> {
        let address = SocketAddr::from(([10, 0, 0, 1], 1000));
        let request = RendezvousRequest {
            lease_token: job.lease_token,
            address: (job.seat.unwrap().rank == 0).then_some(address),
            wait_seconds: 0,
        };
        let app = &self.app;
        dispatch::rendezvous(&app.store, &app.events, &app.clock, self.rules(), job.job_id, &request).await
    }

    async fn beat(
        &self,
        job: &LeasedJob,
        train: f64,
        checkpoint: Option<ArtifactRef>,
    ) -> Result<HeartbeatReply, DispatchError> {
        let beat = Heartbeat {
            lease_token: job.lease_token,
            progress: 0.5,
            status: None,
            curve: Vec::new(),
            checkpoint,
            device_seconds: seconds(train),
            log: None,
            metrics: Metrics::new(),
        };
        let now = self.app.clock.now();
        dispatch::heartbeat(&self.app.store, self.rules(), job.job_id, &beat, now).await
    }

    async fn hand_in(&self, job: &LeasedJob) -> Result<(), DispatchError> {
        let result = JobResult {
            device_seconds: seconds(10.0),
            artifacts: Vec::new(),
            outcome: pruned(),
        };
        let report = ResultReport {
            lease_token: job.lease_token,
            result,
        };
        self.send(job.job_id, report).await.map(drop)
    }

    async fn say_done(&self, job: &LeasedJob) -> Result<(), DispatchError> {
        let report = DoneReport {
            lease_token: job.lease_token,
            device_seconds: seconds(7.0),
        };
        dispatch::done(&self.app.store, job.job_id, &report, self.app.clock.now()).await
    }

    async fn give_up(&self, job: &LeasedJob, released: bool) -> Result<(), DispatchError> {
        let report = FailureReport {
            lease_token: job.lease_token,
            error: "out of memory".to_owned(),
            log: None,
            retry: true,
            released,
            device_seconds: seconds(1.0),
        };
        let now = self.app.clock.now();
        dispatch::fail(&self.app.store, self.rules(), job.job_id, &report, now)
            .await
            .map(drop)
    }

    /// Two workers in their seats, at work.
    async fn pair(&self, a: WorkerId, b: WorkerId) -> (LeasedJob, LeasedJob) {
        let (first, second) = (self.claim(a).await.unwrap(), self.claim(b).await.unwrap());
        assert_eq!(first.job_id, second.job_id);
        self.meet(&first).await.unwrap();
        let meeting = self.meet(&second).await.unwrap().meeting;
        assert!(meeting.is_some());
        (first, second)
    }
}

fn seconds(train: f64) -> DeviceSeconds {
    DeviceSeconds {
        train,
        ..DeviceSeconds::default()
    }
}

fn is_lost<T: std::fmt::Debug>(answer: Result<T, DispatchError>) -> bool {
    match answer {
        Err(DispatchError::LeaseLost { .. }) => true,
        other => panic!("{other:?}"),
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_gang_begins_with_its_last_seat_and_meets_where_rank_0_listens(pool: PgPool) {
    let t = Harness::new(pool);
    // Two graphics cards of one machine: one device name, two workers.
    let (a, b) = (t.pruner("x").await, t.pruner("x").await);
    let id = t.ask(2).await;
    let first = t.claim(a).await.unwrap();
    assert_eq!(first.seat, Some(Seat { rank: 0, ranks: 2 }));
    assert_eq!(t.meet(&first).await.unwrap().meeting, None, "the rest is not there yet");
    let waiting = t.job(id).await;
    assert_eq!(
        (waiting.state, waiting.seats.len(), waiting.attempts.len()),
        (JobState::Queued, 1, 0)
    );
    let again = t.claim(a).await.unwrap();
    assert_eq!(
        again.lease_token, first.lease_token,
        "an answer that was lost is given again"
    );
    let second = t.claim(b).await.unwrap();
    assert_eq!(second.seat, Some(Seat { rank: 1, ranks: 2 }));
    let meeting = t.meet(&second).await.unwrap().meeting.unwrap();
    assert_eq!(meeting.store, SocketAddr::from(([10, 0, 0, 1], 1000)));
    assert_eq!(meeting.generation, format!("{id}/1"));
    assert_eq!(t.meet(&first).await.unwrap().meeting, Some(meeting));
    let running = t.job(id).await;
    assert_eq!(
        (running.state, running.worker_id, running.attempts.len()),
        (JobState::Leased, Some(a), 1)
    );

    t.beat(&first, 5.0, None).await.unwrap();
    t.beat(&second, 4.0, None).await.unwrap();
    assert_eq!(t.job(id).await.device_seconds.unwrap().train, 9.0, "of both ranks");
    assert_eq!(t.job(id).await.progress, 0.5);
    assert!(is_lost(t.hand_in(&second).await), "rank 0 reports for all");
    t.say_done(&second).await.unwrap();
    t.pass(LEASE + SECOND);
    assert!(
        t.claim(b).await.is_none(),
        "who is done need not be heard of; but rank 0 has fallen silent"
    );
    assert_eq!(t.job(id).await.state, JobState::Queued);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn the_result_of_rank_0_counts_with_the_seconds_of_all(pool: PgPool) {
    let t = Harness::new(pool);
    let (a, b) = (t.pruner("x").await, t.pruner("y").await);
    let id = t.ask(2).await;
    let (first, second) = t.pair(a, b).await;
    t.hand_in(&first).await.unwrap();
    t.hand_in(&first).await.unwrap();
    t.say_done(&second).await.unwrap();
    t.say_done(&second).await.unwrap();
    let job = t.job(id).await;
    assert_eq!(
        (job.state, job.device_seconds.unwrap().train),
        (JobState::Succeeded, 17.0)
    );
    assert_eq!(job.result.unwrap().outcome, pruned());
    assert!(job.seats.iter().all(|seat| seat.done));
    assert!(t.claim(a).await.is_none() && t.claim(b).await.is_none());
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_rank_that_falls_silent_ends_the_attempt_for_all_and_the_next_goes_on_from_the_checkpoint(pool: PgPool) {
    let t = Harness::new(pool);
    let (a, b, c) = (t.pruner("x").await, t.pruner("y").await, t.pruner("z").await);
    let id = t.ask(2).await;
    let (first, second) = t.pair(a, b).await;
    let digest = t.upload(b"weights so far").await;
    let checkpoint = ArtifactRef {
        role: ArtifactRole::Checkpoint,
        digest,
        name: "checkpoint".to_owned(),
        media_type: "text/plain".to_owned(),
        bytes: 14,
    };
    t.pass(LEASE / 2);
    t.beat(&first, 3.0, Some(checkpoint.clone())).await.unwrap();
    t.pass(LEASE / 2 + SECOND);
    let searches = dispatch::reap(&t.app.store, t.rules(), t.app.clock.now())
        .await
        .unwrap();
    assert_eq!(searches, []);
    assert!(
        is_lost(t.beat(&first, 4.0, None).await),
        "rank 0 learns that rank 1 is lost"
    );
    assert!(is_lost(t.beat(&second, 4.0, None).await));
    assert!(is_lost(t.hand_in(&first).await));
    assert!(is_lost(t.say_done(&second).await));
    assert!(is_lost(t.give_up(&second, false).await));
    let job = t.job(id).await;
    assert_eq!((job.state, job.attempts.len()), (JobState::Queued, 1));
    assert_eq!(
        job.attempts[0].error.as_deref(),
        Some("lost rank 1: no heartbeat came in time")
    );
    assert_eq!(job.device_seconds.unwrap().train, 3.0, "up to the last heartbeat");
    t.pass(SECOND);
    let (first, second) = t.pair(c, a).await;
    assert_eq!((first.attempt, first.checkpoint), (2, Some(checkpoint)));
    let meeting = t.meet(&second).await.unwrap().meeting.unwrap();
    assert_eq!(
        meeting.generation,
        format!("{id}/2"),
        "no rank of the first attempt joins the second"
    );
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_rank_that_fails_ends_the_attempt_and_the_last_attempt_ends_the_job(pool: PgPool) {
    let t = Harness::new(pool);
    let (a, b) = (t.pruner("x").await, t.pruner("y").await);
    let id = t.ask(2).await;
    let (first, second) = t.pair(a, b).await;
    t.give_up(&second, true).await.unwrap();
    assert!(is_lost(t.beat(&first, 0.0, None).await));
    for attempt in 2..=4 {
        t.pass(LEASE);
        let (first, second) = t.pair(b, a).await;
        assert_eq!(first.attempt, attempt);
        t.give_up(&second, false).await.unwrap();
        assert!(is_lost(t.give_up(&first, false).await), "the attempt is over");
    }
    let job = t.job(id).await;
    assert_eq!(
        job.state,
        JobState::Failed,
        "three attempts, and one that does not count"
    );
    assert_eq!(job.attempts[3].error.as_deref(), Some("rank 1: out of memory"));
    assert!(t.claim(a).await.is_none());
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn of_two_gangs_one_is_gathered_and_it_is_the_older_one(pool: PgPool) {
    let t = Harness::new(pool);
    let (a, b) = (t.pruner("x").await, t.pruner("y").await);
    let older = t.ask(2).await;
    t.pass(SECOND);
    let younger = t.ask(2).await;
    let (first, second) = (t.claim(a).await.unwrap(), t.claim(b).await.unwrap());
    assert_eq!((first.job_id, second.job_id), (older, older));
    assert_eq!((first.seat.unwrap().rank, second.seat.unwrap().rank), (0, 1));
    assert_eq!(t.job(younger).await.seats, []);
    t.hand_in(&first).await.unwrap();
    t.say_done(&second).await.unwrap();
    assert_eq!(
        (t.claim(b).await.unwrap().job_id, t.claim(a).await.unwrap().job_id),
        (younger, younger)
    );
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn workers_that_ask_at_once_take_the_seats_of_one_gang(pool: PgPool) {
    let t = Harness::new(pool);
    for _ in 0..2 {
        t.ask(4).await;
    }
    let mut workers = Vec::new();
    for device in ["a", "b", "c", "d"] {
        workers.push(t.pruner(device).await);
    }
    let claims = workers.iter().map(|worker| t.claim(*worker));
    let jobs = futures::future::join_all(claims).await;
    let jobs: Vec<LeasedJob> = jobs.into_iter().flatten().collect();
    let mut ranks: Vec<u32> = jobs.iter().map(|job| job.seat.unwrap().rank).collect();
    ranks.sort_unstable();
    // Who finds the row locked comes back a moment later.
    assert!(ranks.iter().copied().eq(0..ranks.len() as u32), "{ranks:?}");
    assert!(jobs.iter().all(|job| job.job_id == jobs[0].job_id));
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_gang_without_enough_workers_keeps_nobody_from_other_work(pool: PgPool) {
    let t = Harness::new(pool);
    let a = t.pruner("x").await;
    let large = t.ask(2).await;
    t.pass(SECOND);
    let small = t.ask(1).await;
    let job = t.claim(a).await.unwrap();
    assert_eq!(
        (job.job_id, job.seat),
        (small, None),
        "there is no second worker to wait for"
    );
    let b = t.pruner("y").await;
    assert_eq!(t.claim(b).await.unwrap().job_id, large, "now there are two");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn who_waits_too_long_for_the_rest_is_released(pool: PgPool) {
    let t = Harness::new(pool);
    let (a, b) = (t.pruner("x").await, t.pruner("y").await);
    let gang = t.ask(2).await;
    let waiting = t.claim(a).await.unwrap();
    let gather = TimeDelta::from_std(t.app.config.gather).unwrap();
    t.pass(SECOND);
    let other = t.ask(1).await;
    for _ in 0..(gather.num_seconds() / 20) {
        t.pass(SECOND * 20);
        // The other worker is alive and busy elsewhere.
        t.app.store.hear_worker(b, t.app.clock.now()).await.unwrap();
        if t.beat(&waiting, 0.0, None).await.is_err() {
            break;
        }
        let _ = dispatch::reap(&t.app.store, t.rules(), t.app.clock.now())
            .await
            .unwrap();
    }
    assert!(is_lost(t.meet(&waiting).await));
    assert_eq!(
        t.claim(a).await.unwrap().job_id,
        other,
        "the gang gives way for a while"
    );
    let job = t.job(gang).await;
    assert_eq!(
        (job.state, job.seats.len(), job.attempts.len()),
        (JobState::Queued, 0, 0)
    );
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn the_seat_of_a_worker_that_vanishes_while_the_gang_gathers_is_free_again(pool: PgPool) {
    let t = Harness::new(pool);
    let (a, b, c) = (t.pruner("x").await, t.pruner("y").await, t.pruner("z").await);
    t.ask(3).await;
    let vanished = t.claim(a).await.unwrap();
    t.pass(LEASE / 2);
    let stays = t.claim(b).await.unwrap();
    t.pass(LEASE / 2 + SECOND);
    t.beat(&stays, 0.0, None).await.unwrap();
    let replacement = t.claim(c).await.unwrap();
    assert_eq!(replacement.seat.unwrap().rank, 0);
    assert!(is_lost(t.meet(&vanished).await));
    let late = t.claim(a).await.unwrap();
    assert_eq!(late.seat.unwrap().rank, 2);
    t.meet(&replacement).await.unwrap();
    assert!(t.meet(&late).await.unwrap().meeting.is_some());
    assert!(
        t.meet(&stays).await.unwrap().meeting.is_some(),
        "a rank may come late, as long as it is heard of"
    );
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_gang_that_is_cancelled_stops_and_a_gathering_one_too(pool: PgPool) {
    let t = Harness::new(pool);
    let (a, b) = (t.pruner("x").await, t.pruner("y").await);
    let running = t.ask(2).await;
    let (first, second) = t.pair(a, b).await;
    let now = t.app.clock.now();
    job_requests::cancel(&t.app.store, running, now).await.unwrap();
    assert!(t.beat(&first, 0.0, None).await.unwrap().cancelled);
    assert!(t.beat(&second, 0.0, None).await.unwrap().cancelled);
    assert!(is_lost(t.hand_in(&first).await));
    assert!(is_lost(t.give_up(&second, false).await));
    let gathering = t.ask(2).await;
    let waiting = t.claim(a).await.unwrap();
    job_requests::cancel(&t.app.store, gathering, now).await.unwrap();
    assert!(is_lost(t.meet(&waiting).await));
    assert!(t.claim(b).await.is_none());
    assert_eq!(t.job(gathering).await.state, JobState::Cancelled);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_gang_goes_on_with_another_coordinator_at_every_step(pool: PgPool) {
    let t = Harness::new(pool);
    let (a, b) = (t.pruner("x").await, t.pruner("y").await);
    let id = t.ask(2).await;
    let first = t.another().claim(a).await.unwrap();
    assert!(t.another().meet(&first).await.unwrap().meeting.is_none());
    let second = t.another().claim(b).await.unwrap();
    assert!(t.another().meet(&second).await.unwrap().meeting.is_some());
    t.another().beat(&second, 1.0, None).await.unwrap();
    t.another().say_done(&second).await.unwrap();
    t.another().hand_in(&first).await.unwrap();
    assert_eq!(t.another().job(id).await.state, JobState::Succeeded);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn while_there_was_no_coordinator_nobody_could_be_heard_of(pool: PgPool) {
    let t = Harness::new(pool);
    let mut workers = Vec::new();
    for device in ["a", "b", "c", "d", "e"] {
        workers.push(t.pruner(device).await);
    }
    let [a, b, c, d, e] = workers[..] else { unreachable!() };
    t.ask(2).await;
    let (first, second) = t.pair(a, b).await;
    let alone = t.ask(1).await;
    let single = t.claim(c).await.unwrap();
    t.ask(2).await;
    let waits = t.claim(d).await.unwrap();
    t.pass(LEASE * 2);
    let t = t.another();
    let now = t.app.clock.now();
    dispatch::wait_anew(&t.app.store, t.rules(), now).await.unwrap();
    dispatch::reap(&t.app.store, t.rules(), now).await.unwrap();
    let late = t.claim(e).await.unwrap();
    assert_eq!(late.job_id, waits.job_id, "no other job is to be had");
    t.meet(&waits).await.unwrap();
    assert!(t.meet(&late).await.unwrap().meeting.is_some());
    for job in [&first, &second, &single] {
        t.beat(job, 1.0, None).await.unwrap();
    }
    t.pass(LEASE / 2);
    t.beat(&first, 1.0, None).await.unwrap();
    t.pass(LEASE / 2 + SECOND);
    dispatch::reap(&t.app.store, t.rules(), t.app.clock.now())
        .await
        .unwrap();
    assert!(is_lost(t.beat(&first, 1.0, None).await), "but once, not for ever");
    assert_eq!(t.claim(a).await.unwrap().job_id, alone);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_seat_that_its_worker_cannot_use_is_not_taken_again_at_once(pool: PgPool) {
    let t = Harness::new(pool);
    let (a, _b) = (t.pruner("x").await, t.pruner("y").await);
    let id = t.ask(2).await;
    let unusable = t.claim(a).await.unwrap();
    t.give_up(&unusable, false).await.unwrap();
    assert_eq!(t.job(id).await.seats, []);
    assert!(t.claim(a).await.is_none());
    t.pass(SECOND);
    let stopped = t.claim(a).await.unwrap();
    t.give_up(&stopped, true).await.unwrap();
    assert!(
        t.claim(a).await.is_some(),
        "another may take the seat of one that stops"
    );
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_job_that_waits_for_the_whole_device_does_not_stop_a_gang_that_gathers_on_it(pool: PgPool) {
    let t = Harness::new(pool);
    let (a, b) = (t.pruner("x").await, t.pruner("x").await);
    let profiler = t.worker_on("x", &[JobKind::Profile]).await;
    t.ask(2).await;
    let first = t.claim(a).await.unwrap();
    let search = protocol::searches::NewSearch {
        device: Some("x".to_owned()),
        ..crate::harness::new_search(SHAPES)
    };
    t.try_submit(&search).await.unwrap();
    assert!(t.claim(profiler).await.is_none(), "the device is in use");
    let second = t.claim(b).await.unwrap();
    assert_eq!(first.job_id, second.job_id, "each would wait for the other");
    t.ask(2).await;
    t.hand_in(&first).await.unwrap();
    t.say_done(&second).await.unwrap();
    assert!(t.claim(a).await.is_none(), "no other gang is gathered meanwhile");
    assert_eq!(
        t.claim(profiler).await.unwrap().input.kind(),
        JobKind::Profile,
        "now it has the device"
    );
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn who_waits_is_woken_when_the_last_one_comes(pool: PgPool) {
    let t = Harness::new(pool);
    let (a, b) = (t.pruner("x").await, t.pruner("y").await);
    t.ask(2).await;
    let first = t.claim(a).await.unwrap();
    let request = RendezvousRequest {
        lease_token: first.lease_token,
        address: Some(SocketAddr::from(([127, 0, 0, 1], 1))),
        wait_seconds: 30,
    };
    let app = &t.app;
    let waits = dispatch::rendezvous(&app.store, &app.events, &app.clock, t.rules(), first.job_id, &request);
    let comes = async {
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        t.claim(b).await.unwrap()
    };
    let started = std::time::Instant::now();
    let (met, _) = tokio::join!(waits, comes);
    assert!(met.unwrap().meeting.is_some());
    assert!(started.elapsed().as_secs() < 20);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_rendezvous_says_what_does_not_fit(pool: PgPool) {
    let t = Harness::new(pool);
    let a = t.pruner("x").await;
    let alone = t.ask(1).await;
    let job = t.claim(a).await.unwrap();
    assert_eq!(job.job_id, alone);
    let request = |lease_token, address| RendezvousRequest {
        lease_token,
        address,
        wait_seconds: 0,
    };
    let app = &t.app;
    let meet = async |id: JobId, request: RendezvousRequest| {
        let answer = dispatch::rendezvous(&app.store, &app.events, &app.clock, t.rules(), id, &request).await;
        match answer {
            Err(DispatchError::Unacceptable { errors, .. }) => errors[0].field.clone(),
            Err(DispatchError::LeaseLost { .. }) => "lost".to_owned(),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(meet(alone, request(job.lease_token, None)).await, "lease_token");
    assert_eq!(meet(alone, request(LeaseToken::new(), None)).await, "lost");
    t.hand_in(&job).await.unwrap();
    let _second = t.pruner("y").await;
    let gang = t.ask(2).await;
    let job = t.claim(a).await.unwrap();
    assert_eq!(meet(gang, request(job.lease_token, None)).await, "address");
    assert_eq!(meet(gang, request(LeaseToken::new(), None)).await, "lost");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_candidate_may_be_trained_by_a_gang(pool: PgPool) {
    let t = Harness::new(pool);
    let profiler = t.worker_on("x", &[JobKind::Profile]).await;
    let space = SHAPES.replace("[evaluation]\n", "[evaluation]\nranks = 2\n");
    assert_ne!(space, SHAPES);
    let search = protocol::searches::NewSearch {
        device: Some("x".to_owned()),
        ..crate::harness::new_search(&space)
    };
    let search = t.try_submit(&search).await.unwrap();
    t.work_off(profiler).await;
    let (a, b) = (t.worker("x").await, t.worker("y").await);
    let (first, second) = t.pair(a, b).await;
    let job = t.job(first.job_id).await;
    assert_eq!(
        (job.search_id, job.ranks, job.kind),
        (Some(search), 2, JobKind::Evaluate)
    );
    t.finish(&first).await;
    t.say_done(&second).await.unwrap();
    let evaluated = t
        .candidates(search)
        .await
        .into_iter()
        .filter(|candidate| candidate.evaluator.is_some());
    assert_eq!(evaluated.count(), 1);
    let counted = t.job(first.job_id).await.device_seconds.unwrap();
    assert_eq!(counted.train, 9.0, "2 s of rank 0 and 7 s of rank 1");
}
