//! Jobs that take a model to the device.

use std::ops::RangeInclusive;

use protocol::{
    jobs::{
        CompressDecoderInput, DistillInput, ExportInput, ExportSubject, ExportedGraph, ProfileModelInput, Scoring,
        TrainFinalInput,
    },
    luts::Block,
};
use search_spaces::Recipe;

use super::{Check, JobRequestError, MOST_FILES, RANKS};
use crate::search::shortened;

/// The stage that makes decoders small.
pub(crate) const DECODER: &str = "decoder";

/// The most blocks of one export.
const MOST_BLOCKS: usize = 1024;

/// The most graphs of a model.
const MOST_GRAPHS: usize = 256;

/// The most dimensions of a block.
const MOST_DIMENSIONS: usize = 16;

/// Graphs that a UNet may be split into.
pub(crate) const UNET_PARTS: RangeInclusive<u32> = 1..=64;

/// Runs of a graph.
pub(crate) const RUNS: RangeInclusive<u32> = 1..=10_000;

/// Seconds without a pause.
pub(crate) const SUSTAINED_SECONDS: RangeInclusive<f64> = 0.0..=3600.0;

impl Check<'_> {
    pub(super) async fn train_final(&mut self, input: &TrainFinalInput) -> Result<(), JobRequestError> {
        self.architecture(&input.space, &input.architecture).await?;
        self.files("input.weights", &input.weights).await?;
        self.files("input.base", &input.base).await?;
        self.stage("input.recipe", &input.recipe, "joint");
        self.scoring("input.scoring", &input.scoring);
        self.within("input.ranks", input.ranks, RANKS);
        Ok(())
    }

    pub(super) async fn distill(&mut self, input: &DistillInput) -> Result<(), JobRequestError> {
        self.architecture(&input.space, &input.architecture).await?;
        self.count("input.weights", input.weights.len(), 1..=MOST_FILES);
        self.files("input.weights", &input.weights).await?;
        self.files("input.base", &input.base).await?;
        self.stage("input.recipe", &input.recipe, "adversarial");
        self.scoring("input.scoring", &input.scoring);
        self.within("input.ranks", input.ranks, RANKS);
        Ok(())
    }

    pub(super) async fn compress_decoder(&mut self, input: &CompressDecoderInput) -> Result<(), JobRequestError> {
        self.plain_name("input.parts", &input.parts);
        self.files("input.base", &input.base).await?;
        if let Some(dataset) = &input.dataset {
            self.plain_name("input.dataset", dataset);
        }
        self.stage("input.recipe", &input.recipe, DECODER);
        Ok(())
    }

    pub(super) async fn export(&mut self, input: &ExportInput) -> Result<(), JobRequestError> {
        let field = |name: &str| format!("input.subject.{name}");
        match &input.subject {
            ExportSubject::Model {
                space,
                architecture,
                weights,
                base,
                decoder,
                unet_parts,
                batch,
                sample_steps,
                guidance,
            } => {
                let space = self.space(space).await?;
                if let Err(error) = space.architecture(architecture) {
                    self.wrong(field("architecture"), error);
                }
                self.count(&field("weights"), weights.len(), 1..=MOST_FILES);
                self.files(&field("weights"), weights).await?;
                self.files(&field("base"), base).await?;
                self.files(&field("decoder"), decoder).await?;
                self.within(field("unet_parts"), *unet_parts, UNET_PARTS);
                self.within(field("batch"), *batch, 1..=1024);
                self.within(field("sample_steps"), *sample_steps, 1..=10_000);
                self.within(field("guidance"), *guidance, 0.0..=100.0);
            }
            ExportSubject::Blocks {
                space,
                blocks,
                profile_on,
            } => {
                if self.space(space).await?.unet().is_none() {
                    self.wrong(field("space"), "it has no [unet], to which blocks belong");
                }
                self.count(&field("blocks"), blocks.len(), 1..=MOST_BLOCKS);
                for (index, block) in blocks.iter().enumerate().take(MOST_BLOCKS) {
                    self.block(&field(&format!("blocks[{index}]")), block);
                }
                if let Some(target) = profile_on {
                    self.device(&field("profile_on.device"), &target.device).await?;
                }
            }
        }
        Ok(())
    }

    pub(super) async fn profile_model(
        &mut self,
        input: &ProfileModelInput,
        device: Option<&str>,
    ) -> Result<(), JobRequestError> {
        if device.is_none() {
            self.wrong("device", "found none; a model is measured on the device that is named");
        }
        let graphs = &input.manifest.graphs;
        self.count("input.manifest.graphs", graphs.len(), 1..=MOST_GRAPHS);
        for (index, graph) in graphs.iter().enumerate().take(MOST_GRAPHS) {
            self.graph(&format!("input.manifest.graphs[{index}]"), graph).await?;
        }
        if let Some(candidate) = input.candidate_id
            && self.app.store.candidate(candidate).await?.is_none()
        {
            self.wrong("input.candidate_id", format!("there is no candidate {candidate}"));
        }
        self.within("input.runs", input.runs, RUNS);
        self.within("input.sustained_seconds", input.sustained_seconds, SUSTAINED_SECONDS);
        Ok(())
    }

    async fn graph(&mut self, field: &str, graph: &ExportedGraph) -> Result<(), JobRequestError> {
        self.name(&format!("{field}.name"), &graph.name);
        self.count(&format!("{field}.files"), graph.files.len(), 1..=MOST_FILES);
        self.files(&format!("{field}.files"), &graph.files).await?;
        if let Some(block) = &graph.block {
            self.block(&format!("{field}.block"), block);
        }
        Ok(())
    }

    fn block(&mut self, field: &str, block: &Block) {
        self.name(&format!("{field}.operator"), &block.operator);
        self.count(&format!("{field}.shape"), block.shape.len(), 0..=MOST_DIMENSIONS);
    }

    async fn architecture(&mut self, space: &str, architecture: &str) -> Result<(), JobRequestError> {
        let space = self.space(space).await?;
        if space.unet().is_none() {
            self.wrong("input.space", "it has no [unet]; only models that have one are trained");
        } else if let Err(error) = space.architecture(architecture) {
            self.wrong("input.architecture", error);
        }
        Ok(())
    }

    /// A recipe of one stage. Of the decoder's keys the worker alone knows more than the stage.
    pub(crate) fn stage(&mut self, field: &str, text: &str, stage: &str) {
        let before = self.errors.len();
        self.recipe(field, text);
        let Some(table) = text.parse::<toml::Table>().ok().filter(|_| self.errors.len() == before) else {
            return;
        };
        match table.get("stage").and_then(toml::Value::as_str) {
            Some(found) if found == stage => {
                let parsed = (stage != DECODER).then(|| Recipe::parse(text));
                if let Some(Err(error)) = parsed {
                    self.wrong(field, error);
                }
            }
            Some(found) => {
                let message = format!("is of the stage `{}`; allowed: {stage}", shortened(found));
                self.wrong(field, message);
            }
            None => self.wrong(field, format!("names no stage; allowed: {stage}")),
        }
    }

    pub(crate) fn scoring(&mut self, field: &str, scoring: &Scoring) {
        let field = |name: &str| format!("{field}.{name}");
        if let Some(prompts) = scoring.prompts {
            self.within(field("prompts"), prompts, 1..=100_000);
        }
        if let Some(videos) = scoring.videos_per_prompt {
            self.within(field("videos_per_prompt"), videos, 1..=1000);
        }
        if let Some(steps) = scoring.sample_steps {
            self.within(field("sample_steps"), steps, 1..=10_000);
        }
        if let Some(guidance) = scoring.guidance {
            self.within(field("guidance"), guidance, 0.0..=100.0);
        }
    }
}
