//! Video files, through an ffmpeg program.

use std::fs::File;
use std::io::{Read, Seek};
use std::ops::ControlFlow;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};

use super::decode::{BACKGROUND, Picture, few_enough};
use super::footage::{Cover, Footage};
use crate::data::{CHANNELS, DataError, FRAME_BYTES, SIDE};

/// Names the program where it is not `ffmpeg` on PATH.
const SETTING: &str = "TEMPONAS_FFMPEG";
/// Pictures a second that a video is read at for [`read`].
const RATE: u64 = 25;
/// What [`read`] takes of a video, in seconds; just above the most pictures of a clip.
const MOST_SECONDS: u64 = 161;
/// Pictures as they are shown, were the pixels of the file no squares.
const SQUARE_PIXELS: &str = "scale=iw*sar:ih,setsar=1";
/// The triangle kernel, as for pictures that are read without ffmpeg, with the same bytes on every processor.
const SCALING: &str = "flags=bilinear+accurate_rnd+full_chroma_int+full_chroma_inp+bitexact";

/// The program: named by `TEMPONAS_FFMPEG`, else `ffmpeg` on PATH.
pub(crate) fn program() -> String {
    std::env::var(SETTING).unwrap_or_else(|_| "ffmpeg".to_owned())
}

/// Reads all pictures of a video, fitted into the square.
pub(super) fn read(path: &Path, program: &str) -> Result<Vec<Picture>, DataError> {
    let call = Call { path, program };
    let [red, green, blue] = BACKGROUND;
    let filter = format!(
        "fps={RATE},scale={SIDE}:{SIDE}:force_original_aspect_ratio=decrease,\
         pad={SIDE}:{SIDE}:-1:-1:color=0x{red:02X}{green:02X}{blue:02X}"
    );
    let seconds = MOST_SECONDS.to_string();
    let bytes = call.output(&["-vf", &filter, "-t", &seconds, "-f", "rawvideo", "-pix_fmt", "rgb24"])?;
    if !bytes.len().is_multiple_of(FRAME_BYTES) {
        return Err(call.failed(format!("gave {} bytes, no whole pictures", bytes.len())));
    }
    let pictures: Vec<Picture> = bytes
        .chunks(FRAME_BYTES)
        .map(|pixels| Picture {
            shown_ms: 1000 / RATE,
            pixels: pixels.to_vec(),
        })
        .collect();
    few_enough(path, pictures.len())?;
    Ok(pictures)
}

/// Decodes a video once for its size and the times of its pictures; no pixels leave ffmpeg.
pub(super) fn probe(path: &Path, program: &str) -> Result<Footage, DataError> {
    let call = Call { path, program };
    // What cannot be decoded whole is an error here, where it can be passed over, and not halfway through a shard.
    let listing = call.output(&[
        "-xerror",
        "-fps_mode",
        "passthrough",
        "-vf",
        SQUARE_PIXELS,
        "-f",
        "framecrc",
    ])?;
    of_listing(&String::from_utf8_lossy(&listing)).map_err(|problem| call.failed(problem))
}

/// Reads what the muxer `framecrc` writes: comments `#tb 0: 1/25` and `#dimensions 0: 640x272`, then a line
/// `stream, dts, pts, duration, size, checksum` for each picture.
fn of_listing(listing: &str) -> Result<Footage, String> {
    let header = |name: &str| {
        let line = listing
            .lines()
            .find_map(|line| line.strip_prefix(&format!("#{name} 0: ")));
        line.ok_or_else(|| format!("its listing has no `{name}`"))
    };
    let pair = |name: &str, between: char| -> Result<(u32, u32), String> {
        let text = header(name)?;
        let (a, b) = text.split_once(between).unwrap_or_default();
        match (a.trim().parse(), b.trim().parse()) {
            (Ok(a), Ok(b)) if a > 0 && b > 0 => Ok((a, b)),
            _ => Err(format!("`{name}` of its listing is {text}")),
        }
    };
    let (width, height) = pair("dimensions", 'x')?;
    let mut footage = Footage::new(width, height, pair("tb", '/')?);
    let mut last: Option<(i64, i64)> = None;
    for line in listing.lines().filter(|line| !line.starts_with('#')) {
        let field = |i: usize| {
            line.split(',')
                .nth(i)
                .and_then(|field| field.trim().parse::<i64>().ok())
        };
        let (Some(shown), Some(duration)) = (field(2), field(3)) else {
            return Err(format!("its listing holds the line `{line}`"));
        };
        if let Some((before, _)) = last {
            footage.push(shown.saturating_sub(before).max(0) as u64);
        }
        last = Some((shown, duration));
    }
    if let Some((_, duration)) = last {
        footage.push(duration.max(1) as u64);
    }
    Ok(footage)
}

/// Decodes the pictures `first..=last` of a video as it was probed, in order, until `visit` has seen enough. One
/// picture is held at a time.
///
/// # Shapes
/// - each picture: `cover.height × cover.width × 3` bytes
pub(super) fn stream(
    path: &Path,
    program: &str,
    (first, last): (usize, usize),
    cover: &Cover,
    visit: &mut dyn FnMut(&[u8]) -> ControlFlow<()>,
) -> Result<(), DataError> {
    let call = Call { path, program };
    let Cover {
        scaled: (scaled_height, scaled_width),
        height,
        width,
        top,
        left,
    } = cover;
    let filter = format!(
        "{SQUARE_PIXELS},select='between(n,{first},{last})',scale={scaled_width}:{scaled_height}:{SCALING},\
         crop={width}:{height}:{left}:{top}:exact=1"
    );
    let count = (last + 1 - first).to_string();
    let mut command = call.command(&[
        "-fps_mode",
        "passthrough",
        "-vf",
        &filter,
        "-frames:v",
        &count,
        "-f",
        "rawvideo",
        "-pix_fmt",
        "rgb24",
    ]);
    // A file takes any number of complaints; a full pipe would stop the program.
    let said = tempfile::tempfile().map_err(DataError::file(path))?;
    let complaints = said.try_clone().map_err(DataError::file(path))?;
    let running = command.stdout(Stdio::piped()).stderr(complaints).spawn();
    let child = running.map_err(|error| call.cannot_start(&error))?;
    let mut running = Running { child, said };
    let mut picture = vec![0; *height as usize * *width as usize * CHANNELS];
    for _ in first..=last {
        let whole = running.child.stdout.as_mut().map(|pipe| pipe.read_exact(&mut picture));
        if !matches!(whole, Some(Ok(()))) {
            return Err(call.failed(running.last_words()));
        }
        if visit(&picture).is_break() {
            break;
        }
    }
    Ok(())
}

/// An ffmpeg at work; it is ended when no one reads on.
struct Running {
    child: Child,
    said: File,
}

impl Running {
    /// What it said of its early end.
    fn last_words(&mut self) -> String {
        let _ = self.child.wait();
        let mut said = String::new();
        let _ = self.said.rewind().and_then(|()| self.said.read_to_string(&mut said));
        match without_addresses(&said).as_str() {
            "" => "ended before its last picture; the file has changed".to_owned(),
            said => format!("ended before its last picture: {said}"),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the program said, without the addresses of its memory (`[mov @ 0x5581c7a3e940]`): they are others each time.
fn without_addresses(said: &str) -> String {
    let mut parts = said.trim().split(" @ 0x");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |said, part| {
        said + part.trim_start_matches(|c: char| c.is_ascii_hexdigit())
    })
}

/// Whether someone else ended the program: one that is interrupted or terminated says nothing and gives 255.
fn was_ended(status: ExitStatus, said: &str) -> bool {
    const HANGUP_INTERRUPT_KILL_TERMINATE: [i32; 4] = [1, 2, 9, 15];
    let by_signal = status.signal();
    by_signal.is_some_and(|signal| HANGUP_INTERRUPT_KILL_TERMINATE.contains(&signal))
        || (status.code() == Some(255) && said.is_empty())
}

/// A call of the program on one file.
struct Call<'a> {
    path: &'a Path,
    program: &'a str,
}

impl Call<'_> {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.program);
        // `file:` keeps a name from being read as a protocol or an option.
        let input = format!("file:{}", self.path.display());
        command
            .args(["-nostdin", "-v", "error", "-i", &input, "-an", "-sn", "-map", "0:v:0"])
            .args(arguments)
            .arg("-")
            .stdin(Stdio::null());
        command
    }

    /// All that it writes.
    fn output(&self, arguments: &[&str]) -> Result<Vec<u8>, DataError> {
        let output = self.command(arguments).output();
        let Output { status, stdout, stderr } = output.map_err(|error| self.cannot_start(&error))?;
        if !status.success() {
            let said = without_addresses(&String::from_utf8_lossy(&stderr));
            if was_ended(status, &said) {
                return Err(DataError::Ended {
                    program: self.program.to_owned(),
                    path: self.path.to_owned(),
                    status,
                });
            }
            return Err(self.failed(format!("{said} ({status})")));
        }
        Ok(stdout)
    }

    fn cannot_start(&self, error: &std::io::Error) -> DataError {
        DataError::NoProgram {
            program: self.program.to_owned(),
            problem: format!(
                "{}: a video takes an ffmpeg program on PATH or named by {SETTING} (5.1 or newer; `scripts/ffmpeg` \
                 fetches one); this one cannot be started: {error}",
                self.path.display()
            ),
        }
    }

    fn failed(&self, problem: String) -> DataError {
        DataError::Program {
            program: self.program.to_owned(),
            problem: format!("{}: {problem}", self.path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_gives_size_and_times() {
        let listing = "#software: Lavf\n#tb 0: 1/10\n#dimensions 0: 64x48\n#sar 0: 1/1\n\
                       0,  2,  2,  1,  9216, 0xa4\n0,  3,  3,  1,  9216, 0xa5\n0,  7,  7,  2,  9216, 0xa6\n";
        let footage = of_listing(listing).unwrap();
        assert_eq!((footage.width, footage.height, footage.pictures()), (64, 48, 3));
        // Shown for 1, 4 and 2 tenths of a second.
        assert_eq!(footage.wanted(0, 7, 10.0), [0, 1, 1, 1, 1, 2, 2]);
    }

    #[test]
    fn complaints_are_the_same_in_each_run() {
        let said = "[mov,mp4 @ 0x55e8846821c0] moov atom not found\n[in#0 @ 0x7f01] Error opening @ 12\n";
        assert_eq!(
            without_addresses(said),
            "[mov,mp4] moov atom not found\n[in#0] Error opening @ 12"
        );
        assert_eq!(without_addresses("\n"), "");
    }

    #[test]
    fn a_listing_that_is_none_is_told() {
        let error = |listing: &str| of_listing(listing).unwrap_err();
        assert_eq!(error(""), "its listing has no `dimensions`");
        assert_eq!(error("#dimensions 0: 0x4\n"), "`dimensions` of its listing is 0x4");
        let headers = "#tb 0: 1/10\n#dimensions 0: 64x48\n";
        assert_eq!(
            error(&format!("{headers}0, 1, x")),
            "its listing holds the line `0, 1, x`"
        );
    }
}
