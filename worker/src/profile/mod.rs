//! Measures blocks and whole architectures on this machine.
//!
//! - **Latency.** Everything that is measured together runs in rounds: each round runs every subject once, in an order
//!   drawn anew, so a slow moment of the machine falls on all alike and each run finds the caches as other blocks left
//!   them. A sample is the fastest of [`RUNS_PER_SAMPLE`] runs in successive rounds: other processes can only slow a run
//!   down, and a long run is more surely disturbed than a short one. On one processor thread it is the time that the thread held its core: what other
//!   processes take away is not the model's. On more threads and on CUDA it is the time on the wall.
//! - **Peak memory.** The allocator's own count (see [`crate::shim`]) above what was allocated when the run began.
//! - **Out of memory** is a result. An allocation above the memory budget is refused before it is touched.

mod in_turn;
mod subject;

use std::any::Any;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use lut::{EntryState, Measurement, Samples};
use protocol::devices::RuntimeName;
use protocol::luts::{EntryOutcome, EntryUpload};
use rand::seq::SliceRandom;
use search_spaces::{Architecture, Block, Dtype, Space, heaviest_part};
use tch::{Device, Kind, Tensor, nn};

use crate::models::UNet;
use crate::models::seeded::{generator, normal, seed_weights};
use crate::shim::{MemoryTracker, PeakBytes, thread_seconds};

pub use in_turn::{InTurn, InTurnError, in_turn};
pub use subject::{Inputs, Subject, kind_of};

/// Runs of which a latency sample is the fastest.
pub const RUNS_PER_SAMPLE: u32 = 4;

/// How to measure.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where libtorch computes.
    pub device: Device,
    /// Threads of libtorch; set by whoever starts it.
    pub threads: u32,
    /// Bytes that one subject may hold, weights and inputs included.
    pub memory_bytes: u64,
    /// Rounds before the first sample.
    pub warmups: u32,
    /// Samples of each subject.
    pub samples: u32,
    /// A subject that has run for so many seconds gets no further samples.
    pub seconds_per_subject: f64,
}

impl Settings {
    /// Two rounds of warm-up, 15 samples, at most 20 seconds a subject.
    #[must_use]
    pub const fn new(device: Device, threads: u32, memory_bytes: u64) -> Self {
        Self {
            device,
            threads,
            memory_bytes,
            warmups: 2,
            samples: 15,
            seconds_per_subject: 20.0,
        }
    }

    /// How long a run holds the device.
    pub(crate) fn seconds(&self, run: impl FnOnce()) -> f64 {
        match self.device {
            Device::Cpu if self.threads == 1 => {
                let start = thread_seconds();
                run();
                thread_seconds() - start
            }
            Device::Cuda(index) => {
                tch::Cuda::synchronize(index as i64);
                let start = Instant::now();
                run();
                tch::Cuda::synchronize(index as i64);
                start.elapsed().as_secs_f64()
            }
            _ => {
                let start = Instant::now();
                run();
                start.elapsed().as_secs_f64()
            }
        }
    }
}

/// The runtime that this worker measures: tables of one do not transfer to another.
#[must_use]
pub fn runtime_name(device: Device, threads: u32) -> RuntimeName {
    let name = match device {
        Device::Cuda(_) => "libtorch-cuda".to_owned(),
        _ => format!("libtorch-cpu-{threads}t"),
    };
    RuntimeName {
        name,
        version: env!("TEMPONAS_LIBTORCH_VERSION").to_owned(),
    }
}

/// The measuring was broken off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("measuring was interrupted")]
pub struct Interrupted;

/// A block and how measuring it ended.
pub type MeasuredBlock = (Block, EntryState);

/// Called with the share done and what is being measured; `Break` ends the measuring.
pub type Progress<'a> = &'a mut dyn FnMut(f64, &str) -> ControlFlow<()>;

/// Measures every block; the entries come in the order of `blocks`.
///
/// # Errors
/// Where `progress` breaks off.
pub fn profile_blocks(
    space: &Space,
    blocks: &[Block],
    settings: &Settings,
    progress: Progress<'_>,
) -> Result<Vec<MeasuredBlock>, Interrupted> {
    let dtype = dtype_of(space);
    let build = |i: usize| block_bench(space, &blocks[i], dtype, settings);
    let states = measure(blocks.len(), &build, &|i| blocks[i].to_string(), settings, progress)?;
    Ok(blocks
        .iter()
        .cloned()
        .zip(states.into_iter().map(|whole| whole.above_start))
        .collect())
}

/// What a whole architecture costs on this machine.
///
/// `peak_memory_bytes` counts weights, inputs and all that is alive at the widest moment of one pass at batch 1; of a
/// UNet in several parts the weights of the heaviest, as a device that loads one part after the other holds them.
///
/// # Errors
/// Where `progress` breaks off.
pub fn measure_whole(
    space: &Space,
    architecture: &Architecture,
    settings: &Settings,
    progress: Progress<'_>,
) -> Result<EntryState, Interrupted> {
    let mut states = measure_wholes(space, std::slice::from_ref(architecture), settings, progress)?;
    Ok(states.remove(0))
}

/// As [`measure_whole`], of several architectures in the same rounds.
///
/// # Errors
/// Where `progress` breaks off.
pub fn measure_wholes(
    space: &Space,
    architectures: &[Architecture],
    settings: &Settings,
    progress: Progress<'_>,
) -> Result<Vec<EntryState>, Interrupted> {
    let build = |i: usize| whole_bench(space, &architectures[i], settings);
    let states = measure(
        architectures.len(),
        &build,
        &|i| space.print(&architectures[i]),
        settings,
        progress,
    )?;
    Ok(states.into_iter().map(|state| state.whole).collect())
}

/// Measures blocks and whole architectures in the same rounds, so that the machine's changes of pace fall on both.
///
/// # Errors
/// Where `progress` breaks off.
pub fn measure_together(
    space: &Space,
    blocks: &[Block],
    architectures: &[Architecture],
    settings: &Settings,
    progress: Progress<'_>,
) -> Result<(Vec<MeasuredBlock>, Vec<EntryState>), Interrupted> {
    let dtype = dtype_of(space);
    let build = |i: usize| match i.checked_sub(blocks.len()) {
        None => block_bench(space, &blocks[i], dtype, settings),
        Some(i) => whole_bench(space, &architectures[i], settings),
    };
    let label = |i: usize| match i.checked_sub(blocks.len()) {
        None => blocks[i].to_string(),
        Some(i) => space.print(&architectures[i]),
    };
    let mut found = measure(blocks.len() + architectures.len(), &build, &label, settings, progress)?;
    let wholes = found
        .split_off(blocks.len())
        .into_iter()
        .map(|state| state.whole)
        .collect();
    Ok((
        blocks
            .iter()
            .cloned()
            .zip(found.into_iter().map(|state| state.above_start))
            .collect(),
        wholes,
    ))
}

/// Entries as they are uploaded.
#[must_use]
pub fn uploads(entries: Vec<MeasuredBlock>, dtype: Dtype) -> Vec<EntryUpload> {
    let upload = |(block, state): MeasuredBlock| EntryUpload {
        block: protocol::luts::Block {
            operator: block.operator.clone(),
            shape: block.shape.iter().map(|(name, size)| (name.to_owned(), size)).collect(),
        },
        dtype: dtype.as_str().to_owned(),
        outcome: match state {
            EntryState::Measured(measured) => EntryOutcome::Measured {
                latency_ms: measured.latency_ms.values().to_vec(),
                peak_memory_bytes: measured.peak_memory_bytes.values().to_vec(),
            },
            EntryState::OutOfMemory { detail } => EntryOutcome::OutOfMemory { detail },
            EntryState::Unsupported { detail } => EntryOutcome::Unsupported { detail },
        },
    };
    entries.into_iter().map(upload).collect()
}

/// Number format in which a space runs; single precision where it has no UNet.
#[must_use]
pub fn dtype_of(space: &Space) -> Dtype {
    space.unet().map_or(Dtype::F32, |unet| unet.dtype)
}

/// Something that has run once and can run again.
struct Bench {
    run: Box<dyn Fn()>,
    /// Weights and inputs.
    standing_bytes: u64,
    /// Of each run under the tracker, above what stands.
    peaks: Vec<PeakBytes>,
    /// How long a run takes, roughly.
    seconds: f64,
    samples: Vec<f64>,
}

impl Bench {
    /// A run: the first of a new sample, or one more of the last.
    fn add(&mut self, latency_ms: f64, begins_sample: bool) {
        match self.samples.last_mut() {
            Some(fastest) if !begins_sample => *fastest = fastest.min(latency_ms),
            _ => self.samples.push(latency_ms),
        }
    }
}

/// What was found of one subject, with its peak told in both ways.
struct Found {
    above_start: EntryState,
    whole: EntryState,
}

impl Found {
    fn failed(state: EntryState) -> Self {
        Self {
            above_start: state.clone(),
            whole: state,
        }
    }

    fn measured(bench: Bench) -> Self {
        let state = |base: u64| {
            let peaks = bench.peaks.iter().map(|peak| (base + peak.0) as f64).collect();
            match (Samples::new(bench.samples.clone()), Samples::new(peaks)) {
                (Ok(latency_ms), Ok(peak_memory_bytes)) => EntryState::Measured(Measurement {
                    latency_ms,
                    peak_memory_bytes,
                }),
                (Err(error), _) | (_, Err(error)) => EntryState::Unsupported {
                    detail: error.to_string(),
                },
            }
        };
        Self {
            above_start: state(0),
            whole: state(bench.standing_bytes),
        }
    }
}

type Build<'a> = &'a dyn Fn(usize) -> Result<Bench, EntryState>;

/// Builds subjects until memory for the group is used up, measures the group in rounds, and goes on with the next.
fn measure(
    count: usize,
    build: Build<'_>,
    label: &dyn Fn(usize) -> String,
    settings: &Settings,
    progress: Progress<'_>,
) -> Result<Vec<Found>, Interrupted> {
    let mut found: Vec<Option<Found>> = (0..count).map(|_| None).collect();
    let mut group: Vec<(usize, Bench)> = Vec::new();
    let mut standing = 0;
    for i in 0..count {
        go_on(progress(i as f64 / count.max(1) as f64, &label(i)))?;
        match build(i) {
            Ok(bench) => {
                standing += bench.standing_bytes;
                group.push((i, bench));
            }
            Err(state) => found[i] = Some(Found::failed(state)),
        }
        if standing > settings.memory_bytes / 4 {
            run_rounds(&mut group, settings, progress)?;
            group
                .drain(..)
                .for_each(|(i, bench)| found[i] = Some(Found::measured(bench)));
            standing = 0;
        }
    }
    run_rounds(&mut group, settings, progress)?;
    group
        .drain(..)
        .for_each(|(i, bench)| found[i] = Some(Found::measured(bench)));
    Ok(found.into_iter().flatten().collect())
}

fn run_rounds(group: &mut [(usize, Bench)], settings: &Settings, progress: Progress<'_>) -> Result<(), Interrupted> {
    let rounds = settings.warmups + settings.samples * RUNS_PER_SAMPLE;
    let mut order: Vec<usize> = (0..group.len()).collect();
    for round in 0..rounds {
        go_on(progress(f64::from(round) / f64::from(rounds), "measuring in rounds"))?;
        order.shuffle(&mut generator(u64::from(round), 0));
        for &i in &order {
            let bench = &mut group[i].1;
            let spent = bench.seconds * f64::from(round + 1);
            let has_enough = spent > settings.seconds_per_subject;
            if has_enough && (round < settings.warmups || !bench.samples.is_empty()) {
                continue;
            }
            let seconds = settings.seconds(|| (bench.run)());
            if round >= settings.warmups {
                bench.add(
                    1000.0 * seconds,
                    (round - settings.warmups).is_multiple_of(RUNS_PER_SAMPLE),
                );
            }
        }
    }
    Ok(())
}

fn go_on(flow: ControlFlow<()>) -> Result<(), Interrupted> {
    if flow.is_break() { Err(Interrupted) } else { Ok(()) }
}

fn block_bench(space: &Space, block: &Block, dtype: Dtype, settings: &Settings) -> Result<Bench, EntryState> {
    let build = || {
        let subject = Subject::new(space, block, dtype, settings.device)?;
        let inputs = subject.inputs()?;
        Ok((subject, inputs))
    };
    bench(
        settings,
        build,
        |(subject, _), inputs| drop(subject.forward(inputs)),
        |(subject, inputs), first| {
            // The first run may use its inputs up, as it does within the UNet; later runs need them again.
            if first { subject.inputs() } else { Ok(inputs.again()) }
        },
    )
}

fn whole_bench(space: &Space, architecture: &Architecture, settings: &Settings) -> Result<Bench, EntryState> {
    let build = || {
        let config = space.unet().ok_or("the space has no UNet to run whole")?;
        let (device, kind) = (settings.device, kind_of(config.dtype));
        let mut vs = nn::VarStore::new(device);
        let unet = UNet::new(&vs.root(), config, &space.layers(architecture));
        seed_weights(&vs, 1);
        vs.freeze();
        vs.set_kind(kind);
        let random = |shape: &[u64]| {
            let shape: Vec<i64> = shape.iter().map(|&size| size as i64).collect();
            normal(&shape, 1, Device::Cpu).to_device(device).to_kind(kind)
        };
        let xs = random(&[1, config.latent_channels, config.frames, config.height, config.width]);
        let text = random(&[1, config.text_tokens, config.text_width]);
        Ok((unet, (xs, Tensor::full([1], 0.5, (Kind::Float, device)), text)))
    };
    let whole = bench(
        settings,
        build,
        |(unet, _), (xs, time, text): (Tensor, Tensor, Tensor)| drop(unet.forward(&xs, &time, &text)),
        |(_, (xs, time, text)), _| Ok((xs.shallow_clone(), time.shallow_clone(), text.shallow_clone())),
    )?;
    Ok(Bench {
        standing_bytes: whole
            .standing_bytes
            .saturating_sub(other_parts_bytes(space, architecture)),
        ..whole
    })
}

/// Weights of all parts but the heaviest.
fn other_parts_bytes(space: &Space, architecture: &Architecture) -> u64 {
    let Some(config) = space.unet() else { return 0 };
    let steps = config.schedule(&space.layers(architecture));
    let all: u64 = steps.iter().map(|step| step.parameters).sum();
    (all - heaviest_part(&steps)) * config.dtype.bytes()
}

/// Builds a subject and runs it once under the allocator's eyes, and a second time where that is quick.
fn bench<S: 'static, I: 'static>(
    settings: &Settings,
    build: impl FnOnce() -> Result<S, String>,
    run: impl Fn(&S, I) + 'static,
    inputs: impl Fn(&S, bool) -> Result<I, String> + 'static,
) -> Result<Bench, EntryState> {
    let tracker = MemoryTracker::begin(settings.device, Some(settings.memory_bytes));
    let attempt = || {
        let subject = build()?;
        let mut peaks = Vec::new();
        let mut seconds = 0.0;
        for _ in 0..2 {
            let fresh = inputs(&subject, true)?;
            let ((), peak) = tracker.peak_of(|| {
                seconds = settings.seconds(|| tch::no_grad(|| run(&subject, fresh)));
            });
            peaks.push(peak);
            if seconds > 1.0 {
                break;
            }
        }
        Ok((subject, peaks, seconds))
    };
    let (subject, peaks, seconds) = match catch_unwind(AssertUnwindSafe(attempt)) {
        Ok(Ok(measured)) => measured,
        Ok(Err(detail)) => return Err(EntryState::Unsupported { detail }),
        Err(panic) => return Err(failure(&*panic)),
    };
    let standing_bytes = tracker.in_use();
    drop(tracker);
    let run_again = move || {
        if let Ok(again) = inputs(&subject, false) {
            tch::no_grad(|| run(&subject, again));
        }
    };
    Ok(Bench {
        run: Box::new(run_again),
        standing_bytes,
        peaks,
        seconds,
        samples: Vec::new(),
    })
}

/// The state that an error of libtorch, which surfaces as a panic, stands for.
fn failure(panic: &(dyn Any + Send)) -> EntryState {
    let text = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied());
    let text = text.unwrap_or("libtorch failed without a message");
    // What follows the first lines is libtorch's stack.
    let detail: String = text
        .lines()
        .take(2)
        .collect::<Vec<_>>()
        .join(" ")
        .chars()
        .take(400)
        .collect();
    let lower = text.to_lowercase();
    if ["out of memory", "can't allocate memory", "not enough memory"]
        .iter()
        .any(|words| lower.contains(words))
    {
        EntryState::OutOfMemory { detail }
    } else {
        EntryState::Unsupported { detail }
    }
}

#[cfg(test)]
mod tests;
