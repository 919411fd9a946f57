//! One training by two real processes: this program runs itself again as each rank.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use std::error::Error;
use std::net::{SocketAddr, TcpListener};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use search_spaces::{Dtype, Operator, Precision, TemporalLayer, TimestepShift, TrainingSettings, UnetConfig};
use tch::{Device, Kind, Tensor, nn};
use temponas_worker::checkpoint::Checkpoint;
use temponas_worker::data::latents::Batch;
use temponas_worker::distributed::{Gang, Group, ReducerConfig};
use temponas_worker::models::UNet;
use temponas_worker::models::seeded::{generator, normal_from, seed_weights, stream_of};
use temponas_worker::train::Training;

const STEPS: u64 = 20;
const BATCH: i64 = 4;
/// A dozen buckets for this UNet.
const BUCKETS: ReducerConfig = ReducerConfig {
    bucket_bytes: 1 << 10,
    overlap: true,
};

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

/// With what changes a backward pass or a checkpoint: micro-batches, recomputed activations, an average of the weights.
fn settings() -> TrainingSettings {
    TrainingSettings {
        steps: STEPS as u32,
        batch: BATCH as u32,
        accumulate: 2,
        learning_rate: 2e-3,
        warmup_steps: 0,
        betas: [0.9, 0.999],
        weight_decay: 0.01,
        max_gradient_norm: 1.0,
        ema: Some(0.9),
        precision: Precision::F32,
        gradient_checkpointing: true,
        text_dropout: 0.1,
        noise_mean: 0.0,
        noise_std: 1.0,
        timestep_shift: TimestepShift::None,
        checkpoint_every: 10,
    }
}

/// The global batch of a step: what each rank is to take its share of.
fn batch(step: u64) -> Result<Batch, Box<dyn std::error::Error + Send + Sync>> {
    let noise = |stream, shape: &[i64]| normal_from(&mut generator(77 + step, stream), shape, Device::Cpu);
    let ramp = Tensor::linspace(-1.0, 1.0, 3, (Kind::Float, Device::Cpu)).reshape([1, 1, 3, 1, 1]);
    Ok(Batch {
        latents: noise(0, &[BATCH, 4, 1, 4, 4]) * 0.1 + ramp,
        text: noise(1, &[BATCH, 4, 8]),
        pooled: None,
    })
}

/// A UNet with temporal layers of several kinds; its weights come from `seed`, those that start as zero included: the
/// relative error of a tensor that has only just left zero says more about rounding than about its training.
fn built(seed: u64) -> (nn::VarStore, UNet) {
    use Operator::{Conv1d, Conv3d, CrossAttention1d, SelfAttention3d};
    let vs = nn::VarStore::new(Device::Cpu);
    let layers = [Conv1d, SelfAttention3d, CrossAttention1d, Conv1d, Conv3d]
        .map(|operator| Some(TemporalLayer { operator, depth: 1 }));
    let unet = UNet::new(&vs.root(), &config(), &layers);
    seed_weights(&vs, seed);
    for (name, mut weight) in vs.variables() {
        if weight.abs().max().double_value(&[]) == 0.0 {
            let mut rng = generator(seed, stream_of(&name));
            let drawn = normal_from(&mut rng, &weight.size(), Device::Cpu) * 0.1;
            tch::no_grad(|| weight.copy_(&drawn));
        }
    }
    (vs, unet)
}

/// A process that does not outlive its test.
struct Rank(Child);

impl Drop for Rank {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What a rank of the re-run program is told.
#[derive(Debug)]
struct Task {
    rank: u32,
    store: SocketAddr,
    folder: PathBuf,
    steps: u64,
    limit: Duration,
}

const TASK: &str = "TEMPONAS_TEST_RANK";

impl Task {
    fn start(&self) -> Rank {
        let text = format!(
            "{} {} {} {} {}",
            self.rank,
            self.store,
            self.steps,
            self.limit.as_millis(),
            self.folder.display()
        );
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "a_rank", "--nocapture"])
            .env(TASK, text)
            .stdout(Stdio::null())
            .spawn();
        Rank(child.unwrap())
    }

    fn told() -> Option<Self> {
        let text = std::env::var(TASK).ok()?;
        let words: Vec<&str> = text.splitn(5, ' ').collect();
        Some(Self {
            rank: words[0].parse().unwrap(),
            store: words[1].parse().unwrap(),
            steps: words[2].parse().unwrap(),
            limit: Duration::from_millis(words[3].parse().unwrap()),
            folder: words[4].into(),
        })
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}-{}", self.rank))
    }
}

/// Not a test but the program of a rank: does nothing unless it is told to.
#[test]
fn a_rank() {
    let Some(task) = Task::told() else { return };
    match train(&task) {
        Ok(()) => {}
        Err(error) => std::fs::write(task.file("error"), error.to_string()).unwrap(),
    }
}

fn train(task: &Task) -> Result<(), Box<dyn Error>> {
    tch::set_num_threads(1);
    let gang = Gang {
        rank: task.rank,
        ranks: 2,
        store: task.store,
        generation: "attempt-1".to_owned(),
    };
    let group = Group::join(&gang, Device::Cpu, task.limit)?;
    // Only rank 0 has the right start, and the checkpoint: the others take them over. The frozen weights are no part
    // of the exchange, so both are built from one seed first.
    let (vs, unet) = built(3);
    let settings = settings();
    let mut training = Training::new(&unet, &vs, &settings, 5).unwrap();
    if task.rank == 0 {
        if let Ok(bytes) = std::fs::read(task.folder.join("checkpoint")) {
            training.restore(&Checkpoint::decode(&bytes).unwrap()).unwrap();
        }
    } else {
        for (_, weight) in training.variables() {
            let _ = tch::no_grad(|| weight.shallow_clone().fill_(9.0));
        }
    }
    let mut training = training.with_group(group, BUCKETS)?;
    let mut losses = Vec::new();
    let _ = training.run(task.steps, &batch, &mut |training, loss| {
        let overlap = training.sync().unwrap().overlap();
        assert!(overlap.buckets > 5, "{overlap:?}");
        assert_eq!(overlap.begun_in_backward, overlap.buckets);
        assert!(overlap.lead > Duration::ZERO, "{overlap:?}");
        losses.push(loss);
        std::fs::write(task.file("step"), training.step_number().to_string()).unwrap();
        ControlFlow::Continue(())
    })?;
    std::fs::write(task.file("weights"), training.checkpoint().encode().unwrap()).unwrap();
    std::fs::write(task.file("losses"), serde_json::to_vec(&losses).unwrap()).unwrap();
    Ok(())
}

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn start_two(folder: &Path, steps: u64, limit: Duration) -> [Rank; 2] {
    let store = free_address();
    [0, 1].map(|rank| {
        Task {
            rank,
            store,
            folder: folder.to_owned(),
            steps,
            limit,
        }
        .start()
    })
}

/// Runs both ranks to `steps`; their final states and losses.
fn run_two(folder: &Path, steps: u64) -> [(Vec<u8>, Vec<f64>); 2] {
    for mut rank in start_two(folder, steps, Duration::from_secs(60)) {
        assert!(rank.0.wait().unwrap().success());
    }
    [0, 1].map(|rank| {
        let error = std::fs::read_to_string(folder.join(format!("error-{rank}")));
        assert!(error.is_err(), "rank {rank}: {error:?}");
        let losses = std::fs::read(folder.join(format!("losses-{rank}"))).unwrap();
        (
            std::fs::read(folder.join(format!("weights-{rank}"))).unwrap(),
            serde_json::from_slice(&losses).unwrap(),
        )
    })
}

/// ‖a − b‖ / ‖b‖. Not the largest element's: AdamW divides a gradient by its own size, so where one happens to be as
/// small as its rounding, a single element may differ by 1e-4 of the largest.
fn relative_error(a: &Tensor, b: &Tensor) -> f64 {
    let norm = |t: &Tensor| t.to_kind(Kind::Double).norm().double_value(&[]);
    norm(&(a - b)) / norm(b)
}

#[test]
fn two_processes_train_as_one_does_and_go_on_from_rank_0s_checkpoint() {
    tch::set_num_threads(1);
    let (settings, (vs, unet)) = (settings(), built(3));
    let mut alone = Training::new(&unet, &vs, &settings, 5).unwrap();
    let mut losses = Vec::new();
    let mut note = |_: &Training<'_>, loss| {
        losses.push(loss);
        ControlFlow::Continue(())
    };
    assert!(alone.run(STEPS, &batch, &mut note).unwrap().is_continue());

    let folder = tempfile::tempdir().unwrap();
    let [(first, first_losses), (second, second_losses)] = run_two(folder.path(), STEPS);
    assert!(first == second, "the ranks have drifted apart");
    assert_eq!(first_losses, second_losses);
    for (one, two) in losses.iter().zip(&first_losses) {
        assert!((one - two).abs() < 1e-5 * one, "{one} {two}");
    }
    let together = Checkpoint::decode(&first).unwrap().under("weights.");
    assert_eq!(together.len(), alone.variables().len());
    let errors = alone
        .variables()
        .iter()
        .map(|(name, weight)| (relative_error(&together[name], &weight.detach()), name.as_str()));
    let worst = errors.max_by(|a, b| a.0.total_cmp(&b.0)).unwrap();
    println!("worst relative error {:.2e} of {}", worst.0, worst.1);
    assert!(worst.0 < 1e-5, "{worst:?}");

    let halves = tempfile::tempdir().unwrap();
    let [(half, _), _] = run_two(halves.path(), STEPS / 2);
    std::fs::write(halves.path().join("checkpoint"), half).unwrap();
    let [(resumed, resumed_losses), (other, _)] = run_two(halves.path(), STEPS);
    assert!(resumed == first && other == first, "a resumed training ends elsewhere");
    assert_eq!(resumed_losses, first_losses[STEPS as usize / 2..]);
}

/// Waits until a condition holds, for half a minute at most.
fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(
            begun.elapsed() < Duration::from_secs(30),
            "{what}: not within half a minute"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Lets two ranks train without end, does something to rank 1, and returns what rank 0 says and after how long.
fn survivor_of(limit: Duration, harm: impl Fn(&mut Child)) -> (String, Duration) {
    let folder = tempfile::tempdir().unwrap();
    let [mut survivor, mut victim] = start_two(folder.path(), u64::MAX, limit);
    wait_until("a first step", || folder.path().join("step-0").exists());
    harm(&mut victim.0);
    let begun = Instant::now();
    let mut ended = None;
    wait_until("an end of rank 0", || {
        ended = survivor.0.try_wait().unwrap();
        ended.is_some()
    });
    let elapsed = begun.elapsed();
    assert!(ended.unwrap().success(), "rank 0 did not end by itself: {ended:?}");
    (std::fs::read_to_string(folder.path().join("error-0")).unwrap(), elapsed)
}

#[test]
fn a_killed_rank_is_an_error_at_the_other_at_once() {
    let (error, elapsed) = survivor_of(Duration::from_secs(60), |victim| victim.kill().unwrap());
    assert!(error.contains("at rank 0 of 2 failed, a peer may be lost"), "{error}");
    assert!(elapsed < Duration::from_secs(10), "{elapsed:?}");
}

#[test]
fn a_rank_that_hangs_is_an_error_at_the_other_after_the_limit() {
    let limit = Duration::from_secs(2);
    let (error, elapsed) = survivor_of(limit, |victim| {
        let stop = Command::new("kill").args(["-STOP", &victim.id().to_string()]).status();
        assert!(stop.unwrap().success());
    });
    assert!(error.contains("at rank 0 of 2 failed, a peer may be lost"), "{error}");
    assert!(elapsed > limit / 2 && elapsed < 4 * limit, "{elapsed:?}");
}
