//! Requests for jobs that take a model to the device.

use protocol::{
    CandidateId,
    artifacts::ArtifactRole,
    jobs::{
        CompressDecoderInput, DistillInput, ExportInput, ExportManifest, ExportPrecision, ExportSubject, JobInput,
        JobKind, JobRequest, ProfileModelInput, ProfileTarget, Scoring, TrainFinalInput,
    },
    luts::Block,
};
use sqlx::PgPool;
use temponas_server::{
    MIGRATOR,
    job_requests::{self, JobRequestError},
};

use crate::harness::{Harness, NAMED, SHAPES, runtime};

const JOINT: &str = include_str!("../../../worker/recipes/joint.toml");
const ADVERSARIAL: &str = include_str!("../../../worker/recipes/adversarial.toml");

fn request(input: JobInput) -> JobRequest {
    JobRequest {
        id: None,
        input,
        device: None,
        memory_bytes: 0,
    }
}

fn training() -> TrainFinalInput {
    TrainFinalInput {
        space: SHAPES.to_owned(),
        architecture: "c1.-.s1.-.-".to_owned(),
        weights: Vec::new(),
        base: Vec::new(),
        recipe: JOINT.to_owned(),
        scoring: Scoring::default(),
        seed: 0,
        ranks: 1,
    }
}

async fn distillation(t: &Harness) -> DistillInput {
    DistillInput {
        space: SHAPES.to_owned(),
        architecture: "c1.-.s1.-.-".to_owned(),
        weights: vec![t.file(ArtifactRole::Weights, "final.safetensors", b"final").await],
        base: Vec::new(),
        recipe: ADVERSARIAL.to_owned(),
        scoring: Scoring::default(),
        seed: 0,
        ranks: 2,
    }
}

async fn wrong(t: &Harness, input: JobInput) -> Vec<String> {
    match job_requests::submit(&t.app, request(input)).await {
        Err(JobRequestError::Invalid(errors)) => errors.into_iter().map(|error| error.field).collect(),
        other => panic!("{other:?}"),
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn trainings_go_to_workers_that_bring_the_evaluator_of_their_space(pool: PgPool) {
    let t = Harness::new(pool);
    let kinds = [JobKind::TrainFinal, JobKind::Distill];
    let other = t.worker_with("y", &kinds, &["own"]).await;
    let job = job_requests::submit(&t.app, request(JobInput::TrainFinal(training())))
        .await
        .unwrap();
    assert!(t.claim(other).await.is_none(), "the space names the built-in evaluator");
    let able = t.worker_with("x", &kinds, &["built-in"]).await;
    assert_eq!(t.claim(able).await.unwrap().job_id, job);
    let together = job_requests::submit(&t.app, request(JobInput::Distill(distillation(&t).await)))
        .await
        .unwrap();
    assert!(t.claim(able).await.is_none(), "two are needed");
    let second = t.worker_with("z", &kinds, &["built-in"]).await;
    assert_eq!(t.claim(second).await.unwrap().job_id, together);
    assert_eq!(t.job(together).await.ranks, 2);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn every_field_of_a_training_at_fault_is_named(pool: PgPool) {
    let t = Harness::new(pool);
    let bad = TrainFinalInput {
        architecture: "z9.-.s1.-.-".to_owned(),
        recipe: ADVERSARIAL.to_owned(),
        scoring: Scoring {
            prompts: Some(0),
            videos_per_prompt: None,
            sample_steps: Some(0),
            guidance: Some(f64::NAN),
        },
        ranks: 0,
        ..training()
    };
    assert_eq!(
        wrong(&t, JobInput::TrainFinal(bad)).await,
        [
            "input.architecture",
            "input.recipe",
            "input.scoring.prompts",
            "input.scoring.sample_steps",
            "input.scoring.guidance",
            "input.ranks"
        ]
    );
    let no_unet = TrainFinalInput {
        space: NAMED.to_owned(),
        recipe: JOINT.replace("batch = 1024", "batch = 0"),
        ..training()
    };
    assert_eq!(
        wrong(&t, JobInput::TrainFinal(no_unet)).await,
        ["input.space", "input.recipe"]
    );
    let from_nothing = DistillInput {
        weights: Vec::new(),
        ..distillation(&t).await
    };
    assert_eq!(wrong(&t, JobInput::Distill(from_nothing)).await, ["input.weights"]);
    let outside = CompressDecoderInput {
        parts: "a/b".to_owned(),
        base: Vec::new(),
        dataset: Some("..".to_owned()),
        recipe: JOINT.to_owned(),
        seed: 0,
    };
    assert_eq!(
        wrong(&t, JobInput::CompressDecoder(outside)).await,
        ["input.parts", "input.dataset", "input.recipe"]
    );
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn every_field_of_an_export_and_a_profile_at_fault_is_named(pool: PgPool) {
    let t = Harness::new(pool);
    let export = |subject| {
        JobInput::Export(ExportInput {
            subject,
            precision: ExportPrecision::F16,
            formats: Vec::new(),
            seed: 0,
        })
    };
    let model = ExportSubject::Model {
        space: SHAPES.to_owned(),
        architecture: "-".to_owned(),
        weights: Vec::new(),
        base: Vec::new(),
        decoder: Vec::new(),
        unet_parts: 0,
        batch: 0,
        sample_steps: 0,
        guidance: -1.0,
    };
    let of_subject = |fields: &[&str]| {
        fields
            .iter()
            .map(|field| format!("input.subject.{field}"))
            .collect::<Vec<_>>()
    };
    assert_eq!(
        wrong(&t, export(model)).await,
        of_subject(&[
            "architecture",
            "weights",
            "unet_parts",
            "batch",
            "sample_steps",
            "guidance"
        ])
    );
    let blocks = ExportSubject::Blocks {
        space: SHAPES.to_owned(),
        blocks: vec![Block {
            operator: String::new(),
            shape: Default::default(),
        }],
        profile_on: Some(ProfileTarget {
            device: "nowhere".to_owned(),
            runtime: runtime(),
        }),
    };
    assert_eq!(
        wrong(&t, export(blocks)).await,
        of_subject(&["blocks[0].operator", "profile_on.device"])
    );
    let nothing = ProfileModelInput {
        manifest: ExportManifest {
            opset: 21,
            exporter: String::new(),
            precision: ExportPrecision::F32,
            graphs: Vec::new(),
            sampler: None,
        },
        candidate_id: Some(CandidateId::new()),
        runs: 0,
        sustained_seconds: -1.0,
    };
    assert_eq!(
        wrong(&t, JobInput::ProfileModel(nothing)).await,
        [
            "device",
            "input.manifest.graphs",
            "input.candidate_id",
            "input.runs",
            "input.sustained_seconds"
        ]
    );
}
