//! Starts the project's own programs as a user would and talks to them over REST.
//!
//! The programs are those that `cargo build --workspace` left beside the test binary; a test fails with
//! that command in its message when they are missing.

use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use protocol::{
    Page, SearchId,
    searches::{CandidateView, FrontView, SearchState, SearchView},
};
use serde::{Serialize, de::DeserializeOwned};

/// The repository's root.
#[must_use]
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .map_or_else(|| PathBuf::from("."), Path::to_path_buf)
}

/// A program of the workspace, built beside the running test.
///
/// # Errors
/// When it is not there, with the command that builds it.
pub fn program(name: &str) -> Result<PathBuf> {
    let test = std::env::current_exe()?;
    let folder = test
        .ancestors()
        .nth(2)
        .context("the test binary has no target folder")?;
    let path = folder.join(name);
    ensure!(
        path.is_file(),
        "{} is missing: run `cargo build --workspace` first",
        path.display()
    );
    Ok(path)
}

/// A process that is killed when it is dropped.
#[derive(Debug)]
pub struct Process(Child);

impl Process {
    fn start(command: &mut Command, log: &Path) -> Result<Self> {
        let log = std::fs::File::options().create(true).append(true).open(log)?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        Ok(Self(
            command.spawn().with_context(|| format!("cannot start {command:?}"))?,
        ))
    }

    /// Whether it has ended by itself.
    ///
    /// # Errors
    /// When the system does not tell.
    pub fn has_ended(&mut self) -> Result<bool> {
        Ok(self.0.try_wait()?.is_some())
    }

    /// Ends the process as `kill -9` does, and waits for it.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub fn kill(&mut self) -> Result<()> {
        self.0.kill().ok();
        self.0.wait()?;
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// How long a coordinator may take to answer.
pub const UNTIL_HEALTHY: Duration = Duration::from_secs(60);

/// A coordinator on a loopback port with its private Postgres cluster in a folder.
#[derive(Debug)]
pub struct Coordinator {
    /// Its folder; it survives a restart.
    pub folder: PathBuf,
    /// Such as `http://127.0.0.1:40123`.
    pub url: String,
    process: Process,
    http: reqwest::Client,
}

impl Coordinator {
    /// Starts a coordinator and waits until it answers.
    ///
    /// # Errors
    /// When it does not answer within [`UNTIL_HEALTHY`]; the message holds its log.
    pub async fn start(folder: &Path) -> Result<Self> {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        Self::start_on(folder, port).await
    }

    async fn start_on(folder: &Path, port: u16) -> Result<Self> {
        let address = format!("127.0.0.1:{port}");
        let mut command = Command::new(program("temponas")?);
        command
            .arg("serve")
            .args(["--listen", &address])
            .arg("--data-dir")
            .arg(folder);
        command
            .args(["--lease", "4s", "--heartbeat", "1s", "--sweep", "2s"])
            .env_remove("DATABASE_URL");
        let process = Process::start(&mut command, &folder.with_extension("coordinator.log"))?;
        let coordinator = Self {
            folder: folder.to_owned(),
            url: format!("http://{address}"),
            process,
            http: reqwest::Client::builder().timeout(Duration::from_secs(30)).build()?,
        };
        coordinator.wait_until_healthy().await?;
        Ok(coordinator)
    }

    async fn wait_until_healthy(&self) -> Result<()> {
        let deadline = Instant::now() + UNTIL_HEALTHY;
        while Instant::now() < deadline {
            if let Ok(reply) = self.http.get(format!("{}/healthz", self.url)).send().await
                && reply.status().is_success()
            {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        bail!(
            "the coordinator did not answer within {UNTIL_HEALTHY:?}; its log:\n{}",
            self.log()
        )
    }

    /// What the coordinator has logged, over all its restarts.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.with_extension("coordinator.log")).unwrap_or_default()
    }

    /// `kill -9`, then a new process on the same folder and port.
    ///
    /// # Errors
    /// As [`Coordinator::start`].
    pub async fn kill_and_restart(&mut self) -> Result<()> {
        self.process.kill()?;
        let port = self.url.rsplit(':').next().context("no port")?.parse()?;
        *self = Self::start_on(&self.folder, port).await?;
        Ok(())
    }

    /// `kill -9` of every process of the private Postgres cluster, and the wait until requests are answered again.
    ///
    /// # Errors
    /// When the cluster cannot be found or does not come back.
    pub async fn kill_postgres(&self) -> Result<()> {
        let pid_file = find(&self.folder, "postmaster.pid").context("no postmaster.pid below the data folder")?;
        let postmaster: u32 = std::fs::read_to_string(&pid_file)?
            .lines()
            .next()
            .context("empty")?
            .trim()
            .parse()?;
        for pid in children(postmaster)?.into_iter().chain([postmaster]) {
            // The shell's own `kill`: the program is not everywhere.
            Command::new("sh").arg("-c").arg(format!("kill -9 {pid}")).status()?;
        }
        self.wait_until_healthy().await
    }

    /// `GET` of a document.
    ///
    /// # Errors
    /// When the request fails or the answer is another document.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        let reply = self.http.get(format!("{}{path}", self.url)).send().await?;
        document(path, reply).await
    }

    /// `GET` of text.
    ///
    /// # Errors
    /// When the request fails.
    pub async fn text(&self, path: &str) -> Result<String> {
        Ok(self
            .http
            .get(format!("{}{path}", self.url))
            .send()
            .await?
            .error_for_status()?
            .text()
            .await?)
    }

    /// `POST` of a document.
    ///
    /// # Errors
    /// When the request fails or is refused.
    pub async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T> {
        let reply = self.http.post(format!("{}{path}", self.url)).json(body).send().await?;
        document(path, reply).await
    }

    /// `POST` of text under a media type.
    ///
    /// # Errors
    /// When the request fails or is refused.
    pub async fn post_text(&self, path: &str, media_type: &str, body: String) -> Result<()> {
        let request = self
            .http
            .post(format!("{}{path}", self.url))
            .header("content-type", media_type)
            .body(body);
        let reply = request.send().await?;
        let status = reply.status();
        ensure!(status.is_success(), "{path}: {status}: {}", reply.text().await?);
        Ok(())
    }

    /// Submits a space file with `temponas submit`, which uploads the trained parts in a folder for each dataset below
    /// `assets`.
    ///
    /// # Errors
    /// When it is refused.
    pub fn submit(&self, space: &Path, assets: &Path, device: &str, runtime: &str) -> Result<SearchId> {
        let mut command = Command::new(program("temponas")?);
        command.arg("submit").arg(space).arg("--assets").arg(assets);
        command.args(["--url", &self.url, "--device", device, "--runtime", runtime]);
        let output = command.output()?;
        let complaint = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success(),
            "temponas submit: {}: {complaint}",
            output.status
        );
        let id = String::from_utf8_lossy(&output.stdout);
        id.trim()
            .parse()
            .map_err(|error| anyhow::anyhow!("temponas submit printed `{id}`: {error}"))
    }

    /// Runs `temponas` with these arguments against this coordinator; answers what it printed.
    ///
    /// # Errors
    /// When it fails, with all that it said.
    pub fn temponas(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(program("temponas")?);
        said(command.args(arguments).args(["--url", &self.url]))
    }

    /// Every candidate of a search, by number.
    ///
    /// # Errors
    /// When a request fails.
    pub async fn candidates(&self, search: SearchId) -> Result<Vec<CandidateView>> {
        let mut all = Vec::new();
        let mut path = format!("/v1/searches/{search}/candidates?limit=100");
        loop {
            let page: Page<CandidateView> = self.get(&path).await?;
            all.extend(page.items);
            match page.next_cursor {
                Some(cursor) => path = format!("/v1/searches/{search}/candidates?limit=100&cursor={cursor}"),
                None => break,
            }
        }
        all.sort_by_key(|candidate| candidate.number);
        Ok(all)
    }

    /// The front.
    ///
    /// # Errors
    /// When the request fails.
    pub async fn front(&self, search: SearchId) -> Result<FrontView> {
        self.get(&format!("/v1/searches/{search}/front")).await
    }

    /// Waits until `done` says so; a coordinator that does not answer for a while is waited for.
    ///
    /// # Errors
    /// After `patience`, or when the search failed.
    pub async fn wait(
        &self,
        search: SearchId,
        patience: Duration,
        done: impl Fn(&SearchView) -> bool,
    ) -> Result<SearchView> {
        let deadline = Instant::now() + patience;
        let mut last = None;
        while Instant::now() < deadline {
            if let Ok(view) = self.get::<SearchView>(&format!("/v1/searches/{search}")).await {
                if view.state == SearchState::Failed {
                    bail!("the search failed: {:?}", view.state_reason);
                }
                if done(&view) {
                    return Ok(view);
                }
                last = Some(view);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let state = last.map(|view| (view.state, view.state_reason, view.budget));
        bail!(
            "not there after {patience:?}: {state:?}; the coordinator's log:\n{}",
            self.log()
        )
    }
}

/// A worker process beside a coordinator. It ships no trained parts: what it needs comes from the coordinator.
///
/// # Errors
/// When it cannot be started.
pub fn start_worker(coordinator: &Coordinator, device: &str, folder: &Path) -> Result<Process> {
    start_worker_with(coordinator, device, folder, &[])
}

/// As [`start_worker`], with more flags and their values.
///
/// # Errors
/// When it cannot be started.
pub fn start_worker_with(
    coordinator: &Coordinator,
    device: &str,
    folder: &Path,
    flags: &[(&str, &Path)],
) -> Result<Process> {
    let mut command = Command::new(program("temponas-worker")?);
    command.args([
        "run",
        "--server",
        &coordinator.url,
        "--device-name",
        device,
        "--threads",
        "1",
    ]);
    command.arg("--cache-dir").arg(folder);
    command.arg("--assets").arg(folder.join("nothing"));
    // What the test has found out is told by flags.
    command.env_remove("TEMPONAS_VBENCH_PYTHON");
    for (flag, value) in flags {
        command.arg(flag).arg(value);
    }
    Process::start(&mut command, &folder.with_extension("worker.log"))
}

/// A device agent beside a coordinator.
///
/// # Errors
/// When it cannot be started.
pub fn start_agent(coordinator: &Coordinator, device: &str, folder: &Path, library: &Path) -> Result<Process> {
    let mut command = Command::new(program("temponas-agent")?);
    command.args([
        "run",
        "--server",
        &coordinator.url,
        "--device-name",
        device,
        "--threads",
        "1",
    ]);
    command.arg("--cache-dir").arg(folder).arg("--library").arg(library);
    Process::start(&mut command, &folder.with_extension("agent.log"))
}

/// Runs a command to its end; answers what it printed.
///
/// # Errors
/// When it fails, with all that it said.
pub fn said(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {command:?}"))?;
    let [printed, complaint] = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    ensure!(
        output.status.success(),
        "{command:?} ended with {}:\n{printed}{complaint}",
        output.status
    );
    Ok(printed)
}

async fn document<T: DeserializeOwned>(path: &str, reply: reqwest::Response) -> Result<T> {
    let status = reply.status();
    let text = reply.text().await?;
    ensure!(status.is_success(), "{path}: {status}: {text}");
    serde_json::from_str(&text).with_context(|| format!("{path} answered {text}"))
}

fn find(folder: &Path, name: &str) -> Option<PathBuf> {
    let entries: Vec<PathBuf> = std::fs::read_dir(folder)
        .ok()?
        .flatten()
        .map(|entry| entry.path())
        .collect();
    let here = entries
        .iter()
        .find(|path| path.file_name().is_some_and(|file| file == name))
        .cloned();
    here.or_else(|| {
        entries
            .iter()
            .filter(|path| path.is_dir())
            .find_map(|path| find(path, name))
    })
}

/// From `/proc`, where the number of the parent is the second word after the program's name in brackets.
fn children(parent: u32) -> Result<Vec<u32>> {
    let parent_of = |pid: u32| -> Option<u32> {
        let status = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (_, after_name) = status.rsplit_once(')')?;
        after_name.split_whitespace().nth(1)?.parse().ok()
    };
    Ok(std::fs::read_dir("/proc")?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| parent_of(*pid) == Some(parent))
        .collect())
}
