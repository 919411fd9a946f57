//! `temponas front`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::{Remote, render};
use crate::config::ConfigFile;

#[derive(Debug, Args)]
pub(super) struct FrontArgs {
    /// The search's id, or the beginning or end of it
    id: String,
    /// How to write it
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
    /// Write into a file instead of standard output
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    #[command(flatten)]
    remote: Remote,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people
    Table,
    /// One row a point
    Csv,
    /// Everything: points, references, history
    Json,
    /// A plot
    Svg,
    /// A plot
    Png,
}

pub(super) async fn run(args: FrontArgs, file: &ConfigFile) -> anyhow::Result<()> {
    let client = args.remote.client(file)?;
    let id = client.find_search(&args.id).await?;
    let plot = |format: &str| format!("/v1/searches/{id}/front.{format}");
    let bytes = match args.format {
        Format::Table => format!("{}\n", render::front(&client.front(id).await?)).into_bytes(),
        Format::Json => {
            let mut text = serde_json::to_string_pretty(&client.front(id).await?)?;
            text.push('\n');
            text.into_bytes()
        }
        Format::Csv => client.bytes(&plot("csv"), &[]).await?,
        Format::Svg => client.bytes(&plot("svg"), &[]).await?,
        Format::Png => client.bytes(&plot("png"), &[]).await?,
    };
    render::deliver(&bytes, args.output.as_deref())
}
