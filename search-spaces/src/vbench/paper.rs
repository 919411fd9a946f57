//! The rows of the paper's Tables 1 and 2, and a model's own row in their columns.

use std::collections::BTreeMap;

use super::Dimension::{
    self, AestheticQuality, AppearanceStyle, Color, DynamicDegree, MotionSmoothness, MultipleObjects, ObjectClass,
    OverallConsistency, SpatialRelationship, TemporalFlickering, TemporalStyle,
};
use super::Summary;

/// A row of Table 1: size, speed on an NVIDIA A100 and on an iPhone 16 Pro Max, and the total score.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Table1Row {
    /// The model.
    pub model: &'static str,
    /// `DiT` or `UNet`.
    pub kind: &'static str,
    /// Denoising steps.
    pub steps: u32,
    /// Parameters in billions.
    pub parameters_billion: f64,
    /// Seconds on an A100.
    pub a100_seconds: f64,
    /// Seconds on the phone; none where the model does not run there.
    pub iphone_seconds: Option<f64>,
    /// Total score in percent.
    pub total: f64,
}

/// A row of Table 2, in percent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Table2Row {
    /// The model.
    pub model: &'static str,
    /// Parameters in billions, where known.
    pub parameters_billion: Option<f64>,
    /// Denoising steps, where known.
    pub steps: Option<u32>,
    /// Total, quality and semantic score.
    pub summaries: [f64; 3],
    /// Raw scores of [`Table2Row::DIMENSIONS`].
    pub dimensions: [f64; 11],
}

impl Table2Row {
    /// The dimensions that the table prints; subject and background consistency, imaging quality, human action and scene
    /// it leaves out.
    pub const DIMENSIONS: [Dimension; 11] = [
        TemporalFlickering,
        MotionSmoothness,
        DynamicDegree,
        AestheticQuality,
        ObjectClass,
        MultipleObjects,
        Color,
        SpatialRelationship,
        AppearanceStyle,
        TemporalStyle,
        OverallConsistency,
    ];
}

const fn one(
    model: &'static str,
    kind: &'static str,
    steps: u32,
    parameters_billion: f64,
    a100_seconds: f64,
    iphone_seconds: Option<f64>,
    total: f64,
) -> Table1Row {
    Table1Row {
        model,
        kind,
        steps,
        parameters_billion,
        a100_seconds,
        iphone_seconds,
        total,
    }
}

/// The paper's Table 1.
pub const TABLE_1: [Table1Row; 5] = [
    one("OpenSora-v1.2", "DiT", 30, 1.2, 31.00, None, 79.76),
    one("CogVideoX-2B", "DiT", 50, 1.6, 54.09, None, 80.91),
    one("AnimateDiff-V2", "UNet", 25, 1.2, 9.04, None, 80.27),
    one("AnimateDiffLCM", "UNet", 4, 1.2, 1.77, None, 79.42),
    one("SnapGen-V", "UNet", 4, 0.6, 0.47, Some(4.12), 81.14),
];

const fn two(
    model: &'static str,
    parameters_billion: Option<f64>,
    steps: Option<u32>,
    summaries: [f64; 3],
    dimensions: [f64; 11],
) -> Table2Row {
    Table2Row {
        model,
        parameters_billion,
        steps,
        summaries,
        dimensions,
    }
}

/// The paper's Table 2, its own row last; that row's steps are those of the paper's section 4.1.
#[rustfmt::skip]
pub const TABLE_2: [Table2Row; 13] = [
    two("Kling", None, None, [81.85, 83.39, 75.68],
        [99.30, 99.40, 46.94, 61.21, 87.24, 68.05, 89.90, 73.03, 19.62, 24.17, 26.42]),
    two("Pyramid Flow", Some(2.0), Some(20), [81.72, 84.74, 69.62],
        [99.49, 99.12, 64.63, 63.26, 86.67, 50.71, 82.87, 59.53, 20.91, 23.09, 26.23]),
    two("CogVideoX-5B", Some(5.0), Some(50), [81.61, 82.75, 77.04],
        [98.66, 96.92, 70.97, 61.98, 85.23, 62.11, 82.81, 66.35, 24.91, 25.38, 27.59]),
    two("T2V-Turbo", Some(1.6), Some(4), [81.01, 82.57, 74.76],
        [97.48, 97.34, 49.17, 63.04, 93.96, 54.65, 89.90, 38.67, 24.42, 25.51, 28.16]),
    two("Emu3", Some(8.0), None, [80.96, 84.09, 68.43],
        [98.57, 98.93, 79.27, 59.64, 86.17, 44.64, 88.34, 68.73, 20.92, 23.26, 24.79]),
    two("CogVideoX-2B", Some(1.6), Some(50), [80.91, 82.18, 75.83],
        [98.89, 97.73, 59.86, 60.82, 83.37, 62.63, 79.41, 69.90, 24.80, 24.36, 26.66]),
    two("Pika-1.0", None, None, [80.69, 82.92, 71.77],
        [99.74, 99.50, 47.50, 62.04, 88.72, 43.08, 90.57, 61.03, 22.26, 24.22, 25.94]),
    two("VideoCrafter-2.0", Some(1.9), Some(50), [80.44, 82.20, 73.42],
        [98.41, 97.73, 42.50, 63.13, 92.55, 40.66, 92.92, 35.86, 25.13, 25.84, 28.23]),
    two("AnimateDiff-V2", Some(1.2), Some(25), [80.27, 82.90, 69.75],
        [98.75, 97.76, 40.83, 67.16, 90.90, 36.88, 87.47, 34.60, 22.42, 26.03, 27.04]),
    two("OpenSora V1.2", Some(1.2), Some(30), [79.76, 81.35, 73.39],
        [99.53, 98.50, 42.39, 56.85, 82.22, 51.83, 90.08, 68.56, 23.95, 24.54, 26.85]),
    two("AnimateLCM", Some(1.2), Some(4), [79.42, 82.36, 67.65],
        [98.52, 98.16, 40.56, 67.01, 91.41, 29.76, 84.24, 37.14, 20.97, 25.16, 26.07]),
    two("ModelScope", Some(1.4), Some(50), [75.75, 78.05, 66.54],
        [98.28, 95.79, 66.39, 52.06, 82.25, 38.98, 81.72, 33.68, 23.39, 25.37, 25.67]),
    two("SnapGen-V", Some(0.6), Some(4), [81.14, 83.47, 71.84],
        [99.37, 99.29, 51.11, 62.19, 92.22, 54.34, 86.63, 56.20, 20.17, 25.18, 27.42]),
];

fn percent(fraction: f64) -> String {
    format!("{:.2}", 100.0 * fraction)
}

fn printed<T>(value: Option<T>, print: impl Fn(T) -> String) -> String {
    value.map_or_else(String::new, print)
}

/// Headings and rows of Table 1 with a model's own row last; what is not known stays empty.
#[must_use]
pub fn table_1_cells(
    model: &str,
    parameters: u64,
    steps: u32,
    raw: &BTreeMap<Dimension, f64>,
) -> (Vec<String>, Vec<Vec<String>>) {
    let heads = [
        "model",
        "type",
        "steps",
        "params (B)",
        "A100 (s)",
        "iPhone (s)",
        "VBench",
    ];
    let paper = TABLE_1.iter().map(|row| {
        vec![
            row.model.to_owned(),
            row.kind.to_owned(),
            row.steps.to_string(),
            format!("{:.1}", row.parameters_billion),
            format!("{:.2}", row.a100_seconds),
            row.iphone_seconds
                .map_or_else(|| "does not run".to_owned(), |s| format!("{s:.2}")),
            format!("{:.2}", row.total),
        ]
    });
    let own = vec![
        model.to_owned(),
        "UNet".to_owned(),
        steps.to_string(),
        billions(parameters),
        String::new(),
        String::new(),
        printed(Summary::Total.of(raw), percent),
    ];
    (heads.map(str::to_owned).to_vec(), paper.chain([own]).collect())
}

/// Headings and rows of Table 2 with a model's own row last; what is not known stays empty.
#[must_use]
pub fn table_2_cells(
    model: &str,
    parameters: u64,
    steps: u32,
    raw: &BTreeMap<Dimension, f64>,
) -> (Vec<String>, Vec<Vec<String>>) {
    let heads = [
        "model",
        "params (B)",
        "steps",
        "total score",
        "quality score",
        "semantic score",
    ];
    let titles = Table2Row::DIMENSIONS.map(Dimension::title);
    let heads = heads.map(str::to_owned).into_iter().chain(titles).collect();
    let hundredths = |value: &f64| format!("{value:.2}");
    let paper = TABLE_2.iter().map(|row| {
        let left = [
            row.model.to_owned(),
            printed(row.parameters_billion, |billion| format!("{billion:.1}")),
            printed(row.steps, |steps| steps.to_string()),
        ];
        let scores = row.summaries.iter().chain(&row.dimensions).map(hundredths);
        left.into_iter().chain(scores).collect()
    });
    let left = [model.to_owned(), billions(parameters), steps.to_string()];
    let summaries = Summary::ALL.map(|summary| printed(summary.of(raw), percent));
    let dimensions = Table2Row::DIMENSIONS.map(|dimension| printed(raw.get(&dimension).copied(), percent));
    let own = left.into_iter().chain(summaries).chain(dimensions).collect();
    (heads, paper.chain([own]).collect())
}

/// Billions with as many places as a small model needs.
fn billions(parameters: u64) -> String {
    let billion = parameters as f64 / 1e9;
    if billion >= 0.05 {
        format!("{billion:.1}")
    } else {
        format!("{billion:.4}")
    }
}
