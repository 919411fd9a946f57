use std::path::PathBuf;

use protocol::luts::Block;
use safetensors::SafeTensors;
use search_spaces::Space;
use tch::nn;
use tokio::runtime::Runtime as Tokio;

use super::*;
use crate::data::default_cache;
use crate::flow::Grid;
use crate::models::UNet;
use crate::models::seeded::seed_all_weights;
use crate::models::unet::is_temporal;
use crate::onnx::{Session, Written, relative_error};

const ARCHITECTURE: &str = "c1.x3.s3.c3.s1";

fn context(tokio: &Tokio, folder: &Path) -> JobContext {
    let mut context = JobContext::alone(tokio, folder);
    context.settings.assets = concat!(env!("CARGO_MANIFEST_DIR"), "/../assets").into();
    context
}

fn space() -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../search-spaces/spaces/shapes-tiny.toml");
    std::fs::read_to_string(path).unwrap()
}

fn block(operator: &str, shape: &[(&str, u64)]) -> Block {
    Block {
        operator: operator.to_owned(),
        shape: shape.iter().map(|(name, size)| ((*name).to_owned(), *size)).collect(),
    }
}

fn conv() -> Block {
    block(
        "conv3d",
        &[("b", 1), ("t", 3), ("h", 4), ("w", 4), ("c", 16), ("groups", 4)],
    )
}

fn blocks(blocks: Vec<Block>) -> ExportInput {
    ExportInput {
        subject: ExportSubject::Blocks {
            space: space(),
            blocks,
            profile_on: None,
        },
        precision: Precision::F32,
        formats: vec![ExportFormat::Onnx],
        seed: 9,
    }
}

/// All weights of a UNet, kept as a final training would.
fn weights(context: &JobContext) -> (nn::VarStore, UNet, ArtifactRef) {
    let space = Space::parse(&space()).unwrap();
    let vs = nn::VarStore::new(Device::Cpu);
    let layers = space.layers(&space.architecture(ARCHITECTURE).unwrap());
    let unet = UNet::new(&vs.root(), space.unet().unwrap(), &layers);
    let assets = Assets::open(&context.settings.assets, "shapes", Device::Cpu).unwrap();
    seed_all_weights(&vs, 2);
    assets.load_backbone(&vs).unwrap();
    let temporal = vs
        .variables()
        .into_iter()
        .filter(|(name, _)| is_temporal(name))
        .collect();
    let bytes = encode_tensors(&temporal, HashMap::new()).unwrap();
    let kept = context.keep(
        ArtifactRole::Weights,
        "weights.safetensors",
        "application/octet-stream",
        &bytes,
    );
    (vs, unet, kept.unwrap())
}

fn model(weights: ArtifactRef, precision: Precision) -> ExportInput {
    ExportInput {
        subject: ExportSubject::Model {
            space: space(),
            architecture: ARCHITECTURE.to_owned(),
            weights: vec![weights],
            base: vec![],
            decoder: vec![],
            unet_parts: 2,
            batch: 1,
            sample_steps: 3,
            guidance: 4.0,
        },
        precision,
        formats: vec![],
        seed: 3,
    }
}

fn exported(result: JobResult) -> (ExportOutcome, Vec<ArtifactRef>) {
    match result.outcome {
        Outcome::Export(outcome) => (outcome, result.artifacts),
        other => panic!("{other:?}"),
    }
}

/// Where the cache keeps an artifact.
fn place(context: &JobContext, artifact: &ArtifactRef) -> PathBuf {
    let digest = artifact.digest.as_str();
    context.settings.cache.join("artifacts").join(&digest[..2]).join(digest)
}

/// An exported model as a program without libtorch has it: files and the manifest.
struct Player {
    sessions: Vec<(ExportedGraph, Session)>,
    _folder: tempfile::TempDir,
}

impl Player {
    fn new(context: &JobContext, manifest: &ExportManifest) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let open = |graph: &ExportedGraph| {
            for file in &graph.files {
                std::fs::copy(place(context, file), folder.path().join(&file.name)).unwrap();
            }
            let written = Written {
                name: graph.name.clone(),
                graph: folder.path().join(&graph.files[0].name),
                weights: None,
                inputs: vec![],
                outputs: vec![],
                parameters: 0,
                macs: 0,
            };
            (
                graph.clone(),
                Runtime::find(None).unwrap().session(&written, 1).unwrap(),
            )
        };
        Self {
            sessions: manifest.graphs.iter().map(open).collect(),
            _folder: folder,
        }
    }

    /// Runs the graphs whose names begin so, each on what was given and what came out before it; the last's output.
    fn run(&mut self, prefix: &str, given: &[(&str, &Tensor)]) -> Tensor {
        let mut known: HashMap<String, Tensor> = given
            .iter()
            .map(|(name, tensor)| ((*name).to_owned(), tensor.shallow_clone()))
            .collect();
        let mut last = None;
        for (graph, session) in self
            .sessions
            .iter_mut()
            .filter(|(graph, _)| graph.name.starts_with(prefix))
        {
            let take = |name: &String, dtype: &str| {
                let kind = if dtype == "f16" { Kind::Half } else { known[name].kind() };
                (name.clone(), known[name].to_kind(kind))
            };
            let inputs: Vec<_> = graph.inputs.iter().map(|spec| take(&spec.name, &spec.dtype)).collect();
            let made = session.run(&inputs).unwrap();
            for (spec, tensor) in graph.outputs.iter().zip(made) {
                last = Some(tensor.to_kind(Kind::Float));
                known.insert(spec.name.clone(), tensor);
            }
        }
        last.unwrap()
    }
}

/// From tokens and noise to pixels through the exported graphs alone, and by libtorch.
#[test]
fn a_model_samples_the_same_clip_without_libtorch() {
    let (folder, tokio) = (tempfile::tempdir().unwrap(), Tokio::new().unwrap());
    let context = context(&tokio, folder.path());
    let (_vs, unet, weights) = weights(&context);
    let assets = Assets::open(&context.settings.assets, "shapes", Device::Cpu).unwrap();
    for (precision, allowed) in [(Precision::F32, 1e-3), (Precision::F16, 3e-2)] {
        let (outcome, artifacts) = exported(run(&context, &model(weights.clone(), precision)).unwrap());
        let manifest = &outcome.manifest;
        let told: Vec<(&str, u32)> = manifest
            .graphs
            .iter()
            .map(|graph| (graph.name.as_str(), graph.runs))
            .collect();
        let expected = [
            ("text_encoder", 1),
            ("unet.0", 6),
            ("unet.1", 6),
            ("temporal_decoder", 1),
            ("spatial_decoder", 1),
        ];
        assert_eq!(told, expected);
        assert_eq!(artifacts.last().unwrap().name, "manifest.json");
        let json: ExportManifest =
            serde_json::from_slice(&std::fs::read(place(&context, artifacts.last().unwrap())).unwrap()).unwrap();
        assert_eq!(&json, manifest);
        assert_eq!(manifest.opset, OPSET);
        let worst = outcome.metrics["largest_relative_error"].value;
        assert!(worst > 0.0 && worst < 1e-2, "{worst}");
        let grid = manifest.sampler.as_ref().unwrap();
        assert_eq!(grid.times, Grid::new(3, 1.0).times());

        let file = std::fs::read(place(&context, &grid.embeddings)).unwrap();
        let file = SafeTensors::deserialize(&file).unwrap();
        let table = file.tensor("timestep_embeddings").unwrap();
        let table = crate::checkpoint::tensor_of("timestep_embeddings", &table).unwrap();
        let mut player = Player::new(&context, manifest);
        let [tokens, null_tokens] = ["a red circle moving left", ""].map(|caption| {
            let (length, _) = assets.text.sizes();
            assets.manifest.tokenizer.encode_all(&[caption], length)
        });
        let [text, null_text] = [tokens, null_tokens].map(|tokens| player.run("text_encoder", &[("tokens", &tokens)]));
        let noise = normal(&[1, 4, 5, 8, 8], 8, Device::Cpu);
        let mut x = noise.shallow_clone();
        for (i, time) in grid.times.iter().enumerate() {
            let embedding = table.narrow(0, i as i64, 1);
            let mut at = |text: &Tensor| {
                player.run(
                    "unet",
                    &[("latents", &x), ("time_embedding", &embedding), ("text", text)],
                )
            };
            let (free, bound) = (at(&null_text), at(&text));
            let next = grid.times.get(i + 1).copied().unwrap_or(0.0);
            x = &x - (&free + (bound - &free) * grid.guidance) * (time - next);
        }
        let frames = player.run("temporal_decoder", &[("latents", &x)]);
        let pixels = player.run("spatial_decoder", &[("frames", &frames)]);

        let sampler = Sampler {
            steps: 3,
            shift: search_spaces::TimestepShift::None,
            guidance: 4.0,
        };
        let (text, null_text) = (
            assets.text.embed(&["a red circle moving left"]),
            assets.text.embed(&[""]),
        );
        let latents = sampler.sample(&unet, &noise, &text, &null_text);
        let clip = assets.vae.decode(&latents, 17);
        let off = relative_error(&pixels, &clip.squeeze_dim(0).transpose(0, 1));
        assert!(off < allowed, "{precision:?}: {off}");
    }
}

#[test]
fn blocks_are_exported_in_order_with_the_weights_of_their_seed() {
    let (folder, tokio) = (tempfile::tempdir().unwrap(), Tokio::new().unwrap());
    let context = context(&tokio, folder.path());
    let upsample = block("unet.upsample", &[("b", 1), ("t", 2), ("h", 3), ("w", 4), ("c", 8)]);
    let (outcome, artifacts) = exported(run(&context, &blocks(vec![conv(), upsample.clone()])).unwrap());
    let graphs = &outcome.manifest.graphs;
    assert_eq!(
        graphs
            .iter()
            .filter_map(|graph| graph.block.clone())
            .collect::<Vec<_>>(),
        [conv(), upsample]
    );
    assert_eq!(
        (graphs[0].name.as_str(), graphs[0].files[0].name.as_str()),
        ("0000.conv3d", "0000.conv3d.onnx")
    );
    assert_eq!(graphs[0].parameters, 27 * 16 * 16 + 3 * 16);
    assert_eq!(graphs[0].inputs[0].shape, [3, 16, 4, 4]);
    assert_eq!((artifacts.len(), outcome.manifest.sampler), (3, None));
    assert_eq!(
        outcome.metrics["parameters"].value,
        graphs.iter().map(|graph| graph.parameters as f64).sum::<f64>()
    );
    // The folder in which they were written is gone, what was kept is not.
    assert!(
        artifacts
            .iter()
            .all(|artifact| place(&context, artifact).metadata().unwrap().len() == artifact.bytes)
    );
    let left = std::fs::read_dir(folder.path()).unwrap().filter(|entry| {
        entry
            .as_ref()
            .unwrap()
            .file_name()
            .to_string_lossy()
            .starts_with("export-")
    });
    assert_eq!(left.count(), 0);

    let again = exported(run(&context, &blocks(vec![conv()])).unwrap()).0;
    assert_eq!(
        again.manifest.graphs[0].files, graphs[0].files,
        "the same seed gives the same bytes"
    );
    let other = ExportInput {
        seed: 10,
        ..blocks(vec![conv()])
    };
    assert_ne!(
        exported(run(&context, &other).unwrap()).0.manifest.graphs[0].files,
        graphs[0].files
    );
}

#[test]
fn what_cannot_be_exported_is_refused_for_good() {
    let (folder, tokio) = (tempfile::tempdir().unwrap(), Tokio::new().unwrap());
    let context = context(&tokio, folder.path());
    let refused = |input: &ExportInput| {
        let error = run(&context, input).unwrap_err();
        assert!(!error.is_worth_another_attempt(), "{error}");
        error.to_string()
    };
    assert_eq!(refused(&blocks(vec![])), "`blocks` is empty; allowed: at least one");
    let unknown = refused(&blocks(vec![conv(), block("conv4d", &[("b", 1)])]));
    assert!(
        unknown.starts_with("block 1, `conv4d`: `conv4d` is no operator of this worker"),
        "{unknown}"
    );
    let narrow = refused(&blocks(vec![block("conv3d", &[("b", 1), ("c", 6), ("groups", 4)])]));
    assert_eq!(narrow, "block 0, `conv3d`: `groups` is 4, it must divide 6");

    let (_vs, _unet, weights) = weights(&context);
    let with = |change: &dyn Fn(&mut ExportSubject)| {
        let mut input = model(weights.clone(), Precision::F32);
        change(&mut input.subject);
        refused(&input)
    };
    let parts = with(&|subject| {
        if let ExportSubject::Model { unet_parts, .. } = subject {
            *unet_parts = 0;
        }
    });
    assert!(parts.starts_with("`unet_parts` is 0; allowed are 1 to "), "{parts}");
    let steps = with(&|subject| {
        if let ExportSubject::Model { sample_steps, .. } = subject {
            *sample_steps = 0;
        }
    });
    assert!(steps.contains("`sample_steps` 0"), "{steps}");
    let missing = with(&|subject| {
        if let ExportSubject::Model { weights, .. } = subject {
            weights.clear();
        }
    });
    assert!(missing.contains("the weights lack `temporal."), "{missing}");
}

#[test]
fn an_export_ends_when_it_is_not_wanted() {
    let (folder, tokio) = (tempfile::tempdir().unwrap(), Tokio::new().unwrap());
    let context = context(&tokio, folder.path());
    context.pulse.stop();
    let error = run(&context, &blocks(vec![conv()])).unwrap_err();
    assert!(matches!(error, JobError::Interrupted), "{error}");
}

#[test]
fn a_compressed_decoder_takes_the_place_of_the_parts_own() {
    let (folder, tokio) = (tempfile::tempdir().unwrap(), Tokio::new().unwrap());
    let context = context(&tokio, folder.path());
    let shipped = context.settings.assets.join("shapes");
    let keep = |name: &str, bytes: &[u8]| {
        context
            .keep(ArtifactRole::Base, name, "application/octet-stream", bytes)
            .unwrap()
    };
    let file = |name: &str| std::fs::read(shipped.join(name)).unwrap();
    let decoder = [
        keep("vae.safetensors", b"another"),
        keep("manifest.json", &file("manifest.json")),
    ];
    let root = context.assets_with("shapes", &[], &decoder).unwrap();
    let laid = |root: &Path, name: &str| std::fs::read(root.join("shapes").join(name)).unwrap();
    assert_eq!(laid(&root, "vae.safetensors"), b"another");
    assert_eq!(laid(&root, "text.safetensors"), file("text.safetensors"));
    let base = [
        keep("vae.safetensors", &file("vae.safetensors")),
        keep("text.safetensors", b"text"),
    ];
    let root = context.assets_with("shapes", &base, &decoder).unwrap();
    assert_eq!(
        (laid(&root, "vae.safetensors"), laid(&root, "text.safetensors")),
        (b"another".to_vec(), b"text".to_vec())
    );
    assert_eq!(
        context.assets_with("shapes", &[], &[]).unwrap(),
        context.settings.assets
    );
}

#[test]
fn a_core_ml_package_comes_beside_the_graph_where_the_environment_is() {
    let (folder, tokio) = (tempfile::tempdir().unwrap(), Tokio::new().unwrap());
    let mut context = context(&tokio, folder.path());
    let input = ExportInput {
        formats: vec![ExportFormat::CoreMl],
        precision: Precision::F16,
        ..blocks(vec![block(
            "cross_attention1d",
            &[
                ("b", 1),
                ("t", 3),
                ("h", 2),
                ("w", 2),
                ("c", 16),
                ("heads", 2),
                ("l", 4),
                ("d", 8),
            ],
        )])
    };
    let error = run(&context, &input).unwrap_err();
    assert!(error.to_string().contains("no environment with coremltools") && error.is_worth_another_attempt());
    context.settings.coreml = Some(folder.path().join("no-python"));
    let error = run(&context, &input).unwrap_err().to_string();
    assert!(error.contains("no-python cannot import coremltools"), "{error}");

    let python = std::env::var_os("TEMPONAS_COREML_PYTHON").map(PathBuf::from);
    let python = python.unwrap_or_else(|| default_cache().join("coreml-9.0/bin/python"));
    if !python.exists() {
        println!(
            "skipped: {} is not there, `scripts/coreml-env` makes it",
            python.display()
        );
        return;
    }
    context.settings.coreml = Some(python);
    let (outcome, _) = exported(run(&context, &input).unwrap());
    let files = &outcome.manifest.graphs[0].files;
    assert_eq!(
        files.iter().map(|file| file.name.as_str()).collect::<Vec<_>>(),
        ["0000.cross_attention1d.onnx", "0000.cross_attention1d.mlpackage.zip"]
    );
    let zip = std::fs::read(place(&context, &files[1])).unwrap();
    assert_eq!(&zip[..4], b"PK\x03\x04");
    let name = b"0000.cross_attention1d.mlpackage/Data/com.apple.CoreML/model.mlmodel";
    assert!(zip.windows(name.len()).any(|window| window == name));
}
