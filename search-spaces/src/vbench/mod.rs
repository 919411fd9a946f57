//! VBench (Huang et al. 2024): its sixteen dimensions, how they become three scores, and what the paper reports.
//!
//! Names, ranges and weights are those of the package `vbench` 0.1.5 and its leaderboard. Raw scores are fractions as
//! the package returns them; the paper's tables print them in percent.

mod paper;

use std::collections::BTreeMap;

pub use paper::{TABLE_1, TABLE_2, Table1Row, Table2Row, table_1_cells, table_2_cells};

/// What a dimension tells of: its part in the total.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    /// How good the video looks and moves.
    Quality,
    /// How well it shows what was asked for.
    Semantic,
}

/// A dimension of VBench, in the order of the leaderboard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Dimension {
    /// DINO features of the frames agree with those of the frame before and of the first.
    SubjectConsistency,
    /// The same with CLIP's features.
    BackgroundConsistency,
    /// Consecutive frames of still scenes are alike.
    TemporalFlickering,
    /// Every other frame can be interpolated.
    MotionSmoothness,
    /// Share of the videos with large optical flow.
    DynamicDegree,
    /// A predictor of aesthetic ratings on CLIP's features.
    AestheticQuality,
    /// MUSIQ on the frames.
    ImagingQuality,
    /// The object that was asked for is detected.
    ObjectClass,
    /// Both objects are detected.
    MultipleObjects,
    /// The action is recognised.
    HumanAction,
    /// The object has the colour.
    Color,
    /// The objects stand as asked.
    SpatialRelationship,
    /// The scene is in the frames' captions.
    Scene,
    /// CLIP's similarity to the style.
    AppearanceStyle,
    /// ViCLIP's similarity to the camera's motion or manner.
    TemporalStyle,
    /// ViCLIP's similarity to the prompt.
    OverallConsistency,
}

use Dimension::{
    AestheticQuality, AppearanceStyle, BackgroundConsistency, Color, DynamicDegree, HumanAction, ImagingQuality,
    MotionSmoothness, MultipleObjects, ObjectClass, OverallConsistency, Scene, SpatialRelationship, SubjectConsistency,
    TemporalFlickering, TemporalStyle,
};

/// Share of the quality score in the total; the rest is the semantic score's.
const QUALITY_SHARE: f64 = 0.8;

impl Dimension {
    /// All dimensions.
    pub const ALL: [Self; 16] = [
        SubjectConsistency,
        BackgroundConsistency,
        TemporalFlickering,
        MotionSmoothness,
        DynamicDegree,
        AestheticQuality,
        ImagingQuality,
        ObjectClass,
        MultipleObjects,
        HumanAction,
        Color,
        SpatialRelationship,
        Scene,
        AppearanceStyle,
        TemporalStyle,
        OverallConsistency,
    ];

    /// Those that the paper's search averages (its Appendix A).
    pub const SEARCH: [Self; 3] = [OverallConsistency, ObjectClass, Color];

    /// The name in the package.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            SubjectConsistency => "subject_consistency",
            BackgroundConsistency => "background_consistency",
            TemporalFlickering => "temporal_flickering",
            MotionSmoothness => "motion_smoothness",
            DynamicDegree => "dynamic_degree",
            AestheticQuality => "aesthetic_quality",
            ImagingQuality => "imaging_quality",
            ObjectClass => "object_class",
            MultipleObjects => "multiple_objects",
            HumanAction => "human_action",
            Color => "color",
            SpatialRelationship => "spatial_relationship",
            Scene => "scene",
            AppearanceStyle => "appearance_style",
            TemporalStyle => "temporal_style",
            OverallConsistency => "overall_consistency",
        }
    }

    /// The dimension of a name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|dimension| dimension.name() == name)
    }

    /// The name as a heading of the paper's Table 2.
    #[must_use]
    pub fn title(self) -> String {
        self.name().replace('_', " ")
    }

    /// Lowest and highest raw score that the leaderboard scales by.
    #[must_use]
    pub const fn range(self) -> (f64, f64) {
        match self {
            SubjectConsistency => (0.1462, 1.0),
            BackgroundConsistency => (0.2615, 1.0),
            TemporalFlickering => (0.6293, 1.0),
            MotionSmoothness => (0.706, 0.9975),
            Scene => (0.0, 0.8222),
            AppearanceStyle => (0.0009, 0.2855),
            TemporalStyle | OverallConsistency => (0.0, 0.364),
            DynamicDegree | AestheticQuality | ImagingQuality | ObjectClass | MultipleObjects | HumanAction | Color
            | SpatialRelationship => (0.0, 1.0),
        }
    }

    /// Weight among the dimensions of its group.
    #[must_use]
    pub const fn weight(self) -> f64 {
        if matches!(self, DynamicDegree) { 0.5 } else { 1.0 }
    }

    /// The score it is part of.
    #[must_use]
    pub const fn group(self) -> Group {
        match self {
            SubjectConsistency
            | BackgroundConsistency
            | TemporalFlickering
            | MotionSmoothness
            | DynamicDegree
            | AestheticQuality
            | ImagingQuality => Group::Quality,
            ObjectClass | MultipleObjects | HumanAction | Color | SpatialRelationship | Scene | AppearanceStyle
            | TemporalStyle | OverallConsistency => Group::Semantic,
        }
    }

    /// `(raw − lowest) / (highest − lowest)`, not cut off at either end.
    #[must_use]
    pub fn normalised(self, raw: f64) -> f64 {
        let (lowest, highest) = self.range();
        (raw - lowest) / (highest - lowest)
    }

    /// The files below the package's cache folder that it reads.
    #[must_use]
    pub const fn weights(self) -> &'static [&'static str] {
        match self {
            SubjectConsistency => &[
                "dino_model/dino_vitbase16_pretrain.pth",
                "dino_model/facebookresearch_dino_main",
            ],
            BackgroundConsistency | AppearanceStyle => &["clip_model/ViT-B-32.pt"],
            TemporalFlickering => &[],
            MotionSmoothness => &["amt_model/amt-s.pth"],
            DynamicDegree => &["raft_model/models/raft-things.pth"],
            AestheticQuality => &[
                "clip_model/ViT-L-14.pt",
                "aesthetic_model/emb_reader/sa_0_4_vit_l_14_linear.pth",
            ],
            ImagingQuality => &["pyiqa_model/musiq_spaq_ckpt-358bb6af.pth"],
            ObjectClass | MultipleObjects | Color | SpatialRelationship => {
                &["grit_model/grit_b_densecap_objectdet.pth"]
            }
            HumanAction => &["umt_model/l16_ptk710_ftk710_ftk400_f16_res224.pth"],
            Scene => &["caption_model/tag2text_swin_14m.pth"],
            TemporalStyle | OverallConsistency => &[
                "ViCLIP/ViClip-InternVid-10M-FLT.pth",
                "ViCLIP/bpe_simple_vocab_16e6.txt.gz",
            ],
        }
    }

    /// Weight in the quality or semantic score, of a raw score as it is: `weight / (Σ weights · (highest − lowest))`.
    fn slope(self) -> f64 {
        let (lowest, highest) = self.range();
        self.weight() / (group_weight(self.group()) * (highest - lowest))
    }
}

impl std::fmt::Display for Dimension {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

fn group_weight(group: Group) -> f64 {
    of(group).map(Dimension::weight).sum()
}

fn of(group: Group) -> impl Iterator<Item = Dimension> {
    Dimension::ALL
        .into_iter()
        .filter(move |dimension| dimension.group() == group)
}

/// One of the three scores that dimensions add up to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Summary {
    /// (4 · quality + semantic) / 5.
    Total,
    /// Weighted mean of seven normalised dimensions.
    Quality,
    /// Mean of nine.
    Semantic,
}

impl Summary {
    /// All, in the order of the paper's Table 2.
    pub const ALL: [Self; 3] = [Self::Total, Self::Quality, Self::Semantic];

    /// The name as a metric.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Total => "total_score",
            Self::Quality => "quality_score",
            Self::Semantic => "semantic_score",
        }
    }

    /// What each dimension's raw score is multiplied by before they are added; see [`Self::offset`].
    #[must_use]
    pub fn slopes(self) -> BTreeMap<Dimension, f64> {
        let scaled = |group, share: f64| of(group).map(move |dimension| (dimension, share * dimension.slope()));
        match self {
            Self::Quality => scaled(Group::Quality, 1.0).collect(),
            Self::Semantic => scaled(Group::Semantic, 1.0).collect(),
            Self::Total => scaled(Group::Quality, QUALITY_SHARE)
                .chain(scaled(Group::Semantic, 1.0 - QUALITY_SHARE))
                .collect(),
        }
    }

    /// What is added to the sum: the lowest scores of all dimensions, taken away.
    #[must_use]
    pub fn offset(self) -> f64 {
        let slopes = self.slopes();
        -slopes.iter().map(|(d, slope)| slope * d.range().0).sum::<f64>()
    }

    /// The score of raw scores as fractions; none where one of its dimensions is missing.
    #[must_use]
    pub fn of(self, raw: &BTreeMap<Dimension, f64>) -> Option<f64> {
        let group = |group| {
            let sum: Option<f64> = of(group).map(|d| Some(d.weight() * d.normalised(*raw.get(&d)?))).sum();
            Some(sum? / group_weight(group))
        };
        match self {
            Self::Quality => group(Group::Quality),
            Self::Semantic => group(Group::Semantic),
            Self::Total => Some(total(group(Group::Quality)?, group(Group::Semantic)?)),
        }
    }
}

/// `(4 · quality + semantic) / 5`.
#[must_use]
pub fn total(quality: f64, semantic: f64) -> f64 {
    QUALITY_SHARE * quality + (1.0 - QUALITY_SHARE) * semantic
}

#[cfg(test)]
mod tests;
