//! Our models against what independent implementations said: outputs and gradients at reduced width.
//!
//! `tests/reference/*.json` each name the peer and the command that made them. Weights and inputs are drawn by the
//! recipe that both sides share, so the files hold samples of results alone.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::Deserialize;
use tch::{Kind, Tensor};
use temponas_worker::parity::{Case, GRADIENT, Tensors, recipe, run_drawn};

/// Largest max|ours − theirs| / max|theirs|.
const LIMIT: f64 = 1e-4;

#[derive(Deserialize)]
struct Reference {
    case: Case,
    inputs: BTreeMap<String, Input>,
    tensors: BTreeMap<String, Samples>,
}

#[derive(Deserialize)]
struct Input {
    shape: Vec<i64>,
    /// Drawn where there are none.
    values: Option<Values>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Values {
    Whole(Vec<i64>),
    Real(Vec<f32>),
}

/// Values of a tensor at equal distances, and the largest magnitude in all of it.
#[derive(Deserialize)]
struct Samples {
    shape: Vec<i64>,
    largest: f64,
    values: Vec<f64>,
}

impl Reference {
    fn read(name: &str) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/reference/{name}.json"));
        serde_json::from_slice(&fs::read(path).expect("a committed reference")).expect("a reference as it is written")
    }

    fn inputs(&self) -> Tensors {
        let seed = self.case.seed;
        let drawn = |name: &str, input: &Input| match &input.values {
            Some(Values::Whole(values)) => Tensor::from_slice(values).reshape(&input.shape),
            Some(Values::Real(values)) => Tensor::from_slice(values).reshape(&input.shape),
            None => recipe::input(seed, &format!("inputs.{name}"), &input.shape),
        };
        let inputs = self
            .inputs
            .iter()
            .map(|(name, input)| (name.clone(), drawn(name, input)));
        let is_output = |name: &str| !name.starts_with("inputs.") && !name.starts_with("weights.");
        let gradients = self
            .tensors
            .iter()
            .filter(|(name, _)| is_output(name))
            .map(|(name, samples)| {
                let name = format!("{GRADIENT}{name}");
                let gradient = recipe::input(seed, &name, &samples.shape);
                (name, gradient)
            });
        inputs.chain(gradients).collect()
    }
}

impl Samples {
    fn error(&self, ours: &Tensor) -> f64 {
        assert_eq!(ours.size(), self.shape);
        let ours: Vec<f64> = Vec::try_from(ours.to_kind(Kind::Double).flatten(0, -1)).expect("a flat tensor");
        let count = self.values.len();
        let theirs = self.values.iter().enumerate();
        let differences = theirs.map(|(i, value)| (ours[i * ours.len() / count] - value).abs());
        // `max` of floats would drop what is not a number.
        differences.fold(0.0, |a, b| if b > a || b.is_nan() { b } else { a }) / self.largest
    }
}

fn agrees(name: &str) {
    let reference = Reference::read(name);
    let ours = run_drawn(&reference.case, reference.inputs()).expect("the case runs");
    assert!(reference.tensors.len() > 5, "{name} holds outputs and gradients");
    for (tensor, samples) in &reference.tensors {
        let error = samples.error(ours.get(tensor).unwrap_or_else(|| panic!("{name} gives no {tensor}")));
        assert!(error < LIMIT, "{name}: {tensor} is {error:.1e} from the peer's");
    }
}

#[test]
fn the_unet_is_diffusers() {
    agrees("unet");
}

#[test]
fn the_unet_with_normalised_and_turned_queries_and_keys_is_diffusers_with_the_norm_of_transformers() {
    agrees("mobile");
}

#[test]
fn the_text_encoder_is_transformers() {
    agrees("text");
}

#[test]
fn both_towers_of_clip_are_those_of_transformers() {
    agrees("clip");
}

#[test]
fn the_spatial_vae_is_diffusers() {
    agrees("vae");
}

#[test]
fn temporal_convolutions_are_those_of_pytorch() {
    agrees("conv1d-32");
    agrees("conv3d-32");
}

#[test]
fn temporal_attention_is_that_of_diffusers() {
    for operator in [
        "self_attention1d",
        "self_attention3d",
        "cross_attention1d",
        "cross_attention3d",
    ] {
        agrees(&format!("{operator}-32"));
    }
}
