//! Clips as latents with their captions: in one file that travels, or in shards that the workers of a machine make
//! together.

use std::collections::{BTreeMap, HashMap};
use std::fs::{File, TryLockError};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Duration;

use safetensors::SafeTensors;
use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::{ClipSource, DataError, Split, to_tensor};
use crate::assets::{Assets, AssetsError, read_tensors, write_tensors};
use crate::checkpoint::{decode_tensors, encode_tensors};

/// The file beside a dataset's trained parts that makes its clips needless.
pub const LATENTS: &str = "latents.safetensors";

/// Name of the tensor, and key of the file's metadata that says whose latents they are, as JSON.
const KEY: &str = "latents";
/// Clips of a shard.
const SHARD: usize = 64;
/// Clips encoded at once.
const BATCH: usize = 16;
/// How often a shard that another process encodes is looked for.
const LOOK_EVERY: Duration = Duration::from_millis(200);

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
        // Readable by all as any file of the assets, which a temporary file would not be.
        let partial = path.with_extension("partial");
        let written = std::fs::write(&partial, &bytes).and_then(|()| std::fs::rename(&partial, path));
        Ok(written.map_err(DataError::file(path))?)
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

/// Reads the shards of a folder; those that are missing are encoded first. Workers that share the folder share the
/// work: each takes a shard that nobody holds. The system lets go of a killed worker's shard.
fn read_or_encode(
    folder: &Path,
    count: usize,
    encode: &dyn Fn(&[usize]) -> Result<Tensor, AssetsError>,
    progress: &mut dyn FnMut(f64) -> ControlFlow<()>,
) -> Result<Tensor, AssetsError> {
    std::fs::create_dir_all(folder).map_err(DataError::file(folder))?;
    let clips: Vec<usize> = (0..count).collect();
    let shards: Vec<Shard<'_>> = clips.chunks(SHARD).map(|clips| Shard::new(folder, clips)).collect();
    let mut tell = || {
        let done: usize = shards
            .iter()
            .filter(|shard| shard.path.exists())
            .map(|shard| shard.clips.len())
            .sum();
        match progress(done as f64 / count.max(1) as f64) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(AssetsError::Interrupted),
        }
    };
    loop {
        tell()?;
        let missing: Vec<_> = shards.iter().filter(|shard| !shard.path.exists()).collect();
        if missing.is_empty() {
            break;
        }
        let mut all_held = true;
        for shard in missing {
            if let Some(_held) = shard.hold()? {
                shard.encode(encode, &mut tell)?;
                all_held = false;
            }
        }
        if all_held {
            std::thread::sleep(LOOK_EVERY);
        }
    }
    let parts: Vec<Tensor> = shards.iter().map(Shard::read).collect::<Result<_, _>>()?;
    Ok(Tensor::cat(&parts, 0))
}

/// Latents of some clips in a file.
struct Shard<'a> {
    path: PathBuf,
    clips: &'a [usize],
}

impl<'a> Shard<'a> {
    fn new(folder: &Path, clips: &'a [usize]) -> Self {
        let (first, count) = (clips.first().copied().unwrap_or_default(), clips.len());
        let path = folder.join(format!("{count}-from-{first:06}.safetensors"));
        Self { path, clips }
    }

    /// Keeps other processes from encoding it until the answer is dropped; none where another holds it.
    fn hold(&self) -> Result<Option<File>, AssetsError> {
        let path = self.path.with_extension("lock");
        let lock = File::create(&path).map_err(DataError::file(&path))?;
        match lock.try_lock() {
            Ok(()) => Ok(Some(lock)),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(source)) => Err(DataError::file(&path)(source).into()),
        }
    }

    /// Encodes it, unless another process has done so between the look and the hold.
    fn encode(
        &self,
        encode: &dyn Fn(&[usize]) -> Result<Tensor, AssetsError>,
        tell: &mut dyn FnMut() -> Result<(), AssetsError>,
    ) -> Result<(), AssetsError> {
        if self.path.exists() {
            return Ok(());
        }
        let mut parts = Vec::new();
        for clips in self.clips.chunks(BATCH) {
            parts.push(encode(clips)?);
            tell()?;
        }
        write_tensors(&[(KEY.to_owned(), Tensor::cat(&parts, 0))], &self.path)
    }

    fn read(&self) -> Result<Tensor, AssetsError> {
        let latents = read_tensors(&self.path)?.remove(KEY);
        latents.ok_or_else(|| broken(&self.path, "no tensor `latents`"))
    }
}

fn encode(assets: &Assets, source: &dyn ClipSource, clips: &[usize]) -> Result<Tensor, AssetsError> {
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
