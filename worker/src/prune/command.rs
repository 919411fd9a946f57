//! `temponas-worker prune`: prunes a backbone without a coordinator.

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use clap::Args;
use protocol::jobs::PictureScoring;
use search_spaces::Space;
use tch::Device;

use super::comparison::compare;
use super::material::{Material, Parts, Sources};
use super::network::Network;
use super::plan::{Plan, PlanStage};
use super::scores::{Score, score};
use super::training::{Pruning, PruningError};
use crate::assets::digest_of;
use crate::checkpoint::{Checkpoint, write_atomically};
use crate::data::default_cache;
use crate::profile::Settings;
use crate::recipes::recipe;

/// Note of a checkpoint that says what it belongs to.
const OF: &str = "pruning";

/// Prune the backbone of trained parts: distil a smaller one from it and write the parts with that one.
#[derive(Debug, Args)]
pub struct PruneArgs {
    /// Folder of the trained parts whose backbone is the full one, such as `assets/shapes`.
    #[arg(long)]
    teacher: PathBuf,
    /// The space file whose `[unet]` section the pruned backbone shall be.
    #[arg(long)]
    space: PathBuf,
    /// Recipe of the distillation: a shipped one's name, or a file.
    #[arg(long, default_value = "pruning")]
    recipe: String,
    /// Recipe of the adaptation to rectified flow, likewise, such as `adaptation`; none where it is not given.
    #[arg(long)]
    adaptation: Option<String>,
    /// Folder of the trained parts whose VAE made the latents to adapt to [default: the teacher's].
    #[arg(long, requires = "adaptation")]
    adapt_to: Option<PathBuf>,
    /// Seed of every draw.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where the new parts go, in a folder named after the dataset; also the checkpoint, from which an interrupted
    /// pruning goes on.
    #[arg(long)]
    out: PathBuf,
    /// Pictures of the full and of the pruned backbone that CLIP scores, where the parts bring it; 0 for none.
    #[arg(long, default_value_t = 64)]
    pictures: u32,
    /// Captions of these pictures, one a line [default: the prompts that the parts keep apart].
    #[arg(long)]
    prompts: Option<PathBuf>,
    /// Euler steps of a picture.
    #[arg(long, default_value_t = 25)]
    sample_steps: u32,
    /// Scale of classifier-free guidance; 1 is none.
    #[arg(long, default_value_t = 7.0)]
    guidance: f64,
    /// Where clips and latents are kept.
    #[arg(long, env = "TEMPONAS_CACHE", default_value_os_t = default_cache())]
    cache: PathBuf,
    /// Where libtorch computes: `cpu` or `cuda:N`.
    #[arg(long, env = "TEMPONAS_DEVICE", default_value = "cpu")]
    pub device: String,
    /// Threads of libtorch.
    #[arg(long, env = "TEMPONAS_THREADS", default_value_t = 1)]
    threads: u32,
}

/// Runs the command.
///
/// # Errors
/// Where space, recipe, parts or clips cannot be read, do not fit each other, or the result cannot be written.
pub fn command(args: &PruneArgs, device: Device) -> anyhow::Result<()> {
    ensure!(args.threads > 0, "--threads is 0; it must be at least 1");
    ensure!(args.sample_steps > 0, "--sample-steps is 0; it must be at least 1");
    tch::set_num_threads(args.threads.try_into().context("--threads is too large")?);
    let space = Space::parse(&read(&args.space)?).with_context(|| args.space.display().to_string())?;
    let config = space
        .unet()
        .with_context(|| format!("{} has no UNet", args.space.display()))?;
    let adaptation = args.adaptation.as_deref().map(recipe).transpose()?;
    let plan = Plan::new(recipe(&args.recipe)?, adaptation, args.seed)?;
    let sources = Sources {
        distillation: parts_of(&args.teacher)?,
        adaptation: args.adapt_to.as_deref().map(parts_of).transpose()?,
        cache: &args.cache,
        device,
    };
    let scoring = args.scoring()?;
    let mut material = Material::open(&sources, config, args.seed, &mut |_| ControlFlow::Continue(()))?;
    let settings = Settings::new(device, args.threads, u64::MAX);
    let comparison = compare(&material.full, &material.start, &settings, &mut |_, _| {
        ControlFlow::Continue(())
    })?;
    println!("{comparison}");

    fs::create_dir_all(&args.out).with_context(|| args.out.display().to_string())?;
    let pruned = train(&mut material, &plan, &args.out.join("prune-checkpoint.safetensors"))?;
    let made_by = format!("temponas-worker prune --teacher {}", args.teacher.display());
    let parts = material.last_parts();
    parts.write_with_backbone(&args.out, &pruned.config, &pruned.vs, &made_by)?;
    println!("{}", args.out.join(&parts.manifest.dataset).display());
    let scores = score(&mut material, &plan, &pruned, &scoring, &mut |_| {
        ControlFlow::Continue(())
    })?;
    if let Some(scores) = scores {
        for (name, row) in [("full", scores.full), ("pruned", scores.pruned)] {
            let [clip, aesthetic] = Score::cells(Some(&row));
            println!("{name:<8} CLIP score {clip:>16}   aesthetic score {aesthetic:>16}");
        }
    }
    Ok(())
}

impl PruneArgs {
    fn scoring(&self) -> anyhow::Result<PictureScoring> {
        let prompts = self.prompts.as_deref().map(read).transpose()?.unwrap_or_default();
        let prompts = prompts.lines().map(str::trim).filter(|line| !line.is_empty());
        Ok(PictureScoring {
            pictures: self.pictures,
            sample_steps: self.sample_steps,
            guidance: self.guidance,
            prompts: prompts.map(str::to_owned).collect(),
        })
    }
}

/// The folder of all parts, and the name of these.
fn parts_of(folder: &Path) -> anyhow::Result<Parts<'_>> {
    let name = folder.file_name().and_then(|name| name.to_str());
    let dataset = name.with_context(|| format!("`{}` names no folder of trained parts", folder.display()))?;
    let root = folder.parent().filter(|root| !root.as_os_str().is_empty());
    let assets = root.unwrap_or(Path::new("."));
    Ok(Parts { assets, dataset })
}

fn read(path: &Path) -> anyhow::Result<String> {
    fs::read_to_string(path).with_context(|| path.display().to_string())
}

/// All stages, from the checkpoint at `path` where there is one.
fn train(material: &mut Material, plan: &Plan, path: &Path) -> anyhow::Result<Network> {
    let of = digest_of(&(
        plan,
        &material.full.config,
        &material.start.config,
        material.parts_digest(),
    ));
    let checkpoint = resume(path, &of)?;
    material.compute_in(plan.distillation.training.precision);
    let pruning = Pruning {
        full: &material.full,
        start: &material.start,
        plan,
        group: None,
    };
    let batches = |index: usize, stage: &PlanStage<'_>, step| Ok(material.batch(index, stage, step)?);
    let mut failure = None;
    let steps = plan.steps();
    let pruned = pruning.run(checkpoint.as_ref(), &batches, &mut |progress| {
        if !progress.is_checkpoint_due() {
            return ControlFlow::Continue(());
        }
        let (stage, step, terms) = (progress.stage.name, progress.step, progress.terms);
        tracing::info!(
            stage,
            step,
            steps,
            task = terms.task,
            output = terms.output,
            feature = terms.feature
        );
        match save(progress.checkpoint(), &of, path) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                failure = Some(error);
                ControlFlow::Break(())
            }
        }
    });
    match (pruned, failure) {
        (Err(PruningError::Interrupted), Some(failure)) => Err(failure),
        (pruned, _) => Ok(pruned?),
    }
}

fn resume(path: &Path, of: &str) -> anyhow::Result<Option<Checkpoint>> {
    if !path.exists() {
        return Ok(None);
    }
    let bytes = fs::read(path).with_context(|| path.display().to_string())?;
    let checkpoint = Checkpoint::decode(&bytes).with_context(|| path.display().to_string())?;
    ensure!(
        checkpoint.notes.get(OF).map(String::as_str) == Some(of),
        "{} belongs to another pruning; remove it, or name another --out",
        path.display()
    );
    tracing::info!(step = checkpoint.step, "going on within its stage");
    Ok(Some(checkpoint))
}

fn save(mut checkpoint: Checkpoint, of: &str, path: &Path) -> anyhow::Result<()> {
    checkpoint.notes.insert(OF.to_owned(), of.to_owned());
    write_atomically(path, &checkpoint.encode()?).with_context(|| path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::assets::Assets;
    use crate::prune::tests::shipped_with_latents;

    const RECIPE: &str = r#"
        name = "short"
        stage = "pruning"
        trains = "all"
        [training]
        steps = 3
        batch = 2
        learning_rate = 1e-3
        checkpoint_every = 2
        [distillation]
        teacher_predicts = "velocity"
    "#;

    fn arguments(folder: &Path, out: &str) -> PruneArgs {
        let space = concat!(env!("CARGO_MANIFEST_DIR"), "/../search-spaces/spaces/shapes-tiny.toml");
        let space = fs::read_to_string(space)
            .unwrap()
            .replace("channels = [32, 64]", "channels = [16, 32]");
        fs::write(folder.join("space.toml"), space).unwrap();
        let adaptation = RECIPE
            .replace("\"pruning\"", "\"adaptation\"")
            .replace("short", "shorter");
        let (adaptation, _) = adaptation.split_once("[distillation]").unwrap();
        fs::write(folder.join("recipe.toml"), RECIPE).unwrap();
        fs::write(folder.join("adaptation.toml"), adaptation).unwrap();
        PruneArgs {
            teacher: folder.join("parts/shapes"),
            space: folder.join("space.toml"),
            recipe: folder.join("recipe.toml").display().to_string(),
            adaptation: Some(folder.join("adaptation.toml").display().to_string()),
            adapt_to: None,
            seed: 3,
            pictures: 64,
            prompts: None,
            sample_steps: 25,
            guidance: 7.0,
            out: folder.join(out),
            cache: folder.join("cache"),
            device: "cpu".to_owned(),
            threads: 1,
        }
    }

    #[test]
    fn a_pruning_writes_parts_that_hold_the_smaller_backbone_and_goes_on_where_it_stopped() {
        let folder = tempfile::tempdir().unwrap();
        shipped_with_latents(folder.path());
        let args = arguments(folder.path(), "straight");
        command(&args, Device::Cpu).unwrap();
        let pruned = Assets::open(&args.out, "shapes", Device::Cpu).unwrap();
        assert_eq!(pruned.manifest.recipe.backbone.channels, [16, 32]);
        assert_eq!(Network::of_parts(&pruned).unwrap().config.channels, [16, 32]);
        let clips = pruned
            .training_set(&args.cache, &mut |_| ControlFlow::Continue(()))
            .unwrap();
        assert_eq!(clips.len(), 3, "the latents went along");

        // Killed in the second stage: a checkpoint is all that is there.
        let broken = arguments(folder.path(), "broken");
        let path = broken.out.join("prune-checkpoint.safetensors");
        let space = Space::parse(&fs::read_to_string(&broken.space).unwrap()).unwrap();
        let sources = Sources {
            distillation: parts_of(&broken.teacher).unwrap(),
            adaptation: None,
            cache: &broken.cache,
            device: Device::Cpu,
        };
        let open = || Material::open(&sources, space.unet().unwrap(), 3, &mut |_| ControlFlow::Continue(())).unwrap();
        let second = recipe(broken.adaptation.as_ref().unwrap()).unwrap();
        let plan = Plan::new(recipe(&broken.recipe).unwrap(), Some(second), 3).unwrap();
        let material = open();
        let of = digest_of(&(
            &plan,
            &material.full.config,
            &material.start.config,
            material.parts_digest(),
        ));
        let pruning = Pruning {
            full: &material.full,
            start: &material.start,
            plan: &plan,
            group: None,
        };
        let batches = |index: usize, stage: &PlanStage<'_>, step| Ok(material.batch(index, stage, step)?);
        let interrupted = pruning.run(None, &batches, &mut |progress| {
            if progress.step < 4 {
                return ControlFlow::Continue(());
            }
            save(progress.checkpoint(), &of, &path).unwrap();
            ControlFlow::Break(())
        });
        assert!(matches!(interrupted, Err(PruningError::Interrupted)));
        command(&broken, Device::Cpu).unwrap();
        let weights = |args: &PruneArgs| fs::read(args.out.join("shapes/backbone.safetensors")).unwrap();
        assert_eq!(weights(&broken), weights(&args));

        let other = PruneArgs { seed: 4, ..broken };
        let error = command(&other, Device::Cpu).unwrap_err().to_string();
        assert!(error.contains("belongs to another pruning"), "{error}");
    }
}
