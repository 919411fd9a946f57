//! What a deployment came to, as one HTML page that needs nothing beside it: no scripts, nothing from elsewhere.
//!
//! A pure function of what was found. The paper's figures stand beside ours, marked by their scale: they are of another
//! device, another model and other scores.

mod markup;
mod paper;
mod quality;
mod stack;
mod tables;
mod text;

use base64::{Engine, prelude::BASE64_STANDARD};
use chrono::{DateTime, Utc};
use protocol::{
    deployments::{DeployStep, DeploymentState},
    jobs::{CompressDecoderOutcome, DistillOutcome, ExportOutcome, JobState, ProfileModelOutcome, TrainFinalOutcome},
};

use markup::Page;
use text::{Unit, milliseconds, number};

/// Everything that a page shows.
#[derive(Debug, Clone)]
pub struct Report {
    /// What the search is called.
    pub name: String,
    /// The architecture in printed form.
    pub architecture: String,
    /// The candidate.
    pub candidate: String,
    /// Where the deployment stands.
    pub state: DeploymentState,
    /// Why, for people.
    pub state_reason: Option<String>,
    /// Its steps with their state and the seconds that they held their devices.
    pub steps: Vec<(DeployStep, Option<JobState>, f64)>,
    /// Where it was measured.
    pub device: Option<Device>,
    /// What the steps found.
    pub training: Option<TrainFinalOutcome>,
    /// See `training`.
    pub distillation: Option<DistillOutcome>,
    /// See `training`.
    pub decoder: Option<CompressDecoderOutcome>,
    /// See `training`.
    pub export: Option<ExportOutcome>,
    /// See `training`.
    pub profile: Option<ProfileModelOutcome>,
    /// Clips before distillation.
    pub before: Vec<Clip>,
    /// Clips after it.
    pub after: Vec<Clip>,
    /// When the page was made.
    pub made_at: DateTime<Utc>,
}

/// A device.
#[derive(Debug, Clone)]
pub struct Device {
    /// Its name.
    pub name: String,
    /// What it is.
    pub description: String,
    /// Its memory, in bytes.
    pub memory_bytes: Option<u64>,
}

/// An animation that is part of the page.
#[derive(Debug, Clone)]
pub struct Clip {
    /// What it is called.
    pub name: String,
    /// What its bytes are.
    pub kind: ClipKind,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// Animations that every browser plays as pictures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClipKind {
    /// GIF.
    Gif,
    /// WebP.
    Webp,
    /// PNG, which may be animated.
    Png,
}

impl ClipKind {
    /// The kind of a media type, if a page may hold it.
    #[must_use]
    pub fn of(media_type: &str) -> Option<Self> {
        match media_type {
            "image/gif" => Some(Self::Gif),
            "image/webp" => Some(Self::Webp),
            "image/png" => Some(Self::Png),
            _ => None,
        }
    }

    const fn media_type(self) -> &'static str {
        match self {
            Self::Gif => "image/gif",
            Self::Webp => "image/webp",
            Self::Png => "image/png",
        }
    }
}

/// The page.
#[must_use]
pub fn page(report: &Report) -> String {
    let mut page = Page::default();
    page.raw("<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">\n<meta name=\"referrer\" content=\"no-referrer\">\n<title>");
    page.text(&report.name).raw(" on a device</title>\n<style>\n");
    page.raw(include_str!("style.css"))
        .raw("</style></head>\n<body><main>\n");
    header(&mut page, report);
    if let Some(profile) = &report.profile {
        stack::section(&mut page, report, profile);
    }
    clips(&mut page, report);
    if let Some(found) = &report.distillation {
        quality::section(&mut page, found);
        tables::steps(&mut page, found);
    }
    if let Some(found) = &report.decoder {
        tables::decoder(&mut page, found);
    }
    if let Some(found) = &report.profile {
        tables::device(&mut page, report, found);
    }
    if let Some(found) = &report.export {
        tables::graphs(&mut page, found);
    }
    footer(&mut page, report);
    page.raw("</main></body></html>\n");
    page.finish()
}

fn header(page: &mut Page, report: &Report) {
    page.raw("<header><p class=\"over\">From a point of the front to the device</p>\n<h1>");
    page.text(&report.name).raw("</h1>\n<p>Architecture <code>");
    page.text(&report.architecture).raw("</code>");
    if let Some(device) = &report.device {
        page.raw(" on <strong>").text(&device.name).raw("</strong>");
        if !device.description.is_empty() {
            page.raw(" <span class=\"soft\">(")
                .text(&device.description)
                .raw(")</span>");
        }
    }
    page.raw("</p>\n");
    if report.state != DeploymentState::Done {
        page.raw("<p>The deployment is <strong>")
            .text(report.state.as_str())
            .raw("</strong>");
        if let Some(reason) = &report.state_reason {
            page.raw(": ").text(reason);
        }
        page.raw(". What follows is what is known so far.</p>\n");
    }
    page.raw("<ul class=\"steps\">");
    for (step, state, seconds) in &report.steps {
        let (class, mark) = match state {
            Some(JobState::Succeeded) => ("done", "✓ "),
            Some(JobState::Failed | JobState::Cancelled) => ("bad", "✕ "),
            Some(JobState::Queued | JobState::Leased) => ("open", "… "),
            None => ("none", ""),
        };
        page.raw("<li class=\"")
            .text(class)
            .raw("\">")
            .text(mark)
            .text(&step.as_str().replace('_', " "));
        if *seconds > 0.0 {
            page.raw(" · ").text(&text::duration(*seconds));
        }
        page.raw("</li>");
    }
    page.raw("</ul>\n");
    tiles(page, report);
    page.raw("</header>\n");
}

/// The few numbers that are asked for first.
fn tiles(page: &mut Page, report: &Report) {
    let profiled = report.profile.as_ref().map(|found| &found.metrics);
    let distilled = report.distillation.as_ref().map(|found| &found.metrics);
    let trained = report.training.as_ref().map(|found| &found.metrics);
    let exported = report.export.as_ref().map(|found| &found.metrics);
    let tiles = [
        (
            profiled,
            "pipeline_latency_ms",
            "a clip, from text to frames",
            Unit::Milliseconds,
        ),
        (profiled, "latency_ms", "one pass of the UNet", Unit::Milliseconds),
        (profiled, "peak_memory_bytes", "peak memory", Unit::Bytes),
        (distilled, "quality", "quality after distillation", Unit::Plain),
        (
            if distilled.is_some() { None } else { trained },
            "quality",
            "quality after final training",
            Unit::Plain,
        ),
        (distilled, "denoise_speed_up", "faster denoising", Unit::Times),
        (trained.or(exported), "parameters", "parameters", Unit::Count),
        (exported, "file_bytes", "of graphs", Unit::Bytes),
    ];
    page.raw("<ul class=\"tiles\">");
    for (metrics, metric, name, unit) in tiles {
        if let Some(found) = metrics.and_then(|metrics| metrics.get(metric)) {
            page.raw("<li><b>").text(&number(found.value, unit)).raw("</b><span>");
            page.text(name).raw("</span></li>");
        }
    }
    page.raw("</ul>\n");
}

fn clips(page: &mut Page, report: &Report) {
    if report.before.is_empty() && report.after.is_empty() {
        return;
    }
    page.raw("<section><h2>Samples</h2>\n");
    let (before, after) = match &report.distillation {
        Some(_) => (
            "Before distillation: many steps, guided",
            "After distillation: few steps, not guided",
        ),
        None => ("After final training", ""),
    };
    for (name, clips) in [(before, &report.before), (after, &report.after)] {
        if clips.is_empty() {
            continue;
        }
        page.raw("<h3>").text(name).raw("</h3><div class=\"clips\">\n");
        for clip in clips {
            page.raw("<figure><img alt=\"").text(&clip.name).raw("\" src=\"data:");
            page.raw(clip.kind.media_type()).raw(";base64,");
            page.text(&BASE64_STANDARD.encode(&clip.bytes)).raw("\"><figcaption>");
            page.text(&clip.name).raw("</figcaption></figure>\n");
        }
        page.raw("</div>\n");
    }
    page.raw("</section>\n");
}

fn footer(page: &mut Page, report: &Report) {
    page.raw(
        "<footer><p>Rows and bars marked <span class=\"mark\">the paper</span> are SnapGen-V's (arXiv 2412.10494): ",
    );
    page.text(paper::SCALE);
    page.raw(", scored by VBench. They are of another scale than ours and stand here for the form of the result, not to be outdone.</p>\n<p>Candidate ");
    page.text(&report.candidate).raw(" · ");
    page.text(&report.made_at.format("%Y-%m-%d %H:%M UTC").to_string());
    page.raw(" · ± is one standard error unless it says otherwise</p></footer>\n");
}

/// Median of raw samples.
fn median(samples: &[f64]) -> Option<f64> {
    quantile(samples, 0.5)
}

/// A quantile of raw samples, between neighbours.
fn quantile(samples: &[f64], share: f64) -> Option<f64> {
    let mut sorted: Vec<f64> = samples.iter().copied().filter(|sample| sample.is_finite()).collect();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().checked_sub(1)?;
    let place = share * last as f64;
    let (below, part) = (place.floor() as usize, place.fract());
    let above = (below + 1).min(last);
    Some(sorted[below] + part * (sorted[above] - sorted[below]))
}

#[cfg(test)]
mod tests;
