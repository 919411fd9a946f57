use std::path::Path;

use chrono::Utc;
use protocol::artifacts::{ArtifactRef, ArtifactRole};
use protocol::devices::{Device, RuntimeName};
use protocol::jobs::{DeviceSeconds, JobInput, Outcome as Found, ProfileInput, ProfileOutcome};
use protocol::leases::{HeartbeatReply, Meeting, RendezvousReply, Seat};
use protocol::{LeaseToken, WorkerId};

use super::*;
use crate::fake_coordinator::{Coordinator, Reply, Request};

fn worker(client: Client, cache: &Path) -> Worker {
    Worker {
        registration: WorkerRegistration {
            id: WorkerId::new(),
            name: "here".to_owned(),
            device: Device {
                name: "here".to_owned(),
                description: String::new(),
                memory_bytes: None,
            },
            runtime: None,
            kinds: vec![],
            evaluators: vec![],
            memory_bytes: 0,
        },
        settings: Settings {
            device: tch::Device::Cpu,
            threads: 1,
            cache: cache.to_owned(),
            assets: cache.to_owned(),
            data: cache.to_owned(),
            memory_bytes: 1 << 20,
            vbench: None,
            lpips: None,
        },
        client,
        advertise: None,
    }
}

/// A job with a heartbeat a second.
fn job() -> LeasedJob {
    LeasedJob {
        job_id: JobId::new(),
        lease_token: LeaseToken::new(),
        expires_at: Utc::now(),
        heartbeat_seconds: 1,
        attempt: 1,
        input: JobInput::Profile(ProfileInput {
            space: String::new(),
            blocks: vec![],
            graphs: vec![],
        }),
        checkpoint: None,
        seat: None,
    }
}

fn result(artifacts: Vec<ArtifactRef>) -> JobResult {
    let runtime = RuntimeName {
        name: "none".to_owned(),
        version: "0".to_owned(),
    };
    JobResult {
        device_seconds: DeviceSeconds::default(),
        artifacts,
        outcome: Found::Profile(ProfileOutcome {
            runtime,
            entries: vec![],
        }),
    }
}

fn renewed() -> Reply {
    Reply::json(&HeartbeatReply {
        expires_at: Utc::now(),
        cancelled: false,
    })
}

/// Takes everything, but artifacts only after a while, longer than two heartbeats.
fn slowly(request: &Request) -> Reply {
    match request.method.as_str() {
        "HEAD" => Reply::empty(404),
        "PUT" => Reply::empty(201).after(Duration::from_millis(2500)),
        _ if request.route.ends_with("/heartbeat") => renewed(),
        _ => Reply::empty(204),
    }
}

fn waiting_results(folder: &Path) -> usize {
    std::fs::read_dir(folder.join("outbox")).map_or(0, Iterator::count)
}

#[tokio::test]
async fn heartbeats_go_on_while_the_files_of_a_result_are_uploaded() {
    let folder = tempfile::tempdir().unwrap();
    let server = Coordinator::start(slowly).await;
    let worker = worker(server.client(folder.path()), folder.path());
    let kept = worker
        .client
        .keep(ArtifactRole::Weights, "w", "text/plain", b"abc")
        .unwrap();
    let (job, pulse, (_keep, stop)) = (job(), Arc::default(), watch::channel(false));
    let lease = Lease::new(&worker.client, &job, &pulse);
    worker.hand_in(&job, &lease, result(vec![kept]), &stop).await;
    assert!(server.requests("/heartbeat").len() >= 2);
    assert_eq!(
        (server.requests("/result").len(), waiting_results(folder.path())),
        (1, 0)
    );
}

#[tokio::test]
async fn a_result_whose_lease_is_lost_during_its_upload_is_dropped_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let server = Coordinator::start(|request| match slowly(request) {
        _ if request.route.ends_with("/heartbeat") => Reply::problem(409, "lease-lost"),
        reply if request.method == "PUT" => reply.after(Duration::from_secs(600)),
        reply => reply,
    })
    .await;
    let worker = worker(server.client(folder.path()), folder.path());
    let kept = worker
        .client
        .keep(ArtifactRole::Weights, "w", "text/plain", b"abc")
        .unwrap();
    let (job, pulse, (_keep, stop)) = (job(), Arc::default(), watch::channel(false));
    let lease = Lease::new(&worker.client, &job, &pulse);
    worker.hand_in(&job, &lease, result(vec![kept]), &stop).await;
    assert_eq!(
        (server.requests("/result").len(), waiting_results(folder.path())),
        (0, 0)
    );
}

#[tokio::test]
async fn heartbeats_go_on_while_a_checkpoint_is_uploaded_and_tell_of_it_afterwards() {
    let folder = tempfile::tempdir().unwrap();
    let server = Coordinator::start(slowly).await;
    let worker = worker(server.client(folder.path()), folder.path());
    let (job, pulse) = (job(), Arc::<Pulse>::default());
    let lease = Lease::new(&worker.client, &job, &pulse);
    let context = JobContext::new(worker.settings.clone(), pulse.clone(), None, worker.client.clone());
    context.save(b"checkpoint").unwrap();
    pulse.end(true);
    let uploads = async {
        lease.upload_checkpoints().await;
        lease.beat().await
    };
    lease.during(uploads).await.unwrap();
    let told: Vec<bool> = server
        .requests("/heartbeat")
        .iter()
        .map(|beat| {
            serde_json::from_slice::<protocol::leases::Heartbeat>(&beat.body)
                .unwrap()
                .checkpoint
                .is_some()
        })
        .collect();
    assert!(
        told.len() >= 3 && told[..2] == [false, false] && told[2..].contains(&true),
        "{told:?}"
    );
}

#[tokio::test]
async fn a_result_of_an_earlier_process_is_sent_with_its_lease_kept() {
    let folder = tempfile::tempdir().unwrap();
    let server = Coordinator::start(slowly).await;
    let worker = worker(server.client(folder.path()), folder.path());
    let kept = worker
        .client
        .keep(ArtifactRole::Weights, "w", "text/plain", b"abc")
        .unwrap();
    let job = job();
    let waiting = Waiting {
        job_id: job.job_id,
        heartbeat_seconds: 1,
        report: ResultReport {
            lease_token: job.lease_token,
            result: result(vec![kept]),
        },
    };
    let path = worker.outbox().join("1.json");
    write_atomically(&path, &serde_json::to_vec(&waiting).unwrap()).unwrap();
    worker.send_waiting_results().await.unwrap();
    assert!(server.requests("/heartbeat").len() >= 2);
    assert_eq!(
        (server.requests("/result").len(), waiting_results(folder.path())),
        (1, 0)
    );
}

#[tokio::test]
async fn a_job_of_a_lost_lease_is_stopped_and_reports_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let server = Coordinator::start(|_| Reply::problem(409, "lease-lost")).await;
    let worker = worker(server.client(folder.path()), folder.path());
    let (job, pulse) = (job(), Arc::<Pulse>::default());
    let lease = Lease::new(&worker.client, &job, &pulse);
    let lost = lease
        .during(std::future::pending::<Result<(), ClientError>>())
        .await
        .unwrap_err();
    assert!(matches!(lost, ClientError::LeaseLost(_)) && pulse.stops());
}

/// A job with a seat of two.
fn seated(rank: u32) -> LeasedJob {
    LeasedJob {
        seat: Some(Seat { rank, ranks: 2 }),
        ..job()
    }
}

fn waits(meeting: Option<Meeting>) -> Reply {
    Reply::json(&RendezvousReply {
        expires_at: Utc::now(),
        meeting,
    })
}

#[tokio::test]
async fn a_gang_that_is_complete_meets_where_rank_0_said() {
    let folder = tempfile::tempdir().unwrap();
    let asked = std::sync::atomic::AtomicU64::new(0);
    let server = Coordinator::start(move |request| {
        let body: serde_json::Value = serde_json::from_slice(&request.body).unwrap();
        let store = body["address"].as_str().unwrap().parse().unwrap();
        let meeting = Meeting {
            store,
            generation: "job/1".to_owned(),
        };
        match asked.fetch_add(1, std::sync::atomic::Ordering::SeqCst) {
            0 => waits(None),
            1 => Reply::empty(503),
            _ => waits(Some(meeting)),
        }
    })
    .await;
    let worker = worker(server.client(folder.path()), folder.path());
    let (_keep, mut stop) = watch::channel(false);
    let (gang, socket) = worker.gather(&seated(0), &mut stop).await.unwrap().unwrap();
    assert_eq!((gang.rank, gang.ranks, gang.generation.as_str()), (0, 2, "job/1"));
    assert!(
        gang.store.ip().is_loopback(),
        "the address by which it reaches the coordinator"
    );
    let held = socket.unwrap().local_addr().unwrap();
    assert_eq!(held.port(), gang.store.port(), "nobody can take it meanwhile");
    assert_eq!(server.requests("/rendezvous").len(), 3);
    assert!(worker.gather(&job(), &mut stop).await.unwrap().is_none(), "alone");
}

#[tokio::test]
async fn a_worker_that_stops_while_it_waits_for_the_rest_gives_its_seat_back() {
    let folder = tempfile::tempdir().unwrap();
    let server = Coordinator::start(|request| match request.route.ends_with("/rendezvous") {
        true => waits(None).after(Duration::from_secs(600)),
        false => Reply::empty(200),
    })
    .await;
    let worker = worker(server.client(folder.path()), folder.path());
    let (sender, mut stop) = watch::channel(false);
    let stops = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        sender.send(true).unwrap();
    };
    let job = seated(1);
    let (gathered, ()) = tokio::join!(worker.gather(&job, &mut stop), stops);
    assert!(gathered.is_err());
    let reports = server.requests("/failure");
    let report: FailureReport = serde_json::from_slice(&reports[0].body).unwrap();
    assert!(report.released && report.lease_token == job.lease_token);
}

#[tokio::test]
async fn a_seat_that_is_lost_is_left_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let server = Coordinator::start(|_| Reply::problem(409, "lease-lost")).await;
    let worker = worker(server.client(folder.path()), folder.path());
    let (_keep, mut stop) = watch::channel(false);
    worker.work(seated(1), &mut stop).await;
    assert_eq!(
        server.requests("POST").len(),
        1,
        "one question, and nothing is reported"
    );
}

#[tokio::test]
async fn a_rank_other_than_0_says_that_it_is_done_and_reports_no_result() {
    let folder = tempfile::tempdir().unwrap();
    let server = Coordinator::start(slowly).await;
    let worker = worker(server.client(folder.path()), folder.path());
    let (job, pulse) = (seated(1), Arc::default());
    let lease = Lease::new(&worker.client, &job, &pulse);
    worker.say_done(&job, &lease, &result(Vec::new())).await;
    assert_eq!(server.requests("/done").len(), 1);
    assert_eq!(
        (server.requests("/result").len(), waiting_results(folder.path())),
        (0, 0)
    );
}
