//! `temponas lut import`: our own tables, and what other tools measured.

use std::{
    io::Read,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use lut::{
    Entry, ImportErrors, Lut, Runtime,
    formats::{self, Imported, aihub, coreml, published, tflite},
};
use protocol::devices::RuntimeName;
use search_spaces::Dtype;

use super::render;
use crate::client::Client;

/// The largest text that is read, in bytes: far above any published table.
const LARGEST: u64 = 1 << 30;

#[derive(Debug, Args)]
pub(super) struct ImportArgs {
    /// The device
    device: String,
    /// The file; one that ends with .gz is unpacked
    table: PathBuf,
    /// What it is [default: by its ending, `csv` or `json`]
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// The runtime that measured, as NAME@VERSION, where the file does not say
    #[arg(long, value_parser = super::parse_runtime, value_name = "NAME@VERSION")]
    runtime: Option<RuntimeName>,
    /// The number format, where the file does not say
    #[arg(long, default_value = "f32")]
    dtype: Dtype,
    /// The model, where the file does not name it: the operator of its entry [default: the file's name]
    #[arg(long)]
    model: Option<String>,
    /// The device as the file calls it, where it holds several
    #[arg(long, value_name = "NAME")]
    source_device: Option<String>,
    /// With `published`: a network whose entries are added up (JSON); keys that the table lacks are told
    #[arg(long, value_name = "FILE")]
    network: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Our own table, one row an entry
    Csv,
    /// Our own table, one object an entry
    Json,
    /// Tables of Once-for-All, ProxylessNAS and NSGANetV2 (YAML)
    Published,
    /// The performance table of Qualcomm AI Hub (CSV)
    AihubTable,
    /// The profile of a job of Qualcomm AI Hub (JSON)
    AihubProfile,
    /// The log of TensorFlow Lite's benchmark_model
    Tflite,
    /// The performance report of Core ML (`report.json` of Xcode's .mlperf)
    Coreml,
    /// Core ML's own estimates (CSV): shown, never stored
    CoremlEstimates,
}

pub(super) async fn run(args: ImportArgs, client: &Client) -> anyhow::Result<()> {
    let text = read(&args.table)?;
    let format = match args.format {
        Some(format) => format,
        None => match args.table.extension().and_then(|extension| extension.to_str()) {
            Some("csv") => Format::Csv,
            Some("json") => Format::Json,
            _ => bail!(
                "{}: a table's name ends with .csv or .json; --format says what else it is",
                args.table.display()
            ),
        },
    };
    let route = format!("/v1/luts/{}/import", args.device);
    let (media_type, text) = match format {
        Format::Csv => ("text/csv", text),
        Format::Json => ("application/json", text),
        foreign => {
            let imported = args.foreign(foreign, &text)?;
            for note in &imported.notes {
                render::say(note)?;
            }
            if imported.entries.is_empty() {
                return render::say("nothing for a table").map_err(Into::into);
            }
            render::say(&format!("{} entries", imported.entries.len()))?;
            ("text/csv", formats::csv::export(imported.entries))
        }
    };
    client.post_text(&route, media_type, &text).await?;
    render::say(&format!("{} is in the table of {}", args.table.display(), args.device))?;
    Ok(())
}

impl ImportArgs {
    fn foreign(&self, format: Format, text: &str) -> anyhow::Result<Imported> {
        let (device, dtype) = (self.device.as_str(), self.dtype);
        let imported = match format {
            Format::Csv | Format::Json => bail!("our own tables go to the coordinator as they are"),
            Format::Published => return self.published(text),
            Format::AihubTable => {
                let source = self.source_device.as_deref().unwrap_or(device);
                aihub::import_table(text, source, device, dtype)
            }
            Format::AihubProfile => aihub::import_profile(text, device, &self.model(), self.runtime()?, dtype),
            Format::Tflite => {
                let log = self.located(tflite::import(text))?;
                let imported = log.imported(device, &self.model(), self.runtime()?, dtype);
                return imported.context("the log's mean is no time");
            }
            Format::Coreml => coreml::import_report(text, device, dtype),
            Format::CoremlEstimates => coreml::import_estimates(text).map(|estimates| estimated(&estimates)),
        };
        self.located(imported)
    }

    fn published(&self, text: &str) -> anyhow::Result<Imported> {
        let table = self.located(published::import(text, &self.device, self.runtime()?, self.dtype))?;
        let mut notes = Vec::new();
        if let Some(file) = &self.network {
            let blocks = published::network(&read(file)?);
            let blocks = blocks.map_err(|errors| anyhow::anyhow!("{}: {errors}", file.display()))?;
            let sum = published::sum(&table, &blocks);
            notes.push(format!(
                "{} blocks of the network: {:.3} ms together",
                blocks.len() - sum.missing.len(),
                sum.latency_ms
            ));
            notes.extend(sum.missing.iter().map(|block| format!("not in the table: {block}")));
        }
        Ok(Imported {
            entries: entries(&table),
            notes,
        })
    }

    fn model(&self) -> String {
        let stem = || {
            self.table
                .file_stem()
                .map_or_else(String::new, |stem| stem.to_string_lossy().into_owned())
        };
        self.model.clone().unwrap_or_else(stem)
    }

    fn runtime(&self) -> anyhow::Result<Runtime> {
        let named = self
            .runtime
            .as_ref()
            .context("the file does not say what measured: --runtime NAME@VERSION")?;
        Ok(Runtime::new(&named.name, &named.version))
    }

    fn located<T>(&self, read: Result<T, ImportErrors>) -> anyhow::Result<T> {
        read.map_err(|errors| anyhow::anyhow!("{}: {errors}", self.table.display()))
    }
}

fn entries(table: &Lut) -> Vec<Entry> {
    table.entries().collect()
}

fn estimated(estimates: &[coreml::Estimate]) -> Imported {
    let mut backends = std::collections::BTreeMap::<&str, (u64, f64)>::new();
    for one in estimates {
        let (operations, sum) = backends.entry(&one.backend).or_default();
        *operations += 1;
        *sum += one.estimate;
    }
    let line = |(backend, (operations, sum)): (&str, (u64, f64))| {
        format!("{backend}: {operations} operations, estimates of {sum:.4} together")
    };
    Imported {
        entries: Vec::new(),
        notes: backends
            .into_iter()
            .map(line)
            .chain(["estimates are no measurements".to_owned()])
            .collect(),
    }
}

fn read(path: &Path) -> anyhow::Result<String> {
    let read = || -> std::io::Result<String> {
        let file = std::fs::File::open(path)?;
        let mut text = String::new();
        if path.extension().is_some_and(|extension| extension == "gz") {
            flate2::read::GzDecoder::new(file)
                .take(LARGEST)
                .read_to_string(&mut text)?;
        } else {
            file.take(LARGEST).read_to_string(&mut text)?;
        }
        Ok(text)
    };
    read().with_context(|| format!("cannot read {}", path.display()))
}
