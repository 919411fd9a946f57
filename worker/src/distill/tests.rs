use std::collections::BTreeMap;
use std::ops::ControlFlow;

use search_spaces::{
    Adversarial, Dtype, Heads, Mix, Operator, Precision, TemporalLayer, TimestepShift, TrainingSettings, UnetConfig,
};
use tch::{Device, Kind, Tensor, nn};

use super::discriminator::detached;
use super::loss::{discriminator_loss, flatness_loss, generator_loss, moved, reconstruction_loss};
use super::*;
use crate::checkpoint::Checkpoint;
use crate::data::latents::Batch;
use crate::flow;
use crate::models::seeded::{distance, generator, normal, normal_from};
use crate::models::trained::Trained;
use crate::models::unet::{Activations, Features};
use crate::train::{GradientSync, Noised, Objective, SyncError, Training};

fn numbers(values: &[f64]) -> Tensor {
    Tensor::from_slice(values)
}

fn double(shape: &[i64], seed: u64) -> Tensor {
    normal(shape, seed, Device::Cpu).to_kind(Kind::Double)
}

/// The gradient of a loss at `xs` against central differences, number by number.
fn check_gradient(name: &str, xs: &Tensor, loss: impl Fn(&Tensor) -> Tensor) {
    const STEP: f64 = 1e-5;
    let leaf = xs.copy().set_requires_grad(true);
    loss(&leaf).backward();
    let gradient = leaf.grad().flatten(0, -1);
    let flat = xs.flatten(0, -1);
    for i in 0..flat.size()[0] {
        let at = |change: f64| {
            let moved = flat.copy();
            let _ = moved.get(i).g_add_scalar_(change);
            loss(&moved.view_as(xs)).double_value(&[])
        };
        let differences = (at(STEP) - at(-STEP)) / (2.0 * STEP);
        let found = gradient.double_value(&[i]);
        assert!(
            (found - differences).abs() < 1e-7,
            "{name} at {i}: {found} against {differences}"
        );
    }
}

/// Equations 1 and 2: the path and its velocity, at which the loss is zero.
#[test]
fn the_flow_has_its_closed_form_and_gradient() {
    let (clean, noise, time) = (double(&[2, 3], 1), double(&[2, 3], 2), numbers(&[0.3, 0.8]));
    let at = flow::noised(&clean, &noise, &time);
    for (i, t) in [0.3, 0.8].into_iter().enumerate() {
        let i = i as i64;
        let expected = clean.get(i) * (1.0 - t) + noise.get(i) * t;
        assert!(distance(&at.get(i), &expected) < 1e-12);
    }
    let loss = |velocity: &Tensor| flow::loss(|_, _| velocity.shallow_clone(), &clean, &noise, &time);
    assert_eq!(loss(&(&noise - &clean)).double_value(&[]), 0.0);
    let zero = loss(&clean.zeros_like()).double_value(&[]);
    let expected = (&noise - &clean).square().mean(Kind::Double).double_value(&[]);
    assert!((zero - expected).abs() < 1e-12);
    check_gradient("eq. 2", &double(&[2, 3], 3), loss);
}

/// Real clips to −1, generated ones to +1, and the generator lowers its judgement: the reverse of what is common.
#[test]
fn the_hinge_has_the_papers_sign() {
    let discriminator =
        |real: f64, fake: f64| discriminator_loss(&numbers(&[real]), &numbers(&[fake])).double_value(&[]);
    assert_eq!(discriminator(-1.0, 1.0), 0.0, "told apart");
    assert_eq!(discriminator(1.0, -1.0), 4.0, "taken for each other");
    assert_eq!((discriminator(0.0, 0.0), discriminator(-3.0, 0.5)), (2.0, 0.5));
    assert_eq!(generator_loss(&numbers(&[0.3, -0.5])).double_value(&[]), -0.1);
    // The discriminator lifts what it takes for generated, the generator lowers it.
    let slope = |loss: &dyn Fn(&Tensor) -> Tensor| {
        let fake = numbers(&[0.2]).set_requires_grad(true);
        loss(&fake).backward();
        fake.grad().double_value(&[0])
    };
    assert_eq!(slope(&|fake| discriminator_loss(&numbers(&[0.0]), fake)), -1.0);
    assert_eq!(slope(&|fake| generator_loss(fake)), 1.0);
    let real = numbers(&[0.2]).set_requires_grad(true);
    discriminator_loss(&real, &numbers(&[0.0])).backward();
    assert_eq!(real.grad().double_value(&[0]), 1.0);
}

#[test]
fn the_losses_have_the_gradients_of_their_differences() {
    // Away from the corners of the hinge.
    let judged = numbers(&[0.4, -1.7, 2.3, -0.2]);
    let other = numbers(&[-0.6, 0.1, 1.4, -2.0]);
    check_gradient("eq. 4, real", &judged, |real| discriminator_loss(real, &other));
    check_gradient("eq. 4, fake", &judged, |fake| discriminator_loss(&other, fake));
    check_gradient("eq. 5", &judged, generator_loss);
    check_gradient("flatness", &judged, |nudged| flatness_loss(&other, nudged));
    let clean = double(&[2, 1, 3, 1, 1], 4);
    check_gradient("eq. 6", &double(&[2, 1, 3, 1, 1], 5), |found| {
        reconstruction_loss(found, &clean, 0.5)
    });
    let (xs, from, to) = (double(&[2, 3], 6), numbers(&[0.75, 0.5]), numbers(&[0.2, 0.9]));
    let goal = double(&[2, 3], 7);
    check_gradient("a clip moved", &double(&[2, 3], 8), |velocity| {
        (moved(&xs, velocity, &from, &to) - &goal).square().sum(Kind::Double)
    });
}

/// Clips of 3 numbers, 4 apart with c = 3: √(16 + 9) − 3 = 2; and none apart: 0. c is taken over a whole clip.
#[test]
fn the_reconstruction_is_a_pseudo_huber_distance_of_whole_clips() {
    let clean = Tensor::zeros([2, 1, 3, 1, 1], (Kind::Double, Device::Cpu));
    let found = numbers(&[4.0, 0.0, 0.0, 0.0, 0.0, 0.0]).reshape([2, 1, 3, 1, 1]);
    let loss = reconstruction_loss(&found, &clean, 3f64.sqrt()).double_value(&[]);
    assert!((loss - 1.0).abs() < 1e-12, "the mean of 2 and 0, found {loss}");
}

/// What the generator's velocity leads to at time 0 is its clean clip, and the true velocity leads along the path.
#[test]
fn clips_move_along_their_velocity() {
    let (clean, noise) = (double(&[2, 4], 1), double(&[2, 4], 2));
    let (from, to) = (numbers(&[1.0, 0.25]), numbers(&[0.3, 0.6]));
    let xs = flow::noised(&clean, &noise, &from);
    let truth = flow::target(&clean, &noise);
    assert!(distance(&moved(&xs, &truth, &from, &to), &flow::noised(&clean, &noise, &to)) < 1e-12);
    assert!(distance(&moved(&xs, &truth, &from, &numbers(&[0.0, 0.0])), &clean) < 1e-12);
    let other = double(&[2, 4], 3);
    let expected = &xs - &other * from.reshape([2, 1]);
    assert!(distance(&moved(&xs, &other, &from, &numbers(&[0.0, 0.0])), &expected) < 1e-12);
}

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

fn layers() -> Vec<Option<TemporalLayer>> {
    let operators = [Operator::Conv1d, Operator::SelfAttention1d, Operator::Conv3d];
    operators
        .map(|operator| Some(TemporalLayer { operator, depth: 1 }))
        .to_vec()
}

/// The diffusion model, its temporal layers no longer the identity.
fn model() -> Trained {
    // Threads that wait for each other take longer than these sizes take alone.
    tch::set_num_threads(1);
    let model = Trained::seeded(&config(), &layers(), 3, Device::Cpu);
    for (name, mut weight) in model.vs.variables() {
        if name.starts_with("temporal") {
            let shape = weight.size();
            tch::no_grad(|| weight.copy_(&(normal(&shape, 9, Device::Cpu) * 0.1)));
        }
    }
    model
}

fn adversarial() -> Adversarial {
    Adversarial {
        mix: Mix::default(),
        heads: Heads::Unified,
        sample_steps: 4,
        heads_learning_rate: 1e-2,
        heads_betas: [0.5, 0.999],
        noise_mean: -1.0,
        noise_std: 1.0,
        reconstruction_weight: 0.1,
        huber_scale: 0.00054,
        r1_weight: 0.5,
    }
}

fn settings() -> TrainingSettings {
    TrainingSettings {
        steps: 6,
        batch: 4,
        accumulate: 2,
        learning_rate: 1e-3,
        warmup_steps: 0,
        betas: [0.9, 0.999],
        weight_decay: 0.01,
        max_gradient_norm: 1.0,
        ema: Some(0.9),
        precision: Precision::F32,
        gradient_checkpointing: false,
        text_dropout: 0.0,
        noise_mean: 0.0,
        noise_std: 1.0,
        timestep_shift: TimestepShift::None,
        checkpoint_every: 3,
    }
}

fn discriminator(heads: Heads) -> Discriminator {
    let (config, layers, weights) = (config(), layers(), model().weights(Vec::new()));
    let sources = Sources {
        config: &config,
        layers: &layers,
        weights: &weights,
        caption_width: 8,
    };
    Discriminator::new(sources, heads, Kind::Float, 1, Device::Cpu).unwrap()
}

fn adversary(settings: &TrainingSettings, adversarial: &Adversarial) -> Adversary {
    Adversary::new(discriminator(adversarial.heads), adversarial, settings)
}

fn clips(step: u64, frames: i64) -> Batch {
    let noise = |stream, shape: &[i64]| normal_from(&mut generator(77 + step, stream), shape, Device::Cpu);
    Batch {
        latents: noise(0, &[4, 4, frames, 4, 4]) * 0.2 + 0.5,
        text: noise(1, &[4, 4, 8]),
        pooled: Some(noise(2, &[4, 8])),
    }
}

fn noised(adversary: &Adversary, frames: i64) -> (Noised, Tensor) {
    let batch = clips(0, frames);
    (adversary.noised(&batch, &mut generator(5, 0)), batch.text)
}

fn features(discriminator: &Discriminator, xs: &Tensor) -> Features {
    let time = Tensor::full([xs.size()[0]], 0.3, (Kind::Float, Device::Cpu));
    let text = normal(&[xs.size()[0], 4, 8], 6, Device::Cpu);
    discriminator.features(xs, &time, &text, Activations::Kept)
}

#[test]
fn a_head_judges_every_position_of_its_level_and_clips_one_by_one() {
    let discriminator = discriminator(Heads::Unified);
    for frames in [3, 1] {
        let xs = normal(&[2, 4, frames, 4, 4], 1, Device::Cpu);
        let seen = features(&discriminator, &xs);
        let sizes: Vec<Vec<i64>> = seen.levels.iter().map(Tensor::size).collect();
        assert_eq!(sizes, [[2 * frames, 8, 4, 4], [2 * frames, 16, 2, 2]]);
        let caption = normal(&[2, 8], 2, Device::Cpu);
        for kind in [HeadKind::SpaceAndTime, HeadKind::Space, HeadKind::Time] {
            for (level, channels, side) in [(0, 8, 4), (1, 16, 2)] {
                let vs = nn::VarStore::new(Device::Cpu);
                let head = Head::new(&vs.root(), kind, head_config(channels));
                let judged = head.forward(&seen, level, &caption);
                assert_eq!(judged.size(), [2, frames, side, side], "{kind:?}");
            }
        }
        let judged = discriminator.judge(&seen, &caption);
        assert_eq!(judged.size(), [2]);
        // A clip's judgement does not depend on its neighbour in the batch.
        let alone = discriminator.features(
            &xs.narrow(0, 1, 1),
            &Tensor::full([1], 0.3, (Kind::Float, Device::Cpu)),
            &normal(&[2, 4, 8], 6, Device::Cpu).narrow(0, 1, 1),
            Activations::Kept,
        );
        let alone = discriminator.judge(&alone, &caption.narrow(0, 1, 1));
        assert!(distance(&alone, &judged.narrow(0, 1, 1)) < 1e-5);
    }
}

fn head_config(channels: i64) -> HeadConfig {
    HeadConfig {
        channels,
        groups: 4,
        attention_heads: 2,
        time_width: 32,
        text_width: 8,
    }
}

/// With features and caption both turned into ones, the product over 64 channels is 64, and over √64 it is 8.
#[test]
fn a_judgement_is_a_product_with_the_caption_over_the_root_of_the_channels() {
    let discriminator = discriminator(Heads::Unified);
    let seen = features(&discriminator, &normal(&[2, 4, 3, 4, 4], 1, Device::Cpu));
    let vs = nn::VarStore::new(Device::Cpu);
    let head = Head::new(&vs.root(), HeadKind::SpaceAndTime, head_config(8));
    let captions = [1, 2].map(|seed| normal(&[2, 8], seed, Device::Cpu));
    let [one, other] = captions.each_ref().map(|caption| head.forward(&seen, 0, caption));
    assert!(distance(&one, &other) > 1e-3, "another caption, another judgement");
    for (name, mut weight) in vs.variables() {
        let value = match name.as_str() {
            "out.weight" | "caption.weight" => 0.0,
            "out.bias" | "caption.bias" => 1.0,
            _ => continue,
        };
        let _ = tch::no_grad(|| weight.fill_(value));
    }
    let judged = head.forward(&seen, 0, &captions[0]);
    assert!(distance(&judged, &judged.full_like(8.0)) < 1e-5);
}

#[test]
fn heads_look_where_their_kind_says_once_they_have_learned() {
    let discriminator = discriminator(Heads::Unified);
    let xs = normal(&[1, 4, 3, 4, 4], 1, Device::Cpu);
    let seen = features(&discriminator, &xs);
    let changed = seen.levels[0].copy();
    // One pixel of the first frame.
    let _ = changed.get(0).narrow(1, 0, 1).narrow(2, 0, 1).g_add_scalar_(3.0);
    let changed = Features {
        levels: vec![changed],
        time: seen.time.shallow_clone(),
        frames: 3,
    };
    let caption = normal(&[1, 8], 2, Device::Cpu);
    for (kind, sees_later_frames) in [
        (HeadKind::SpaceAndTime, true),
        (HeadKind::Space, false),
        (HeadKind::Time, true),
    ] {
        let vs = nn::VarStore::new(Device::Cpu);
        let head = Head::new(&vs.root(), kind, head_config(8));
        for (_, mut weight) in vs.variables() {
            let shape = weight.size();
            tch::no_grad(|| weight.copy_(&(normal(&shape, 4, Device::Cpu) * 0.5)));
        }
        let apart = (head.forward(&seen, 0, &caption) - head.forward(&changed, 0, &caption)).abs();
        let in_frame = |frame: i64| apart.get(0).get(frame).max().double_value(&[]);
        assert!(in_frame(0) > 1e-4, "{kind:?}");
        assert_eq!(in_frame(1) > 1e-6, sees_later_frames, "{kind:?}");
    }
}

/// Gradients pass through the frozen backbone to the generator, and none stays at the backbone; the heads' are those
/// of their own loss alone.
#[test]
fn no_gradient_stays_at_the_backbone_or_comes_to_the_heads_from_the_generator() {
    let adversarial = Adversarial {
        reconstruction_weight: 0.0,
        r1_weight: 0.0,
        ..adversarial()
    };
    let adversary = adversary(&settings(), &adversarial);
    let model = model();
    let (noised, text) = noised(&adversary, 3);
    let judge = noised.judge.as_ref().unwrap();
    let before: Vec<Tensor> = adversary
        .discriminator()
        .frozen()
        .iter()
        .map(|(_, w)| w.copy())
        .collect();
    let heads = || -> BTreeMap<String, Tensor> {
        let learned = adversary.discriminator().learned();
        learned
            .into_iter()
            .map(|(name, weight)| (name, weight.grad().copy()))
            .collect()
    };

    let loss = adversary.loss(&model.unet, &noised, &text, Activations::Kept);
    let of_their_own = heads();
    loss.backward();
    for (name, gradient) in heads() {
        assert_eq!(gradient, of_their_own[&name], "{name}");
    }
    let mut reached = 0.0;
    for (name, weight) in model.vs.variables() {
        assert!(weight.grad().defined(), "{name}");
        reached += weight.grad().square().sum(Kind::Double).double_value(&[]);
    }
    assert!(reached > 0.0, "the judgement teaches the generator");
    assert!(!adversary.discriminator().frozen().is_empty());
    for ((name, weight), before) in adversary.discriminator().frozen().iter().zip(&before) {
        assert!(!weight.requires_grad() && !weight.grad().defined(), "{name}");
        assert_eq!(weight, before, "{name}");
    }

    // Their own loss, written out.
    let discriminator = discriminator(Heads::Unified);
    let velocity = tch::no_grad(|| model.unet.forward(&noised.xs, &noised.time, &text));
    let judged = |velocity: &Tensor| {
        let xs = moved(&noised.xs, velocity, &noised.time, &judge.time);
        let seen = discriminator.features(&xs, &judge.time, &text, Activations::Kept);
        discriminator.judge(&detached(&seen), &judge.pooled)
    };
    (discriminator_loss(&judged(&noised.target), &judged(&velocity)) * 4.0).backward();
    for (name, weight) in discriminator.learned() {
        let (found, expected) = (&of_their_own[&name], weight.grad());
        assert!(found.allclose(&expected, 1e-3, 1e-5, false), "{name}");
    }
}

#[test]
fn the_backbone_is_the_models_own_way_down() {
    let discriminator = discriminator(Heads::Unified);
    let model = model();
    let own = model.vs.variables();
    for (name, weight) in discriminator.frozen() {
        assert_eq!(*weight, own[name].detach(), "{name}");
    }
    let names: Vec<&str> = discriminator.frozen().iter().map(|(name, _)| name.as_str()).collect();
    assert!(names.iter().any(|name| name.starts_with("temporal.down_1")));
    assert!(
        names
            .iter()
            .all(|name| !name.starts_with("up_blocks") && !name.starts_with("mid_block"))
    );
    let xs = normal(&[2, 4, 3, 4, 4], 1, Device::Cpu);
    let seen = features(&discriminator, &xs);
    let (time, text) = (
        Tensor::full([2], 0.3, (Kind::Float, Device::Cpu)),
        normal(&[2, 4, 8], 6, Device::Cpu),
    );
    let mut positions = Vec::new();
    let observe = &mut |_: usize, level: &Tensor| positions.push(level.shallow_clone());
    let _ = model
        .unet
        .observed(&xs, (&time).into(), &text, Activations::Kept, observe);
    for (level, expected) in seen.levels.iter().zip(&positions) {
        assert_eq!(level, &expected.detach());
    }
}

/// σ(m + s z) at the normal's quantiles: σ(−2), σ(−1), σ(0); and the generator's four times, each as often.
#[test]
fn times_are_drawn_as_the_paper_says() {
    let adversary = adversary(&settings(), &adversarial());
    let mut at_judge = Vec::new();
    let mut counts: BTreeMap<i64, u32> = BTreeMap::new();
    for step in 0..1000 {
        let noised = adversary.noised(&clips(0, 1), &mut generator(5, step));
        at_judge.extend(Vec::<f32>::try_from(&noised.judge.unwrap().time).unwrap());
        for time in Vec::<f32>::try_from(&noised.time).unwrap() {
            *counts.entry((time * 100.0).round() as i64).or_default() += 1;
        }
    }
    at_judge.sort_by(f32::total_cmp);
    for (share, logit) in [(0.158_66, -2.0f64), (0.5, -1.0), (0.841_34, 0.0)] {
        let found = f64::from(at_judge[(share * at_judge.len() as f64) as usize]);
        let expected = 1.0 / (1.0 + (-logit).exp());
        assert!((found - expected).abs() < 0.02, "{share}: {found} against {expected}");
    }
    assert_eq!(counts.keys().copied().collect::<Vec<_>>(), [25, 50, 75, 100]);
    assert!(counts.values().all(|&count| count.abs_diff(1000) < 120), "{counts:?}");
}

fn run(training: &mut Training<'_>, steps: u64) -> Vec<f64> {
    let mut losses = Vec::new();
    // Every third batch is one of images.
    let batches = |step: u64| Ok(clips(step, if step % 3 == 2 { 1 } else { 3 }));
    let ended = training.run(steps, &batches, &mut |_, loss| {
        losses.push(loss);
        ControlFlow::Continue(())
    });
    assert!(ended.unwrap().is_continue());
    losses
}

#[test]
fn a_distillation_broken_off_anywhere_resumes_to_the_same_bytes() {
    let (settings, adversarial) = (settings(), adversarial());
    let begun = |then: &mut dyn FnMut(Training<'_>)| {
        let (model, adversary) = (model(), adversary(&settings, &adversarial));
        let training = Training::of_trainable(&model.unet, &model.vs, &settings, 5).unwrap();
        then(training.with_objective(Box::new(&adversary)));
    };
    let (mut straight, mut end) = (Vec::new(), Vec::new());
    begun(&mut |mut training| {
        straight = run(&mut training, 6);
        end = training.checkpoint().encode().unwrap();
    });
    for at in [1, 3, 5] {
        let (mut losses, mut saved, mut found) = (Vec::new(), Vec::new(), Vec::new());
        begun(&mut |mut training| {
            losses = run(&mut training, at);
            saved = training.checkpoint().encode().unwrap();
        });
        begun(&mut |mut training| {
            training.restore(&Checkpoint::decode(&saved).unwrap()).unwrap();
            losses.extend(run(&mut training, 6));
            found = training.checkpoint().encode().unwrap();
        });
        assert_eq!(losses, straight, "broken off at {at}");
        assert!(found == end, "broken off at {at}");
    }
    let names = Checkpoint::decode(&end).unwrap();
    assert!(!names.under("heads.weights.").is_empty() && !names.under("heads.optimizer.square.").is_empty());
    // A checkpoint without heads, as a joint training leaves it, is refused before anything is taken.
    let model = model();
    let other = Training::of_trainable(&model.unet, &model.vs, &settings, 5).unwrap();
    let other = other.checkpoint();
    begun(&mut |mut training| {
        let before = training.checkpoint().encode().unwrap();
        let error = training.restore(&other).unwrap_err().to_string();
        assert!(error.contains("the checkpoint has no `heads."), "{error}");
        assert!(training.checkpoint().encode().unwrap() == before, "nothing was taken");
    });
}

#[test]
fn micro_batches_give_the_step_of_the_whole_batch() {
    let after = |accumulate: u32| {
        let settings = TrainingSettings {
            accumulate,
            ..settings()
        };
        let (model, adversary) = (model(), adversary(&settings, &adversarial()));
        let training = Training::of_trainable(&model.unet, &model.vs, &settings, 5).unwrap();
        let mut training = training.with_objective(Box::new(&adversary));
        run(&mut training, 1);
        let checkpoint = training.checkpoint();
        (
            checkpoint.under("heads.optimizer.mean."),
            checkpoint.under("optimizer.mean."),
        )
    };
    let (whole, parts) = (after(1), after(4));
    for (whole, parts) in [(whole.0, parts.0), (whole.1, parts.1)] {
        assert!(!whole.is_empty());
        for (name, mean) in whole {
            assert!(mean.allclose(&parts[&name], 1e-3, 1e-6, false), "{name}");
        }
    }
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
fn the_gradients_of_a_batch_are_the_mean_of_its_ranks_for_heads_and_generator() {
    let settings = TrainingSettings {
        max_gradient_norm: 1e9,
        ..settings()
    };
    let of = |rank: Option<i64>| {
        let (model, adversary) = (model(), adversary(&settings, &adversarial()));
        let training = Training::of_trainable(&model.unet, &model.vs, &settings, 5).unwrap();
        let mut training = training.with_objective(Box::new(&adversary));
        if let Some(rank) = rank {
            training = training.with_sync(Box::new(HalfOf { rank }));
        }
        run(&mut training, 1);
        let checkpoint = training.checkpoint();
        ["heads.optimizer.mean.", "optimizer.mean."].map(|prefix| checkpoint.under(prefix))
    };
    let (whole, first, second) = (of(None), of(Some(0)), of(Some(1)));
    for ((whole, first), second) in whole.iter().zip(&first).zip(&second) {
        assert!(!whole.is_empty());
        for (name, mean) in whole {
            let both = (&first[name] + &second[name]) * 0.5;
            assert!(mean.allclose(&both, 1e-3, 1e-6, false), "{name}");
        }
    }
}

/// A generator that stands still is told from the real clips; one that learns is judged lower for it.
#[test]
fn heads_learn_to_tell_generated_clips_and_the_generator_to_pass_for_real() {
    const STEPS: usize = 36;
    let of = |learning_rate: f64| {
        let settings = TrainingSettings {
            learning_rate,
            accumulate: 1,
            weight_decay: 0.0,
            ..settings()
        };
        let adversarial = Adversarial {
            r1_weight: 0.0,
            reconstruction_weight: 0.0,
            ..adversarial()
        };
        let (model, adversary) = (model(), adversary(&settings, &adversarial));
        let training = Training::of_trainable(&model.unet, &model.vs, &settings, 5).unwrap();
        let mut training = training.with_objective(Box::new(&adversary));
        let batches = |step: u64| Ok(clips(step, 3));
        let mut terms = Vec::new();
        let ended = training.run(STEPS as u64, &batches, &mut |_, _| {
            terms.push(adversary.last());
            ControlFlow::Continue(())
        });
        assert!(ended.unwrap().is_continue());
        let mean = |value: fn(&Terms) -> f64| terms[STEPS - 12..].iter().map(value).sum::<f64>() / 12.0;
        (mean(|terms| terms.adversarial), mean(|terms| terms.real))
    };
    let (still, moving) = (of(0.0), of(3e-3));
    assert!(still.0 > still.1 + 0.5, "{still:?}");
    assert!(moving.0 < still.0 - 0.1, "{moving:?} against {still:?}");
}

#[test]
fn separate_heads_are_two_a_level() {
    let names = |heads| -> Vec<String> {
        let mut names: Vec<String> = discriminator(heads)
            .learned()
            .into_iter()
            .map(|(name, _)| name.split('.').take(2).collect::<Vec<_>>().join("."))
            .collect();
        names.dedup();
        names
    };
    assert_eq!(names(Heads::Unified), ["0.unified", "1.unified"]);
    assert_eq!(names(Heads::Separate), ["0.space", "0.time", "1.space", "1.time"]);
}

/// Student's 97.5 % quantiles of 23 and 9 degrees of freedom: 2.069 and 2.262.
#[test]
fn intervals_are_students() {
    let estimate = search_spaces::Estimate {
        value: 1.0,
        standard_error: 1.0,
    };
    for (prompts, quantile) in [(24, 2.069), (10, 2.262)] {
        let [low, high] = interval(estimate, prompts);
        assert!(
            (high - 1.0 - quantile).abs() < 2e-3 && (1.0 - low - quantile).abs() < 2e-3,
            "{low} {high}"
        );
    }
}
