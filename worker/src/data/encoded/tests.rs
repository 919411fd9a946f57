use std::sync::atomic::{AtomicUsize, Ordering};

use tch::{Device, Kind};

use super::*;

const CLIPS: usize = 3 * SHARD + 5;

/// Latents that say which clip they are of.
fn numbered(clips: &[usize]) -> Tensor {
    let numbers: Vec<f32> = clips.iter().map(|&clip| clip as f32).collect();
    Tensor::from_slice(&numbers).reshape([-1, 1, 1, 1, 1])
}

fn go_on(_: f64) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn all() -> Tensor {
    numbered(&(0..CLIPS).collect::<Vec<_>>())
}

#[test]
fn workers_on_one_folder_encode_each_clip_once() {
    let folder = tempfile::tempdir().unwrap();
    let encoded = AtomicUsize::new(0);
    let at_work = AtomicUsize::new(0);
    let most_at_work = AtomicUsize::new(0);
    let slowly = |clips: &[usize]| {
        most_at_work.fetch_max(at_work.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(5));
        at_work.fetch_sub(1, Ordering::SeqCst);
        encoded.fetch_add(clips.len(), Ordering::SeqCst);
        Ok(numbered(clips))
    };
    let worker = || read_or_encode(folder.path(), CLIPS, &slowly, &mut go_on).unwrap();
    let (one, other) = std::thread::scope(|scope| {
        let (one, other) = (scope.spawn(worker), scope.spawn(worker));
        (one.join().unwrap(), other.join().unwrap())
    });
    assert_eq!(one, all());
    assert_eq!(other, all());
    assert_eq!(encoded.load(Ordering::SeqCst), CLIPS);
    assert_eq!(most_at_work.load(Ordering::SeqCst), 2, "they share the work");
}

#[test]
fn a_killed_workers_shard_is_encoded_by_another() {
    let folder = tempfile::tempdir().unwrap();
    let clips: Vec<usize> = (0..SHARD).collect();
    let held = Shard::new(folder.path(), &clips);
    std::fs::write(held.path.with_extension("partial"), b"the beginning of a sh").unwrap();
    let lock = held.hold().unwrap().unwrap();
    assert!(held.hold().unwrap().is_none(), "one at a time");
    // The system lets go of a lock when its holder dies.
    let death = std::thread::spawn(move || {
        std::thread::sleep(3 * LOOK_EVERY);
        drop(lock);
    });
    let found = read_or_encode(folder.path(), CLIPS, &|clips| Ok(numbered(clips)), &mut go_on).unwrap();
    assert!(death.is_finished(), "it was waited for");
    assert_eq!(found, all());
    death.join().unwrap();
}

#[test]
fn whoever_waits_or_encodes_can_be_interrupted_and_another_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let calls = AtomicUsize::new(0);
    let counting = |clips: &[usize]| {
        calls.fetch_add(1, Ordering::SeqCst);
        Ok(numbered(clips))
    };
    let mut told = 0;
    let outcome = read_or_encode(folder.path(), CLIPS, &counting, &mut |_| {
        told += 1;
        if told > 2 + SHARD / BATCH {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    });
    assert!(matches!(outcome, Err(AssetsError::Interrupted)));
    let before = calls.swap(0, Ordering::SeqCst);
    assert!(before > SHARD / BATCH && before < CLIPS / BATCH, "{before}");
    let found = read_or_encode(folder.path(), CLIPS, &counting, &mut go_on).unwrap();
    assert_eq!(found, all());
    let whole = CLIPS.div_ceil(BATCH);
    assert_eq!(
        calls.load(Ordering::SeqCst),
        whole - SHARD / BATCH,
        "what was whole is kept"
    );

    let clips: Vec<usize> = (0..SHARD).collect();
    let other = tempfile::tempdir().unwrap();
    let _held = Shard::new(other.path(), &clips).hold().unwrap().unwrap();
    let mut shares = Vec::new();
    let outcome = read_or_encode(other.path(), SHARD, &counting, &mut |share| {
        shares.push(share);
        if shares.len() > 1 {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    });
    assert!(matches!(outcome, Err(AssetsError::Interrupted)));
    assert_eq!(shares, [0.0, 0.0]);
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
    let batch = set.batch(1, 1, 8, 0.0);
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
}
