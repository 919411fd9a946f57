//! Reads single clips and captions from shards; what is held in memory is the place of each, not the numbers.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use tch::{Kind, Tensor};

use super::index::{Content, Index, Shard};
use super::share::verify;
use super::{ShardError, Texts};
use crate::weights::WeightFile;

/// Shards whose digests are those of their index.
#[derive(Debug)]
pub struct Reader {
    index: Index,
    clips_by_bucket: Vec<Range<usize>>,
    /// In the order of their first clips.
    latents: Vec<Rows>,
    /// In the order of their first captions.
    tokens: Vec<Rows>,
    /// As `tokens`; empty where texts are not pooled.
    pooled: Vec<Rows>,
}

impl Reader {
    /// Opens the index of a folder and holds every shard against it: its digest, once, and the shapes of its tensors.
    ///
    /// # Errors
    /// Where a shard is missing, cut or changed (naming the file, what was found and what is expected), or holds other
    /// tensors than the index says.
    pub fn open(folder: &Path) -> Result<Self, ShardError> {
        let index = Index::read(folder)?;
        let kind = index.made_by.settings.precision.kind();
        let text = index.made_by.text;
        let (mut latents, mut tokens, mut pooled) = (Vec::new(), Vec::new(), Vec::new());
        for shard in &index.shards {
            // `Index::read` has seen that every shard is stored.
            if let Some(stored) = &shard.stored {
                verify(folder, &shard.file, stored)?;
            }
            let path = folder.join(&shard.file);
            let rows = |name: &str, shape: &[i64]| Rows::open(&path, name, shard, shape, kind);
            match shard.content {
                Content::Latents { bucket } => latents.push(rows("latents", &index.latent_shape(bucket))?),
                Content::Texts => {
                    tokens.push(rows("tokens", &[text.tokens, text.width])?);
                    if let Some(width) = text.pooled {
                        pooled.push(rows("pooled", &[width])?);
                    }
                }
            }
        }
        Ok(Self {
            clips_by_bucket: index.clips_by_bucket(),
            index,
            latents,
            tokens,
            pooled,
        })
    }

    /// What is in the shards.
    #[must_use]
    pub const fn index(&self) -> &Index {
        &self.index
    }

    /// Numbers of the clips of each bucket.
    #[must_use]
    pub fn clips_by_bucket(&self) -> &[Range<usize>] {
        &self.clips_by_bucket
    }

    /// Latents of clips of one bucket, by their numbers in the index.
    ///
    /// # Shapes
    /// - output: `[clips, channels, t, h, w]` in the number format of the shards
    ///
    /// # Errors
    /// Where a shard cannot be read, or a clip is of another bucket or none.
    pub fn latents(&self, clips: &[usize]) -> Result<Tensor, ShardError> {
        read_rows(&self.latents, clips)
    }

    /// Embeddings of captions, by their numbers in the index; 0 is the null text.
    ///
    /// # Errors
    /// Where a shard cannot be read or there is no such caption.
    pub fn texts(&self, captions: &[usize]) -> Result<Texts, ShardError> {
        let pooled = (!self.pooled.is_empty()).then(|| read_rows(&self.pooled, captions));
        Ok(Texts {
            tokens: read_rows(&self.tokens, captions)?,
            pooled: pooled.transpose()?,
        })
    }
}

/// Rows of one tensor of a shard.
#[derive(Debug)]
struct Rows {
    path: PathBuf,
    /// Number of the first row among those of all shards.
    first: usize,
    count: usize,
    /// Shape of a row.
    shape: Vec<i64>,
    kind: Kind,
    /// Where the first row begins in the file.
    offset: u64,
}

impl Rows {
    fn open(path: &Path, name: &str, shard: &Shard, shape: &[i64], kind: Kind) -> Result<Self, ShardError> {
        let file = WeightFile::open(path)?;
        let found = file.shape(name)?;
        let expected = [&[shard.count as i64], shape].concat();
        if found != expected {
            return Err(ShardError::content(
                path,
                format!("`{name}` has shape {found:?}, the index says {expected:?}"),
            ));
        }
        let (found, offset) = file.place(name)?;
        if found != kind {
            return Err(ShardError::content(
                path,
                format!("`{name}` is {found:?}, the index says {kind:?}"),
            ));
        }
        Ok(Self {
            path: path.to_owned(),
            first: shard.first,
            count: shard.count,
            shape: shape.to_vec(),
            kind,
            offset,
        })
    }

    fn bytes(&self) -> usize {
        self.shape.iter().product::<i64>() as usize * self.kind.elt_size_in_bytes()
    }

    fn add(&self, row: usize, to: &mut Vec<u8>) -> Result<(), ShardError> {
        let file = File::open(&self.path).map_err(ShardError::file(&self.path))?;
        let (begin, size) = (to.len(), self.bytes());
        to.resize(begin + size, 0);
        let offset = self.offset + ((row - self.first) * size) as u64;
        file.read_exact_at(&mut to[begin..], offset)
            .map_err(ShardError::file(&self.path))
    }
}

fn read_rows(shards: &[Rows], rows: &[usize]) -> Result<Tensor, ShardError> {
    let Some(one) = rows.first().and_then(|&row| shard_of(shards, row)) else {
        return Err(ShardError::content(
            Path::new(super::INDEX),
            format!("rows {rows:?} are in no shard"),
        ));
    };
    let mut bytes = Vec::with_capacity(rows.len() * one.bytes());
    for &row in rows {
        match shard_of(shards, row) {
            Some(shard) if shard.shape == one.shape => shard.add(row, &mut bytes)?,
            _ => {
                let problem = format!("row {row} is in no shard of rows of shape {:?}", one.shape);
                return Err(ShardError::content(&one.path, problem));
            }
        }
    }
    let shape = [&[rows.len() as i64], one.shape.as_slice()].concat();
    let tensor = Tensor::f_from_data_size(&bytes, &shape, one.kind);
    Ok(tensor.map_err(crate::checkpoint::CheckpointError::from)?)
}

fn shard_of(shards: &[Rows], row: usize) -> Option<&Rows> {
    let after = shards.partition_point(|shard| shard.first <= row);
    shards[..after].last().filter(|shard| row < shard.first + shard.count)
}
