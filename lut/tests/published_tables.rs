//! Interpolation and sums on latency tables that others measured. The tables are not part of the project: they are
//! read from the folder that `TEMPONAS_DATA` names, or from `../shared/data` beside the workspace, and a test says
//! so and ends where they are absent.

use std::{
    fs,
    io::Read,
    path::{Path, PathBuf},
};

use lut::{
    Entry, EntryState, ErrorSummary, Lookup, Lut, Runtime,
    formats::{aihub, coreml, published, tflite},
};
use search_spaces::{Block, Dtype, Shape};

fn data(file: &str) -> Option<PathBuf> {
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data");
    let path = std::env::var_os("TEMPONAS_DATA")
        .map_or_else(beside, PathBuf::from)
        .join(file);
    if !path.exists() {
        println!(
            "skipped: {} is absent; set TEMPONAS_DATA to the folder of published tables",
            path.display()
        );
        return None;
    }
    Some(path)
}

fn text(path: &Path) -> String {
    let bytes = fs::read(path).expect("readable");
    if path.extension().is_some_and(|extension| extension == "gz") {
        let mut text = String::new();
        flate2::read::GzDecoder::new(bytes.as_slice())
            .read_to_string(&mut text)
            .expect("gzip of UTF-8");
        return text;
    }
    String::from_utf8(bytes).expect("UTF-8")
}

fn table(path: &Path, device: &str, runtime: Runtime) -> Lut {
    published::import(&text(path), device, runtime, Dtype::F32).expect("a published table")
}

/// Errors over all operators of entries left out between two other input sizes, all else equal.
fn over_resolution(lut: &Lut) -> ErrorSummary {
    let errors: Vec<_> = lut
        .leave_out_errors()
        .iter()
        .filter(|error| error.over == ["h", "w"])
        .collect();
    let cases: usize = errors.iter().map(|error| error.latency.cases).sum();
    let mean = |of: fn(&ErrorSummary) -> f64| {
        errors
            .iter()
            .map(|error| of(&error.latency) * error.latency.cases as f64)
            .sum::<f64>()
            / cases as f64
    };
    ErrorSummary {
        cases,
        mean: mean(|e| e.mean),
        p50: mean(|e| e.p50),
        p95: mean(|e| e.p95),
        within_10_percent: mean(|e| e.within_10_percent),
    }
}

#[test]
fn a_desktop_table_is_predicted_from_neighbouring_sizes_as_well_as_published_analyses_say() {
    let Some(path) = data("lut/nsganetv2_i7-8700K/i7-8700K_lut.yaml.gz") else {
        return;
    };
    let lut = table(&path, "i7-8700K", Runtime::new("pytorch-cpu", "unknown"));
    let errors = over_resolution(&lut);
    println!("i7-8700K: {errors:?}");
    assert_eq!(lut.len(), 4050);
    assert!(errors.cases > 3000);
    assert!((0.035..0.045).contains(&errors.mean), "mean {}", errors.mean);
    assert!(
        (0.91..0.95).contains(&errors.within_10_percent),
        "within {}",
        errors.within_10_percent
    );
    assert!((0.09..0.14).contains(&errors.p95), "p95 {}", errors.p95);
}

/// The phone tables of five image sizes as one, each block under the size that `size` gives it.
fn phone_table(size: impl Fn(&Shape, u64) -> Shape) -> Option<Lut> {
    let runtime = Runtime::new("tflite-cpu", "unknown");
    let mut whole = Lut::new("note10", runtime.clone(), Dtype::F32);
    for image in [160, 176, 192, 208, 224] {
        let path = data(&format!("lut/ofa_note10/{image}_lookup_table.yaml"))?;
        for Entry { key, state } in table(&path, "note10", runtime.clone()).entries() {
            whole.insert(
                Block {
                    shape: size(&key.block.shape, image),
                    ..key.block
                },
                state,
            );
        }
    }
    Some(whole)
}

#[test]
fn a_phone_table_is_predicted_from_neighbouring_images_as_well_as_published_analyses_say() {
    let Some(lut) = phone_table(|shape, image| shape.clone().with("h", image).with("w", image)) else {
        return;
    };
    let errors = over_resolution(&lut);
    println!("note10, by image size: {errors:?}");
    assert_eq!((lut.len(), errors.cases), (480, 288));
    assert!((0.025..0.031).contains(&errors.mean), "mean {}", errors.mean);
    assert!(
        (0.90..0.94).contains(&errors.within_10_percent),
        "within {}",
        errors.within_10_percent
    );
}

#[test]
fn the_size_of_the_block_itself_predicts_better_than_that_of_the_image() {
    // 176 and 192 pixels leave the last stages the same 6×6: the image's size is not the block's work.
    let Some(lut) = phone_table(|shape, _| shape.clone()) else {
        return;
    };
    let errors = over_resolution(&lut);
    println!("note10, by block size: {errors:?}");
    assert!(errors.cases > 200);
    assert!(errors.mean < 0.025 && errors.within_10_percent > 0.95, "{errors:?}");
}

#[test]
fn the_entries_of_a_published_network_sum_to_its_published_latency() {
    let Some(path) = data("lut/ofa_note10/224_lookup_table.yaml") else {
        return;
    };
    let Some(networks) = data("ofa/ofa_specialized_nets.json") else {
        return;
    };
    let lut = table(&path, "note10", Runtime::new("tflite-cpu", "unknown"));
    let networks: Vec<serde_json::Value> = serde_json::from_str(&text(&networks)).expect("JSON");
    let network = networks
        .iter()
        .find(|network| network["name"] == "note10_lat-30ms_top1-78.4_finetune-75")
        .expect("the network is listed");
    let sum: f64 = blocks_of(network)
        .iter()
        .map(|block| match lut.get(block) {
            Lookup::Measured(cost) => cost.latency_ms.value,
            other => panic!("{block}: {other:?}"),
        })
        .sum();
    println!("note10 30 ms network: {sum:.3} ms");
    assert!((sum - 29.97).abs() < 0.005, "{sum}");
}

/// Blocks of a MobileNetV3-like network, as the table names them.
fn blocks_of(network: &serde_json::Value) -> Vec<Block> {
    let number = |value: &serde_json::Value| value.as_u64().expect("a whole number");
    let pair = |value: &serde_json::Value| (number(&value[0]), number(&value[1]));
    let image = number(&network["image_size"]);
    let first = number(&network["first_conv_out"]);
    let plain = |operator: &str, size: u64, c_in: u64, c_out: u64| {
        Block::new(
            operator,
            Shape::new([("h", size), ("w", size), ("c_in", c_in), ("c_out", c_out)]),
        )
    };
    let mut blocks = vec![plain("Conv", image, 3, first)];
    let mut size = image / 2;
    for block in network["blocks"].as_array().expect("blocks") {
        let value = |i: usize| number(&block[i]);
        let shape = Shape::new([
            ("h", size),
            ("w", size),
            ("c_in", value(0)),
            ("c_out", value(1)),
            ("kernel", value(2)),
            ("stride", value(3)),
            ("expand", value(4)),
            ("idskip", value(5)),
            ("se", value(6)),
            ("hs", value(7)),
        ]);
        blocks.push(Block::new("expanded_conv", shape));
        size = size.div_ceil(value(3));
    }
    let (narrow, wide) = pair(&network["final_expand"]);
    let features = number(&network["feature_mix"][1]);
    let classes = number(&network["classifier"][1]);
    blocks.push(plain("Conv_1", size, narrow, wide));
    blocks.push(plain("AvgPool2D", size, wide, wide));
    blocks.push(plain("Conv_2", 1, wide, features));
    blocks.push(plain("Logits", 1, features, classes));
    blocks
}

#[test]
fn the_operations_of_a_profiled_network_sum_to_its_end_to_end_time() {
    let Some(path) = data("profiler_logs/tflite_benchmark_model_proxyless_mobile.txt") else {
        return;
    };
    let log = tflite::import(&text(&path)).expect("a benchmark log");
    let sum: f64 = log.operations.iter().map(|operation| operation.mean_ms).sum();
    println!("TFLite log: {} operations, {sum:.2} ms", log.operations.len());
    assert_eq!((log.operations.len(), log.phases.len()), (77, 2));
    let [warm_up, timed] = log.phases[..] else {
        panic!("two phases")
    };
    assert!((warm_up.first_ms - 101.05).abs() < 0.01 && (warm_up.mean_ms - 83.5).abs() < 0.01);
    assert!((timed.mean_ms - 80.67).abs() < 0.01);
    assert!((sum / timed.mean_ms - 1.0).abs() < 1e-3, "{sum}");
}

#[test]
fn other_published_tables_are_read_whole() {
    let Some(path) = data("lut/proxylessnas_mobile/mobile_trim.yaml") else {
        return;
    };
    assert_eq!(table(&path, "pixel1", Runtime::new("tflite-cpu", "unknown")).len(), 72);
}

#[test]
fn keys_that_a_published_network_needs_and_its_table_lacks_are_told() {
    let Some(path) = data("lut/proxylessnas_mobile/mobile_trim.yaml") else {
        return;
    };
    let Some(network) = data("lut/proxylessnas_mobile/proxyless_mobile.config.json") else {
        return;
    };
    let blocks = published::network(&text(&network)).expect("a published network");
    let sum = published::sum(&table(&path, "pixel1", Runtime::new("tflite-cpu", "unknown")), &blocks);
    let missing: Vec<String> = sum.missing.iter().map(ToString::to_string).collect();
    println!("proxyless_mobile: {:.2} ms without {missing:?}", sum.latency_ms);
    assert_eq!((blocks.len(), missing.len()), (23, 3), "{missing:?}");
    assert!(
        missing[0].contains("c_in=16 c_out=32 expand=3 h=112 idskip=0 kernel=5"),
        "{}",
        missing[0]
    );
    assert!(sum.latency_ms > 20.0);
    let cut = &text(&network)[..1000];
    assert!(
        published::network(cut)
            .expect_err("cut")
            .to_string()
            .starts_with("line ")
    );
}

#[test]
fn every_published_table_is_read_whole_and_a_damaged_one_refused_with_its_line() {
    let files = [
        ("lut/ofa_note10/160_lookup_table.yaml", 96),
        ("lut/proxylessnas_mobile/mobile_trim.yaml", 72),
        ("lut/nsganetv2_i7-8700K/i7-8700K_lut.yaml.gz", 4050),
    ];
    for (file, entries) in files {
        let Some(path) = data(file) else { return };
        let runtime = Runtime::new("tflite-cpu", "unknown");
        assert_eq!(table(&path, "d", runtime.clone()).len(), entries, "{file}");
        let damaged = text(&path).replacen("mean: ", "mean: x", 1);
        let told = published::import(&damaged, "d", runtime, Dtype::F32)
            .expect_err(file)
            .to_string();
        let line = damaged
            .lines()
            .position(|line| line.contains("mean: x"))
            .expect("damaged")
            + 1;
        assert!(told.starts_with(&format!("line {line}, ")), "{told}");
    }
}

#[test]
fn the_table_of_ai_hub_is_read_whole_and_a_damaged_one_refused_with_its_line() {
    let Some(path) = data("qualcomm_aihub/aihub_perf.csv.gz") else {
        return;
    };
    let table = text(&path);
    let mut float = 0;
    let mut devices: Vec<&str> = table
        .lines()
        .skip(1)
        .filter_map(|line| line.split(',').nth(3))
        .collect();
    devices.sort_unstable();
    devices.dedup();
    for device in &devices {
        let imported = aihub::import_table(&table, device, "d", Dtype::F16).expect("the published table");
        let measured = imported
            .entries
            .iter()
            .all(|entry| matches!(entry.state, EntryState::Measured(_)));
        assert!(measured, "all jobs of the table passed");
        float += imported.entries.len();
    }
    assert_eq!((devices.len(), float), (15, 4175));
    let damaged = table.replacen(",Passed,16.21,", ",Passed,16.21ms,", 1);
    let told = aihub::import_table(&damaged, devices[0], "d", Dtype::F16)
        .expect_err("damaged")
        .to_string();
    assert_eq!(
        told,
        "line 2, column 7: ms is \"16.21ms\"; allowed: a number, 0 or more"
    );
}

#[test]
fn estimates_of_core_ml_are_read_whole_and_a_damaged_log_refused_with_its_line() {
    let Some(path) = data("profiler_logs/coreml_e5_estimates_mobilenet.csv") else {
        return;
    };
    let log = text(&path);
    let estimates = coreml::import_estimates(&log).expect("a log of estimates");
    assert_eq!(estimates.len(), 119);
    let on = |backend: &str| estimates.iter().filter(|estimate| estimate.backend == backend).count();
    assert!(on("ane") > 100 && on("bnns") > 0, "{} {}", on("ane"), on("bnns"));
    let cut = &log[..log.len() - 90];
    let told = coreml::import_estimates(cut).expect_err("cut").to_string();
    assert!(told.starts_with("line 120, column "), "{told}");
}

#[test]
fn a_damaged_benchmark_log_is_refused_with_its_line() {
    let Some(path) = data("profiler_logs/tflite_benchmark_model_proxyless_mobile.txt") else {
        return;
    };
    let log = text(&path).replacen("avg=80670.2", "avg=", 1);
    let line = log.lines().position(|line| line.contains("avg= ")).expect("damaged") + 1;
    let told = tflite::import(&log).expect_err("damaged").to_string();
    assert!(
        told.starts_with(&format!("line {line}, ")) && told.contains("avg"),
        "{told}"
    );
}
