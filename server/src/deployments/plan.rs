//! Which job a deployment needs next: a pure function of what was asked for and what was found.

use std::collections::BTreeMap;

use protocol::{
    CandidateId,
    artifacts::{ArtifactRef, ArtifactRole},
    deployments::{DeployStep, DeploymentSettings},
    jobs::{
        CompressDecoderInput, DistillInput, ExportInput, ExportSubject, JobInput, JobResult, Outcome,
        ProfileModelInput, TrainFinalInput,
    },
};
use search_spaces::{Recipe, Space, Stage};

/// What a deployment starts from.
#[derive(Debug, Clone, Copy)]
pub struct Plan<'a> {
    /// What was asked for.
    pub settings: &'a DeploymentSettings,
    /// Its space.
    pub space: &'a Space,
    /// Its architecture in printed form.
    pub architecture: &'a str,
    /// The candidate that the profile's figures belong to; none where the architecture is not its own.
    pub candidate: Option<CandidateId>,
    /// Temporal layers that the final training starts from; fresh ones where it is empty.
    pub weights: &'a [ArtifactRef],
    /// Files of the trained parts and latents.
    pub base: &'a [ArtifactRef],
}

/// How far a step is.
#[derive(Debug, Clone, PartialEq)]
pub enum Standing {
    /// Its job waits or runs.
    Open,
    /// Its job found something.
    Found(Box<Found>),
    /// Its job ended without a result; why.
    Ended(String),
}

/// What a step's job was to do, and what it found.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// Its input.
    pub input: JobInput,
    /// Its result.
    pub result: JobResult,
}

impl Found {
    /// Files of some roles that it made.
    fn files(&self, roles: &[ArtifactRole]) -> Vec<ArtifactRef> {
        let wanted = |file: &&ArtifactRef| roles.contains(&file.role);
        self.result.artifacts.iter().filter(wanted).cloned().collect()
    }
}

/// What a deployment goes on from.
#[derive(Debug, Clone, PartialEq)]
pub enum Before {
    /// The candidate alone.
    Nothing,
    /// A deployment that still runs.
    Running,
    /// A deployment that ended without having done all its steps; what it is called, and why.
    Ended(String),
    /// A deployment that has done its steps.
    Done(BTreeMap<DeployStep, Found>),
}

/// What a deployment needs.
#[derive(Debug, Clone, PartialEq)]
pub enum Next {
    /// A step's job.
    Ask(DeployStep, Box<JobInput>),
    /// Something that runs.
    Wait,
    /// Nothing: all steps are done.
    Done,
    /// It cannot go on; why.
    Fail(String),
}

/// The steps that are done, in order.
#[must_use]
pub fn steps(settings: &DeploymentSettings) -> Vec<DeployStep> {
    let asked = |step: &DeployStep| match settings.steps.is_empty() {
        true => *step != DeployStep::ProfileModel || settings.profile.is_some(),
        false => settings.steps.contains(step),
    };
    DeployStep::ALL.into_iter().filter(asked).collect()
}

/// What a deployment needs next, by how far its own steps are and what it goes on from.
#[must_use]
pub fn next(plan: &Plan<'_>, own: &BTreeMap<DeployStep, Standing>, before: &Before) -> Next {
    let earlier = match before {
        Before::Nothing => &BTreeMap::new(),
        Before::Done(found) => found,
        Before::Running => return Next::Wait,
        Before::Ended(why) => return Next::Fail(why.clone()),
    };
    for step in steps(plan.settings) {
        match own.get(&step) {
            Some(Standing::Found(_)) => {}
            Some(Standing::Open) => return Next::Wait,
            Some(Standing::Ended(why)) => return Next::Fail(format!("{step}: {why}")),
            None => {
                let made = Made { own, earlier };
                return match input(plan, step, &made) {
                    Ok(input) => Next::Ask(step, Box::new(input)),
                    Err(missing) => Next::Fail(format!("{step}: {missing}")),
                };
            }
        }
    }
    Next::Done
}

/// What earlier steps made, here or before.
struct Made<'a> {
    own: &'a BTreeMap<DeployStep, Standing>,
    earlier: &'a BTreeMap<DeployStep, Found>,
}

impl Made<'_> {
    fn by(&self, step: DeployStep) -> Option<&Found> {
        match self.own.get(&step) {
            Some(Standing::Found(found)) => Some(found),
            _ => self.earlier.get(&step),
        }
    }

    /// The weights that a step trained.
    fn weights(&self, step: DeployStep) -> Option<Result<Vec<ArtifactRef>, String>> {
        let weights = self.by(step)?.files(&[ArtifactRole::Weights]);
        Some(if weights.is_empty() {
            Err(format!("{step} left no weights to start from"))
        } else {
            Ok(weights)
        })
    }
}

fn input(plan: &Plan<'_>, step: DeployStep, made: &Made<'_>) -> Result<JobInput, String> {
    let Plan { settings, space, .. } = *plan;
    let recipe = |recipe: &Option<String>, stage: &str| {
        let recipe = recipe.clone();
        recipe.ok_or_else(|| format!("there is no recipe of the stage {stage}"))
    };
    Ok(match step {
        DeployStep::TrainFinal => JobInput::TrainFinal(TrainFinalInput {
            space: space.source.clone(),
            architecture: plan.architecture.to_owned(),
            weights: match made.weights(DeployStep::TrainFinal) {
                Some(trained) => trained?,
                None => plan.weights.to_vec(),
            },
            base: plan.base.to_vec(),
            recipe: recipe(&settings.recipes.joint, "joint")?,
            scoring: settings.scoring,
            seed: settings.seed,
            ranks: settings.ranks,
        }),
        DeployStep::Distill => JobInput::Distill(DistillInput {
            space: space.source.clone(),
            architecture: plan.architecture.to_owned(),
            weights: made
                .weights(DeployStep::TrainFinal)
                .ok_or("no final training came before it")??,
            base: plan.base.to_vec(),
            recipe: recipe(&settings.recipes.adversarial, "adversarial")?,
            scoring: settings.scoring,
            seed: settings.seed,
            ranks: settings.ranks,
        }),
        DeployStep::CompressDecoder => JobInput::CompressDecoder(CompressDecoderInput {
            parts: parts(settings, space).ok_or("the space names no dataset, whose parts hold the decoder")?,
            // The files of the search are those of the space's dataset.
            base: if settings.parts.is_some() && settings.parts != dataset(space) {
                Vec::new()
            } else {
                plan.base.to_vec()
            },
            dataset: settings.dataset.clone(),
            recipe: recipe(&settings.recipes.decoder, "decoder")?,
            seed: settings.seed,
        }),
        DeployStep::Export => JobInput::Export(export(plan, made)?),
        DeployStep::ProfileModel => {
            let profile = settings.profile.as_ref().ok_or("there is no device to measure on")?;
            let found = made.by(DeployStep::Export).ok_or("no export came before it")?;
            let Outcome::Export(exported) = &found.result.outcome else {
                return Err("the export before it has no graphs".to_owned());
            };
            // A candidate's latency is that of one clip a pass.
            let is_single = matches!(
                &found.input,
                JobInput::Export(ExportInput {
                    subject: ExportSubject::Model { batch: 1, .. },
                    ..
                })
            );
            JobInput::ProfileModel(ProfileModelInput {
                manifest: exported.manifest.clone(),
                candidate_id: plan.candidate.filter(|_| is_single),
                runs: profile.runs,
                sustained_seconds: profile.sustained_seconds,
            })
        }
    })
}

/// Name of the trained parts that hold the decoder.
#[must_use]
pub fn parts(settings: &DeploymentSettings, space: &Space) -> Option<String> {
    settings.parts.clone().or_else(|| dataset(space))
}

fn dataset(space: &Space) -> Option<String> {
    Some(space.evaluation.as_ref()?.dataset.clone())
}

/// The export of what was trained last, stepped as it was trained to be.
fn export(plan: &Plan<'_>, made: &Made<'_>) -> Result<ExportInput, String> {
    let wish = &plan.settings.export;
    let distilled = made.by(DeployStep::Distill);
    let trained = distilled.map(|_| DeployStep::Distill).unwrap_or(DeployStep::TrainFinal);
    let weights = made
        .weights(trained)
        .ok_or("neither a final training nor a distillation came before it")??;
    let few_steps = distilled.and_then(|found| match &found.input {
        JobInput::Distill(input) => steps_of(&input.recipe),
        _ => None,
    });
    let evaluation = plan.space.evaluation.as_ref();
    let scored = plan.settings.scoring;
    let (usual_steps, usual_guidance) = match distilled {
        Some(_) => (few_steps, Some(1.0)),
        None => (
            scored.sample_steps.or(evaluation.map(|usual| usual.sample_steps)),
            scored.guidance.or(evaluation.map(|usual| usual.guidance)),
        ),
    };
    let decoder = made.by(DeployStep::CompressDecoder);
    Ok(ExportInput {
        subject: ExportSubject::Model {
            space: plan.space.source.clone(),
            architecture: plan.architecture.to_owned(),
            weights,
            base: plan.base.to_vec(),
            decoder: decoder.map_or_else(Vec::new, |found| {
                found.files(&[ArtifactRole::Base, ArtifactRole::Weights])
            }),
            unet_parts: wish.unet_parts,
            batch: wish.batch,
            sample_steps: wish
                .sample_steps
                .or(usual_steps)
                .ok_or("neither the recipe nor the space says how many steps a sample has")?,
            guidance: wish.guidance.or(usual_guidance).unwrap_or(1.0),
        },
        precision: wish.precision,
        formats: wish.formats.clone(),
        seed: plan.settings.seed,
    })
}

/// Steps of a sample that a recipe distils to.
fn steps_of(recipe: &str) -> Option<u32> {
    match Recipe::parse(recipe).ok()?.stage {
        Stage::Adversarial(adversarial) => Some(adversarial.sample_steps),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use protocol::{
        deployments::{DeployRecipes, ExportWish, ProfileWish},
        jobs::{
            CompressDecoderOutcome, DeviceSeconds, DistillOutcome, ExportManifest, ExportOutcome, ResultTable,
            TrainFinalOutcome,
        },
    };

    use super::*;

    const SPACE: &str = include_str!("../../../search-spaces/spaces/shapes-tiny.toml");
    const JOINT: &str = include_str!("../../../worker/recipes/joint.toml");
    const ADVERSARIAL: &str = include_str!("../../../worker/recipes/adversarial.toml");
    const ARCHITECTURE: &str = "c1.-.s1.-.-";

    fn file(role: ArtifactRole, name: &str) -> ArtifactRef {
        ArtifactRef {
            role,
            digest: "a".repeat(64).parse().unwrap(),
            name: name.to_owned(),
            media_type: "application/octet-stream".to_owned(),
            bytes: 1,
        }
    }

    fn settings() -> DeploymentSettings {
        DeploymentSettings {
            recipes: DeployRecipes {
                joint: Some(JOINT.to_owned()),
                adversarial: Some(ADVERSARIAL.to_owned()),
                decoder: Some("stage = \"decoder\"".to_owned()),
            },
            export: ExportWish {
                unet_parts: 2,
                ..ExportWish::default()
            },
            profile: Some(ProfileWish {
                device: "phone".to_owned(),
                runtime: None,
                runs: 7,
                sustained_seconds: 0.0,
            }),
            seed: 3,
            ranks: 2,
            ..DeploymentSettings::default()
        }
    }

    /// What an able worker finds.
    fn found(input: &JobInput) -> Found {
        let (artifacts, outcome) = match input {
            JobInput::TrainFinal(_) => (
                vec![
                    file(ArtifactRole::Weights, "final.safetensors"),
                    file(ArtifactRole::Animation, "a.gif"),
                ],
                Outcome::TrainFinal(TrainFinalOutcome {
                    metrics: Default::default(),
                    evaluator: "e".to_owned(),
                }),
            ),
            JobInput::Distill(_) => (
                vec![file(ArtifactRole::Weights, "distilled.safetensors")],
                Outcome::Distill(DistillOutcome {
                    metrics: Default::default(),
                    evaluator: "e".to_owned(),
                    table: ResultTable::default(),
                    by_steps: Default::default(),
                }),
            ),
            JobInput::CompressDecoder(_) => (
                vec![
                    file(ArtifactRole::Base, "manifest.json"),
                    file(ArtifactRole::Weights, "decoder.safetensors"),
                ],
                Outcome::CompressDecoder(CompressDecoderOutcome {
                    metrics: Default::default(),
                    table: ResultTable::default(),
                }),
            ),
            _ => (
                Vec::new(),
                Outcome::Export(ExportOutcome {
                    metrics: Default::default(),
                    manifest: ExportManifest {
                        opset: 21,
                        exporter: "1".to_owned(),
                        precision: Default::default(),
                        graphs: Vec::new(),
                        sampler: None,
                    },
                }),
            ),
        };
        Found {
            input: input.clone(),
            result: JobResult {
                device_seconds: DeviceSeconds::default(),
                artifacts,
                outcome,
            },
        }
    }

    fn names(files: &[ArtifactRef]) -> Vec<&str> {
        files.iter().map(|file| file.name.as_str()).collect()
    }

    /// Does all steps; answers the inputs in order and what was found.
    fn work_off(
        settings: &DeploymentSettings,
        before: &Before,
    ) -> (Vec<JobInput>, BTreeMap<DeployStep, Standing>, Next) {
        let space = Space::parse(SPACE).unwrap();
        let weights = [file(ArtifactRole::Weights, "candidate.safetensors")];
        let plan = Plan {
            settings,
            space: &space,
            architecture: ARCHITECTURE,
            candidate: Some(CandidateId::default()),
            weights: &weights,
            base: &[],
        };
        let (mut own, mut inputs) = (BTreeMap::new(), Vec::new());
        loop {
            match next(&plan, &own, before) {
                Next::Ask(step, input) => {
                    assert_eq!(step.kind(), input.kind());
                    own.insert(step, Standing::Open);
                    assert_eq!(next(&plan, &own, before), Next::Wait);
                    own.insert(step, Standing::Found(Box::new(found(&input))));
                    inputs.push(*input);
                }
                end => return (inputs, own, end),
            }
        }
    }

    #[test]
    fn each_step_starts_from_what_the_steps_before_made() {
        let (inputs, _, end) = work_off(&settings(), &Before::Nothing);
        assert_eq!(end, Next::Done);
        let [
            JobInput::TrainFinal(train),
            JobInput::Distill(distill),
            JobInput::CompressDecoder(compress),
            JobInput::Export(export),
            JobInput::ProfileModel(profile),
        ] = inputs.as_slice()
        else {
            panic!("{inputs:?}");
        };
        assert_eq!(names(&train.weights), ["candidate.safetensors"]);
        assert_eq!((train.seed, train.ranks, distill.ranks), (3, 2, 2));
        assert_eq!(names(&distill.weights), ["final.safetensors"], "no animations");
        assert_eq!(compress.parts, "shapes", "the space's dataset");
        let ExportSubject::Model {
            weights,
            decoder,
            unet_parts,
            sample_steps,
            guidance,
            ..
        } = &export.subject
        else {
            panic!("{export:?}");
        };
        assert_eq!(names(weights), ["distilled.safetensors"]);
        assert_eq!(names(decoder), ["manifest.json", "decoder.safetensors"]);
        assert_eq!((*unet_parts, *sample_steps, *guidance), (2, 4, 1.0), "as distilled");
        assert_eq!((profile.runs, profile.manifest.opset), (7, 21));
    }

    #[test]
    fn a_model_that_is_not_distilled_is_stepped_as_the_space_says() {
        let settings = DeploymentSettings {
            steps: vec![DeployStep::Export, DeployStep::TrainFinal],
            ..settings()
        };
        let (inputs, _, end) = work_off(&settings, &Before::Nothing);
        assert_eq!(end, Next::Done);
        let [JobInput::TrainFinal(_), JobInput::Export(export)] = inputs.as_slice() else {
            panic!("in the chain's order: {inputs:?}");
        };
        let ExportSubject::Model {
            weights,
            decoder,
            sample_steps,
            guidance,
            ..
        } = &export.subject
        else {
            panic!("{export:?}");
        };
        assert_eq!(names(weights), ["final.safetensors"]);
        assert!(decoder.is_empty(), "the parts' own decoder");
        assert_eq!((*sample_steps, *guidance), (25, 4.0));
    }

    #[test]
    fn what_came_before_stands_for_steps_that_are_not_done_here() {
        let (_, own, _) = work_off(&settings(), &Before::Nothing);
        let done = own.into_iter().map(|(step, standing)| match standing {
            Standing::Found(found) => (step, *found),
            other => panic!("{other:?}"),
        });
        let before = Before::Done(done.collect());
        let again = DeploymentSettings {
            steps: vec![DeployStep::TrainFinal, DeployStep::Distill],
            ..settings()
        };
        let (inputs, _, end) = work_off(&again, &before);
        assert_eq!(end, Next::Done);
        let [JobInput::TrainFinal(train), JobInput::Distill(_)] = inputs.as_slice() else {
            panic!("{inputs:?}");
        };
        assert_eq!(
            names(&train.weights),
            ["final.safetensors"],
            "a second training goes on"
        );
        let only = DeploymentSettings {
            steps: vec![DeployStep::ProfileModel],
            ..settings()
        };
        assert_eq!(work_off(&only, &before).0.len(), 1);
        assert_eq!(work_off(&only, &Before::Running).2, Next::Wait);
        assert_eq!(
            work_off(&only, &Before::Ended("it failed".to_owned())).2,
            Next::Fail("it failed".to_owned())
        );
        let Next::Fail(why) = work_off(&only, &Before::Nothing).2 else {
            panic!("there is nothing to measure");
        };
        assert_eq!(why, "profile_model: no export came before it");
    }

    #[test]
    fn a_step_that_ended_without_a_result_ends_the_chain_and_says_why() {
        let space = Space::parse(SPACE).unwrap();
        let settings = settings();
        let plan = Plan {
            settings: &settings,
            space: &space,
            architecture: ARCHITECTURE,
            candidate: None,
            weights: &[],
            base: &[],
        };
        let own = [(DeployStep::TrainFinal, Standing::Ended("no memory".to_owned()))].into();
        assert_eq!(
            next(&plan, &own, &Before::Nothing),
            Next::Fail("train_final: no memory".to_owned())
        );
    }

    #[test]
    fn nothing_is_measured_where_no_device_is_named() {
        let settings = DeploymentSettings {
            profile: None,
            ..settings()
        };
        assert_eq!(steps(&settings), DeployStep::ALL[..4]);
    }
}
