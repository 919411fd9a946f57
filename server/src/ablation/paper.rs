//! What the paper prints: columns of its tables, and the figures that its text names.

use protocol::ablations::AblationKind;

/// A column: the paper's heading, and the metric's name here.
pub(super) type Column = (&'static str, &'static str);

/// The columns of scores.
pub(super) fn columns(table: AblationKind) -> &'static [Column] {
    match table {
        AblationKind::Table3 => &[
            ("AQ", "aesthetic_quality"),
            ("IQ", "imaging_quality"),
            ("DD", "dynamic_degree"),
            ("MS", "motion_smoothness"),
            ("Total", "total_score"),
        ],
        AblationKind::Table4 => &[
            ("TF", "temporal_flickering"),
            ("MO", "multiple_objects"),
            ("Q", "quality_score"),
            ("S", "semantic_score"),
            ("Total", "total_score"),
        ],
        AblationKind::Table5 => &[
            ("DD", "dynamic_degree"),
            ("OC", "object_class"),
            ("AQ", "aesthetic_quality"),
            ("Quality", "quality_score"),
            ("Semantic", "semantic_score"),
            ("Total", "total_score"),
        ],
        AblationKind::Figure6 => &[
            ("Imaging quality", "imaging_quality"),
            ("Subject consistency", "subject_consistency"),
            ("Background consistency", "background_consistency"),
            ("Human action", "human_action"),
            ("Object class", "object_class"),
            ("Total", "total_score"),
        ],
    }
}

/// What the paper has in a row and a column, in percent; in Table 3 differences from the baseline. Of Tables 3 and 4
/// only what section 4.3 names.
pub(super) fn figure(table: AblationKind, row: &[String], metric: &str) -> Option<f64> {
    let row: Vec<&str> = row.iter().map(String::as_str).collect();
    let known: &[(&str, f64)] = match (table, row.as_slice()) {
        (AblationKind::Table3, ["×1", "videos"]) => &[
            ("aesthetic_quality", -6.32),
            ("imaging_quality", -2.80),
            ("total_score", -2.54),
        ],
        (AblationKind::Table3, ["×0.5", _]) => &[("dynamic_degree", -0.56), ("motion_smoothness", -0.61)],
        (AblationKind::Table3, ["×2", _]) => &[
            ("dynamic_degree", 0.56),
            ("motion_smoothness", 0.12),
            ("total_score", 0.27),
        ],
        (AblationKind::Table4, ["separate", _, _]) => &[("quality_score", 83.60), ("semantic_score", 64.25)],
        (AblationKind::Table4, ["unified", "videos", _]) => &[
            ("multiple_objects", 37.85),
            ("quality_score", 83.61),
            ("semantic_score", 69.01),
            ("total_score", 80.69),
        ],
        (AblationKind::Table4, ["unified", _, "−1"]) => &[
            ("multiple_objects", 54.34),
            ("quality_score", 83.47),
            ("semantic_score", 71.84),
            ("total_score", 81.14),
        ],
        (AblationKind::Table4, ["unified", _, "−2"]) => &[
            ("temporal_flickering", 99.29),
            ("multiple_objects", 47.64),
            ("quality_score", 83.91),
            ("semantic_score", 70.54),
            ("total_score", 81.23),
        ],
        (AblationKind::Table4, ["unified", _, "1"]) => &[("temporal_flickering", 99.56), ("quality_score", 77.84)],
        (AblationKind::Table5, ["1"]) => &[
            ("dynamic_degree", 11.39),
            ("object_class", 79.24),
            ("aesthetic_quality", 52.85),
            ("quality_score", 74.43),
            ("semantic_score", 62.70),
            ("total_score", 72.09),
        ],
        (AblationKind::Table5, ["2"]) => &[
            ("dynamic_degree", 30.28),
            ("object_class", 88.97),
            ("aesthetic_quality", 59.74),
            ("quality_score", 80.08),
            ("semantic_score", 69.28),
            ("total_score", 77.92),
        ],
        (AblationKind::Table5, ["4"]) => &[
            ("dynamic_degree", 51.11),
            ("object_class", 92.22),
            ("aesthetic_quality", 62.19),
            ("quality_score", 83.47),
            ("semantic_score", 71.84),
            ("total_score", 81.14),
        ],
        _ => &[],
    };
    known.iter().find(|(name, _)| *name == metric).map(|(_, value)| *value)
}
