//! The demo's parts: a space, a coordinator unless one runs, and workers that are kept alive.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, bail};
use clap::ValueEnum;
use tokio::{
    process::{Child, ChildStdin, Command},
    sync::watch,
    task::JoinHandle,
    time::Instant,
};

/// A worker that dies this often in a row, without having lived for a while, has a fault that stays.
const DEATHS: u32 = 5;
const A_WHILE: Duration = Duration::from_secs(30);

/// How long a worker may take to hand back its job.
const FAREWELL: Duration = Duration::from_secs(10);

/// What is searched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Data {
    /// Rendered clips of moving coloured shapes
    Shapes,
    /// Real clips: animated emoji (`make data-emoji` fetches them)
    Emoji,
}

impl Data {
    /// What it is, for people.
    #[must_use]
    pub const fn title(self) -> &'static str {
        match self {
            Self::Shapes => "moving shapes",
            Self::Emoji => "animated emoji",
        }
    }

    /// Its space file.
    #[must_use]
    pub fn space(self) -> &'static str {
        match self {
            Self::Shapes => include_str!("../../search-spaces/spaces/shapes-tiny.toml"),
            Self::Emoji => include_str!("../../search-spaces/spaces/emoji-small.toml"),
        }
    }
}

/// How workers are started.
#[derive(Debug, Clone)]
pub struct WorkerPlan {
    /// The program.
    pub program: PathBuf,
    /// The coordinator.
    pub server: String,
    /// Where workers keep what they fetch and make.
    pub folder: PathBuf,
}

impl WorkerPlan {
    /// The worker beside this program.
    ///
    /// # Errors
    /// When there is none.
    pub fn beside_this_program(server: &str, folder: &Path) -> anyhow::Result<Self> {
        let here = std::env::current_exe().context("cannot find this program's own file")?;
        let program = here.with_file_name("temponas-worker");
        if !program.is_file() {
            bail!(
                "{} is missing: build it with `cargo build --workspace`",
                program.display()
            );
        }
        Ok(Self {
            program,
            server: server.to_owned(),
            folder: folder.to_owned(),
        })
    }
}

/// Workers that are started again when they die, and end with this process however it ends: each stops
/// when its standard input is closed, which the system does.
#[derive(Debug)]
pub struct Workers {
    stop: watch::Sender<bool>,
    tasks: Vec<JoinHandle<anyhow::Result<()>>>,
    logs: Vec<PathBuf>,
}

impl Workers {
    /// Starts `count` workers, which log into the plan's folder.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn start(plan: &WorkerPlan, count: u16) -> anyhow::Result<Self> {
        std::fs::create_dir_all(&plan.folder).with_context(|| format!("cannot make {}", plan.folder.display()))?;
        let stop = watch::Sender::new(false);
        let logs: Vec<PathBuf> = (1..=count)
            .map(|number| plan.folder.join(format!("worker-{number}.log")))
            .collect();
        let start = |log: &PathBuf| tokio::spawn(keep_alive(plan.clone(), log.clone(), stop.subscribe()));
        let tasks = logs.iter().map(start).collect();
        Ok(Self { stop, tasks, logs })
    }

    /// The last lines of each worker's log.
    #[must_use]
    pub fn ends_of_logs(&self) -> String {
        let ends = self.logs.iter().map(|log| format!("{}:\n{}", log.display(), tail(log)));
        ends.collect::<Vec<_>>().join("\n")
    }

    /// Waits until a worker cannot be kept alive, and says why.
    pub async fn failed(&mut self) -> anyhow::Error {
        let (outcome, ..) = futures::future::select_all(self.tasks.iter_mut()).await;
        match outcome {
            Ok(Err(error)) => error,
            Ok(Ok(())) => anyhow::anyhow!("a worker ended"),
            Err(error) => error.into(),
        }
    }

    /// Closes the workers' standard input and waits while they hand back what they hold.
    pub async fn stop(self) {
        self.stop.send_replace(true);
        for task in self.tasks {
            // One that has failed was told of before.
            if !task.is_finished() {
                let _ = task.await;
            }
        }
    }
}

/// Starts a worker again and again until it is told to stop.
async fn keep_alive(plan: WorkerPlan, log: PathBuf, mut stop: watch::Receiver<bool>) -> anyhow::Result<()> {
    let mut deaths = 0;
    loop {
        let started = Instant::now();
        let mut worker = Worker::start(&plan, &log)?;
        let status = tokio::select! {
            status = worker.child.wait() => Some(status?),
            _ = stop.changed() => None,
        };
        let Some(status) = status else {
            return worker.end().await;
        };
        deaths = if started.elapsed() > A_WHILE { 1 } else { deaths + 1 };
        if deaths >= DEATHS {
            bail!("a worker died {deaths} times ({status}); its log is {}", log.display());
        }
        eprintln!(
            "a worker ended ({status}); starting it again (its log: {})",
            log.display()
        );
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

struct Worker {
    child: Child,
    /// Closed when the worker is not wanted any more.
    input: Option<ChildStdin>,
}

impl Worker {
    fn start(plan: &WorkerPlan, log: &Path) -> anyhow::Result<Self> {
        let out = std::fs::File::options().create(true).append(true).open(log);
        let out = out.with_context(|| format!("cannot write {}", log.display()))?;
        let mut command = Command::new(&plan.program);
        command
            .args(["run", "--server", &plan.server, "--threads", "1", "--stop-on-stdin-eof"])
            .arg("--cache-dir")
            // One for all: what one has fetched or encoded, the others need not.
            .arg(plan.folder.join("cache"))
            .stdin(Stdio::piped())
            .stdout(out.try_clone()?)
            .stderr(out)
            // Ctrl-C is for the demo, which then ends its workers.
            .process_group(0);
        let mut child = command
            .spawn()
            .with_context(|| format!("cannot start {}", plan.program.display()))?;
        let input = child.stdin.take();
        Ok(Self { child, input })
    }

    /// Lets the worker stop by itself, and kills it when it takes too long.
    async fn end(mut self) -> anyhow::Result<()> {
        drop(self.input.take());
        if tokio::time::timeout(FAREWELL, self.child.wait()).await.is_err() {
            self.child.kill().await?;
        }
        Ok(())
    }
}

fn tail(log: &Path) -> String {
    let text = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(15)..].join("\n")
}

/// A loopback port that is free now: `wanted`, or any.
///
/// # Errors
/// When none is free.
pub fn free_address(wanted: Option<u16>) -> anyhow::Result<SocketAddr> {
    const PREFERRED: std::ops::Range<u16> = 8080..8090;
    let free = |port: u16| std::net::TcpListener::bind(("127.0.0.1", port)).and_then(|found| found.local_addr());
    match wanted {
        Some(port) => free(port).with_context(|| format!("port {port} is taken (--port)")),
        None => {
            let preferred = PREFERRED.filter_map(|port| free(port).ok()).next();
            preferred.map_or_else(|| free(0).context("no port is free"), Ok)
        }
    }
}
