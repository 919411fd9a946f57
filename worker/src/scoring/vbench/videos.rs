//! Clips as H.264 in MP4 and back, through an ffmpeg program.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use tch::{Kind, Tensor};

use super::VBenchError;
use crate::data::to_bytes;
use crate::flow::Preset;

/// Quality of the encoding: nearly without loss.
const RATE_FACTOR: &str = "10";
/// Threads of the encoder: a fixed number, since the bytes depend on it.
const THREADS: &str = "2";

pub(super) use crate::data::clips::ffmpeg;

/// Writes a clip, whole or not at all; `partial` is a folder on the same disk, for what is being written.
///
/// # Shapes
/// - `clip`: `[3, t, h, w]` in about −1..1
///
/// # Errors
/// Where the clip holds no numbers or ffmpeg fails.
pub(super) fn write(
    program: &str,
    clip: &Tensor,
    frame_rate: u32,
    partial: &Path,
    path: &Path,
) -> Result<(), VBenchError> {
    let failed = |problem: String| VBenchError::Video {
        path: path.to_owned(),
        problem,
    };
    let finite = clip.isfinite().all().int64_value(&[]) == 1;
    if !finite {
        return Err(failed("the clip holds values that are no finite numbers".to_owned()));
    }
    let size = format!("{}x{}", clip.size()[3], clip.size()[2]);
    // A name of its own: another worker on the same cache may be at the same clip.
    let draft = tempfile::Builder::new().suffix(".mp4").tempfile_in(partial);
    let draft = draft.map_err(|error| failed(error.to_string()))?;
    let rate = frame_rate.to_string();
    let mut command = Command::new(program);
    command
        .args([
            "-nostdin", "-v", "error", "-y", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", &size,
        ])
        .args([
            "-r",
            &rate,
            "-i",
            "-",
            "-an",
            "-c:v",
            "libx264",
            "-pix_fmt",
            "yuv420p",
            "-crf",
            RATE_FACTOR,
        ])
        .args([
            "-threads",
            THREADS,
            "-fflags",
            "+bitexact",
            "-flags:v",
            "+bitexact",
            "-f",
            "mp4",
        ])
        .arg(draft.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| failed(not_started(program, &error)))?;
    let frames = to_bytes(clip);
    // A program that has ended takes no more; why, it says itself.
    let sent = child.stdin.take().map_or(Ok(()), |mut input| input.write_all(&frames));
    let output = child.wait_with_output().map_err(|error| failed(error.to_string()))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(failed(format!("{program}: {} ({})", said.trim(), output.status)));
    }
    sent.map_err(|error| failed(error.to_string()))?;
    draft.persist(path).map_err(|error| failed(error.to_string()))?;
    Ok(())
}

/// Reads the frames of a video of the size `size`, scaled to `width` × `height`; of them the first `most`.
///
/// # Shapes
/// - output `[3, t, height, width]` in −1..1
///
/// # Errors
/// Where ffmpeg fails or gives no whole frames.
pub(super) fn read(program: &str, path: &Path, [height, width]: [i64; 2], most: i64) -> Result<Tensor, VBenchError> {
    let failed = |problem: String| VBenchError::Video {
        path: path.to_owned(),
        problem,
    };
    let scale = format!("scale={width}:{height}:flags=bicubic");
    let input = format!("file:{}", path.display());
    let output = Command::new(program)
        .args([
            "-nostdin",
            "-v",
            "error",
            "-i",
            &input,
            "-vf",
            &scale,
            "-fps_mode",
            "passthrough",
        ])
        .args([
            "-frames:v",
            &most.to_string(),
            "-f",
            "rawvideo",
            "-pix_fmt",
            "rgb24",
            "-",
        ])
        .output()
        .map_err(|error| failed(not_started(program, &error)))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(failed(format!("{program}: {} ({})", said.trim(), output.status)));
    }
    let frame = (3 * height * width) as usize;
    let frames = output.stdout.len() / frame;
    if frames == 0 || output.stdout.len() % frame != 0 {
        return Err(failed(format!("{} bytes are no whole frames", output.stdout.len())));
    }
    let bytes = Tensor::from_slice(&output.stdout).reshape([frames as i64, height, width, 3]);
    Ok(bytes.permute([3, 0, 1, 2]).to_kind(Kind::Float) / 127.5 - 1.0)
}

fn not_started(program: &str, error: &std::io::Error) -> String {
    format!("videos take an ffmpeg program on PATH or named by TEMPONAS_FFMPEG; `{program}` cannot be started: {error}")
}

/// Height and width within `side`, both even, for pictures of a clip.
#[must_use]
pub(super) fn small(size: &Preset, side: i64) -> [i64; 2] {
    let longer = size.height.max(size.width).max(1);
    [size.height, size.width].map(|length| {
        let scaled = if longer > side { length * side / longer } else { length };
        (scaled / 2 * 2).max(2)
    })
}

/// Those of `names` that are no whole video in `folder`.
pub(super) fn missing<'a>(folder: &Path, names: impl IntoIterator<Item = &'a String>) -> Vec<String> {
    let there = |name: &str| is_whole(&folder.join(name)).unwrap_or(false);
    names.into_iter().filter(|name| !there(name)).cloned().collect()
}

/// Whether a file is an MP4 up to its end: its boxes (ISO 14496-12, section 4.2) fill it, and the index, which ffmpeg
/// writes last, is among them. A machine that stops may keep a file's name and lose its end.
fn is_whole(path: &Path) -> std::io::Result<bool> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    let (mut at, mut has_index) = (0u64, false);
    while at < length {
        let mut head = [0; 8];
        file.seek(SeekFrom::Start(at))?;
        file.read_exact(&mut head)?;
        let [a, b, c, d, kind @ ..] = head;
        let size = match u32::from_be_bytes([a, b, c, d]) {
            // A long box: its size follows.
            1 => {
                let mut long = [0; 8];
                file.read_exact(&mut long)?;
                u64::from_be_bytes(long)
            }
            size => size.into(),
        };
        if size < head.len() as u64 {
            return Ok(false);
        }
        has_index |= kind == *b"moov";
        at = at.saturating_add(size);
    }
    Ok(has_index && at == length)
}

/// Whether a folder's disk takes `a` and `A` for one name.
///
/// # Errors
/// What the system says.
pub(super) fn ignores_case(folder: &Path) -> std::io::Result<bool> {
    let probe = tempfile::Builder::new()
        .prefix("case-")
        .suffix(".lower")
        .tempfile_in(folder)?;
    let upper = probe.path().with_extension("LOWER");
    Ok(upper.exists())
}
