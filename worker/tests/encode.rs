//! Encoding that is killed again and again makes the shards that an undisturbed run makes, byte for byte.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use image::codecs::gif::GifEncoder;
use image::{Delay, Frame, Rgba, RgbaImage};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

const KILLS: usize = 5;

/// A square that moves, of a colour and speed of the clip's own.
fn pictures(clip: u32, count: u32) -> Vec<RgbaImage> {
    let colour = [(40 * clip) as u8, (90 * clip + 30) as u8, 200, 255];
    (0..count)
        .map(|i| {
            let mut picture = RgbaImage::from_pixel(80, 64, Rgba([240, 240, 240, 255]));
            let left = (i * (1 + clip % 3)) % 60;
            for (x, y) in (left..left + 20).flat_map(|x| (20..40).map(move |y| (x, y))) {
                picture.put_pixel(x, y, Rgba(colour));
            }
            picture
        })
        .collect()
}

fn gif(path: &Path, pictures: Vec<RgbaImage>) {
    let mut encoder = GifEncoder::new_with_speed(fs::File::create(path).expect("a file"), 30);
    for picture in pictures {
        let frame = Frame::from_parts(picture, 0, 0, Delay::from_numer_denom_ms(40, 1));
        encoder.encode_frame(frame).expect("a frame");
    }
}

/// A real video, where there is an ffmpeg: `make test` provides one.
fn mp4(path: &Path, pictures: &[RgbaImage]) -> bool {
    let program = std::env::var("TEMPONAS_FFMPEG").unwrap_or_else(|_| "ffmpeg".to_owned());
    let (width, height) = pictures[0].dimensions();
    let child = Command::new(program)
        .args(["-v", "error", "-f", "rawvideo", "-pix_fmt", "rgba", "-r", "25"])
        .args([
            "-s",
            &format!("{width}x{height}"),
            "-i",
            "pipe:0",
            "-c:v",
            "mpeg4",
            "-q:v",
            "3",
        ])
        .arg(path)
        .stdin(Stdio::piped())
        .spawn();
    let Ok(mut child) = child else {
        eprintln!("no ffmpeg here: the folder holds no video");
        return false;
    };
    let mut pipe = child.stdin.take().expect("a pipe");
    for picture in pictures {
        pipe.write_all(picture.as_raw()).expect("a picture");
    }
    drop(pipe);
    child.wait().expect("an end").success()
}

fn folder() -> (tempfile::TempDir, bool) {
    let folder = tempfile::tempdir().expect("a folder");
    let mut lines = String::new();
    let mut list = |file: &str, clip: u32| {
        lines += &format!("{{\"file\": \"{file}\", \"caption\": \"clip {}\"}}\n", clip % 5);
    };
    for clip in 0..8 {
        let file = format!("{clip}.gif");
        gif(&folder.path().join(&file), pictures(clip, 17 * (1 + clip % 3)));
        list(&file, clip);
    }
    for clip in 8..12 {
        let file = format!("{clip}.png");
        pictures(clip, 1)[0].save(folder.path().join(&file)).expect("a picture");
        list(&file, clip);
    }
    let video = mp4(&folder.path().join("12.mp4"), &pictures(12, 60));
    if video {
        list("12.mp4", 12);
    }
    fs::write(folder.path().join("captions.jsonl"), lines).expect("a list");
    (folder, video)
}

fn start(dataset: &Path, out: &Path) -> Child {
    let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets");
    Command::new(env!("CARGO_BIN_EXE_temponas-worker"))
        .args([
            "encode",
            "--parts",
            "shapes",
            "--shard-mib",
            "0.005",
            "--precision",
            "bf16",
        ])
        .args([
            "--bucket",
            "17x64x64@25",
            "--bucket",
            "34x64x64@25:0.5",
            "--bucket",
            "1x64x64",
        ])
        .arg("--dataset")
        .arg(dataset)
        .arg("--assets")
        .arg(assets)
        .arg("--out")
        .arg(out)
        .stdout(Stdio::null())
        .env("RUST_LOG", "warn")
        .spawn()
        .expect("a worker")
}

fn published(out: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let entries = fs::read_dir(out)
        .expect("a folder")
        .map(|entry| entry.expect("an entry"));
    let mut files: Vec<_> = entries
        .filter(|entry| entry.path().is_file())
        .map(|entry| {
            (
                PathBuf::from(entry.file_name()),
                fs::read(entry.path()).expect("a file"),
            )
        })
        .collect();
    files.sort();
    files
}

fn shards(out: &Path) -> usize {
    let entries = fs::read_dir(out).map(|entries| entries.flatten().filter(|entry| entry.path().is_file()).count());
    entries.unwrap_or(0)
}

#[test]
fn shards_are_the_same_after_kills_at_random_moments() {
    let ((dataset, video), straight, killed) = (folder(), out(), out());
    let started = Instant::now();
    assert!(start(dataset.path(), straight.path()).wait().expect("an end").success());
    let whole = started.elapsed();
    let expected = published(straight.path());
    assert!(expected.len() > 8, "{} files", expected.len());
    assert_eq!(
        expected
            .iter()
            .any(|(_, bytes)| String::from_utf8_lossy(bytes).contains("12.mp4")),
        video
    );

    let mut rng = ChaCha8Rng::seed_from_u64(11);
    let mut unfinished = 0;
    for kill in 0..KILLS {
        let mut child = start(dataset.path(), killed.path());
        if kill % 2 == 0 {
            // Within the time that a whole run took, less and less of which is left to do.
            std::thread::sleep(whole.mul_f64(rng.random_range(0.1..0.7)));
        } else {
            // While a shard is made: after the next has appeared.
            let before = shards(killed.path());
            while shards(killed.path()) == before && child.try_wait().expect("a state").is_none() {
                std::thread::sleep(Duration::from_millis(2));
            }
            std::thread::sleep(Duration::from_millis(rng.random_range(0..40)));
        }
        unfinished += usize::from(child.try_wait().expect("a state").is_none());
        let _ = child.kill(); // SIGKILL
        let _ = child.wait();
    }
    assert!(unfinished > 1, "it was done before it was killed");
    // What a half-written file would be: the last shard, cut.
    if let Some((name, bytes)) = published(killed.path()).last() {
        fs::write(killed.path().join(name), &bytes[..bytes.len() / 2]).expect("a file");
    }
    assert!(start(dataset.path(), killed.path()).wait().expect("an end").success());
    let found = published(killed.path());
    let names = |files: &[(PathBuf, Vec<u8>)]| files.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&found), names(&expected));
    for ((name, found), (_, expected)) in found.iter().zip(&expected) {
        assert!(found == expected, "{} differs", name.display());
    }
}

fn out() -> tempfile::TempDir {
    tempfile::tempdir().expect("a folder")
}
