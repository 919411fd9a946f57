//! `temponas-worker assets`: trains all parts of a dataset and writes them with their manifest.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use clap::Args;
use tch::{Kind, Tensor, nn};

use super::evaluators::Coded;
use super::manifest::{FileEntry, Manifest, digest_of};
use super::train::{Clips, Workshop, in_chunks};
use super::words::tokenizer;
use super::{Assets, AssetsError, BACKBONE, EVALUATORS, Recipe, TEXT, VAE};
use crate::data::{self, ClipSource, DataError, Split, name_of, to_tensor};
use crate::models::vae::Vae;
use crate::weights::save_tensors;

/// Train the small pretrained parts of a dataset: VAE, text encoder, backbone and evaluators.
#[derive(Debug, Args)]
pub struct AssetsArgs {
    /// Which dataset: shapes, emoji, or the folder of a set of clips.
    #[arg(long, default_value = "shapes")]
    dataset: String,
    /// Where the parts go, in a folder named after the dataset.
    #[arg(long, default_value = "assets")]
    out: PathBuf,
    /// Where clips are read from and checkpoints lie.
    #[arg(long, env = "TEMPONAS_CACHE", default_value_os_t = data::default_cache())]
    cache: PathBuf,
    /// Go on from the checkpoints of an interrupted run; without it they are removed first.
    #[arg(long)]
    resume: bool,
    /// Threads of libtorch. Bytes are reproducible on one kind of CPU with one number of threads.
    #[arg(long, default_value_t = 1)]
    threads: u32,
}

/// Runs the command.
///
/// # Errors
/// Where clips cannot be read or files cannot be written.
pub fn command(args: &AssetsArgs) -> anyhow::Result<()> {
    ensure!(args.threads > 0, "--threads is 0; it must be at least 1");
    tch::set_num_threads(args.threads.try_into().context("--threads is too large")?);
    let source = data::open(&args.dataset, &args.cache)?;
    let recipe = Recipe::of(&args.dataset).with_context(|| {
        format!(
            "there is no recipe for `{}`; allowed: shapes, emoji, a folder",
            args.dataset
        )
    })?;
    let key = digest_of(&(source.settings(), &recipe));
    let folder = args
        .cache
        .join("assets")
        .join(format!("{}-{}", name_of(&args.dataset), &key[..12]));
    if !args.resume && folder.exists() {
        std::fs::remove_dir_all(&folder).with_context(|| folder.display().to_string())?;
    }
    std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    let shop = Workshop::new(source.as_ref(), &recipe, folder).context("the recipe trains nothing")?;
    let manifest = make(&shop, &args.dataset, &args.out.join(name_of(&args.dataset)))?;
    for (name, share) in &manifest.accuracies {
        println!("{name}: {share:.4}");
    }
    if let Some(error) = manifest.reconstruction_error {
        println!("reconstruction error: {error:.2} of 255");
    }
    Ok(())
}

fn make(shop: &Workshop<'_>, dataset: &str, out: &Path) -> Result<Manifest, AssetsError> {
    let (train, held_out) = (shop.clips(Split::Train)?, shop.clips(Split::HeldOut)?);
    let (vae_weights, vae) = shop.vae(&train)?;
    let encode = |clips: &Clips| in_chunks(clips.frames.len(), |indices| vae.encode(&clips.tensor(indices)));
    let latents = shop.kept("latents", || encode(&train))?;
    let held_out_latents = shop.kept("latents-held-out", || encode(&held_out))?;
    let tokenizer = tokenizer(&train.prompts, &shop.source.vocabulary());
    let backbone = shop.backbone(&latents, &train.prompts, &tokenizer)?;
    let coded = Coded {
        latents: &latents,
        prompts: &train.prompts,
    };
    let coded_held_out = Coded {
        latents: &held_out_latents,
        prompts: &held_out.prompts,
    };
    let (evaluators, accuracies) = shop.evaluators(&vae, &coded, &coded_held_out, &tokenizer)?;

    std::fs::create_dir_all(out).map_err(DataError::file(out))?;
    let is_text = |name: &str| name.starts_with("text_model.");
    let parts = [
        (VAE, weights(&vae_weights, |_| true)),
        (TEXT, weights(&backbone, is_text)),
        (BACKBONE, weights(&backbone, |name| !is_text(name))),
        (EVALUATORS, weights(&evaluators, |_| true)),
    ];
    let mut files = std::collections::BTreeMap::new();
    for (name, tensors) in parts {
        let path = out.join(name);
        save_tensors(tensors, &path)?;
        files.insert(name.to_owned(), FileEntry::of(&path)?);
    }
    let manifest = Manifest {
        dataset: dataset.to_owned(),
        command: format!("temponas-worker assets --dataset {dataset}"),
        clips: shop.source.settings(),
        recipe: shop.recipe.clone(),
        accuracies,
        reconstruction_error: Some(reconstruction_error(&vae, &held_out, &held_out_latents)),
        vocabulary: Some(shop.source.vocabulary()),
        tokenizer,
        held_out_prompts: shop.source.prompts(Split::HeldOut),
        files,
    };
    manifest.write(out)?;
    Ok(manifest)
}

fn weights(vs: &nn::VarStore, wanted: impl Fn(&str) -> bool) -> Vec<(String, Tensor)> {
    vs.variables().into_iter().filter(|(name, _)| wanted(name)).collect()
}

/// Mean absolute error of decoded clips, of 255.
fn reconstruction_error(vae: &Vae, clips: &Clips, latents: &Tensor) -> f64 {
    let errors = in_chunks(clips.frames.len(), |indices| {
        let frames: Vec<&[u8]> = indices.iter().map(|&i| clips.frames[i].as_slice()).collect();
        let frames = to_tensor(&frames);
        let decoded = vae
            .decode(&super::train::pick(latents, indices), frames.size()[2])
            .clamp(-1.0, 1.0);
        (decoded - frames)
            .abs()
            .mean_dim([1i64, 2, 3, 4].as_slice(), false, Kind::Float)
    });
    errors.mean(Kind::Double).double_value(&[]) * 127.5
}

impl Assets {
    /// The clips these parts were trained on.
    ///
    /// # Errors
    /// Where the clips are not there, or are others.
    pub(crate) fn source(&self, cache: &Path) -> Result<Box<dyn ClipSource>, AssetsError> {
        self.require_clips()?;
        let source = data::open(&self.manifest.dataset, cache)?;
        if source.settings() != self.manifest.clips {
            let problem = format!("its clips are {}, here are {}", self.manifest.clips, source.settings());
            return Err(AssetsError::Content {
                path: self.folder.join(super::MANIFEST),
                problem,
            });
        }
        Ok(source)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Schedule, Training};
    use super::*;
    use crate::data::shapes::Shapes;

    /// Parts of a few clips and steps: enough to go through every stage.
    fn small(folder: &Path) -> Vec<Vec<u8>> {
        tch::set_num_threads(1);
        let source = Shapes {
            clips_per_combination: 1,
            held_out_per_combination: 1,
            ..Shapes::default()
        };
        let few = Schedule {
            steps: 2,
            batch: 6,
            learning_rate: 1e-3,
        };
        let recipe = Recipe {
            training: Recipe::shapes().training.map(|training| Training {
                vae_spatial: few,
                vae_temporal: few,
                backbone: few,
                frame_reader: few,
                clip_reader: few,
                ..training
            }),
            ..Recipe::shapes()
        };
        let (work, out) = (folder.join("work"), folder.join("out"));
        std::fs::create_dir_all(&work).unwrap();
        let shop = Workshop::new(&source, &recipe, work).unwrap();
        make(&shop, "shapes", &out).unwrap();
        [VAE, TEXT, BACKBONE, EVALUATORS, super::super::MANIFEST]
            .map(|name| std::fs::read(out.join(name)).unwrap())
            .to_vec()
    }

    #[test]
    fn the_same_recipe_makes_the_same_bytes() {
        let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        assert!(
            small(first.path()) == small(second.path()),
            "files of two equal runs differ"
        );
    }
}
