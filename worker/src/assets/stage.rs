//! One resumable piece of training: a loss, a number of steps, and a checkpoint now and then.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use tch::{Tensor, nn};

use super::AssetsError;
use crate::optimizer::{AdamW, AdamWConfig};

const CHECKPOINT_EVERY: u64 = 100;
const WARMUP: u64 = 50;
/// The learning rate ends at this share of its height.
const LAST_SHARE: f64 = 0.03;

/// How a stage trains.
#[derive(Debug, Clone)]
pub(super) struct Stage<'a> {
    pub name: &'a str,
    /// Where its checkpoint lies.
    pub folder: &'a Path,
    pub steps: u64,
    pub learning_rate: f64,
}

impl Stage<'_> {
    fn checkpoint(&self) -> PathBuf {
        self.folder.join(format!("{}.safetensors", self.name))
    }

    /// Trains all trainable variables of `vs`; goes on where a checkpoint stands. Everything random in `loss` must
    /// come from the step's number.
    pub(super) fn run(&self, vs: &nn::VarStore, mut loss: impl FnMut(u64) -> Tensor) -> Result<(), AssetsError> {
        let mut adamw = AdamW::new(
            vs.variables(),
            AdamWConfig {
                weight_decay: 1e-4,
                ..Default::default()
            },
        );
        let done = self.resume(vs, &mut adamw)?;
        let (started, mut sum, mut count) = (Instant::now(), 0.0, 0.0);
        for step in done..self.steps {
            let loss = loss(step);
            sum += loss.double_value(&[]);
            count += 1.0;
            let norm = adamw.backward_step(&loss, self.rate(step));
            if !norm.is_finite() {
                let stage = self.name.to_owned();
                return Err(AssetsError::Diverged { stage, step, norm });
            }
            let last = step + 1 == self.steps;
            if (step + 1).is_multiple_of(CHECKPOINT_EVERY) || last {
                self.save(vs, &adamw)?;
                let seconds = started.elapsed().as_secs_f64();
                tracing::info!(
                    stage = self.name,
                    step = step + 1,
                    steps = self.steps,
                    loss = sum / count,
                    seconds
                );
                (sum, count) = (0.0, 0.0);
            }
        }
        Ok(())
    }

    /// A short warm-up, then half a cosine.
    fn rate(&self, step: u64) -> f64 {
        let warm = ((step + 1) as f64 / WARMUP as f64).min(1.0);
        let way = step as f64 / self.steps as f64;
        let cosine = 0.5 * (1.0 + (std::f64::consts::PI * way).cos());
        self.learning_rate * warm * (LAST_SHARE + (1.0 - LAST_SHARE) * cosine)
    }

    fn save(&self, vs: &nn::VarStore, adamw: &AdamW) -> Result<(), AssetsError> {
        let weights = vs
            .variables()
            .into_iter()
            .map(|(name, tensor)| (format!("weight.{name}"), tensor));
        let state = adamw
            .state()
            .into_iter()
            .map(|(name, tensor)| (format!("adamw.{name}"), tensor));
        let all: Vec<(String, Tensor)> = weights.chain(state).collect();
        write_tensors(&all, &self.checkpoint())
    }

    fn resume(&self, vs: &nn::VarStore, adamw: &mut AdamW) -> Result<u64, AssetsError> {
        let path = self.checkpoint();
        if !path.exists() {
            return Ok(0);
        }
        let mut tensors = read_tensors(&path)?;
        let broken = |problem: String| AssetsError::Content {
            path: path.clone(),
            problem,
        };
        for (name, mut variable) in vs.variables() {
            let saved = tensors.remove(&format!("weight.{name}"));
            let saved = saved.ok_or_else(|| broken(format!("no weight `{name}`; remove the file to start afresh")))?;
            tch::no_grad(|| variable.f_copy_(&saved)).map_err(|error| broken(error.to_string()))?;
        }
        let state = tensors
            .into_iter()
            .filter_map(|(name, t)| Some((name.strip_prefix("adamw.")?.to_owned(), t)))
            .collect();
        adamw.load_state(&state).map_err(|error| broken(error.to_string()))?;
        tracing::info!(stage = self.name, step = adamw.steps(), "resumed");
        Ok(adamw.steps() as u64)
    }
}

/// Writes a tensor file whole or not at all; tensors in the order of their names.
pub(crate) fn write_tensors(tensors: &[(String, Tensor)], path: &Path) -> Result<(), AssetsError> {
    let mut sorted: Vec<(&str, Tensor)> = tensors
        .iter()
        .map(|(name, tensor)| (name.as_str(), tensor.detach().contiguous()))
        .collect();
    sorted.sort_by_key(|(name, _)| *name);
    let partial = path.with_extension("partial");
    let failed = |source| AssetsError::Tensors {
        path: path.to_owned(),
        source,
    };
    Tensor::write_safetensors(&sorted, &partial).map_err(failed)?;
    let flush = || {
        std::fs::File::open(&partial)?.sync_all()?;
        std::fs::rename(&partial, path)
    };
    flush().map_err(|source| AssetsError::File {
        path: path.to_owned(),
        source,
    })
}

/// Reads a tensor file.
pub(crate) fn read_tensors(path: &Path) -> Result<HashMap<String, Tensor>, AssetsError> {
    let failed = |source| AssetsError::Tensors {
        path: path.to_owned(),
        source,
    };
    Ok(Tensor::read_safetensors(path).map_err(failed)?.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use tch::{Device, Kind};

    use super::*;
    use crate::models::norm::{Start, linear};
    use crate::models::seeded::{normal, seed_weights};

    /// Trains a line; where `dies_at` is reached, the process would be gone.
    fn train(folder: &Path, dies_at: Option<u64>) -> Vec<f32> {
        let vs = nn::VarStore::new(Device::Cpu);
        let line = linear(vs.root(), 3, 1, true, Start::Random);
        seed_weights(&vs, 4);
        let stage = Stage {
            name: "line",
            folder,
            steps: 250,
            learning_rate: 5e-2,
        };
        let run = || {
            stage.run(&vs, |step| {
                assert_ne!(Some(step), dies_at, "killed");
                let xs = normal(&[8, 3], step, Device::Cpu);
                (xs.apply(&line) - xs.sum_dim_intlist([1i64].as_slice(), true, Kind::Float))
                    .square()
                    .mean(Kind::Float)
            })
        };
        match catch_unwind(AssertUnwindSafe(run)) {
            Ok(outcome) => outcome.expect("a writable folder"),
            Err(_) => assert!(dies_at.is_some()),
        }
        Vec::try_from(line.ws.detach().flatten(0, -1)).expect("three numbers")
    }

    #[test]
    fn a_stage_that_was_killed_goes_on_to_the_same_weights() {
        let (whole, broken) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let straight = train(whole.path(), None);
        assert!(straight.iter().all(|weight| (weight - 1.0).abs() < 0.1), "{straight:?}");
        train(broken.path(), Some(137));
        assert_eq!(train(broken.path(), None), straight);
    }
}
