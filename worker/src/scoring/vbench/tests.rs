use std::collections::BTreeSet;
use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use search_spaces::Space;

use super::check::{TOLERANCE, compare};
use super::workplace::{FULL_INFO, KEPT};
use super::*;
use crate::data::default_cache;
use crate::models::seeded::normal;
use tch::{Device, Tensor};

/// Where `scripts/vbench-env` puts its Python below the cache.
const PYTHON: &str = "vbench-0.1.5/bin/python";

/// The environment that `make test` lays out, or the one that is named; none where it could not be.
fn environment() -> Option<Environment> {
    let named = std::env::var_os("TEMPONAS_VBENCH_PYTHON").filter(|name| !name.is_empty());
    let python = named.map_or_else(|| default_cache().join(PYTHON), PathBuf::from);
    if !python.exists() {
        eprintln!("skipped: no environment with the package vbench; scripts/vbench-env makes one");
        return None;
    }
    // A cache may outlive the system's PyTorch that the environment builds on.
    let probed = Environment::probe(&python, Duration::from_secs(300));
    if let Err(error) = &probed {
        eprintln!("skipped: the environment with the package vbench does not work: {error}");
    }
    probed.ok()
}

fn has_ffmpeg() -> bool {
    let starts = std::process::Command::new(videos::ffmpeg())
        .arg("-version")
        .output()
        .is_ok();
    if !starts {
        eprintln!("skipped: no ffmpeg on PATH, and none named by TEMPONAS_FFMPEG");
    }
    starts
}

fn shapes() -> Space {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../search-spaces/spaces/shapes-tiny.toml");
    Space::parse(&std::fs::read_to_string(path).unwrap()).unwrap()
}

#[derive(Debug, Default)]
struct Lines(Mutex<Vec<String>>);

impl Log for Lines {
    fn log(&self, line: &str) {
        self.0.lock().unwrap().push(line.to_owned());
    }
}

/// Spec sections 6.1 and 6.4, and the whole path through the package for the dimension that needs no weights.
#[test]
fn the_published_package_lists_its_prompts_and_scores_our_videos() {
    let Some(environment) = environment() else { return };
    let list = prompts::read(&environment.full_info).unwrap();
    let distinct: BTreeSet<&str> = list.iter().map(|entry| &*entry.prompt_en).collect();
    assert_eq!((list.len(), distinct.len()), (946, 944));
    let search = Dimension::SEARCH.map(|d| prompts::select(&list, &[d], usize::MAX).prompts.len());
    assert_eq!(search, [93, 79, 85]);
    assert_eq!(
        prompts::select(&list, &Dimension::SEARCH, usize::MAX).prompts.len(),
        257
    );
    let all = prompts::select(&list, &Dimension::ALL, usize::MAX);
    assert_eq!(all.prompts.len(), 944);
    assert_eq!(
        prompts::alike(&all.prompts),
        Some(("a fantasy landscape", "A fantasy landscape"))
    );
    for prompt in &all.prompts {
        video_name(prompt, 4).unwrap();
    }

    if !has_ffmpeg() {
        return;
    }
    let (space, folder, lines) = (shapes(), tempfile::tempdir().unwrap(), Lines::default());
    let evaluation = Evaluation {
        prompts: 2,
        videos_per_prompt: 2,
        sample_steps: 2,
        sample_batch: Some(3),
        ..space.evaluation.clone().unwrap()
    };
    let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets");
    let found = compare(
        &environment,
        &space,
        "c1.-.-.-.-",
        evaluation,
        &assets,
        folder.path(),
        &lines,
    )
    .unwrap();
    assert_eq!(found.videos, 4);
    assert!(found.worst < TOLERANCE, "{found:?}");
    assert!(
        (found.package - found.ours).abs() < TOLERANCE && found.package < 1.0,
        "{found:?}"
    );
    let said = lines.0.lock().unwrap().join("\n");
    assert!(said.contains("vbench: Evaluation results saved to"), "{said}");
    assert_eq!(folder.path().read_dir().unwrap().count(), 0, "nothing stays");
}

/// A few videos of moving noise, without a model.
fn write_some(folder: &Path, names: &[&str]) {
    for (i, name) in names.iter().enumerate() {
        let clip = normal(&[3, 5, 32, 48], i as u64 + 1, Device::Cpu) * 0.3;
        videos::write(&videos::ffmpeg(), &clip, 10, folder, &folder.join(name)).unwrap();
    }
}

#[test]
fn videos_hold_the_frames_and_have_the_same_bytes_each_time() {
    if !has_ffmpeg() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    write_some(folder.path(), &["a: b, 'c' -0.mp4", "%d-0.mp4"]);
    let path = folder.path().join("a: b, 'c' -0.mp4");
    let first = fs::read(&path).unwrap();
    write_some(folder.path(), &["a: b, 'c' -0.mp4"]);
    assert_eq!(fs::read(&path).unwrap(), first);

    // A smooth clip survives the halved colours.
    let ramp = Tensor::linspace(-0.8, 0.8, 48, (tch::Kind::Float, Device::Cpu));
    let clip = Tensor::stack(&[&ramp; 32], 0).expand([3, 5, 32, 48], false);
    videos::write(&videos::ffmpeg(), &clip, 10, folder.path(), &path).unwrap();
    let read = videos::read(&videos::ffmpeg(), &path, [32, 48], 100).unwrap();
    assert_eq!(read.size(), clip.size());
    let error = (&read - &clip).abs().mean(tch::Kind::Float).double_value(&[]);
    assert!(error < 0.03, "{error}");
    assert_eq!(
        videos::read(&videos::ffmpeg(), &path, [16, 24], 3).unwrap().size(),
        [3, 3, 16, 24]
    );
}

/// A file of boxes with a kind and a number of bytes.
fn boxes(list: &[(&[u8; 4], u32)]) -> Vec<u8> {
    let one = |(kind, content): &(&[u8; 4], u32)| {
        let size = 8 + content;
        [&size.to_be_bytes()[..], &kind[..], &vec![7; *content as usize]].concat()
    };
    list.iter().flat_map(one).collect()
}

#[test]
fn what_is_missing_or_broken_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let whole = boxes(&[(b"ftyp", 8), (b"mdat", 100), (b"moov", 30)]);
    let long = [
        &[0, 0, 0, 1][..],
        b"mdat",
        &18u64.to_be_bytes(),
        b"xx",
        &boxes(&[(b"moov", 0)]),
    ]
    .concat();
    let files = [
        ("a-0.mp4", &whole[..]),
        ("a-1.mp4", &long),
        ("b-0.mp4", b""),
        ("b-1.mp4", &whole[..whole.len() - 1]),
        ("b-2.mp4", &whole[..124]),
        ("b-3.mp4", &whole[..119]),
        ("b-4.mp4", &[0; 100]),
    ];
    for (name, bytes) in files {
        fs::write(folder.path().join(name), bytes).unwrap();
    }
    let names = files.map(|(name, _)| name.to_owned());
    let broken = videos::missing(folder.path(), &names);
    assert_eq!(broken, ["b-0.mp4", "b-1.mp4", "b-2.mp4", "b-3.mp4", "b-4.mp4"]);
    let names = ["a-0.mp4", "b-0.mp4", "c-0.mp4"].map(str::to_owned);
    let missing = videos::missing(folder.path(), &names);
    assert_eq!(missing, ["b-0.mp4", "c-0.mp4"], "an empty file is no video");
    let error = VBenchError::Missing { expected: 3, missing };
    assert_eq!(error.to_string(), "2 videos of 3 are missing: b-0.mp4, c-0.mp4");

    let at = folder.path().join("d-0.mp4");
    let clip = Tensor::full([3, 2, 16, 16], f64::NAN, (tch::Kind::Float, Device::Cpu));
    let error = videos::write("/nowhere/ffmpeg", &clip, 10, folder.path(), &at)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("d-0.mp4: the clip holds values that are no finite numbers"),
        "{error}"
    );
    let error = videos::write("/nowhere/ffmpeg", &clip.zeros_like(), 10, folder.path(), &at).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("named by TEMPONAS_FFMPEG; `/nowhere/ffmpeg`"),
        "{error}"
    );
    let error = Environment::probe(Path::new("/nowhere/python"), Duration::from_secs(1)).unwrap_err();
    assert!(
        error.to_string().starts_with("/nowhere/python: no environment with"),
        "{error}"
    );
}

/// Two videos of each of two prompts.
fn small_plan() -> Plan {
    let text = r#"[{"prompt_en": "a red car", "dimension": ["temporal_flickering"]},
        {"prompt_en": "a blue cat", "dimension": ["temporal_flickering"]}]"#;
    let dimensions = vec![Dimension::TemporalFlickering];
    let selection = prompts::select(&serde_json::from_str::<Vec<_>>(text).unwrap(), &dimensions, 2);
    let place = |(prompt, video): (usize, usize)| {
        let name = video_name(&selection.prompts[prompt], video).unwrap();
        (name, Place { prompt, video })
    };
    let expected = [(0, 0), (0, 1), (1, 0), (1, 1)].map(place).into();
    Plan {
        dimensions,
        selection,
        videos: 2,
        expected,
    }
}

#[test]
fn a_killed_scoring_goes_on_with_its_videos_and_makes_broken_ones_again() {
    if !has_ffmpeg() {
        return;
    }
    let (space, folder, plan) = (shapes(), tempfile::tempdir().unwrap(), small_plan());
    let evaluation = Evaluation {
        sample_steps: 1,
        sample_batch: Some(2),
        ..space.evaluation.clone().unwrap()
    };
    let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets");
    let assets = Assets::open(&assets, &evaluation.dataset, Device::Cpu).unwrap();
    let vs = tch::nn::VarStore::new(Device::Cpu);
    let architecture = space.architecture("-.-.-.-.-").unwrap();
    let unet = UNet::new(&vs.root(), space.unet().unwrap(), &space.layers(&architecture));
    crate::models::seeded::seed_weights(&vs, 1);
    let sampling = sampling(&assets, &evaluation, &unet).unwrap();
    // Each attempt opens the folder anew; says how many batches it sampled of the two, and how it ended.
    let attempt = |most: usize| {
        let place = Workplace::open(folder.path(), "key", &plan).unwrap();
        let (mut batches, mut so_far) = (
            0,
            SoFar {
                share: 0.0,
                sample_seconds: 0.0,
                score_seconds: 0.0,
                metrics: BTreeMap::new(),
            },
        );
        let ended = place.sample(&plan, &sampling, &mut so_far, &mut |_| {
            batches += 1;
            if batches < most {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        });
        (
            batches,
            ended.is_ok(),
            videos::missing(&place.videos, plan.expected.keys()),
        )
    };
    let videos = folder.path().join("key/videos");
    let read = |name: &str| fs::read(videos.join(name)).unwrap();

    let (batches, finished, missing) = attempt(1);
    assert_eq!((batches, finished), (1, false));
    assert_eq!(
        missing,
        ["a blue cat-0.mp4", "a blue cat-1.mp4"],
        "in alphabetical order"
    );
    let car = videos.join("a red car-0.mp4");
    let written = fs::metadata(&car).unwrap().modified().unwrap();
    assert_eq!(attempt(9), (1, true, Vec::new()), "the first batch was there");
    assert_eq!(fs::metadata(&car).unwrap().modified().unwrap(), written);
    assert_eq!(attempt(9), (0, true, Vec::new()), "all were");

    // A crash of the machine may cut a file; the same frames have the same bytes.
    let cat = read("a blue cat-0.mp4");
    fs::write(videos.join("a blue cat-0.mp4"), &cat[..cat.len() / 2]).unwrap();
    fs::remove_file(videos.join("a blue cat-1.mp4")).unwrap();
    assert_eq!(attempt(9), (1, true, Vec::new()));
    assert_eq!(read("a blue cat-0.mp4"), cat);
    assert_eq!(fs::metadata(&car).unwrap().modified().unwrap(), written);
}

#[test]
fn videos_that_nobody_came_back_to_go_in_the_end() {
    let (folder, plan) = (tempfile::tempdir().unwrap(), small_plan());
    for key in ["left", "recent"] {
        Workplace::open(folder.path(), key, &plan).unwrap();
    }
    fs::create_dir(folder.path().join("of others")).unwrap();
    let list = folder.path().join("left").join(FULL_INFO);
    let long_ago = SystemTime::now() - KEPT - Duration::from_secs(1);
    fs::File::options()
        .append(true)
        .open(&list)
        .unwrap()
        .set_modified(long_ago)
        .unwrap();
    Workplace::open(folder.path(), "next", &plan).unwrap();
    let mut kept: Vec<_> = folder
        .path()
        .read_dir()
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    kept.sort();
    assert_eq!(kept, ["next", "of others", "recent"]);
}

/// `motion_smoothness` needs AMT's weights, which no package holds.
#[test]
fn a_dimension_without_its_weights_fails_with_their_name() {
    let Some(environment) = environment() else { return };
    let cache = Path::new(&std::env::var("HOME").unwrap_or_default()).join(".cache/vbench");
    if !has_ffmpeg() || cache.join("amt_model/amt-s.pth").exists() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let [list, videos, output] = ["list.json", "videos", "output"].map(|name| folder.path().join(name));
    fs::create_dir(&videos).unwrap();
    write_some(&videos, &["a-0.mp4"]);
    fs::write(&list, r#"[{"prompt_en": "a", "dimension": ["motion_smoothness"]}]"#).unwrap();
    let places = [&*list, &*videos, &*output];
    let motion = Dimension::MotionSmoothness;
    let error = environment
        .score(motion, Device::Cpu, places, &mut |_| (), &mut || true)
        .unwrap_err()
        .to_string();
    assert!(error.starts_with("`motion_smoothness` was not scored"), "{error}");
    assert!(error.contains("needs `amt_model/amt-s.pth`, missing in"), "{error}");
}

#[test]
fn small_pictures_keep_their_shape() {
    let size = |height, width| crate::flow::Preset {
        name: "any",
        frames: 5,
        height,
        width,
        frame_rate: 10,
    };
    assert_eq!(videos::small(&size(64, 64), 160), [64, 64]);
    assert_eq!(videos::small(&size(432, 768), 160), [90, 160]);
}

/// Everything that a preset's name stands for is known on both sides.
#[test]
fn spaces_name_the_presets_that_there_are() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../search-spaces/spaces/shapes-tiny.toml");
    let text = std::fs::read_to_string(path).unwrap();
    for preset in crate::flow::PRESETS {
        let text = text.replace("[evaluation]", &format!("[evaluation]\npreset = \"{}\"", preset.name));
        let space = Space::parse(&text).unwrap();
        assert_eq!(space.evaluation.unwrap().preset.as_deref(), Some(preset.name));
    }
}
