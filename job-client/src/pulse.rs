//! What a running job tells, and whether it should go on.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use protocol::artifacts::ArtifactRef;
use protocol::jobs::{CurvePoint, DeviceSeconds};
use protocol::{Figure, Metrics};
use tokio::sync::Notify;

/// The end of the log that travels with a failure.
const LOG_BYTES: usize = 60 * 1024;
/// The end of the log that travels with a heartbeat.
const HEARTBEAT_LOG_BYTES: usize = 8 * 1024;

/// What a job tells for its heartbeats, and whether it should go on.
#[derive(Debug, Default)]
pub struct Pulse {
    state: Mutex<State>,
    stop: AtomicBool,
    /// Something was told that should not wait for the next heartbeat.
    pub urgent: Notify,
    /// A checkpoint waits for its upload, or the job has ended.
    pub to_upload: Notify,
}

#[derive(Debug, Default)]
struct State {
    news: News,
    saved: Option<ArtifactRef>,
    ended: bool,
    log: String,
    /// Lines of the log ever written, and those that the coordinator knows of.
    lines: u64,
    lines_told: u64,
}

/// What the next heartbeat carries.
#[derive(Debug, Default, Clone)]
pub struct News {
    /// Share done, 0 to 1.
    pub progress: f64,
    /// What the job is doing.
    pub status: Option<String>,
    /// Points of the curve that the coordinator does not know.
    pub curve: Vec<CurvePoint>,
    /// Figures so far.
    pub metrics: Metrics,
    /// What the attempt has held its device for.
    pub device_seconds: DeviceSeconds,
    /// The newest uploaded checkpoint, where the coordinator does not know of it.
    pub checkpoint: Option<ArtifactRef>,
    /// The end of the log, where the coordinator does not know it.
    pub log: Option<String>,
    lines: u64,
}

impl Pulse {
    /// Of a job that is done.
    #[must_use]
    pub fn done() -> Self {
        let pulse = Self::default();
        pulse.lock().news.progress = 1.0;
        pulse
    }

    /// Asks the job to end.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Whether the job was asked to end.
    #[must_use]
    pub fn stops(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// What the next heartbeat carries.
    #[must_use]
    pub fn news(&self) -> News {
        let state = self.lock();
        News {
            log: (state.lines > state.lines_told).then(|| last_lines(&state.log, HEARTBEAT_LOG_BYTES).to_owned()),
            lines: state.lines,
            ..state.news.clone()
        }
    }

    /// Takes out what a heartbeat has delivered; what came meanwhile stays.
    pub fn delivered(&self, delivered: &News) {
        let mut state = self.lock();
        state.lines_told = state.lines_told.max(delivered.lines);
        let news = &mut state.news;
        news.curve.drain(..delivered.curve.len().min(news.curve.len()));
        if news.checkpoint == delivered.checkpoint {
            news.checkpoint = None;
        }
    }

    /// The checkpoint that waits for its upload.
    #[must_use]
    pub fn saved(&self) -> Option<ArtifactRef> {
        self.lock().saved.clone()
    }

    /// Has the next heartbeat, which goes out at once, tell of an uploaded checkpoint.
    pub fn uploaded(&self, checkpoint: ArtifactRef) {
        let mut state = self.lock();
        if state.saved.as_ref() == Some(&checkpoint) {
            state.saved = None;
        }
        state.news.checkpoint = Some(checkpoint);
        drop(state);
        self.urgent.notify_one();
    }

    /// Notes that the job has ended; its last checkpoint is still of use, or not.
    pub fn end(&self, checkpoint_counts: bool) {
        let mut state = self.lock();
        state.ended = true;
        if !checkpoint_counts {
            state.saved = None;
        }
        drop(state);
        self.to_upload.notify_one();
    }

    /// Whether the job has ended.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.lock().ended
    }

    /// The end of the attempt's log.
    #[must_use]
    pub fn log(&self) -> String {
        self.lock().log.clone()
    }

    /// Says what the attempt has held its device for so far.
    pub fn spent(&self, seconds: DeviceSeconds) {
        self.lock().news.device_seconds = seconds;
    }

    /// Says how far the job is, a share from 0 to 1, and what it is doing.
    pub fn progress(&self, share: f64, status: &str) {
        let news = &mut self.lock().news;
        news.progress = share.clamp(0.0, 1.0);
        if news.status.as_deref() != Some(status) {
            news.status = Some(status.to_owned());
        }
    }

    /// Adds a line to the attempt's log.
    pub fn write(&self, line: &str) {
        tracing::info!("{line}");
        let mut state = self.lock();
        state.lines += 1;
        let log = &mut state.log;
        log.push_str(&chrono::Utc::now().format("%H:%M:%S ").to_string());
        log.push_str(line);
        log.push('\n');
        if log.len() > LOG_BYTES {
            *log = last_lines(log, LOG_BYTES / 2).to_owned();
        }
    }

    /// Tells a point of the curve.
    pub fn curve(&self, point: CurvePoint) {
        self.lock().news.curve.push(point);
    }

    /// Tells figures so far; those of other names stand. What is no finite number is not told.
    pub fn figures(&self, figures: impl IntoIterator<Item = (String, Figure)>) {
        let finite = figures
            .into_iter()
            .filter(|(_, figure)| figure.value.is_finite() && figure.standard_error.is_finite());
        self.lock().news.metrics.extend(finite);
    }

    /// Has a checkpoint that is kept uploaded while the job goes on.
    pub fn save(&self, checkpoint: ArtifactRef) {
        self.lock().saved = Some(checkpoint);
        self.to_upload.notify_one();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The whole lines within the last `bytes` of a log.
fn last_lines(log: &str, bytes: usize) -> &str {
    let Some(cut) = log.len().checked_sub(bytes).filter(|&cut| cut > 0) else {
        return log;
    };
    let line_end = log.bytes().enumerate().skip(cut - 1).find(|&(_, byte)| byte == b'\n');
    &log[line_end.map_or(log.len(), |(at, _)| at + 1)..]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(step: u64) -> CurvePoint {
        CurvePoint { step, loss: 1.0 }
    }

    #[test]
    fn what_a_heartbeat_could_not_deliver_goes_with_the_next_in_order() {
        let pulse = Pulse::default();
        pulse.lock().news.curve = vec![point(1)];
        let first = pulse.news();
        pulse.lock().news.curve.push(point(2));
        assert_eq!(pulse.news().curve, [point(1), point(2)], "the first was not delivered");
        pulse.delivered(&first);
        assert_eq!(pulse.news().curve, [point(2)]);
        pulse.delivered(&pulse.news());
        assert!(pulse.news().curve.is_empty());
    }

    #[test]
    fn a_long_log_keeps_its_end() {
        let pulse = Pulse::default();
        for line in 0..4000 {
            pulse.write(&format!("line {line} of a log that is long"));
        }
        let log = pulse.log();
        assert!(log.len() <= LOG_BYTES && log.ends_with("line 3999 of a log that is long\n"));
        assert!(log.lines().all(|line| line.contains("line ")), "lines are whole");
    }

    #[test]
    fn figures_stand_until_the_next_and_only_numbers_are_told() {
        let pulse = Pulse::default();
        let tell = |name: &str, value| {
            let standard_error = 0.0;
            pulse.figures([(name.to_owned(), Figure { value, standard_error })]);
        };
        tell("train_loss", 0.5);
        tell("quality", 0.7);
        tell("train_loss", 0.25);
        tell("color", f64::NAN);
        let news = pulse.news();
        pulse.delivered(&news);
        let told = pulse.news().metrics;
        let told: Vec<_> = told
            .iter()
            .map(|(name, figure)| (name.as_str(), figure.value))
            .collect();
        assert_eq!(told, [("quality", 0.7), ("train_loss", 0.25)]);
    }

    #[test]
    fn the_end_of_the_log_goes_with_heartbeats_until_it_is_delivered() {
        let pulse = Pulse::default();
        assert_eq!(pulse.news().log, None);
        for line in 0..400 {
            pulse.write(&format!("line {line} of a log that is long"));
        }
        let first = pulse.news();
        let told = first.log.clone().unwrap();
        assert!(told.len() <= HEARTBEAT_LOG_BYTES && told.len() > HEARTBEAT_LOG_BYTES / 2);
        assert!(told.lines().all(|line| line.contains("line ")), "lines are whole");
        pulse.write("a line during the heartbeat");
        pulse.delivered(&first);
        let second = pulse.news();
        assert!(second.log.as_ref().unwrap().ends_with("a line during the heartbeat\n"));
        pulse.delivered(&second);
        assert_eq!(pulse.news().log, None);
    }
}
