//! The index beside the shards.

use std::collections::BTreeSet;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{Settings, ShardError};
use crate::assets::digest_of;

/// The name of the file.
pub const INDEX: &str = "index.json";
const FORMAT: &str = "temponas-latents";
const VERSION: u32 = 1;

/// What made the shards, and what is in them. A plan is an index whose shards are not stored yet.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Index {
    format: String,
    version: u32,
    /// What made it.
    pub made_by: MadeBy,
    /// The files that clips come from, in the order of their names.
    pub sources: Vec<Source>,
    /// Distinct captions; the first is the null text. A caption's number is its row of the texts.
    pub captions: Vec<String>,
    /// All clips, by bucket, then source, then time.
    pub clips: Vec<Clip>,
    /// Those of texts cover the captions in order, those of latents the clips.
    pub shards: Vec<Shard>,
    /// What of the folder is not in it.
    pub skipped: Vec<Skipped>,
}

/// What decides about the bytes of the shards, besides the sources.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MadeBy {
    /// Digest of VAE and text encoder.
    pub parts: String,
    /// Channels of latents.
    pub latent_channels: i64,
    /// Shape of a caption's embedding.
    pub text: TextShape,
    /// What was asked for.
    pub settings: Settings,
}

/// Shape of a caption's embedding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextShape {
    /// Tokens.
    pub tokens: i64,
    /// Numbers of a token.
    pub width: i64,
    /// Numbers of the pooled embedding, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pooled: Option<i64>,
}

impl TextShape {
    /// Numbers of a caption.
    #[must_use]
    pub fn numbers(&self) -> i64 {
        self.tokens * self.width + self.pooled.unwrap_or(0)
    }
}

/// A file that clips come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// Relative to the folder.
    pub file: String,
    /// Its size, or that of all files of a folder of frames.
    pub bytes: u64,
    /// Digest of its bytes, or of all files of a folder of frames.
    pub sha256: String,
}

/// A clip or picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Clip {
    /// Number of its source.
    pub source: usize,
    /// Number of its caption.
    pub caption: usize,
    /// Number of its bucket.
    pub bucket: usize,
    /// Its first frame within the source, at the bucket's frame rate.
    pub start_frame: u64,
}

/// A file of the index.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shard {
    /// Its name.
    pub file: String,
    /// What it holds.
    pub content: Content,
    /// Its first clip or caption.
    pub first: usize,
    /// Number of clips or captions.
    pub count: usize,
    /// Size and digest, once it is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stored: Option<Stored>,
}

/// What a shard holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Content {
    /// Embeddings of captions.
    Texts,
    /// Latents of clips of one bucket.
    Latents {
        /// Its number.
        bucket: usize,
    },
}

/// Size and digest of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stored {
    /// Its size.
    pub bytes: u64,
    /// Its digest, in hexadecimal.
    pub sha256: String,
}

impl std::fmt::Display for Stored {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes with SHA-256 {}", self.bytes, self.sha256)
    }
}

/// A file, or line of the list, that is not in the index.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Skipped {
    /// Relative to the folder; with the line's number for the list.
    pub file: String,
    /// Why.
    pub reason: String,
}

impl Index {
    pub(super) fn new(made_by: MadeBy) -> Self {
        Self {
            format: FORMAT.to_owned(),
            version: VERSION,
            made_by,
            sources: Vec::new(),
            captions: Vec::new(),
            clips: Vec::new(),
            shards: Vec::new(),
            skipped: Vec::new(),
        }
    }

    /// Reads the index of a folder, whose shards are all there.
    ///
    /// # Errors
    /// Where it is missing, or a field is wrong: its name, what was found and what is allowed.
    pub fn read(folder: &Path) -> Result<Self, ShardError> {
        let path = folder.join(INDEX);
        let bytes = std::fs::read(&path).map_err(ShardError::file(&path))?;
        let index = Self::parse(&bytes).map_err(|problem| ShardError::content(&path, problem))?;
        match index.shards.iter().position(|shard| shard.stored.is_none()) {
            None => Ok(index),
            Some(i) => {
                let problem = format!("`shards[{i}].stored` is missing: encoding has not ended");
                Err(ShardError::content(&path, problem))
            }
        }
    }

    /// Reads a whole or partial index.
    ///
    /// # Errors
    /// Names the first field that is wrong, what was found and what is allowed.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let mut deserializer = serde_json::Deserializer::from_slice(bytes);
        let index: Self = serde_path_to_error::deserialize(&mut deserializer)
            .map_err(|error| format!("`{}`: {}", error.path(), error.inner()))?;
        index.check()?;
        Ok(index)
    }

    /// The bytes of the file: equal indices, equal bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        // Plain structs with string keys always have a JSON form.
        let mut bytes = serde_json::to_vec(self).unwrap_or_default();
        bytes.push(b'\n');
        bytes
    }

    /// Names the plan: the same for an index at every stage of its making.
    #[must_use]
    pub fn plan_digest(&self) -> String {
        digest_of(&self.decisive())
    }

    /// What decides about the bytes of the shards: not whether they are stored, nor in which words another version of
    /// ffmpeg says why it left a file out.
    #[must_use]
    pub(super) fn decisive(&self) -> Self {
        let mut plan = self.clone();
        for shard in &mut plan.shards {
            shard.stored = None;
        }
        plan.skipped.clear();
        plan
    }

    /// Clips of each bucket: those of a bucket follow each other.
    #[must_use]
    pub fn clips_by_bucket(&self) -> Vec<std::ops::Range<usize>> {
        let mut first = 0;
        (0..self.made_by.settings.buckets.len())
            .map(|bucket| {
                let count = self.clips[first..]
                    .iter()
                    .take_while(|clip| clip.bucket == bucket)
                    .count();
                first += count;
                first - count..first
            })
            .collect()
    }

    /// Shape of one clip's latents of a bucket.
    #[must_use]
    pub fn latent_shape(&self, bucket: usize) -> [i64; 4] {
        self.made_by.settings.buckets[bucket].latent_shape(self.made_by.latent_channels)
    }

    /// Sum of the shards' sizes, as far as they are stored.
    #[must_use]
    pub fn stored_bytes(&self) -> u64 {
        self.shards
            .iter()
            .filter_map(|shard| Some(shard.stored.as_ref()?.bytes))
            .sum()
    }

    fn check(&self) -> Result<(), String> {
        let expect = |field: String, found: &dyn std::fmt::Display, allowed: &str, holds: bool| {
            if holds {
                Ok(())
            } else {
                Err(format!("`{field}` is {found}; allowed: {allowed}"))
            }
        };
        expect("format".to_owned(), &self.format, FORMAT, self.format == FORMAT)?;
        expect(
            "version".to_owned(),
            &self.version,
            &VERSION.to_string(),
            self.version == VERSION,
        )?;
        let made_by = &self.made_by;
        made_by
            .settings
            .check()
            .map_err(|error| format!("`made_by.settings`: {error}"))?;
        let TextShape { tokens, width, pooled } = made_by.text;
        for (name, found) in [
            ("latent_channels", made_by.latent_channels),
            ("text.tokens", tokens),
            ("text.width", width),
            ("text.pooled", pooled.unwrap_or(1)),
        ] {
            let sensible = (1..=1 << 16).contains(&found);
            expect(format!("made_by.{name}"), &found, "1 to 65536", sensible)?;
        }
        let null_first = self.captions.first().is_some_and(String::is_empty);
        let first = self.captions.first().map_or("missing", String::as_str);
        expect("captions[0]".to_owned(), &first, "the empty caption", null_first)?;
        let buckets = made_by.settings.buckets.len();
        let mut before = 0;
        for (i, clip) in self.clips.iter().enumerate() {
            let field = |name: &str| format!("clips[{i}].{name}");
            let below = |count: usize| format!("below {count}");
            let (sources, captions) = (self.sources.len(), self.captions.len());
            expect(field("source"), &clip.source, &below(sources), clip.source < sources)?;
            expect(
                field("caption"),
                &clip.caption,
                &below(captions),
                clip.caption < captions,
            )?;
            let ordered = (before..buckets).contains(&clip.bucket);
            expect(
                field("bucket"),
                &clip.bucket,
                &format!("{before} to {}", buckets - 1),
                ordered,
            )?;
            before = clip.bucket;
        }
        self.check_shards()
    }

    /// Texts cover the captions and latents the clips, without a gap.
    fn check_shards(&self) -> Result<(), String> {
        let (mut texts, mut latents) = (0, 0);
        let mut names = BTreeSet::new();
        for (i, shard) in self.shards.iter().enumerate() {
            let wrong = |name: &str, found: &dyn std::fmt::Display, allowed: &str| {
                Err(format!("`shards[{i}].{name}` is {found}; allowed: {allowed}"))
            };
            let plain = Path::new(&shard.file)
                .file_name()
                .is_some_and(|name| name == shard.file.as_str());
            if !plain || shard.file.starts_with('.') || !names.insert(&shard.file) {
                return wrong("file", &shard.file, "a plain file name that no other shard has");
            }
            let (next, all) = match shard.content {
                Content::Texts => (&mut texts, self.captions.len()),
                Content::Latents { .. } => (&mut latents, self.clips.len()),
            };
            if shard.first != *next {
                return wrong(
                    "first",
                    &shard.first,
                    &format!("{next}, where the shard before it ends"),
                );
            }
            if shard.count == 0 || shard.count > all - shard.first {
                return wrong("count", &shard.count, &format!("1 to {}", all - shard.first));
            }
            *next += shard.count;
            if let Content::Latents { bucket } = shard.content {
                let clips = &self.clips[shard.first..][..shard.count];
                if let Some(clip) = clips.iter().find(|clip| clip.bucket != bucket) {
                    let allowed = format!("{}, that of its clips", clip.bucket);
                    return wrong("content.latents.bucket", &bucket, &allowed);
                }
            }
            if let Some(Stored { sha256, .. }) = &shard.stored
                && !(sha256.len() == 64 && sha256.bytes().all(|c| c.is_ascii_hexdigit()))
            {
                return wrong("stored.sha256", sha256, "64 hexadecimal digits");
            }
        }
        let ends = [
            ("captions", texts, self.captions.len()),
            ("clips", latents, self.clips.len()),
        ];
        match ends.into_iter().find(|(_, covered, all)| covered != all) {
            None => Ok(()),
            Some((name, covered, all)) => Err(format!("`shards` cover {covered} of {all} {name}; allowed: all")),
        }
    }
}
