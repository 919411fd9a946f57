//! Candidates on their way to a device.

use std::collections::BTreeMap;

use protocol::{
    CandidateId, DeploymentId, Figure, JobId, Metrics, SearchId, WorkerId,
    artifacts::{ArtifactRef, ArtifactRole},
    deployments::{
        DeployRecipes, DeployStep, DeploymentSettings, DeploymentState, DeploymentView, NewDeployment, ProfileWish,
    },
    devices::RuntimeName,
    jobs::{
        CompressDecoderOutcome, DeviceSeconds, DistillOutcome, ExportManifest, ExportOutcome, ExportSubject,
        ExportedGraph, GraphFigures, GraphOutcome, GraphProfile, JobInput, JobKind, JobResult, JobState, Outcome,
        ProfileModelOutcome, ResultTable, SamplerGrid, ScoredSteps, TrainFinalOutcome,
    },
    leases::{FailureReport, LeasedJob, ResultReport},
    searches::{NewSearch, SearchState},
};
use sqlx::PgPool;
use temponas_server::{
    MIGRATOR,
    deployments::{self, DeploymentError, views},
    dispatch, job_requests, search,
    store::jobs::JobFilter,
};

use crate::harness::{Harness, SHAPES, done, new_search, runtime};

/// Every kind of step.
pub(crate) const STEPS: [JobKind; 5] = [
    JobKind::TrainFinal,
    JobKind::Distill,
    JobKind::CompressDecoder,
    JobKind::Export,
    JobKind::ProfileModel,
];

/// The smallest animation.
const GIF: &[u8] = b"GIF89a\x01\x00\x01\x00\x80\x00\x00\xff\xff\xff\x00\x00\x00!\xf9\x04\x01\x00\x00\x00\x00,\x00\x00\x00\x00\x01\x00\x01\x00\x00\x02\x02D\x01\x00;";

pub(crate) fn settings() -> DeploymentSettings {
    DeploymentSettings {
        recipes: DeployRecipes {
            joint: Some(include_str!("../../../worker/recipes/joint.toml").to_owned()),
            adversarial: Some(include_str!("../../../worker/recipes/adversarial.toml").to_owned()),
            decoder: Some("stage = \"decoder\"".to_owned()),
        },
        profile: Some(ProfileWish {
            device: "x".to_owned(),
            runtime: None,
            runs: 3,
            sustained_seconds: 0.0,
        }),
        ..DeploymentSettings::default()
    }
}

impl Harness {
    pub(crate) async fn file(&self, role: ArtifactRole, name: &str, bytes: &[u8]) -> ArtifactRef {
        ArtifactRef {
            role,
            digest: self.upload(bytes).await,
            name: name.to_owned(),
            media_type: if role == ArtifactRole::Animation {
                "image/gif".to_owned()
            } else {
                "application/octet-stream".to_owned()
            },
            bytes: bytes.len() as u64,
        }
    }

    /// A search on the device `x` with one evaluated candidate, whose weights are there.
    pub(crate) async fn candidate(&self) -> (SearchId, CandidateId) {
        let worker = self
            .worker_on("x", &[JobKind::Profile, JobKind::Evaluate, JobKind::Verify])
            .await;
        let new = NewSearch {
            device: Some("x".to_owned()),
            ..new_search(SHAPES)
        };
        let search = self.try_submit(&new).await.unwrap();
        loop {
            let job = self.claim(worker).await.unwrap();
            let JobInput::Evaluate(input) = &job.input else {
                self.finish(&job).await;
                continue;
            };
            let weights = self
                .file(ArtifactRole::Weights, "weights.safetensors", b"weights")
                .await;
            let report = ResultReport {
                lease_token: job.lease_token,
                result: JobResult {
                    device_seconds: DeviceSeconds::default(),
                    artifacts: vec![weights],
                    outcome: done(&job),
                },
            };
            self.send(job.job_id, report).await.unwrap();
            search::advance(&self.app, search).await.unwrap();
            // The reference without temporal layers has nothing to scale or remove.
            if input.architecture.contains(['c', 's']) {
                return (search, input.candidate_id);
            }
        }
    }

    pub(crate) async fn deployer(&self) -> WorkerId {
        self.worker_on("x", &STEPS).await
    }

    async fn deploy(&self, candidate: CandidateId, settings: DeploymentSettings) -> DeploymentId {
        let new = NewDeployment {
            id: None,
            candidate_id: candidate,
            settings,
        };
        deployments::submit(&self.app, &new).await.unwrap()
    }

    async fn deployment(&self, id: DeploymentId) -> DeploymentView {
        views::view(&self.app, id).await.unwrap()
    }

    /// Does a step's job without moving its deployment on, as a coordinator does that dies in between.
    pub(crate) async fn do_step(&self, job: &LeasedJob) {
        let (artifacts, outcome) = found(self, &job.input).await;
        let report = ResultReport {
            lease_token: job.lease_token,
            result: JobResult {
                device_seconds: DeviceSeconds::default(),
                artifacts,
                outcome,
            },
        };
        self.send(job.job_id, report).await.unwrap();
    }

    /// Does every step that the worker is given until there is nothing more; answers their kinds.
    pub(crate) async fn deploy_off(&self, worker: WorkerId) -> Vec<JobKind> {
        let mut kinds = Vec::new();
        while let Some(job) = self.claim(worker).await {
            self.do_step(&job).await;
            deployments::advance_of(&self.app, job.job_id).await.unwrap();
            kinds.push(job.input.kind());
        }
        kinds
    }

    async fn fail_step(&self, job: &LeasedJob) {
        let report = FailureReport {
            lease_token: job.lease_token,
            error: "no memory".to_owned(),
            log: None,
            retry: false,
            released: false,
            device_seconds: DeviceSeconds::default(),
        };
        dispatch::fail(&self.app.store, self.rules(), job.job_id, &report, self.app.clock.now())
            .await
            .unwrap();
        deployments::advance_of(&self.app, job.job_id).await.unwrap();
    }

    async fn jobs_of(&self, kind: JobKind) -> Vec<JobId> {
        let filter = JobFilter::Listed(None, None, Some(kind), None);
        let jobs = self.app.store.job_views(filter, 100).await.unwrap();
        jobs.into_iter().map(|job| job.id).collect()
    }
}

pub(crate) fn scores(quality: f64) -> Metrics {
    let figure = |value| Figure {
        value,
        standard_error: 0.01,
    };
    [("quality", quality), ("color", quality + 0.1)]
        .map(|(name, value)| (name.to_owned(), figure(value)))
        .into()
}

/// What an able worker finds.
async fn found(t: &Harness, input: &JobInput) -> (Vec<ArtifactRef>, Outcome) {
    match input {
        JobInput::TrainFinal(_) => {
            let files = vec![
                t.file(ArtifactRole::Weights, "final.safetensors", b"final").await,
                t.file(ArtifactRole::Animation, "<b>.gif", GIF).await,
            ];
            let outcome = TrainFinalOutcome {
                metrics: scores(0.7),
                evaluator: "built-in shapes".to_owned(),
            };
            (files, Outcome::TrainFinal(outcome))
        }
        JobInput::Distill(input) => {
            let files = vec![
                t.file(ArtifactRole::Weights, "distilled.safetensors", b"distilled")
                    .await,
            ];
            let shift = 0.01 * input.seed as f64;
            let outcome = DistillOutcome {
                metrics: scores(0.68 + shift),
                evaluator: "built-in shapes".to_owned(),
                table: ResultTable::default(),
                by_steps: [(1, 0.3), (2, 0.675), (4, 0.68)]
                    .map(|(steps, quality)| ScoredSteps {
                        steps,
                        metrics: scores(quality + shift),
                    })
                    .to_vec(),
            };
            (files, Outcome::Distill(outcome))
        }
        JobInput::CompressDecoder(_) => {
            let files = vec![
                t.file(ArtifactRole::Base, "manifest.json", b"{}").await,
                t.file(ArtifactRole::Weights, "decoder.safetensors", b"decoder").await,
            ];
            let outcome = CompressDecoderOutcome {
                metrics: Metrics::new(),
                table: ResultTable::default(),
            };
            (files, Outcome::CompressDecoder(outcome))
        }
        JobInput::Export(input) => {
            let file = t.file(ArtifactRole::Graph, "unet.onnx", b"graph").await;
            let graph = |block| ExportedGraph {
                name: "unet.0".to_owned(),
                block,
                inputs: Vec::new(),
                outputs: Vec::new(),
                files: vec![file.clone()],
                runs: 1,
                parameters: 1,
                largest_relative_error: 0.0,
            };
            let graphs = match &input.subject {
                ExportSubject::Model { .. } => vec![graph(None)],
                ExportSubject::Blocks { blocks, .. } => blocks.iter().cloned().map(Some).map(graph).collect(),
            };
            let outcome = ExportOutcome {
                metrics: Metrics::new(),
                manifest: ExportManifest {
                    opset: 21,
                    exporter: "1".to_owned(),
                    precision: input.precision,
                    graphs,
                    sampler: Some(SamplerGrid {
                        times: vec![1.0, 0.75, 0.5, 0.25],
                        guidance: 1.0,
                        embeddings: file.clone(),
                    }),
                },
            };
            (vec![file], Outcome::Export(outcome))
        }
        JobInput::ProfileModel(input) => {
            let figure = |value| Figure {
                value,
                standard_error: 0.1,
            };
            let metrics: BTreeMap<String, Figure> = [
                ("latency_ms", 33.0),
                ("text_latency_ms", 1.0),
                ("decode_latency_ms", 7.0),
                ("pipeline_latency_ms", 140.0),
                ("peak_memory_bytes", 3e6),
            ]
            .map(|(name, value)| (name.to_owned(), figure(value)))
            .into();
            let graphs = input.manifest.graphs.iter().map(|graph| GraphProfile {
                name: graph.name.clone(),
                file_bytes: 5,
                outcome: GraphOutcome::Measured(GraphFigures {
                    warm_ms: vec![33.0, 33.1],
                    ..GraphFigures::default()
                }),
            });
            let outcome = ProfileModelOutcome {
                runtime: runtime(),
                metrics,
                graphs: graphs.collect(),
            };
            (Vec::new(), Outcome::ProfileModel(outcome))
        }
        other => panic!("{} is no step", other.kind()),
    }
}

fn names(files: &[ArtifactRef]) -> Vec<&str> {
    files.iter().map(|file| file.name.as_str()).collect()
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_candidate_goes_through_all_steps_and_learns_from_its_device(pool: PgPool) {
    let t = Harness::new(pool);
    let (search, candidate) = t.candidate().await;
    let evaluator = t
        .worker_on("x", &[JobKind::Profile, JobKind::Evaluate, JobKind::Verify])
        .await;
    t.work_off(evaluator).await;
    assert_eq!(t.state(search).await, SearchState::Done);
    let worker = t.deployer().await;
    let id = t.deploy(candidate, settings()).await;
    let mut inputs = Vec::new();
    while let Some(job) = t.claim(worker).await {
        assert_eq!(t.deployment(id).await.state, DeploymentState::Running);
        assert!(t.claim(worker).await.is_none(), "one step at a time");
        t.do_step(&job).await;
        deployments::advance_of(&t.app, job.job_id).await.unwrap();
        inputs.push(job.input);
    }
    let view = t.deployment(id).await;
    assert_eq!((view.state, view.state_reason), (DeploymentState::Done, None));
    assert!(view.steps.iter().all(|step| step.state == Some(JobState::Succeeded)));
    assert_eq!(inputs.iter().map(JobInput::kind).collect::<Vec<_>>(), STEPS);
    let JobInput::TrainFinal(train) = &inputs[0] else {
        panic!("{inputs:?}")
    };
    assert_eq!(names(&train.weights), ["weights.safetensors"], "the candidate's");
    let JobInput::ProfileModel(profile) = &inputs[4] else {
        panic!("{inputs:?}")
    };
    assert_eq!(profile.candidate_id, Some(candidate));
    // Measured where the search predicts: the figures verify the candidate and calibrate, though the search is done.
    let of_search = t.candidates(search).await;
    let shown = of_search.iter().find(|shown| shown.id == candidate).unwrap();
    assert_eq!(shown.verified["latency_ms"].value, 33.0);
    let verified = of_search
        .iter()
        .filter(|candidate| !candidate.verified.is_empty())
        .count() as u64;
    let calibration = t.search(search).await.calibration.unwrap().0;
    assert_eq!(calibration[0].architectures, verified);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn figures_of_another_runtime_stay_with_their_job(pool: PgPool) {
    let t = Harness::new(pool);
    let (search, candidate) = t.candidate().await;
    let other = RuntimeName {
        name: "onnxruntime-cpu".to_owned(),
        version: "1.22.0".to_owned(),
    };
    t.deployer().await;
    let trainer = t.worker_on("y", &STEPS[..4]).await;
    let agent = t
        .worker_running("x", &[JobKind::ProfileModel], &[], other.clone())
        .await;
    let mut wish = settings();
    wish.profile.as_mut().unwrap().runtime = Some(other.clone());
    let id = t.deploy(candidate, wish).await;
    assert_eq!(t.deploy_off(trainer).await.len(), 4);
    let job = t.claim(agent).await.unwrap();
    let (artifacts, outcome) = found(&t, &job.input).await;
    let Outcome::ProfileModel(mut measured) = outcome else {
        panic!("it measures")
    };
    let report = |measured: &ProfileModelOutcome| ResultReport {
        lease_token: job.lease_token,
        result: JobResult {
            device_seconds: DeviceSeconds::default(),
            artifacts: artifacts.clone(),
            outcome: Outcome::ProfileModel(measured.clone()),
        },
    };
    let refused = t.send(job.job_id, report(&measured)).await.unwrap_err();
    assert!(format!("{refused:?}").contains("result.outcome.runtime"), "{refused:?}");
    measured.runtime = other;
    t.send(job.job_id, report(&measured)).await.unwrap();
    deployments::advance_of(&t.app, job.job_id).await.unwrap();
    assert_eq!(t.deployment(id).await.state, DeploymentState::Done);
    let candidates = t.candidates(search).await;
    let shown = candidates.iter().find(|shown| shown.id == candidate).unwrap();
    assert!(shown.verified.is_empty(), "the search predicts another runtime");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_coordinator_that_dies_after_a_result_loses_no_step_and_doubles_none(pool: PgPool) {
    let t = Harness::new(pool);
    let (_, candidate) = t.candidate().await;
    let worker = t.deployer().await;
    let id = t.deploy(candidate, settings()).await;
    for kind in STEPS {
        let job = t.claim(worker).await.unwrap();
        assert_eq!(job.input.kind(), kind);
        t.do_step(&job).await;
        assert!(t.claim(worker).await.is_none(), "nobody moved it on");
        let (one, two) = (t.another(), t.another());
        let (first, second) = tokio::join!(deployments::advance_all(&one.app), deployments::advance_all(&two.app));
        first.and(second).unwrap();
        deployments::advance_all(&t.app).await.unwrap();
        assert_eq!(t.jobs_of(kind).await.len(), 1);
    }
    assert_eq!(t.deployment(id).await.state, DeploymentState::Done);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_failed_step_is_tried_again_and_finished_ones_are_not(pool: PgPool) {
    let t = Harness::new(pool);
    let (_, candidate) = t.candidate().await;
    let worker = t.deployer().await;
    let id = t.deploy(candidate, settings()).await;
    t.do_step(&t.claim(worker).await.unwrap()).await;
    deployments::advance(&t.app, id).await.unwrap();
    let distilling = t.claim(worker).await.unwrap();
    t.fail_step(&distilling).await;
    let view = t.deployment(id).await;
    assert_eq!(view.state, DeploymentState::Failed);
    let reason = view.state_reason.unwrap();
    assert!(
        reason.starts_with("distill: ") && reason.contains("no memory"),
        "{reason}"
    );
    assert!(t.claim(worker).await.is_none());
    let refused = deployments::cancel(&t.app, id).await;
    assert!(
        matches!(refused, Err(DeploymentError::WrongState { .. })),
        "{refused:?}"
    );

    deployments::retry(&t.app, id).await.unwrap();
    deployments::retry(&t.app, id).await.unwrap();
    let again = t.claim(worker).await.unwrap();
    assert_eq!(
        again.job_id, distilling.job_id,
        "the same job, which goes on from its checkpoint"
    );
    assert_eq!(again.attempt, 2);
    t.do_step(&again).await;
    deployments::advance(&t.app, id).await.unwrap();
    assert_eq!(t.deploy_off(worker).await, STEPS[2..]);
    assert_eq!(t.deployment(id).await.state, DeploymentState::Done);
    assert_eq!(t.jobs_of(JobKind::TrainFinal).await.len(), 1);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_cancelled_deployment_can_be_taken_up_again(pool: PgPool) {
    let t = Harness::new(pool);
    let (_, candidate) = t.candidate().await;
    let worker = t.deployer().await;
    let id = t.deploy(candidate, settings()).await;
    let job = t.claim(worker).await.unwrap();
    for _ in 0..2 {
        deployments::cancel(&t.app, id).await.unwrap();
    }
    assert_eq!(t.job(job.job_id).await.state, JobState::Cancelled);
    assert_eq!(t.deployment(id).await.state, DeploymentState::Cancelled);
    deployments::advance_all(&t.app).await.unwrap();
    assert!(t.claim(worker).await.is_none());
    deployments::retry(&t.app, id).await.unwrap();
    assert_eq!(t.deploy_off(worker).await, STEPS);
    // A step's job that is cancelled by itself ends its deployment too.
    let other = t.deploy(candidate, settings()).await;
    let job = t.claim(worker).await.unwrap().job_id;
    job_requests::cancel(&t.app.store, job, t.app.clock.now())
        .await
        .unwrap();
    deployments::advance_of(&t.app, job).await.unwrap();
    let view = t.deployment(other).await;
    assert!(view.state_reason.unwrap().contains("was cancelled"));
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn what_goes_on_from_a_deployment_waits_for_it(pool: PgPool) {
    let t = Harness::new(pool);
    let (_, candidate) = t.candidate().await;
    let worker = t.deployer().await;
    let only = |steps: &[DeployStep], after| DeploymentSettings {
        steps: steps.to_vec(),
        after,
        ..settings()
    };
    let first = t.deploy(candidate, only(&[DeployStep::TrainFinal], None)).await;
    let second = t
        .deploy(
            candidate,
            only(&[DeployStep::TrainFinal, DeployStep::Distill], Some(first)),
        )
        .await;
    let job = t.claim(worker).await.unwrap();
    assert!(t.claim(worker).await.is_none(), "the second waits");
    t.fail_step(&job).await;
    let reason = t.deployment(second).await.state_reason.unwrap();
    assert!(reason.contains(&first.to_string()), "{reason}");
    deployments::retry(&t.app, second).await.unwrap();
    assert_eq!(t.deployment(first).await.state, DeploymentState::Running, "with it");
    let job = t.claim(worker).await.unwrap();
    t.do_step(&job).await;
    deployments::advance_of(&t.app, job.job_id).await.unwrap();
    let tuning = t.claim(worker).await.unwrap();
    let JobInput::TrainFinal(input) = &tuning.input else {
        panic!("it trains on")
    };
    assert_eq!(names(&input.weights), ["final.safetensors"], "from what came before");
    t.do_step(&tuning).await;
    deployments::advance_of(&t.app, tuning.job_id).await.unwrap();
    assert_eq!(t.deploy_off(worker).await, [JobKind::Distill]);
    assert_eq!(t.deployment(second).await.state, DeploymentState::Done);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn asking_again_changes_nothing_and_every_field_at_fault_is_named(pool: PgPool) {
    let t = Harness::new(pool);
    let (_, candidate) = t.candidate().await;
    t.deployer().await;
    let new = NewDeployment {
        id: Some(DeploymentId::new()),
        candidate_id: candidate,
        settings: settings(),
    };
    let first = deployments::submit(&t.app, &new).await.unwrap();
    assert_eq!(deployments::submit(&t.app, &new).await.unwrap(), first);
    assert_eq!(t.jobs_of(JobKind::TrainFinal).await.len(), 1);
    let mut other = new.clone();
    other.settings.seed = 9;
    let refused = deployments::submit(&t.app, &other).await;
    assert!(matches!(refused, Err(DeploymentError::IdTaken(_))), "{refused:?}");

    let mut bad = settings();
    bad.recipes.joint = bad.recipes.adversarial.take();
    bad.recipes.decoder = Some("stage = ".to_owned());
    bad.profile.as_mut().unwrap().device = "nowhere".to_owned();
    bad.ranks = 0;
    bad.export.unet_parts = 0;
    bad.after = Some(DeploymentId::new());
    let bad = NewDeployment {
        id: None,
        candidate_id: candidate,
        settings: bad,
    };
    let Err(DeploymentError::Invalid(errors)) = deployments::submit(&t.app, &bad).await else {
        panic!("it is refused")
    };
    let mut fields: Vec<&str> = errors.iter().map(|error| error.field.as_str()).collect();
    fields.sort_unstable();
    assert_eq!(
        fields,
        [
            "settings.after",
            "settings.export.unet_parts",
            "settings.profile.device",
            "settings.ranks",
            "settings.recipes.adversarial",
            "settings.recipes.decoder",
            "settings.recipes.joint",
        ]
    );
    let nothing = NewDeployment {
        id: None,
        candidate_id: candidate,
        settings: DeploymentSettings {
            steps: vec![DeployStep::Distill, DeployStep::ProfileModel],
            ..settings()
        },
    };
    let Err(DeploymentError::Invalid(errors)) = deployments::submit(&t.app, &nothing).await else {
        panic!("there is nothing to distil")
    };
    assert_eq!(errors.len(), 2, "{errors:?}");
    let nobody = NewDeployment {
        candidate_id: CandidateId::new(),
        ..new
    };
    let nobody = NewDeployment { id: None, ..nobody };
    let refused = deployments::submit(&t.app, &nobody).await;
    assert!(matches!(refused, Err(DeploymentError::NoCandidate(_))), "{refused:?}");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_model_is_measured_alone_on_its_device(pool: PgPool) {
    let t = Harness::new(pool);
    let (_, candidate) = t.candidate().await;
    let worker = t.deployer().await;
    let evaluator = t.worker_on("x", &[JobKind::Evaluate]).await;
    t.deploy(candidate, settings()).await;
    for _ in 0..4 {
        let job = t.claim(worker).await.unwrap();
        t.do_step(&job).await;
        deployments::advance_of(&t.app, job.job_id).await.unwrap();
    }
    let evaluation = t.claim(evaluator).await;
    assert!(evaluation.is_none(), "a measurement waits for the device");
    let measurement = t.claim(worker).await.unwrap();
    assert_eq!(measurement.input.kind(), JobKind::ProfileModel);
    assert!(t.claim(evaluator).await.is_none(), "a measurement runs there");
    let elsewhere = t.worker_on("y", &[JobKind::Evaluate]).await;
    assert!(t.claim(elsewhere).await.is_some());
    t.do_step(&measurement).await;
    assert!(t.claim(evaluator).await.is_some());
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_report_is_there_at_any_time_and_escapes_what_it_shows(pool: PgPool) {
    let t = Harness::new(pool);
    let (_, candidate) = t.candidate().await;
    let worker = t.deployer().await;
    let id = t.deploy(candidate, settings()).await;
    let early = deployments::report(&t.app, id).await.unwrap();
    assert!(early.contains("running"));
    t.deploy_off(worker).await;
    let page = deployments::report(&t.app, id).await.unwrap();
    assert!(page.contains("data:image/gif;base64,R0lGODlhAQAB"));
    assert!(page.contains("&lt;b&gt;.gif") && !page.contains("<b>.gif"));
    assert!(page.contains("140 ms"), "the pipeline");
    assert!(!page.contains("<script"));
}
