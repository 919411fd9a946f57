//! `temponas-worker decoder`: trains a decoder for the VAE of trained parts without a coordinator.

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use clap::Args;
use tch::Device;

use super::comparison::{Comparison, compare};
use super::material::{Material, Network};
use super::plan::Plan;
use super::training::{Compression, CompressionError};
use crate::assets::{Assets, digest_of};
use crate::checkpoint::{Checkpoint, write_atomically};
use crate::data::default_cache;
use crate::profile::{Settings, runtime_name};
use crate::recipes::recipe;
use crate::scoring::images::Lpips;

/// Note of a checkpoint that says what it belongs to.
const OF: &str = "decoder";
/// Clips that are decoded to compare.
pub(super) const CLIPS: usize = 64;

/// Train a decoder for the frozen encoder of trained parts, such as a separable one, and write the parts with it.
#[derive(Debug, Args)]
pub struct DecoderArgs {
    /// Folder of the trained parts, such as `assets/shapes`.
    #[arg(long)]
    parts: PathBuf,
    /// Recipe: a shipped one's name, or a file.
    #[arg(long, default_value = "decoder")]
    recipe: String,
    /// Folder of captioned clips and pictures [default: the clips of the parts' dataset].
    #[arg(long)]
    dataset: Option<PathBuf>,
    /// Weights of LPIPS, as `scripts/lpips` lays them out; without them that column stays empty.
    #[arg(long, env = "TEMPONAS_LPIPS")]
    lpips: Option<PathBuf>,
    /// Seed of every draw.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where the new parts go, in a folder named after the dataset; also the checkpoint, from which an interrupted
    /// training goes on.
    #[arg(long)]
    out: PathBuf,
    /// Where clips are kept.
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
/// Where recipe, parts or clips cannot be read, do not fit each other, or the result cannot be written.
pub fn command(args: &DecoderArgs, device: Device) -> anyhow::Result<()> {
    ensure!(args.threads > 0, "--threads is 0; it must be at least 1");
    tch::set_num_threads(args.threads.try_into().context("--threads is too large")?);
    let lpips = args
        .lpips
        .as_deref()
        .map(|path| Lpips::open(path, device))
        .transpose()?;
    let work = Work {
        parts: &args.parts,
        dataset: args.dataset.as_deref(),
        plan: Plan::new(recipe(&args.recipe)?, args.seed)?,
        lpips: lpips.as_ref(),
        out: &args.out,
        cache: &args.cache,
        device,
    };
    let (material, trained) = work.train()?;
    let settings = Settings::new(device, args.threads, u64::MAX);
    let found = compare(&material, &trained, lpips.as_ref(), CLIPS, &settings, &mut |_, _| {
        ControlFlow::Continue(())
    })?;
    print(&found, &runtime_name(device, args.threads).name);
    println!("{}", args.out.join(&material.parts.manifest.dataset).display());
    Ok(())
}

/// What is trained from which parts, and where it goes.
pub(super) struct Work<'a> {
    pub parts: &'a Path,
    pub dataset: Option<&'a Path>,
    pub plan: Plan,
    pub lpips: Option<&'a Lpips>,
    pub out: &'a Path,
    pub cache: &'a Path,
    pub device: Device,
}

impl Work<'_> {
    /// Trains from the checkpoint in `out` where there is one, and writes the parts there.
    pub(super) fn train(&self) -> anyhow::Result<(Material, Network)> {
        let (root, name) = parts_of(self.parts)?;
        let parts = Assets::open(root, name, self.device)?;
        let material = Material::open(parts, self.dataset, &self.plan, self.cache)?;
        let config = self.plan.config(&material.original.config)?;
        let (start, origin) = material.original.compressed(&config, self.plan.seed)?;
        tracing::info!(
            copied = origin.copied,
            separated = origin.separated,
            drawn = origin.drawn,
            "scalars that the decoder begins with"
        );
        fs::create_dir_all(self.out).with_context(|| self.out.display().to_string())?;
        let path = self.out.join("decoder-checkpoint.safetensors");
        let of = digest_of(&(&self.plan, &config, material.digest()));
        let compression = Compression {
            material: &material,
            start: &start,
            plan: &self.plan,
            lpips: self.lpips,
        };
        let trained = follow(&compression, &path, &of)?;
        let made_by = format!("temponas-worker decoder --parts {}", self.parts.display());
        material
            .parts
            .write_with_vae(self.out, &trained.config, &trained.vs, &made_by)?;
        Ok((material, trained))
    }
}

/// The folder of all parts, and the name of these.
fn parts_of(folder: &Path) -> anyhow::Result<(&Path, &str)> {
    let name = folder.file_name().and_then(|name| name.to_str());
    let name = name.with_context(|| format!("`{}` names no folder of trained parts", folder.display()))?;
    let root = folder.parent().filter(|root| !root.as_os_str().is_empty());
    Ok((root.unwrap_or(Path::new(".")), name))
}

/// All steps, from the checkpoint at `path` where there is one.
fn follow(compression: &Compression<'_>, path: &Path, of: &str) -> anyhow::Result<Network> {
    let checkpoint = resume(path, of)?;
    let steps = compression.steps();
    let mut failure = None;
    let trained = compression.run(checkpoint.as_ref(), &mut |progress| {
        if !progress.is_checkpoint_due() && progress.step < steps {
            return ControlFlow::Continue(());
        }
        let (part, step, terms) = (progress.part.name(), progress.step, progress.terms);
        tracing::info!(
            part,
            step,
            steps,
            reconstruction = terms.reconstruction,
            distillation = terms.distillation,
            feature = terms.feature,
            ms = progress.step_milliseconds()
        );
        let mut checkpoint = progress.checkpoint();
        checkpoint.notes.insert(OF.to_owned(), of.to_owned());
        let written = checkpoint.encode().map_err(anyhow::Error::from);
        let written = written.and_then(|bytes| Ok(write_atomically(path, &bytes)?));
        match written.with_context(|| path.display().to_string()) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                failure = Some(error);
                ControlFlow::Break(())
            }
        }
    });
    match (trained, failure) {
        (Err(CompressionError::Interrupted), Some(failure)) => Err(failure),
        (trained, _) => Ok(trained?),
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
        "{} belongs to another training; remove it, or name another --out",
        path.display()
    );
    tracing::info!(step = checkpoint.step, "going on within its part");
    Ok(Some(checkpoint))
}

/// Table A1, and what each part costs.
pub(super) fn print(found: &Comparison, runtime: &str) {
    let table = found.table(runtime);
    println!("{}\n", table.title);
    println!("{}", table.columns.join(" | "));
    table.rows.iter().for_each(|row| println!("{}", row.join(" | ")));
    println!();
    for (part, work, times) in [
        ("over time", found.work.map(|work| work[0]), &found.times[0]),
        ("of single frames", found.work.map(|work| work[1]), &found.times[1]),
        ("both", found.work.map(|work| work[0] + work[1]), &found.times[2]),
    ] {
        let [old, new] = work;
        println!(
            "{part:<17} {:>8.3} to {:>7.3} M parameters, {:>8.3} to {:>7.3} GMACs ({:.1} times fewer), {:.2} ± {:.2} times \
             as fast",
            old.parameters as f64 / 1e6,
            new.parameters as f64 / 1e6,
            old.macs as f64 / 1e9,
            new.macs as f64 / 1e9,
            old.macs as f64 / new.macs.max(1) as f64,
            times.ratio.median().unwrap_or(f64::NAN),
            times.ratio.standard_error().unwrap_or(0.0),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decoder::tests::{RECIPE, footage};
    use crate::models::seeded::normal;
    use crate::prune::tests::shipped_with_latents;

    #[test]
    fn a_training_writes_parts_that_hold_the_new_decoder_and_goes_on_where_it_stopped() {
        let folder = tempfile::tempdir().unwrap();
        let parts = shipped_with_latents(folder.path()).join("shapes");
        let clips = folder.path().join("clips");
        footage(&clips, &[("a", 19), ("b", 17)]);
        let work = |out: &str, seed: u64| (folder.path().join(out), Plan::parse(RECIPE, seed).unwrap());
        let train = |(out, plan): (PathBuf, Plan)| {
            let work = Work {
                parts: &parts,
                dataset: Some(&clips),
                plan,
                lpips: None,
                out: &out,
                cache: &folder.path().join("cache"),
                device: Device::Cpu,
            };
            work.train()
        };
        let (material, _) = train(work("straight", 3)).unwrap();
        let written = Assets::open(&folder.path().join("straight"), "shapes", Device::Cpu).unwrap();
        assert!(written.manifest.recipe.vae.spatial.decoder.is_some());
        assert_eq!(written.manifest.reconstruction_error, None);
        let clips = written
            .training_set(&folder.path().join("cache"), &mut |_| ControlFlow::Continue(()))
            .unwrap();
        assert_eq!(clips.len(), 3, "the latents went along");
        let clip = normal(&[1, 3, 17, 64, 64], 1, Device::Cpu);
        assert_eq!(
            written.vae.encode(&clip),
            material.original.vae.encode(&clip),
            "the encoder is the same"
        );

        // From the checkpoint of the last step nothing is left to do; another training's is refused.
        let weights = |out: &str| fs::read(folder.path().join(out).join("shapes/vae.safetensors")).unwrap();
        let first = weights("straight");
        train(work("straight", 3)).unwrap();
        assert_eq!(weights("straight"), first);
        let error = train(work("straight", 4)).unwrap_err().to_string();
        assert!(error.contains("belongs to another training"), "{error}");
    }
}
