//! A small VAE, and its separable twin, for the tests of this module.

use std::path::Path;

use image::RgbImage;
use rand_chacha::ChaCha8Rng;
use tch::{Device, Kind, Tensor, nn};

use super::material::{Material, Network};
use super::pictures::{Dataset, Pictures};
use crate::assets::Assets;
use crate::data::shapes::Shapes;
use crate::data::{DataError, Split};
use crate::models::seeded::{normal, normal_from, seed_all_weights, seed_weights};
use crate::models::vae::{
    Convolutions, SpatialConfig, SpatialDecoder, TemporalConfig, TemporalDecoder, Vae, VaeConfig,
};
use crate::onnx::{Dtype, Graph, INLINE_BYTES, Precision, Runtime, Tolerance};
use crate::shim::count_macs;

/// Its encoder is that of the shipped small VAE in all but its widths.
pub(crate) fn config() -> VaeConfig {
    VaeConfig {
        spatial: SpatialConfig {
            block_out_channels: vec![4, 4, 8, 8],
            layers_per_block: 1,
            norm_groups: 2,
            latent_channels: 4,
            decoder: None,
        },
        temporal: Some(TemporalConfig {
            filters: 4,
            channel_multipliers: vec![1, 1, 2, 2],
            res_blocks: 1,
            norm_groups: 2,
            decoder: None,
        }),
    }
}

pub(crate) fn compressed() -> VaeConfig {
    let mut config = config();
    config.spatial.decoder = Some(SpatialDecoder {
        convolutions: Convolutions::Separable,
        middle_attention: false,
        ..config.spatial.decoder()
    });
    config.temporal = config.temporal.map(|temporal| TemporalConfig {
        decoder: Some(TemporalDecoder {
            convolutions: Convolutions::Separable,
            ..temporal.decoder()
        }),
        ..temporal
    });
    config
}

/// The small VAE with drawn weights and latent statistics, fixed.
pub(crate) fn original() -> (nn::VarStore, Vae) {
    let vs = nn::VarStore::new(Device::Cpu);
    let mut vae = Vae::new(&vs.root(), &config());
    seed_weights(&vs, 3);
    vae.set_statistics(&normal(&[3, 4, 2, 2, 2], 5, Device::Cpu));
    for (_, variable) in vs.variables() {
        let _ = variable.set_requires_grad(false);
    }
    (vs, vae)
}

/// Four steps of each part on the shipped small VAE.
pub(crate) const RECIPE: &str = r#"
    name = "short"
    stage = "decoder"
    trains = "all"
    [training]
    steps = 4
    batch = 2
    accumulate = 2
    learning_rate = 1e-3
    ema = 0.9
    checkpoint_every = 3
    [decoder]
    middle_attention = false
    pictures = 4
    size = [16, 16]
    frame_rate_hz = 10
    feature_weight = 0.1
"#;

/// Frames a second of a folder of frames.
pub(crate) const FOOTAGE_HZ: f64 = 10.0;

/// Captioned clips in a folder, each a folder of so many frames, grey and brighter from frame to frame.
pub(crate) fn footage(folder: &Path, clips: &[(&str, u8)]) {
    let mut list = String::new();
    for (name, frames) in clips {
        std::fs::create_dir_all(folder.join(name)).unwrap();
        for i in 0..*frames {
            let picture = RgbImage::from_pixel(20, 16, image::Rgb([i * 4; 3]));
            picture.save(folder.join(name).join(format!("{i:03}.png"))).unwrap();
        }
        list.push_str(&format!("{{\"file\": \"{name}\", \"caption\": \"grey\"}}\n"));
    }
    std::fs::write(folder.join("captions.jsonl"), list).unwrap();
}

/// As [`material`], with small clips of noise: for what is trained, not for what comes out.
pub(crate) fn noise() -> Material {
    Material {
        pictures: Box::new(Noise),
        ..material()
    }
}

#[derive(Debug)]
struct Noise;

impl Pictures for Noise {
    fn settings(&self) -> serde_json::Value {
        "noise".into()
    }

    fn clips(&self, _: Split) -> usize {
        3
    }

    fn clip(&self, _: Split, index: usize, _: Option<&mut ChaCha8Rng>) -> Result<Tensor, DataError> {
        Ok(normal(&[1, 3, 17, 16, 16], index as u64, Device::Cpu))
    }

    fn picture(&self, rng: &mut ChaCha8Rng) -> Result<Tensor, DataError> {
        Ok(normal_from(rng, &[1, 3, 16, 16], Device::Cpu))
    }
}

/// The shipped parts of `shapes` with a few clips.
pub(crate) fn material() -> Material {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets");
    let parts = Assets::open(&root, "shapes", Device::Cpu).unwrap();
    let few = Shapes {
        clips_per_combination: 1,
        held_out_per_combination: 1,
        ..Shapes::default()
    };
    Material {
        original: Network::of_parts(&parts).unwrap(),
        pictures: Box::new(Dataset::new(Box::new(few))),
        parts,
    }
}

/// Two chunks, the second of one latent frame: shorter than a kernel.
#[test]
fn separable_decoders_are_in_onnx_runtime_what_they_are_in_libtorch() {
    let folder = tempfile::tempdir().unwrap();
    let runtime = Runtime::find(None).expect("run `make setup` once");
    let (vs, config) = (nn::VarStore::new(Device::Cpu), compressed());
    let vae = Vae::new(&vs.root(), &config);
    seed_all_weights(&vs, 6);
    for precision in [Precision::F32, Precision::F16] {
        let latents = normal(&[1, 4, 6, 3, 2], 8, Device::Cpu);
        let latents = latents.to_kind(Dtype::of(precision).kind()).to_kind(Kind::Float);
        let expected = tch::no_grad(|| vae.decode(&latents, 20));
        let mut graph = Graph::new("decoder", precision);
        let input = graph.input("latents", &latents.size());
        let decoded = vae.export(&mut graph, &input, 20);
        graph.output("clip", &decoded);
        let work = config.decoder_work(20, 3, 2);
        let ((), macs) = count_macs(|| drop(tch::no_grad(|| vae.decode(&latents, 20))));
        assert_eq!(graph.macs(), macs);
        // Statistics of the latents are weights too.
        assert_eq!(graph.parameters(), work[0].parameters + work[1].parameters + 8);
        let written = graph.write(folder.path(), INLINE_BYTES).unwrap();
        let (inputs, outputs) = ([("latents", &latents)], [("clip", &expected)]);
        let error = runtime.verify(&written, &inputs, &outputs, Tolerance::of(precision), 1);
        assert!(error.unwrap() > 0.0, "something was compared");
    }
}
