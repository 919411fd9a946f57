//! The share of time for which a GPU is busy, as its driver tells.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use tch::Device;

/// Time between two looks; the driver itself averages over up to a second.
const EVERY: Duration = Duration::from_millis(500);

/// A thread that asks `nvidia-smi` now and then.
#[derive(Debug)]
pub(super) struct Busy {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Vec<f64>>>,
}

impl Busy {
    /// Watches a CUDA device until [`Self::share`] is asked for; on any other device it does nothing.
    pub(super) fn watch(device: Device) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = match device {
            Device::Cuda(index) => Some(std::thread::spawn(move || {
                let mut shares = Vec::new();
                while !stopped.load(Ordering::Relaxed) {
                    shares.extend(utilization(index));
                    std::thread::sleep(EVERY);
                }
                shares
            })),
            _ => None,
        };
        Self { stop, thread }
    }

    /// Mean of what was seen, 0 to 1; none where nothing could be seen.
    pub(super) fn share(self) -> Option<f64> {
        self.stop.store(true, Ordering::Relaxed);
        let shares = self.thread?.join().ok()?;
        (!shares.is_empty()).then(|| shares.iter().sum::<f64>() / shares.len() as f64)
    }
}

/// Share of the driver's last period in which at least one kernel ran. The GPU is counted as CUDA counts it where all
/// are visible.
fn utilization(index: usize) -> Option<f64> {
    let output = Command::new("nvidia-smi")
        .args(["--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-i"])
        .arg(index.to_string())
        .output()
        .ok()?;
    percentage(&String::from_utf8_lossy(&output.stdout))
}

fn percentage(text: &str) -> Option<f64> {
    let percent: f64 = text.lines().next()?.trim().parse().ok()?;
    (0.0..=100.0).contains(&percent).then_some(percent / 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_processor_has_no_share_and_words_are_no_percentage() {
        assert_eq!(Busy::watch(Device::Cpu).share(), None);
        assert_eq!(percentage("97\n"), Some(0.97));
        assert_eq!(percentage("[N/A]\n"), None);
        assert_eq!(percentage("No devices were found\n"), None);
    }
}
