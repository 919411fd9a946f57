//! The committed parts of `shapes`: they are what their manifest says, and their evaluators refuse what they must.

use std::path::{Path, PathBuf};

use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use tch::{Device, Tensor};
use temponas_worker::assets::{Assets, AssetsError, Recipe};
use temponas_worker::data::{self, FRAMES, Prompt, Split, to_tensor};
use temponas_worker::scoring::evaluators::Evaluators;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets")
}

fn shapes() -> Assets {
    Assets::open(&root(), "shapes", Device::Cpu).expect("the committed parts")
}

fn evaluators(assets: &Assets) -> &Evaluators {
    assets.evaluators.as_ref().expect("trained parts have evaluators")
}

/// Held-out clips as the sampler would yield perfect ones: through the VAE and back. One of each prompt.
fn held_out(assets: &Assets) -> Vec<(Prompt, Tensor)> {
    let source = data::open("shapes", Path::new("unused")).expect("shapes are drawn, not read");
    let prompts = source.prompts(Split::HeldOut);
    let per_prompt = source.len(Split::HeldOut) / prompts.len();
    prompts
        .into_iter()
        .enumerate()
        .map(|(i, prompt)| {
            let clip = source.clip(Split::HeldOut, i * per_prompt).expect("a drawn clip");
            assert_eq!(clip.prompt, prompt);
            let frames = to_tensor(&[clip.frames.as_slice()]);
            let decoded = tch::no_grad(|| assets.vae.decode(&assets.vae.encode(&frames), FRAMES as i64));
            (prompt, decoded)
        })
        .collect()
}

#[test]
fn committed_parts_are_those_of_their_recipe() {
    for dataset in ["shapes", "emoji"] {
        let parts = Assets::open(&root(), dataset, Device::Cpu).expect("the committed parts");
        assert_eq!(Some(&parts.manifest.recipe), Recipe::of(dataset).as_ref(), "{dataset}");
        assert!(!parts.prompts(24).is_empty());
    }
}

fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let count = values.len() as f64;
    values.sum::<f64>() / count
}

#[test]
fn still_and_shuffled_clips_and_wrong_motions_score_clearly_lower() {
    let assets = shapes();
    let clips = held_out(&assets);
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let consistency = |prompt: &Prompt, clip: &Tensor| evaluators(&assets).read(clip, prompt).overall_consistency;
    let good = mean(clips.iter().map(|(prompt, clip)| consistency(prompt, clip)));
    let still = mean(clips.iter().map(|(prompt, clip)| {
        let still = clip.narrow(2, FRAMES as i64 / 2, 1).expand_as(clip);
        consistency(prompt, &still)
    }));
    let shuffled = mean(clips.iter().map(|(prompt, clip)| {
        let mut order: Vec<i64> = (0..FRAMES as i64).collect();
        order.shuffle(&mut rng);
        consistency(prompt, &clip.index_select(2, &Tensor::from_slice(&order)))
    }));
    let backwards = mean(clips.iter().map(|(prompt, clip)| consistency(prompt, &clip.flip([2]))));
    assert!(good > 0.75, "good clips score {good}");
    for (what, score) in [("still", still), ("shuffled", shuffled), ("backwards", backwards)] {
        assert!(score < 0.35, "{what} clips score {score}, good ones {good}");
    }
}

#[test]
fn objects_and_colours_are_read_as_often_as_the_manifest_says() {
    let assets = shapes();
    let readings: Vec<_> = held_out(&assets)
        .iter()
        .map(|(prompt, clip)| evaluators(&assets).read(clip, prompt))
        .collect();
    let object = mean(readings.iter().map(|reading| reading.object_class));
    let color = mean(readings.iter().map(|reading| reading.color.unwrap_or(0.0)));
    let said = |name: &str| assets.manifest.accuracies[name];
    // The manifest's figures are over four times as many clips, with noise in their latents.
    for (name, found) in [("object_class", object), ("color", color)] {
        assert!(found > said(name) - 0.03, "{name}: {found}, said {}", said(name));
    }
}

#[test]
fn a_changed_file_is_refused_with_its_name_and_the_way_out() {
    let folder = tempfile::tempdir().expect("a folder");
    let copy = folder.path().join("shapes");
    std::fs::create_dir(&copy).expect("a folder");
    for entry in std::fs::read_dir(root().join("shapes")).expect("the committed parts") {
        let from = entry.expect("a file").path();
        std::fs::copy(&from, copy.join(from.file_name().expect("a name"))).expect("a copy");
    }
    let broken = copy.join("text.safetensors");
    let mut bytes = std::fs::read(&broken).expect("a file");
    *bytes.last_mut().expect("some bytes") ^= 1;
    std::fs::write(&broken, bytes).expect("a file");
    let error = Assets::open(folder.path(), "shapes", Device::Cpu).expect_err("a changed file");
    assert!(
        matches!(&error, AssetsError::Checksum { path, .. } if *path == broken),
        "{error}"
    );
    assert!(
        error.to_string().contains("temponas-worker assets --dataset shapes"),
        "{error}"
    );
}
