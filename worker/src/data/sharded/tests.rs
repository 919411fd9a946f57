use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::fs;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use proptest::prelude::*;
use search_spaces::Mix;
use tch::{Device, Kind};

use super::*;
use crate::data::Split;
use crate::data::clips::tests::{gif, levels};
use crate::data::latents::TrainingSet;
use crate::models::vae::latent_frames;

/// Encoders that can be followed by hand: a latent is the mean of the 8 × 8 pixels of every fourth frame (red, green,
/// blue, and their mean), an embedding holds the caption's length.
struct ByHand(&'static str);

impl Encoders for ByHand {
    fn digest(&self) -> String {
        self.0.to_owned()
    }

    fn latent_channels(&self) -> i64 {
        4
    }

    fn latents(&self, frames: &Tensor) -> Tensor {
        let count = latent_frames(frames.size()[2]);
        let every_fourth = Tensor::arange(count, (Kind::Int64, Device::Cpu)) * 4;
        let small =
            frames
                .index_select(2, &every_fourth)
                .avg_pool3d([1, 8, 8], [1, 8, 8], [0, 0, 0], false, true, None);
        let mean = small.mean_dim([1i64].as_slice(), true, Kind::Float);
        Tensor::cat(&[small, mean], 1)
    }

    fn texts(&self, captions: &[&str]) -> Texts {
        let lengths: Vec<f32> = captions.iter().map(|caption| caption.len() as f32).collect();
        let lengths = Tensor::from_slice(&lengths).reshape([-1, 1]);
        Texts {
            tokens: lengths.reshape([-1, 1, 1]).repeat([1, 3, 2]),
            pooled: Some(lengths * 2.0),
        }
    }
}

/// Two files of clips of 16 × 16 pixels, 40 and 17 pictures at 25 Hz, two pictures, and what cannot be used.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    gif(&at("b.gif"), &levels(40, 16, 16), &[40]);
    gif(&at("a.gif"), &levels(17, 16, 16), &[40]);
    gif(&at("short.gif"), &levels(16, 16, 16), &[40]);
    gif(&at("apart.gif"), &levels(17, 16, 16), &[40]);
    gif(&at("unnamed.gif"), &levels(17, 16, 16), &[40]);
    fs::write(at("broken.gif"), "GIF89a").unwrap();
    for (name, level) in [("still.png", 4), ("tall.jpg", 7)] {
        let picture = levels(level + 1, 16, 16).pop().unwrap();
        image::DynamicImage::from(picture).into_rgb8().save(at(name)).unwrap();
    }
    let list = r#"{"file": "b.gif", "caption": "clouds"}
{"file": "a.gif", "caption": "a sea", "split": "train"}
{"file": "short.gif", "caption": "a sea"}
{"file": "apart.gif", "caption": "a lake", "split": "held_out"}
{"file": "broken.gif", "caption": "a sea"}
{"file": "tall.jpg", "caption": "clouds"}
{"file": "missing.gif", "caption": "a sea"}
{"file": "still.png", "caption": "a stone"}
{"file": "a.gif", "caption": "   "}
"#;
    fs::write(at("captions.jsonl"), list).unwrap();
    folder
}

/// One clip a shard: 4 × 5 × 2 × 2 numbers; two captions a shard: 7 numbers each.
fn settings() -> Settings {
    Settings {
        precision: Precision::F32,
        shard_bytes: 80 * 4,
        seed: 3,
        ..Settings::of(vec!["17x16x16@25".parse().unwrap(), "1x16x16".parse().unwrap()])
    }
}

fn encoded(folder: &Path, out: &Path, settings: &Settings) -> Result<Index, ShardError> {
    let work = Work { folder, out, settings };
    encode(work, &ByHand("by hand"), &mut |_| Ok(()))
}

/// Names and bytes of what is published.
fn published(out: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = fs::read_dir(out)
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.file_type().unwrap().is_file())
        .map(|entry| {
            (
                entry.file_name().to_string_lossy().into_owned(),
                fs::read(entry.path()).unwrap(),
            )
        })
        .collect();
    files.sort();
    files
}

#[test]
fn a_folder_becomes_clips_captions_and_reasons() {
    let (folder, out) = (folder(), tempfile::tempdir().unwrap());
    let index = encoded(folder.path(), out.path(), &settings()).unwrap();
    assert_eq!(Index::read(out.path()).unwrap(), index);
    assert_eq!(index.captions, ["", "a sea", "a stone", "clouds"]);
    let files: Vec<&str> = index.sources.iter().map(|source| source.file.as_str()).collect();
    assert_eq!(files, ["a.gif", "b.gif", "still.png", "tall.jpg"]);
    let clips: Vec<_> = index
        .clips
        .iter()
        .map(|c| (c.source, c.caption, c.bucket, c.start_frame))
        .collect();
    assert_eq!(
        clips,
        [(0, 1, 0, 0), (1, 3, 0, 0), (1, 3, 0, 17), (2, 2, 1, 0), (3, 3, 1, 0)]
    );
    let names: Vec<&str> = index.shards.iter().map(|shard| shard.file.as_str()).collect();
    assert_eq!(
        names,
        [
            "texts-00000.safetensors",
            "latents-00-00000.safetensors",
            "latents-00-00001.safetensors",
            "latents-00-00002.safetensors",
            "latents-01-00000.safetensors"
        ]
    );
    let reason = |file: &str| {
        let found = index.skipped.iter().find(|skipped| skipped.file == file);
        found
            .unwrap_or_else(|| panic!("{file} in {:?}", index.skipped))
            .reason
            .clone()
    };
    assert!(reason("short.gif").contains("too short: 16 frames at 25 Hz"));
    assert_eq!(reason("unnamed.gif"), "no usable line of captions.jsonl names it");
    assert!(reason("captions.jsonl:7").contains("missing.gif"));
    assert!(reason("captions.jsonl:9").contains("`caption` is \"   \""));
    assert!(
        !reason("broken.gif").contains(&*folder.path().to_string_lossy()),
        "{}",
        reason("broken.gif")
    );
    assert_eq!(index.skipped.len(), 5, "{:?}", index.skipped);

    // The second clip of b.gif begins with its picture 17, whose level is 170; its latents show pictures 17, 21, ….
    let reader = Reader::open(out.path()).unwrap();
    let latents = reader.latents(&[2, 0]).unwrap();
    assert_eq!(latents.size(), [2, 4, 5, 2, 2]);
    let level = |clip: i64, frame: i64| latents.get(clip).get(0).get(frame).mean(Kind::Float).double_value(&[]);
    for (frame, picture) in [(0, 17), (1, 21), (4, 33)] {
        let expected = f64::from((picture * 10) % 256) / 127.5 - 1.0;
        assert!(
            (level(0, frame) - expected).abs() < 1e-2,
            "{} {expected}",
            level(0, frame)
        );
    }
    assert!((level(1, 1) - (40.0 / 127.5 - 1.0)).abs() < 1e-2);
    let texts = reader.texts(&[0, 3, 1]).unwrap();
    assert_eq!(
        Vec::<f32>::try_from(texts.tokens.select(1, 0).select(1, 0)).unwrap(),
        [0.0, 6.0, 5.0]
    );
    assert_eq!(
        Vec::<f32>::try_from(texts.pooled.unwrap().flatten(0, -1)).unwrap(),
        [0.0, 12.0, 10.0]
    );
    assert!(reader.latents(&[0, 3]).is_err(), "two buckets");
    assert!(reader.latents(&[5]).is_err());
}

/// Whoever asks breaks off at each word there is to hear; what is made in the end is the same.
#[test]
fn however_often_it_is_interrupted_the_bytes_are_the_same() {
    let (folder, straight, broken) = (folder(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let settings = settings();
    encoded(folder.path(), straight.path(), &settings).unwrap();
    let mut interruptions = 0;
    for patience in 0.. {
        let heard = Cell::new(0);
        let work = Work {
            folder: folder.path(),
            out: broken.path(),
            settings: &settings,
        };
        let outcome = encode(work, &ByHand("by hand"), &mut |_| {
            heard.set(heard.get() + 1);
            if heard.get() > patience {
                Err(ShardError::Interrupted)
            } else {
                Ok(())
            }
        });
        match outcome {
            Err(ShardError::Interrupted) => interruptions += 1,
            outcome => {
                outcome.unwrap();
                break;
            }
        }
    }
    assert!(interruptions > 10, "{interruptions}");
    assert!(published(broken.path()) == published(straight.path()));
}

#[test]
fn a_damaged_shard_is_named_and_made_again() {
    let (folder, out) = (folder(), tempfile::tempdir().unwrap());
    encoded(folder.path(), out.path(), &settings()).unwrap();
    let whole = published(out.path());
    let shard = out.path().join("latents-00-00001.safetensors");
    let bytes = fs::read(&shard).unwrap();
    let mut changed = bytes.clone();
    *changed.last_mut().unwrap() ^= 1;
    for (damaged, found) in [(&bytes[..100], "found 100 bytes"), (&changed[..], "with SHA-256")] {
        fs::write(&shard, damaged).unwrap();
        let error = Reader::open(out.path()).unwrap_err().to_string();
        for said in [
            "latents-00-00001.safetensors: found",
            found,
            "the index says",
            &bytes.len().to_string(),
        ] {
            assert!(error.contains(said), "{error}");
        }
        encoded(folder.path(), out.path(), &settings()).unwrap();
        assert!(published(out.path()) == whole);
        Reader::open(out.path()).unwrap();
    }
    // A folder that was carried here without what its maker remembers.
    fs::remove_dir_all(out.path().join(WORK)).unwrap();
    fs::write(&shard, &changed).unwrap();
    assert!(matches!(Reader::open(out.path()), Err(ShardError::Damaged { .. })));
    encoded(folder.path(), out.path(), &settings()).unwrap();
    assert!(published(out.path()) == whole);
    fs::remove_file(&shard).unwrap();
    assert!(
        Reader::open(out.path())
            .unwrap_err()
            .to_string()
            .contains("latents-00-00001.safetensors: No such file")
    );
}

#[test]
fn shards_of_other_settings_parts_or_sources_are_left_alone() {
    let (folder, out) = (folder(), tempfile::tempdir().unwrap());
    encoded(folder.path(), out.path(), &settings()).unwrap();
    let other = Settings { seed: 4, ..settings() };
    let error = encoded(folder.path(), out.path(), &other).unwrap_err().to_string();
    assert!(
        error.contains("`made_by.settings` is") && error.contains("\"seed\":3"),
        "{error}"
    );
    let settings = settings();
    let work = Work {
        folder: folder.path(),
        out: out.path(),
        settings: &settings,
    };
    let error = encode(work, &ByHand("others"), &mut |_| Ok(()))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("`made_by.parts` is by hand, asked for is others"),
        "{error}"
    );
    let error = TrainingSet::sharded(out.path(), &ByHand("others"), Device::Cpu)
        .unwrap_err()
        .to_string();
    assert!(error.contains("`made_by.parts` is by hand"), "{error}");
    gif(&folder.path().join("b.gif"), &levels(41, 16, 16), &[40]);
    let error = encoded(folder.path(), out.path(), &settings).unwrap_err().to_string();
    assert!(error.contains("`sources: b.gif` is SHA-256"), "{error}");
}

#[test]
fn a_source_that_changes_meanwhile_is_named() {
    let (folder, out, settings) = (folder(), tempfile::tempdir().unwrap(), settings());
    let work = Work {
        folder: folder.path(),
        out: out.path(),
        settings: &settings,
    };
    let error = encode(work, &ByHand("by hand"), &mut |news| {
        if matches!(news, News::Planned(_)) {
            gif(&folder.path().join("b.gif"), &levels(39, 16, 16), &[40]);
        }
        Ok(())
    });
    let error = error.unwrap_err().to_string();
    assert!(
        error.contains("b.gif: has changed while it was encoded: found"),
        "{error}"
    );
}

#[test]
fn nothing_left_is_an_error_with_every_reason() {
    let (folder, out) = (folder(), tempfile::tempdir().unwrap());
    let large = Settings::of(vec!["17x64x64@25".parse().unwrap()]);
    let error = encoded(folder.path(), out.path(), &large).unwrap_err().to_string();
    for said in [
        "a.gif: 16x16 pixels are too few",
        "still.png: one picture fits no bucket of 17 frames",
    ] {
        assert!(error.contains(said), "{error}");
    }
}

#[test]
fn wrong_settings_are_named() {
    let error = |change: &dyn Fn(&mut Settings)| {
        let mut settings = settings();
        change(&mut settings);
        settings.check().unwrap_err().to_string()
    };
    type Change = dyn Fn(&mut Settings);
    let cases: [(&Change, &str); 8] = [
        (&|s| s.buckets.clear(), "`buckets` is empty"),
        (
            &|s| s.buckets[1].frames = 0,
            "`buckets[1].frames` is 0; allowed: 1 to 4096",
        ),
        (
            &|s| s.buckets[0].width = 20,
            "`buckets[0].width` is 20; allowed: multiples of 8",
        ),
        (
            &|s| s.buckets[0].frame_rate_hz = f64::NAN,
            "`buckets[0].frame_rate_hz` is NaN",
        ),
        (
            &|s| s.buckets[0].keep = 1.5,
            "`buckets[0].keep` is 1.5; allowed: 0 to 1",
        ),
        (
            &|s| s.buckets[1] = s.buckets[0],
            "`buckets[1]` is 17x16x16@25; allowed: each bucket once",
        ),
        (&|s| s.shard_bytes = 0, "`shard_bytes` is 0"),
        (&|s| s.clips_per_file = Some(0), "`clips_per_file` is 0"),
    ];
    for (change, said) in cases {
        assert!(error(change).contains(said), "{}", error(change));
    }
    for text in [
        "17x64",
        "17x64x64",
        "axbxc@1",
        "17x64x64@",
        "17x64x64x64@24",
        "17x64x64@24:x",
    ] {
        assert!(text.parse::<Bucket>().unwrap_err().contains(text));
    }
    let bucket: Bucket = "51x512x512@23.976:0.25".parse().unwrap();
    assert_eq!(bucket.to_string(), "51x512x512@23.976:0.25");
    assert_eq!(bucket.latent_shape(4), [4, 15, 64, 64]);
}

#[test]
fn a_wrong_index_names_its_field() {
    let (folder, out) = (folder(), tempfile::tempdir().unwrap());
    let index = encoded(folder.path(), out.path(), &settings()).unwrap();
    let whole: serde_json::Value = serde_json::from_slice(&index.to_bytes()).unwrap();
    for (pointer, value, said) in [
        ("/version", serde_json::json!(2), "`version` is 2; allowed: 1"),
        ("/format", serde_json::json!("x"), "`format` is x"),
        (
            "/made_by/settings/seed",
            serde_json::json!("x"),
            "`made_by.settings.seed`: invalid type",
        ),
        (
            "/made_by/settings/buckets/0/height",
            serde_json::json!(7),
            "`buckets[0].height` is 7",
        ),
        (
            "/made_by/text/tokens",
            serde_json::json!(0),
            "`made_by.text.tokens` is 0",
        ),
        ("/captions/0", serde_json::json!("a"), "`captions[0]` is a"),
        (
            "/clips/1/source",
            serde_json::json!(4),
            "`clips[1].source` is 4; allowed: below 4",
        ),
        ("/clips/1/caption", serde_json::json!(9), "`clips[1].caption` is 9"),
        (
            "/clips/4/bucket",
            serde_json::json!(0),
            "`clips[4].bucket` is 0; allowed: 1 to 1",
        ),
        ("/shards/1/file", serde_json::json!("../x"), "`shards[1].file` is ../x"),
        (
            "/shards/2/first",
            serde_json::json!(0),
            "`shards[2].first` is 0; allowed: 1",
        ),
        ("/shards/4/count", serde_json::json!(1), "`shards` cover 4 of 5 clips"),
        (
            "/shards/1/count",
            serde_json::json!(6),
            "`shards[1].count` is 6; allowed: 1 to 5",
        ),
        (
            "/shards/1/content/latents/bucket",
            serde_json::json!(1),
            "`shards[1].content.latents.bucket` is 1",
        ),
        (
            "/shards/1/stored/sha256",
            serde_json::json!("ab"),
            "`shards[1].stored.sha256` is ab",
        ),
        (
            "/shards/1/stored",
            serde_json::json!(null),
            "`shards[1].stored` is missing",
        ),
    ] {
        let mut changed = whole.clone();
        *changed.pointer_mut(pointer).unwrap() = value;
        fs::write(out.path().join(INDEX), changed.to_string()).unwrap();
        let error = Index::read(out.path()).unwrap_err().to_string();
        assert!(
            error.contains("index.json: ") && error.contains(said),
            "{said} in {error}"
        );
    }
    let bytes = index.to_bytes();
    for length in [0, 1, bytes.len() / 2, bytes.len() - 3] {
        assert!(Index::parse(&bytes[..length]).is_err());
    }
}

/// Files that say which they are, made by whoever takes them.
fn make_numbered(folder: &Path, count: usize, pause: Duration, made: &Mutex<Vec<usize>>) -> Vec<Stored> {
    let names: Vec<String> = (0..count).map(|i| format!("{i}")).collect();
    let mut make = |i: usize, within: &mut dyn FnMut(f64) -> Result<(), ShardError>| {
        within(0.5)?;
        std::thread::sleep(pause);
        made.lock().unwrap().push(i);
        Ok(vec![i as u8; 3])
    };
    make_together(folder, &names, &mut make, &mut |_| Ok(())).unwrap()
}

#[test]
fn processes_on_one_folder_make_each_file_once() {
    let folder = tempfile::tempdir().unwrap();
    let made = Mutex::new(Vec::new());
    let at_work = AtomicUsize::new(0);
    let worker = || {
        at_work.fetch_add(1, Ordering::SeqCst);
        make_numbered(folder.path(), 12, Duration::from_millis(5), &made)
    };
    let (one, other) = std::thread::scope(|scope| {
        let (one, other) = (scope.spawn(worker), scope.spawn(worker));
        (one.join().unwrap(), other.join().unwrap())
    });
    assert_eq!(one, other);
    let mut made = made.into_inner().unwrap();
    made.sort_unstable();
    assert_eq!(made, (0..12).collect::<Vec<_>>());
}

#[test]
fn a_killed_processs_file_is_made_by_another() {
    let folder = tempfile::tempdir().unwrap();
    let work = folder.path().join(WORK);
    fs::create_dir_all(&work).unwrap();
    fs::write(work.join("1.partial"), b"the beginning of a sh").unwrap();
    let lock = fs::File::create(work.join("1.lock")).unwrap();
    lock.lock().unwrap();
    // The system lets go of a lock when its holder dies.
    let death = std::thread::spawn(move || {
        std::thread::sleep(2 * share::LOOK_EVERY);
        drop(lock);
    });
    let made = Mutex::new(Vec::new());
    make_numbered(folder.path(), 3, Duration::ZERO, &made);
    assert!(death.is_finished(), "it was waited for");
    assert_eq!(made.into_inner().unwrap(), [0, 2, 1]);
    assert_eq!(fs::read(folder.path().join("1")).unwrap(), [1; 3]);
    death.join().unwrap();
}

#[test]
fn batches_do_not_depend_on_how_clips_lie_in_shards() {
    let (folder, small, large) = (folder(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    encoded(folder.path(), small.path(), &settings()).unwrap();
    let one = Settings {
        shard_bytes: 1 << 20,
        ..settings()
    };
    let index = encoded(folder.path(), large.path(), &one).unwrap();
    assert_eq!(index.shards.len(), 3);
    let open = |out: &Path| TrainingSet::sharded(out, &ByHand("by hand"), Device::Cpu).unwrap();
    let (small, large) = (open(small.path()), open(large.path()));
    assert_eq!((small.len(), large.len()), (5, 5));
    let sizes = RefCell::new(BTreeSet::new());
    for step in 0..12 {
        let (a, b) = (
            small.batch(7, step, 2, 0.3).unwrap(),
            large.batch(7, step, 2, 0.3).unwrap(),
        );
        assert_eq!((&a.latents, &a.text), (&b.latents, &b.text));
        sizes.borrow_mut().insert(a.latents.size());
    }
    let sizes = sizes.into_inner();
    assert_eq!(
        sizes.into_iter().collect::<Vec<_>>(),
        [[2, 4, 1, 2, 2], [2, 4, 5, 2, 2]]
    );
    assert!(small.batch(7, 0, 0, 0.0).is_err(), "no clips a step");
    let null = small.batch(7, 0, 2, 1.0).unwrap().text;
    assert_eq!(null.abs().max().double_value(&[]), 0.0, "the null text, of length 0");
}

fn ranges(counts: &[usize]) -> Vec<std::ops::Range<usize>> {
    let mut first = 0;
    counts
        .iter()
        .map(|count| {
            first += count;
            first - count..first
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    /// In as many cycles as a bucket needs for whole passes, each of its clips comes equally often, and every batch is
    /// of one bucket.
    #[test]
    fn every_clip_comes_once_in_each_pass(
        counts in prop::collection::vec(0..40usize, 1..5),
        batch in 1..7u64,
        seed in any::<u64>(),
    ) {
        prop_assume!(counts.iter().sum::<usize>() > 0);
        let ranges = ranges(&counts);
        let sampler = Sampler::new(&ranges, &vec![1.0; counts.len()], batch, seed).unwrap();
        let mut seen: Vec<Vec<(u64, usize)>> = vec![Vec::new(); counts.len()];
        let cycles = 30;
        for step in 0..cycles * sampler.steps_of_cycle() {
            let draw = sampler.draw(step);
            prop_assert_eq!(draw.clips.len() as u64, batch);
            prop_assert!(draw.clips.iter().all(|clip| ranges[draw.bucket].contains(clip)));
            seen[draw.bucket].extend(draw.clips.iter().map(|&clip| (step, clip)));
        }
        for (range, seen) in ranges.iter().zip(&seen) {
            let mut times = vec![0usize; range.len()];
            for (_, clip) in seen {
                times[clip - range.start] += 1;
            }
            let (least, most) = (times.iter().min(), times.iter().max());
            prop_assert!(most.copied().unwrap_or(0) <= least.copied().unwrap_or(0) + 1, "{:?}", times);
        }
    }

    /// Where batches are filled by a bucket's clips, a cycle is one epoch: each clip exactly once.
    #[test]
    fn a_cycle_is_an_epoch(batches in prop::collection::vec(1..12usize, 1..4), batch in 1..5usize, seed in any::<u64>(), cycle in 0..50u64) {
        let counts: Vec<usize> = batches.iter().map(|count| count * batch).collect();
        let sampler = Sampler::new(&ranges(&counts), &vec![1.0; counts.len()], batch as u64, seed).unwrap();
        let steps = sampler.steps_of_cycle();
        prop_assert_eq!(steps as usize, batches.iter().sum::<usize>());
        let mut clips: Vec<usize> = (cycle * steps..(cycle + 1) * steps).flat_map(|step| sampler.draw(step).clips).collect();
        clips.sort_unstable();
        prop_assert_eq!(clips, (0..counts.iter().sum()).collect::<Vec<_>>());
    }

    /// A sampler made anew at any step goes on as the first would have; ranks take the batch apart.
    #[test]
    fn it_goes_on_anywhere_and_ranks_take_the_batch_apart(
        counts in prop::collection::vec(1..30usize, 1..4),
        ranks in 1..5u64,
        local in 1..4u64,
        seed in any::<u64>(),
        step in 0..1_000_000u64,
    ) {
        let ranges = ranges(&counts);
        let new = || Sampler::new(&ranges, &vec![1.0; counts.len()], ranks * local, seed).unwrap();
        let first = new();
        for step in 0..20 {
            let _ = first.draw(step);
        }
        let draw = first.draw(step);
        prop_assert_eq!(&new().draw(step), &draw);
        let parts: Vec<usize> = (0..ranks).flat_map(|rank| draw.clips[first.part(rank, ranks).unwrap()].to_vec()).collect();
        prop_assert_eq!(parts, draw.clips);
    }
}

#[test]
fn orders_are_shuffled_and_differ() {
    let ranges = ranges(&[1000, 24]);
    let sampler = |seed| Sampler::new(&ranges, &[1.0, 1.0], 1, seed).unwrap();
    let clips = |seed, cycle: u64| -> Vec<usize> {
        let steps = sampler(seed).steps_of_cycle();
        (cycle * steps..(cycle + 1) * steps)
            .map(|step| sampler(seed).draw(step).clips[0])
            .collect()
    };
    let first = clips(1, 0);
    assert_ne!(first, clips(1, 1), "passes");
    assert_ne!(first, clips(2, 0), "seeds");
    let fixed = first.iter().enumerate().filter(|(i, clip)| i == *clip).count();
    assert!(fixed < 8, "{fixed} of 1024 stand where they stood"); // 1 is expected
    // Of the neighbours of an order as many rise as fall: 512 ± 9.
    let rising = first.windows(2).filter(|pair| pair[0] < pair[1]).count();
    assert!((470..=555).contains(&rising), "{rising}");
    // The batches of the small bucket are spread over the cycle.
    let small: Vec<usize> = (0..1024).filter(|&i| first[i] >= 1000).collect();
    assert!(small[0] < 250 && small[23] > 774, "{small:?}");
}

#[test]
fn weights_set_the_share_of_pictures() {
    let (folder, out) = (folder(), tempfile::tempdir().unwrap());
    let index = encoded(folder.path(), out.path(), &settings()).unwrap();
    let mix = |image_share| Mix {
        image_share,
        ..Mix::default()
    };
    let weights = Sampler::weights_for(&index, &mix(0.25)).unwrap();
    // 3 clips and 2 pictures: a quarter of 5 over 2, three quarters of 5 over 3.
    assert_eq!(weights, [1.25, 0.625]);
    let sampler = Sampler::new(&ranges(&[300, 200]), &weights, 5, 1).unwrap();
    let steps = sampler.steps_of_cycle();
    assert_eq!(steps, 100);
    assert_eq!((0..steps).filter(|&step| sampler.draw(step).bucket == 1).count(), 25);
    assert_eq!(Sampler::weights_for(&index, &mix(0.0)).unwrap()[1], 0.0);
    let none = Sampler::new(&ranges(&[300, 200]), &[1.0, 0.0], 5, 1).unwrap();
    assert!((0..100).all(|step| none.draw(step).bucket == 0));
    let error = Sampler::new(&ranges(&[3]), &[1.0, 2.0], 5, 1).unwrap_err().to_string();
    assert!(error.contains("`weights` is [1.0, 2.0]; allowed: 1 numbers"), "{error}");
    assert_eq!(
        Sampler::new(&ranges(&[0]), &[1.0], 5, 1).unwrap_err(),
        SamplerError::Empty
    );
    let error = sampler.part(0, 2).unwrap_err().to_string();
    assert_eq!(error, "`ranks` is 2; allowed: a divisor of the batch of 5");
    assert_eq!(settings().split, Split::Train);
}

#[test]
fn a_mix_that_asks_for_what_was_not_encoded_is_refused_by_field() {
    let (folder, out) = (folder(), tempfile::tempdir().unwrap());
    let index = encoded(folder.path(), out.path(), &settings()).unwrap();
    let buckets = &index.made_by.settings.buckets;
    let (clips, rate) = (buckets[0].to_string(), buckets[0].frame_rate_hz);
    let mix = |image_share, frame_rate_hz, bucket: &str| Mix {
        image_share,
        frame_rate_hz,
        bucket_shares: [(bucket.to_owned(), 1.0)].into(),
    };
    assert_eq!(
        Sampler::weights_for(&index, &mix(0.25, Some(rate), &clips)).unwrap(),
        [1.25, 0.625]
    );
    let problem = |mix| Sampler::weights_for(&index, &mix).unwrap_err().to_string();
    let found = problem(mix(0.25, Some(rate + 1.0), &clips));
    assert!(
        found.contains(&format!("`frame_rate_hz` is {}; allowed: {rate}", rate + 1.0)),
        "{found}"
    );
    let found = problem(mix(0.25, None, "51x512x512@10"));
    assert!(
        found.contains(&format!("`bucket_shares` is 51x512x512@10; allowed: {clips}")),
        "{found}"
    );
}
