use std::cell::Cell;

use tch::{Device, Kind};

use super::*;

fn go_on(_: f64) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// Latents that say which clip they are of.
fn numbered(clips: &[usize]) -> Tensor {
    let numbers: Vec<f32> = clips.iter().map(|&clip| clip as f32).collect();
    Tensor::from_slice(&numbers).reshape([-1, 1, 1, 1, 1])
}

#[test]
fn clips_come_in_order_and_are_encoded_once() {
    const CLIPS: usize = 3 * SHARD + 5;
    let folder = tempfile::tempdir().unwrap();
    let encoded = Cell::new(0);
    let encode = |clips: &[usize]| {
        encoded.set(encoded.get() + clips.len());
        Ok(numbered(clips))
    };
    let broken_off = read_or_encode(folder.path(), CLIPS, &encode, &mut |share| {
        if share > 0.5 {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    });
    assert!(matches!(broken_off, Err(AssetsError::Interrupted)));
    let before = encoded.replace(0);
    let all = numbered(&(0..CLIPS).collect::<Vec<_>>());
    assert_eq!(read_or_encode(folder.path(), CLIPS, &encode, &mut go_on).unwrap(), all);
    assert!(encoded.replace(0) < CLIPS && before > SHARD, "what was whole is kept");
    assert_eq!(read_or_encode(folder.path(), CLIPS, &encode, &mut go_on).unwrap(), all);
    assert_eq!(encoded.get(), 0);
}

fn shapes() -> Assets {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets");
    Assets::open(&root, "shapes", Device::Cpu).unwrap()
}

/// The shipped parts in a folder of their own, with a file of latents beside them.
fn with_latents(root: &Path, encoded: &Encoded) -> Assets {
    let (shipped, folder) = (shapes(), root.join("shapes"));
    std::fs::create_dir(&folder).unwrap();
    for file in std::fs::read_dir(shipped.folder()).unwrap().flatten() {
        std::fs::copy(file.path(), folder.join(file.file_name())).unwrap();
    }
    encoded.write(&shipped, &folder.join(LATENTS)).unwrap();
    Assets::open(root, "shapes", Device::Cpu).unwrap()
}

fn example(assets: &Assets) -> Encoded {
    let captions = ["a red ball rolls", "a blue box turns", "a red ball rolls"]
        .map(str::to_owned)
        .to_vec();
    let size = [&[captions.len() as i64], &assets.latent_shape()[..]].concat();
    let latents = Tensor::arange(size.iter().product::<i64>(), (Kind::Float, Device::Cpu)).reshape(size);
    Encoded { latents, captions }
}

#[test]
fn latents_beside_the_parts_make_clips_needless() {
    let root = tempfile::tempdir().unwrap();
    let written = example(&shapes());
    let assets = with_latents(root.path(), &written);
    let nowhere = root.path().join("no-cache");
    let read = Encoded::open(&assets, &nowhere, &mut go_on).unwrap();
    assert_eq!(
        (read.latents, read.captions),
        (written.latents.shallow_clone(), written.captions.clone())
    );
    let set = assets.training_set(&nowhere, &mut go_on).unwrap();
    assert_eq!(set.len(), 3);
    let batch = set.batch(1, 1, 8, 0.0).unwrap();
    assert_eq!(batch.latents.size()[1..], assets.latent_shape());
    assert!(!nowhere.exists(), "nothing was encoded");
}

#[test]
fn latents_of_other_parts_are_refused_with_the_command_that_makes_them_anew() {
    let root = tempfile::tempdir().unwrap();
    let mut assets = with_latents(root.path(), &example(&shapes()));
    let path = assets.folder().join(LATENTS);
    assets.manifest.recipe.seed += 1;
    let error = Encoded::read(&assets, &path).unwrap_err().to_string();
    assert!(error.contains("temponas-worker latents --dataset shapes"), "{error}");
}

#[test]
fn a_file_that_is_cut_or_does_not_fit_is_an_error() {
    let root = tempfile::tempdir().unwrap();
    let assets = with_latents(root.path(), &example(&shapes()));
    let path = assets.folder().join(LATENTS);
    let whole = std::fs::read(&path).unwrap();
    for length in [0, 8, 100, whole.len() - 1] {
        std::fs::write(&path, &whole[..length]).unwrap();
        assert!(Encoded::read(&assets, &path).is_err(), "{length} bytes");
    }
    let short = Encoded {
        captions: vec!["one".to_owned()],
        ..example(&assets)
    };
    short.write(&assets, &path).unwrap();
    let error = Encoded::read(&assets, &path).unwrap_err().to_string();
    assert!(error.contains("`latents` has shape [3, 4, 5, 8, 8]"), "{error}");
    let empty = Encoded {
        latents: Tensor::zeros([0, 4, 5, 8, 8], (Kind::Float, Device::Cpu)),
        captions: Vec::new(),
    };
    empty.write(&assets, &path).unwrap();
    let error = Encoded::read(&assets, &path).unwrap_err().to_string();
    assert!(error.contains("`latents` holds no clip"), "{error}");
}
