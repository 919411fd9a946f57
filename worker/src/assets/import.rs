//! `temponas-worker import`: published weights as the parts of a dataset.
//!
//! Every file is held strictly against its model before anything is written, then linked beside a manifest. The parts
//! come without evaluators and prompts: scores of candidates are another scorer's.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::Args;
use search_spaces::{Space, UnetConfig};
use serde::Deserialize;
use tch::{Device, Tensor, nn};

use super::manifest::{FileEntry, Manifest, digest_of};
use super::{AESTHETIC, Assets, AssetsError, BACKBONE, CLIP, MANIFEST, Recipe, TEXT, VAE};
use crate::data::{DataError, name_of};
use crate::models::clip::{ClipConfig, ClipModel};
use crate::models::text::{TextConfig, TextEncoder};
use crate::models::tokenizer::{Clip, Tokenizer};
use crate::models::vae::{Vae, VaeConfig};
use crate::models::{UNet, published};
use crate::scoring::clip::Aesthetic;
use crate::weights::{self, Layout};

/// Key of a manifest's `clips` that says that the parts were imported.
const IMPORTED: &str = "imported";

/// Check published weights and lay them out as the parts of a dataset.
#[derive(Debug, Args)]
pub struct ImportArgs {
    /// Name of the parts: the `dataset` of spaces that train with them.
    #[arg(long)]
    name: String,
    /// Weights of the UNet, as safetensors under the keys of Stable Diffusion in diffusers' form.
    #[arg(long)]
    unet: PathBuf,
    /// Weights of CLIP's text encoder, as safetensors.
    #[arg(long)]
    text: PathBuf,
    /// CLIP's vocabulary: bpe_simple_vocab_16e6.txt.gz, tokenizer.json, merges.txt beside vocab.json, or their folder;
    /// `scripts/clip-vocabulary` fetches the first.
    #[arg(long)]
    tokenizer: PathBuf,
    /// Weights of Open-Sora's VAE, both stages in one file, as safetensors.
    #[arg(long)]
    vae: PathBuf,
    /// Weights of CLIP as a whole, both towers and projections, as safetensors: pruning then tells the CLIP score of
    /// pictures.
    #[arg(long)]
    clip: Option<PathBuf>,
    /// Weights of LAION's aesthetic predictor on CLIP's embeddings, the improved one or the linear head, as safetensors:
    /// pruning then tells the aesthetic score too.
    #[arg(long, requires = "clip")]
    aesthetic: Option<PathBuf>,
    /// The VAE is one of single pictures, as Stable Diffusion's own: parts to distil a pruned backbone on pictures with.
    #[arg(long)]
    pictures: bool,
    /// Space file whose UNet the weights are of, such as a pruned one [default: Stable Diffusion 1.5].
    #[arg(long)]
    space: Option<PathBuf>,
    /// TOML file with tables `text`, `vae` and `clip` where they are of other sizes than CLIP ViT-L/14's and Open-Sora
    /// 1.2's.
    #[arg(long)]
    sizes: Option<PathBuf>,
    /// Where the parts go, in a folder of their name.
    #[arg(long, default_value = "assets")]
    out: PathBuf,
    /// Copy the files even where they could be linked.
    #[arg(long)]
    copy: bool,
}

/// Runs the command.
///
/// # Errors
/// Where a file cannot be read or does not fit its model, or the parts cannot be written.
pub fn command(args: &ImportArgs) -> anyhow::Result<()> {
    let (folder, manifest) = import(args)?;
    for (name, file) in &manifest.files {
        println!("{name}: {} bytes, SHA-256 {}", file.bytes, file.sha256);
    }
    println!(
        "{} is ready; name it as `evaluation.dataset = \"{}\"`",
        folder.display(),
        manifest.dataset
    );
    Ok(())
}

/// Checks everything, then writes the folder whole or not at all.
fn import(args: &ImportArgs) -> Result<(PathBuf, Manifest), AssetsError> {
    let folder = args.out.join(name_of(&args.name));
    if folder.exists() {
        let problem = "is there already; give another --name or remove it".to_owned();
        return Err(AssetsError::Content { path: folder, problem });
    }
    let recipe = recipe(args)?;
    let tokenizer = Tokenizer::Clip(Clip::read(&args.tokenizer)?);
    let unet = |vs: &nn::VarStore| drop(UNet::new(&vs.root(), &recipe.backbone, &[]));
    let text = |vs: &nn::VarStore| drop(TextEncoder::new(&vs.root(), &recipe.text, tokenizer.size()));
    let vae = |vs: &nn::VarStore| drop(Vae::new(&vs.root(), &recipe.vae));
    check("UNet", &args.unet, &Layout::PLAIN, unet)?;
    check("text encoder", &args.text, &Layout::CLIP_TEXT, text)?;
    check("VAE", &args.vae, &Layout::VAE, vae)?;
    if let (Some(path), Some(config)) = (&args.clip, &recipe.clip) {
        let clip = |vs: &nn::VarStore| drop(ClipModel::new(&vs.root(), config, tokenizer.size()));
        check("CLIP", path, &Layout::CLIP, clip)?;
        if let Some(path) = &args.aesthetic {
            drop(Aesthetic::read(path, config.image.projection, Device::Cpu)?);
        }
    }

    let partial = args.out.join(format!(".{}.partial", name_of(&args.name)));
    if partial.exists() {
        std::fs::remove_dir_all(&partial).map_err(DataError::file(&partial))?;
    }
    std::fs::create_dir_all(&partial).map_err(DataError::file(&partial))?;
    let mut files = BTreeMap::new();
    let given = [(BACKBONE, &args.unet), (TEXT, &args.text), (VAE, &args.vae)];
    let scorers = [(CLIP, &args.clip), (AESTHETIC, &args.aesthetic)];
    let scorers = scorers
        .into_iter()
        .filter_map(|(name, path)| Some((name, path.as_ref()?)));
    for (name, source) in given.into_iter().chain(scorers) {
        let place = partial.join(name);
        lay(source, &place, args.copy).map_err(DataError::file(source))?;
        files.insert(name.to_owned(), FileEntry::of(&place)?);
    }
    let manifest = Manifest {
        dataset: args.name.clone(),
        command: format!("temponas-worker import --name {}", args.name),
        clips: serde_json::json!({ IMPORTED: { "tokenizer": digest_of(&tokenizer) } }),
        recipe,
        accuracies: BTreeMap::new(),
        reconstruction_error: None,
        vocabulary: None,
        tokenizer,
        held_out_prompts: Vec::new(),
        files,
    };
    manifest.write(&partial)?;
    std::fs::rename(&partial, &folder).map_err(DataError::file(&folder))?;
    Ok((folder, manifest))
}

/// The sizes of all parts, which must fit each other.
fn recipe(args: &ImportArgs) -> Result<Recipe, AssetsError> {
    let Sizes { text, mut vae, clip } = match &args.sizes {
        Some(path) => Sizes::read(path)?,
        None => Sizes::default(),
    };
    if args.pictures {
        vae.temporal = None;
    }
    let backbone = match &args.space {
        Some(path) => unet_of(path)?,
        None => published::stable_diffusion(),
    };
    let recipe = Recipe {
        seed: 0,
        vae,
        text,
        backbone,
        evaluators: None,
        clip: args.clip.is_some().then_some(clip),
        training: None,
    };
    recipe.check().map_err(|problem| AssetsError::Content {
        path: args.sizes.clone().or(args.space.clone()).unwrap_or_default(),
        problem,
    })?;
    Ok(recipe)
}

/// What `--sizes` may hold.
#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Sizes {
    text: TextConfig,
    vae: VaeConfig,
    clip: ClipConfig,
}

impl Default for Sizes {
    fn default() -> Self {
        Self {
            text: published::clip_vit_l14(),
            vae: published::open_sora_vae(),
            clip: published::clip_vit_l14_whole(),
        }
    }
}

impl Sizes {
    fn read(path: &Path) -> Result<Self, AssetsError> {
        let content = |problem: String| AssetsError::Content {
            path: path.to_owned(),
            problem,
        };
        let text = std::fs::read_to_string(path).map_err(DataError::file(path))?;
        let sizes: Self = toml::from_str(&text).map_err(|error| content(error.to_string()))?;
        // The others are held against each other with the backbone.
        sizes.clip.check().map_err(content)?;
        Ok(sizes)
    }
}

fn unet_of(path: &Path) -> Result<UnetConfig, AssetsError> {
    let content = |problem: String| AssetsError::Content {
        path: path.to_owned(),
        problem,
    };
    let text = std::fs::read_to_string(path).map_err(DataError::file(path))?;
    let space = Space::parse(&text).map_err(|error| content(error.to_string()))?;
    space
        .unet()
        .cloned()
        .ok_or_else(|| content("the space has no [unet]; expected is one of kind temporal-unet".to_owned()))
}

/// Builds a model and fills it from the file, for no other purpose than to see that it can be done.
fn check(what: &str, path: &Path, layout: &Layout, build: impl FnOnce(&nn::VarStore)) -> Result<(), AssetsError> {
    let vs = nn::VarStore::new(Device::Cpu);
    build(&vs);
    weights::load(&vs, path, layout)?;
    let parameters: usize = vs.variables().values().map(Tensor::numel).sum();
    tracing::info!(
        "{what}: {} tensors, {parameters} parameters, from {}",
        vs.len(),
        path.display()
    );
    Ok(())
}

/// Links a file into a folder, or copies it where the two lie on different file systems.
fn lay(source: &Path, place: &Path, copy: bool) -> std::io::Result<()> {
    // Caches of model hubs hold links; what they point at is meant.
    let source = source.canonicalize()?;
    if !copy && std::fs::hard_link(&source, place).is_ok() {
        return Ok(());
    }
    std::fs::copy(&source, place).map(drop)
}

impl Assets {
    /// Parts that came without clips cannot make latents of them.
    pub(super) fn require_clips(&self) -> Result<(), AssetsError> {
        if self.manifest.clips.get(IMPORTED).is_none() {
            return Ok(());
        }
        Err(AssetsError::Content {
            path: self.folder.join(MANIFEST),
            problem: "these parts were imported and know no clips to train on; encode some with them first".to_owned(),
        })
    }
}

#[cfg(test)]
mod tests;
