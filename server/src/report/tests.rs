use chrono::DateTime;
use protocol::{
    Figure, Metrics,
    artifacts::{ArtifactRef, ArtifactRole},
    devices::RuntimeName,
    jobs::{
        ExportManifest, ExportPrecision, ExportedGraph, GraphFigures, GraphOutcome, GraphProfile, NodeFigures,
        ResultTable, SamplerGrid, TensorSpec,
    },
};

use super::*;

/// The smallest picture that is one.
const GIF: &[u8] = b"GIF89a\x01\x00\x01\x00\x80\x00\x00\xff\xff\xff\x00\x00\x00!\xf9\x04\x01\x00\x00\x00\x00,\x00\x00\x00\x00\x01\x00\x01\x00\x00\x02\x02D\x01\x00;";

fn metrics(figures: &[(&str, f64, f64)]) -> Metrics {
    let figure = |(name, value, standard_error): &(&str, f64, f64)| {
        let figure = Figure {
            value: *value,
            standard_error: *standard_error,
        };
        ((*name).to_owned(), figure)
    };
    figures.iter().map(figure).collect()
}

fn table(title: &str, columns: &[&str], rows: &[&[&str]]) -> ResultTable {
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    ResultTable {
        title: title.to_owned(),
        columns: words(columns),
        rows: rows.iter().map(|row| words(row)).collect(),
    }
}

fn file(name: &str) -> ArtifactRef {
    ArtifactRef {
        role: ArtifactRole::Graph,
        digest: "b".repeat(64).parse().unwrap(),
        name: name.to_owned(),
        media_type: "application/octet-stream".to_owned(),
        bytes: 1 << 20,
    }
}

fn exported(name: &str) -> ExportedGraph {
    let tensor = |name: &str, shape: &[u64]| TensorSpec {
        name: name.to_owned(),
        dtype: "f32".to_owned(),
        shape: shape.to_vec(),
    };
    ExportedGraph {
        name: name.to_owned(),
        block: None,
        inputs: vec![tensor("latents", &[1, 4, 5, 8, 8])],
        outputs: vec![tensor("out", &[1, 4, 5, 8, 8])],
        files: vec![file(&format!("{name}.onnx"))],
        parameters: 412_345,
        runs: 1,
        largest_relative_error: 2.3e-6,
    }
}

fn profiled(name: &str, median: f64) -> GraphProfile {
    GraphProfile {
        name: name.to_owned(),
        file_bytes: 1_650_000,
        outcome: GraphOutcome::Measured(GraphFigures {
            load_ms: 31.0,
            compile_ms: None,
            cold_ms: median * 1.8,
            warm_ms: [0.95, 0.98, 1.0, 1.01, 1.09].map(|share| share * median).to_vec(),
            sustained_ms: vec![median * 1.1; 3],
            peak_memory_bytes: Some(9.5e6),
            nodes: vec![
                NodeFigures {
                    name: "/down.0/conv".to_owned(),
                    operator: "Conv".to_owned(),
                    unit: "CPUExecutionProvider".to_owned(),
                    mean_ms: median * 0.3,
                },
                NodeFigures {
                    name: "/mid/<attention>".to_owned(),
                    operator: "MatMul".to_owned(),
                    unit: "CPUExecutionProvider".to_owned(),
                    mean_ms: median * 0.5,
                },
            ],
            thermal: vec!["41 °C".to_owned(), "47 °C".to_owned()],
        }),
    }
}

pub(super) fn whole() -> Report {
    let clip = |name: &str| Clip {
        name: name.to_owned(),
        kind: ClipKind::Gif,
        bytes: GIF.to_vec(),
    };
    let mut too_large = profiled("spatial_decoder", 1.0);
    too_large.outcome = GraphOutcome::OutOfMemory {
        detail: "9 GiB <asked for>".to_owned(),
    };
    Report {
        name: "Moving shapes <on> \"two\" CPU cores".to_owned(),
        architecture: "c1.-.s1.s3.c1".to_owned(),
        candidate: "018f0000-0000-7000-8000-000000000001".to_owned(),
        state: DeploymentState::Done,
        state_reason: None,
        steps: vec![
            (DeployStep::TrainFinal, Some(JobState::Succeeded), 640.0),
            (DeployStep::Distill, Some(JobState::Succeeded), 410.0),
            (DeployStep::CompressDecoder, Some(JobState::Succeeded), 300.0),
            (DeployStep::Export, Some(JobState::Succeeded), 12.0),
            (DeployStep::ProfileModel, Some(JobState::Succeeded), 25.0),
        ],
        device: Some(Device {
            name: "laptop".to_owned(),
            description: "two cores & 8 GB".to_owned(),
            memory_bytes: Some(8 << 30),
        }),
        training: Some(TrainFinalOutcome {
            metrics: metrics(&[("quality", 0.71, 0.01), ("parameters", 412_345.0, 0.0)]),
            evaluator: "built-in shapes 1".to_owned(),
        }),
        distillation: Some(DistillOutcome {
            metrics: metrics(&[
                ("teacher_quality", 0.72, 0.012),
                ("quality", 0.705, 0.013),
                ("teacher_color", 0.9, 0.02),
                ("color", 0.88, 0.02),
                ("teacher_object_class", 0.61, 0.03),
                ("object_class", 0.6, 0.03),
                ("quality_difference", -0.015, 0.006),
                ("quality_ratio", 0.979, 0.008),
                ("denoise_speed_up", 11.4, 0.2),
            ]),
            evaluator: "built-in shapes 1 (consistency 0.99)".to_owned(),
            table: table(
                "Steps of a sample",
                &["Model", "Steps", "Quality", "Color"],
                &[
                    &["diffusion", "25, guided", "0.720", "0.900"],
                    &["distilled", "4", "0.705", "0.880"],
                    &["distilled", "2", "0.690", "0.860"],
                    &["distilled", "1", "0.410", "0.600"],
                ],
            ),
            by_steps: Vec::new(),
        }),
        decoder: Some(CompressDecoderOutcome {
            metrics: metrics(&[("speed_up", 6.2, 0.1)]),
            table: table(
                "The decoder, original and compressed",
                &["Decoder", "Parameters", "MACs", "Latency (ms)", "PSNR", "SSIM", "LPIPS"],
                &[
                    &["original", "1.2 M", "3.4 G", "62.1", "31.2", "0.941", "0.061"],
                    &["separable", "0.1 M", "0.3 G", "10.0", "30.9", "0.936", "0.066"],
                ],
            ),
        }),
        export: Some(ExportOutcome {
            metrics: metrics(&[("file_bytes", 3.3e6, 0.0)]),
            manifest: ExportManifest {
                opset: 21,
                exporter: "1".to_owned(),
                precision: ExportPrecision::F32,
                graphs: vec![exported("text_encoder"), exported("unet.0"), exported("unet.1")],
                sampler: Some(SamplerGrid {
                    times: vec![1.0, 0.75, 0.5, 0.25],
                    guidance: 1.0,
                    embeddings: file("embeddings.safetensors"),
                }),
            },
        }),
        profile: Some(ProfileModelOutcome {
            runtime: RuntimeName {
                name: "onnxruntime-cpu-1t".to_owned(),
                version: "1.22.0".to_owned(),
            },
            metrics: metrics(&[
                ("text_latency_ms", 1.5, 0.02),
                ("latency_ms", 15.0, 0.1),
                ("decode_latency_ms", 10.0, 0.1),
                ("pipeline_latency_ms", 71.5, 0.5),
                ("peak_memory_bytes", 9.5e6, 0.0),
            ]),
            graphs: vec![
                profiled("text_encoder", 1.5),
                profiled("unet.0", 5.0),
                profiled("unet.1", 10.0),
                too_large,
            ],
        }),
        before: vec![clip("a red circle moves left.gif")],
        after: vec![
            clip("a red circle moves left.gif"),
            clip("\"><script>alert(1)</script>.gif"),
        ],
        made_at: DateTime::UNIX_EPOCH,
    }
}

#[test]
fn a_whole_report() {
    insta::assert_snapshot!(page(&whole()));
}

#[test]
fn nothing_from_elsewhere_and_no_script_is_in_it() {
    let page = page(&whole());
    assert!(!page.contains("<script") && !page.contains("http://") && !page.contains("https://"));
    assert!(!page.contains("<on>") && page.contains("Moving shapes &lt;on&gt; &quot;two&quot; CPU cores"));
    assert!(!page.contains("<asked for>") && !page.contains("<attention>"));
    assert!(page.contains("src=\"data:image/gif;base64,R0lGODlh"));
}

#[test]
fn what_is_not_known_is_left_out() {
    let nothing = Report {
        state: DeploymentState::Failed,
        state_reason: Some("train_final: no memory".to_owned()),
        steps: vec![(DeployStep::TrainFinal, Some(JobState::Failed), 0.0)],
        training: None,
        distillation: None,
        decoder: None,
        export: None,
        profile: None,
        before: Vec::new(),
        after: Vec::new(),
        device: None,
        ..whole()
    };
    let page = page(&nothing);
    assert!(page.contains("failed</strong>: train_final: no memory"));
    assert!(!page.contains("<section>"));
}

#[test]
fn the_stack_adds_up_to_the_pipeline() {
    let report = whole();
    let stack = stack::Stack::of(&report, report.profile.as_ref().unwrap()).unwrap();
    assert!((stack.total_ms() - 71.5).abs() < 1e-9);
    assert_eq!(stack.steps.len(), 4);
    assert!(
        (stack.steps[0][1] / stack.steps[0][0] - 2.0).abs() < 1e-9,
        "as the parts' medians"
    );
}

#[test]
fn quantiles_lie_between_samples() {
    assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
    assert_eq!(quantile(&[0.0, 10.0], 0.25), Some(2.5));
    assert_eq!(median(&[]), None);
}
