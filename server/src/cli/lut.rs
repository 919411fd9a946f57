//! `temponas lut`.

use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::{Args, Subcommand, ValueEnum};

use super::{Remote, render};
use crate::config::ConfigFile;

#[derive(Debug, Args)]
pub(super) struct LutArgs {
    #[command(subcommand)]
    command: LutCommand,
}

#[derive(Debug, Subcommand)]
enum LutCommand {
    /// List devices, or the entries of one device
    List {
        /// The device
        device: Option<String>,
        /// Only entries of this operator, such as `self_attention3d`
        #[arg(long)]
        operator: Option<String>,
        #[command(flatten)]
        remote: Box<Remote>,
    },
    /// Write a device's table with its raw samples
    Export {
        /// The device
        device: String,
        /// How to write it
        #[arg(long, value_enum, default_value_t = TableFormat::Csv)]
        format: TableFormat,
        /// Write into a file instead of standard output
        #[arg(long, short, value_name = "FILE")]
        output: Option<PathBuf>,
        #[command(flatten)]
        remote: Box<Remote>,
    },
    /// Read a table into a device's; entries that are there already change nothing
    Import {
        /// The device
        device: String,
        /// The table (.csv or .json)
        table: PathBuf,
        #[command(flatten)]
        remote: Box<Remote>,
    },
    /// Plot the six temporal operators over the size of their input at 12 frames, closed form beside measured
    /// (the paper's Figure 3)
    Plot {
        /// The device
        device: String,
        /// How to write it; by the file's name unless given
        #[arg(long, value_enum)]
        format: Option<PlotFormat>,
        /// Shipped space whose UNet gives channels, heads and text, such as `snapgen-v`; the one of which most
        /// was measured, unless given
        #[arg(long)]
        space: Option<String>,
        /// The runtime as NAME@VERSION; the one with most entries, unless given
        #[arg(long)]
        runtime: Option<String>,
        /// Write into a file instead of standard output
        #[arg(long, short, value_name = "FILE")]
        output: Option<PathBuf>,
        #[command(flatten)]
        remote: Box<Remote>,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum TableFormat {
    /// One row an entry
    Csv,
    /// One object an entry
    Json,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum PlotFormat {
    /// Scalable
    Svg,
    /// Pixels
    Png,
}

pub(super) async fn run(args: LutArgs, file: &ConfigFile) -> anyhow::Result<()> {
    match args.command {
        LutCommand::List {
            device: None, remote, ..
        } => list_devices(*remote, file).await,
        LutCommand::List {
            device: Some(device),
            operator,
            remote,
        } => list_entries(&device, operator.as_deref(), *remote, file).await,
        LutCommand::Export {
            device,
            format,
            output,
            remote,
        } => {
            let extension = if format == TableFormat::Csv { "csv" } else { "json" };
            let bytes = remote
                .client(file)?
                .bytes(&format!("/v1/luts/{device}/export.{extension}"), &[])
                .await?;
            render::deliver(&bytes, output.as_deref())
        }
        LutCommand::Import { device, table, remote } => {
            let text = std::fs::read_to_string(&table).with_context(|| format!("cannot read {}", table.display()))?;
            let media_type = match table.extension().and_then(|extension| extension.to_str()) {
                Some("csv") => "text/csv",
                Some("json") => "application/json",
                _ => bail!("{}: a table's name ends with .csv or .json", table.display()),
            };
            remote
                .client(file)?
                .post_text(&format!("/v1/luts/{device}/import"), media_type, &text)
                .await?;
            render::say(&format!("{} is in the table of {device}", table.display()))?;
            Ok(())
        }
        LutCommand::Plot {
            device,
            format,
            space,
            runtime,
            output,
            remote,
        } => {
            let named = output
                .as_ref()
                .and_then(|path| path.extension())
                .is_some_and(|extension| extension == "png");
            let extension = match format {
                Some(PlotFormat::Png) => "png",
                Some(PlotFormat::Svg) => "svg",
                None => {
                    if named {
                        "png"
                    } else {
                        "svg"
                    }
                }
            };
            let wishes = [("space", &space), ("runtime", &runtime)];
            let query: Vec<(&str, &str)> = wishes
                .into_iter()
                .filter_map(|(name, wish)| Some((name, wish.as_deref()?)))
                .collect();
            let bytes = remote
                .client(file)?
                .bytes(&format!("/v1/luts/{device}/figure3.{extension}"), &query)
                .await?;
            render::deliver(&bytes, output.as_deref())
        }
    }
}

async fn list_devices(remote: Remote, file: &ConfigFile) -> anyhow::Result<()> {
    let mut table = render::table(["device", "what it is", "memory", "runtimes", "entries"]);
    for view in remote.client(file)?.devices().await? {
        let runtimes: Vec<String> = view
            .runtimes
            .iter()
            .map(|runtime| format!("{}@{}", runtime.name, runtime.version))
            .collect();
        #[expect(clippy::cast_precision_loss, reason = "shown with four digits")]
        let memory = view
            .device
            .memory_bytes
            .map(|bytes| render::value("peak_memory_bytes", bytes as f64));
        table.add_row([
            view.device.name,
            view.device.description,
            memory.unwrap_or_default(),
            runtimes.join(", "),
            view.lut_entries.to_string(),
        ]);
    }
    render::say(&table.to_string())?;
    Ok(())
}

async fn list_entries(device: &str, operator: Option<&str>, remote: Remote, file: &ConfigFile) -> anyhow::Result<()> {
    let mut table = render::table([
        "operator",
        "shape",
        "dtype",
        "runtime",
        "latency",
        "spread",
        "peak memory",
        "samples",
    ]);
    for entry in remote.client(file)?.lut(device, operator).await? {
        let shape: Vec<String> = entry
            .block
            .shape
            .iter()
            .map(|(name, size)| format!("{name}={size}"))
            .collect();
        let latency = match entry.latency_ms {
            Some(latency) => render::figure("latency_ms", &latency),
            None => format!("{}: {}", entry.state, entry.detail.unwrap_or_default()),
        };
        let memory = entry
            .peak_memory_bytes
            .map(|memory| render::figure("peak_memory_bytes", &memory));
        table.add_row([
            entry.block.operator,
            shape.join(" "),
            entry.dtype,
            format!("{}@{}", entry.runtime.name, entry.runtime.version),
            latency,
            entry
                .latency_spread_ms
                .map_or_else(String::new, |spread| render::value("latency_ms", spread)),
            memory.unwrap_or_default(),
            entry.samples.to_string(),
        ]);
    }
    render::say(&table.to_string())?;
    Ok(())
}
