//! Which deployments a table needs.

use protocol::{
    ablations::{AblationKind, NewAblation},
    deployments::{DeployRecipes, DeployStep, DeploymentSettings},
};
use search_spaces::{Architecture, Space};
use toml::Value;

use super::edit::{self, EditError};

/// Parts of the UNet with which a model is measured: what does not fit whole may fit in parts.
pub(super) const PARTS: [u32; 3] = [1, 2, 4];

/// Steps of a sample of the distilled model; the baseline first.
pub(super) const STEPS: [u32; 3] = [4, 2, 1];

/// Share of images where the recipe names none: that of joint training.
const USUAL_SHARE: f64 = 0.2;

/// A table's rows and the deployments behind them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Plan {
    /// What rows differ in.
    pub factors: Vec<String>,
    /// Each row, factor by factor; the baseline first.
    pub rows: Vec<Vec<String>>,
    /// The deployments, those that others go on from first.
    pub parts: Vec<Part>,
    /// What a reader must know.
    pub notes: Vec<String>,
}

/// A deployment of a table.
#[derive(Debug, Clone, PartialEq)]
pub struct Part {
    /// Its name, which no other of the table has.
    pub cell: String,
    /// What it is for.
    pub aim: Aim,
    /// Its settings; `after` is set where `after` below is none.
    pub settings: DeploymentSettings,
    /// Text of the space file.
    pub space: String,
    /// The architecture in printed form.
    pub architecture: String,
    /// Whether it starts from fresh temporal layers.
    pub fresh: bool,
    /// The part that it goes on from.
    pub after: Option<usize>,
}

/// What a deployment of a table is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Aim {
    /// Others go on from it.
    Prepare,
    /// The scores of a row.
    Score {
        /// The row.
        row: usize,
    },
    /// The scores of every row: one model, sampled in several ways.
    ScoreAll,
    /// What a row's model takes on the device, in so many parts.
    Measure {
        /// The row.
        row: usize,
        /// Parts of the UNet.
        parts: u32,
    },
}

/// The deployments of a table, from the request alone: what was planned once is planned again.
///
/// # Errors
/// When a recipe cannot be changed as the table needs it.
pub fn plan(request: &NewAblation, space: &Space, architecture: &Architecture) -> Result<Plan, EditError> {
    let planner = Planner {
        request,
        space,
        architecture,
        printed: space.print(architecture),
    };
    match request.table {
        AblationKind::Table3 => planner.table3(),
        AblationKind::Table4 => planner.table4(),
        AblationKind::Table5 => Ok(planner.table5()),
        AblationKind::Figure6 => planner.figure6(),
    }
}

struct Planner<'a> {
    request: &'a NewAblation,
    space: &'a Space,
    architecture: &'a Architecture,
    printed: String,
}

impl Planner<'_> {
    fn table3(&self) -> Result<Plan, EditError> {
        let mut plan = Plan {
            factors: words(["temporal layers", "trained on"]),
            notes: words(["Every row starts from fresh temporal layers, so that none has a head start."]),
            ..Plan::default()
        };
        let joint = self.request.settings.recipes.joint.clone().unwrap_or_default();
        let share = match edit::number(&joint, "joint", "image_share") {
            Some(share) if share > 0.0 => share,
            _ => USUAL_SHARE,
        };
        let recipe = |share: f64| edit::recipe(&joint, "joint", "image_share", Value::Float(share));
        let (both, videos) = (recipe(share)?, recipe(0.0)?);
        let own = (self.space.source.clone(), self.printed.clone());
        self.row3(&mut plan, "×1", "images and videos", &both, Ok(own.clone()), true);
        self.row3(&mut plan, "×1", "videos", &videos, Ok(own), false);
        for (name, factor) in [("×0.5", 0.5), ("×2", 2.0), ("×4", 4.0)] {
            let scaled = edit::scaled(self.space, self.architecture, factor);
            self.row3(&mut plan, name, "images and videos", &both, scaled, true);
        }
        Ok(plan)
    }

    /// A row of Table 3: its trainings, and what the first of them takes on the device.
    fn row3(
        &self,
        plan: &mut Plan,
        scaling: &str,
        data: &str,
        recipe: &str,
        model: Result<(String, String), EditError>,
        is_measured: bool,
    ) {
        let row = plan.rows.len();
        plan.rows.push(words([scaling, data]));
        let (space, architecture) = match model {
            Ok(model) => model,
            Err(why) => return plan.notes.push(format!("{scaling}: {why}.")),
        };
        let train = |seed| Part {
            space: space.clone(),
            architecture: architecture.clone(),
            fresh: true,
            ..self.training(format!("{scaling}, {data}"), Aim::Score { row }, seed, recipe)
        };
        let first = plan.parts.len();
        plan.parts.extend(self.seeds().map(train));
        if !is_measured || self.request.settings.profile.is_none() {
            return;
        }
        for parts in PARTS {
            let mut settings = self.with_steps(&[DeployStep::Export, DeployStep::ProfileModel], self.first_seed());
            settings.after = None;
            settings.export.unet_parts = parts;
            plan.parts.push(Part {
                cell: format!("{scaling}, measured in {parts} parts"),
                aim: Aim::Measure { row, parts },
                settings,
                space: space.clone(),
                architecture: architecture.clone(),
                fresh: true,
                after: Some(first),
            });
        }
    }

    fn table4(&self) -> Result<Plan, EditError> {
        let mut plan = self.teacher(Plan {
            factors: words(["heads", "distilled on", "m"]),
            notes: words(["All rows are distilled from one model; their seeds are those of the distillation."]),
            ..Plan::default()
        });
        let teacher = plan.parts.len().checked_sub(1);
        let recipe = self.request.settings.recipes.adversarial.clone().unwrap_or_default();
        let share = match edit::number(&recipe, "adversarial", "image_share") {
            Some(share) if share > 0.0 => share,
            _ => USUAL_SHARE,
        };
        let rows = [
            ("unified", share, -1),
            ("separate", 0.0, -1),
            ("unified", 0.0, -1),
            ("unified", share, -2),
            ("unified", share, 0),
            ("unified", share, 1),
        ];
        for (heads, share, mean) in rows {
            let set = |text: &str, key, value| edit::recipe(text, "adversarial", key, value);
            let edited = set(&recipe, "heads", Value::String(heads.to_owned()))?;
            let edited = set(&edited, "image_share", Value::Float(share))?;
            let edited = set(&edited, "noise_mean", Value::Float(f64::from(mean)))?;
            let data = if share > 0.0 { "images and videos" } else { "videos" };
            let row = plan.rows.len();
            plan.rows.push(vec![
                heads.to_owned(),
                data.to_owned(),
                mean.to_string().replace('-', "−"),
            ]);
            for seed in self.seeds() {
                let name = format!("{heads} heads, {data}, m = {mean}");
                plan.parts
                    .push(self.distillation(name, Aim::Score { row }, seed, &edited, teacher));
            }
        }
        Ok(plan)
    }

    fn table5(&self) -> Plan {
        let mut plan = self.teacher(Plan {
            factors: words(["steps"]),
            rows: STEPS.map(|steps| vec![steps.to_string()]).to_vec(),
            notes: words(["All rows sample the same distilled models; their seeds are those of the distillation."]),
            ..Plan::default()
        });
        let teacher = plan.parts.len().checked_sub(1);
        let recipe = self.request.settings.recipes.adversarial.clone().unwrap_or_default();
        for seed in self.seeds() {
            let name = "distilled".to_owned();
            plan.parts
                .push(self.distillation(name, Aim::ScoreAll, seed, &recipe, teacher));
        }
        plan
    }

    fn figure6(&self) -> Result<Plan, EditError> {
        let mut plan = Plan {
            factors: words(["temporal layers removed"]),
            notes: words(["The baseline is trained on for as long as the models that lost layers."]),
            ..Plan::default()
        };
        let recipe = self.request.settings.recipes.joint.clone().unwrap_or_default();
        for (name, stage) in [
            ("none", None),
            ("down", Some("down")),
            ("middle", Some("mid")),
            ("up", Some("up")),
        ] {
            let row = plan.rows.len();
            plan.rows.push(words([name]));
            let architecture = match stage {
                Some(stage) => edit::without(self.space, self.architecture, stage)?,
                None => self.printed.clone(),
            };
            if stage.is_some() && architecture == self.printed {
                plan.notes
                    .push(format!("{name}: the model has no temporal layers there."));
                continue;
            }
            let train = |seed| Part {
                architecture: architecture.clone(),
                ..self.training(format!("{name} removed"), Aim::Score { row }, seed, &recipe)
            };
            plan.parts.extend(self.seeds().map(train));
        }
        Ok(plan)
    }

    /// The model that distillations start from, unless there is one already.
    fn teacher(&self, mut plan: Plan) -> Plan {
        if self.request.settings.after.is_none() {
            let recipe = self.request.settings.recipes.joint.clone().unwrap_or_default();
            let name = "the model that is distilled".to_owned();
            plan.parts
                .push(self.training(name, Aim::Prepare, self.first_seed(), &recipe));
        }
        plan
    }

    fn training(&self, name: String, aim: Aim, seed: u64, recipe: &str) -> Part {
        let mut settings = self.with_steps(&[DeployStep::TrainFinal], seed);
        settings.recipes.joint = Some(recipe.to_owned());
        self.part(name, aim, settings, None)
    }

    fn distillation(&self, name: String, aim: Aim, seed: u64, recipe: &str, after: Option<usize>) -> Part {
        let mut settings = self.with_steps(&[DeployStep::Distill], seed);
        settings.recipes.adversarial = Some(recipe.to_owned());
        self.part(name, aim, settings, after)
    }

    fn part(&self, name: String, aim: Aim, settings: DeploymentSettings, after: Option<usize>) -> Part {
        Part {
            cell: format!("{name}, seed {}", settings.seed),
            aim,
            settings,
            space: self.space.source.clone(),
            architecture: self.printed.clone(),
            fresh: false,
            after,
        }
    }

    /// The request's settings for some steps, with only the recipes that they need.
    fn with_steps(&self, steps: &[DeployStep], seed: u64) -> DeploymentSettings {
        DeploymentSettings {
            steps: steps.to_vec(),
            recipes: DeployRecipes::default(),
            profile: self
                .request
                .settings
                .profile
                .clone()
                .filter(|_| steps.contains(&DeployStep::ProfileModel)),
            seed,
            ..self.request.settings.clone()
        }
    }

    fn first_seed(&self) -> u64 {
        self.request.settings.seed
    }

    fn seeds(&self) -> impl Iterator<Item = u64> + use<> {
        let first = self.first_seed();
        (0..u64::from(self.request.seeds)).map(move |index| first.saturating_add(index))
    }
}

fn words<const N: usize>(words: [&str; N]) -> Vec<String> {
    words.map(str::to_owned).to_vec()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use protocol::{CandidateId, deployments::ProfileWish};

    use super::*;

    const TINY: &str = include_str!("../../../search-spaces/spaces/shapes-tiny.toml");

    fn planned(table: AblationKind, seeds: u32) -> Plan {
        let space = Space::parse(TINY).unwrap();
        let architecture = space.architecture("c1.-.s1.s3.c1").unwrap();
        plan(&request(table, seeds), &space, &architecture).unwrap()
    }

    fn request(table: AblationKind, seeds: u32) -> NewAblation {
        NewAblation {
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
                    device: "phone".to_owned(),
                    runtime: None,
                    runs: 5,
                    sustained_seconds: 0.0,
                }),
                seed: 7,
                ..DeploymentSettings::default()
            },
        }
    }

    /// One line a deployment: what it does and how it differs.
    fn outline(plan: &Plan) -> String {
        let line = |part: &Part| {
            let recipes = &part.settings.recipes;
            let value = |section: &str, key: &str| {
                let recipe = [&recipes.joint, &recipes.adversarial].into_iter().flatten().next()?;
                let table: toml::Table = recipe.parse().ok()?;
                Some(table.get(section)?.get(key)?.to_string())
            };
            let keys = [
                ("joint", "image_share"),
                ("adversarial", "heads"),
                ("adversarial", "image_share"),
                ("adversarial", "noise_mean"),
            ];
            let keys = keys
                .iter()
                .filter_map(|(section, key)| Some(format!("{key}={}", value(section, key)?)));
            let steps: Vec<&str> = part.settings.steps.iter().map(|step| step.as_str()).collect();
            let after = part
                .after
                .map_or(String::new(), |after| format!(" after `{}`", plan.parts[after].cell));
            format!(
                "{} | {} | {} | {}{}{after}",
                part.cell,
                steps.join("+"),
                part.architecture,
                keys.collect::<Vec<_>>().join(" "),
                if part.fresh { " fresh" } else { "" },
            )
        };
        let rows: Vec<String> = plan.rows.iter().map(|row| row.join(", ")).collect();
        let parts: Vec<String> = plan.parts.iter().map(line).collect();
        format!(
            "{}\n\n{}\n\n{}",
            rows.join("\n"),
            parts.join("\n"),
            plan.notes.join("\n")
        )
    }

    #[test]
    fn table_3_trains_and_measures_scaled_models() {
        insta::assert_snapshot!(outline(&planned(AblationKind::Table3, 1)));
    }

    #[test]
    fn table_4_distils_one_model_in_six_ways() {
        insta::assert_snapshot!(outline(&planned(AblationKind::Table4, 1)));
    }

    #[test]
    fn table_5_and_figure_6_are_planned() {
        insta::assert_snapshot!(format!(
            "{}\n\n{}",
            outline(&planned(AblationKind::Table5, 2)),
            outline(&planned(AblationKind::Figure6, 1))
        ));
    }

    #[test]
    fn every_deployment_has_a_name_of_its_own_and_seeds_count_up() {
        for table in AblationKind::ALL {
            let plan = planned(table, 3);
            let names: BTreeSet<&str> = plan.parts.iter().map(|part| part.cell.as_str()).collect();
            assert_eq!(names.len(), plan.parts.len(), "{table:?}");
            let seeds: BTreeSet<u64> = plan.parts.iter().map(|part| part.settings.seed).collect();
            assert_eq!(seeds.into_iter().collect::<Vec<_>>(), [7, 8, 9]);
            let earlier = |(index, part): (usize, &Part)| part.after.is_none_or(|after| after < index);
            assert!(plan.parts.iter().enumerate().all(earlier));
        }
    }

    #[test]
    fn a_model_that_is_there_already_is_not_trained_again() {
        let space = Space::parse(TINY).unwrap();
        let architecture = space.architecture("c1.-.s1.s3.c1").unwrap();
        let mut request = request(AblationKind::Table5, 2);
        request.settings.after = Some(protocol::DeploymentId::default());
        let plan = plan(&request, &space, &architecture).unwrap();
        assert_eq!(plan.parts.len(), 2);
        assert!(
            plan.parts
                .iter()
                .all(|part| part.after.is_none() && part.settings.after.is_some())
        );
    }
}
