//! `temponas lut`.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, bail};
use clap::{Args, Subcommand, ValueEnum};
use protocol::{
    JobId,
    devices::RuntimeName,
    jobs::JobState,
    luts::{BlockSet, ProfileRequest},
};

use super::{Remote, render};
use crate::{client::Client, config::ConfigFile};

/// How often a job is looked at that is waited for.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

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
    /// Have workers on a device measure blocks that its table lacks; what does not fit into their memory becomes an
    /// entry that says so
    Profile {
        /// The device
        device: String,
        /// Measure what `lut plot` draws (the paper's Figure 3) instead of the blocks of the space
        #[arg(long)]
        figure3: bool,
        /// With --figure3: heights and widths of the input in latent pixels [default: 4,8,16,32,64]
        #[arg(long, value_delimiter = ',', requires = "figure3")]
        sizes: Vec<u64>,
        /// Shipped space that gives channels, heads, text and number format
        #[arg(long, default_value = "snapgen-v")]
        space: String,
        /// The device's runtime as NAME@VERSION; the only one it has, unless given
        #[arg(long, value_parser = super::parse_runtime, value_name = "NAME@VERSION")]
        runtime: Option<RuntimeName>,
        /// Wait until they have been measured
        #[arg(long)]
        watch: bool,
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
        LutCommand::Profile {
            device,
            figure3,
            sizes,
            space,
            runtime,
            watch,
            remote,
        } => {
            let blocks = if figure3 {
                BlockSet::Figure3 { sizes }
            } else {
                BlockSet::Space
            };
            let wish = ProfileRequest { space, runtime, blocks };
            profile(&remote.client(file)?, &device, &wish, watch).await
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

async fn profile(client: &Client, device: &str, wish: &ProfileRequest, watch: bool) -> anyhow::Result<()> {
    let queued = client.profile(device, wish).await?;
    let heaviest = queued.heaviest_macs.map_or_else(String::new, |macs| {
        format!(", the heaviest of {} a pass", render::macs(macs))
    });
    render::say(&format!(
        "{} blocks to measure in {} jobs{heaviest}; {} are in the table, {} wait already",
        queued.queued,
        queued.jobs.len(),
        queued.known,
        queued.waiting
    ))?;
    for job in &queued.jobs {
        render::say(&job.to_string())?;
    }
    if watch {
        until_measured(client, &queued.jobs).await?;
    }
    Ok(())
}

/// Says what becomes of the jobs, until none is open.
async fn until_measured(client: &Client, jobs: &[JobId]) -> anyhow::Result<()> {
    let mut failed = 0;
    for (index, id) in jobs.iter().enumerate() {
        let mut said = String::new();
        loop {
            let job = client.job(*id).await?;
            let status = job.status.unwrap_or_default();
            let line = format!("job {} of {}: {} {status}", index + 1, jobs.len(), job.state.as_str());
            if line != said {
                eprintln!("{}", line.trim_end());
                said = line;
            }
            match job.state {
                JobState::Queued | JobState::Leased => tokio::time::sleep(LOOK_AGAIN).await,
                JobState::Succeeded => break,
                JobState::Failed | JobState::Cancelled => {
                    failed += 1;
                    break;
                }
            }
        }
    }
    if failed > 0 {
        bail!("{failed} jobs were given up; `temponas job ID --log` says why");
    }
    Ok(())
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
