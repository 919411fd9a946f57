//! `temponas lut compare`: the tables of two runtimes of a device, side by side.

use std::collections::BTreeMap;

use anyhow::{Context, ensure};
use clap::Args;
use protocol::{
    Figure,
    devices::RuntimeName,
    luts::{Block, LutEntryView},
};

use super::render;
use crate::client::Client;

#[derive(Debug, Args)]
pub(super) struct CompareArgs {
    /// The device
    device: String,
    /// A runtime as NAME@VERSION; twice: the ratio is the second's latency to the first's
    #[arg(long, value_parser = super::parse_runtime, value_name = "NAME@VERSION", required = true)]
    runtime: Vec<RuntimeName>,
    /// Only entries of this operator, such as `self_attention3d`
    #[arg(long)]
    operator: Option<String>,
}

pub(super) async fn run(args: CompareArgs, client: &Client) -> anyhow::Result<()> {
    let [first, second] = args.runtime.as_slice() else {
        anyhow::bail!("--runtime is there {} times; allowed: twice", args.runtime.len());
    };
    ensure!(first != second, "both --runtime are {}", written(first));
    let entries = client.lut(&args.device, args.operator.as_deref()).await?;
    let rows = side_by_side(&entries, [first, second]);
    ensure!(
        !rows.is_empty(),
        "no block of {} was measured by both {} and {}",
        args.device,
        written(first),
        written(second)
    );
    let mut table = render::table([
        "operator".to_owned(),
        "shape".to_owned(),
        "dtype".to_owned(),
        written(first),
        written(second),
        "ratio".to_owned(),
    ]);
    for row in &rows {
        let shape: Vec<String> = row
            .block
            .shape
            .iter()
            .map(|(name, size)| format!("{name}={size}"))
            .collect();
        let [first, second] = row.latency_ms.map(|figure| render::figure("latency_ms", &figure));
        table.add_row([
            row.block.operator.clone(),
            shape.join(" "),
            row.dtype.to_owned(),
            first,
            second,
            format!("{:.3}", row.ratio()),
        ]);
    }
    render::say(&table.to_string())?;
    let means = geometric_means(&rows).context("no ratios")?;
    let means: Vec<String> = means.iter().map(|(name, mean)| format!("{name} {mean:.3}")).collect();
    render::say(&format!("geometric mean of the ratios: {}", means.join(", ")))?;
    Ok(())
}

/// A block that both runtimes measured.
#[derive(Debug, PartialEq)]
struct Row<'a> {
    block: &'a Block,
    dtype: &'a str,
    /// Medians with their standard errors.
    latency_ms: [Figure; 2],
}

impl Row<'_> {
    fn ratio(&self) -> f64 {
        self.latency_ms[1].value / self.latency_ms[0].value
    }
}

/// What both measured above zero in one number format, by block.
fn side_by_side<'a>(entries: &'a [LutEntryView], runtimes: [&RuntimeName; 2]) -> Vec<Row<'a>> {
    let [firsts, seconds] = runtimes.map(|runtime| {
        let of_it = entries.iter().filter(|entry| entry.runtime == *runtime);
        let measured = of_it.filter_map(|entry| {
            let latency = entry.latency_ms.filter(|latency| latency.value > 0.0)?;
            Some(((&entry.block, entry.dtype.as_str()), latency))
        });
        measured.collect::<BTreeMap<_, _>>()
    });
    let both = firsts.into_iter().filter_map(|((block, dtype), first)| {
        Some(Row {
            block,
            dtype,
            latency_ms: [first, *seconds.get(&(block, dtype))?],
        })
    });
    both.collect()
}

/// By operator, then of all.
fn geometric_means(rows: &[Row<'_>]) -> Option<Vec<(String, f64)>> {
    let mut logarithms: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for row in rows {
        let of_operator = logarithms.entry(&row.block.operator).or_default();
        of_operator.push(row.ratio().ln());
    }
    #[expect(clippy::cast_precision_loss, reason = "entries of a table")]
    let mean = |values: &[f64]| (!values.is_empty()).then(|| (values.iter().sum::<f64>() / values.len() as f64).exp());
    let all: Vec<f64> = logarithms.values().flatten().copied().collect();
    let named = logarithms.iter().map(|(name, values)| (*name, values.as_slice()));
    named
        .chain([("all", all.as_slice())])
        .map(|(name, values)| Some((name.to_owned(), mean(values)?)))
        .collect()
}

fn written(runtime: &RuntimeName) -> String {
    format!("{}@{}", runtime.name, runtime.version)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runtime(name: &str) -> RuntimeName {
        RuntimeName {
            name: name.to_owned(),
            version: "1".to_owned(),
        }
    }

    fn entry(runtime_name: &str, operator: &str, c: u64, dtype: &str, latency_ms: Option<f64>) -> LutEntryView {
        LutEntryView {
            runtime: runtime(runtime_name),
            dtype: dtype.to_owned(),
            block: Block {
                operator: operator.to_owned(),
                shape: BTreeMap::from([("c".to_owned(), c)]),
            },
            state: "measured".to_owned(),
            detail: None,
            latency_ms: latency_ms.map(|value| Figure {
                value,
                standard_error: 0.1,
            }),
            latency_spread_ms: None,
            peak_memory_bytes: None,
            samples: 1,
            latency_ms_samples: vec![],
        }
    }

    #[test]
    fn blocks_that_both_measured_stand_side_by_side_with_geometric_means_of_their_ratios() {
        let entries = [
            entry("torch", "conv1d", 8, "f32", Some(2.0)),
            entry("ort", "conv1d", 8, "f32", Some(1.0)),
            entry("torch", "conv1d", 16, "f32", Some(1.0)),
            entry("ort", "conv1d", 16, "f32", Some(8.0)),
            entry("torch", "conv3d", 8, "f32", Some(4.0)),
            entry("ort", "conv3d", 8, "f32", Some(2.0)),
            // None of these is a pair.
            entry("ort", "conv3d", 16, "f32", Some(2.0)),
            entry("ort", "conv1d", 8, "f16", Some(2.0)),
            entry("torch", "conv1d", 32, "f32", None),
            entry("ort", "conv1d", 32, "f32", Some(1.0)),
            entry("other", "conv3d", 16, "f32", Some(1.0)),
        ];
        let rows = side_by_side(&entries, [&runtime("torch"), &runtime("ort")]);
        let ratios: Vec<(&str, u64, f64)> = rows
            .iter()
            .map(|row| (row.block.operator.as_str(), row.block.shape["c"], row.ratio()))
            .collect();
        assert_eq!(ratios, [("conv1d", 8, 0.5), ("conv1d", 16, 8.0), ("conv3d", 8, 0.5)]);
        let means = geometric_means(&rows).unwrap();
        // √(½ · 8), ½, ∛(½ · 8 · ½).
        let expected = [("conv1d", 2.0), ("conv3d", 0.5), ("all", 2.0_f64.cbrt())];
        for ((name, mean), (named, known)) in means.iter().zip(expected) {
            assert!(name == named && (mean - known).abs() < 1e-12, "{means:?}");
        }
        assert_eq!(means.len(), 3);
    }
}
