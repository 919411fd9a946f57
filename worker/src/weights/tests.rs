use std::path::PathBuf;

use proptest::prelude::*;
use safetensors::tensor::{Dtype, TensorView};
use tch::{Device, Kind};

use super::*;
use crate::models::norm::{Start, conv2d, linear};
use crate::models::seeded::seed_weights;

/// A model of a matrix with bias and a convolution, under the names of a VAE's middle.
fn model() -> nn::VarStore {
    let vs = nn::VarStore::new(Device::Cpu);
    let middle = vs.root() / "mid_block" / "attentions" / "0";
    let _ = linear(&middle / "to_q", 3, 3, true, Start::Random);
    let _ = linear(&middle / "to_out" / "0", 3, 3, true, Start::Random);
    let _ = conv2d(vs.root() / "conv_in", 2, 3, 3, 1);
    seed_weights(&vs, 1);
    vs
}

type Raw = (Dtype, Vec<usize>, Vec<u8>);

/// The tensors of [`model`] as they stand in a file.
fn raw() -> BTreeMap<String, Raw> {
    let of = |tensor: Tensor| {
        let values = Vec::<f32>::try_from(tensor.flatten(0, -1)).unwrap();
        let bytes = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        (Dtype::F32, tensor.size().iter().map(|&n| n as usize).collect(), bytes)
    };
    model()
        .variables()
        .into_iter()
        .map(|(name, tensor)| (name, of(tensor)))
        .collect()
}

fn bytes_of(raw: &BTreeMap<String, Raw>) -> Vec<u8> {
    let view = |(name, (dtype, shape, bytes)): (&String, &'static Raw)| {
        (name.clone(), TensorView::new(*dtype, shape.clone(), bytes).unwrap())
    };
    // A test may leak what it serialises.
    let kept: &'static BTreeMap<String, Raw> = Box::leak(Box::new(raw.clone()));
    safetensors::serialize(kept.iter().map(view), None).unwrap()
}

struct Scratch(tempfile::TempDir);

impl Scratch {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn file(&self, bytes: &[u8]) -> PathBuf {
        let path = self.0.path().join("model.safetensors");
        std::fs::write(&path, bytes).unwrap();
        path
    }

    /// What loading these bytes says.
    fn refusal(&self, bytes: &[u8]) -> String {
        let path = self.file(bytes);
        let text = load(&model(), &path, &Layout::VAE).unwrap_err().to_string();
        assert!(text.contains("model.safetensors"), "{text}");
        text
    }
}

fn equal(a: &nn::VarStore, b: &nn::VarStore) -> bool {
    let (a, b) = (a.variables(), b.variables());
    a.len() == b.len()
        && a.iter()
            .all(|(name, tensor)| b.get(name).is_some_and(|other| tensor == other))
}

fn zeroed() -> nn::VarStore {
    let vs = model();
    for (_, mut variable) in vs.variables() {
        let _ = tch::no_grad(|| variable.zero_());
    }
    vs
}

#[test]
fn what_is_saved_is_loaded_and_the_bytes_depend_on_the_tensors_alone() {
    let scratch = Scratch::new();
    let [first, second] = ["a", "b"].map(|name| scratch.0.path().join(name));
    save(&model(), &first).unwrap();
    save(&model(), &second).unwrap();
    assert_eq!(std::fs::read(&first).unwrap(), std::fs::read(&second).unwrap());
    let other = zeroed();
    load(&other, &first, &Layout::PLAIN).unwrap();
    assert!(equal(&other, &model()));
    // Another implementation of the format reads it.
    let read: HashMap<String, Tensor> = Tensor::read_safetensors(&first).unwrap().into_iter().collect();
    assert!(model().variables().iter().all(|(name, tensor)| read[name] == *tensor));
}

#[test]
fn old_names_and_shapes_a_common_prefix_and_other_floats_are_the_same_model() {
    let scratch = Scratch::new();
    let mut old = BTreeMap::new();
    for (name, (_, mut shape, bytes)) in raw() {
        let renamed = name.replace("to_q", "query").replace("to_out.0", "proj_attn");
        if renamed != name && shape.len() == 2 {
            shape.extend([1, 1]);
        }
        let doubled = bytes
            .chunks_exact(4)
            .flat_map(|x| f64::from(f32::from_le_bytes(x.try_into().unwrap())).to_le_bytes());
        old.insert(
            format!("first_stage.vae.{renamed}"),
            (Dtype::F64, shape, doubled.collect()),
        );
    }
    let path = scratch.file(&bytes_of(&old));
    let loaded = zeroed();
    load(&loaded, &path, &Layout::VAE).unwrap();
    assert!(equal(&loaded, &model()));
    // The old names are the VAE's alone.
    assert!(matches!(
        load(&zeroed(), &path, &Layout::PLAIN),
        Err(WeightsError::Unexpected { .. })
    ));
}

#[test]
fn a_half_file_fills_a_float_model_and_a_float_file_a_half_model() {
    let scratch = Scratch::new();
    let mut half = model();
    half.half();
    let path = scratch.0.path().join("half");
    save(&half, &path).unwrap();
    let loaded = zeroed();
    load(&loaded, &path, &Layout::PLAIN).unwrap();
    for (name, tensor) in loaded.variables() {
        assert_eq!(tensor.kind(), Kind::Float);
        assert_eq!(tensor, half.variables()[&name].to_kind(Kind::Float), "{name}");
    }
    let path = scratch.0.path().join("float");
    save(&model(), &path).unwrap();
    let mut into = zeroed();
    into.half();
    load(&into, &path, &Layout::PLAIN).unwrap();
    assert!(equal(&into, &half));
}

#[test]
fn each_fault_names_the_tensor_what_was_found_and_what_is_expected() {
    let scratch = Scratch::new();
    let refused = |change: &dyn Fn(&mut BTreeMap<String, Raw>)| {
        let mut raw = raw();
        change(&mut raw);
        scratch.refusal(&bytes_of(&raw))
    };
    let holds = |text: &str, parts: &[&str]| {
        for part in parts {
            assert!(text.contains(part), "`{part}` is not in: {text}");
        }
    };
    holds(
        &refused(&|raw| drop(raw.remove("conv_in.bias"))),
        &["no tensor `conv_in.bias`", "[3]"],
    );
    let mislabelled = refused(&|raw| {
        let tensor = raw.remove("conv_in.weight").unwrap();
        raw.insert("conv_in.wieght".to_owned(), tensor);
    });
    holds(
        &mislabelled,
        &[
            "`conv_in.wieght` of shape [3, 2, 3, 3]",
            "nearest expected name: `conv_in.weight`",
        ],
    );
    let other = refused(&|raw| drop(raw.insert("conv_out.weight".to_owned(), (Dtype::F32, vec![1], vec![0; 4]))));
    holds(&other, &["`conv_out.weight` of shape [1]", "does not have"]);
    let shape = refused(&|raw| raw.get_mut("conv_in.weight").unwrap().1 = vec![2, 3, 3, 3]);
    holds(
        &shape,
        &["`conv_in.weight`", "[2, 3, 3, 3]", "expected is [3, 2, 3, 3]"],
    );
    let flat = refused(&|raw| raw.get_mut("mid_block.attentions.0.to_q.weight").unwrap().1 = vec![9]);
    holds(&flat, &["`mid_block.attentions.0.to_q.weight`", "[9]", "[3, 3]"]);
    for (dtype, name) in [(Dtype::I32, "I32"), (Dtype::U32, "U32")] {
        let kind = refused(&|raw| raw.get_mut("conv_in.bias").unwrap().0 = dtype);
        holds(&kind, &["`conv_in.bias`", name, "expected is F32, F16, BF16 or F64"]);
    }
    let small = refused(&|raw| drop(raw.insert("conv_in.bias".to_owned(), (Dtype::F8_E4M3, vec![3], vec![0; 3]))));
    holds(&small, &["`conv_in.bias`", "F8_E4M3"]);
    let nan = refused(&|raw| raw.get_mut("conv_in.bias").unwrap().2[..4].copy_from_slice(&f32::NAN.to_le_bytes()));
    holds(&nan, &["`conv_in.bias`", "1 of 3 numbers", "not finite"]);
    let twice = refused(&|raw| {
        let tensor = raw["mid_block.attentions.0.to_q.bias"].clone();
        raw.insert("mid_block.attentions.0.query.bias".to_owned(), tensor);
    });
    holds(&twice, &["to_q.bias` twice", "query.bias"]);
    let ambiguous = refused(&|raw| {
        let copies: Vec<_> = raw
            .iter()
            .map(|(name, tensor)| (format!("ema.{name}"), tensor.clone()))
            .collect();
        raw.extend(copies);
    });
    holds(&ambiguous, &["\"\"", "\"ema.\"", "expected one"]);
}

#[test]
fn a_number_that_the_models_format_cannot_hold_is_refused() {
    let scratch = Scratch::new();
    let mut raw = raw();
    raw.get_mut("conv_in.bias").unwrap().2[..4].copy_from_slice(&1e6f32.to_le_bytes());
    let path = scratch.file(&bytes_of(&raw));
    let mut half = model();
    half.half();
    let text = load(&half, &path, &Layout::PLAIN).unwrap_err().to_string();
    assert!(text.contains("`conv_in.bias`") && text.contains("Half"), "{text}");
}

#[test]
fn numbers_of_positions_are_skipped_in_the_text_encoder_only() {
    let scratch = Scratch::new();
    let mut raw = raw();
    raw.insert(
        "embeddings.position_ids".to_owned(),
        (Dtype::I64, vec![1, 2], vec![0; 16]),
    );
    let path = scratch.file(&bytes_of(&raw));
    load(&model(), &path, &Layout::CLIP_TEXT).unwrap();
    assert!(matches!(
        load(&model(), &path, &Layout::PLAIN),
        Err(WeightsError::Unexpected { .. })
    ));
}

#[test]
fn a_file_cut_anywhere_is_refused_and_the_tensor_is_named() {
    let scratch = Scratch::new();
    let whole = bytes_of(&raw());
    let header = 8 + usize::try_from(u64::from_le_bytes(whole[..8].try_into().unwrap())).unwrap();
    for length in (0..whole.len()).step_by(7).chain([7, 8, header, whole.len() - 1]) {
        let text = scratch.refusal(&whole[..length]);
        assert!(
            length < header || text.contains("it ends within or before `"),
            "{length}: {text}"
        );
    }
    let longer = [&whole[..], b"more"].concat();
    assert!(scratch.refusal(&longer).contains(&format!("{} bytes", longer.len())));
    assert!(scratch.refusal(b"PK\x03\x04 and so on").contains("zip archive"));
}

/// A header whose tensors end just below the largest number of bytes there is.
#[test]
fn a_header_that_describes_more_than_any_file_holds_is_refused() {
    const LARGEST: u64 = (1 << 61) - 1;
    let tensor = |i: u64| {
        let (begin, end) = (i * LARGEST, (i + 1) * LARGEST);
        format!(r#""t{i}":{{"dtype":"U8","shape":[{LARGEST}],"data_offsets":[{begin},{end}]}}"#)
    };
    let header = format!("{{{}}}", (0..8).map(tensor).collect::<Vec<_>>().join(","));
    let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat();
    let error = WeightFile::open(&Scratch::new().file(&bytes)).unwrap_err();
    assert!(matches!(error, WeightsError::Length { .. }), "{error}");
    assert!(error.to_string().contains("within or before `t0`"), "{error}");
}

#[test]
fn a_folder_or_nothing_is_an_error_of_the_system() {
    let scratch = Scratch::new();
    for path in [scratch.0.path().to_owned(), scratch.0.path().join("absent")] {
        assert!(matches!(
            load(&model(), &path, &Layout::PLAIN),
            Err(WeightsError::File { .. })
        ));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn changed_bytes_are_an_error_or_a_model_never_a_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        in_header in any::<bool>(),
    ) {
        let scratch = Scratch::new();
        let mut bytes = bytes_of(&raw());
        let reach = if in_header { 700.min(bytes.len()) } else { bytes.len() };
        for (at, byte) in changes {
            let at = at.index(reach);
            bytes[at] = byte;
        }
        let path = scratch.file(&bytes);
        if let Err(error) = load(&model(), &path, &Layout::VAE) {
            prop_assert!(error.to_string().contains("model.safetensors"));
        }
    }
}
