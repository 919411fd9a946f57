//! Precomputed latents of a dataset's training clips, kept on disk and read back by every candidate.

use std::path::{Path, PathBuf};

use rand::RngExt;
use tch::Tensor;

use super::{ClipSource, DataError, Split, to_tensor};
use crate::assets::{Assets, AssetsError, read_tensors, write_tensors};
use crate::models::seeded::{generator, stream_of};

/// Clips of a file.
const SHARD: usize = 256;
/// Clips encoded at once.
const BATCH: usize = 16;

/// Latents with the embeddings of their captions.
#[derive(Debug)]
pub struct TrainingSet {
    /// `[clips, 4, t, h, w]`
    latents: Tensor,
    /// `[captions + 1, tokens, width]`; the first is the null text.
    texts: Tensor,
    /// Row of `texts` of each clip.
    caption_of: Vec<i64>,
}

/// Clips drawn for one step.
#[derive(Debug)]
pub struct Batch {
    /// `[b, 4, t, h, w]`
    pub latents: Tensor,
    /// `[b, tokens, width]`; the null text where the caption was dropped.
    pub text: Tensor,
}

impl TrainingSet {
    pub(crate) fn open(assets: &Assets, cache: &Path, progress: &mut dyn FnMut(f64)) -> Result<Self, AssetsError> {
        let source = assets.source(cache)?;
        let folder = cache.join("latents").join(&assets.manifest.digest()[..16]);
        let latents = read_or_encode(assets, source.as_ref(), &folder, progress)?;
        let count = latents.size()[0] as usize;
        let of_clip: Vec<String> = (0..count).map(|i| source.attributes(Split::Train, i).caption).collect();
        let mut captions: Vec<&str> = of_clip.iter().map(String::as_str).collect();
        captions.push("");
        captions.sort_unstable();
        captions.dedup();
        let row = |caption: &String| captions.binary_search(&caption.as_str()).unwrap_or_default() as i64;
        Ok(Self {
            caption_of: of_clip.iter().map(row).collect(),
            texts: assets.text.embed(&captions),
            latents: latents.to_device(assets.device()),
        })
    }

    /// Number of clips.
    #[must_use]
    pub fn len(&self) -> usize {
        self.caption_of.len()
    }

    /// Whether there are no clips.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.caption_of.is_empty()
    }

    /// The clips of a step: drawn with replacement, named by (seed, step) and nothing else.
    #[must_use]
    pub fn batch(&self, seed: u64, step: u64, size: u64, text_dropout: f64) -> Batch {
        let mut rng = generator(seed ^ stream_of("batch"), step);
        let drawn: Vec<i64> = (0..size).map(|_| rng.random_range(0..self.len()) as i64).collect();
        let text: Vec<i64> = drawn
            .iter()
            .map(|&clip| {
                if rng.random::<f64>() < text_dropout {
                    0
                } else {
                    self.caption_of[clip as usize]
                }
            })
            .collect();
        let rows = |indices: &[i64]| Tensor::from_slice(indices).to_device(self.latents.device());
        Batch {
            latents: self.latents.index_select(0, &rows(&drawn)),
            text: self.texts.index_select(0, &rows(&text)),
        }
    }
}

/// Reads the shards of a folder; a shard that is missing is encoded first, so an interrupted run goes on.
fn read_or_encode(
    assets: &Assets,
    source: &dyn ClipSource,
    folder: &Path,
    progress: &mut dyn FnMut(f64),
) -> Result<Tensor, AssetsError> {
    std::fs::create_dir_all(folder).map_err(DataError::file(folder))?;
    let count = source.len(Split::Train);
    let all: Vec<usize> = (0..count).collect();
    let mut shards = Vec::new();
    for (number, indices) in all.chunks(SHARD).enumerate() {
        let path: PathBuf = folder.join(format!("{number:05}.safetensors"));
        if !path.exists() {
            let mut parts = Vec::new();
            for indices in indices.chunks(BATCH) {
                parts.push(encode(assets, source, indices)?);
                progress(indices[indices.len() - 1] as f64 / count as f64);
            }
            write_tensors(&[("latents".to_owned(), Tensor::cat(&parts, 0))], &path)?;
        }
        let missing = || AssetsError::Content {
            path: path.clone(),
            problem: "no tensor `latents`".to_owned(),
        };
        shards.push(read_tensors(&path)?.remove("latents").ok_or_else(missing)?);
    }
    progress(1.0);
    Ok(Tensor::cat(&shards, 0))
}

fn encode(assets: &Assets, source: &dyn ClipSource, indices: &[usize]) -> Result<Tensor, AssetsError> {
    let clips: Result<Vec<_>, _> = indices.iter().map(|&i| source.clip(Split::Train, i)).collect();
    let clips = clips?;
    let frames: Vec<&[u8]> = clips.iter().map(|clip| clip.frames.as_slice()).collect();
    Ok(tch::no_grad(|| {
        assets.vae.encode(&to_tensor(&frames).to_device(assets.device()))
    }))
}
