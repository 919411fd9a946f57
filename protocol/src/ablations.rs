//! Ablations: groups of deployments that differ in one thing, and the tables of the paper that they fill.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    AblationId, CandidateId, DeploymentId, Figure,
    deployments::{DeploymentSettings, DeploymentState},
};

/// A table or a figure of the paper.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum AblationKind {
    /// Images in joint training, and the number of temporal layers.
    Table3,
    /// Heads of the discriminator, images in distillation, and the discriminator's times.
    Table4,
    /// Steps of a sample of the distilled model.
    Table5,
    /// Temporal layers removed from a stage of the UNet, then fine-tuned.
    Figure6,
}

impl AblationKind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Table3, Self::Table4, Self::Table5, Self::Figure6];

    /// The name on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Table3 => "table3",
            Self::Table4 => "table4",
            Self::Table5 => "table5",
            Self::Figure6 => "figure6",
        }
    }

    /// The name for people.
    #[must_use]
    pub const fn title(self) -> &'static str {
        match self {
            Self::Table3 => "Table 3",
            Self::Table4 => "Table 4",
            Self::Table5 => "Table 5",
            Self::Figure6 => "Figure 6",
        }
    }
}

impl std::str::FromStr for AblationKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.into_iter().find(|kind| kind.as_str() == text);
        found.ok_or_else(|| {
            let allowed = Self::ALL.map(Self::as_str).join(", ");
            format!("`{text}` is no table of ablations; allowed: {allowed}")
        })
    }
}

/// Asks for a table of the paper over a candidate (`POST /v1/ablations`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewAblation {
    /// Its number, a UUID of version 7 that the asker draws, so that asking again after a lost answer asks for nothing
    /// new; the coordinator draws one where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<AblationId>,
    /// The candidate: the baseline.
    pub candidate_id: CandidateId,
    /// Which table.
    pub table: AblationKind,
    /// Trainings of each cell, with seeds that count up from the one of the settings.
    pub seeds: u32,
    /// Settings of the baseline; each cell changes some. Its steps are the table's own.
    pub settings: DeploymentSettings,
}

/// An ablation as it is shown.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AblationView {
    /// The ablation.
    pub id: AblationId,
    /// The candidate.
    pub candidate_id: CandidateId,
    /// Which table.
    pub table: AblationKind,
    /// Trainings of each cell.
    pub seeds: u32,
    /// Where it stands: running while a deployment of it runs, else failed or cancelled where one is.
    pub state: DeploymentState,
    /// Its deployments.
    pub deployments: Vec<AblationPart>,
    /// The table as far as it is known.
    pub result: AblationTable,
    /// When it was asked for.
    pub created_at: DateTime<Utc>,
}

/// A deployment of an ablation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AblationPart {
    /// The deployment.
    pub id: DeploymentId,
    /// Which cell it is for.
    pub cell: String,
    /// Where it stands.
    pub state: DeploymentState,
    /// Why, for people.
    pub state_reason: Option<String>,
    /// Share of its steps that is done, 0 to 1.
    pub progress: f64,
}

/// A table of the paper, filled in.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AblationTable {
    /// What it shows, and which table of the paper it follows.
    pub title: String,
    /// What each row differs in: headings of `AblationRow::settings`.
    pub factors: Vec<String>,
    /// Its columns.
    pub columns: Vec<AblationColumn>,
    /// Its rows; the baseline first where there is one.
    pub rows: Vec<AblationRow>,
    /// What a reader must know.
    pub notes: Vec<String>,
}

/// A column.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AblationColumn {
    /// Its heading; the paper's own where the paper has it.
    pub name: String,
    /// The figure that it shows.
    pub metric: String,
    /// Who is behind it; absent where nobody here scores it.
    pub evaluator: Option<String>,
    /// Whether its cells are differences from the first row.
    pub difference: bool,
}

/// A row.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AblationRow {
    /// What it is, factor by factor.
    pub settings: Vec<String>,
    /// Cells, column by column.
    pub cells: Vec<AblationCell>,
    /// The paper's figures of the row, column by column, where it has them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub paper: Vec<Option<f64>>,
}

/// A cell.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AblationCell {
    /// What is printed.
    pub text: String,
    /// Mean over the seeds with its standard error; absent where nothing is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub figure: Option<Figure>,
    /// Difference from the first row with its standard error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub difference: Option<Figure>,
    /// Seeds behind it.
    pub seeds: u32,
    /// Whether the difference is at least 2 of its standard errors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resolved: Option<bool>,
}
