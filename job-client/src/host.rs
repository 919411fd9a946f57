//! What a worker says of the machine it runs on, and when it stops.

use std::path::Path;

use tokio::io::AsyncReadExt;
use tokio::signal::unix::{SignalKind, signal};

/// Waits until the process is asked to end: by a signal or, where it counts, by the end of standard input.
pub async fn wait_for_stop(stdin_counts: bool) {
    let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        tracing::error!("signals cannot be watched; only a kill ends this worker");
        return std::future::pending().await;
    };
    let stdin_closed = async {
        if !stdin_counts {
            return std::future::pending().await;
        }
        let mut stdin = tokio::io::stdin();
        let mut ignored = [0; 64];
        while matches!(stdin.read(&mut ignored).await, Ok(read) if read > 0) {}
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        () = stdin_closed => {}
    }
    tracing::info!("stopping");
}

/// Memory that is free for a job, in bytes; 4 GiB where the system does not tell.
#[must_use]
pub fn available_memory() -> u64 {
    let kib = proc_value(Path::new("/proc/meminfo"), "MemAvailable");
    kib.and_then(|text| text.split_whitespace().next()?.parse::<u64>().ok())
        .map_or(4 << 30, |kib| kib * 1024)
}

/// The processor's name.
#[must_use]
pub fn processor() -> String {
    proc_value(Path::new("/proc/cpuinfo"), "model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned())
}

/// This host, for people.
#[must_use]
pub fn name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    if name.trim().is_empty() {
        "worker".to_owned()
    } else {
        name.trim().to_owned()
    }
}

fn proc_value(file: &Path, key: &str) -> Option<String> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find(|line| line.starts_with(key))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// A processor's name as the name of a device.
#[must_use]
pub fn slug(processor: &str) -> String {
    let plain = processor.replace("(R)", "").replace("(TM)", "").to_lowercase();
    let words: Vec<&str> = plain
        .split(|c: char| !c.is_ascii_alphanumeric())
        .filter(|word| !word.is_empty())
        .collect();
    words.join("-").chars().take(40).collect()
}
