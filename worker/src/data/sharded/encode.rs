//! Makes the shards of a plan.

use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use serde::Serialize;
use tch::{Kind, Tensor};

use super::index::{Clip, Content, INDEX, Index, MadeBy, Shard, TextShape};
use super::plan::{Plan, Seen};
use super::settings::{PIXELS_PER_LATENT, Settings};
use super::share::{self, Done, hold_or_wait, make_together};
use super::{Encoders, ShardError, WORK};
use crate::checkpoint::{encode_tensors, write_through};
use crate::data::CHANNELS;
use crate::data::clips::footage;

/// Pixels of the clips that are encoded at once, as bytes of float32; at least one clip.
const BATCH_BYTES: u64 = 16 << 20;
/// Captions that are embedded at once.
const BATCH_CAPTIONS: usize = 32;
/// The key of a shard's metadata that says what it is, as JSON.
const LABEL: &str = "shard";

/// What [`encode`] tells of its work.
#[derive(Debug)]
pub enum News<'a> {
    /// The share of shards that are there.
    Encoded(f64),
    /// The number of a shard that is there, and the index so far.
    Shard(usize, &'a Index),
}

/// Makes the shards of a plan in a folder: what is there already stays, what is missing or damaged is made. The index
/// is written last. `tell` says whether to go on.
///
/// The same bytes come out however often it was interrupted, on the same kind of processor with the same number of
/// threads.
///
/// # Errors
/// Where `out` holds shards of other sources, settings or parts; where a source has changed since it was planned.
pub fn encode(
    plan: &Plan,
    out: &Path,
    encoders: &dyn Encoders,
    tell: &mut dyn FnMut(News<'_>) -> Result<(), ShardError>,
) -> Result<Index, ShardError> {
    let mut so_far = plan.index.clone();
    claim(out, &so_far)?;
    let names: Vec<String> = so_far.shards.iter().map(|shard| shard.file.clone()).collect();
    let mut maker = Maker {
        plan,
        seen: Seen::open(&plan.notes)?,
        encoders,
        digest: plan.digest(),
    };
    make_together(
        out,
        &names,
        &mut |number, within| maker.shard(&plan.index.shards[number], within),
        &mut |done| match done {
            Done::Files(share) => tell(News::Encoded(share)),
            Done::File(number, stored) => {
                so_far.shards[number].stored = Some(stored.clone());
                tell(News::Shard(number, &so_far))
            }
        },
    )?;
    let _lock = hold_or_wait(out, "index", &mut || tell(News::Encoded(1.0)))?;
    let path = out.join(INDEX);
    write_through(&out.join(WORK).join("index.partial"), &path, &so_far.to_bytes()).map_err(ShardError::file(&path))?;
    Ok(so_far)
}

impl MadeBy {
    /// What these encoders make with these settings.
    ///
    /// # Errors
    /// Where a setting is not allowed, or the encoders cannot make clips of such sizes.
    pub fn of(encoders: &dyn Encoders, settings: &Settings) -> Result<Self, ShardError> {
        settings.check()?;
        let buckets = &settings.buckets;
        if let Some(index) = buckets.iter().position(|bucket| !bucket.is_still())
            && !encoders.codes_time()
        {
            return Err(ShardError::Setting {
                field: format!("buckets[{index}].frames"),
                found: buckets[index].frames.to_string(),
                allowed: "1, as the VAE of these parts is one of single pictures".to_owned(),
            });
        }
        if encoders.pixels_per_latent() != i64::from(PIXELS_PER_LATENT) {
            return Err(ShardError::Setting {
                field: "parts".to_owned(),
                found: format!("a VAE of {0}×{0} pixels a latent", encoders.pixels_per_latent()),
                allowed: format!("one of {PIXELS_PER_LATENT}×{PIXELS_PER_LATENT}"),
            });
        }
        Ok(Self {
            parts: encoders.digest(),
            latent_channels: encoders.latent_channels(),
            text: text_shape(encoders),
            settings: settings.clone(),
        })
    }
}

fn text_shape(encoders: &dyn Encoders) -> TextShape {
    let null = encoders.texts(&[""]);
    TextShape {
        tokens: null.tokens.size()[1],
        width: null.tokens.size()[2],
        pooled: null.pooled.map(|pooled| pooled.size()[1]),
    }
}

/// Notes whose shards the folder holds; one that holds others is left alone.
fn claim(out: &Path, plan: &Index) -> Result<(), ShardError> {
    const PLAN: &str = "plan.json";
    let _lock = hold_or_wait(out, PLAN, &mut || Ok(()))?;
    let path = out.join(WORK).join(PLAN);
    let finished = out.join(INDEX);
    for known in [&finished, &path] {
        let Ok(bytes) = std::fs::read(known) else { continue };
        // Half an index tells nothing; it is written anew.
        let Ok(other) = Index::parse(&bytes) else { continue };
        if let Some(difference) = difference(&other, plan) {
            let problem = format!("{difference}; remove the folder, or encode into another");
            return Err(ShardError::content(known, problem));
        }
        for shard in &other.shards {
            if let Some(stored) = &shard.stored {
                share::expect(out, &shard.file, stored)?;
            }
        }
    }
    let partial = path.with_extension("partial");
    write_through(&partial, &path, &plan.to_bytes()).map_err(ShardError::file(&path))
}

/// What of a plan is another than what is there.
fn difference(there: &Index, plan: &Index) -> Option<String> {
    let (old, new) = (&there.made_by, &plan.made_by);
    let other = |name: &str, found: &dyn std::fmt::Display, asked: &dyn std::fmt::Display| {
        Some(format!("`{name}` is {found}, asked for is {asked}"))
    };
    if old.parts != new.parts {
        return other("made_by.parts", &old.parts, &new.parts);
    }
    if old.settings != new.settings {
        let text = |settings: &Settings| serde_json::to_string(settings).unwrap_or_default();
        return other("made_by.settings", &text(&old.settings), &text(&new.settings));
    }
    let files = |index: &Index| -> BTreeMap<String, String> {
        index
            .sources
            .iter()
            .map(|s| (s.file.clone(), s.sha256.clone()))
            .collect()
    };
    let (there_files, files) = (files(there), files(plan));
    let all = there_files.keys().chain(files.keys());
    for file in all {
        let (found, asked) = (there_files.get(file), files.get(file));
        if found != asked {
            let text =
                |digest: Option<&String>| digest.map_or("absent".to_owned(), |digest| format!("SHA-256 {digest}"));
            return other(&format!("sources: {file}"), &text(found), &text(asked));
        }
    }
    if there.decisive() != plan.decisive() {
        return Some("its captions or clips are others than those of the folder".to_owned());
    }
    None
}

/// What a shard says of itself.
#[derive(Serialize)]
struct Label<'a> {
    plan: &'a str,
    file: &'a str,
}

struct Maker<'a> {
    plan: &'a Plan,
    /// Of the sources.
    seen: Seen,
    encoders: &'a dyn Encoders,
    /// Of the plan.
    digest: String,
}

impl Maker<'_> {
    /// The bytes of a shard: the same whenever and by whomever they are made.
    fn shard(
        &mut self,
        shard: &Shard,
        within: &mut dyn FnMut(f64) -> Result<(), ShardError>,
    ) -> Result<Vec<u8>, ShardError> {
        let tensors = match shard.content {
            Content::Texts => self.texts(shard, within)?,
            Content::Latents { bucket } => self.latents(shard, bucket, within)?,
        };
        let label = Label {
            plan: &self.digest,
            file: &shard.file,
        };
        let label = serde_json::to_string(&label).unwrap_or_default();
        Ok(encode_tensors(&tensors, HashMap::from([(LABEL.to_owned(), label)]))?)
    }

    fn texts(
        &self,
        shard: &Shard,
        within: &mut dyn FnMut(f64) -> Result<(), ShardError>,
    ) -> Result<BTreeMap<String, Tensor>, ShardError> {
        let kind = self.plan.settings().precision.kind();
        let captions: Vec<&str> = self.plan.index.captions[shard.first..][..shard.count]
            .iter()
            .map(String::as_str)
            .collect();
        let (mut tokens, mut pooled) = (Vec::new(), Vec::new());
        for (i, some) in captions.chunks(BATCH_CAPTIONS).enumerate() {
            within((i * BATCH_CAPTIONS) as f64 / shard.count as f64)?;
            let texts = tch::no_grad(|| self.encoders.texts(some));
            tokens.push(stored(&texts.tokens, kind));
            pooled.extend(texts.pooled.map(|pooled| stored(&pooled, kind)));
        }
        let mut tensors = BTreeMap::from([("tokens".to_owned(), Tensor::cat(&tokens, 0))]);
        if !pooled.is_empty() {
            tensors.insert("pooled".to_owned(), Tensor::cat(&pooled, 0));
        }
        Ok(tensors)
    }

    fn latents(
        &mut self,
        shard: &Shard,
        bucket: usize,
        within: &mut dyn FnMut(f64) -> Result<(), ShardError>,
    ) -> Result<BTreeMap<String, Tensor>, ShardError> {
        let (plan, encoders, settings) = (self.plan, self.encoders, self.plan.settings());
        let (size, kind) = (settings.buckets[bucket], settings.precision.kind());
        let floats = u64::from(size.frames) * size.area() * CHANNELS as u64;
        let at_once = (BATCH_BYTES / (4 * floats)).max(1) as usize;
        let clips = &plan.index.clips[shard.first..][..shard.count];
        let mut batch = Batch {
            shape: [size.frames.into(), size.height.into(), size.width.into()],
            pixels: Vec::new(),
            frame: 0,
        };
        let mut latents: Vec<Tensor> = Vec::new();
        let mut done = 0;
        for of_file in clips.chunk_by(|a, b| a.source == b.source) {
            let wanted = self.wanted(of_file, bucket);
            // Batches begin where the shard does, whatever file their clips are of.
            let path = self.unchanged(of_file[0].source)?;
            let mut flow = Ok(());
            footage::read(
                &path,
                &plan.footage[of_file[0].source],
                &wanted,
                (size.height, size.width),
                &mut |frame| {
                    if batch.add(frame) && batch.clips() == at_once {
                        done += at_once;
                        latents.push(batch.encode(encoders, kind));
                        flow = within(done as f64 / shard.count as f64);
                    }
                    if flow.is_ok() {
                        ControlFlow::Continue(())
                    } else {
                        ControlFlow::Break(())
                    }
                },
            )?;
            flow?;
        }
        if batch.clips() > 0 {
            latents.push(batch.encode(encoders, kind));
        }
        let latents = Tensor::cat(&latents, 0);
        Ok(BTreeMap::from([("latents".to_owned(), latents)]))
    }

    /// The pictures of clips of one file, which follow each other in time.
    fn wanted(&self, clips: &[Clip], bucket: usize) -> Vec<usize> {
        let size = self.plan.settings().buckets[bucket];
        if size.is_still() {
            return vec![0];
        }
        let frames = u64::from(size.frames);
        self.plan.footage[clips[0].source].wanted(clips[0].start_frame, frames * clips.len() as u64, size.frame_rate_hz)
    }

    fn unchanged(&mut self, source: usize) -> Result<PathBuf, ShardError> {
        let source = &self.plan.index.sources[source];
        let path = self.plan.folder.join(&source.file);
        let found = self.seen.look(&self.plan.folder, &source.file)?.source;
        if found == *source {
            return Ok(path);
        }
        let problem = format!(
            "has changed while it was encoded: found {} bytes with SHA-256 {}, planned was {} with {}",
            found.bytes, found.sha256, source.bytes, source.sha256
        );
        Err(ShardError::content(&path, problem))
    }
}

/// Frames that wait for their encoding.
struct Batch {
    /// Frames, height and width of a clip.
    shape: [i64; 3],
    pixels: Vec<u8>,
    /// Frames of the clip at hand.
    frame: i64,
}

impl Batch {
    /// Adds a frame; whether it ends a clip.
    fn add(&mut self, frame: &[u8]) -> bool {
        self.pixels.extend_from_slice(frame);
        self.frame = (self.frame + 1) % self.shape[0];
        self.frame == 0
    }

    fn clips(&self) -> usize {
        self.pixels.len() / (self.shape.iter().product::<i64>() as usize * CHANNELS)
    }

    /// Encodes and empties it.
    fn encode(&mut self, encoders: &dyn Encoders, kind: Kind) -> Tensor {
        let [frames, height, width] = self.shape;
        let bytes =
            Tensor::from_slice(&self.pixels).reshape([self.clips() as i64, frames, height, width, CHANNELS as i64]);
        self.pixels.clear();
        let pixels = bytes.permute([0, 4, 1, 2, 3]).to_kind(Kind::Float) / 127.5 - 1.0; // [b, 3, t, H, W]
        stored(&tch::no_grad(|| encoders.latents(&pixels)), kind)
    }
}

fn stored(tensor: &Tensor, kind: Kind) -> Tensor {
    tensor.to_device(tch::Device::Cpu).to_kind(kind)
}
