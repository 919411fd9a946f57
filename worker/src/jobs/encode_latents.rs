//! Encodes a folder of captioned clips and pictures to latents and text embeddings in shards.
//!
//! The checkpoint names the plan and the shards so far. Each shard is an artifact that is uploaded as soon as it is
//! made, so that an attempt on another worker goes on behind the last; one on the same worker finds the shards in its
//! cache.

use std::collections::BTreeMap;
use std::path::Path;

use job_client::files::is_plain;
use protocol::ArtifactDigest;
use protocol::artifacts::{ArtifactRef, ArtifactRole};
use protocol::jobs::{DeviceSeconds, EncodeLatentsInput, EncodeLatentsOutcome, JobResult, Outcome, SkippedFile};
use serde::{Deserialize, Serialize};

use super::{JobContext, JobError};
use crate::assets::{Assets, digest_of};
use crate::data::sharded::{Bucket, Content, INDEX, Index, News, Plan, Settings, Shard, ShardError, Stored, encode};

/// Share of the job at which encoding begins.
const LOOKED: f64 = 0.1;
/// Files that a result names of those that were skipped; the index names all.
const SKIPPED_SHOWN: usize = 100;

pub(super) fn run(context: &JobContext, input: &EncodeLatentsInput) -> Result<JobResult, JobError> {
    tch::set_num_threads(context.settings.threads as i32);
    if !is_plain(&input.dataset) {
        return Err(JobError::Input(format!(
            "`dataset` is {:?}; allowed: a plain name",
            input.dataset
        )));
    }
    let folder = context.settings.data.join(&input.dataset);
    if !folder.is_dir() {
        // Another worker may have it.
        return Err(JobError::Attempt(format!(
            "this worker has no folder {}",
            folder.display()
        )));
    }
    let settings = Settings {
        shard_bytes: input.shard_bytes,
        seed: input.seed,
        ..Settings::of(input.buckets.iter().map(bucket).collect())
    };
    settings.check().map_err(|error| JobError::Input(error.to_string()))?;

    context.progress(0.0, "reading trained parts")?;
    let root = context.assets(&input.parts, &input.base)?;
    let parts = Assets::open(&root, &input.parts, context.settings.device).map_err(JobError::attempt)?;

    let cache = context.settings.cache.join("latents");
    // What is known of the files depends on nothing but the folder; the shards, on the whole plan. A folder that has
    // changed since an earlier job gives others, which lie elsewhere.
    let notes = cache.join(&digest_of(&input.dataset)[..16]);
    let tell = |share, doing| {
        context.spent(spent(context));
        going_on(context.progress(share, doing))
    };
    let look = &mut |share| tell(LOOKED * share, "looking through files");
    let plan = Plan::of(&folder, &notes, &parts, &settings, look).map_err(ended)?;
    let (planned, digest) = (plan.index(), plan.digest());
    context.log(&format!(
        "{} clips in {} shards; {} files skipped",
        planned.clips.len(),
        planned.shards.len(),
        planned.skipped.len()
    ));
    let out = cache.join(&digest[..16]);
    let earlier = earlier(context).filter(|earlier| earlier.plan == digest);
    let mut so_far = earlier.unwrap_or(SoFar {
        plan: digest,
        stored: BTreeMap::new(),
    });
    take_over(context, &out, planned, &so_far).map_err(ended)?;

    let mut kept = BTreeMap::new();
    let index = encode(&plan, &out, &parts, &mut |news| match news {
        News::Encoded(share) => tell(LOOKED + (1.0 - LOOKED) * share, "encoding"),
        News::Shard(number, index) => {
            let shard = &index.shards[number];
            let artifact = keep(context, &out, shard)?;
            context.send_ahead(&artifact);
            kept.insert(number, artifact);
            context.log(&format!("{} is there", shard.file));
            let stored = shard.stored.clone().map(|stored| (shard.file.clone(), stored));
            so_far.stored.extend(stored);
            let bytes = serde_json::to_vec(&so_far).map_err(|error| failed(&out, error))?;
            context.save(&bytes).map_err(|error| failed(&out, error))
        }
    });
    let index = index.map_err(ended)?;
    let as_file = context.keep(ArtifactRole::Latents, INDEX, "application/json", &index.to_bytes())?;
    Ok(JobResult {
        device_seconds: spent(context),
        artifacts: std::iter::once(as_file).chain(kept.into_values()).collect(),
        outcome: Outcome::EncodeLatents(outcome(&index)),
    })
}

fn bucket(asked: &protocol::jobs::Bucket) -> Bucket {
    let protocol::jobs::Bucket {
        frames,
        height,
        width,
        frame_rate_hz,
        keep,
    } = *asked;
    Bucket {
        frames,
        height,
        width,
        frame_rate_hz,
        keep,
    }
}

fn spent(context: &JobContext) -> DeviceSeconds {
    DeviceSeconds {
        train: context.elapsed_seconds(),
        ..DeviceSeconds::default()
    }
}

fn ended(error: ShardError) -> JobError {
    match error {
        ShardError::Interrupted => JobError::Interrupted,
        error @ (ShardError::Setting { .. } | ShardError::NothingLeft { .. }) => JobError::Input(error.to_string()),
        error => JobError::attempt(error),
    }
}

fn going_on(progress: Result<(), JobError>) -> Result<(), ShardError> {
    progress.map_err(|_| ShardError::Interrupted)
}

fn failed(path: &Path, problem: impl std::fmt::Display) -> ShardError {
    ShardError::Content {
        path: path.to_owned(),
        problem: problem.to_string(),
    }
}

/// What a checkpoint says: clips and captions follow from the folder.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SoFar {
    /// Digest of the plan.
    plan: String,
    /// The shards that are uploaded, by name.
    stored: BTreeMap<String, Stored>,
}

/// How far an earlier attempt came; what cannot be read is worth as much as none.
fn earlier(context: &JobContext) -> Option<SoFar> {
    let bytes = context.try_fetch(context.checkpoint.as_ref()?);
    let read = bytes
        .map_err(|error| error.to_string())
        .and_then(|bytes| serde_json::from_slice(&bytes).map_err(|error| error.to_string()));
    read.inspect_err(|problem| context.log(&format!("the checkpoint cannot be used: {problem}")))
        .ok()
}

/// Lays out the shards that an earlier attempt at the same plan has uploaded.
fn take_over(context: &JobContext, out: &Path, plan: &Index, earlier: &SoFar) -> Result<(), ShardError> {
    for shard in &plan.shards {
        going_on(context.progress(LOOKED, "fetching shards"))?;
        if let Some(stored) = earlier.stored.get(&shard.file) {
            let artifact = artifact(shard, stored).map_err(|problem| failed(out, problem))?;
            crate::data::sharded::take_over(out, &shard.file, stored, &mut || context.try_fetch(&artifact).ok())?;
        }
    }
    Ok(())
}

fn keep(context: &JobContext, out: &Path, shard: &Shard) -> Result<ArtifactRef, ShardError> {
    let path = out.join(&shard.file);
    let bytes = std::fs::read(&path).map_err(|error| failed(&path, error))?;
    let kept = context.keep(ArtifactRole::Latents, &shard.file, "application/octet-stream", &bytes);
    kept.map_err(|error| failed(&path, error))
}

fn artifact(shard: &Shard, stored: &Stored) -> Result<ArtifactRef, String> {
    let digest: Result<ArtifactDigest, _> = stored.sha256.parse();
    Ok(ArtifactRef {
        role: ArtifactRole::Latents,
        digest: digest.map_err(|error| format!("{error}"))?,
        name: shard.file.clone(),
        media_type: "application/octet-stream".to_owned(),
        bytes: stored.bytes,
    })
}

fn outcome(index: &Index) -> EncodeLatentsOutcome {
    let buckets = &index.made_by.settings.buckets;
    let is_still = |bucket: usize| buckets.get(bucket).is_some_and(Bucket::is_still);
    let images = index.clips.iter().filter(|clip| is_still(clip.bucket)).count() as u64;
    let bytes = |of_texts: bool| -> u64 {
        let of = index
            .shards
            .iter()
            .filter(|shard| (shard.content == Content::Texts) == of_texts);
        of.filter_map(|shard| Some(shard.stored.as_ref()?.bytes)).sum()
    };
    let shown = index.skipped.iter().take(SKIPPED_SHOWN);
    EncodeLatentsOutcome {
        clips: index.clips.len() as u64 - images,
        images,
        shards: index.shards.len() as u32,
        latent_bytes: bytes(false),
        text_bytes: bytes(true),
        skipped: index.skipped.len() as u64,
        skipped_files: shown
            .map(|skipped| SkippedFile {
                file: skipped.file.clone(),
                reason: skipped.reason.clone(),
            })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::clips::tests::{gif, levels};

    fn input() -> EncodeLatentsInput {
        EncodeLatentsInput {
            dataset: "greys".to_owned(),
            parts: "shapes".to_owned(),
            base: Vec::new(),
            buckets: vec![protocol::jobs::Bucket {
                frames: 17,
                height: 64,
                width: 64,
                frame_rate_hz: 25.0,
                keep: 1.0,
            }],
            // Two clips of 4 × 5 × 8 × 8 numbers.
            shard_bytes: 2 * 1280 * 2,
            seed: 1,
        }
    }

    fn context(tokio: &tokio::runtime::Runtime, cache: &Path) -> JobContext {
        let mut context = JobContext::alone(tokio, cache);
        context.settings.assets = concat!(env!("CARGO_MANIFEST_DIR"), "/../assets").into();
        context.settings.data = cache.join("footage");
        let folder = context.settings.data.join("greys");
        std::fs::create_dir_all(&folder).unwrap();
        gif(&folder.join("a.gif"), &levels(17 * 5, 64, 64), &[40]);
        gif(&folder.join("short.gif"), &levels(3, 64, 64), &[40]);
        let line = |file| format!("{{\"file\": \"{file}\", \"caption\": \"a grey\"}}\n");
        std::fs::write(folder.join("captions.jsonl"), line("a.gif") + &line("short.gif")).unwrap();
        context
    }

    #[test]
    fn an_attempt_on_another_worker_goes_on_behind_the_last_uploaded_shard() {
        let tokio = tokio::runtime::Runtime::new().unwrap();
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let first = context(&tokio, one.path());
        let result = run(&first, &input()).unwrap();
        let Outcome::EncodeLatents(found) = &result.outcome else {
            panic!("an encode_latents job")
        };
        assert_eq!((found.clips, found.images, found.shards, found.skipped), (5, 0, 4, 1));
        assert!(
            found.skipped_files[0].reason.contains("too short"),
            "{:?}",
            found.skipped_files
        );
        let names: Vec<&str> = result.artifacts.iter().map(|artifact| artifact.name.as_str()).collect();
        assert_eq!(names[..2], [INDEX, "texts-00000.safetensors"]);
        assert_eq!(names[4], "latents-00-00002.safetensors");

        // The other worker has the checkpoint, and of the shards only the second, as if others had been lost.
        let mut second = context(&tokio, other.path());
        let checkpoint = first.pulse.saved().unwrap();
        let carry = |artifact: &ArtifactRef| {
            let bytes = first.fetch(artifact).unwrap();
            second
                .keep(artifact.role, &artifact.name, &artifact.media_type, &bytes)
                .unwrap();
        };
        carry(&checkpoint);
        carry(&result.artifacts[2]);
        second.checkpoint = Some(checkpoint);
        let again = run(&second, &input()).unwrap();
        assert_eq!(again.artifacts, result.artifacts, "the same bytes");
        assert_eq!(again.outcome, result.outcome);
    }

    #[test]
    fn a_folder_that_has_grown_is_encoded_anew() {
        let (tokio, cache) = (tokio::runtime::Runtime::new().unwrap(), tempfile::tempdir().unwrap());
        let context = context(&tokio, cache.path());
        let clips = || match run(&context, &input()).unwrap().outcome {
            Outcome::EncodeLatents(found) => found.clips,
            other => panic!("{other:?}"),
        };
        assert_eq!(clips(), 5);
        let folder = context.settings.data.join("greys");
        gif(&folder.join("b.gif"), &levels(17, 64, 64), &[40]);
        let list = std::fs::read_to_string(folder.join("captions.jsonl")).unwrap();
        let grown = list.clone() + "{\"file\": \"b.gif\", \"caption\": \"a grey\"}\n";
        std::fs::write(folder.join("captions.jsonl"), grown).unwrap();
        assert_eq!(clips(), 6);
        std::fs::write(folder.join("captions.jsonl"), list).unwrap();
        assert_eq!(clips(), 5, "what was made before is there still");
    }

    #[test]
    fn what_no_worker_can_do_is_told_from_what_this_one_lacks() {
        let (tokio, folder) = (tokio::runtime::Runtime::new().unwrap(), tempfile::tempdir().unwrap());
        let context = context(&tokio, folder.path());
        let error = |change: &dyn Fn(&mut EncodeLatentsInput)| {
            let mut input = input();
            change(&mut input);
            run(&context, &input).unwrap_err()
        };
        let outside = error(&|input| input.dataset = "../greys".to_owned());
        assert!(!outside.is_worth_another_attempt(), "{outside}");
        let wrong = error(&|input| input.buckets[0].height = 60);
        assert!(
            wrong
                .to_string()
                .contains("`buckets[0].height` is 60; allowed: multiples of 8"),
            "{wrong}"
        );
        assert!(!wrong.is_worth_another_attempt());
        assert!(error(&|input| input.dataset = "elsewhere".to_owned()).is_worth_another_attempt());
        let nothing = error(&|input| input.buckets[0].frames = 200);
        assert!(
            nothing.to_string().contains("a.gif: too short: 85 frames at 25 Hz"),
            "{nothing}"
        );
    }
}
