//! `temponas lut`.

use std::{path::PathBuf, time::Duration};

use anyhow::bail;
use clap::{Args, Subcommand, ValueEnum};
use protocol::{
    JobId,
    devices::RuntimeName,
    jobs::JobState,
    luts::{BlockEstimate, BlockSet, EstimateBasis, ProfileRequest},
};

use super::{
    Remote,
    lut_compare::{self, CompareArgs},
    lut_import::{self, ImportArgs},
    render,
};
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
    /// Read a table, or what another tool measured, into a device's table; entries that are there already change nothing
    Import {
        #[command(flatten)]
        import: Box<ImportArgs>,
        #[command(flatten)]
        remote: Box<Remote>,
    },
    /// Show what a device's tables hold, and the leave-out error of each operator: how far off it is predicted from its
    /// neighbours when its own entry is left out
    Show {
        /// The device
        device: String,
        #[command(flatten)]
        remote: Box<Remote>,
    },
    /// Set the entries of two runtimes of a device side by side, with the ratio of their latencies by block and, as the
    /// geometric mean, by operator
    Compare {
        #[command(flatten)]
        compare: Box<CompareArgs>,
        #[command(flatten)]
        remote: Box<Remote>,
    },
    /// What a block costs by a device's table: measured, or interpolated between measured neighbours
    Estimate {
        /// The device
        device: String,
        /// The operator, such as `conv3d`
        operator: String,
        /// Its dimensions, such as `b=1,c=64,groups=8,h=8,t=5,w=8`
        shape: String,
        /// The runtime as NAME@VERSION; needed where the device has several
        #[arg(long)]
        runtime: Option<String>,
        /// The number format, such as `f32`; needed where the device has tables of several
        #[arg(long)]
        dtype: Option<String>,
        /// Also beyond what was measured
        #[arg(long)]
        extrapolate: bool,
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
        LutCommand::Import { import, remote } => lut_import::run(*import, &remote.client(file)?).await,
        LutCommand::Compare { compare, remote } => lut_compare::run(*compare, &remote.client(file)?).await,
        LutCommand::Show { device, remote } => show(&device, *remote, file).await,
        LutCommand::Estimate {
            device,
            operator,
            shape,
            runtime,
            dtype,
            extrapolate,
            remote,
        } => {
            let extrapolate = extrapolate.then(|| "true".to_owned());
            let wishes = [
                ("operator", Some(operator)),
                ("shape", Some(shape)),
                ("runtime", runtime),
                ("dtype", dtype),
                ("extrapolate", extrapolate),
            ];
            let query: Vec<(&str, &str)> = wishes
                .iter()
                .filter_map(|(name, wish)| Some((*name, wish.as_deref()?)))
                .collect();
            print_estimate(&remote.client(file)?.lut_estimate(&device, &query).await?)
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

async fn show(device: &str, remote: Remote, file: &ConfigFile) -> anyhow::Result<()> {
    let percent = |share: f64| format!("{:.1} %", 100.0 * share);
    for summary in remote.client(file)?.lut_summary(device).await? {
        render::say(&format!(
            "{}@{}, {}: {} measured, {} out of memory, {} unsupported",
            summary.runtime.name,
            summary.runtime.version,
            summary.dtype,
            summary.measured,
            summary.out_of_memory,
            summary.unsupported
        ))?;
        if summary.leave_out.is_empty() {
            render::say("no entry stands between two others, so none could be left out")?;
            continue;
        }
        let mut table = render::table([
            "operator",
            "between neighbours in",
            "entries",
            "latency: mean",
            "p95",
            "within 10 %",
            "memory: mean",
            "within 10 %",
        ]);
        for error in summary.leave_out {
            let memory = error.peak_memory.as_ref();
            table.add_row([
                error.operator,
                error.over.join(" "),
                error.latency.cases.to_string(),
                percent(error.latency.mean),
                percent(error.latency.p95),
                percent(error.latency.within_10_percent),
                memory.map_or_else(String::new, |memory| percent(memory.mean)),
                memory.map_or_else(String::new, |memory| percent(memory.within_10_percent)),
            ]);
        }
        render::say(&table.to_string())?;
    }
    Ok(())
}

fn print_estimate(estimate: &BlockEstimate) -> anyhow::Result<()> {
    let basis = match estimate.basis {
        EstimateBasis::Measured => "measured",
        EstimateBasis::Interpolated => "interpolated between measured neighbours",
        EstimateBasis::Extrapolated => "extrapolated beyond what was measured",
        EstimateBasis::OutOfMemory => "out of memory",
        EstimateBasis::Unsupported => "the runtime cannot run it",
        EstimateBasis::Missing => "not known",
    };
    let figures = [
        ("latency", "latency_ms", &estimate.latency_ms),
        ("peak memory", "peak_memory_bytes", &estimate.peak_memory_bytes),
    ];
    render::say(&format!("{:<15} {basis}", "basis"))?;
    for (name, metric, figure) in figures {
        if let Some(figure) = figure {
            render::say(&format!("{name:<15} {}", render::figure(metric, figure)))?;
        }
    }
    if let Some(error) = estimate.leave_out_error {
        render::say(&format!("{:<15} {:.1} % in the mean", "leave-out error", 100.0 * error))?;
    }
    if let Some(detail) = &estimate.detail {
        render::say(detail)?;
    }
    Ok(())
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
        // For a runtime that runs graphs these jobs only exported them: measuring follows.
        let mut left = client.profile(device, wish).await?;
        while left.queued + left.waiting > 0 {
            until_measured(client, &left.jobs).await?;
            tokio::time::sleep(LOOK_AGAIN).await;
            left = client.profile(device, wish).await?;
        }
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
        bail!("{failed} jobs were given up; `temponas job ID --logs` says why");
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
