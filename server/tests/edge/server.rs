//! A coordinator on a loopback port, in this process, on a test's own database.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use protocol::{
    ProblemDocument,
    tokens::{NewToken, Role},
};
use reqwest::{Method, RequestBuilder, Response, header};
use sqlx::PgPool;
use temponas_server::{
    api,
    app::{App, Clock},
    artifacts::ArtifactStore,
    auth,
    config::{Config, TokenMode},
    event_hub::EventHub,
    metrics::Metrics,
    store::Store,
};

pub(crate) struct Server {
    pub(crate) app: Arc<App>,
    pub(crate) address: std::net::SocketAddr,
    pub(crate) http: reqwest::Client,
    _folder: tempfile::TempDir,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    pub(crate) async fn start(pool: PgPool, tokens: TokenMode) -> Self {
        Self::with(pool, |config| config.tokens = tokens).await
    }

    /// With settings other than the defaults.
    pub(crate) async fn with(pool: PgPool, set: impl FnOnce(&mut Config)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut config = Config::for_folder(folder.path()).unwrap();
        set(&mut config);
        let app = Arc::new(App {
            store: Store::new(pool.clone()),
            artifacts: ArtifactStore::open(&config.artifacts)
                .unwrap()
                .limited_to(config.max_artifact_bytes),
            clock: Clock::manual(start_of_time()),
            events: EventHub::start(pool),
            metrics: Metrics::default(),
            searches: temponas_server::search::Caches::default(),
            config,
        });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = api::router(app.clone());
        let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self {
            app,
            address,
            http: reqwest::Client::new(),
            _folder: folder,
            task,
        }
    }

    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("http://{}{path}", self.address))
    }

    /// A fresh token's secret.
    pub(crate) async fn token(&self, role: Role) -> String {
        let request = NewToken {
            role,
            name: None,
            expires_in_seconds: None,
        };
        auth::create(&self.app.store, request, self.app.clock.now())
            .await
            .unwrap()
            .secret
    }
}

pub(crate) fn start_of_time() -> DateTime<Utc> {
    "2030-01-01T00:00:00Z".parse().unwrap()
}

/// The problem document of an answer; the test fails where it is none.
pub(crate) async fn problem(reply: Response) -> ProblemDocument {
    let status = reply.status();
    let kind = reply.headers().get(header::CONTENT_TYPE).cloned();
    let text = reply.text().await.unwrap();
    assert_eq!(kind.unwrap(), "application/problem+json", "{status}: {text}");
    let document: ProblemDocument = serde_json::from_str(&text).unwrap();
    assert_eq!(document.status, status.as_u16());
    assert!(
        document.kind.starts_with("/problems/") && !document.title.is_empty(),
        "{text}"
    );
    document
}
