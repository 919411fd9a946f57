use std::fs;
use std::path::Path;

use image::codecs::gif::GifEncoder;
use image::codecs::webp::WebPEncoder;
use image::{Delay, ExtendedColorType, Frame, ImageEncoder, Rgba, RgbaImage};
use proptest::prelude::*;

use super::*;
use crate::data::{FRAME_BYTES, open};

const RED: [u8; 4] = [200, 30, 30, 255];
const CLEAR: [u8; 4] = [0, 0, 0, 0];

/// Pictures whose grey level is their number times ten, modulo 256.
pub(crate) fn levels(count: u8, width: u32, height: u32) -> Vec<RgbaImage> {
    (0..count)
        .map(|i| i.wrapping_mul(10))
        .map(|level| RgbaImage::from_pixel(width, height, Rgba([level, level, level, 255])))
        .collect()
}

pub(crate) fn gif(path: &Path, pictures: &[RgbaImage], delays_ms: &[u32]) {
    let mut encoder = GifEncoder::new(fs::File::create(path).unwrap());
    for (picture, delay) in pictures.iter().zip(delays_ms.iter().cycle()) {
        let delay = Delay::from_numer_denom_ms(*delay, 1);
        encoder
            .encode_frame(Frame::from_parts(picture.clone(), 0, 0, delay))
            .unwrap();
    }
}

/// Replace what is there.
const REPLACE: u8 = 0b10;
/// Replace what is there, and clear it before the next picture.
const REPLACE_THEN_CLEAR: u8 = 0b11;

/// A RIFF file of lossless frames, put together by the container's specification; the first is as large as the clip.
fn webp(pictures: &[RgbaImage], delay_ms: u32, method: u8) -> Vec<u8> {
    let three = |number: u32| number.to_le_bytes()[..3].to_vec();
    let chunk = |name: &[u8; 4], content: &[u8]| {
        let mut bytes = [name.as_slice(), &(content.len() as u32).to_le_bytes(), content].concat();
        bytes.resize(bytes.len().next_multiple_of(2), 0);
        bytes
    };
    let (width, height) = pictures[0].dimensions();
    let canvas = [three(width - 1), three(height - 1)].concat();
    let mut body = b"WEBP".to_vec();
    body.extend(chunk(b"VP8X", &[&[0x12, 0, 0, 0], canvas.as_slice()].concat()));
    body.extend(chunk(b"ANIM", &[0; 6]));
    for picture in pictures {
        let (width, height) = picture.dimensions();
        let mut still = Vec::new();
        WebPEncoder::new_lossless(&mut still)
            .write_image(picture, width, height, ExtendedColorType::Rgba8)
            .unwrap();
        let size = [three(width - 1), three(height - 1)].concat();
        let place = [vec![0; 6], size, three(delay_ms), vec![method]].concat();
        body.extend(chunk(b"ANMF", &[place, still[12..].to_vec()].concat()));
    }
    [b"RIFF", (body.len() as u32).to_le_bytes().as_slice(), &body].concat()
}

fn frames(folder: &Path, pictures: &[RgbaImage]) {
    fs::create_dir_all(folder).unwrap();
    for (i, picture) in pictures.iter().enumerate() {
        picture.save(folder.join(format!("{i:03}.png"))).unwrap();
    }
}

/// The level of each frame's middle pixel.
fn middles(clip: &[u8]) -> Vec<u8> {
    let middle = (SIDE / 2 * SIDE + SIDE / 2) * 3;
    clip.chunks(FRAME_BYTES).map(|frame| frame[middle]).collect()
}

#[test]
fn every_kind_of_clip_gives_the_same_frames() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let pictures = levels(20, 64, 64);
    gif(&at("a.gif"), &pictures, &[40]);
    fs::write(at("a.webp"), webp(&pictures, 40, REPLACE)).unwrap();
    frames(&at("a"), &pictures);
    let expected = read_clip(&at("a")).unwrap();
    assert_eq!(expected.len(), FRAMES * FRAME_BYTES);
    assert_eq!(read_clip(&at("a.webp")).unwrap(), expected);
    assert_eq!(
        read_clip(&at("a.gif")).unwrap(),
        expected,
        "grey levels survive a palette"
    );
}

/// Frame i is seen at (2i + 1) / 34 of the whole time.
#[test]
fn frames_are_even_in_time_not_in_number() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("slow-end.gif");
    // Four pictures of 100 ms and one of 400 ms: the last fills the second half.
    gif(&path, &levels(5, 8, 8), &[100, 100, 100, 100, 400]);
    let found = middles(&read_clip(&path).unwrap());
    // Instants in parts of 800 ms: 23, 70, 117, 164, 211, …
    let by_hand: Vec<u8> = (0..17u32)
        .map(|i| [0, 10, 20, 30, 40, 40, 40, 40][((2 * i + 1) * 800 / 34 / 100) as usize])
        .collect();
    assert_eq!(found, by_hand);
}

#[test]
fn transparency_shows_the_background_and_proportions_stay() {
    let folder = tempfile::tempdir().unwrap();
    let mut wide = RgbaImage::from_pixel(128, 64, Rgba(RED));
    for x in 0..64 {
        for y in 0..64 {
            wide.put_pixel(x, y, Rgba(CLEAR));
        }
    }
    frames(&folder.path().join("wide"), &[wide.clone(), wide]);
    let clip = read_clip(&folder.path().join("wide")).unwrap();
    let pixel = |x: usize, y: usize| clip[(y * SIDE + x) * 3..][..3].to_vec();
    assert_eq!(pixel(10, 32), BACKGROUND, "clear");
    assert_eq!(pixel(50, 32), RED[..3], "opaque");
    assert_eq!(pixel(50, 10), BACKGROUND, "above the wide picture");
    assert_eq!(pixel(50, 17), RED[..3]);
}

#[test]
fn a_picture_of_a_webp_is_cleared_before_a_smaller_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.webp");
    let pictures = [
        RgbaImage::from_pixel(64, 64, Rgba(RED)),
        RgbaImage::from_pixel(8, 8, Rgba(RED)),
    ];
    for (method, after) in [(REPLACE, RED[0]), (REPLACE_THEN_CLEAR, BACKGROUND[0])] {
        fs::write(&path, webp(&pictures, 40, method)).unwrap();
        let middles = middles(&read_clip(&path).unwrap());
        assert_eq!((middles[0], middles[FRAMES - 1]), (RED[0], after));
    }
}

#[test]
fn a_decoder_that_panics_has_found_a_damaged_file() {
    let error = decode::guarded::<()>(Path::new("a.webp"), || panic!("index out of bounds")).unwrap_err();
    assert_eq!(error.to_string(), "a.webp: damaged: its decoder gave up");
}

#[test]
fn what_is_no_clip_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::write(at("a.txt"), "no").unwrap();
    fs::write(at("broken.webp"), "RIFF").unwrap();
    gif(&at("one.gif"), &levels(1, 8, 8), &[100]);
    fs::create_dir(at("empty")).unwrap();
    fs::write(at("a.mp4"), "no video").unwrap();
    for (name, said) in [
        ("a.txt", "allowed: animated .webp or .gif"),
        ("broken.webp", "broken.webp: "),
        ("one.gif", "holds 1 pictures; a clip has at least 2"),
        ("empty", "holds 0 pictures"),
        ("missing.gif", "missing.gif: No such file"),
    ] {
        let error = read_clip(&at(name)).unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    }
    let error = video::read(&at("a.mp4"), "/nowhere/ffmpeg").unwrap_err().to_string();
    assert!(
        error.contains("a.mp4: a video takes an ffmpeg program on PATH or named by TEMPONAS_FFMPEG"),
        "{error}"
    );
}

/// A program that stands for ffmpeg: two pictures, of which the second is brighter.
#[cfg(unix)]
#[test]
fn a_video_is_what_the_program_gives() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("ffmpeg");
    let give = |text: &str| {
        fs::write(&program, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        video::read(&folder.path().join("a.mp4"), &program.display().to_string())
    };
    let zeros = format!("head -c {FRAME_BYTES} /dev/zero");
    let pictures = give(&format!("{zeros}; {zeros} | tr '\\0' 'A'")).unwrap();
    assert_eq!(pictures.iter().map(|p| p.pixels[7]).collect::<Vec<_>>(), [0, b'A']);
    let error = give("echo moov atom not found >&2; exit 1").unwrap_err().to_string();
    assert!(error.contains("a.mp4: moov atom not found (exit status: 1)"), "{error}");
    assert!(!give("echo broken >&2; exit 255").unwrap_err().is_passing());
    for end in ["kill -9 $$", "kill -15 $$", "exit 255"] {
        let error = give(end).unwrap_err();
        assert!(error.is_passing(), "{error}");
        assert!(error.to_string().contains("was ended over "), "{error}");
    }
    let error = give("head -c 5 /dev/zero").unwrap_err().to_string();
    assert!(error.contains("gave 5 bytes, no whole pictures"), "{error}");
}

/// The program that `make test` provides; none where the tests run without it.
pub(crate) fn ffmpeg() -> Option<String> {
    let program = video::program();
    let runs = std::process::Command::new(&program).arg("-version").output();
    runs.is_ok_and(|output| output.status.success()).then_some(program)
}

/// A video without loss of the pictures, each shown 40 ms.
pub(crate) fn video_of(path: &Path, pictures: &[RgbaImage], program: &str) {
    use std::io::Write;
    let (width, height) = pictures[0].dimensions();
    let mut child = std::process::Command::new(program)
        .args([
            "-nostdin", "-v", "error", "-y", "-f", "rawvideo", "-pix_fmt", "rgba", "-r", "25",
        ])
        .args([
            "-s",
            &format!("{width}x{height}"),
            "-i",
            "pipe:0",
            "-c:v",
            "ffv1",
            "-pix_fmt",
            "bgr0",
        ])
        .arg(path)
        .stdin(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut pipe = child.stdin.take().unwrap();
    for picture in pictures {
        pipe.write_all(picture.as_raw()).unwrap();
    }
    drop(pipe);
    assert!(child.wait().unwrap().success());
}

/// The same pictures as video, GIF and frames give the same frames, of any size and rate.
#[test]
fn a_real_video_gives_the_frames_of_its_pictures() {
    let Some(program) = ffmpeg() else {
        eprintln!("no ffmpeg here: nothing was tested");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let mut pictures = levels(24, 96, 48);
    for picture in &mut pictures {
        // A square in the middle, so that a wrong cut would show.
        for (x, y) in (40..56).flat_map(|x| (16..32).map(move |y| (x, y))) {
            picture.put_pixel(x, y, Rgba([250, 20, 30, 255]));
        }
    }
    video_of(&folder.path().join("a.mkv"), &pictures, &program);
    frames(&folder.path().join("frames"), &pictures);
    let [video, frames] = ["a.mkv", "frames"].map(|name| folder.path().join(name));
    let footage = footage::Footage::probe(&video).unwrap();
    assert_eq!((footage.pictures(), footage.width, footage.height), (24, 96, 48));
    assert!((footage.rate_hz() - 25.0).abs() < 1e-9, "{}", footage.rate_hz());
    let of_folder = footage::Footage::probe(&frames).unwrap();
    let read = |path: &Path, footage: &footage::Footage, wanted: &[usize]| {
        let mut all = Vec::new();
        footage::read(path, footage, wanted, (24, 24), &mut |frame| {
            all.push(frame.to_vec());
            std::ops::ControlFlow::Continue(())
        })
        .unwrap();
        all
    };
    for wanted in [vec![0, 1, 2], vec![5, 5, 9, 23], footage.wanted(3, 6, 12.5)] {
        let (found, expected) = (read(&video, &footage, &wanted), read(&frames, &of_folder, &wanted));
        assert_eq!(found.len(), wanted.len());
        for (found, expected) in found.iter().zip(&expected) {
            let worst = found.iter().zip(expected).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
            assert!(worst <= 2, "{worst} of 255 apart");
        }
    }

    // What is cut off is told when it is looked through.
    let whole = fs::read(&video).unwrap();
    fs::write(&video, &whole[..whole.len() / 2]).unwrap();
    let cut = footage::Footage::probe(&video);
    assert!(
        cut.as_ref().is_err() || cut.as_ref().unwrap().pictures() < 24,
        "{cut:?}"
    );
    fs::write(&video, "no video").unwrap();
    let error = footage::Footage::probe(&video).unwrap_err().to_string();
    assert!(error.contains("a.mkv: "), "{error}");
}

fn folder_with(list: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in ["a.gif", "b.gif", "c.gif", "d.gif", "e.gif"] {
        gif(&folder.path().join(name), &levels(3, 8, 8), &[100]);
    }
    fs::write(folder.path().join("notes.txt"), "").unwrap();
    fs::write(folder.path().join(CAPTIONS), list).unwrap();
    folder
}

#[test]
fn a_folder_is_a_dataset() {
    let folder = folder_with(
        r#"{"file": "a.gif", "caption": "a red car driving left", "object": "car", "color": "red", "motion": "left", "split": "train"}

{"file": "b.gif", "caption": "a blue car driving right", "object": "car", "color": "blue", "motion": "right", "split": "train"}
{"file": "c.gif", "caption": "a blue car driving right", "object": "car", "color": "blue", "motion": "right", "split": "train"}
{"file": "d.gif", "caption": "a blue car driving left", "object": "car", "color": "blue", "motion": "left", "split": "held_out"}
"#,
    );
    let source = open(&folder.path().display().to_string(), Path::new("/nowhere")).unwrap();
    assert_eq!((source.len(Split::Train), source.len(Split::HeldOut)), (3, 1));
    assert_eq!(source.prompts(Split::Train).len(), 2, "captions once");
    let vocabulary = source.vocabulary();
    assert_eq!(vocabulary.objects, ["car"]);
    assert_eq!(vocabulary.colors, ["blue", "red"]);
    assert_eq!(vocabulary.motions, ["left", "right"]);
    let prompt = source.attributes(Split::HeldOut, 0);
    assert_eq!(
        prompt.attributes,
        Attributes {
            object: 0,
            color: 0,
            motion: Some(0)
        }
    );
    assert_eq!(
        source.clip(Split::HeldOut, 0).unwrap().frames.len(),
        FRAMES * FRAME_BYTES
    );

    let before = source.settings();
    gif(&folder.path().join("b.gif"), &levels(4, 8, 8), &[100]);
    let after = open(&folder.path().display().to_string(), Path::new("/nowhere")).unwrap();
    assert_ne!(before, after.settings(), "other bytes, other settings");
}

#[test]
fn without_splits_every_fifth_caption_is_kept_apart() {
    let lines = ["one", "two", "three", "four", "five"].map(|word| {
        let file = if word == "five" { "e.gif" } else { "a.gif" };
        format!(r#"{{"file": "{file}", "caption": "number {word}"}}"#)
    });
    let folder = folder_with(&lines.join("\n"));
    let source = ClipFolder::open(folder.path()).unwrap();
    assert_eq!(source.len(Split::Train), 4);
    assert_eq!(source.prompts(Split::HeldOut)[0].caption, "number five");
    assert_eq!(source.vocabulary().objects, ["unnamed"]);
}

#[test]
fn every_wrong_line_is_named_with_field_found_and_allowed() {
    let folder = folder_with(
        r#"{"file": "a.gif", "caption": "a red car", "object": "car", "color": "red", "split": "train"}
{"file": "../a.gif", "caption": "up", "split": "train"}
{"file": "z.gif", "caption": "missing", "split": "train"}
{"file": "notes.txt", "caption": "text", "split": "train"}
{"file": "b.gif", "caption": "  ", "split": "train"}
{"file": "b.gif", "colour": "red", "split": "test"}
{"file": 7, "caption": "a number", "color": ["red"], "split": "train"}
[1, 2]
{"file": "b.gif",
"#,
    );
    let list = folder.path().join(CAPTIONS).display().to_string();
    let error = ClipFolder::open(folder.path()).unwrap_err().to_string();
    for (line, said) in [
        (2, r#"`file` is "../a.gif"; allowed: a path below the folder"#),
        (3, r#"`file` is "z.gif"; which is not in the folder"#),
        (4, r#"`file` is "notes.txt"; allowed: animated .webp or .gif, a folder"#),
        (5, r#"`caption` is "  "; allowed: text with at least one word"#),
        (
            6,
            "`colour` is no field; allowed: file, caption, object, color, motion, split",
        ),
        (6, "`caption` is missing"),
        (6, r#"`split` is "test"; allowed: "train", "held_out""#),
        (7, "`file` is 7; allowed: text"),
        (7, r#"`color` is ["red"]; allowed: text"#),
        (8, "found [1,2]; allowed: an object with `file` and `caption`"),
        (9, "no JSON: EOF"),
    ] {
        let expected = format!("{list}:{line}: {said}");
        assert!(error.contains(&expected), "{expected}\nin\n{error}");
    }
}

#[test]
fn splits_that_cannot_be_used_are_named() {
    let wrong = |list: &str| ClipFolder::open(folder_with(list).path()).unwrap_err().to_string();
    let error = wrong(
        r#"{"file": "a.gif", "caption": "a red car", "object": "car", "color": "red", "split": "train"}
{"file": "b.gif", "caption": "a red boat", "object": "boat", "color": "red", "split": "held_out"}
{"file": "c.gif", "caption": "a red car", "object": "car", "color": "red", "split": "held_out"}
{"file": "d.gif", "caption": "a car", "object": "car", "color": "red"}"#,
    );
    assert!(
        error.contains(r#":2: `object` is "boat"; allowed in a held-out line: car"#),
        "{error}"
    );
    assert!(
        error.contains(r#":3: `caption` is "a red car", which is trained"#),
        "{error}"
    );
    assert!(error.contains(":4: `split` is missing; line 1 names it"), "{error}");
    let error = wrong(r#"{"file": "a.gif", "caption": "a red car"}"#);
    assert!(error.contains(r#":1: no line is in the split "held_out""#), "{error}");
    assert!(wrong("\n\n").contains(":1: there is no line"), "{error}");
}

#[test]
fn a_dataset_that_is_none_is_named() {
    let Err(error) = open("photos", Path::new("/nowhere")) else {
        panic!("there is no such dataset");
    };
    let error = error.to_string();
    assert_eq!(
        error,
        "`photos` is no dataset; allowed: shapes, emoji, or the folder of a set of clips"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// A damaged file is read or refused, never a reason to panic.
    #[test]
    fn damaged_clips_never_panic(
        kind in 0..3usize,
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
        cut in any::<prop::sample::Index>(),
        whole in any::<bool>(),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let pictures = levels(4, 9, 7);
        let (name, path) = [("a.webp", "a.webp"), ("a.gif", "a.gif"), ("a", "a/001.png")][kind];
        fs::write(folder.path().join("a.webp"), webp(&pictures, 40, REPLACE)).unwrap();
        gif(&folder.path().join("a.gif"), &pictures, &[40]);
        frames(&folder.path().join("a"), &pictures);
        let path = folder.path().join(path);
        let mut bytes = fs::read(&path).unwrap();
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if !whole {
            bytes.truncate(cut.index(bytes.len()));
        }
        fs::write(&path, bytes).unwrap();
        if let Ok(clip) = read_clip(&folder.path().join(name)) {
            prop_assert_eq!(clip.len(), FRAMES * FRAME_BYTES);
        }
    }

    #[test]
    fn damaged_lists_never_panic(text in "\\PC{0,80}", at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let line = r#"{"file": "a.gif", "caption": "a red car", "object": "car", "split": "train"}"#;
        let mut bytes = format!("{line}\n{text}\n{line}").into_bytes();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(CAPTIONS), bytes).unwrap();
        // There is no clip in the folder: whatever stands in the list, this fails.
        prop_assert!(ClipFolder::open(folder.path()).is_err());
    }
}
