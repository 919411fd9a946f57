//! `temponas-worker export-check`: operators, the small model and the full-size UNet as graphs in ONNX Runtime, against
//! libtorch.
//!
//! All weights are random, none is as training starts. Errors are `max|a − b| / max|b|` of the worst output.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, anyhow};
use clap::Args;
use search_spaces::{Block, Operator, Shape, Space, TemporalLayer, UnetConfig};
use tch::{Device, Kind, Tensor, nn};

use crate::models::UNet;
use crate::models::seeded::{normal, seed_all_weights};
use crate::models::unet::PassSizes;
use crate::onnx::{CoreMl, Graph, INLINE_BYTES, LIBRARY, Precision, Runtime, Tolerance};
use crate::profile::Subject;

const PRECISIONS: [Precision; 2] = [Precision::F32, Precision::F16];
const SEED: u64 = 1;

/// Export operators, the small model and the full-size UNet, and compare ONNX Runtime with libtorch.
#[derive(Debug, Args)]
pub struct ExportCheckArgs {
    /// The space of the small model.
    #[arg(long, default_value = "search-spaces/spaces/shapes-tiny.toml")]
    small: PathBuf,
    /// The space of the large one.
    #[arg(long, default_value = "search-spaces/spaces/snapgen-v.toml")]
    large: PathBuf,
    /// Temporal layers of the large one: by default those with which it comes to the paper's 0.6B.
    #[arg(long, default_value = crate::full_size::ARCHITECTURE)]
    architecture: String,
    /// Latent frames of its clip.
    #[arg(long, default_value_t = 3)]
    frames: u64,
    /// Rows and columns of its latents.
    #[arg(long, default_value_t = 16)]
    size: u64,
    /// Graphs that its UNet is split into.
    #[arg(long, default_value_t = 2)]
    parts: u32,
    /// Leave the large one out: seconds instead of minutes, and little memory.
    #[arg(long)]
    small_only: bool,
    /// Threads of libtorch and of ONNX Runtime.
    #[arg(long, default_value_t = std::thread::available_parallelism().map_or(1, std::num::NonZero::get))]
    threads: usize,
    /// ONNX Runtime's library.
    #[arg(long, env = LIBRARY)]
    onnxruntime: Option<PathBuf>,
    /// Python of an environment with the package `coremltools`: operators and the small model are then converted to Core
    /// ML packages, too.
    #[arg(long, env = "TEMPONAS_COREML_PYTHON")]
    coreml_python: Option<PathBuf>,
    /// Folder in which graphs are written for the while; 4 GB for the large one.
    #[arg(long, default_value_os_t = std::env::temp_dir())]
    folder: PathBuf,
}

/// Runs the command.
///
/// # Errors
/// A graph that does not run, or is off by more than 10⁻³ in fp32 or 10⁻² in fp16.
pub fn command(args: &ExportCheckArgs) -> anyhow::Result<()> {
    tch::set_num_threads(i32::try_from(args.threads)?);
    let _guard = tch::no_grad_guard();
    let mut check = Check {
        runtime: Runtime::find(args.onnxruntime.as_deref())?,
        folder: tempfile::tempdir_in(&args.folder).with_context(|| args.folder.display().to_string())?,
        threads: args.threads,
        coreml: args.coreml_python.as_deref().map(CoreMl::probe).transpose()?,
        packages: 0,
        worst: [0.0; 2],
    };
    println!(
        "{:<44} {:>12} {:>9} {:>9} {:>7}",
        "graph", "parameters", "fp32", "fp16", "s"
    );
    let small = read(&args.small)?;
    let config = small.unet().with_context(|| format!("`{}` has no UNet", small.name))?;
    for (t, h, w, c) in [(5, 8, 8, 64), (3, 5, 7, 48)] {
        for operator in Operator::ALL {
            let sizes = [
                ("b", 1),
                ("t", t),
                ("h", h),
                ("w", w),
                ("c", c),
                ("heads", 4),
                ("l", 7),
                ("d", 32),
                ("groups", 8),
            ];
            check.block(&small, &Block::new(operator.as_str(), Shape::new(sizes)))?;
        }
    }
    let text = [("b", 1), ("l", config.text_tokens), ("d", config.text_width)];
    check.block(&small, &Block::new("text_encoder", Shape::new(text)))?;
    let clip = [
        ("b", 1),
        ("c", config.latent_channels),
        ("t", config.frames),
        ("h", config.height),
        ("w", config.width),
    ];
    check.block(&small, &Block::new("vae.decode", Shape::new(clip)))?;
    let all = Operator::ALL.map(|operator| Some(TemporalLayer { operator, depth: 1 }));
    let all: Vec<_> = all.into_iter().cycle().take(config.positions().len()).collect();
    for parts in [1, 2] {
        check.unet(&small.name, config, &all, parts, true)?;
    }
    if !args.small_only {
        let large = read(&args.large)?;
        let config = UnetConfig {
            frames: args.frames,
            height: args.size,
            width: args.size,
            ..large
                .unet()
                .with_context(|| format!("`{}` has no UNet", large.name))?
                .clone()
        };
        let layers = large.layers(&large.architecture(&args.architecture)?);
        check.unet(&large.name, &config, &layers, args.parts, false)?;
    }
    match &check.coreml {
        Some(_) => println!("{} Core ML packages saved and validated", check.packages),
        None => println!("no Core ML packages: no --coreml-python"),
    }
    let [f32, f16] = check.worst;
    println!("worst relative error fp32 {f32:.2e}, fp16 {f16:.2e}");
    Ok(())
}

fn read(path: &Path) -> anyhow::Result<Space> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    Space::parse(&text).map_err(|error| anyhow!("{}: {error}", path.display()))
}

struct Check {
    runtime: Runtime,
    folder: tempfile::TempDir,
    threads: usize,
    coreml: Option<CoreMl>,
    packages: usize,
    worst: [f64; 2],
}

impl Check {
    fn block(&mut self, space: &Space, block: &Block) -> anyhow::Result<()> {
        let started = Instant::now();
        let subject = Subject::drawn(space, block, SEED).map_err(|problem| anyhow!("{block}: {problem}"))?;
        let mut errors = [0.0; 2];
        let mut parameters = 0;
        let said = |problem: String| anyhow!("{block}: {problem}");
        let inputs = subject.inputs().map_err(said)?;
        let named: Vec<(String, Tensor)> = inputs
            .named()
            .into_iter()
            .map(|(name, tensor)| (name.to_owned(), rounded(tensor)))
            .collect();
        let expected = BTreeMap::from([("ys".to_owned(), subject.forward(inputs.with(&named)))]);
        let named = named.into_iter().collect();
        for (error, precision) in errors.iter_mut().zip(PRECISIONS) {
            let graph = subject.export(&block.operator, precision).map_err(said)?;
            parameters = graph.parameters();
            *error = self.held(&graph, &named, &expected, true)?;
        }
        let shape = &block.shape;
        let size = |name: &str| shape.get(name).unwrap_or(1);
        let name = format!(
            "{} {}x{}x{}x{}",
            block.operator,
            size("t"),
            size("c"),
            size("h"),
            size("w")
        );
        self.tell(&name, parameters, errors, started);
        Ok(())
    }

    fn unet(
        &mut self,
        space: &str,
        config: &UnetConfig,
        layers: &[Option<TemporalLayer>],
        parts: u32,
        packaged: bool,
    ) -> anyhow::Result<()> {
        let vs = nn::VarStore::new(Device::Cpu);
        let unet = UNet::new(&vs.root(), config, layers);
        seed_all_weights(&vs, SEED);
        let sizes = PassSizes::of(config, 1);
        let latents = rounded(&normal(&sizes.latents, SEED, Device::Cpu));
        let text = rounded(&normal(
            &[1, sizes.text_tokens, sizes.text_width],
            SEED + 1,
            Device::Cpu,
        ));
        let time = rounded(&unet.embed(&Tensor::from_slice(&[0.6f32])));
        // Both formats are cut at the same places: one pass of libtorch serves both.
        let by_precision = PRECISIONS.map(|precision| unet.export(sizes, precision, parts));
        let [f32, f16] = by_precision;
        let (f32, f16) = (f32.map_err(|e| anyhow!(e))?, f16.map_err(|e| anyhow!(e))?);
        let mut known = unet.carried(&f32, &latents, &time, &text);
        known.extend([("latents", latents), ("time_embedding", time), ("text", text)].map(|(n, t)| (n.to_owned(), t)));
        for (wide, narrow) in f32.graphs.iter().zip(&f16.graphs) {
            let started = Instant::now();
            let mut errors = [0.0; 2];
            for (error, graph) in errors.iter_mut().zip([wide, narrow]) {
                *error = self.held(graph, &known, &known, packaged)?;
            }
            let [_, _, t, h, w] = sizes.latents;
            let name = format!("{space} {} of {parts} {t}x{h}x{w}", wide.name());
            self.tell(&name, wide.parameters(), errors, started);
        }
        Ok(())
    }

    /// Writes a graph, holds it to libtorch, and converts it where that is asked for.
    fn held(
        &mut self,
        graph: &Graph,
        inputs: &BTreeMap<String, Tensor>,
        expected: &BTreeMap<String, Tensor>,
        packaged: bool,
    ) -> anyhow::Result<f64> {
        fn named(tensors: &BTreeMap<String, Tensor>) -> Vec<(&str, &Tensor)> {
            tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect()
        }
        let tolerance = Tolerance::of(graph.precision());
        let written = graph.write(self.folder.path(), INLINE_BYTES)?;
        let (inputs, expected) = (named(inputs), named(expected));
        let error = self
            .runtime
            .verify(&written, &inputs, &expected, tolerance, self.threads)?;
        // A package is in binary16 whatever the graph is in.
        if let Some(coreml) = self
            .coreml
            .as_ref()
            .filter(|_| packaged && graph.precision() == Precision::F16)
        {
            std::fs::remove_file(coreml.package(&written, &mut || true)?)?;
            self.packages += 1;
        }
        for file in written.files() {
            std::fs::remove_file(file)?;
        }
        Ok(error)
    }

    fn tell(&mut self, name: &str, parameters: u64, errors: [f64; 2], started: Instant) {
        let [f32, f16] = errors;
        let seconds = started.elapsed().as_secs_f64();
        println!("{name:<44} {parameters:>12} {f32:>9.1e} {f16:>9.1e} {seconds:>7.1}");
        for (worst, error) in self.worst.iter_mut().zip(errors) {
            *worst = worst.max(error);
        }
    }
}

/// Numbers of binary16, so that both formats see the same inputs.
fn rounded(tensor: &Tensor) -> Tensor {
    match tensor.kind() {
        Kind::Float => tensor.to_kind(Kind::Half).to_kind(Kind::Float),
        _ => tensor.shallow_clone(),
    }
}
