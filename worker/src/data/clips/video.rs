//! Video files, through an ffmpeg program.

use std::path::Path;
use std::process::Command;

use super::decode::{BACKGROUND, Picture, few_enough};
use crate::data::{DataError, FRAME_BYTES, SIDE};

/// Names the program where it is not `ffmpeg` on PATH.
const SETTING: &str = "TEMPONAS_FFMPEG";
/// Pictures a second that a video is read at.
const RATE: u64 = 25;
/// What is read of a video, in seconds; just above the most pictures of a clip.
const MOST_SECONDS: u64 = 161;

/// The program to call.
pub(super) fn program() -> String {
    std::env::var(SETTING).unwrap_or_else(|_| "ffmpeg".to_owned())
}

/// Reads all pictures of a video.
pub(super) fn read(path: &Path, program: &str) -> Result<Vec<Picture>, DataError> {
    let failed = |problem: String| DataError::Program {
        program: program.to_owned(),
        problem: format!("{}: {problem}", path.display()),
    };
    let [red, green, blue] = BACKGROUND;
    let filter = format!(
        "fps={RATE},scale={SIDE}:{SIDE}:force_original_aspect_ratio=decrease,\
         pad={SIDE}:{SIDE}:-1:-1:color=0x{red:02X}{green:02X}{blue:02X}"
    );
    // `file:` keeps a name from being read as a protocol or an option.
    let input = format!("file:{}", path.display());
    let output = Command::new(program)
        .args(["-nostdin", "-v", "error", "-i", &input, "-an", "-sn", "-vf", &filter])
        .args([
            "-t",
            &MOST_SECONDS.to_string(),
            "-f",
            "rawvideo",
            "-pix_fmt",
            "rgb24",
            "-",
        ])
        .output()
        .map_err(|error| {
            failed(format!(
                "a video takes an ffmpeg program on PATH or named by {SETTING}; this one cannot be started: {error}"
            ))
        })?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(failed(format!("{} ({})", said.trim(), output.status)));
    }
    if !output.stdout.len().is_multiple_of(FRAME_BYTES) {
        return Err(failed(format!("gave {} bytes, no whole pictures", output.stdout.len())));
    }
    let pictures: Vec<Picture> = output
        .stdout
        .chunks(FRAME_BYTES)
        .map(|pixels| Picture {
            shown_ms: 1000 / RATE,
            pixels: pixels.to_vec(),
        })
        .collect();
    few_enough(path, pictures.len())?;
    Ok(pictures)
}
