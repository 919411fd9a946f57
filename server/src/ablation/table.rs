//! From results to a table.

use std::collections::{BTreeMap, BTreeSet};

use protocol::{
    Figure, Metrics,
    ablations::{AblationCell, AblationColumn, AblationKind, AblationRow, AblationTable},
    deployments::DeployStep,
    jobs::{GraphOutcome, Outcome, ProfileModelOutcome},
};
use search_spaces::metric;

use super::{
    figures::{difference, is_resolved, mean},
    paper,
    plan::{Aim, Plan, STEPS},
};

/// What the deployments of a table found, by the deployment's name and step.
pub type Results = BTreeMap<String, BTreeMap<DeployStep, Outcome>>;

/// The table as far as it is known. `scores` are the metrics that the space's evaluator tells, the whole first.
#[must_use]
pub fn fill(kind: AblationKind, plan: &Plan, scores: &[String], results: &Results) -> AblationTable {
    let mut rows: Vec<Row> = plan.rows.iter().map(|_| Row::default()).collect();
    for part in &plan.parts {
        if let Some(found) = results.get(&part.cell) {
            take(&mut rows, part.aim, found);
        }
    }
    let columns = columns(kind, scores, &rows, plan);
    let baseline = rows.first().cloned().unwrap_or_default();
    let is_of = |index: usize, row: &Row| -> AblationRow {
        let settings = plan.rows[index].clone();
        AblationRow {
            cells: columns
                .iter()
                .map(|column| cell(column, row, (index > 0).then_some(&baseline)))
                .collect(),
            paper: columns
                .iter()
                .map(|column| paper::figure(kind, &settings, &column.metric))
                .collect(),
            settings,
        }
    };
    let mut notes = plan.notes.clone();
    notes.extend(remarks(kind, &columns, plan));
    AblationTable {
        title: title(kind).to_owned(),
        factors: plan.factors.clone(),
        rows: rows.iter().enumerate().map(|(index, row)| is_of(index, row)).collect(),
        columns,
        notes,
    }
}

fn title(kind: AblationKind) -> &'static str {
    match kind {
        AblationKind::Table3 => "Images in joint training, and the number of temporal layers (the paper's Table 3)",
        AblationKind::Table4 => "The adversarial fine-tuning (the paper's Table 4)",
        AblationKind::Table5 => "Steps of a sample (the paper's Table 5)",
        AblationKind::Figure6 => "Temporal layers removed from a stage, then fine-tuned (the paper's Figure 6)",
    }
}

/// What is known of a row.
#[derive(Debug, Clone, Default)]
struct Row {
    /// Figures by metric, one a seed.
    figures: BTreeMap<String, Vec<Figure>>,
    /// What cannot be run, by metric: why.
    refused: BTreeMap<String, String>,
    evaluators: BTreeSet<String>,
}

impl Row {
    fn add(&mut self, metrics: &Metrics) {
        for (name, figure) in metrics {
            self.figures.entry(name.clone()).or_default().push(*figure);
        }
    }
}

fn take(rows: &mut [Row], aim: Aim, found: &BTreeMap<DeployStep, Outcome>) {
    match aim {
        Aim::Prepare => {}
        Aim::Score { row } => {
            let Some(row) = rows.get_mut(row) else { return };
            for outcome in found.values() {
                let (metrics, evaluator) = match outcome {
                    Outcome::TrainFinal(found) => (&found.metrics, &found.evaluator),
                    Outcome::Distill(found) => (&found.metrics, &found.evaluator),
                    _ => continue,
                };
                row.add(metrics);
                row.evaluators.insert(evaluator.clone());
            }
        }
        Aim::ScoreAll => {
            let Some(Outcome::Distill(found)) = found.get(&DeployStep::Distill) else {
                return;
            };
            for (row, steps) in rows.iter_mut().zip(STEPS) {
                if let Some(scored) = found.by_steps.iter().find(|scored| scored.steps == steps) {
                    row.add(&scored.metrics);
                    row.evaluators.insert(found.evaluator.clone());
                }
            }
        }
        Aim::Measure { row, parts } => {
            if let (Some(row), Some(Outcome::ProfileModel(found))) =
                (rows.get_mut(row), found.get(&DeployStep::ProfileModel))
            {
                measure(row, parts, found);
            }
        }
    }
}

/// Latency and memory of a model in parts, or why it has none.
fn measure(row: &mut Row, parts: u32, found: &ProfileModelOutcome) {
    let refusal = found.graphs.iter().find_map(|graph| match &graph.outcome {
        GraphOutcome::OutOfMemory { .. } => Some("out of memory"),
        GraphOutcome::Unsupported { .. } => Some("not supported"),
        GraphOutcome::Measured(_) => None,
    });
    for name in [metric::LATENCY_MS, metric::PEAK_MEMORY_BYTES] {
        let column = in_parts(name, parts);
        match (refusal, found.metrics.get(name)) {
            (Some(refusal), _) => {
                row.refused.insert(column, refusal.to_owned());
            }
            (None, Some(figure)) => row.figures.entry(column).or_default().push(*figure),
            (None, None) => {}
        }
    }
}

/// A metric's name as a heading.
fn capitalised(metric: &str) -> String {
    let mut words = metric.replace('_', " ");
    if let Some(first) = words.get_mut(0..1) {
        first.make_ascii_uppercase();
    }
    words
}

/// A metric of a model in parts.
fn in_parts(metric: &str, parts: u32) -> String {
    format!("{metric}@{parts}")
}

fn columns(kind: AblationKind, scores: &[String], rows: &[Row], plan: &Plan) -> Vec<AblationColumn> {
    let evaluators: BTreeSet<&String> = rows.iter().flat_map(|row| &row.evaluators).collect();
    let evaluator = evaluators.into_iter().cloned().collect::<Vec<_>>().join("; ");
    let is_known = |metric: &str| rows.iter().any(|row| row.figures.contains_key(metric));
    let difference = kind == AblationKind::Table3;
    let column = |name: &str, metric: &str| AblationColumn {
        name: name.to_owned(),
        metric: metric.to_owned(),
        evaluator: is_known(metric).then(|| evaluator.clone()),
        difference,
    };
    let of_paper = paper::columns(kind);
    let mut columns: Vec<AblationColumn> = of_paper.iter().map(|(name, metric)| column(name, metric)).collect();
    let own = scores
        .iter()
        .filter(|score| !of_paper.iter().any(|(_, metric)| metric == score));
    columns.extend(own.map(|score| column(&capitalised(score), score)));
    if kind == AblationKind::Table3 {
        columns.push(AblationColumn {
            evaluator: is_known(metric::PARAMETERS).then(|| "counted".to_owned()),
            ..column("Parameters", metric::PARAMETERS)
        });
        let measured: BTreeSet<(u32, &str)> = plan
            .parts
            .iter()
            .filter_map(|part| match part.aim {
                Aim::Measure { parts, .. } => Some((
                    parts,
                    part.settings.profile.as_ref().map_or("", |profile| &profile.device),
                )),
                _ => None,
            })
            .collect();
        for (parts, device) in measured {
            for (name, metric) in [("Latency", metric::LATENCY_MS), ("Memory", metric::PEAK_MEMORY_BYTES)] {
                columns.push(AblationColumn {
                    evaluator: Some(format!("measured on {device}")),
                    ..column(&format!("{name}, UNet in {parts}"), &in_parts(metric, parts))
                });
            }
        }
    }
    columns
}

fn cell(column: &AblationColumn, row: &Row, baseline: Option<&Row>) -> AblationCell {
    if let Some(refusal) = row.refused.get(&column.metric) {
        return AblationCell {
            text: refusal.clone(),
            ..AblationCell::default()
        };
    }
    let figures = row.figures.get(&column.metric).map_or(&[][..], Vec::as_slice);
    let Some(figure) = mean(figures) else {
        return AblationCell::default();
    };
    let standing = baseline.and_then(|row| mean(row.figures.get(&column.metric)?));
    let difference = standing.map(|standing| difference(figure, standing));
    // What is counted has no error: parameters, and bytes by the allocator's own count.
    let is_counted = column.metric == metric::PARAMETERS || column.metric.starts_with(metric::PEAK_MEMORY_BYTES);
    let is_exact = is_counted && difference.is_some_and(|difference| difference.standard_error == 0.0);
    let resolved = difference.map(|difference| is_resolved(difference, is_exact));
    let text = match (difference, resolved) {
        (Some(_), Some(false)) if column.difference => "not resolved".to_owned(),
        (Some(difference), Some(true)) if column.difference => signed(&column.metric, difference),
        (Some(_), Some(false)) => format!("{}, not resolved", plain(&column.metric, figure)),
        _ => plain(&column.metric, figure),
    };
    AblationCell {
        text,
        figure: Some(figure),
        difference,
        seeds: u32::try_from(figures.len()).unwrap_or(u32::MAX),
        resolved,
    }
}

/// How a metric is printed: what it is divided by, the digits after the point, the unit.
fn scale(name: &str) -> (f64, usize, &'static str) {
    let name = name.split('@').next().unwrap_or(name);
    match name {
        metric::PARAMETERS => (1e6, 3, " M"),
        _ if name.ends_with("_ms") => (1.0, 2, " ms"),
        _ if name.ends_with("_bytes") => (1_048_576.0, 1, " MiB"),
        // Scores are printed in percent, as the paper does.
        _ => (0.01, 2, ""),
    }
}

fn plain(metric: &str, figure: Figure) -> String {
    let (divisor, digits, unit) = scale(metric);
    let value = format!("{:.digits$}", figure.value / divisor).replace('-', "−");
    match figure.standard_error / divisor {
        0.0 => format!("{value}{unit}"),
        error => format!("{value} ± {error:.digits$}{unit}"),
    }
}

fn signed(metric: &str, figure: Figure) -> String {
    let text = plain(metric, figure);
    if text.starts_with('−') {
        text
    } else {
        format!("+{text}")
    }
}

/// What a reader must know of the figures.
fn remarks(kind: AblationKind, columns: &[AblationColumn], plan: &Plan) -> Vec<String> {
    let mut remarks = Vec::new();
    let nobody: Vec<&str> = columns
        .iter()
        .filter(|column| column.evaluator.is_none())
        .map(|column| column.name.as_str())
        .collect();
    if !nobody.is_empty() {
        remarks.push(format!("No evaluator is behind {}.", nobody.join(", ")));
    }
    let of_paper = |row: &Vec<String>| {
        columns
            .iter()
            .any(|column| paper::figure(kind, row, &column.metric).is_some())
    };
    if plan.rows.iter().any(of_paper) {
        remarks.push("The paper's figures are VBench's, of its model of 0.6B parameters.".to_owned());
    }
    let is_measured = plan.parts.iter().any(|part| matches!(part.aim, Aim::Measure { .. }));
    if kind == AblationKind::Table3 && !is_measured {
        remarks.push("Latency and memory are not measured: no device was named.".to_owned());
    }
    remarks.push(
        "Scores are in percent, ± one standard error over the seeds; of a single seed over its prompts. What is under \
         two standard errors of the difference from the first row is not resolved."
            .to_owned(),
    );
    remarks
}

#[cfg(test)]
mod tests {
    use protocol::{
        CandidateId,
        ablations::NewAblation,
        deployments::{DeployRecipes, DeploymentSettings, ProfileWish},
        devices::RuntimeName,
        jobs::{DistillOutcome, GraphProfile, ResultTable, ScoredSteps, TrainFinalOutcome},
    };
    use search_spaces::Space;

    use super::*;
    use crate::ablation::plan;

    const TINY: &str = include_str!("../../../search-spaces/spaces/shapes-tiny.toml");

    fn planned(table: AblationKind, seeds: u32) -> Plan {
        let space = Space::parse(TINY).unwrap();
        let architecture = space.architecture("c1.-.s1.s3.c1").unwrap();
        let request = NewAblation {
            id: None,
            candidate_id: CandidateId::default(),
            table,
            seeds,
            settings: DeploymentSettings {
                recipes: DeployRecipes {
                    joint: Some(include_str!("../../../worker/recipes/joint.toml").to_owned()),
                    adversarial: Some(include_str!("../../../worker/recipes/adversarial.toml").to_owned()),
                    decoder: None,
                },
                profile: Some(ProfileWish {
                    device: "laptop".to_owned(),
                    runtime: None,
                    runs: 5,
                    sustained_seconds: 0.0,
                }),
                ..DeploymentSettings::default()
            },
        };
        plan(&request, &space, &architecture).unwrap()
    }

    fn figure(value: f64, standard_error: f64) -> Figure {
        Figure { value, standard_error }
    }

    fn scores(quality: f64) -> Metrics {
        [
            ("quality".to_owned(), figure(quality, 0.01)),
            ("object_class".to_owned(), figure(quality + 0.1, 0.02)),
            ("parameters".to_owned(), figure(2e5 + 1e5 * quality, 0.0)),
        ]
        .into()
    }

    fn known() -> Vec<String> {
        ["quality", "object_class"].map(str::to_owned).to_vec()
    }

    fn print(table: &AblationTable) -> String {
        let mut lines = vec![table.title.clone()];
        let heads = table.columns.iter().map(|column| {
            let evaluator = column.evaluator.as_deref().unwrap_or("no evaluator");
            format!("{} [{evaluator}]", column.name)
        });
        lines.push(heads.collect::<Vec<_>>().join(" | "));
        for row in &table.rows {
            let cells = row.cells.iter().zip(&row.paper).map(|(cell, paper)| {
                let paper = paper.map_or(String::new(), |paper| format!(" (paper {paper})"));
                format!("{}{paper}", cell.text)
            });
            lines.push(format!(
                "{}: {}",
                row.settings.join(", "),
                cells.collect::<Vec<_>>().join(" | ")
            ));
        }
        lines.extend(table.notes.clone());
        lines.join("\n")
    }

    #[test]
    fn table_3_prints_differences_and_what_does_not_fit() {
        let plan = planned(AblationKind::Table3, 2);
        let mut results = Results::new();
        for (index, part) in plan.parts.iter().enumerate() {
            let outcome = match part.aim {
                Aim::Score { row } => {
                    // Rows 0 and 1 overlap; the others stand apart.
                    let quality = [0.50, 0.51, 0.40, 0.60, 0.60][row] + 0.02 * (index % 2) as f64;
                    Outcome::TrainFinal(TrainFinalOutcome {
                        metrics: scores(quality),
                        evaluator: "built-in shapes 1".to_owned(),
                    })
                }
                Aim::Measure { row, parts } => {
                    let too_large = row == 4 && parts < 4;
                    let outcome = if too_large {
                        GraphOutcome::OutOfMemory {
                            detail: "9 GiB".to_owned(),
                        }
                    } else {
                        GraphOutcome::Measured(Default::default())
                    };
                    let metrics: Metrics = [
                        ("latency_ms".to_owned(), figure(10.0 * (1.0 + row as f64), 0.1)),
                        (
                            "peak_memory_bytes".to_owned(),
                            figure(1_048_576.0 * 8.0 / f64::from(parts), 0.0),
                        ),
                    ]
                    .into();
                    Outcome::ProfileModel(ProfileModelOutcome {
                        runtime: RuntimeName {
                            name: "onnxruntime".to_owned(),
                            version: "1".to_owned(),
                        },
                        metrics: if too_large { Metrics::new() } else { metrics },
                        graphs: vec![GraphProfile {
                            name: "unet.0".to_owned(),
                            file_bytes: 1,
                            outcome,
                        }],
                    })
                }
                _ => continue,
            };
            let step = match &outcome {
                Outcome::TrainFinal(_) => DeployStep::TrainFinal,
                _ => DeployStep::ProfileModel,
            };
            results.insert(part.cell.clone(), [(step, outcome)].into());
        }
        insta::assert_snapshot!(print(&fill(AblationKind::Table3, &plan, &known(), &results)));
    }

    #[test]
    fn table_5_reads_one_model_at_several_steps() {
        let plan = planned(AblationKind::Table5, 2);
        let mut results = Results::new();
        for (seed, part) in plan.parts.iter().filter(|part| part.aim == Aim::ScoreAll).enumerate() {
            let at = |quality: f64| scores(quality + 0.01 * seed as f64);
            let outcome = Outcome::Distill(DistillOutcome {
                metrics: at(0.7),
                evaluator: "built-in shapes 1".to_owned(),
                table: ResultTable::default(),
                by_steps: [(1, 0.3), (2, 0.69), (4, 0.7)]
                    .map(|(steps, quality)| ScoredSteps {
                        steps,
                        metrics: at(quality),
                    })
                    .to_vec(),
            });
            results.insert(part.cell.clone(), [(DeployStep::Distill, outcome)].into());
        }
        insta::assert_snapshot!(print(&fill(AblationKind::Table5, &plan, &known(), &results)));
    }

    #[test]
    fn before_anything_is_known_every_cell_is_empty() {
        for kind in AblationKind::ALL {
            let table = fill(kind, &planned(kind, 1), &known(), &Results::new());
            assert!(!table.rows.is_empty());
            assert!(
                table
                    .rows
                    .iter()
                    .all(|row| row.cells.iter().all(|cell| cell.text.is_empty()))
            );
            assert!(table.rows.iter().all(|row| row.cells.len() == table.columns.len()));
        }
    }
}
