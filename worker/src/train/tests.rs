use search_spaces::{Dtype, Operator, TemporalLayer, TimestepShift, UnetConfig};
use tch::Device;

use super::*;
use crate::flow;
use crate::models::seeded::normal_from;
use crate::models::seeded::seed_weights;
use crate::models::unet::is_temporal;
use crate::shim::measure_peak;

fn config() -> UnetConfig {
    UnetConfig {
        latent_channels: 4,
        frames: 3,
        height: 4,
        width: 4,
        channels: vec![8, 16],
        layers_per_block: 1,
        attention: vec![false, true],
        middle: true,
        heads: 2,
        text_tokens: 4,
        text_width: 8,
        norm_groups: 4,
        ff_multiplier: 2,
        qk_norm: true,
        rope: false,
        dtype: Dtype::F32,
        parts: 1,
    }
}

fn settings() -> TrainingSettings {
    TrainingSettings {
        steps: 20,
        batch: 2,
        accumulate: 1,
        learning_rate: 2e-3,
        warmup_steps: 0,
        betas: [0.9, 0.999],
        weight_decay: 0.01,
        max_gradient_norm: 1.0,
        ema: None,
        precision: Precision::F32,
        gradient_checkpointing: false,
        text_dropout: 0.1,
        noise_mean: 0.0,
        noise_std: 1.0,
        timestep_shift: TimestepShift::None,
        checkpoint_every: 10,
    }
}

/// Everything that a training at size asks for, at once.
fn all_settings() -> TrainingSettings {
    TrainingSettings {
        accumulate: 2,
        warmup_steps: 15,
        betas: [0.5, 0.99],
        max_gradient_norm: 0.1,
        ema: Some(0.9),
        precision: Precision::Bf16,
        gradient_checkpointing: true,
        timestep_shift: TimestepShift::Fixed(2.0),
        ..settings()
    }
}

fn batch(step: u64) -> Batch {
    let noise = |stream, shape: &[i64]| normal_from(&mut generator(77 + step, stream), shape, Device::Cpu);
    // Frames that brighten with time: something that only temporal layers can follow.
    let ramp = Tensor::linspace(-1.0, 1.0, 3, (tch::Kind::Float, Device::Cpu)).reshape([1, 1, 3, 1, 1]);
    Batch {
        latents: noise(0, &[2, 4, 1, 4, 4]) * 0.1 + ramp,
        text: noise(1, &[2, 4, 8]),
        pooled: None,
    }
}

fn built() -> (nn::VarStore, UNet) {
    let vs = nn::VarStore::new(Device::Cpu);
    use Operator::{Conv1d, Conv3d, CrossAttention1d, SelfAttention3d};
    let layers = [Conv1d, SelfAttention3d, CrossAttention1d, Conv1d, Conv3d]
        .map(|operator| Some(TemporalLayer { operator, depth: 1 }));
    let unet = UNet::new(&vs.root(), &config(), &layers);
    seed_weights(&vs, 3);
    (vs, unet)
}

fn training<'a>(unet: &'a UNet, vs: &nn::VarStore, settings: &'a TrainingSettings, seed: u64) -> Training<'a> {
    Training::new(unet, vs, settings, seed).unwrap()
}

fn run(training: &mut Training<'_>, steps: u64) -> Vec<f64> {
    let mut losses = Vec::new();
    let ended = training.run(steps, &|step| Ok(batch(step)), &mut |_, loss| {
        losses.push(loss);
        ControlFlow::Continue(())
    });
    assert!(ended.unwrap().is_continue());
    losses
}

/// What a training of `steps` ends with.
fn trained(settings: &TrainingSettings, steps: u64) -> Trained {
    let (vs, unet) = built();
    let mut training = training(&unet, &vs, settings, 5);
    let losses = run(&mut training, steps);
    (losses, training.finish().unwrap())
}

/// Largest distance of two results' weights, as a share of the largest move from the start.
fn apart(a: &[(String, Tensor)], b: &[(String, Tensor)]) -> f64 {
    let start = built().0.variables();
    let largest = |x: &Tensor, y: &Tensor| (x - y).abs().max().to_kind(Kind::Double).double_value(&[]);
    let (mut moved, mut distance) = (0f64, 0f64);
    for ((name, x), (_, y)) in a.iter().zip(b) {
        moved = moved.max(largest(x, &start[name].detach()));
        distance = distance.max(largest(x, y));
    }
    distance / moved
}

type Trained = (Vec<f64>, Vec<(String, Tensor)>);

fn same_but_for_the_order_of_sums(a: &Trained, b: &Trained) {
    for (a, b) in a.0.iter().zip(&b.0) {
        assert!((a - b).abs() < 1e-5 * a, "{a} against {b}");
    }
    assert!(apart(&a.1, &b.1) < 1e-3, "{}", apart(&a.1, &b.1));
}

#[test]
fn a_training_resumed_from_its_checkpoint_ends_with_the_same_bytes() {
    for settings in [settings(), all_settings()] {
        let (vs, unet) = built();
        let mut straight = training(&unet, &vs, &settings, 5);
        let straight_losses = run(&mut straight, 20);

        let (vs, unet) = built();
        let mut first = training(&unet, &vs, &settings, 5);
        let mut losses = run(&mut first, 10);
        let saved = first.checkpoint().encode().unwrap();
        drop(first);
        let (vs, unet) = built();
        let mut second = training(&unet, &vs, &settings, 5);
        second.restore(&Checkpoint::decode(&saved).unwrap()).unwrap();
        losses.extend(run(&mut second, 20));

        assert_eq!(losses, straight_losses);
        assert_eq!(
            second.checkpoint().encode().unwrap(),
            straight.checkpoint().encode().unwrap()
        );
        assert_eq!(second.finish().unwrap(), straight.finish().unwrap());
    }
}

#[test]
fn training_lowers_the_loss_and_leaves_the_backbone_alone() {
    let settings = TrainingSettings {
        learning_rate: 1e-2,
        ..settings()
    };
    let (vs, unet) = built();
    let (clips, noise) = (
        batch(1000),
        normal_from(&mut generator(1, 1), &[2, 4, 3, 4, 4], Device::Cpu),
    );
    let half = Tensor::full([2], 0.5, (tch::Kind::Float, Device::Cpu));
    let loss = || {
        let velocity = |x: &Tensor, t: &Tensor| unet.forward(x, t, &clips.text);
        tch::no_grad(|| flow::loss(velocity, &clips.latents, &noise, &half)).double_value(&[])
    };
    let untrained = loss();
    let before: std::collections::HashMap<_, _> = vs
        .variables()
        .into_iter()
        .map(|(name, w)| (name, w.copy().detach()))
        .collect();
    let mut training = training(&unet, &vs, &settings, 5);
    run(&mut training, 40);
    let trained = loss();
    assert!(trained < 0.9 * untrained, "{untrained} to {trained}");
    for (name, after) in vs.variables() {
        let same = after.detach() == before[&name];
        assert_ne!(same, is_temporal(&name), "{name}");
    }
}

#[test]
fn another_seed_trains_otherwise_and_no_layers_train_nothing() {
    let settings = settings();
    let losses = |seed| {
        let (vs, unet) = built();
        run(&mut training(&unet, &vs, &settings, seed), 2)
    };
    assert_ne!(losses(5), losses(6));
    let vs = nn::VarStore::new(Device::Cpu);
    let unet = UNet::new(&vs.root(), &config(), &[]);
    assert!(run(&mut training(&unet, &vs, &settings, 5), 20).is_empty());
}

#[test]
fn a_checkpoint_of_another_architecture_is_refused() {
    for settings in [settings(), all_settings()] {
        let (vs, unet) = built();
        let checkpoint = training(&unet, &vs, &settings, 5).checkpoint();
        let other = nn::VarStore::new(Device::Cpu);
        use Operator::{Conv1d, Conv3d};
        // The first layer is the same, the second another.
        let layers = [Conv1d, Conv3d].map(|operator| Some(TemporalLayer { operator, depth: 1 }));
        let unet = UNet::new(&other.root(), &config(), &layers);
        seed_weights(&other, 4);
        let mut training = training(&unet, &other, &settings, 5);
        let before = training.checkpoint().encode().unwrap();
        let error = training.restore(&checkpoint).unwrap_err();
        assert!(error.to_string().contains("temporal.down_1.0.conv"), "{error}");
        assert_eq!(
            training.checkpoint().encode().unwrap(),
            before,
            "nothing was taken over"
        );
    }
}

#[test]
fn micro_batches_give_the_step_of_the_whole_batch() {
    let split = TrainingSettings {
        accumulate: 2,
        ..settings()
    };
    same_but_for_the_order_of_sums(&trained(&settings(), 6), &trained(&split, 6));
}

/// bfloat16 keeps eight bits: a pass is off by some 2⁻⁸, and the loss with it. Weights follow Adam, which takes signs of
/// small gradients for large, so they are told by the loss they reach.
#[test]
fn bfloat16_follows_float32_to_its_own_digits() {
    let long = TrainingSettings {
        learning_rate: 1e-2,
        ..settings()
    };
    let small = TrainingSettings {
        precision: Precision::Bf16,
        ..long.clone()
    };
    let (wide, narrow) = (trained(&long, 30), trained(&small, 30));
    for (step, (a, b)) in wide.0.iter().zip(&narrow.0).enumerate() {
        assert!((a - b).abs() < 0.02 * a, "step {step}: {a} against {b}");
    }
    assert!(wide.0 != narrow.0);
    assert!(narrow.1.iter().all(|(_, weight)| weight.kind() == Kind::Float));
}

#[test]
fn in_bfloat16_masters_move_by_less_than_the_model_can_show_and_the_frozen_have_none() {
    let tiny = TrainingSettings {
        precision: Precision::Bf16,
        learning_rate: 1e-5,
        ..settings()
    };
    let (vs, unet) = built();
    let mut training = training(&unet, &vs, &tiny, 5);
    let shown = |training: &Training<'_>| -> Vec<Tensor> {
        let norms = training
            .variables()
            .iter()
            .filter(|(name, _)| name.ends_with("norm.weight"));
        norms.map(|(_, weight)| weight.detach().copy()).collect()
    };
    let before = shown(&training);
    run(&mut training, 3);
    assert!(!before.is_empty());
    assert_eq!(shown(&training), before, "in bfloat16 nothing happened");
    for (name, variable) in vs.variables() {
        assert_eq!(variable.kind(), Kind::BFloat16, "{name}");
        assert_eq!(variable.grad().defined(), is_temporal(&name), "{name}");
    }
    for (name, master) in training.finish().unwrap() {
        // Norms start as ones, where bfloat16 has steps of 2⁻⁸ at the finest; a step of Adam is about the learning rate.
        if name.ends_with("norm.weight") {
            let moved = (master - 1.0).abs().max().double_value(&[]);
            assert!(moved > 1e-6 && moved < 1e-4, "{name}: {moved}");
        }
    }
}

#[test]
fn recomputed_activations_give_the_same_training_in_less_memory() {
    let recomputing = TrainingSettings {
        gradient_checkpointing: true,
        ..settings()
    };
    same_but_for_the_order_of_sums(&trained(&settings(), 4), &trained(&recomputing, 4));
    let peak = |settings: &TrainingSettings| {
        let (vs, unet) = built();
        let mut training = training(&unet, &vs, settings, 5);
        let noise = normal_from(&mut generator(1, 0), &[2, 4, 3, 32, 32], Device::Cpu);
        let clips = Batch {
            latents: noise,
            text: batch(0).text,
            pooled: None,
        };
        measure_peak(Device::Cpu, || training.step(&clips).unwrap()).1.0
    };
    let (less, more) = (peak(&recomputing), peak(&settings()));
    assert!(10 * less < 8 * more, "{less} against {more} bytes");
}

#[test]
fn all_weights_train_where_all_are_trainable_recomputed_or_not() {
    let end = |recompute: bool| {
        let settings = TrainingSettings {
            gradient_checkpointing: recompute,
            ..settings()
        };
        let (vs, unet) = built();
        let mut training = Training::of_trainable(&unet, &vs, &settings, 5).unwrap();
        assert_eq!(training.variables().len(), vs.variables().len());
        let losses = run(&mut training, 3);
        (losses, training.finish().unwrap())
    };
    same_but_for_the_order_of_sums(&end(false), &end(true));
}

#[test]
fn the_average_is_what_is_kept_and_left_in_the_model() {
    let averaged = TrainingSettings {
        ema: Some(0.5),
        ..settings()
    };
    let after = |steps| trained(&settings(), steps).1;
    let (start, one, two) = (built().0.variables(), after(1), after(2));
    let (vs, unet) = built();
    let mut training = training(&unet, &vs, &averaged, 5);
    run(&mut training, 2);
    let kept = training.finish().unwrap();
    let in_model = vs.variables();
    for (i, (name, average)) in kept.iter().enumerate() {
        let expected = start[name].detach() * 0.25 + &one[i].1 * 0.25 + &two[i].1 * 0.5;
        assert!(average.allclose(&expected, 1e-5, 1e-7, false), "{name}");
        assert_eq!(&in_model[name].detach(), average, "{name}");
    }
}

#[test]
fn the_learning_rate_warms_up() {
    let cold = TrainingSettings {
        warmup_steps: 1000,
        weight_decay: 0.0,
        ..settings()
    };
    let moved = |settings: &TrainingSettings| {
        let (_, weights) = trained(settings, 1);
        let (_, bias) = weights.iter().find(|(name, _)| name.ends_with("conv.bias")).unwrap();
        bias.abs().max().double_value(&[])
    };
    // The first step of Adam is the learning rate.
    assert!((moved(&settings()) - 2e-3).abs() < 1e-5);
    assert!((moved(&cold) - 2e-6).abs() < 1e-8);
}

/// Halves every gradient, as the mean with a rank that has none would.
#[derive(Debug)]
struct Halving {
    gradients: Vec<Tensor>,
    begun: u32,
    log: std::rc::Rc<std::cell::Cell<u32>>,
}

impl GradientSync for Halving {
    fn mean(&self, loss: Tensor) -> Result<Tensor, SyncError> {
        Ok(loss * 0.5)
    }

    fn begin_backward(&mut self) {
        self.begun += 1;
    }

    fn finish(&mut self) -> Result<(), SyncError> {
        for weight in &self.gradients {
            let _ = tch::no_grad(|| weight.grad().g_mul_scalar_(0.5));
        }
        self.log.set(self.begun);
        if self.begun > 2 {
            return Err(SyncError("rank 1 is lost".to_owned()));
        }
        Ok(())
    }
}

#[test]
fn gradients_pass_through_the_sync_once_a_step_and_a_lost_rank_ends_it() {
    let settings = TrainingSettings {
        accumulate: 2,
        max_gradient_norm: 1e9,
        ..settings()
    };
    let log = std::rc::Rc::new(std::cell::Cell::new(0));
    let (vs, unet) = built();
    let training = training(&unet, &vs, &settings, 5);
    let halving = Halving {
        gradients: training.variables().iter().map(|(_, w)| w.shallow_clone()).collect(),
        begun: 0,
        log: log.clone(),
    };
    let mut training = training.with_sync(Box::new(halving));
    let loss = run(&mut training, 1)[0];
    let (vs, unet) = built();
    let mut plain = super::Training::new(&unet, &vs, &settings, 5).unwrap();
    assert_eq!(loss, 0.5 * run(&mut plain, 1)[0]);
    let halved = training.checkpoint().under("optimizer.mean.");
    for (name, mean) in plain.checkpoint().under("optimizer.mean.") {
        assert!((mean * 0.5).allclose(&halved[&name], 1e-5, 1e-9, false), "{name}");
    }
    run(&mut training, 2);
    assert_eq!(log.get(), 2);
    let error = training.step(&batch(2)).unwrap_err();
    assert!(error.to_string().contains("rank 1 is lost"), "{error}");
    assert_eq!(training.step_number(), 2);
}

/// Two ranks in one process: each takes its half of the batch, and a third party adds the gradients up.
#[derive(Debug)]
struct HalfOf {
    rank: i64,
}

impl GradientSync for HalfOf {
    fn share(&self, global: &Tensor) -> Result<Tensor, SyncError> {
        let half = global.size()[0] / 2;
        Ok(global.narrow(0, self.rank * half, half))
    }

    fn begin_backward(&mut self) {}

    fn finish(&mut self) -> Result<(), SyncError> {
        Ok(())
    }
}

#[test]
fn the_gradient_of_a_batch_is_the_mean_of_its_ranks() {
    let settings = TrainingSettings {
        max_gradient_norm: 1e9,
        ..settings()
    };
    let of = |rank: Option<i64>| {
        let (vs, unet) = built();
        let mut training = training(&unet, &vs, &settings, 5);
        if let Some(rank) = rank {
            training = training.with_sync(Box::new(HalfOf { rank }));
        }
        let loss = run(&mut training, 1)[0];
        (loss, training.checkpoint().under("optimizer.mean."))
    };
    let (whole, first, second) = (of(None), of(Some(0)), of(Some(1)));
    assert!((whole.0 - (first.0 + second.0) / 2.0).abs() < 1e-6);
    for (name, mean) in whole.1 {
        let both = (&first.1[&name] + &second.1[&name]) * 0.5;
        assert!(mean.allclose(&both, 1e-4, 1e-8, false), "{name}");
    }
}

#[test]
fn a_loss_that_is_no_number_ends_the_training_where_it_was() {
    for settings in [settings(), all_settings()] {
        let (vs, unet) = built();
        let mut training = training(&unet, &vs, &settings, 5);
        run(&mut training, 2);
        let before = training.checkpoint().encode().unwrap();
        let batches = |step| {
            let usual = batch(step);
            Ok(Batch {
                latents: usual.latents * f64::NAN,
                ..usual
            })
        };
        let ended = training.run(20, &batches, &mut |_, loss| panic!("told of {loss}"));
        assert!(matches!(ended, Err(TrainError::Diverged { step: 2, .. })), "{ended:?}");
        assert_eq!(training.checkpoint().encode().unwrap(), before);
    }
}

#[test]
fn a_step_without_clips_ends_the_training_and_says_which() {
    let settings = settings();
    let (vs, unet) = built();
    let mut training = training(&unet, &vs, &settings, 5);
    let batches = |step| {
        if step < 2 {
            Ok(batch(step))
        } else {
            Err("the shards are gone".into())
        }
    };
    let error = training
        .run(20, &batches, &mut |_, _| ControlFlow::Continue(()))
        .unwrap_err();
    assert_eq!(error.to_string(), "the clips of step 2: the shards are gone");
    assert_eq!(training.step_number(), 2);
}
