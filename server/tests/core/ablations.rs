//! Tables of the paper, filled by deployments.

use protocol::{
    AblationId,
    ablations::{AblationKind, NewAblation},
    deployments::DeploymentState,
    jobs::{JobInput, JobKind},
};
use sqlx::PgPool;
use temponas_server::{
    MIGRATOR,
    deployments::{DeploymentError, ablations},
    plots::Format,
};

use crate::{
    deployments::{STEPS, settings},
    harness::Harness,
};

#[sqlx::test(migrator = "MIGRATOR")]
async fn table_5_trains_one_model_and_distils_it_once_a_seed(pool: PgPool) {
    let t = Harness::new(pool);
    let (_, candidate) = t.candidate().await;
    let worker = t.deployer().await;
    let new = NewAblation {
        id: Some(AblationId::new()),
        candidate_id: candidate,
        table: AblationKind::Table5,
        seeds: 3,
        settings: settings(),
    };
    let id = ablations::submit(&t.app, &new).await.unwrap();
    assert_eq!(ablations::submit(&t.app, &new).await.unwrap(), id);
    let before = ablations::view(&t.app, id).await.unwrap();
    assert_eq!((before.state, before.deployments.len()), (DeploymentState::Running, 4));
    let kinds = t.deploy_off(worker).await;
    assert_eq!(
        kinds,
        [
            JobKind::TrainFinal,
            JobKind::Distill,
            JobKind::Distill,
            JobKind::Distill
        ]
    );
    let view = ablations::view(&t.app, id).await.unwrap();
    assert_eq!(view.state, DeploymentState::Done);
    let table = &view.result;
    let quality = table
        .columns
        .iter()
        .position(|column| column.metric == "quality")
        .unwrap();
    assert_eq!(table.columns[quality].evaluator.as_deref(), Some("built-in shapes"));
    let row = |steps: &str| {
        let row = table.rows.iter().find(|row| row.settings == [steps]).unwrap();
        row.cells[quality].clone()
    };
    assert_eq!(row("4").seeds, 3);
    assert_eq!(row("1").resolved, Some(true));
    assert_eq!(row("2").resolved, Some(false), "0.5 points apart, seeds 1 point apart");
    assert!(row("2").text.contains("not resolved"), "{}", row("2").text);
    let unscored = table
        .columns
        .iter()
        .find(|column| column.metric == "dynamic_degree")
        .unwrap();
    assert_eq!(unscored.evaluator, None);
    let picture = ablations::figure(&t.app, id, Format::Svg).await.unwrap();
    assert!(picture.starts_with(b"<svg"));
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn figure_6_removes_stages_of_the_candidate(pool: PgPool) {
    let t = Harness::new(pool);
    let (_, candidate) = t.candidate().await;
    let worker = t.worker_on("x", &STEPS).await;
    let new = NewAblation {
        id: None,
        candidate_id: candidate,
        table: AblationKind::Figure6,
        seeds: 1,
        settings: settings(),
    };
    let id = ablations::submit(&t.app, &new).await.unwrap();
    let mut architectures = Vec::new();
    while let Some(job) = t.claim(worker).await {
        let JobInput::TrainFinal(input) = &job.input else {
            panic!("it only trains")
        };
        assert_eq!(input.weights.len(), 1, "from the candidate's weights");
        architectures.push(input.architecture.clone());
        t.do_step(&job).await;
        temponas_server::deployments::advance_of(&t.app, job.job_id)
            .await
            .unwrap();
    }
    architectures.sort();
    architectures.dedup();
    assert!(architectures.len() > 1, "{architectures:?}");
    assert_eq!(ablations::view(&t.app, id).await.unwrap().state, DeploymentState::Done);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn an_ablation_is_cancelled_and_taken_up_again_as_a_whole(pool: PgPool) {
    let t = Harness::new(pool);
    let (_, candidate) = t.candidate().await;
    let worker = t.deployer().await;
    let mut new = NewAblation {
        id: None,
        candidate_id: candidate,
        table: AblationKind::Table4,
        seeds: 0,
        settings: settings(),
    };
    new.settings.recipes.adversarial = None;
    let Err(DeploymentError::Invalid(errors)) = ablations::submit(&t.app, &new).await else {
        panic!("it is refused")
    };
    let fields: Vec<&str> = errors.iter().map(|error| error.field.as_str()).collect();
    assert_eq!(fields, ["seeds", "settings.recipes.adversarial"]);
    new.settings = settings();
    new.seeds = 1;
    let id = ablations::submit(&t.app, &new).await.unwrap();
    ablations::cancel(&t.app, id).await.unwrap();
    assert_eq!(
        ablations::view(&t.app, id).await.unwrap().state,
        DeploymentState::Cancelled
    );
    assert!(t.claim(worker).await.is_none());
    ablations::retry(&t.app, id).await.unwrap();
    assert_eq!(
        t.deploy_off(worker).await.len(),
        7,
        "one training and six distillations"
    );
    assert_eq!(ablations::view(&t.app, id).await.unwrap().state, DeploymentState::Done);
}
