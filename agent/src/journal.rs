//! What was measured, on disk from the moment it was: neither a lost connection nor the agent's death loses it.
//!
//! Each finding is a file of the job's folder, named by its batch (see [`batch_id`]): written whole, flushed and renamed
//! before it is sent. One that was sent is renamed again. The same job on the same device goes on from them, and the
//! coordinator stores a batch once, so an entry is neither lost nor doubled, wherever the process ends.
//!
//! A lease is noted as well. A process that finds the lease of its predecessor gives it back, so that the job goes on at
//! once and its death does not count as an attempt.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use job_client::files::write_atomically;
use job_client::{Client, ClientError};
use protocol::jobs::{DeviceSeconds, GraphProfile};
use protocol::leases::{FailureReport, LeasedJob};
use protocol::luts::SampleUpload;
use protocol::{JobId, LeaseToken};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Name of the file with a job's lease.
const LEASE: &str = "lease";
/// Findings of jobs that nobody asks for any more are kept so long.
const KEPT: Duration = Duration::from_secs(7 * 24 * 3600);
/// Deaths in a row, without a new finding between them, that do not count against a job.
const DEATHS: u32 = 20;

/// The folder of all that was measured.
#[derive(Debug, Clone)]
pub struct Journal(PathBuf);

/// A block's measurement.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// The device whose table it goes to.
    pub device: String,
    /// What goes to the table: one entry.
    pub upload: SampleUpload,
    /// All that was found of the graph.
    pub profile: GraphProfile,
}

#[derive(Debug, Serialize, Deserialize)]
struct Held {
    job_id: JobId,
    lease_token: LeaseToken,
    /// Findings when the lease was taken.
    findings: usize,
    /// Deaths before it without a finding between them.
    deaths: u32,
}

impl Journal {
    /// In a folder of the cache.
    #[must_use]
    pub fn new(cache: &Path) -> Self {
        Self(cache.join("measured"))
    }

    fn folder(&self, job: JobId) -> PathBuf {
        self.0.join(job.to_string())
    }

    /// Notes that this process holds the lease of a job; all leases before it have ended.
    ///
    /// # Errors
    /// What the system says.
    pub fn hold(&self, job: &LeasedJob) -> std::io::Result<()> {
        let findings = self.findings(job.job_id);
        let file = self.folder(job.job_id).join(LEASE);
        let before: Option<Held> = read(&file);
        let barren = before.filter(|before| before.findings == findings);
        for other in self.jobs().into_iter().filter(|other| *other != job.job_id) {
            let _ = fs::remove_file(self.folder(other).join(LEASE));
        }
        let held = Held {
            job_id: job.job_id,
            lease_token: job.lease_token,
            findings,
            deaths: barren.map_or(0, |before| before.deaths + 1),
        };
        write_json(&file, &held)
    }

    /// A finding of a job by its name, if there is one.
    #[must_use]
    pub fn finding<T: DeserializeOwned>(&self, job: JobId, name: &str) -> Option<T> {
        let folder = self.folder(job);
        read(&folder.join(format!("{name}.json"))).or_else(|| read(&folder.join(format!("{name}.sent"))))
    }

    /// Keeps a finding of a job; one that is not to be sent is `sent` at once.
    ///
    /// # Errors
    /// What the system says.
    pub fn keep<T: Serialize>(&self, job: JobId, name: &str, finding: &T, sent: bool) -> std::io::Result<()> {
        let ending = if sent { "sent" } else { "json" };
        write_json(&self.folder(job).join(format!("{name}.{ending}")), finding)
    }

    /// Sends what waits of a job. What the coordinator refuses for good stays on disk under another name.
    ///
    /// # Errors
    /// [`ClientError::Unreachable`] where the rest has to wait.
    pub async fn send(&self, client: &Client, job: JobId) -> Result<(), ClientError> {
        for file in files(&self.folder(job), "json") {
            let ending = match read::<Measured>(&file) {
                None => {
                    tracing::warn!(path = %file.display(), "not a measurement; put aside");
                    "refused"
                }
                Some(measured) => match client.samples(&measured.device, &measured.upload).await {
                    Ok(()) => "sent",
                    Err(error) if error.is_passing() => return Err(error),
                    // Someone else measured the block for the same job, and was first.
                    Err(ClientError::Refused { status, .. }) if status.as_u16() == 409 => "sent",
                    Err(error) => {
                        tracing::warn!(%error, path = %file.display(), "samples were refused; put aside");
                        "refused"
                    }
                },
            };
            if let Err(source) = fs::rename(&file, file.with_extension(ending)) {
                return Err(ClientError::Disk { path: file, source });
            }
        }
        Ok(())
    }

    /// Takes up what an earlier process left: sends what waits, gives its lease back, removes what is old.
    ///
    /// # Errors
    /// [`ClientError::Unreachable`] where it has to wait.
    pub async fn take_up(&self, client: &Client) -> Result<(), ClientError> {
        for job in self.jobs() {
            self.send(client, job).await?;
            let folder = self.folder(job);
            if let Some(held) = read::<Held>(&folder.join(LEASE)) {
                self.give_back(client, &held).await?;
            }
            if is_old(&folder) && files(&folder, "json").is_empty() {
                let _ = fs::remove_dir_all(&folder);
            }
        }
        Ok(())
    }

    /// A token whose lease has ended otherwise changes nothing.
    async fn give_back(&self, client: &Client, held: &Held) -> Result<(), ClientError> {
        let report = FailureReport {
            lease_token: held.lease_token,
            error: "the agent died".to_owned(),
            log: None,
            retry: true,
            released: held.deaths < DEATHS,
            device_seconds: DeviceSeconds::default(),
        };
        match client.failure(held.job_id, &report).await {
            Ok(()) => tracing::info!(job.id = %held.job_id, "the lease of an earlier process is given back"),
            Err(error) if error.is_passing() => return Err(error),
            Err(error) => tracing::debug!(job.id = %held.job_id, %error, "the lease had ended"),
        }
        Ok(())
    }

    fn jobs(&self) -> Vec<JobId> {
        let entries = fs::read_dir(&self.0).into_iter().flatten().flatten();
        entries
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .collect()
    }

    fn findings(&self, job: JobId) -> usize {
        let folder = self.folder(job);
        files(&folder, "json").len() + files(&folder, "sent").len()
    }
}

fn files(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path());
    let mut files: Vec<PathBuf> = entries
        .filter(|path| path.extension().is_some_and(|it| it == ending))
        .collect();
    files.sort();
    files
}

fn is_old(folder: &Path) -> bool {
    let changed = fs::metadata(folder).and_then(|metadata| metadata.modified());
    changed.is_ok_and(|changed| SystemTime::now().duration_since(changed).is_ok_and(|age| age > KEPT))
}

fn read<T: DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

fn write_json(path: &Path, value: &impl Serialize) -> std::io::Result<()> {
    write_atomically(path, &serde_json::to_vec(value)?)
}

#[cfg(test)]
mod tests {
    use protocol::jobs::{JobInput, ProfileInput};

    use super::*;

    fn leased() -> LeasedJob {
        serde_json::from_value(serde_json::json!({
            "job_id": JobId::new(),
            "lease_token": LeaseToken::new(),
            "expires_at": "2026-01-01T00:00:00Z",
            "heartbeat_seconds": 1,
            "attempt": 1,
            "input": JobInput::Profile(ProfileInput { space: String::new(), blocks: vec![], graphs: vec![] }),
        }))
        .unwrap()
    }

    #[test]
    fn deaths_count_until_something_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let (journal, job) = (Journal::new(folder.path()), leased());
        let deaths = || read::<Held>(&journal.folder(job.job_id).join(LEASE)).unwrap().deaths;
        journal.hold(&job).unwrap();
        assert_eq!(deaths(), 0);
        journal.hold(&job).unwrap();
        journal.hold(&job).unwrap();
        assert_eq!(deaths(), 2);
        journal.keep(job.job_id, "a", &1, false).unwrap();
        journal.hold(&job).unwrap();
        assert_eq!(deaths(), 0);
    }

    #[test]
    fn a_finding_is_found_again_whether_it_was_sent_or_not() {
        let folder = tempfile::tempdir().unwrap();
        let (journal, job) = (Journal::new(folder.path()), JobId::new());
        assert_eq!(journal.finding::<u32>(job, "a"), None);
        journal.keep(job, "a", &7, false).unwrap();
        journal.keep(job, "b", &8, true).unwrap();
        assert_eq!(
            (journal.finding(job, "a"), journal.finding(job, "b")),
            (Some(7), Some(8))
        );
        // What a crash of the disk left is no finding.
        fs::write(journal.folder(job).join("c.json"), "{").unwrap();
        assert_eq!(journal.finding::<u32>(job, "c"), None);
    }

    #[test]
    fn a_new_lease_ends_the_note_of_another_job() {
        let folder = tempfile::tempdir().unwrap();
        let (journal, first, second) = (Journal::new(folder.path()), leased(), leased());
        journal.hold(&first).unwrap();
        journal.hold(&second).unwrap();
        assert!(!journal.folder(first.job_id).join(LEASE).exists());
        assert!(journal.folder(second.job_id).join(LEASE).exists());
    }
}
