//! A private Postgres cluster in the data folder, on a Unix socket, for who brings no database.
//!
//! - **Never started twice.** Starting and stopping happens under a lock file; under it a running
//!   postmaster of the folder is adopted, a stopping one waited for, a dead one's folder recovered
//!   (Postgres replays its log by itself).
//! - **Shared.** Every process that uses the cluster (coordinators, `temponas token`) holds a shared lock
//!   for as long as it lives; the last one to leave stops the cluster.
//! - **Leaves nothing behind.** On Linux the postmaster is told to shut down when the process that started
//!   it ends, however that happens; whoever still uses the cluster starts it again at once.
//! - **Not as root.** Postgres refuses that; then it runs as the user `postgres`, else `nobody`, and where
//!   that user cannot reach the data folder, the cluster lies in `/var/lib/temponas` and the data folder
//!   has a link to it.

mod launch;
mod lock;
mod place;
mod postmaster;
mod programs;
mod user;

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use sqlx::{
    ConnectOptions, Connection,
    postgres::{PgConnectOptions, PgSslMode},
};
use tokio::task::JoinHandle;

use launch::Launcher;
pub use launch::{SHIM, run_until_parent_dies};
use lock::{Locks, Usage};
use place::Place;
use postmaster::Postmaster;
use programs::Programs;
use user::User;

/// User and database of the cluster. Only the owner of the socket's folder gets there at all.
const NAME: &str = "temponas";

const START_TIME: Duration = Duration::from_secs(120);
const STOP_TIME: Duration = Duration::from_secs(60);
const WATCH: Duration = Duration::from_millis(500);

/// Why the private cluster cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// There are no programs.
    #[error(
        "no Postgres {oldest} or newer was found ({looked}); install it (Debian, Ubuntu: apt-get install postgresql; \
         Fedora: dnf install postgresql-server), let scripts/postgres fetch it, name its folder with \
         --postgres-bin, or name a server with --database-url"
    )]
    NoPrograms {
        /// The oldest version that will do.
        oldest: u32,
        /// Where was looked, and what was found there.
        looked: String,
    },
    /// The cluster was made by another major version.
    #[error(
        "the cluster in {folder} was made by Postgres {made_by}, and only Postgres {found} was found; name the \
         folder of Postgres {made_by}'s programs with --postgres-bin"
    )]
    OtherVersion {
        /// The cluster.
        folder: PathBuf,
        /// Its major version.
        made_by: u32,
        /// What is there.
        found: String,
    },
    /// Postgres will not run as root and there is nobody else.
    #[error("running as root, and there is neither a user `postgres` nor a user `nobody` to run Postgres as")]
    NoUser,
    /// A program of Postgres failed.
    #[error("{program} failed: {detail}")]
    Failed {
        /// Its name.
        program: &'static str,
        /// What it said.
        detail: String,
    },
    /// It does not come up.
    #[error("Postgres did not start within {seconds} s; the end of its log {log}:\n{tail}")]
    NotStarted {
        /// How long was waited.
        seconds: u64,
        /// Its log file.
        log: PathBuf,
        /// The log's last lines.
        tail: String,
    },
    /// Files.
    #[error("{what} {path}")]
    Files {
        /// What was tried.
        what: &'static str,
        /// Which file or folder.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The cluster runs and refuses what is asked of it.
    #[error("the private cluster does not answer as it should")]
    Database(#[from] sqlx::Error),
}

impl ClusterError {
    fn files(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Files { what, path, source }
    }
}

/// A running private cluster; it is watched and started again when it dies, until [`Cluster::close`].
#[derive(Debug)]
pub struct Cluster {
    site: Arc<Site>,
    usage: Usage,
    watcher: JoinHandle<()>,
}

/// Everything about the cluster that does not change.
#[derive(Debug)]
struct Site {
    place: Place,
    programs: Programs,
    user: Option<User>,
    locks: Locks,
    launcher: Launcher,
}

impl Cluster {
    /// Starts or adopts the cluster of `data_dir`, making it where there is none.
    ///
    /// # Errors
    /// When there are no programs, the folder cannot be used, or Postgres does not come up.
    pub async fn open(data_dir: &Path, postgres_bin: Option<&Path>) -> Result<Self, ClusterError> {
        let (data_dir, postgres_bin) = (data_dir.to_owned(), postgres_bin.map(Path::to_owned));
        let prepared = tokio::task::spawn_blocking(move || Site::prepare(&data_dir, postgres_bin.as_deref()));
        let site = Arc::new(joined(prepared.await)?);
        let starting = site
            .locks
            .starting()
            .await
            .map_err(ClusterError::files("cannot lock", site.locks.folder()))?;
        site.ensure_running().await?;
        site.ensure_database().await?;
        let usage = site
            .locks
            .use_cluster()
            .map_err(ClusterError::files("cannot lock", site.locks.folder()))?;
        drop(starting);
        let watcher = tokio::spawn(watch(site.clone()));
        Ok(Self { site, usage, watcher })
    }

    /// How to connect.
    #[must_use]
    pub fn connect_options(&self) -> PgConnectOptions {
        self.site.connect_options().database(NAME)
    }

    /// Leaves the cluster, and stops it if nobody else uses it.
    ///
    /// # Errors
    /// When Postgres does not stop in time.
    pub async fn close(self) -> Result<(), ClusterError> {
        self.watcher.abort();
        let locks = &self.site.locks;
        let _starting = locks
            .starting()
            .await
            .map_err(ClusterError::files("cannot lock", locks.folder()))?;
        drop(self.usage);
        if locks.is_used() {
            tracing::info!("the private Postgres cluster is left to the other process that uses it");
            return Ok(());
        }
        self.site.stop().await
    }
}

/// Starts the cluster again whenever it is found dead.
async fn watch(site: Arc<Site>) {
    loop {
        tokio::time::sleep(WATCH).await;
        if site.postmaster().is_some() {
            continue;
        }
        tracing::warn!("the private Postgres cluster is gone; starting it again");
        let outcome = async {
            let _starting = site
                .locks
                .starting()
                .await
                .map_err(ClusterError::files("cannot lock", site.locks.folder()))?;
            site.ensure_running().await
        };
        match outcome.await {
            Ok(()) => tracing::info!("the private Postgres cluster runs again"),
            Err(error) => tracing::error!(%error, "the private Postgres cluster could not be started again"),
        }
    }
}

impl Site {
    fn prepare(data_dir: &Path, postgres_bin: Option<&Path>) -> Result<Self, ClusterError> {
        std::fs::create_dir_all(data_dir).map_err(ClusterError::files("cannot make the data folder", data_dir))?;
        let locks = Locks::open(data_dir).map_err(ClusterError::files("cannot make lock files in", data_dir))?;
        let user = User::for_postgres()?;
        let place = Place::choose(data_dir, user.as_ref())?;
        let programs = Programs::find(postgres_bin, place.major_version(), place.cluster(), user.as_ref())?;
        Ok(Self {
            place,
            programs,
            user,
            locks,
            launcher: Launcher::start(),
        })
    }

    fn postmaster(&self) -> Option<Postmaster> {
        self.launcher.reap();
        Postmaster::of(self.place.cluster())
    }

    fn connect_options(&self) -> PgConnectOptions {
        PgConnectOptions::new_without_pgpass()
            .socket(self.place.socket())
            .port(5432)
            .ssl_mode(PgSslMode::Disable)
            .username(NAME)
            .password("")
            .application_name("temponas")
    }

    /// Adopts, waits for, or starts. Only under the starting lock.
    async fn ensure_running(&self) -> Result<(), ClusterError> {
        let deadline = Instant::now() + START_TIME;
        self.make_cluster().await?;
        while Instant::now() < deadline {
            match self.postmaster() {
                None => self.start()?,
                Some(postmaster) if postmaster.is_ready() && self.answers().await => return Ok(()),
                Some(_) => {}
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Err(ClusterError::NotStarted {
            seconds: START_TIME.as_secs(),
            log: self.place.log(),
            tail: self.place.log_tail(),
        })
    }

    async fn answers(&self) -> bool {
        match self.connect_options().database("postgres").connect().await {
            Ok(connection) => connection.close().await.is_ok(),
            Err(_) => false,
        }
    }

    async fn ensure_database(&self) -> Result<(), ClusterError> {
        let mut connection = self.connect_options().database("postgres").connect().await?;
        let there = sqlx::query("SELECT 1 FROM pg_database WHERE datname = $1").bind(NAME);
        if there.fetch_optional(&mut connection).await?.is_none() {
            sqlx::query("CREATE DATABASE temponas").execute(&mut connection).await?;
        }
        connection.close().await?;
        Ok(())
    }

    /// Runs `initdb` beside the final place and moves its work there, so that half a cluster is never used.
    async fn make_cluster(&self) -> Result<(), ClusterError> {
        if self.place.major_version().is_some() {
            return Ok(());
        }
        tracing::info!(folder = %self.place.cluster().display(), "making a private Postgres cluster");
        let fresh = self.place.fresh(self.user.as_ref())?;
        self.programs.initdb(&fresh, NAME, self.user.as_ref()).await?;
        std::fs::rename(&fresh, self.place.cluster()).map_err(ClusterError::files(
            "cannot move the new cluster to",
            self.place.cluster(),
        ))
    }

    fn start(&self) -> Result<(), ClusterError> {
        self.place.prepare_socket(self.user.as_ref())?;
        Postmaster::disown_reused_pid(self.place.cluster()).map_err(ClusterError::files(
            "cannot mend postmaster.pid in",
            self.place.cluster(),
        ))?;
        self.launcher.postgres(&self.programs, &self.place, self.user.as_ref())
    }

    async fn stop(&self) -> Result<(), ClusterError> {
        let deadline = Instant::now() + STOP_TIME;
        let Some(postmaster) = self.postmaster() else {
            return Ok(());
        };
        postmaster.interrupt();
        while self.postmaster().is_some() {
            if Instant::now() > deadline {
                return Err(ClusterError::Failed {
                    program: "postgres",
                    detail: format!("did not stop within {} s", STOP_TIME.as_secs()),
                });
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }
}

fn joined<T>(outcome: Result<Result<T, ClusterError>, tokio::task::JoinError>) -> Result<T, ClusterError> {
    outcome.unwrap_or_else(|error| {
        Err(ClusterError::Failed {
            program: "the preparation of the private cluster",
            detail: error.to_string(),
        })
    })
}
