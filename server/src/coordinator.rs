//! A coordinator from its settings to its end.

use std::{future::Future, net::SocketAddr, str::FromStr, sync::Arc, time::Duration};

use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use tokio::net::TcpListener;

use crate::{
    MIGRATOR, api,
    app::{App, Clock},
    artifacts::{ArtifactError, ArtifactStore},
    config::Config,
    dispatch::{self, Rules},
    embedded_postgres::{Cluster, ClusterError},
    event_hub::EventHub,
    metrics::Metrics,
    store::{Store, StoreError},
};

/// How long a server of someone else may take to come up before we give up on it.
const DATABASE_PATIENCE: Duration = Duration::from_secs(60);

/// How long a request waits for a connection; then it is told to come back.
const ACQUIRE_TIME: Duration = Duration::from_secs(5);

/// How long running requests may go on after the order to stop.
const GRACE: Duration = Duration::from_secs(5);

/// Why a coordinator does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The private cluster.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// The server that was named.
    #[error("cannot use the database that --database-url (DATABASE_URL) names")]
    Database(#[source] sqlx::Error),
    /// The schema.
    #[error("the database's schema cannot be brought up to date")]
    Migration(#[from] sqlx::migrate::MigrateError),
    /// What is stored.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The artifact store.
    #[error(transparent)]
    Artifacts(#[from] ArtifactError),
    /// The address.
    #[error("cannot listen on {address} (--listen)")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
}

/// The database of the settings: a private cluster or someone else's server, with its schema up to date.
#[derive(Debug)]
pub struct Database {
    pool: PgPool,
    cluster: Option<Cluster>,
}

impl Database {
    /// Starts or adopts the private cluster, or connects to the server that is named, and migrates.
    ///
    /// # Errors
    /// When the database cannot be used.
    pub async fn open(config: &Config) -> Result<Self, StartError> {
        let (options, cluster) = match &config.database_url {
            Some(url) => (
                PgConnectOptions::from_str(url.reveal()).map_err(StartError::Database)?,
                None,
            ),
            None => {
                let cluster = Cluster::open(&config.data_dir, config.postgres_bin.as_deref()).await?;
                (cluster.connect_options(), Some(cluster))
            }
        };
        let pool = PgPoolOptions::new()
            .max_connections(config.database_connections)
            .acquire_timeout(ACQUIRE_TIME)
            .connect_lazy_with(options);
        wait_for(&pool).await.map_err(StartError::Database)?;
        MIGRATOR.run(&pool).await?;
        Ok(Self { pool, cluster })
    }

    /// The store on it.
    #[must_use]
    pub fn store(&self) -> Store {
        Store::new(self.pool.clone())
    }

    /// Closes all connections, and stops the private cluster if nobody else uses it.
    ///
    /// # Errors
    /// When the private cluster does not stop.
    pub async fn close(self) -> Result<(), ClusterError> {
        let _ = tokio::time::timeout(GRACE, self.pool.close()).await;
        match self.cluster {
            Some(cluster) => cluster.close().await,
            None => Ok(()),
        }
    }
}

async fn wait_for(pool: &PgPool) -> sqlx::Result<()> {
    let give_up = tokio::time::Instant::now() + DATABASE_PATIENCE;
    loop {
        match pool.acquire().await {
            Ok(_) => return Ok(()),
            Err(error) if is_refusal(&error) || tokio::time::Instant::now() > give_up => return Err(error),
            Err(error) => tracing::warn!(%error, "the database does not answer yet"),
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// A wrong password or a database that is not there does not mend itself.
fn is_refusal(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    code.is_some_and(|code| code.starts_with("28") || code.starts_with("3D"))
        || matches!(error, sqlx::Error::Configuration(_) | sqlx::Error::Tls(_))
}

/// A coordinator that is ready to answer.
#[derive(Debug)]
pub struct Coordinator {
    app: Arc<App>,
    database: Database,
    listener: TcpListener,
    address: SocketAddr,
}

impl Coordinator {
    /// Opens the database, the artifact store and the address.
    ///
    /// # Errors
    /// When one of them cannot be used.
    pub async fn open(config: Config) -> Result<Self, StartError> {
        // First, so that a wrong address is told before a database is made.
        let failed = |source| StartError::Listen {
            address: config.listen,
            source,
        };
        let listener = TcpListener::bind(config.listen).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let database = Database::open(&config).await?;
        let app = Arc::new(App {
            store: database.store(),
            artifacts: ArtifactStore::open(&config.artifacts)?.limited_to(config.max_artifact_bytes),
            clock: Clock::System,
            events: EventHub::start(database.pool.clone()),
            metrics: Metrics::default(),
            searches: crate::search::Caches::default(),
            config,
        });
        let rules = Rules::of(&app.config);
        dispatch::wait_anew(&app.store, rules, app.clock.now()).await?;
        Ok(Self {
            app,
            database,
            listener,
            address,
        })
    }

    /// Where it listens; the port is known even where any was asked for.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What its handlers share.
    #[must_use]
    pub fn app(&self) -> &Arc<App> {
        &self.app
    }

    /// Answers requests and drives searches until `stop` is ready, then ends in order.
    ///
    /// # Errors
    /// When the private cluster does not stop.
    pub async fn run(self, stop: impl Future<Output = ()> + Send + 'static) -> Result<(), ClusterError> {
        let background = crate::search::background::start(self.app.clone());
        let uploads = tokio::spawn(remove_abandoned_uploads(self.app.clone()));
        let events = self.app.events.clone();
        let signal = async move {
            stop.await;
            events.stop();
        };
        let server = axum::serve(self.listener, api::router(self.app.clone())).with_graceful_shutdown(signal);
        let server = tokio::spawn(server.into_future());
        self.app.events.stopped().await;
        tracing::info!("stopping");
        let abort = server.abort_handle();
        if tokio::time::timeout(GRACE, server).await.is_err() {
            abort.abort();
        }
        drop(background);
        uploads.abort();
        drop(self.app);
        self.database.close().await
    }
}

async fn remove_abandoned_uploads(app: Arc<App>) {
    loop {
        match app.artifacts.remove_abandoned(app.clock.now()).await {
            Ok(0) => {}
            Ok(parts) => tracing::info!(parts, "removed parts of abandoned uploads"),
            Err(error) => tracing::warn!(%error, "abandoned uploads could not be removed"),
        }
        tokio::time::sleep(Duration::from_secs(3600)).await;
    }
}
