//! Tables: the paper's beside ours, the device, the graphs.

use protocol::jobs::{
    CompressDecoderOutcome, DistillOutcome, ExportOutcome, GraphFigures, GraphOutcome, GraphProfile,
    ProfileModelOutcome, ResultTable,
};

use super::{
    Page, Report, median, milliseconds, paper, quantile,
    text::{Unit, figure, number},
};

/// Nodes of a graph that are listed.
const MOST_NODES: usize = 8;

/// Table 5: what fewer steps cost.
pub(super) fn steps(page: &mut Page, found: &DistillOutcome) {
    page.raw("<section><h2>Steps of a sample</h2>\n<p class=\"soft\">In the form of the paper's Table 5.</p>\n");
    ours(page, &found.table, &found.evaluator);
    theirs(
        page,
        &paper::TABLE_5_HEADS,
        &paper::TABLE_5,
        "the paper's Table 5, VBench, percent",
    );
    page.raw("</section>\n");
}

/// Table A1: what the small decoder costs.
pub(super) fn decoder(page: &mut Page, found: &CompressDecoderOutcome) {
    page.raw("<section><h2>The decoder</h2>\n<p class=\"soft\">In the form of the paper's Table A1.");
    if let Some(faster) = found.metrics.get("speed_up") {
        page.raw(" The compressed decoder is <strong>")
            .text(&number(faster.value, Unit::Times));
        page.raw("</strong> as fast as the original one.");
    }
    page.raw("</p>\n");
    ours(page, &found.table, "against the clips that were encoded");
    theirs(
        page,
        &paper::TABLE_A1_HEADS,
        &paper::TABLE_A1,
        "the paper's Table A1, 17 frames on its phone",
    );
    page.raw("</section>\n");
}

fn ours(page: &mut Page, table: &ResultTable, scale: &str) {
    page.raw("<div class=\"wide\"><table><caption><span class=\"mark\">ours</span> ")
        .text(&table.title);
    page.raw(" · ").text(scale).raw("</caption><thead><tr>");
    for head in &table.columns {
        page.head(head);
    }
    page.raw("</tr></thead><tbody>\n");
    for row in &table.rows {
        page.raw("<tr>");
        for cell in row {
            page.cell(cell);
        }
        page.raw("</tr>\n");
    }
    page.raw("</tbody></table></div>\n");
}

fn theirs<const N: usize>(page: &mut Page, heads: &[&str; N], rows: &[[&str; N]], scale: &str) {
    page.raw("<div class=\"wide\"><table><caption><span class=\"mark\">the paper</span> ")
        .text(scale);
    page.raw("</caption><thead><tr>");
    for head in heads {
        page.head(head);
    }
    page.raw("</tr></thead><tbody>\n");
    for row in rows {
        page.raw("<tr class=\"theirs\">");
        for cell in row {
            page.cell(cell);
        }
        page.raw("</tr>\n");
    }
    page.raw("</tbody></table></div>\n");
}

/// What each graph took on the device.
pub(super) fn device(page: &mut Page, report: &Report, found: &ProfileModelOutcome) {
    page.raw("<section><h2>On the device</h2>\n<p>");
    if let Some(device) = &report.device {
        page.raw("<strong>").text(&device.name).raw("</strong>");
        if !device.description.is_empty() {
            page.raw(", ").text(&device.description);
        }
        if let Some(memory) = device.memory_bytes {
            page.raw(", ")
                .text(&number(memory as f64, Unit::Bytes))
                .raw(" of memory");
        }
        page.raw(", ");
    }
    page.text(&found.runtime.name)
        .raw(" ")
        .text(&found.runtime.version)
        .raw(".</p>\n");
    page.raw("<div class=\"wide\"><table><thead><tr>");
    let heads = [
        "graph",
        "files",
        "load",
        "compile",
        "first run",
        "warm, median",
        "5 to 95 %",
        "sustained",
        "peak memory",
        "thermal",
    ];
    for head in heads {
        page.head(head);
    }
    page.raw("</tr></thead><tbody>\n");
    for graph in &found.graphs {
        row(page, graph);
    }
    page.raw("</tbody></table></div>\n");
    for graph in &found.graphs {
        nodes(page, graph);
    }
    page.raw("</section>\n");
}

fn row(page: &mut Page, graph: &GraphProfile) {
    page.raw("<tr><th scope=\"row\">").text(&graph.name).raw("</th>");
    page.cell(&number(graph.file_bytes as f64, Unit::Bytes));
    match &graph.outcome {
        GraphOutcome::Measured(figures) => measured(page, figures),
        GraphOutcome::OutOfMemory { detail } => refused(page, "out of memory", detail),
        GraphOutcome::Unsupported { detail } => refused(page, "not supported", detail),
    }
    page.raw("</tr>\n");
}

fn measured(page: &mut Page, figures: &GraphFigures) {
    let time = |value: Option<f64>| value.map(milliseconds).unwrap_or_default();
    page.cell(&milliseconds(figures.load_ms));
    page.cell(&time(figures.compile_ms))
        .cell(&milliseconds(figures.cold_ms));
    page.cell(&time(median(&figures.warm_ms)));
    let spread = quantile(&figures.warm_ms, 0.05).zip(quantile(&figures.warm_ms, 0.95));
    page.cell(&spread.map_or(String::new(), |(low, high)| {
        format!("{} to {}", milliseconds(low), milliseconds(high))
    }));
    page.cell(&time(median(&figures.sustained_ms)));
    page.cell(
        &figures
            .peak_memory_bytes
            .map_or(String::new(), |bytes| number(bytes, Unit::Bytes)),
    );
    page.cell(&figures.thermal.join(" → "));
}

fn refused(page: &mut Page, what: &str, detail: &str) {
    page.raw("<td colspan=\"8\"><strong>")
        .text(what)
        .raw("</strong>: ")
        .text(detail)
        .raw("</td>");
}

/// The nodes that take longest.
fn nodes(page: &mut Page, graph: &GraphProfile) {
    let GraphOutcome::Measured(figures) = &graph.outcome else {
        return;
    };
    if figures.nodes.is_empty() {
        return;
    }
    let whole: f64 = figures.nodes.iter().map(|node| node.mean_ms).sum();
    let mut slowest: Vec<_> = figures.nodes.iter().collect();
    slowest.sort_by(|a, b| b.mean_ms.total_cmp(&a.mean_ms));
    page.raw("<details><summary>")
        .text(&graph.name)
        .raw(": the slowest of ")
        .text(&figures.nodes.len().to_string());
    page.raw(" nodes</summary><div class=\"wide\"><table><thead><tr>");
    for head in ["node", "operator", "ran on", "a run", "share"] {
        page.head(head);
    }
    page.raw("</tr></thead><tbody>\n");
    for node in slowest.into_iter().take(MOST_NODES) {
        page.raw("<tr>").cell(&node.name).cell(&node.operator).cell(&node.unit);
        page.cell(&milliseconds(node.mean_ms));
        page.cell(&format!("{:.0} %", node.mean_ms / whole.max(f64::MIN_POSITIVE) * 100.0))
            .raw("</tr>\n");
    }
    page.raw("</tbody></table></div></details>\n");
}

/// What was exported, and how near it is to what it was exported from.
pub(super) fn graphs(page: &mut Page, found: &ExportOutcome) {
    let manifest = &found.manifest;
    page.raw("<section><h2>The graphs</h2>\n<p>ONNX opset ")
        .text(&manifest.opset.to_string());
    page.raw(", ").text(match manifest.precision {
        protocol::jobs::ExportPrecision::F32 => "single precision",
        protocol::jobs::ExportPrecision::F16 => "half precision",
    });
    if let Some(sampler) = &manifest.sampler {
        page.raw(", ").text(&sampler.times.len().to_string()).raw(" steps");
        if (sampler.guidance - 1.0).abs() > f64::EPSILON {
            page.raw(" at guidance ").text(&number(sampler.guidance, Unit::Plain));
        }
    }
    if let Some(bytes) = found.metrics.get("file_bytes") {
        page.raw(", ").text(&figure(bytes, Unit::Bytes));
    }
    page.raw(".</p>\n<div class=\"wide\"><table><thead><tr>");
    for head in [
        "graph",
        "parameters",
        "inputs",
        "outputs",
        "error against libtorch",
        "files",
    ] {
        page.head(head);
    }
    page.raw("</tr></thead><tbody>\n");
    for graph in &manifest.graphs {
        page.raw("<tr><th scope=\"row\">").text(&graph.name).raw("</th>");
        page.cell(&number(graph.parameters as f64, Unit::Count));
        for tensors in [&graph.inputs, &graph.outputs] {
            let shapes: Vec<String> = tensors
                .iter()
                .map(|tensor| {
                    let shape: Vec<String> = tensor.shape.iter().map(u64::to_string).collect();
                    format!("{} {}", tensor.name, shape.join("×"))
                })
                .collect();
            page.raw("<td>").text(&shapes.join(", ")).raw("</td>");
        }
        page.cell(&format!("{:.1e}", graph.largest_relative_error));
        let files: Vec<&str> = graph.files.iter().map(|file| file.name.as_str()).collect();
        page.raw("<td>").text(&files.join(", ")).raw("</td></tr>\n");
    }
    page.raw("</tbody></table></div></section>\n");
}
