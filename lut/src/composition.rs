//! What a whole architecture costs, from the costs of its blocks.
//!
//! Latency is a sum: blocks run one after another. Peak memory is a maximum over time, never a sum of peaks:
//!
//! `weights of the heaviest part + max over steps (held + input + output and workspace of the step)`
//!
//! with what is held (skip tensors, embeddings) from the UNet's schedule. Where a space declares a cell graph, an
//! ahead-of-time runtime drops the branches that cannot reach the output, an eager one runs them
//! ([`Policy`](crate::Policy)).

use std::collections::BTreeMap;

use search_spaces::{
    Architecture, Block, Choice, Costs, Estimate, Infeasible, Pipeline, Space, Step, UnetConfig, heaviest_part, metric,
    work,
};
use serde::{Deserialize, Serialize};

use crate::{Calibration, Cost, Extrapolation, Lookup, Lut, Missing, Policy};

/// Predicted costs of one architecture; what the table or the closed forms cannot tell is absent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct ArchitectureCost {
    /// One forward pass, milliseconds.
    pub latency_ms: Option<Estimate>,
    /// Highest memory in use during it, bytes.
    pub peak_memory_bytes: Option<Estimate>,
    /// Trainable scalars.
    pub parameters: Option<u64>,
    /// Multiply-accumulates of one forward pass.
    pub macs: Option<u64>,
    /// Text encoder, all passes of the UNet for one clip and decoding of all its frames, milliseconds.
    pub pipeline_latency_ms: Option<Estimate>,
}

/// Why an architecture has no predicted costs.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum CompositionError {
    /// A block ran out of memory on the device.
    #[error("{block} runs out of memory on {device}: {detail}")]
    OutOfMemory {
        /// The block.
        block: Block,
        /// The device.
        device: String,
        /// What was said.
        detail: String,
    },
    /// The runtime does not offer a block.
    #[error("{block} is not supported by {runtime}: {detail}")]
    Unsupported {
        /// The block.
        block: Block,
        /// The runtime.
        runtime: String,
        /// What was said.
        detail: String,
    },
    /// The table does not tell what a block costs.
    #[error("the table does not tell: {0}")]
    Missing(#[from] Missing),
    /// The table was measured in another number type than the space runs in.
    #[error("the table holds {table}, the space runs in {space}; figures do not transfer")]
    Dtype {
        /// Number type of the table.
        table: String,
        /// Number type of the space.
        space: String,
    },
    /// The architecture is none of this space.
    #[error("{0}")]
    Architecture(String),
}

impl From<CompositionError> for Infeasible {
    fn from(error: CompositionError) -> Self {
        Self {
            reason: error.to_string(),
        }
    }
}

/// Costs of the architectures of a space, from a table.
#[derive(Debug, Clone)]
pub struct LutCosts<'a> {
    lut: &'a Lut,
    space: &'a Space,
    calibrations: BTreeMap<String, Calibration>,
    extrapolation: Extrapolation,
}

/// Predicts one architecture from a table, without calibration and within what was measured.
///
/// # Errors
/// A block that does not fit, is not supported or is not in the table.
pub fn compose(lut: &Lut, space: &Space, architecture: &Architecture) -> Result<ArchitectureCost, CompositionError> {
    LutCosts::new(lut, space).compose(architecture)
}

impl<'a> LutCosts<'a> {
    /// Predictions from `lut`, uncorrected, within what was measured.
    pub fn new(lut: &'a Lut, space: &'a Space) -> Self {
        Self {
            lut,
            space,
            calibrations: BTreeMap::new(),
            extrapolation: Extrapolation::Refused,
        }
    }

    /// With corrections by metric (`latency_ms`, `peak_memory_bytes`); the pipeline's passes use that of latency.
    pub fn calibrated(self, calibrations: BTreeMap<String, Calibration>) -> Self {
        Self { calibrations, ..self }
    }

    /// With or without answers beyond what was measured.
    pub fn extrapolating(self, extrapolation: Extrapolation) -> Self {
        Self { extrapolation, ..self }
    }

    /// The table.
    pub fn lut(&self) -> &'a Lut {
        self.lut
    }

    /// The space.
    pub fn space(&self) -> &'a Space {
        self.space
    }

    /// Predicts one architecture.
    ///
    /// # Errors
    /// A block that does not fit, is not supported or is not in the table; an architecture of another space.
    pub fn compose(&self, architecture: &Architecture) -> Result<ArchitectureCost, CompositionError> {
        self.space
            .check(architecture)
            .map_err(|error| CompositionError::Architecture(error.to_string()))?;
        let live = match self.lut.runtime().policy() {
            Policy::AheadOfTime => self.space.structure.live(architecture),
            Policy::Eager => vec![true; self.space.positions.len()],
        };
        let chosen: Vec<Option<&Choice>> = self
            .space
            .chosen(architecture)
            .zip(live)
            .map(|(choice, live)| choice.filter(|_| live))
            .collect();
        self.compose_choices(&chosen)
    }

    /// Predicts what runs when exactly these choices are taken; `None` leaves a position empty.
    pub(crate) fn compose_choices(&self, chosen: &[Option<&Choice>]) -> Result<ArchitectureCost, CompositionError> {
        match self.space.unet() {
            Some(unet) => self.compose_unet(unet, chosen),
            None => self.compose_blocks(chosen),
        }
    }

    fn compose_unet(
        &self,
        unet: &UnetConfig,
        chosen: &[Option<&Choice>],
    ) -> Result<ArchitectureCost, CompositionError> {
        if unet.dtype != self.lut.dtype() {
            return Err(CompositionError::Dtype {
                table: self.lut.dtype().to_string(),
                space: unet.dtype.to_string(),
            });
        }
        let layers: Vec<_> = chosen
            .iter()
            .map(|choice| choice.and_then(|choice| choice.layer))
            .collect();
        let steps = unet.schedule(&layers);
        let costs = steps
            .iter()
            .map(|step| self.block_cost(&step.block))
            .collect::<Result<Vec<Cost>, _>>()?;
        let latency = sum(steps
            .iter()
            .zip(&costs)
            .map(|(step, cost)| (&step.block, step.repeat.into(), cost.latency_ms)));
        let latency_ms = self.corrected(metric::LATENCY_MS, latency);
        let peak_memory_bytes = peak_memory(&steps, &costs, unet.dtype.bytes());
        Ok(ArchitectureCost {
            latency_ms: Some(latency_ms),
            peak_memory_bytes: peak_memory_bytes.map(|peak| self.corrected(metric::PEAK_MEMORY_BYTES, peak)),
            parameters: Some(steps.iter().map(|step| step.parameters).fold(0, u64::saturating_add)),
            macs: self.macs(steps.iter().map(|step| (&step.block, step.repeat.into()))),
            pipeline_latency_ms: match &self.space.pipeline {
                Some(pipeline) => self.pipeline_latency(unet, pipeline, latency_ms)?,
                None => None,
            },
        })
    }

    /// Blocks behind named choices, one after another. What is alive between them is not declared, so peak memory
    /// is the largest measured peak plus the weights that closed forms know.
    fn compose_blocks(&self, chosen: &[Option<&Choice>]) -> Result<ArchitectureCost, CompositionError> {
        let null = self.space.structure.null.as_deref();
        let unknown = |choice: &&Choice| choice.blocks.is_empty() && null != Some(choice.code.as_str());
        if chosen.iter().flatten().any(unknown) {
            return Ok(ArchitectureCost::default());
        }
        let blocks: Vec<&Block> = chosen.iter().flatten().flat_map(|choice| &choice.blocks).collect();
        let costs = blocks
            .iter()
            .map(|block| self.block_cost(block))
            .collect::<Result<Vec<Cost>, _>>()?;
        let latency = sum(blocks
            .iter()
            .zip(&costs)
            .map(|(block, cost)| (*block, 1, cost.latency_ms)));
        let works: Vec<_> = blocks.iter().map(|block| work(block, self.lut.dtype())).collect();
        let weights: u64 = works
            .iter()
            .flatten()
            .map(|work| work.parameters)
            .fold(0, u64::saturating_add);
        let peaks: Option<Vec<Estimate>> = costs.iter().map(|cost| cost.peak_memory_bytes).collect();
        let peak = peaks.map(|peaks| shifted(highest(peaks), weights.saturating_mul(self.lut.dtype().bytes())));
        Ok(ArchitectureCost {
            latency_ms: Some(self.corrected(metric::LATENCY_MS, latency)),
            peak_memory_bytes: peak.map(|peak| self.corrected(metric::PEAK_MEMORY_BYTES, peak)),
            parameters: works.iter().all(Option::is_some).then_some(weights),
            macs: self.macs(blocks.iter().map(|block| (*block, 1))),
            pipeline_latency_ms: None,
        })
    }

    fn block_cost(&self, block: &Block) -> Result<Cost, CompositionError> {
        match self.lut.lookup(block, self.extrapolation) {
            Lookup::Measured(cost) | Lookup::Interpolated(cost, _) | Lookup::Extrapolated(cost) => Ok(cost),
            Lookup::OutOfMemory { detail } => Err(CompositionError::OutOfMemory {
                block: block.clone(),
                device: self.lut.device().to_owned(),
                detail,
            }),
            Lookup::Unsupported { detail } => Err(CompositionError::Unsupported {
                block: block.clone(),
                runtime: self.lut.runtime().to_string(),
                detail,
            }),
            Lookup::Missing(missing) => Err(missing.into()),
        }
    }

    /// Text + passes × UNet + decoding. Absent when text encoder or decoder are neither given nor in the table;
    /// an error when one of them cannot run, because then no clip is ever made.
    fn pipeline_latency(
        &self,
        unet: &UnetConfig,
        pipeline: &Pipeline,
        pass: Estimate,
    ) -> Result<Option<Estimate>, CompositionError> {
        let part = |given: Option<f64>, block: Block| match given {
            Some(latency_ms) => Ok(Some(Estimate::exact(latency_ms))),
            None => match self.block_cost(&block) {
                Ok(cost) => Ok(Some(cost.latency_ms)),
                Err(CompositionError::Missing(_)) => Ok(None),
                Err(error) => Err(error),
            },
        };
        let text = part(pipeline.text_latency_ms, unet.text_encoder_block())?;
        let decoding = part(pipeline.decode_latency_ms, unet.decoder_block())?;
        let passes = pipeline.passes() as f64;
        Ok(text.zip(decoding).map(|(text, decoding)| Estimate {
            value: text.value + passes * pass.value + decoding.value,
            // Every pass is the same pass: its error does not average out.
            standard_error: text
                .standard_error
                .hypot(passes * pass.standard_error)
                .hypot(decoding.standard_error),
        }))
    }

    /// Saturates; absent where a block has no closed form.
    fn macs<'b>(&self, mut blocks: impl Iterator<Item = (&'b Block, u64)>) -> Option<u64> {
        blocks.try_fold(0, |sum: u64, (block, repeat)| {
            let macs = work(block, self.lut.dtype())?.macs.saturating_mul(repeat);
            Some(sum.saturating_add(macs))
        })
    }

    fn corrected(&self, metric: &str, estimate: Estimate) -> Estimate {
        self.calibrations
            .get(metric)
            .map_or(estimate, |calibration| calibration.apply(estimate))
    }
}

impl Costs for LutCosts<'_> {
    fn costs(&self, architecture: &Architecture) -> Result<BTreeMap<String, Estimate>, Infeasible> {
        Ok(self.compose(architecture)?.metrics())
    }
}

impl ArchitectureCost {
    /// What is known, by the name of its metric.
    pub fn metrics(&self) -> BTreeMap<String, Estimate> {
        let count = |count: Option<u64>| count.map(|count| Estimate::exact(count as f64));
        let all = [
            (metric::LATENCY_MS, self.latency_ms),
            (metric::PEAK_MEMORY_BYTES, self.peak_memory_bytes),
            (metric::PARAMETERS, count(self.parameters)),
            (metric::MACS, count(self.macs)),
            (metric::PIPELINE_LATENCY_MS, self.pipeline_latency_ms),
        ];
        all.into_iter()
            .filter_map(|(name, estimate)| Some((name.to_owned(), estimate?)))
            .collect()
    }
}

/// Sum of the figures, each taken so many times. Errors of different blocks are independent; those of one block,
/// which stands in the table once, are the same error as often as it runs.
fn sum<'b>(terms: impl Iterator<Item = (&'b Block, u64, Estimate)>) -> Estimate {
    let mut by_block: BTreeMap<&Block, (f64, Estimate)> = BTreeMap::new();
    for (block, times, estimate) in terms {
        by_block.entry(block).or_insert((0.0, estimate)).0 += times as f64;
    }
    Estimate {
        value: by_block.values().map(|(times, estimate)| times * estimate.value).sum(),
        standard_error: by_block
            .values()
            .map(|(times, e)| (times * e.standard_error).powi(2))
            .sum::<f64>()
            .sqrt(),
    }
}

/// Peak memory of a schedule by liveness; none where a block's own peak is not known.
fn peak_memory(steps: &[Step], costs: &[Cost], bytes: u64) -> Option<Estimate> {
    let weights = heaviest_part(steps).saturating_mul(bytes);
    let alive = |(step, cost): (&Step, &Cost)| {
        let standing = step
            .held_elements
            .saturating_add(step.input_elements)
            .saturating_mul(bytes);
        cost.peak_memory_bytes.map(|transient| shifted(transient, standing))
    };
    let alive = steps.iter().zip(costs).map(alive).collect::<Option<Vec<Estimate>>>()?;
    Some(shifted(highest(alive), weights))
}

fn highest(estimates: Vec<Estimate>) -> Estimate {
    estimates
        .into_iter()
        .max_by(|a, b| a.value.total_cmp(&b.value))
        .unwrap_or(Estimate::exact(0.0))
}

fn shifted(estimate: Estimate, bytes: u64) -> Estimate {
    Estimate {
        value: estimate.value + bytes as f64,
        ..estimate
    }
}

#[cfg(test)]
mod tests;
