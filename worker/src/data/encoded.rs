//! Clips as latents with their captions: in one file that travels, or in shards that the workers of a machine make
//! together.

use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;
use std::path::Path;

use safetensors::SafeTensors;
use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::sharded::{Done, ShardError, make_together};
use super::{ClipSource, DataError, Split, to_tensor};
use crate::assets::{Assets, AssetsError};
use crate::checkpoint::{decode_tensors, encode_tensors, write_through};

/// The file beside a dataset's trained parts that makes its clips needless.
pub const LATENTS: &str = "latents.safetensors";

/// Name of the tensor, and key of the file's metadata that says whose latents they are, as JSON.
const KEY: &str = "latents";
/// Clips of a shard.
const SHARD: usize = 64;
/// Clips encoded at once.
const BATCH: usize = 16;

/// Latents of a dataset's training clips with their captions, in one order.
#[derive(Debug)]
pub struct Encoded {
    /// `[clips, channels, t, h, w]`
    pub latents: Tensor,
    /// The caption of each clip.
    pub captions: Vec<String>,
}

/// What a file of latents says of itself.
#[derive(Serialize, Deserialize)]
struct Label {
    /// Digest of the trained parts: latents of another VAE are worth nothing.
    parts: String,
    captions: Vec<String>,
}

impl Encoded {
    /// The latents that lie beside the parts, else those of the clips.
    ///
    /// # Errors
    /// As [`Self::read`] and [`Self::of_clips`].
    pub(crate) fn open(
        assets: &Assets,
        cache: &Path,
        progress: &mut dyn FnMut(f64) -> ControlFlow<()>,
    ) -> Result<Self, AssetsError> {
        let beside = assets.folder().join(LATENTS);
        if beside.exists() {
            Self::read(assets, &beside)
        } else {
            Self::of_clips(assets, cache, progress)
        }
    }

    /// Encodes the dataset's clips, or reads what was encoded under `cache` before.
    ///
    /// # Errors
    /// Where clips cannot be read or latents cannot be written, or `progress` breaks it off.
    pub(crate) fn of_clips(
        assets: &Assets,
        cache: &Path,
        progress: &mut dyn FnMut(f64) -> ControlFlow<()>,
    ) -> Result<Self, AssetsError> {
        let source = assets.source(cache)?;
        let count = source.len(Split::Train);
        let folder = cache.join("latents").join(&assets.manifest.digest()[..16]);
        let latents = read_or_encode(
            &folder,
            count,
            &|clips| encode(assets, source.as_ref(), clips),
            progress,
        )?;
        let captions = (0..count).map(|clip| source.attributes(Split::Train, clip).caption);
        Ok(Self {
            latents,
            captions: captions.collect(),
        })
    }

    /// Writes the file that travels with the parts.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub(crate) fn write(&self, assets: &Assets, path: &Path) -> Result<(), AssetsError> {
        let label = Label {
            parts: assets.manifest.digest(),
            captions: self.captions.clone(),
        };
        let label = serde_json::to_string(&label).map_err(|error| broken(path, error))?;
        let tensors = BTreeMap::from([(KEY.to_owned(), self.latents.shallow_clone())]);
        let bytes = encode_tensors(&tensors, HashMap::from([(KEY.to_owned(), label)]));
        let bytes = bytes.map_err(|error| broken(path, error))?;
        Ok(write_through(&path.with_extension("partial"), path, &bytes).map_err(DataError::file(path))?)
    }

    /// Reads what [`Self::write`] wrote.
    ///
    /// # Errors
    /// Where it is no such file, or belongs to other parts.
    pub(crate) fn read(assets: &Assets, path: &Path) -> Result<Self, AssetsError> {
        let bytes = std::fs::read(path).map_err(DataError::file(path))?;
        let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|error| broken(path, error))?;
        let label = header.metadata().as_ref().and_then(|metadata| metadata.get(KEY));
        let label = label.ok_or_else(|| broken(path, "its metadata has no `latents`"))?;
        let label: Label = serde_json::from_str(label).map_err(|error| broken(path, error))?;
        let parts = assets.manifest.digest();
        if label.parts != parts {
            let dataset = &assets.manifest.dataset;
            let problem = format!(
                "belongs to the trained parts {}, here are {}; make it anew with `temponas-worker latents --dataset {dataset}`",
                &label.parts.chars().take(12).collect::<String>(),
                &parts[..12],
            );
            return Err(broken(path, problem));
        }
        let mut tensors = decode_tensors(&bytes).map_err(|error| broken(path, error))?;
        let latents = tensors.remove(KEY).ok_or_else(|| broken(path, "no tensor `latents`"))?;
        let expected = [&[label.captions.len() as i64], &assets.latent_shape()[..]].concat();
        if label.captions.is_empty() {
            return Err(broken(path, "`latents` holds no clip; needed is one or more"));
        }
        if latents.size() != expected {
            let problem = format!("`latents` has shape {:?}, needed is {expected:?}", latents.size());
            return Err(broken(path, problem));
        }
        Ok(Self {
            latents,
            captions: label.captions,
        })
    }
}

fn broken(path: &Path, problem: impl std::fmt::Display) -> AssetsError {
    AssetsError::Content {
        path: path.to_owned(),
        problem: problem.to_string(),
    }
}

/// Reads the shards of a folder; those that are missing are encoded first, by all workers that share the folder.
fn read_or_encode(
    folder: &Path,
    count: usize,
    encode: &dyn Fn(&[usize]) -> Result<Tensor, DataError>,
    progress: &mut dyn FnMut(f64) -> ControlFlow<()>,
) -> Result<Tensor, AssetsError> {
    let clips: Vec<usize> = (0..count).collect();
    let shards: Vec<&[usize]> = clips.chunks(SHARD).collect();
    let name = |(number, clips): (usize, &&[usize])| format!("{}-from-{:06}.safetensors", clips.len(), number * SHARD);
    let names: Vec<String> = shards.iter().enumerate().map(name).collect();
    make_together(
        folder,
        &names,
        &mut |shard, within| {
            let mut parts = Vec::new();
            for (i, clips) in shards[shard].chunks(BATCH).enumerate() {
                within((i * BATCH) as f64 / SHARD as f64)?;
                parts.push(encode(clips)?);
            }
            let tensors = BTreeMap::from([(KEY.to_owned(), Tensor::cat(&parts, 0))]);
            Ok(encode_tensors(&tensors, HashMap::new())?)
        },
        &mut |done| match done {
            Done::Files(share) if progress(share).is_break() => Err(ShardError::Interrupted),
            Done::Files(_) | Done::File(..) => Ok(()),
        },
    )?;
    let read = |name: &String| {
        let path = folder.join(name);
        let bytes = std::fs::read(&path).map_err(DataError::file(&path))?;
        let latents = decode_tensors(&bytes)
            .map_err(|error| broken(&path, error))?
            .remove(KEY);
        latents.ok_or_else(|| broken(&path, "no tensor `latents`"))
    };
    let parts: Vec<Tensor> = names.iter().map(read).collect::<Result<_, AssetsError>>()?;
    Ok(Tensor::cat(&parts, 0))
}

fn encode(assets: &Assets, source: &dyn ClipSource, clips: &[usize]) -> Result<Tensor, DataError> {
    let clips: Vec<_> = clips
        .iter()
        .map(|&i| source.clip(Split::Train, i))
        .collect::<Result<_, _>>()?;
    let frames: Vec<&[u8]> = clips.iter().map(|clip| clip.frames.as_slice()).collect();
    Ok(tch::no_grad(|| {
        assets.vae.encode(&to_tensor(&frames).to_device(assets.device()))
    }))
}

#[cfg(test)]
mod tests;
