//! The postmaster of a cluster, as its `postmaster.pid` tells.

use std::{fs, io, path::Path};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};

const FILE: &str = "postmaster.pid";

/// The line on which the postmaster says whether it takes connections.
const STATUS_LINE: usize = 7;

/// A postmaster that is alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Postmaster {
    pid: Pid,
    ready: bool,
}

impl Postmaster {
    /// The living postmaster of a cluster; a file that a dead one left counts as none.
    pub(super) fn of(cluster: &Path) -> Option<Self> {
        let text = fs::read_to_string(cluster.join(FILE)).ok()?;
        let pid = pid(&text)?;
        if test_kill_process(pid).is_err() || !works_in(pid, cluster) {
            return None;
        }
        let ready = text
            .lines()
            .nth(STATUS_LINE)
            .is_some_and(|status| status.trim() == "ready");
        Some(Self { pid, ready })
    }

    /// Whether it takes connections.
    pub(super) fn is_ready(self) -> bool {
        self.ready
    }

    /// Asks for a fast shutdown: transactions are rolled back, connections closed, data written.
    pub(super) fn interrupt(self) {
        if let Err(error) = kill_process(self.pid, Signal::INT) {
            tracing::warn!(%error, "cannot ask Postgres to stop");
        }
    }

    /// Where the number of a dead postmaster was given to another process, Postgres would take that for
    /// its predecessor and refuse to start. Our own number it knows as its parent's and ignores; the rest
    /// of the file stays, because by it Postgres finds survivors that still use the cluster's memory.
    pub(super) fn disown_reused_pid(cluster: &Path) -> io::Result<()> {
        let path = cluster.join(FILE);
        let Ok(text) = fs::read_to_string(&path) else {
            return Ok(());
        };
        let reused = pid(&text).is_some_and(|pid| test_kill_process(pid).is_ok() && !works_in(pid, cluster));
        if !reused {
            return Ok(());
        }
        let rest = text.split_once('\n').map_or("", |(_, rest)| rest);
        fs::write(path, format!("{}\n{rest}", std::process::id()))
    }
}

fn pid(text: &str) -> Option<Pid> {
    Pid::from_raw(text.lines().next()?.trim().parse().ok().filter(|pid| *pid > 0)?)
}

/// A postmaster's working folder is its cluster. Where the system does not tell, it is believed.
fn works_in(pid: Pid, cluster: &Path) -> bool {
    let status = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
    let is_zombie = status.rsplit(") ").next().is_some_and(|rest| rest.starts_with('Z'));
    if is_zombie {
        return false;
    }
    match fs::read_link(format!("/proc/{}/cwd", pid.as_raw_nonzero())) {
        Ok(folder) => folder == cluster,
        Err(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster_with(pid: u32) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let text = format!("{pid}\n/data\n1700000000\n5432\n/socket\n\n 123 456\nready   \n");
        fs::write(folder.path().join(FILE), text).unwrap();
        folder
    }

    #[test]
    fn a_file_whose_process_is_gone_or_is_another_is_no_postmaster() {
        assert_eq!(Postmaster::of(cluster_with(4_000_000).path()), None);
        assert_eq!(
            Postmaster::of(cluster_with(std::process::id()).path()),
            None,
            "works elsewhere"
        );
        assert_eq!(Postmaster::of(tempfile::tempdir().unwrap().path()), None);
    }

    #[test]
    fn a_reused_number_is_replaced_and_the_memory_key_kept() {
        let mut other = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let folder = cluster_with(other.id());
        Postmaster::disown_reused_pid(folder.path()).unwrap();
        other.kill().unwrap();
        other.wait().unwrap();
        let text = fs::read_to_string(folder.path().join(FILE)).unwrap();
        assert_eq!(text.lines().next(), Some(std::process::id().to_string().as_str()));
        assert_eq!(text.lines().nth(6), Some(" 123 456"));
    }
}
