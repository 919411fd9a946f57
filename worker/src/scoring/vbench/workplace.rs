//! The folders in which one scoring keeps its videos and results, so that whoever comes next goes on there.

use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use tch::Tensor;

use super::prompts::{self, video_name};
use super::{Plan, VBenchError, videos};
use crate::checkpoint::write_atomically;
use crate::scoring::{Place, SHOWN, Sampling, ScoringError, SoFar};

/// Share of the work that is sampling.
pub(super) const SAMPLING: f64 = 0.8;
/// Sides of the clips that are shown, in pixels, and their frames.
const SHOWN_SIDE: i64 = 160;
const SHOWN_FRAMES: i64 = 51;
/// How long the videos of a scoring wait to be gone on with: longer than any takes.
pub(super) const KEPT: Duration = Duration::from_secs(30 * 24 * 3600);
/// The list of prompts in a scoring's folder, written anew whenever it goes on.
pub(super) const FULL_INFO: &str = "full_info.json";

/// The folders of one scoring.
#[derive(Debug)]
pub(super) struct Workplace {
    root: PathBuf,
    pub(super) videos: PathBuf,
    partial: PathBuf,
    pub(super) results: PathBuf,
    pub(super) full_info: PathBuf,
}

impl Workplace {
    /// Where `key` names all that the videos and the results depend on; what nobody came back to for a month goes.
    ///
    /// # Errors
    /// Where the folders cannot be made, or the disk cannot tell the videos' names apart.
    pub(super) fn open(folder: &Path, key: &str, plan: &Plan) -> Result<Self, VBenchError> {
        remove_forgotten(folder, SystemTime::now());
        let root = folder.join(key);
        let place = Self {
            videos: root.join("videos"),
            partial: root.join("partial"),
            results: root.join("results"),
            full_info: root.join(FULL_INFO),
            root,
        };
        let broken = |error: std::io::Error| VBenchError::File {
            path: place.root.clone(),
            problem: error.to_string(),
        };
        for folder in [&place.videos, &place.partial, &place.results] {
            fs::create_dir_all(folder).map_err(broken)?;
        }
        if let Some((one, other)) = prompts::alike(&plan.selection.prompts)
            && videos::ignores_case(&place.partial).map_err(broken)?
        {
            return Err(VBenchError::File {
                path: place.videos.clone(),
                problem: format!(
                    "the disk takes no notice of case, and the prompts `{one}` and `{other}` differ in nothing else; \
                     use another disk"
                ),
            });
        }
        let list = serde_json::to_vec(&plan.selection.entries).unwrap_or_default();
        write_atomically(&place.full_info, &list).map_err(broken)?;
        Ok(place)
    }

    /// Writes the videos that are not there.
    pub(super) fn sample(
        &self,
        plan: &Plan,
        sampling: &Sampling<'_>,
        so_far: &mut SoFar,
        progress: &mut dyn FnMut(&SoFar) -> ControlFlow<()>,
    ) -> Result<(), ScoringError> {
        let program = videos::ffmpeg();
        let captions: Vec<&str> = plan.selection.prompts.iter().map(String::as_str).collect();
        let names: BTreeMap<(usize, usize), &String> = plan
            .expected
            .iter()
            .map(|(name, place)| ((place.prompt, place.video), name))
            .collect();
        let name = |place: Place| names[&(place.prompt, place.video)];
        let there = |place: Place| videos::missing(&self.videos, [name(place)]).is_empty();
        sampling.run(&captions, plan.videos, &there, &mut |batch| {
            let started = Instant::now();
            for (i, place) in batch.places.iter().enumerate() {
                let path = self.videos.join(name(*place));
                videos::write(
                    &program,
                    &batch.clips.get(i as i64),
                    sampling.size.frame_rate,
                    &self.partial,
                    &path,
                )?;
            }
            so_far.sample_seconds += batch.sample_seconds;
            so_far.score_seconds += batch.decode_seconds + started.elapsed().as_secs_f64();
            so_far.share = SAMPLING * batch.share;
            match progress(so_far) {
                ControlFlow::Continue(()) => Ok(()),
                ControlFlow::Break(()) => Err(ScoringError::Interrupted),
            }
        })
    }

    /// The first videos of the first prompts, small.
    pub(super) fn shown(&self, plan: &Plan, sampling: &Sampling<'_>) -> Result<Tensor, VBenchError> {
        let (program, size) = (videos::ffmpeg(), videos::small(&sampling.size, SHOWN_SIDE));
        let clips = plan.selection.prompts.iter().take(SHOWN).map(|prompt| {
            let path = self.videos.join(video_name(prompt, 0)?);
            videos::read(&program, &path, size, SHOWN_FRAMES)
        });
        Ok(Tensor::stack(&clips.collect::<Result<Vec<_>, _>>()?, 0))
    }

    /// Videos that were scored are of no more use.
    pub(super) fn remove(&self) {
        remove(&self.root);
    }
}

/// Removes the folders of scorings that nobody came back to: of jobs that failed for good, or went on elsewhere.
fn remove_forgotten(folder: &Path, now: SystemTime) {
    let scorings = fs::read_dir(folder).into_iter().flatten().flatten();
    for scoring in scorings.map(|entry| entry.path()) {
        let begun = fs::metadata(scoring.join(FULL_INFO)).and_then(|list| list.modified());
        if begun.is_ok_and(|begun| now.duration_since(begun).is_ok_and(|age| age > KEPT)) {
            remove(&scoring);
        }
    }
}

/// Should a folder stay, that harms nothing.
fn remove(folder: &Path) {
    if let Err(error) = fs::remove_dir_all(folder) {
        tracing::warn!("{} cannot be removed: {error}", folder.display());
    }
}
