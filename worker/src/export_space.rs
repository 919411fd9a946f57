//! `export-space`: the blocks of a space and whole architectures as graphs in a folder, for `temponas-agent lut-accuracy`.

use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, ensure};
use clap::Args;
use job_client::digest_of;
use lut::LutCosts;
use protocol::artifacts::{ArtifactRef, ArtifactRole};
use protocol::jobs::{ExportManifest, ExportPrecision, ExportedGraph};
use search_spaces::{Architecture, Block, Space, UnetConfig};
use tch::{Device, Tensor, nn};

use crate::lut_accuracy::{by_macs, stratified};
use crate::models::UNet;
use crate::models::seeded::{normal, seed_all_weights};
use crate::models::unet::{Moment, PassSizes};
use crate::onnx::{EXPORTER, Graph, INLINE_BYTES, LIBRARY, OPSET, Precision, Runtime, Tolerance};
use crate::profile::Subject;

/// Write a space's blocks and whole architectures with drawn weights as ONNX graphs, each held to libtorch.
#[derive(Debug, Args)]
pub struct ExportSpaceArgs {
    /// The space file.
    #[arg(long, default_value = "search-spaces/spaces/shapes-tiny.toml")]
    pub space: PathBuf,
    /// Architectures to write, at even steps of their multiply-accumulates.
    #[arg(long, default_value_t = 100)]
    pub architectures: usize,
    /// Seed of the draw and of all weights.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Where to, an empty or a new folder: `blocks`, and a folder for each architecture.
    #[arg(long, value_name = "FOLDER")]
    pub out: PathBuf,
    /// ONNX Runtime's library.
    #[arg(long, env = LIBRARY)]
    pub onnxruntime: Option<PathBuf>,
}

/// Writes them.
///
/// # Errors
/// An unreadable space, a space without a UNet, a folder that is not empty or cannot be written, a graph that computes
/// something else than libtorch.
pub fn command(args: &ExportSpaceArgs) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(&args.space).with_context(|| args.space.display().to_string())?;
    let space = Space::parse(&text).map_err(|error| anyhow!("{}: {error}", args.space.display()))?;
    let config = space.unet();
    let config = config.with_context(|| format!("{} has no UNet to export", space.name))?;
    // Folders of an earlier run would be taken for some of this one.
    let is_empty = std::fs::read_dir(&args.out).map_or(true, |mut entries| entries.next().is_none());
    ensure!(is_empty, "{} is not empty", args.out.display());
    let table = by_macs(&space)?;
    let architectures = stratified(&LutCosts::new(&table, &space), args.architectures, args.seed);
    ensure!(!architectures.is_empty(), "no architecture of {} was drawn", space.name);

    let _guard = tch::no_grad_guard();
    tch::set_num_threads(1);
    let export = Export {
        space: &space,
        config,
        runtime: Runtime::find(args.onnxruntime.as_deref())?,
        seed: args.seed,
    };
    export.blocks(&args.out.join("blocks"))?;
    for (i, architecture) in architectures.iter().enumerate() {
        export.model(architecture, &args.out.join(format!("{i:04}")))?;
        if (i + 1) % 10 == 0 {
            eprintln!("{} of {} architectures", i + 1, architectures.len());
        }
    }
    Ok(())
}

struct Export<'a> {
    space: &'a Space,
    config: &'a UnetConfig,
    runtime: Runtime,
    seed: u64,
}

impl Export<'_> {
    fn blocks(&self, folder: &Path) -> anyhow::Result<()> {
        std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        let mut graphs = Vec::new();
        for (i, block) in self.space.blocks().iter().enumerate() {
            let said = |problem: String| anyhow!("{block}: {problem}");
            let subject = Subject::drawn(self.space, block, self.seed).map_err(said)?;
            let graph = subject.export(&format!("{i:04}.{}", block.operator), Precision::F32);
            let inputs = subject.inputs().map_err(said)?;
            let again = inputs.again();
            let expected = subject.forward(inputs);
            let mut exported = self.write(&graph.map_err(said)?, folder, &again.named(), &[("ys", &expected)])?;
            exported.block = Some(wire(block));
            graphs.push(exported);
        }
        describe(folder, None, graphs)
    }

    fn model(&self, architecture: &Architecture, folder: &Path) -> anyhow::Result<()> {
        std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        let vs = nn::VarStore::new(Device::Cpu);
        let unet = UNet::new(&vs.root(), self.config, &self.space.layers(architecture));
        seed_all_weights(&vs, self.seed);
        let sizes = PassSizes::of(self.config, 1);
        let graphs = unet.export(sizes, Precision::F32, 1).map_err(anyhow::Error::msg)?;
        let latents = normal(&sizes.latents, self.seed, Device::Cpu);
        let text = [sizes.latents[0], sizes.text_tokens, sizes.text_width];
        let text = normal(&text, self.seed + 1, Device::Cpu);
        let time = unet.embed(&Tensor::from_slice(&[0.5_f32]));
        let velocity = unet.forward(&latents, Moment::Embedded(&time), &text);
        let inputs = [("latents", &latents), ("time_embedding", &time), ("text", &text)];
        let write = |graph| self.write(graph, folder, &inputs, &[("velocity", &velocity)]);
        let parts = graphs.graphs.iter().map(write).collect::<anyhow::Result<_>>()?;
        describe(folder, Some(self.space.print(architecture)), parts)
    }

    fn write(
        &self,
        graph: &Graph,
        folder: &Path,
        inputs: &[(&str, &Tensor)],
        expected: &[(&str, &Tensor)],
    ) -> anyhow::Result<ExportedGraph> {
        let written = graph.write(folder, INLINE_BYTES)?;
        let tolerance = Tolerance::of(graph.precision());
        let error = self.runtime.verify(&written, inputs, expected, tolerance, 1)?;
        let file = |path: &Path| {
            let bytes = std::fs::read(path).with_context(|| path.display().to_string())?;
            anyhow::Ok(ArtifactRef {
                role: ArtifactRole::Graph,
                digest: digest_of(&bytes),
                name: path
                    .file_name()
                    .map_or_else(String::new, |name| name.to_string_lossy().into_owned()),
                media_type: "application/octet-stream".to_owned(),
                bytes: bytes.len() as u64,
            })
        };
        Ok(ExportedGraph {
            files: written.files().map(file).collect::<anyhow::Result<_>>()?,
            name: written.name,
            block: None,
            inputs: written.inputs,
            outputs: written.outputs,
            parameters: written.parameters,
            runs: 1,
            largest_relative_error: error,
        })
    }
}

fn wire(block: &Block) -> protocol::luts::Block {
    let shape = block.shape.iter();
    protocol::luts::Block {
        operator: block.operator.clone(),
        shape: shape.map(|(name, size)| (name.to_owned(), size)).collect(),
    }
}

/// The manifest, beside which a whole architecture's name stands.
fn describe(folder: &Path, architecture: Option<String>, graphs: Vec<ExportedGraph>) -> anyhow::Result<()> {
    let manifest = ExportManifest {
        opset: OPSET,
        exporter: EXPORTER.to_owned(),
        precision: ExportPrecision::default(),
        graphs,
        sampler: None,
    };
    let mut text = serde_json::to_value(&manifest)?;
    if let Some(architecture) = architecture {
        text["architecture"] = architecture.into();
    }
    let file = folder.join("manifest.json");
    std::fs::write(&file, serde_json::to_vec_pretty(&text)?).with_context(|| file.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_and_architectures_of_a_space_are_written_with_their_manifests() {
        let folder = tempfile::tempdir().unwrap();
        let args = ExportSpaceArgs {
            space: concat!(env!("CARGO_MANIFEST_DIR"), "/../search-spaces/spaces/shapes-tiny.toml").into(),
            architectures: 2,
            seed: 1,
            out: folder.path().join("graphs"),
            onnxruntime: None,
        };
        command(&args).unwrap();
        let space = Space::parse(&std::fs::read_to_string(&args.space).unwrap()).unwrap();
        let manifest = |name: &str| -> serde_json::Value {
            let text = std::fs::read_to_string(args.out.join(name).join("manifest.json")).unwrap();
            serde_json::from_str(&text).unwrap()
        };
        let of = |name: &str| -> ExportManifest { serde_json::from_value(manifest(name)).unwrap() };
        let blocks: Vec<_> = of("blocks")
            .graphs
            .into_iter()
            .filter_map(|graph| graph.block)
            .collect();
        assert_eq!(blocks, space.blocks().iter().map(wire).collect::<Vec<_>>());
        let mut parameters = Vec::new();
        for name in ["0000", "0001"] {
            let architecture = manifest(name)["architecture"].as_str().unwrap().to_owned();
            let layers = space.layers(&space.architecture(&architecture).unwrap());
            let schedule = space.unet().unwrap().schedule(&layers);
            let others = schedule
                .iter()
                .filter(|step| step.block.operator != "unet.time_embedding");
            let expected: u64 = others.map(|step| step.parameters).sum();
            let [graph] = &of(name).graphs[..] else {
                panic!("{name} is one graph");
            };
            assert_eq!((graph.name.as_str(), graph.parameters), ("unet", expected));
            assert!(
                graph
                    .files
                    .iter()
                    .all(|file| args.out.join(name).join(&file.name).is_file())
            );
            parameters.push(graph.parameters);
        }
        assert!(parameters[0] < parameters[1], "cheapest first");
        let refused = command(&args).unwrap_err().to_string();
        assert!(refused.ends_with("graphs is not empty"), "{refused}");
    }
}
