//! Our side of `make parity`: a model of a case is given weights and inputs, run forwards and, where output gradients
//! are given, backwards. `scripts/parity` runs a peer's implementation on the same tensors and compares.
//!
//! A case is a folder: `case.json` ([`Case`]), `weights.safetensors` and `inputs.safetensors`; gradients of outputs
//! stand among the inputs as `gradient.NAME`. [`command`] adds `outputs.safetensors`: outputs by name, gradients as
//! `weights.NAME` and `inputs.NAME`.

mod model;
pub mod recipe;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use safetensors::SafeTensors;
use serde::Deserialize;
use tch::{Device, Kind, Tensor, nn};

use crate::checkpoint::{decode_tensors, tensor_of};
use model::Model;
pub use model::ModelConfig;

/// Tensors by name.
pub type Tensors = BTreeMap<String, Tensor>;

/// Before the name of an output whose gradient stands among the inputs.
pub const GRADIENT: &str = "gradient.";

/// What is run.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// The model and its sizes.
    pub model: ModelConfig,
    /// Seed of the weights where they are drawn here.
    pub seed: u64,
}

/// Arguments of `temponas-worker parity`.
#[derive(Debug, clap::Args)]
pub struct ParityArgs {
    /// Folder of the case.
    folder: PathBuf,
    /// Draw the weights by the recipe and write them, instead of reading them.
    #[arg(long)]
    draw: bool,
}

/// Runs the case of a folder and writes its outputs there.
///
/// # Errors
/// Where a file cannot be read or written, or a tensor does not fit the model.
pub fn command(args: &ParityArgs) -> anyhow::Result<()> {
    let at = |name: &str| args.folder.join(name);
    let text = fs::read_to_string(at("case.json")).with_context(|| format!("reading {}", at("case.json").display()))?;
    let case: Case = serde_json::from_str(&text).with_context(|| format!("reading {}", at("case.json").display()))?;
    let inputs = decode_tensors(&read(&at("inputs.safetensors"))?)?;

    let vs = nn::VarStore::new(Device::Cpu);
    let model = Model::new(&vs.root(), &case.model);
    let weights = at("weights.safetensors");
    if args.draw {
        draw(&vs, case.seed)?;
        let variables: Vec<(String, Tensor)> = vs.variables().into_iter().collect();
        Tensor::write_safetensors(&variables, &weights)?;
    } else {
        load(&vs, &read(&weights)?).with_context(|| format!("loading {}", weights.display()))?;
    }
    let outputs: Vec<(String, Tensor)> = pass(&vs, &model, inputs)?.into_iter().collect();
    Tensor::write_safetensors(&outputs, at("outputs.safetensors"))?;
    Ok(())
}

/// Outputs and gradients of a case whose weights are drawn by the recipe; names as in [`command`].
///
/// # Errors
/// Where an input is missing or does not fit.
pub fn run_drawn(case: &Case, inputs: Tensors) -> anyhow::Result<Tensors> {
    let vs = nn::VarStore::new(Device::Cpu);
    let model = Model::new(&vs.root(), &case.model);
    draw(&vs, case.seed)?;
    pass(&vs, &model, inputs)
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("reading {}", path.display()))
}

fn draw(vs: &nn::VarStore, seed: u64) -> anyhow::Result<()> {
    let _guard = tch::no_grad_guard();
    for (name, mut variable) in vs.variables() {
        variable.f_copy_(&recipe::weight(seed, &name, &variable.size()))?;
    }
    Ok(())
}

/// Loads a file that holds the model's tensors under their names and no others.
fn load(vs: &nn::VarStore, bytes: &[u8]) -> anyhow::Result<()> {
    let _guard = tch::no_grad_guard();
    let file = SafeTensors::deserialize(bytes)?;
    let variables = vs.variables();
    if let Some(name) = file.names().into_iter().find(|name| !variables.contains_key(*name)) {
        anyhow::bail!("`{name}` is no weight of the model");
    }
    for (name, mut variable) in variables {
        let stored = file
            .tensor(&name)
            .with_context(|| format!("the file has no `{name}`"))?;
        let stored = tensor_of(&name, &stored)?;
        let (found, expected) = ((stored.kind(), stored.size()), (variable.kind(), variable.size()));
        ensure!(found == expected, "`{name}` is {found:?}, the model needs {expected:?}");
        variable.f_copy_(&stored)?;
    }
    Ok(())
}

/// Forwards, and backwards from `Σ (output · its gradient)` where gradients are given.
fn pass(vs: &nn::VarStore, model: &Model, mut inputs: Tensors) -> anyhow::Result<Tensors> {
    let given: Tensors = inputs.extract_if(.., |name, _| name.starts_with(GRADIENT)).collect();
    if given.is_empty() {
        return tch::no_grad(|| model.forward(&inputs));
    }
    for input in inputs.values_mut().filter(|input| input.is_floating_point()) {
        *input = input.set_requires_grad(true);
    }
    let mut results = model.forward(&inputs)?;
    let mut loss = Tensor::zeros([], (Kind::Float, Device::Cpu));
    for (name, output) in &results {
        let gradient = given.get(&format!("{GRADIENT}{name}"));
        let gradient = gradient.with_context(|| format!("the case has no gradient of the output `{name}`"))?;
        ensure!(
            gradient.size() == output.size(),
            "the gradient of the output `{name}` is {:?}, the output {:?}",
            gradient.size(),
            output.size()
        );
        loss += (output * gradient).sum(Kind::Float);
    }
    loss.f_backward()?;
    let mut keep = |kind: &str, name: &str, tensor: &Tensor| {
        if tensor.grad().defined() {
            results.insert(format!("{kind}.{name}"), tensor.grad().contiguous());
        }
    };
    inputs.iter().for_each(|(name, input)| keep("inputs", name, input));
    vs.variables()
        .iter()
        .for_each(|(name, weight)| keep("weights", name, weight));
    Ok(results
        .into_iter()
        .map(|(name, tensor)| (name, tensor.detach().contiguous()))
        .collect())
}
