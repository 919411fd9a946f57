//! Scores any model on any of an evaluator's dimensions, and puts its row beside the paper's.

use std::collections::BTreeMap;

use protocol::Metrics;
use protocol::artifacts::{ArtifactRef, ArtifactRole};
use protocol::jobs::{
    BenchmarkInput, BenchmarkOutcome, DeviceSeconds, JobResult, Outcome, ResultTable, VBENCH_EVALUATOR,
};
use search_spaces::vbench::{Dimension, table_1_cells, table_2_cells};
use search_spaces::{BUILT_IN_DIMENSIONS, Evaluation, TemporalLayer, UnetConfig};
use tch::{Tensor, nn};

use super::scoring::{Scoring, figures};
use super::{JobContext, JobError, parse};
use crate::assets::Assets;
use crate::checkpoint::decode_tensors;
use crate::models::UNet;
use crate::models::seeded::seed_weights;
use crate::models::unet::is_temporal;

/// Share of the job at which scoring begins.
const READ: f64 = 0.02;
/// Name of an evaluator on the wire.
const BUILT_IN: &str = "built-in";

pub(super) fn run(context: &JobContext, input: &BenchmarkInput) -> Result<JobResult, JobError> {
    tch::set_num_threads(context.settings.threads as i32);
    let (space, architecture) = parse(&input.space, Some(&input.architecture))?;
    let architecture = architecture.ok_or_else(|| JobError::Input("no architecture".to_owned()))?;
    let unet = space
        .unet()
        .ok_or_else(|| JobError::Input(format!("`{}` has no UNet to score", space.name)))?;
    let evaluation = space.evaluation.as_ref();
    let evaluation = evaluation.ok_or_else(|| JobError::Input("the space has no [evaluation] section".to_owned()))?;
    let evaluation = asked_for(evaluation, input)?;

    context.progress(0.0, "reading trained parts")?;
    let root = context.assets(&evaluation.dataset, &input.base)?;
    let assets = Assets::open(&root, &evaluation.dataset, context.settings.device).map_err(JobError::attempt)?;
    let (vs, unet) = trained(context, &assets, unet, &space.layers(&architecture), &input.weights)?;
    let parameters: usize = vs.variables().values().map(Tensor::numel).sum();
    context.log(&format!(
        "{}: {}, {parameters} parameters",
        input.model, input.architecture
    ));

    let scoring = Scoring {
        context,
        assets: &assets,
        evaluation: &evaluation,
        model: identity(&assets, &input.architecture, &input.weights),
        share: (READ, 1.0),
    };
    let mut device_seconds = DeviceSeconds::default();
    let (score, evaluator) = scoring.run(&unet, &mut device_seconds)?;
    let mut metrics = figures(&score.metrics);
    // An average by the weights of a search, which a benchmark has none of.
    metrics.remove("quality");
    let tables = if evaluation.evaluator == VBENCH_EVALUATOR {
        tables(
            &input.model,
            parameters as u64,
            input.sample_steps,
            &metrics,
            &evaluator,
        )
    } else {
        Vec::new()
    };
    let per_prompt = serde_json::to_vec(&score.per_prompt).map_err(JobError::attempt)?;
    let artifacts = [
        (ArtifactRole::Animation, "samples.gif", "image/gif", &score.animation),
        (ArtifactRole::Sheet, "samples.png", "image/png", &score.sheet),
        (ArtifactRole::Scores, "scores.json", "application/json", &per_prompt),
    ]
    .into_iter()
    .map(|(role, name, media_type, bytes)| context.keep(role, name, media_type, bytes))
    .collect::<Result<_, _>>()?;
    Ok(JobResult {
        device_seconds,
        artifacts,
        outcome: Outcome::Benchmark(BenchmarkOutcome {
            metrics,
            evaluator,
            tables,
        }),
    })
}

/// A UNet with the backbone's weights and the saved ones over them, where the parts are.
pub(super) fn trained(
    context: &JobContext,
    assets: &Assets,
    config: &UnetConfig,
    layers: &[Option<TemporalLayer>],
    weights: &[ArtifactRef],
) -> Result<(nn::VarStore, UNet), JobError> {
    let vs = nn::VarStore::new(assets.device());
    let unet = UNet::new(&vs.root(), config, layers);
    seed_weights(&vs, 0);
    assets.load_backbone(&vs).map_err(JobError::attempt)?;
    let mut saved = BTreeMap::new();
    for artifact in weights {
        let tensors = decode_tensors(&context.fetch(artifact)?);
        saved.extend(tensors.map_err(|error| JobError::Input(format!("{}: {error}", artifact.name)))?);
    }
    load(&vs, &saved).map_err(JobError::Input)?;
    Ok((vs, unet))
}

/// The space's evaluation with what the job asks for instead.
fn asked_for(evaluation: &Evaluation, input: &BenchmarkInput) -> Result<Evaluation, JobError> {
    let all: Vec<&str> = match input.evaluator.as_str() {
        VBENCH_EVALUATOR => Dimension::ALL.map(Dimension::name).to_vec(),
        BUILT_IN => BUILT_IN_DIMENSIONS.to_vec(),
        found => {
            return Err(JobError::Input(format!(
                "`evaluator` is `{found}`; allowed: {BUILT_IN}, {VBENCH_EVALUATOR}"
            )));
        }
    };
    if let Some(found) = input.dimensions.iter().find(|name| !all.contains(&name.as_str())) {
        let allowed = all.join(", ");
        return Err(JobError::Input(format!(
            "`dimensions` names `{found}`; allowed: {allowed}"
        )));
    }
    if input.sample_steps == 0 || !input.guidance.is_finite() {
        return Err(JobError::Input(format!(
            "`sample_steps` is {} and `guidance` {}; allowed: at least 1 step, a finite guidance",
            input.sample_steps, input.guidance
        )));
    }
    let asked = if input.dimensions.is_empty() {
        all.into_iter().map(str::to_owned).collect()
    } else {
        input.dimensions.clone()
    };
    Ok(Evaluation {
        evaluator: input.evaluator.clone(),
        dimensions: asked.into_iter().map(|name| (name, 1.0)).collect(),
        prompts: input.prompts.unwrap_or(u32::MAX),
        videos_per_prompt: input.videos_per_prompt,
        preset: input.preset.clone().or_else(|| evaluation.preset.clone()),
        sample_steps: input.sample_steps,
        guidance: input.guidance,
        score_seed: input.seed,
        ..evaluation.clone()
    })
}

/// Takes saved weights over the backbone's; all temporal layers must be among them.
fn load(vs: &nn::VarStore, saved: &BTreeMap<String, Tensor>) -> Result<(), String> {
    let variables = vs.variables();
    if let Some(unknown) = saved.keys().find(|name| !variables.contains_key(*name)) {
        return Err(format!("the weights hold `{unknown}`, which this architecture has not"));
    }
    for (name, mut variable) in variables {
        let Some(tensor) = saved.get(&name) else {
            if is_temporal(&name) {
                return Err(format!("the weights lack `{name}` of shape {:?}", variable.size()));
            }
            continue;
        };
        if (tensor.size(), tensor.kind()) != (variable.size(), variable.kind()) {
            return Err(format!(
                "`{name}` has shape {:?} of {:?}, needed is {:?} of {:?}",
                tensor.size(),
                tensor.kind(),
                variable.size(),
                variable.kind()
            ));
        }
        tch::no_grad(|| variable.copy_(tensor));
    }
    Ok(())
}

/// What tells this model's samples from those of all others.
fn identity(assets: &Assets, architecture: &str, weights: &[ArtifactRef]) -> String {
    let digests: Vec<String> = weights.iter().map(|weights| weights.digest.to_string()).collect();
    format!("{} {architecture} {}", assets.manifest.digest(), digests.join(" "))
}

/// The model's rows of Tables 1 and 2 below the paper's.
fn tables(model: &str, parameters: u64, steps: u32, metrics: &Metrics, evaluator: &str) -> Vec<ResultTable> {
    let scored = |dimension: Dimension| Some((dimension, metrics.get(dimension.name())?.value));
    let raw: BTreeMap<Dimension, f64> = Dimension::ALL.into_iter().filter_map(scored).collect();
    let table = |title: &str, (columns, rows)| ResultTable {
        title: title.to_owned(),
        columns,
        rows,
    };
    vec![
        table(
            "size and speed, as the paper's Table 1",
            table_1_cells(model, parameters, steps, &raw),
        ),
        table(
            &format!("VBench in percent, as the paper's Table 2; the last row by {evaluator}"),
            table_2_cells(model, parameters, steps, &raw),
        ),
    ]
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;
    use crate::models::seeded::normal;
    use search_spaces::Space;

    fn shapes() -> Space {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../search-spaces/spaces/shapes-tiny.toml");
        Space::parse(&std::fs::read_to_string(path).unwrap()).unwrap()
    }

    fn input(space: &str) -> BenchmarkInput {
        BenchmarkInput {
            model: "tiny".to_owned(),
            space: space.to_owned(),
            architecture: "c1.-.-.-.-".to_owned(),
            weights: vec![],
            base: vec![],
            evaluator: BUILT_IN.to_owned(),
            dimensions: vec![],
            videos_per_prompt: 1,
            prompts: Some(2),
            preset: None,
            sample_steps: 2,
            guidance: 1.0,
            seed: 3,
        }
    }

    #[test]
    fn what_no_evaluator_has_is_refused_for_good() {
        let space = shapes();
        let evaluation = space.evaluation.as_ref().unwrap();
        let refuse = |input: BenchmarkInput| asked_for(evaluation, &input).unwrap_err().to_string();
        let base = input("");
        let said = refuse(BenchmarkInput {
            evaluator: "taste".to_owned(),
            ..base.clone()
        });
        assert_eq!(said, "`evaluator` is `taste`; allowed: built-in, vbench");
        let said = refuse(BenchmarkInput {
            dimensions: vec!["scene".to_owned()],
            ..base.clone()
        });
        assert!(
            said.starts_with("`dimensions` names `scene`; allowed: overall_consistency"),
            "{said}"
        );
        assert!(
            refuse(BenchmarkInput {
                sample_steps: 0,
                ..base.clone()
            })
            .contains("`sample_steps` is 0")
        );
        let vbench = BenchmarkInput {
            evaluator: VBENCH_EVALUATOR.to_owned(),
            prompts: None,
            ..base
        };
        let asked = asked_for(evaluation, &vbench).unwrap();
        assert_eq!(
            (asked.dimensions.len(), asked.prompts, asked.score_seed),
            (16, u32::MAX, 3)
        );
    }

    #[test]
    fn weights_must_fit_and_cover_the_temporal_layers() {
        let space = shapes();
        let vs = nn::VarStore::new(Device::Cpu);
        let architecture = space.architecture("c1.-.-.-.-").unwrap();
        let _unet = UNet::new(&vs.root(), space.unet().unwrap(), &space.layers(&architecture));
        let whole: BTreeMap<String, Tensor> = vs
            .variables()
            .into_iter()
            .filter(|(name, _)| is_temporal(name))
            .map(|(name, tensor)| (name, normal(&tensor.size(), 1, Device::Cpu)))
            .collect();
        load(&vs, &whole).unwrap();
        let (name, tensor) = whole.iter().next().unwrap();
        assert_eq!(&vs.variables()[name], tensor);

        let with = |changed: Option<Tensor>| {
            let mut saved: BTreeMap<String, Tensor> = whole
                .iter()
                .map(|(name, tensor)| (name.clone(), tensor.shallow_clone()))
                .collect();
            saved.remove(name);
            saved.extend(changed.map(|tensor| (name.clone(), tensor)));
            load(&vs, &saved).unwrap_err()
        };
        assert!(with(None).contains(&format!("lack `{name}`")));
        assert!(with(Some(normal(&[7], 1, Device::Cpu))).contains("has shape [7] of Float, needed is"));
        assert!(with(Some(tensor.to_kind(tch::Kind::Half))).contains("of Half, needed is"));
        let other = BTreeMap::from([("elsewhere.weight".to_owned(), normal(&[1], 1, Device::Cpu))]);
        assert!(
            load(&vs, &other)
                .unwrap_err()
                .contains("`elsewhere.weight`, which this architecture has not")
        );
    }

    #[test]
    fn a_model_is_scored_by_the_built_in_evaluator_too() {
        let (folder, tokio) = (tempfile::tempdir().unwrap(), tokio::runtime::Runtime::new().unwrap());
        let mut context = JobContext::alone(&tokio, folder.path());
        context.settings.assets = concat!(env!("CARGO_MANIFEST_DIR"), "/../assets").into();
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../search-spaces/spaces/shapes-tiny.toml");
        let mut input = input(&std::fs::read_to_string(path).unwrap());
        input.architecture = "-.-.-.-.-".to_owned();
        // All that a space file may name.
        input.dimensions = BUILT_IN_DIMENSIONS.map(str::to_owned).to_vec();
        let result = run(&context, &input).unwrap();
        let Outcome::Benchmark(outcome) = result.outcome else {
            panic!("{:?}", result.outcome)
        };
        assert!(outcome.metrics.contains_key("object_class") && !outcome.metrics.contains_key("quality"));
        assert!(outcome.evaluator.starts_with("built-in shapes") && outcome.tables.is_empty());
        assert_eq!(result.artifacts.len(), 3);

        input.evaluator = VBENCH_EVALUATOR.to_owned();
        let error = run(&context, &input).unwrap_err();
        assert!(error.to_string().contains("without an environment"), "{error}");
    }
}
