//! A program at work: its lines go to a log, and it ends when it is not wanted, when its time is up, and with us.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

/// How often a silent program is looked after.
const LOOK: Duration = Duration::from_millis(100);
/// How long a program has to end by itself after its standard input was closed.
const GRACE: Duration = Duration::from_secs(2);
/// Lines of its end that an error repeats.
const LAST_LINES: usize = 12;
/// The longest line, in bytes; longer ones are cut.
const LONGEST_LINE: usize = 2000;

/// Why a program did not end well.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProcessError {
    /// It could not be started, or not be waited for.
    #[error("cannot be run: {0}")]
    System(#[from] std::io::Error),
    /// It said so.
    #[error("ended with {status}; its last words:\n{last}")]
    Failed {
        /// How it ended.
        status: ExitStatus,
        /// The end of what it wrote.
        last: String,
    },
    /// Its time was up.
    #[error("did not end within {} s; its last words:\n{last}", .limit.as_secs())]
    TooLong {
        /// The time it had.
        limit: Duration,
        /// The end of what it wrote.
        last: String,
    },
    /// It is not wanted any more.
    #[error("interrupted")]
    Interrupted,
}

/// A program with the process group that it began.
struct Program(Child);

impl Drop for Program {
    /// Whatever way it ended, nothing that it started stays.
    fn drop(&mut self) {
        let group = i32::try_from(self.0.id()).ok().and_then(Pid::from_raw);
        // An error says that nobody is left.
        let _ = group.map(|group| kill_process_group(group, Signal::KILL));
        let _ = self.0.wait();
    }
}

/// Runs a program to its end. Its standard input stays open meanwhile: a program that watches it ends with us, even where
/// we are killed. It has a process group of its own, which ends with it.
///
/// # Errors
/// Where it fails, takes longer than `limit`, or `goes_on` says no.
pub(crate) fn run(
    command: &mut Command,
    limit: Duration,
    said: &mut dyn FnMut(&str),
    goes_on: &mut dyn FnMut() -> bool,
) -> Result<(), ProcessError> {
    let started = Instant::now();
    let mut program = Program(
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()?,
    );
    let lines = listen(&mut program.0);
    let mut last = VecDeque::new();
    let status = loop {
        match lines.recv_timeout(LOOK) {
            Ok(line) => {
                said(&line);
                last.push_back(line);
                if last.len() > LAST_LINES {
                    last.pop_front();
                }
            }
            // A process that it left behind may hold the pipes open, and it may itself have closed them and go on.
            Err(silence) => {
                if let Some(status) = program.0.try_wait()? {
                    break status;
                }
                if silence == RecvTimeoutError::Disconnected {
                    std::thread::sleep(LOOK / 10);
                }
            }
        }
        if !goes_on() {
            ask_to_end(&mut program.0)?;
            return Err(ProcessError::Interrupted);
        }
        if started.elapsed() > limit {
            ask_to_end(&mut program.0)?;
            return Err(ProcessError::TooLong {
                limit,
                last: joined(last),
            });
        }
    };
    if status.success() {
        return Ok(());
    }
    Err(ProcessError::Failed {
        status,
        last: joined(last),
    })
}

fn joined(lines: VecDeque<String>) -> String {
    Vec::from(lines).join("\n")
}

/// Closes the program's standard input, which it takes for its end, and gives it some time.
fn ask_to_end(child: &mut Child) -> std::io::Result<()> {
    drop(child.stdin.take());
    let asked = Instant::now();
    while asked.elapsed() < GRACE && child.try_wait()?.is_none() {
        std::thread::sleep(LOOK / 4);
    }
    Ok(())
}

/// What the program writes, line by line.
fn listen(child: &mut Child) -> Receiver<String> {
    let (sender, lines) = channel();
    if let Some(output) = child.stdout.take() {
        forward(output, sender.clone());
    }
    if let Some(output) = child.stderr.take() {
        forward(output, sender);
    }
    lines
}

fn forward(output: impl Read + Send + 'static, lines: Sender<String>) {
    std::thread::spawn(move || {
        let mut output = BufReader::new(output);
        let mut bytes = Vec::new();
        while matches!(output.read_until(b'\n', &mut bytes), Ok(read) if read > 0) {
            // Of a progress bar, which returns to the start of its line, the last state counts.
            let text = String::from_utf8_lossy(&bytes);
            let line = text.trim_end().rsplit('\r').next().unwrap_or_default();
            let line: String = line.chars().take(LONGEST_LINE).collect();
            if !line.trim().is_empty() && lines.send(line).is_err() {
                return;
            }
            bytes.clear();
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn lines_of_both_outputs_are_heard_and_the_end_counts() {
        let mut lines = Vec::new();
        let mut command = shell("echo one; printf '10%%\\r50%%\\r100%%\\n'; echo two >&2");
        run(
            &mut command,
            GRACE * 10,
            &mut |line| lines.push(line.to_owned()),
            &mut || true,
        )
        .unwrap();
        lines.sort();
        assert_eq!(lines, ["100%", "one", "two"]);
    }

    #[test]
    fn a_failure_repeats_the_last_words() {
        let error = run(
            &mut shell("echo no weights; exit 3"),
            GRACE * 10,
            &mut |_| (),
            &mut || true,
        )
        .unwrap_err();
        let said = error.to_string();
        assert!(
            said.contains("exit status: 3") && said.ends_with("no weights"),
            "{said}"
        );
        let error = run(&mut Command::new("/nowhere/python"), GRACE, &mut |_| (), &mut || true).unwrap_err();
        assert!(matches!(error, ProcessError::System(_)), "{error}");
    }

    /// `cat` ends when its standard input closes; `sleep` takes no notice and is killed, without outputs too.
    #[test]
    fn a_program_that_is_not_wanted_or_too_slow_ends() {
        for script in ["exec cat", "exec sleep 1000", "exec sleep 1000 >&- 2>&-"] {
            let mut looks = 0;
            let mut twice = || {
                looks += 1;
                looks < 3
            };
            let started = Instant::now();
            let error = run(&mut shell(script), GRACE * 100, &mut |_| (), &mut twice).unwrap_err();
            assert!(matches!(error, ProcessError::Interrupted), "{error}");
            assert!(started.elapsed() < GRACE * 3);
        }
        let error = run(&mut shell("echo slow; exec cat"), LOOK, &mut |_| (), &mut || true).unwrap_err();
        assert!(
            matches!(&error, ProcessError::TooLong { last, .. } if last == "slow"),
            "{error}"
        );
    }

    fn runs(pid: &str) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // Ended, and not yet waited for by whoever has inherited it.
        let is_dead = stat.rsplit(") ").next().is_some_and(|state| state.starts_with('Z'));
        !stat.is_empty() && !is_dead
    }

    #[test]
    fn what_a_program_started_ends_with_it_however_it_ends() {
        for (end, wanted) in [
            ("exec cat", false),
            ("exit 0", true),
            ("exit 3", true),
            ("kill -9 $$", true),
        ] {
            let mut child = String::new();
            let script = format!("sleep 1000 & echo $!; {end}");
            let heard = std::cell::Cell::new(false);
            let ran = run(
                &mut shell(&script),
                GRACE * 10,
                &mut |line| {
                    assert!(runs(line) || wanted, "{line}");
                    heard.set(true);
                    child = line.to_owned();
                },
                &mut || wanted || !heard.get(),
            );
            assert_eq!(ran.is_ok(), end == "exit 0", "{end}: {ran:?}");
            let ended = Instant::now();
            while runs(&child) && ended.elapsed() < GRACE {
                std::thread::sleep(LOOK / 10);
            }
            assert!(!child.is_empty() && !runs(&child), "{end} left {child}");
        }
    }
}
