//! What the operating system tells of this process and this device.

use std::fs;
use std::path::Path;

/// Memory of this process that is in use right now, in bytes; none where the system does not tell.
#[must_use]
pub fn resident_bytes() -> Option<u64> {
    status("VmRSS")
}

/// The most memory that this process had in use since [`reset_peak`], in bytes.
#[must_use]
pub fn peak_bytes() -> Option<u64> {
    status("VmHWM")
}

/// Counts the peak from now on; false where the system cannot (see proc(5), `clear_refs`).
#[must_use]
pub fn reset_peak() -> bool {
    fs::write("/proc/self/clear_refs", "5").is_ok()
}

fn status(key: &str) -> Option<u64> {
    kibibytes(&fs::read_to_string("/proc/self/status").ok()?, key)
}

fn kibibytes(text: &str, key: &str) -> Option<u64> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    let number: u64 = line.split_whitespace().next()?.parse().ok()?;
    number.checked_mul(1024)
}

/// Has every allocation fail that takes this process more than so many bytes above what it holds now.
#[cfg(target_os = "linux")]
pub fn limit_memory(bytes: u64) -> std::io::Result<()> {
    use rustix::process::{Resource, Rlimit, setrlimit};
    let held = status("VmData").unwrap_or(0);
    let most = Some(held.saturating_add(bytes));
    let limit = Rlimit {
        current: most,
        maximum: most,
    };
    Ok(setrlimit(Resource::Data, limit)?)
}

/// Limits are known on Linux alone.
#[cfg(not(target_os = "linux"))]
pub fn limit_memory(_: u64) -> std::io::Result<()> {
    Ok(())
}

/// Ends this process when its parent is gone: what nobody waits for should not hold the device.
pub fn end_with_parent() {
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL)) {
        tracing::debug!(%error, "cannot end with the parent");
    }
}

/// How long this thread has held a core, in seconds.
#[must_use]
pub fn thread_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

/// How many processes the kernel has ended for want of memory; none where it does not tell.
#[must_use]
pub fn out_of_memory_kills() -> Option<u64> {
    let text = fs::read_to_string("/proc/vmstat").ok()?;
    text.lines()
        .find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

/// Each thermal zone's temperature, such as `x86_pkg_temp 45.0 °C`; empty where none can be read.
#[must_use]
pub fn thermal() -> Vec<String> {
    thermal_below(Path::new("/sys/class/thermal"))
}

fn thermal_below(folder: &Path) -> Vec<String> {
    let zones = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path());
    let zone = |path: std::path::PathBuf| {
        let named = path.file_name()?.to_str()?.starts_with("thermal_zone");
        let kind = fs::read_to_string(path.join("type")).ok().filter(|_| named)?;
        let millidegrees: f64 = fs::read_to_string(path.join("temp")).ok()?.trim().parse().ok()?;
        Some(format!("{} {:.1} °C", kind.trim(), millidegrees / 1000.0))
    };
    let mut all: Vec<String> = zones.filter_map(zone).collect();
    all.sort();
    all
}

/// The device for people: the board's or phone's name where it has one, else the processor's, and the system.
#[must_use]
pub fn description() -> String {
    let model = fs::read_to_string("/proc/device-tree/model").ok();
    let model = model.map(|name| name.trim_matches(['\0', '\n', ' ']).to_owned());
    let model = model
        .filter(|name| !name.is_empty())
        .unwrap_or_else(job_client::host::processor);
    format!("{model}, {}", operating_system())
}

fn operating_system() -> String {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let name = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let name = name.map_or(std::env::consts::OS, |name| name.trim_matches('"'));
    format!("{name} {} {}", kernel.trim(), std::env::consts::ARCH).replace("  ", " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_of_proc_are_read_in_bytes() {
        let text = "VmPeak:\t 9 kB\nVmHWM:\t   1234 kB\nVmRSS:\tmany kB\n";
        assert_eq!(kibibytes(text, "VmHWM"), Some(1234 * 1024));
        assert_eq!(kibibytes(text, "VmRSS"), None);
        assert_eq!(kibibytes(text, "VmData"), None);
    }

    #[test]
    fn zones_that_cannot_be_read_are_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let zone = |name: &str, temperature: &str| {
            let path = folder.path().join(name);
            fs::create_dir(&path).unwrap();
            fs::write(path.join("type"), "cpu\n").unwrap();
            fs::write(path.join("temp"), temperature).unwrap();
        };
        zone("thermal_zone0", "45500\n");
        zone("thermal_zone1", "hot");
        zone("cooling_device0", "1");
        assert_eq!(thermal_below(folder.path()), ["cpu 45.5 °C"]);
    }

    #[test]
    fn a_threads_time_grows_while_it_works() {
        let before = thread_seconds();
        let sum: u64 = (0..2_000_000_u64).map(std::hint::black_box).sum();
        assert!(std::hint::black_box(sum) > 0 && thread_seconds() > before);
    }
}
