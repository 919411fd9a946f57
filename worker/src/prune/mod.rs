//! Pruning of the spatial backbone: a smaller UNet starts from parts of a full one and learns from it (the paper's
//! section 4, "Training"; BK-SDM, Kim et al. 2023).

mod command;
pub mod comparison;
pub mod copy_map;
pub mod held_out;
mod layout;
pub mod loss;
pub mod material;
pub mod network;
pub mod plan;
pub mod process;
pub mod scores;
pub mod training;

pub use command::{PruneArgs, command};

#[cfg(test)]
pub(crate) mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};

    use search_spaces::TrainingSettings;
    use serde_json::json;
    use sha2::{Digest, Sha256};
    use tch::{Device, Kind, Tensor, nn};

    use super::plan::Plan;
    use crate::assets::Assets;
    use crate::data::encoded::{Encoded, LATENTS};
    use crate::models::clip::{ClipConfig, ClipImageConfig, ClipModel};
    use crate::models::seeded::{normal, seed_weights};
    use crate::models::text::TextConfig;
    use crate::weights::{save, save_tensors};

    /// The shipped parts of `shapes` below a folder of their own, with three clips in latents beside them so that none
    /// has to be drawn; the folder of all parts.
    pub(crate) fn shipped_with_latents(folder: &Path) -> PathBuf {
        let root = shipped(folder);
        add_latents(&root);
        root
    }

    /// As [`shipped_with_latents`], with a small CLIP of drawn weights and a linear aesthetic head.
    pub(crate) fn shipped_with_clip(folder: &Path) -> PathBuf {
        let root = shipped(folder);
        add_clip(&root.join("shapes"));
        add_latents(&root);
        root
    }

    fn shipped(folder: &Path) -> PathBuf {
        let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets/shapes");
        let root = folder.join("parts");
        let parts = root.join("shapes");
        fs::create_dir_all(&parts).unwrap();
        for file in fs::read_dir(shipped).unwrap() {
            let file = file.unwrap();
            fs::copy(file.path(), parts.join(file.file_name())).unwrap();
        }
        root
    }

    fn add_clip(parts: &Path) {
        let config = ClipConfig {
            image: ClipImageConfig {
                image: 16,
                patch: 8,
                width: 8,
                heads: 2,
                layers: 1,
                projection: 6,
            },
            text: TextConfig {
                tokens: 8,
                width: 8,
                heads: 2,
                layers: 1,
            },
        };
        let path = parts.join("manifest.json");
        let mut manifest: serde_json::Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        let (vs, read) = (
            nn::VarStore::new(Device::Cpu),
            crate::assets::Manifest::read(parts).unwrap(),
        );
        let _ = ClipModel::new(&vs.root(), &config, read.tokenizer.size());
        seed_weights(&vs, 9);
        save(&vs, &parts.join("clip.safetensors")).unwrap();
        let head = [
            ("weight", normal(&[1, 6], 2, Device::Cpu)),
            ("bias", Tensor::full([1], 5.0, (Kind::Float, Device::Cpu))),
        ];
        let head = head.map(|(name, tensor)| (name.to_owned(), tensor));
        save_tensors(head, &parts.join("aesthetic.safetensors")).unwrap();
        for name in ["clip.safetensors", "aesthetic.safetensors"] {
            let bytes = fs::read(parts.join(name)).unwrap();
            let digest: String = Sha256::digest(&bytes)
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect();
            manifest["files"][name] = json!({ "bytes": bytes.len(), "sha256": digest });
        }
        manifest["recipe"]["clip"] = json!(config);
        fs::write(&path, manifest.to_string()).unwrap();
    }

    pub(crate) fn add_latents(root: &Path) {
        let assets = Assets::open(root, "shapes", Device::Cpu).unwrap();
        let encoded = Encoded {
            latents: normal(&[3, 4, 5, 8, 8], 1, Device::Cpu),
            captions: ["a red circle", "a blue star", "a green square"]
                .map(String::from)
                .to_vec(),
        };
        encoded.write(&assets, &root.join("shapes").join(LATENTS)).unwrap();
    }

    const RECIPE: &str = r#"
        name = "NAME"
        stage = "pruning"
        trains = "all"
        [training]
        steps = STEPS
        batch = 4
        accumulate = 2
        learning_rate = 5e-3
        warmup_steps = 2
        checkpoint_every = 2
        [distillation]
        TEACHER
    "#;

    /// Distillation from a model that predicts noise, then adaptation to flow with its velocities.
    pub(super) fn plan(distillation: u32, adaptation: u32) -> Plan {
        let recipe = |name: &str, steps: u32, teacher: &str| {
            let recipe = RECIPE.replace("NAME", name).replace("STEPS", &steps.to_string());
            recipe.replace("TEACHER", teacher)
        };
        let first = recipe("distil", distillation, "");
        let second = recipe("adapt", adaptation, "predicts = \"velocity\"\nfeature_weight = 0");
        Plan::parse(&first, Some(&second), 5).unwrap()
    }

    pub(super) fn settings() -> TrainingSettings {
        plan(1, 1).distillation.training
    }
}
