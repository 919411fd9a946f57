//! Flags that several commands about models share.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, ValueEnum};
use protocol::{
    artifacts::{ArtifactRef, ArtifactRole},
    jobs::{ExportFormat, ExportPrecision, Scoring},
};

use super::base;
use crate::client::Client;

/// How a trained model is scored.
#[derive(Debug, Args)]
#[command(next_help_heading = "Scoring")]
pub(super) struct ScoringArgs {
    /// Prompts that are scored [default: those of the space]
    #[arg(long)]
    prompts: Option<u32>,
    /// Clips sampled for each prompt [default: those of the space]
    #[arg(long)]
    videos_per_prompt: Option<u32>,
    /// Euler steps of a sample that is scored [default: those of the space]
    #[arg(long)]
    score_steps: Option<u32>,
    /// Scale of classifier-free guidance of a sample that is scored; 1 is none [default: that of the space]
    #[arg(long)]
    score_guidance: Option<f64>,
}

impl ScoringArgs {
    pub(super) fn scoring(&self) -> Scoring {
        Scoring {
            prompts: self.prompts,
            videos_per_prompt: self.videos_per_prompt,
            sample_steps: self.score_steps,
            guidance: self.score_guidance,
        }
    }
}

/// How graphs are written.
#[derive(Debug, Args)]
#[command(next_help_heading = "Export")]
pub(super) struct FormatArgs {
    /// Number format of weights and activations
    #[arg(long, value_enum, default_value_t = Precision::F32)]
    precision: Precision,
    /// Also write Core ML packages, by a worker that has `coremltools`
    #[arg(long)]
    core_ml: bool,
    /// Graphs that the UNet is split into; the paper's model is in two
    #[arg(long, default_value_t = 1, value_name = "NUMBER")]
    pub(super) unet_parts: u32,
    /// Clips of a pass of the UNet
    #[arg(long, default_value_t = 1)]
    pub(super) batch: u32,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum Precision {
    /// 32 bits
    F32,
    /// 16 bits
    F16,
}

impl FormatArgs {
    pub(super) fn precision(&self) -> ExportPrecision {
        match self.precision {
            Precision::F32 => ExportPrecision::F32,
            Precision::F16 => ExportPrecision::F16,
        }
    }

    pub(super) fn formats(&self) -> Vec<ExportFormat> {
        self.core_ml.then_some(ExportFormat::CoreMl).into_iter().collect()
    }
}

/// The text of a file.
pub(super) fn read(path: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

/// Uploads files that are named one by one.
pub(super) async fn upload_all(
    client: &Client,
    paths: &[PathBuf],
    role: ArtifactRole,
) -> anyhow::Result<Vec<ArtifactRef>> {
    let mut files = Vec::with_capacity(paths.len());
    for path in paths {
        files.push(base::upload_one(client, path, role).await?);
    }
    Ok(files)
}
