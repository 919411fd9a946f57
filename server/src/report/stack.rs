//! The latency of a clip as a stack: text encoder, steps by parts of the UNet, decoder.

use protocol::jobs::{GraphOutcome, ProfileModelOutcome};

use super::{Page, Report, markup, median, milliseconds, paper, text};

/// Width of the drawing, in its own units.
const WIDTH: f64 = 960.0;

/// Height of a bar.
const BAR: f64 = 44.0;

/// Segments beyond which a bar would be a smear; the UNet is then drawn whole.
const MOST_SEGMENTS: usize = 96;

/// The latency of a clip.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Stack {
    pub(super) text_ms: f64,
    /// Each step, part by part.
    pub(super) steps: Vec<Vec<f64>>,
    pub(super) decoder_ms: f64,
}

impl Stack {
    pub(super) fn total_ms(&self) -> f64 {
        self.text_ms + self.decoder_ms + self.steps.iter().flatten().sum::<f64>()
    }

    fn paper() -> Self {
        Self {
            text_ms: paper::TEXT_MS,
            steps: vec![paper::PARTS_MS.to_vec(); paper::STEPS],
            decoder_ms: paper::DECODER_MS,
        }
    }

    /// Ours, as far as it was measured: what the UNet takes of the whole, split as its parts' medians are.
    pub(super) fn of(report: &Report, profile: &ProfileModelOutcome) -> Option<Self> {
        let value = |name: &str| profile.metrics.get(name).map(|figure| figure.value);
        let (text_ms, decoder_ms) = (value("text_latency_ms")?, value("decode_latency_ms")?);
        let unet_ms = value("pipeline_latency_ms")? - text_ms - decoder_ms;
        let sampler = report.export.as_ref().and_then(|found| found.manifest.sampler.as_ref());
        let steps = sampler.map_or(1, |sampler| sampler.times.len().max(1));
        let medians: Vec<f64> = profile
            .graphs
            .iter()
            .filter(|graph| graph.name.starts_with("unet"))
            .filter_map(|graph| match &graph.outcome {
                GraphOutcome::Measured(figures) => median(&figures.warm_ms),
                _ => None,
            })
            .collect();
        let pass: f64 = medians.iter().sum();
        if unet_ms <= 0.0 || pass <= 0.0 {
            return None;
        }
        let parts: Vec<f64> = medians
            .iter()
            .map(|part| part / pass * unet_ms / steps as f64)
            .collect();
        Some(Self {
            text_ms,
            steps: if steps * parts.len() > MOST_SEGMENTS {
                vec![vec![unet_ms]]
            } else {
                vec![parts; steps]
            },
            decoder_ms,
        })
    }
}

pub(super) fn section(page: &mut Page, report: &Report, profile: &ProfileModelOutcome) {
    page.raw("<section><h2>Where the time of a clip goes</h2>\n");
    let Some(ours) = Stack::of(report, profile) else {
        page.raw("<p>The pipeline could not be measured whole; the table of the device below says which graph is missing.</p></section>\n");
        return;
    };
    let parameters = report
        .training
        .as_ref()
        .and_then(|found| found.metrics.get("parameters"));
    let device = report
        .device
        .as_ref()
        .map_or("the device", |device| device.name.as_str());
    let scale = match parameters {
        Some(count) => format!("{device}, {} parameters", text::number(count.value, text::Unit::Count)),
        None => device.to_owned(),
    };
    let paper = Stack::paper();
    page.raw("<figure><div class=\"wide\"><svg viewBox=\"0 0 960 218\" role=\"img\" aria-label=\"Latency of a clip by part\">\n");
    bar(page, 0.0, "ours", &scale, &ours);
    bar(page, 112.0, "the paper", paper::SCALE, &paper);
    page.raw("</svg></div>\n<ul class=\"key\"><li><i class=\"k-text\"></i>text encoder</li><li><i class=\"k-unet\"></i>UNet, each step by its parts</li><li><i class=\"k-decoder\"></i>decoder</li></ul>\n<figcaption>Each bar is drawn to its own total: the two are of different scale. A step of ours takes ");
    page.text(&milliseconds(ours.steps.first().map_or(0.0, |step| step.iter().sum())));
    page.raw(", of the paper's ")
        .text(&milliseconds(paper::PARTS_MS.iter().sum()));
    page.raw(".</figcaption></figure>\n");
    table(page, &ours, &paper);
    page.raw("</section>\n");
}

fn bar(page: &mut markup::Page, top: f64, whose: &str, scale: &str, stack: &Stack) {
    page.raw("<text class=\"b\" x=\"0\" y=\"")
        .at(top + 16.0)
        .raw("\">")
        .text(whose);
    page.raw("</text><text class=\"s\" x=\"78\" y=\"")
        .at(top + 16.0)
        .raw("\">")
        .text(scale);
    page.raw("</text><text class=\"b\" text-anchor=\"end\" x=\"960\" y=\"")
        .at(top + 16.0)
        .raw("\">");
    page.text(&milliseconds(stack.total_ms())).raw("</text>\n");
    let per_ms = WIDTH / stack.total_ms();
    let mut x = 0.0;
    let mut segment = |page: &mut markup::Page, class: &str, ms: f64, name: &str| {
        let width = ms * per_ms;
        page.raw("<rect class=\"")
            .text(class)
            .raw("\" x=\"")
            .at(x)
            .raw("\" y=\"")
            .at(top + 28.0);
        page.raw("\" width=\"")
            .at((width - 1.0).max(0.6))
            .raw("\" height=\"")
            .at(BAR)
            .raw("\" rx=\"3\"><title>");
        page.text(name).raw(": ").text(&milliseconds(ms)).raw("</title></rect>");
        if width > 58.0 {
            page.raw("<text class=\"w\" text-anchor=\"middle\" x=\"")
                .at(x + width / 2.0)
                .raw("\" y=\"");
            page.at(top + 28.0 + BAR / 2.0 + 4.0)
                .raw("\">")
                .text(&milliseconds(ms))
                .raw("</text>");
        }
        page.raw("\n");
        x += width;
    };
    segment(page, "c-text", stack.text_ms, "text encoder");
    for (step, parts) in stack.steps.iter().enumerate() {
        for (part, ms) in parts.iter().enumerate() {
            let class = if part % 2 == 0 { "c-unet" } else { "c-unet2" };
            segment(page, class, *ms, &format!("step {}, part {}", step + 1, part + 1));
        }
    }
    segment(page, "c-decoder", stack.decoder_ms, "decoder");
}

fn table(page: &mut Page, ours: &Stack, paper: &Stack) {
    page.raw("<div class=\"wide\"><table><thead><tr>");
    for head in ["", "text encoder", "a step", "steps", "UNet", "decoder", "clip"] {
        page.head(head);
    }
    page.raw("</tr></thead><tbody>\n");
    for (name, stack) in [("ours", ours), ("the paper", paper)] {
        page.raw(if name == "ours" {
            "<tr><th scope=\"row\">"
        } else {
            "<tr class=\"theirs\"><th scope=\"row\">"
        });
        page.text(name).raw("</th>");
        let unet: f64 = stack.steps.iter().flatten().sum();
        let step: f64 = stack.steps.first().map_or(0.0, |step| step.iter().sum());
        page.cell(&milliseconds(stack.text_ms));
        page.cell(&milliseconds(step));
        page.cell(&stack.steps.len().to_string());
        page.cell(&milliseconds(unet));
        page.cell(&milliseconds(stack.decoder_ms));
        page.cell(&milliseconds(stack.total_ms()));
        page.raw("</tr>\n");
    }
    page.raw("</tbody></table></div>\n");
}
