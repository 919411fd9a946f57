//! Quality before and after distillation.

use protocol::{Figure, jobs::DistillOutcome};

use super::{
    Page,
    text::{Unit, figure, number},
};

/// What the diffusion model's figures are called: this before the name of the distilled one's.
const TEACHER: &str = "teacher_";

/// Half a 95 % interval of a figure, in standard errors.
const INTERVAL: f64 = 1.96;

const LEFT: f64 = 210.0;
const RIGHT: f64 = 930.0;
const ROW: f64 = 46.0;

/// A score before and after.
struct Pair {
    name: String,
    before: Figure,
    after: Figure,
}

pub(super) fn section(page: &mut Page, found: &DistillOutcome) {
    let pairs: Vec<Pair> = pairs(found);
    page.raw("<section><h2>Quality before and after distillation</h2>\n<p class=\"soft\">Scored by ");
    page.text(&found.evaluator).raw(".</p>\n");
    if !pairs.is_empty() {
        drawing(page, &pairs);
    }
    page.raw("<div class=\"wide\"><table><thead><tr>");
    for head in ["", "before", "after", "difference"] {
        page.head(head);
    }
    page.raw("</tr></thead><tbody>\n");
    for pair in &pairs {
        page.raw("<tr><th scope=\"row\">").text(&pair.name).raw("</th>");
        page.cell(&figure(&pair.before, Unit::Plain))
            .cell(&figure(&pair.after, Unit::Plain));
        page.cell(&difference(found, pair)).raw("</tr>\n");
    }
    page.raw("</tbody></table></div>\n");
    sentence(page, found);
    page.raw("</section>\n");
}

/// Scores that are told of both models, the whole first.
fn pairs(found: &DistillOutcome) -> Vec<Pair> {
    let metrics = &found.metrics;
    let mut pairs: Vec<Pair> = metrics
        .iter()
        .filter_map(|(name, before)| {
            let score = name.strip_prefix(TEACHER)?;
            let after = metrics.get(score)?;
            Some(Pair {
                name: score.replace('_', " "),
                before: *before,
                after: *after,
            })
        })
        .collect();
    pairs.sort_by_key(|pair| (pair.name != "quality", pair.name.clone()));
    pairs
}

/// Over the same prompts and seeds where it was told so; of a dimension from the two figures.
fn difference(found: &DistillOutcome, pair: &Pair) -> String {
    let told = found
        .metrics
        .get("quality_difference")
        .filter(|_| pair.name == "quality");
    let difference = told.copied().unwrap_or(Figure {
        value: pair.after.value - pair.before.value,
        standard_error: pair.after.standard_error.hypot(pair.before.standard_error),
    });
    let text = figure(&difference, Unit::Plain);
    if difference.value > 0.0 {
        format!("+{text}")
    } else {
        text
    }
}

/// The ratio with its interval, and the speed-up.
fn sentence(page: &mut Page, found: &DistillOutcome) {
    if let Some(ratio) = found.metrics.get("quality_ratio") {
        let (low, high) = (
            ratio.value - INTERVAL * ratio.standard_error,
            ratio.value + INTERVAL * ratio.standard_error,
        );
        page.raw("<p>The distilled model keeps <strong>")
            .text(&format!("{:.1} %", ratio.value * 100.0));
        page.raw("</strong> of the diffusion model's quality over the same prompts and seeds (95 % interval ");
        page.text(&format!("{:.1} to {:.1} %", low * 100.0, high * 100.0))
            .raw(")");
        if let Some(faster) = found.metrics.get("denoise_speed_up") {
            page.raw(" and denoises <strong>")
                .text(&number(faster.value, Unit::Times))
                .raw("</strong> as fast");
        }
        page.raw(".</p>\n");
    }
}

fn drawing(page: &mut Page, pairs: &[Pair]) {
    let reach = |pair: &Pair| {
        let ends = [&pair.before, &pair.after].map(|figure| {
            [
                figure.value - INTERVAL * figure.standard_error,
                figure.value + INTERVAL * figure.standard_error,
            ]
        });
        (ends[0][0].min(ends[1][0]), ends[0][1].max(ends[1][1]))
    };
    let (low, high) = pairs
        .iter()
        .map(reach)
        .fold((0.0_f64, f64::MIN_POSITIVE), |(low, high), (l, h)| {
            (low.min(l), high.max(h))
        });
    let high = if high <= 1.0 { 1.0 } else { high };
    let x = |value: f64| LEFT + (value - low) / (high - low) * (RIGHT - LEFT);
    let height = ROW * pairs.len() as f64 + 34.0;
    page.raw("<figure><div class=\"wide\"><svg viewBox=\"0 0 960 ")
        .at(height)
        .raw("\" role=\"img\" aria-label=\"Scores before and after distillation\">\n");
    for tick in 0..=4 {
        let value = low + (high - low) * f64::from(tick) / 4.0;
        page.raw("<line class=\"c-line\" x1=\"")
            .at(x(value))
            .raw("\" x2=\"")
            .at(x(value));
        page.raw("\" y1=\"4\" y2=\"")
            .at(height - 26.0)
            .raw("\"/><text class=\"s\" text-anchor=\"middle\" x=\"")
            .at(x(value));
        page.raw("\" y=\"")
            .at(height - 8.0)
            .raw("\">")
            .text(&number(value, Unit::Plain))
            .raw("</text>\n");
    }
    for (row, pair) in pairs.iter().enumerate() {
        let middle = ROW * row as f64 + ROW / 2.0 + 4.0;
        page.raw("<text text-anchor=\"end\" x=\"")
            .at(LEFT - 18.0)
            .raw("\" y=\"")
            .at(middle + 4.0)
            .raw("\">");
        page.text(&pair.name).raw("</text>\n");
        for (class, figure, y) in [
            ("c-before", &pair.before, middle - 7.0),
            ("c-unet", &pair.after, middle + 7.0),
        ] {
            let error = INTERVAL * figure.standard_error;
            page.raw("<line class=\"c-err\" x1=\"")
                .at(x(figure.value - error))
                .raw("\" x2=\"")
                .at(x(figure.value + error));
            page.raw("\" y1=\"")
                .at(y)
                .raw("\" y2=\"")
                .at(y)
                .raw("\"/><circle class=\"")
                .text(class);
            page.raw("\" cx=\"")
                .at(x(figure.value))
                .raw("\" cy=\"")
                .at(y)
                .raw("\" r=\"5.5\"/>\n");
        }
    }
    page.raw("</svg></div><ul class=\"key\"><li><i class=\"k-before\"></i>before: the diffusion model</li><li><i class=\"k-after\"></i>after: distilled</li></ul><figcaption>With 95 % intervals over prompts.</figcaption></figure>\n");
}
