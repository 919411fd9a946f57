//! Writes a model, or blocks of a space, as graphs that run without libtorch, and holds each to libtorch before it goes
//! out.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use protocol::artifacts::{ArtifactRef, ArtifactRole};
use protocol::jobs::{
    DeviceSeconds, ExportFormat, ExportInput, ExportManifest, ExportOutcome, ExportSubject, ExportedGraph, JobResult,
    Outcome, SamplerGrid,
};
use protocol::luts::Block;
use protocol::{Figure, Metrics};
use tch::{Device, Kind, Tensor};

use super::profile::block as block_of;
use super::{JobContext, JobError, benchmark, parse};
use crate::assets::Assets;
use crate::checkpoint::encode_tensors;
use crate::flow::Sampler;
use crate::models::seeded::normal;
use crate::models::text::TextEncoder;
use crate::models::unet::PassSizes;
use crate::models::vae::{CHUNK_FRAMES, CHUNK_LATENTS, Vae};
use crate::onnx::{
    CoreMl, CoreMlError, Dtype, EXPORTER, Graph, INLINE_BYTES, OPSET, OnnxError, Precision, Runtime, Tolerance,
};
use crate::profile::Subject;

pub(super) fn run(context: &JobContext, input: &ExportInput) -> Result<JobResult, JobError> {
    tch::set_num_threads(context.settings.threads as i32);
    let _guard = tch::no_grad_guard();
    let exporting = Exporting::new(context, input)?;
    let (graphs, sampler, macs) = match &input.subject {
        ExportSubject::Model { .. } => exporting.model(&input.subject)?,
        ExportSubject::Blocks { space, blocks, .. } => exporting.blocks(space, blocks)?,
    };
    let manifest = ExportManifest {
        exporter: EXPORTER.to_owned(),
        opset: OPSET,
        precision: input.precision,
        graphs,
        sampler,
    };
    let mut artifacts: Vec<ArtifactRef> = Vec::new();
    let files = manifest.graphs.iter().flat_map(|graph| &graph.files);
    let embeddings = manifest.sampler.iter().map(|grid| &grid.embeddings);
    for file in files.chain(embeddings) {
        // Blocks of one shape and seed are one file.
        if !artifacts.contains(file) {
            artifacts.push(file.clone());
        }
    }
    let metrics = metrics(&manifest, macs, &artifacts);
    let json = serde_json::to_vec_pretty(&manifest).map_err(JobError::attempt)?;
    artifacts.push(context.keep(ArtifactRole::Report, "manifest.json", "application/json", &json)?);
    Ok(JobResult {
        device_seconds: DeviceSeconds::default(),
        artifacts,
        outcome: Outcome::Export(ExportOutcome { metrics, manifest }),
    })
}

fn metrics(manifest: &ExportManifest, macs: u64, files: &[ArtifactRef]) -> Metrics {
    let exact = |value: f64| Figure {
        value,
        standard_error: 0.0,
    };
    let graphs = &manifest.graphs;
    let worst = graphs
        .iter()
        .map(|graph| graph.largest_relative_error)
        .fold(0.0, f64::max);
    let parameters: u64 = graphs.iter().map(|graph| graph.parameters).sum();
    let bytes: u64 = files.iter().map(|file| file.bytes).sum();
    [
        ("parameters", parameters as f64),
        ("macs", macs as f64),
        ("file_bytes", bytes as f64),
        ("largest_relative_error", worst),
    ]
    .map(|(name, value)| (name.to_owned(), exact(value)))
    .into()
}

/// A graph with what libtorch makes of its inputs.
struct Piece {
    graph: Graph,
    inputs: Vec<(String, Tensor)>,
    expected: Vec<(String, Tensor)>,
    block: Option<Block>,
    runs: i64,
}

type Exported = (Vec<ExportedGraph>, Option<SamplerGrid>, u64);

struct Exporting<'a> {
    context: &'a JobContext,
    runtime: Runtime,
    coreml: Option<CoreMl>,
    folder: tempfile::TempDir,
    precision: Precision,
    seed: u64,
}

impl<'a> Exporting<'a> {
    fn new(context: &'a JobContext, input: &ExportInput) -> Result<Self, JobError> {
        let settings = &context.settings;
        let is_asked = input.formats.contains(&ExportFormat::CoreMl);
        let coreml = is_asked.then(|| {
            let python = settings.coreml.as_deref().ok_or_else(|| {
                JobError::Attempt(
                    "a Core ML package was asked for, but this worker has no environment with coremltools: \
                     `scripts/coreml-env` makes one, to name in --coreml-python"
                        .to_owned(),
                )
            })?;
            CoreMl::probe(python).map_err(JobError::attempt)
        });
        // Beside the cache, so that files can be linked into it.
        std::fs::create_dir_all(&settings.cache).map_err(JobError::attempt)?;
        let folder = tempfile::Builder::new().prefix("export-").tempdir_in(&settings.cache);
        Ok(Self {
            context,
            runtime: Runtime::find(settings.onnxruntime.as_deref()).map_err(JobError::attempt)?,
            coreml: coreml.transpose()?,
            folder: folder.map_err(JobError::attempt)?,
            precision: input.precision,
            seed: input.seed,
        })
    }

    fn blocks(&self, space: &str, blocks: &[Block]) -> Result<Exported, JobError> {
        let (space, _) = parse(space, None)?;
        if blocks.is_empty() {
            return Err(JobError::Input("`blocks` is empty; allowed: at least one".to_owned()));
        }
        let (mut graphs, mut macs) = (Vec::new(), 0);
        for (i, block) in blocks.iter().enumerate() {
            let said = |problem: String| JobError::Input(format!("block {i}, `{}`: {problem}", block.operator));
            let subject = Subject::drawn(&space, &block_of(block), self.seed).map_err(said)?;
            let inputs = subject.inputs().map_err(said)?;
            let graph = subject
                .export(&format!("{i:04}.{}", block.operator), self.precision)
                .map_err(said)?;
            macs += graph.macs();
            let named = inputs
                .named()
                .into_iter()
                .map(|(name, tensor)| (name.to_owned(), self.rounded(tensor)));
            let named: Vec<(String, Tensor)> = named.collect();
            let expected = subject.forward(inputs.with(&named));
            let piece = Piece {
                graph,
                inputs: named,
                expected: vec![("ys".to_owned(), expected)],
                block: Some(block.clone()),
                runs: 1,
            };
            graphs.push(self.finish(piece, i as f64 / blocks.len() as f64)?);
        }
        Ok((graphs, None, macs))
    }

    fn model(&self, subject: &ExportSubject) -> Result<Exported, JobError> {
        let ExportSubject::Model {
            space,
            architecture,
            weights,
            base,
            decoder,
            unet_parts,
            batch,
            sample_steps,
            guidance,
        } = subject
        else {
            return Err(JobError::Input("no model".to_owned()));
        };
        let (space, architecture) = parse(space, Some(architecture))?;
        let architecture = architecture.ok_or_else(|| JobError::Input("no architecture".to_owned()))?;
        let config = space.unet();
        let config = config.ok_or_else(|| JobError::Input(format!("`{}` has no UNet to export", space.name)))?;
        let evaluation = space.evaluation.as_ref();
        let evaluation =
            evaluation.ok_or_else(|| JobError::Input("the space has no [evaluation] section".to_owned()))?;
        if *batch == 0 || *sample_steps == 0 || !guidance.is_finite() {
            return Err(JobError::Input(format!(
                "`batch` is {batch}, `sample_steps` {sample_steps} and `guidance` {guidance}; allowed: at least 1, at \
                 least 1, a finite guidance"
            )));
        }
        self.context.progress(0.0, "reading trained parts")?;
        let root = self.context.assets_with(&evaluation.dataset, base, decoder)?;
        let assets = Assets::open(&root, &evaluation.dataset, Device::Cpu).map_err(JobError::attempt)?;
        let (_vs, unet) = benchmark::trained(self.context, &assets, config, &space.layers(&architecture), weights)?;

        let sampler = Sampler {
            steps: *sample_steps,
            shift: evaluation.training.timestep_shift,
            guidance: *guidance,
        };
        let sizes = PassSizes::of(config, i64::from(*batch));
        let times = sampler.grid(&sizes.latents).times().to_vec();
        let embeddings = self.rounded(&unet.embed(&Tensor::from_slice(&times).to_kind(Kind::Float)));

        let runs = i64::from(sampler.passes());
        let graphs = unet
            .export(sizes, self.precision, *unet_parts)
            .map_err(JobError::Input)?;
        let macs_of = |pieces: &[Piece]| pieces.iter().map(|piece| piece.graph.macs()).sum::<u64>();
        let beside = self.beside_the_unet(&assets, sizes)?;
        let all = (beside.text.len() + graphs.graphs.len() + beside.decoders.len()) as f64;
        let macs =
            macs_of(&beside.text) + macs_of(&beside.decoders) + graphs.graphs.iter().map(Graph::macs).sum::<u64>();

        let mut done = Vec::new();
        for piece in beside.text {
            done.push(self.finish(piece, done.len() as f64 / all)?);
        }
        let latents = self.drawn(&sizes.latents, 1);
        let text = self.drawn(&[sizes.latents[0], sizes.text_tokens, sizes.text_width], 2);
        let time = embeddings
            .narrow(0, 0, 1)
            .expand([sizes.latents[0], -1], false)
            .contiguous();
        let mut known = unet.carried(&graphs, &latents, &time, &text);
        known.extend(
            [("latents", latents), ("time_embedding", time), ("text", text)].map(|(name, t)| (name.to_owned(), t)),
        );
        for graph in graphs.graphs {
            let again = || {
                known
                    .iter()
                    .map(|(name, tensor)| (name.clone(), tensor.shallow_clone()))
                    .collect()
            };
            let piece = Piece {
                inputs: again(),
                expected: again(),
                graph,
                block: None,
                runs,
            };
            done.push(self.finish(piece, done.len() as f64 / all)?);
        }
        drop(known);
        for piece in beside.decoders {
            done.push(self.finish(piece, done.len() as f64 / all)?);
        }
        let grid = SamplerGrid {
            times,
            guidance: *guidance,
            embeddings: self.embeddings(&embeddings)?,
        };
        Ok((done, Some(grid), macs))
    }

    /// Text encoder and decoders.
    fn beside_the_unet(&self, assets: &Assets, sizes: PassSizes) -> Result<Beside, JobError> {
        let [batch, channels, latents, height, width] = sizes.latents;
        let (tokens, vocabulary) = assets.text.sizes();
        // The empty text of guidance is encoded once for all clips.
        let text = vec![self.text(assets.text.encoder(), [batch, tokens], vocabulary, 1)];

        let mut decoders = Vec::new();
        let mut frames = latents;
        if assets.vae.temporal.is_some() {
            let (whole, rest) = (latents / CHUNK_LATENTS, latents % CHUNK_LATENTS);
            // Four frames for each latent frame: those that stand for no padding.
            let chunks = [
                (CHUNK_LATENTS, CHUNK_FRAMES, whole),
                (rest, 4 * rest, i64::from(rest > 0)),
            ];
            frames = chunks.iter().map(|(_, frames, runs)| frames * runs).sum();
            for (latents, frames, runs) in chunks.into_iter().filter(|(_, _, runs)| *runs > 0) {
                let name = if decoders.is_empty() {
                    "temporal_decoder"
                } else {
                    "temporal_decoder.rest"
                };
                let shape = [batch, channels, latents, height, width];
                decoders.push(self.over_time(&assets.vae, name, &shape, frames, runs));
            }
        }
        let all = batch * frames;
        let most = assets.vae.slice_frames(height, width).min(all);
        let slice = (1..=most).rev().find(|count| all % count == 0).unwrap_or(1);
        decoders.push(self.per_frame(&assets.vae, &[slice, channels, height, width], all / slice));
        Ok(Beside { text, decoders })
    }

    fn text(&self, encoder: &TextEncoder, shape: [i64; 2], vocabulary: i64, runs: i64) -> Piece {
        let tokens = Tensor::arange(shape[0] * shape[1], (Kind::Int64, Device::Cpu)) * 7919 + self.seed as i64 % 7919;
        let tokens = tokens.remainder(vocabulary).reshape(shape);
        let mut graph = Graph::new("text_encoder", self.precision);
        let input = graph.input_of("tokens", Dtype::I64, &shape);
        let text = encoder.export(&mut graph, &input);
        graph.output("text", &text);
        Piece {
            graph,
            expected: vec![("text".to_owned(), encoder.forward(&tokens))],
            inputs: vec![("tokens".to_owned(), tokens)],
            block: None,
            runs,
        }
    }

    fn over_time(&self, vae: &Vae, name: &str, shape: &[i64], frames: i64, runs: i64) -> Piece {
        let latents = self.drawn(shape, 3);
        let mut graph = Graph::new(name, self.precision);
        let input = graph.input("latents", shape);
        let per_frame = vae.export_over_time(&mut graph, &input, frames);
        graph.output("frames", &per_frame);
        Piece {
            graph,
            expected: vec![("frames".to_owned(), vae.decode_over_time(&latents, frames))],
            inputs: vec![("latents".to_owned(), latents)],
            block: None,
            runs,
        }
    }

    fn per_frame(&self, vae: &Vae, shape: &[i64], runs: i64) -> Piece {
        let frames = self.drawn(shape, 4);
        let mut graph = Graph::new("spatial_decoder", self.precision);
        let input = graph.input("frames", shape);
        let pixels = vae.export_frames(&mut graph, &input);
        graph.output("pixels", &pixels);
        let clip = frames.transpose(0, 1).unsqueeze(0); // [1, c, n, h, w]
        let expected = vae.decode_frames(&clip).squeeze_dim(0).transpose(0, 1);
        Piece {
            graph,
            expected: vec![("pixels".to_owned(), expected)],
            inputs: vec![("frames".to_owned(), frames)],
            block: None,
            runs,
        }
    }

    /// Writes a graph, holds it to libtorch, converts it where that was asked for, and keeps its files.
    fn finish(&self, piece: Piece, share: f64) -> Result<ExportedGraph, JobError> {
        let Piece {
            graph,
            inputs,
            expected,
            block,
            runs,
        } = piece;
        self.context.progress(share, &format!("exporting {}", graph.name()))?;
        let written = graph.write(self.folder.path(), INLINE_BYTES).map_err(refused)?;
        drop(graph);
        let threads = self.context.settings.threads as usize;
        let tolerance = Tolerance::of(self.precision);
        let error = self
            .runtime
            .verify(&written, &named(&inputs), &named(&expected), tolerance, threads);
        let error = error.map_err(refused)?;
        self.context.log(&format!(
            "{}: {} parameters, off by {error:.1e}",
            written.name, written.parameters
        ));
        let mut files = Vec::new();
        let mut keep = |media_type: &str, path: &Path| -> Result<(), JobError> {
            files.push(self.context.keep_file(ArtifactRole::Graph, media_type, path)?);
            std::fs::remove_file(path).map_err(JobError::attempt)
        };
        let package = match &self.coreml {
            Some(coreml) => {
                self.context
                    .progress(share, &format!("converting {} to Core ML", written.name))?;
                let mut goes_on = || !self.context.pulse.stops();
                Some(coreml.package(&written, &mut goes_on).map_err(|error| match error {
                    CoreMlError::Interrupted => JobError::Interrupted,
                    error => JobError::Input(error.to_string()),
                })?)
            }
            None => None,
        };
        for file in written.files() {
            keep("application/octet-stream", file)?;
        }
        if let Some(package) = package {
            keep("application/zip", &package)?;
        }
        Ok(ExportedGraph {
            name: written.name,
            block,
            inputs: written.inputs,
            outputs: written.outputs,
            files,
            parameters: written.parameters,
            runs: u32::try_from(runs).unwrap_or(u32::MAX),
            largest_relative_error: error,
        })
    }

    fn embeddings(&self, embeddings: &Tensor) -> Result<ArtifactRef, JobError> {
        let tensors = BTreeMap::from([(
            "timestep_embeddings".to_owned(),
            embeddings.to_kind(Dtype::of(self.precision).kind()),
        )]);
        let bytes = encode_tensors(&tensors, HashMap::new()).map_err(JobError::attempt)?;
        let name = "timestep_embeddings.safetensors";
        self.context
            .keep(ArtifactRole::Graph, name, "application/octet-stream", &bytes)
    }

    fn drawn(&self, shape: &[i64], stream: u64) -> Tensor {
        self.rounded(&normal(
            shape,
            self.seed.wrapping_mul(8).wrapping_add(stream),
            Device::Cpu,
        ))
    }

    /// Numbers of the graph's format: how inputs are rounded is nothing that a graph answers for.
    fn rounded(&self, tensor: &Tensor) -> Tensor {
        match tensor.kind() {
            Kind::Float => tensor.to_kind(Dtype::of(self.precision).kind()).to_kind(Kind::Float),
            _ => tensor.shallow_clone(),
        }
    }
}

/// What runs before and after the UNet.
struct Beside {
    text: Vec<Piece>,
    decoders: Vec<Piece>,
}

fn named(tensors: &[(String, Tensor)]) -> Vec<(&str, &Tensor)> {
    tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect()
}

/// A graph that is wrong is wrong in the next attempt too.
fn refused(error: OnnxError) -> JobError {
    match error {
        OnnxError::Graph { .. } | OnnxError::Differs { .. } => JobError::Input(error.to_string()),
        other => JobError::attempt(other),
    }
}

#[cfg(test)]
mod tests;
