//! Devices whose runtime runs graphs and builds no blocks.

use protocol::{
    devices::RuntimeName,
    jobs::{ExportSubject, JobInput, JobKind, Outcome, ProfileOutcome},
    leases::LeasedJob,
    luts::{BlockSet, EntryOutcome, EntryUpload, ProfileRequest},
    searches::{NewSearch, SearchState},
};
use sqlx::PgPool;
use temponas_server::{MIGRATOR, search};

use crate::harness::{Harness, SHAPES, new_search};

fn graph_runtime() -> RuntimeName {
    RuntimeName {
        name: "onnxruntime-cpu-1t".to_owned(),
        version: "1.22.0".to_owned(),
    }
}

fn on_phone(space: &str) -> NewSearch {
    NewSearch {
        device: Some("phone".to_owned()),
        ..new_search(space)
    }
}

/// Measures the blocks of a job, whose graphs must be there in the same order.
fn measured(job: &LeasedJob) -> Outcome {
    let JobInput::Profile(input) = &job.input else {
        panic!("{}", job.input.kind())
    };
    let graphs: Vec<_> = input.graphs.iter().map(|graph| graph.block.clone().unwrap()).collect();
    assert_eq!(graphs, input.blocks);
    assert!(input.graphs.iter().all(|graph| !graph.files.is_empty()));
    let entries = input.blocks.iter().map(|block| EntryUpload {
        block: block.clone(),
        dtype: "f32".to_owned(),
        outcome: EntryOutcome::Measured {
            latency_ms: vec![1.0, 1.1],
            peak_memory_bytes: vec![1e5],
        },
    });
    Outcome::Profile(ProfileOutcome {
        runtime: graph_runtime(),
        entries: entries.collect(),
    })
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn blocks_are_exported_before_a_graph_runtime_measures_them(pool: PgPool) {
    let t = Harness::new(pool);
    let agent = t
        .worker_running("phone", &[JobKind::Profile], &[], graph_runtime())
        .await;
    let exporter = t.worker_on("server", &[JobKind::Export]).await;
    let first = t.try_submit(&on_phone(SHAPES)).await.unwrap();
    assert!(t.claim(agent).await.is_none(), "there are no graphs yet");
    let mut exported = 0;
    while let Some(job) = t.claim(exporter).await {
        let JobInput::Export(input) = &job.input else {
            panic!("{}", job.input.kind())
        };
        let ExportSubject::Blocks { blocks, profile_on, .. } = &input.subject else {
            panic!("it exports blocks")
        };
        assert_eq!(profile_on.as_ref().unwrap().device, "phone");
        exported += blocks.len();
        t.do_step(&job).await;
        search::advance(&t.app, first).await.unwrap();
    }
    let mut profiled = 0;
    while let Some(job) = t.claim(agent).await {
        let JobInput::Profile(input) = &job.input else {
            panic!("{}", job.input.kind())
        };
        profiled += input.blocks.len();
        t.report(&job, measured(&job)).await.unwrap();
        search::advance(&t.app, first).await.unwrap();
    }
    assert_eq!(profiled, exported);
    assert_eq!(t.state(first).await, SearchState::Searching);

    // Another device of the same kind measures the graphs that are there.
    let other = t
        .worker_running("tablet", &[JobKind::Profile], &[], graph_runtime())
        .await;
    let new = NewSearch {
        device: Some("tablet".to_owned()),
        ..new_search(SHAPES)
    };
    let second = t.try_submit(&new).await.unwrap();
    assert!(t.claim(exporter).await.is_none());
    while let Some(job) = t.claim(other).await {
        t.report(&job, measured(&job)).await.unwrap();
        search::advance(&t.app, second).await.unwrap();
    }
    assert_eq!(t.state(second).await, SearchState::Searching);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_table_is_filled_for_a_graph_runtime_without_any_search(pool: PgPool) {
    let t = Harness::new(pool);
    let agent = t
        .worker_running("phone", &[JobKind::Profile], &[], graph_runtime())
        .await;
    let exporter = t.worker_on("server", &[JobKind::Export]).await;
    let wish = ProfileRequest {
        space: "shapes-tiny".to_owned(),
        runtime: Some(graph_runtime()),
        blocks: BlockSet::Space,
    };
    let reply = search::measure(&t.app, "phone", &wish).await.unwrap();
    assert!(reply.queued > 0 && reply.waiting == 0);
    let again = search::measure(&t.app, "phone", &wish).await.unwrap();
    assert_eq!((again.queued, again.waiting), (0, reply.queued), "exports wait already");
    while let Some(job) = t.claim(exporter).await {
        t.do_step(&job).await;
    }
    let mut entries = 0;
    while let Some(job) = t.claim(agent).await {
        let outcome = measured(&job);
        if let Outcome::Profile(found) = &outcome {
            entries += found.entries.len() as u64;
        }
        t.report_any(job.job_id, job.lease_token, outcome).await.unwrap();
    }
    assert_eq!(entries, reply.queued, "each block once");
    let done = search::measure(&t.app, "phone", &wish).await.unwrap();
    assert_eq!((done.queued, done.known), (0, reply.queued));
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_search_whose_blocks_cannot_be_exported_says_why(pool: PgPool) {
    let t = Harness::new(pool);
    t.worker_running("phone", &[JobKind::Profile], &[], graph_runtime())
        .await;
    let exporter = t.worker_on("server", &[JobKind::Export]).await;
    let failing = t.try_submit(&on_phone(SHAPES)).await.unwrap();
    while let Some(job) = t.claim(exporter).await {
        t.fail(&job, "no such operator", false, false).await;
    }
    let search = t.search(failing).await;
    assert_eq!(search.state, SearchState::Failed);
    assert!(search.state_reason.unwrap().contains("no such operator"));
    let rounded = SHAPES.replace("dtype = \"f32\"", "dtype = \"bf16\"");
    let refused = t.try_submit(&on_phone(&rounded)).await.unwrap();
    let reason = t.search(refused).await.state_reason.unwrap();
    assert!(reason.contains("bf16"), "{reason}");
}
