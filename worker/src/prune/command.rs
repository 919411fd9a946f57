//! `temponas-worker prune`: prunes a backbone without a coordinator.

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use clap::Args;
use search_spaces::Space;
use tch::Device;

use super::comparison::compare;
use super::material::{Material, Sources};
use super::recipe::PruneRecipe;
use super::training::Pruning;
use crate::assets::digest_of;
use crate::checkpoint::{Checkpoint, write_atomically};
use crate::data::default_cache;
use crate::profile::Settings;

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
    /// The recipe: stages, losses, steps.
    #[arg(long)]
    recipe: PathBuf,
    /// Where the new parts go, in a folder named after the dataset; also the checkpoint, from which an interrupted
    /// pruning goes on.
    #[arg(long)]
    out: PathBuf,
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
    tch::set_num_threads(args.threads.try_into().context("--threads is too large")?);
    let space = Space::parse(&read(&args.space)?).with_context(|| args.space.display().to_string())?;
    let config = space
        .unet()
        .with_context(|| format!("{} has no UNet", args.space.display()))?;
    let recipe = PruneRecipe::parse(&read(&args.recipe)?).with_context(|| args.recipe.display().to_string())?;
    let (assets, dataset) = parts_of(&args.teacher)?;
    let sources = Sources {
        assets,
        dataset,
        cache: &args.cache,
        device,
    };
    let material = Material::open(&sources, config, recipe, &mut |_| ControlFlow::Continue(()))?;

    fs::create_dir_all(&args.out).with_context(|| args.out.display().to_string())?;
    train(&material, &args.out.join("prune-checkpoint.safetensors"))?;
    let settings = Settings::new(device, args.threads, u64::MAX);
    let comparison = compare(&material.full, &material.pruned, &settings, &mut |_, _| {
        ControlFlow::Continue(())
    })?;
    let parts = material.last_parts();
    let made_by = format!("temponas-worker prune --teacher {}", args.teacher.display());
    parts.write_with_backbone(&args.out, &material.pruned.config, &material.pruned.vs, &made_by)?;
    println!("{comparison}");
    Ok(())
}

/// The folder of all parts, and the name of these.
fn parts_of(teacher: &Path) -> anyhow::Result<(&Path, &str)> {
    let name = teacher.file_name().and_then(|name| name.to_str());
    let name = name.with_context(|| format!("--teacher is `{}`; it must name a folder", teacher.display()))?;
    let root = teacher.parent().filter(|root| !root.as_os_str().is_empty());
    Ok((root.unwrap_or(Path::new(".")), name))
}

fn read(path: &Path) -> anyhow::Result<String> {
    fs::read_to_string(path).with_context(|| path.display().to_string())
}

/// All stages, from the checkpoint at `path` where there is one.
fn train(material: &Material, path: &Path) -> anyhow::Result<()> {
    let mut pruning = Pruning::new(&material.full, &material.pruned, &material.recipe)?;
    let parts = &material.last_parts().manifest;
    let of = digest_of(&(
        &material.recipe,
        &material.full.config,
        &material.pruned.config,
        parts.digest(),
    ));
    if path.exists() {
        let checkpoint = fs::read(path).with_context(|| path.display().to_string())?;
        let checkpoint = Checkpoint::decode(&checkpoint).with_context(|| path.display().to_string())?;
        ensure!(
            checkpoint.notes.get(OF) == Some(&of),
            "{} belongs to another pruning; remove it, or name another --out",
            path.display()
        );
        pruning.restore(&checkpoint)?;
        tracing::info!(step = pruning.step_number(), "going on");
    }
    let mut failure = None;
    let (mut sum, mut count) = (0.0, 0.0);
    let steps = material.recipe.steps();
    let _ = pruning.run(
        &|stage, step| material.batch(stage, step),
        &mut |pruning, stage, loss| {
            let step = pruning.step_number();
            (sum, count) = (sum + loss.task, count + 1.0);
            if step.is_multiple_of(material.recipe.checkpoint_every) || step == steps {
                let (output, feature) = (loss.output, loss.feature);
                tracing::info!(stage = %stage.name, step, steps, task = sum / count, output, feature);
                (sum, count) = (0.0, 0.0);
                if let Err(error) = save(pruning, &of, path) {
                    failure = Some(error);
                    return ControlFlow::Break(());
                }
            }
            ControlFlow::Continue(())
        },
    );
    failure.map_or(Ok(()), Err)
}

fn save(pruning: &Pruning<'_>, of: &str, path: &Path) -> anyhow::Result<()> {
    let mut checkpoint = pruning.checkpoint();
    checkpoint.notes.insert(OF.to_owned(), of.to_owned());
    write_atomically(path, &checkpoint.encode()?).with_context(|| path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::assets::Assets;

    const RECIPE: &str = r#"
        seed = 3
        teacher = { kind = "flow", noise_mean = 0.5, noise_std = 1.2 }
        checkpoint_every = 2

        [[stages]]
        name = "distil"
        process = { kind = "flow", noise_mean = 0.5, noise_std = 1.2 }
        steps = 3
        batch = 2
        learning_rate = 1e-3

        [[stages]]
        name = "adapt"
        process = { kind = "flow", noise_mean = 0.0, noise_std = 1.0 }
        losses = { output = 0, feature = 0 }
        steps = 2
        batch = 2
        learning_rate = 1e-3
    "#;

    /// Shipped parts, with a handful of latents beside them so that no clip has to be drawn.
    fn teacher(folder: &Path) -> PathBuf {
        use crate::data::encoded::{Encoded, LATENTS};
        use crate::models::seeded::normal;
        let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets/shapes");
        let parts = folder.join("teachers/shapes");
        fs::create_dir_all(&parts).unwrap();
        for file in fs::read_dir(shipped).unwrap() {
            let file = file.unwrap();
            fs::copy(file.path(), parts.join(file.file_name())).unwrap();
        }
        let assets = Assets::open(&folder.join("teachers"), "shapes", Device::Cpu).unwrap();
        let encoded = Encoded {
            latents: normal(&[3, 4, 5, 8, 8], 1, Device::Cpu),
            captions: ["a red circle", "a blue star", "a green square"]
                .map(String::from)
                .to_vec(),
        };
        encoded.write(&assets, &parts.join(LATENTS)).unwrap();
        parts
    }

    fn arguments(folder: &Path, out: &str) -> PruneArgs {
        let space = concat!(env!("CARGO_MANIFEST_DIR"), "/../search-spaces/spaces/shapes-tiny.toml");
        let space = fs::read_to_string(space)
            .unwrap()
            .replace("channels = [32, 64]", "channels = [16, 32]");
        fs::write(folder.join("space.toml"), space).unwrap();
        fs::write(folder.join("recipe.toml"), RECIPE).unwrap();
        PruneArgs {
            teacher: folder.join("teachers/shapes"),
            space: folder.join("space.toml"),
            recipe: folder.join("recipe.toml"),
            out: folder.join(out),
            cache: folder.join("cache"),
            device: "cpu".to_owned(),
            threads: 1,
        }
    }

    #[test]
    fn a_pruning_writes_parts_that_hold_the_smaller_backbone_and_goes_on_where_it_stopped() {
        let folder = tempfile::tempdir().unwrap();
        teacher(folder.path());
        let args = arguments(folder.path(), "straight");
        command(&args, Device::Cpu).unwrap();
        let pruned = Assets::open(&args.out, "shapes", Device::Cpu).unwrap();
        assert_eq!(pruned.manifest.recipe.backbone.channels, [16, 32]);
        assert_eq!(
            super::super::material::backbone_of(&pruned).unwrap().config.channels,
            [16, 32]
        );
        let clips = pruned
            .training_set(&args.cache, &mut |_| ControlFlow::Continue(()))
            .unwrap();
        assert_eq!(clips.len(), 3, "the latents went along");

        // Killed after the first stage: its checkpoint is all that is there.
        let broken = arguments(folder.path(), "broken");
        let first_stage = PruneRecipe {
            stages: PruneRecipe::parse(RECIPE).unwrap().stages[..1].to_vec(),
            ..PruneRecipe::parse(RECIPE).unwrap()
        };
        let sources = Sources {
            assets: &folder.path().join("teachers"),
            dataset: "shapes",
            cache: &broken.cache,
            device: Device::Cpu,
        };
        let space = Space::parse(&fs::read_to_string(&broken.space).unwrap()).unwrap();
        let open = |recipe| {
            Material::open(&sources, space.unet().unwrap(), recipe, &mut |_| {
                ControlFlow::Continue(())
            })
            .unwrap()
        };
        let path = broken.out.join("prune-checkpoint.safetensors");
        train(&open(first_stage), &path).unwrap();
        let error = command(&broken, Device::Cpu).unwrap_err().to_string();
        assert!(error.contains("belongs to another pruning"), "{error}");
        let material = open(PruneRecipe::parse(RECIPE).unwrap());
        let parts = &material.last_parts().manifest;
        let of = digest_of(&(
            &material.recipe,
            &material.full.config,
            &material.pruned.config,
            parts.digest(),
        ));
        let mut checkpoint = Checkpoint::decode(&fs::read(&path).unwrap()).unwrap();
        assert_eq!(checkpoint.step, 3);
        checkpoint.notes.insert(OF.to_owned(), of);
        write_atomically(&path, &checkpoint.encode().unwrap()).unwrap();
        command(&broken, Device::Cpu).unwrap();
        let weights = |args: &PruneArgs| fs::read(args.out.join("shapes/backbone.safetensors")).unwrap();
        assert_eq!(weights(&broken), weights(&args));
    }
}
