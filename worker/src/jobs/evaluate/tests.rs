use std::ops::ControlFlow;

use protocol::artifacts::{ArtifactRef, ArtifactRole};
use search_spaces::TrainingSettings;
use tch::Device;

use super::super::diary::{DIARY, Diary};
use super::*;
use crate::checkpoint::Checkpoint;
use crate::data::latents::TrainingSet;
use crate::distributed::testing::together;
use crate::prune::tests::shipped_with_latents;

fn shapes() -> Space {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../search-spaces/spaces/shapes-tiny.toml");
    Space::parse(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn built(space: &Space, architecture: &str, seed: u64) -> (nn::VarStore, UNet) {
    let vs = nn::VarStore::new(Device::Cpu);
    let architecture = space.architecture(architecture).unwrap();
    let unet = UNet::new(&vs.root(), space.unet().unwrap(), &space.layers(&architecture));
    seed_weights(&vs, seed);
    (vs, unet)
}

/// Trains to the end of `settings`.
fn train(
    context: &JobContext,
    training: &mut Training<'_>,
    settings: &TrainingSettings,
    clips: &TrainingSet,
) -> Result<Diary, JobError> {
    let run = Run {
        context,
        settings,
        seed: 1,
        clips,
        share: TRAINING,
        status: "training",
    };
    run.go(training, Diary::default(), &Metrics::new)
}

#[test]
fn a_checkpoint_that_cannot_be_used_means_starting_again_from_step_0() {
    let (folder, tokio) = (tempfile::tempdir().unwrap(), tokio::runtime::Runtime::new().unwrap());
    let mut context = JobContext::alone(&tokio, folder.path());
    let space = shapes();
    let evaluation = space.evaluation.as_ref().unwrap();
    let (vs, unet) = built(&space, "c1.-.-.-.-", 1);
    let mut training = Training::new(&unet, &vs, &evaluation.training, 1).unwrap();
    let start = training.checkpoint().encode().unwrap();

    let (vs, unet) = built(&space, "c3.-.-.-.-", 1);
    let other = Training::new(&unet, &vs, &evaluation.training, 1).unwrap();
    let other = other.checkpoint().encode().unwrap();
    let mut wrong_diary = training.checkpoint();
    wrong_diary.notes.insert(DIARY.to_owned(), "no diary".to_owned());
    for bytes in [b"no checkpoint".to_vec(), other, wrong_diary.encode().unwrap()] {
        context.save(&bytes).unwrap();
        context.checkpoint = context.pulse.saved();
        let diary = resume(&context, &mut training).unwrap();
        assert!(diary.points.is_empty());
        assert_eq!(training.checkpoint().encode().unwrap(), start);
    }
    assert_eq!(context.pulse.log().matches("starting again from step 0").count(), 3);
}

#[test]
fn a_checkpoint_that_is_out_of_reach_for_now_is_worth_another_attempt() {
    let (folder, tokio) = (tempfile::tempdir().unwrap(), tokio::runtime::Runtime::new().unwrap());
    let mut context = JobContext::alone(&tokio, folder.path());
    context.checkpoint = Some(ArtifactRef {
        role: ArtifactRole::Checkpoint,
        digest: "ab".repeat(32).parse().unwrap(),
        name: "checkpoint".to_owned(),
        media_type: "text/plain".to_owned(),
        bytes: 1,
    });
    let space = shapes();
    let (vs, unet) = built(&space, "c1.-.-.-.-", 1);
    let mut training = Training::new(&unet, &vs, &space.evaluation.as_ref().unwrap().training, 1).unwrap();
    let error = resume(&context, &mut training).unwrap_err();
    assert!(error.is_worth_another_attempt(), "{error}");
}

#[test]
fn where_a_peer_is_lost_the_step_before_is_kept_and_what_diverges_is_not_tried_again() {
    let (folder, tokio) = (tempfile::tempdir().unwrap(), tokio::runtime::Runtime::new().unwrap());
    let root = shipped_with_latents(folder.path());
    let space = shapes();
    let evaluation = space.evaluation.as_ref().unwrap();
    let open = || {
        let assets = Assets::open(&root, "shapes", Device::Cpu).unwrap();
        let clips = assets.training_set(folder.path(), &mut |_| ControlFlow::Continue(()));
        clips.unwrap()
    };
    let ended = together(2, |group| {
        let (rank, clips) = (group.rank(), open());
        let context = JobContext::alone(&tokio, folder.path());
        let (vs, unet) = built(&space, "c1.-.-.-.-", 1);
        let training = Training::new(&unet, &vs, &evaluation.training, 1).unwrap();
        let mut training = training.with_group(group, ReducerConfig::default()).unwrap();
        let mine = TrainingSettings {
            // Rank 1 goes after the second step.
            steps: if rank == 0 { 9 } else { 2 },
            ..evaluation.training.clone()
        };
        let ended = train(&context, &mut training, &mine, &clips);
        (ended.map(drop), context)
    });
    let [(first, context), (second, _)] = ended.try_into().unwrap();
    assert!(second.is_ok());
    let error = first.unwrap_err();
    assert!(
        error.is_worth_another_attempt() && error.to_string().contains("a peer may be lost"),
        "{error}"
    );
    let saved = context.fetch(&context.pulse.saved().unwrap()).unwrap();
    assert_eq!(Checkpoint::decode(&saved).unwrap().step, 2);

    let (vs, unet) = built(&space, "c1.-.-.-.-", 1);
    for (_, mut weight) in vs.variables() {
        let _ = tch::no_grad(|| weight.fill_(f64::NAN));
    }
    let mut training = Training::new(&unet, &vs, &evaluation.training, 1).unwrap();
    let error = train(&context, &mut training, &evaluation.training, &open()).unwrap_err();
    assert!(
        !error.is_worth_another_attempt() && error.to_string().starts_with("at step 0 the loss is NaN"),
        "{error}"
    );
}

#[test]
fn layers_that_parent_and_child_share_inherit_and_the_others_do_not() {
    let space = shapes();
    let (parent, child) = ("c1.s1.x1.x3.c3", "c1.s1.x1.x3.s3");
    let trained = built(&space, parent, 1).0.variables().into_iter();
    let saved: BTreeMap<String, Tensor> = trained.map(|(name, tensor)| (name, tensor.full_like(7))).collect();
    let (vs, _unet) = built(&space, child, 2);
    let architecture = |text| space.architecture(text).unwrap();
    let count = copy_shared(&space, &architecture(child), &architecture(parent), &saved, &vs).unwrap();

    let inherited: Vec<String> = vs
        .variables()
        .into_iter()
        .filter(|(name, variable)| saved.get(name).is_some_and(|tensor| tensor == variable))
        .map(|(name, _)| name)
        .collect();
    assert_eq!(inherited.len(), count);
    for (i, position) in space.positions.iter().enumerate() {
        let here = format!("{}.", temporal_path(&position.name));
        let all = vs.variables().keys().filter(|name| name.starts_with(&here)).count();
        let taken = inherited.iter().filter(|name| name.starts_with(&here)).count();
        assert!(all > 0, "{}", position.name);
        assert_eq!(taken, if i < 4 { all } else { 0 }, "{}", position.name);
    }
    assert!(inherited.iter().all(|name| crate::models::unet::is_temporal(name)));
}

#[test]
fn a_training_tells_what_it_took() {
    let space = shapes();
    let settings = &space.evaluation.as_ref().unwrap().training;
    let (vs, unet) = built(&space, "c1.-.-.-.-", 1);
    let mut training = Training::new(&unet, &vs, settings, 1).unwrap();
    let batch = |_| {
        Ok(crate::data::latents::Batch {
            latents: crate::models::seeded::normal(&[2, 4, 5, 8, 8], 1, Device::Cpu),
            text: crate::models::seeded::normal(&[2, 8, 32], 2, Device::Cpu),
            pooled: None,
        })
    };
    let ran = training.run(3, &batch, &mut |_, _| ControlFlow::Continue(()));
    assert!(ran.unwrap().is_continue());
    let told = costs::of(training.step_milliseconds(), 12_345);
    assert_eq!(told["train_peak_memory_bytes"].value, 12_345.0);
    assert!(told["train_step_ms"].value > 0.0 && told["train_step_spread_ms"].value >= 0.0);
    let (vs, unet) = built(&space, "-.-.-.-.-", 1);
    let idle = Training::new(&unet, &vs, settings, 1).unwrap();
    assert!(costs::of(idle.step_milliseconds(), 1).is_empty(), "nothing was trained");
}
