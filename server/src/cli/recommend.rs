//! `temponas recommend`.

use clap::Args;
use protocol::searches::{FrontPoint, Recommendation};

use super::{Remote, render};
use crate::config::ConfigFile;

const MIB: f64 = 1_048_576.0;

#[derive(Debug, Args)]
pub(super) struct RecommendArgs {
    /// The search's id, or the beginning or end of it
    id: String,
    /// The most milliseconds that one step may take
    #[arg(long, value_name = "MS")]
    latency_ms: Option<f64>,
    /// The most peak memory, in MiB
    #[arg(long, value_name = "MIB")]
    memory_mb: Option<f64>,
    #[command(flatten)]
    remote: Remote,
}

pub(super) async fn run(args: RecommendArgs, file: &ConfigFile) -> anyhow::Result<()> {
    let client = args.remote.client(file)?;
    let id = client.find_search(&args.id).await?;
    let memory = args.memory_mb.map(|mebibytes| ("peak_memory_bytes", mebibytes * MIB));
    let limits: Vec<(&str, f64)> = args
        .latency_ms
        .map(|ms| ("latency_ms", ms))
        .into_iter()
        .chain(memory)
        .collect();
    let recommendation = client.recommendation(id, &limits).await?;
    render::print(&text(&recommendation))?;
    Ok(())
}

fn text(recommendation: &Recommendation) -> String {
    let mut text = match &recommendation.best {
        Some(best) => format!("best verified candidate within the limits:\n{}", point(best)),
        None => "no verified candidate is within the limits\n".to_owned(),
    };
    if let Some(unverified) = &recommendation.best_unverified {
        text += &format!("\npredicted to be better, not verified yet:\n{}", point(unverified));
    }
    if !recommendation.next_actions.is_empty() {
        text += "\nwhat to try next:\n";
    }
    for next in &recommendation.next_actions {
        let costs: Vec<String> = next
            .predicted
            .iter()
            .map(|(metric, figure)| format!("{} {}", render::head(metric), render::figure(metric, figure)))
            .collect();
        text += &format!(
            "  from #{}: {}  →  {}\n    expected gain of quality {}  ({})\n    {}\n",
            next.from,
            next.action,
            next.architecture,
            render::figure("quality", &next.expected_gain),
            next.basis,
            costs.join(", "),
        );
    }
    text + &format!("\nspent: {}\n", render::budget(&recommendation.budget))
}

fn point(point: &FrontPoint) -> String {
    let mut text = format!("  #{} {}\n", point.number, point.architecture);
    for (metric, figure) in &point.metrics {
        let verified = point.verified.get(metric).map_or_else(String::new, |verified| {
            format!("   verified {}", render::figure(metric, verified))
        });
        text += &format!(
            "    {:<18} {}{verified}\n",
            render::head(metric),
            render::figure(metric, figure)
        );
    }
    for (metric, figure) in point
        .verified
        .iter()
        .filter(|(metric, _)| !point.metrics.contains_key(*metric))
    {
        text += &format!(
            "    {:<18} verified {}\n",
            render::head(metric),
            render::figure(metric, figure)
        );
    }
    text
}
