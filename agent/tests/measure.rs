//! Graphs in processes of their own, with the real ONNX Runtime: skipped with a line where `ORT_DYLIB_PATH` names none.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use protocol::jobs::{GraphFigures, GraphOutcome, TensorSpec};
use temponas_agent::child::{ChildError, Children};
use temponas_agent::measure::{Finding, Plan, Request};
use temponas_agent::runtime::{LIBRARY, Provider};

fn children() -> Option<Children> {
    let Some(library) = std::env::var_os(LIBRARY) else {
        println!("skipped: {LIBRARY} names no library of ONNX Runtime");
        return None;
    };
    Some(Children {
        program: PathBuf::from(env!("CARGO_BIN_EXE_temponas-agent")),
        library: library.into(),
        provider: Provider::Cpu,
        threads: 1,
        patience: Duration::from_secs(60),
    })
}

fn request(graph: &str, inputs: &[(&str, &str, &[u64])]) -> Request {
    let spec = |(name, dtype, shape): &(&str, &str, &[u64])| TensorSpec {
        name: (*name).to_owned(),
        dtype: (*dtype).to_owned(),
        shape: shape.to_vec(),
    };
    Request {
        graph: Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/graphs").join(graph),
        inputs: inputs.iter().map(spec).collect(),
        plan: Plan {
            samples: 5,
            ..Plan::block()
        },
        memory_bytes: 1 << 30,
    }
}

const IMAGE: &[u64] = &[1, 8, 32, 32];

fn measured(finding: Finding) -> (GraphFigures, Option<f64>) {
    match finding.outcome {
        GraphOutcome::Measured(figures) => (figures, finding.run_peak_bytes),
        other => panic!("not measured: {other:?}"),
    }
}

#[test]
fn a_graph_is_measured_with_weights_beside_it_and_nodes_by_name() {
    let Some(children) = children() else { return };
    let found = children.measure(&request("conv_f32.onnx", &[("x", "f32", IMAGE)]), &|| false);
    let (figures, run_peak) = measured(found.unwrap());
    assert_eq!(figures.warm_ms.len(), 5);
    assert!(figures.load_ms > 0.0 && figures.cold_ms > 0.0 && figures.warm_ms.iter().all(|&ms| ms > 0.0));
    assert!(figures.sustained_ms.is_empty(), "nobody asked for it");
    let convolution = figures.nodes.iter().find(|node| node.operator.ends_with("Conv"));
    let convolution = convolution.expect("the profiler names the convolution");
    assert_eq!(convolution.unit, "CPUExecutionProvider");
    if cfg!(target_os = "linux") {
        // One activation of 32 KiB is the least that a run can need, and the graph and its code are far below the limit.
        let peak = figures.peak_memory_bytes.expect("Linux tells");
        let run_peak = run_peak.expect("Linux tells");
        assert!(
            (32_768.0..64e6).contains(&run_peak) && (run_peak..256e6).contains(&peak),
            "{run_peak} {peak}"
        );
    }
}

#[test]
fn half_precision_and_tokens_are_drawn_for_the_graph_and_heat_is_waited_for() {
    let Some(children) = children() else { return };
    let mut half = request("conv_f16.onnx", &[("x", "f16", IMAGE)]);
    half.plan.sustained_seconds = 0.2;
    let (figures, _) = measured(children.measure(&half, &|| false).unwrap());
    assert!(figures.sustained_ms.len() > 1);
    let tokens = request("tokens.onnx", &[("tokens", "i64", &[1, 7])]);
    measured(children.measure(&tokens, &|| false).unwrap());
}

#[test]
fn too_little_memory_and_an_unknown_operator_are_findings() {
    let Some(children) = children() else { return };
    let hungry = children
        .measure(&request("hungry.onnx", &[("x", "f32", &[1])]), &|| false)
        .unwrap();
    assert!(matches!(hungry.outcome, GraphOutcome::OutOfMemory { .. }), "{hungry:?}");
    let foreign = children
        .measure(&request("foreign.onnx", &[("x", "f32", &[1])]), &|| false)
        .unwrap();
    let GraphOutcome::Unsupported { detail } = foreign.outcome else {
        panic!("{foreign:?}")
    };
    assert!(
        detail.contains("Teleport") || detail.contains("example.nowhere"),
        "{detail}"
    );
    let wrong = children.measure(&request("conv_f32.onnx", &[("x", "f32", &[1, 8, 32, 31, 2])]), &|| {
        false
    });
    assert!(
        matches!(wrong.unwrap().outcome, GraphOutcome::Unsupported { .. }),
        "a shape it does not take"
    );
    let absurd = children.measure(&request("conv_f32.onnx", &[("x", "f32", &[u64::MAX, 2])]), &|| false);
    assert!(matches!(absurd.unwrap().outcome, GraphOutcome::Unsupported { .. }));
}

#[test]
fn a_file_that_is_no_graph_is_a_finding() {
    let Some(children) = children() else { return };
    let folder = tempfile::tempdir().unwrap();
    let damaged = folder.path().join("damaged.onnx");
    std::fs::write(&damaged, b"no graph at all").unwrap();
    let request = Request {
        graph: damaged,
        ..request("", &[])
    };
    let found = children.measure(&request, &|| false).unwrap();
    assert!(matches!(found.outcome, GraphOutcome::Unsupported { .. }), "{found:?}");
}

#[test]
fn measuring_is_broken_off_at_once() {
    let Some(children) = children() else { return };
    let mut long = request("conv_f32.onnx", &[("x", "f32", IMAGE)]);
    long.plan.sustained_seconds = 60.0;
    let start = std::time::Instant::now();
    let stops = || start.elapsed() > Duration::from_millis(300);
    let broken = children.measure(&long, &stops);
    assert!(matches!(broken, Err(ChildError::Interrupted)), "{broken:?}");
    assert!(start.elapsed() < Duration::from_secs(10));
}

#[test]
fn a_provider_that_the_library_lacks_is_refused_with_those_it_offers() {
    let Some(children) = children() else { return };
    let output = Command::new(&children.program)
        .args(["providers", "--provider", "nnapi", "--library"])
        .arg(&children.library)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(
        said.contains("execution provider nnapi is not in this library, which offers: cpu"),
        "{said}"
    );
    let output = Command::new(&children.program)
        .args(["providers", "--library", "/nowhere.so"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.contains("ONNX Runtime's library /nowhere.so: no such file"),
        "{said}"
    );
}
