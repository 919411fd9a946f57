//! A coordinator for tests: answers each request as the test says and remembers all of them.

use std::path::Path;
use std::sync::{Arc, Mutex};

use axum::body::{Body, Bytes, to_bytes};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures::{StreamExt, stream};

use crate::client::Client;

/// A request as it came.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub method: String,
    pub route: String,
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// What is answered, and after how long.
pub(crate) struct Reply {
    pub response: Response,
    pub after: std::time::Duration,
}

impl Reply {
    pub(crate) fn empty(status: u16) -> Self {
        Self::of(StatusCode::from_u16(status).unwrap().into_response())
    }

    pub(crate) fn json(body: &impl serde::Serialize) -> Self {
        Self::of(axum::Json(body).into_response())
    }

    pub(crate) fn problem(status: u16, kind: &str) -> Self {
        let document = serde_json::json!({ "type": format!("/problems/{kind}"), "title": kind, "status": status });
        let status = StatusCode::from_u16(status).unwrap();
        let media_type = [(header::CONTENT_TYPE, "application/problem+json")];
        Self::of((status, media_type, document.to_string()).into_response())
    }

    pub(crate) fn bytes(status: u16, bytes: &'static [u8]) -> Self {
        Self::of((StatusCode::from_u16(status).unwrap(), bytes).into_response())
    }

    /// Breaks the connection after some bytes of the body.
    pub(crate) fn broken_after(status: u16, bytes: &'static [u8]) -> Self {
        let begun = (!bytes.is_empty()).then(|| Ok(Bytes::from_static(bytes)));
        let broken = stream::once(async {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            Err(std::io::Error::other("broken"))
        });
        let body = Body::from_stream(stream::iter(begun).chain(broken));
        Self::of((StatusCode::from_u16(status).unwrap(), body).into_response())
    }

    pub(crate) fn with(mut self, name: &'static str, value: &str) -> Self {
        self.response.headers_mut().insert(name, value.parse().unwrap());
        self
    }

    pub(crate) fn after(self, after: std::time::Duration) -> Self {
        Self { after, ..self }
    }

    fn of(response: Response) -> Self {
        Self {
            response,
            after: std::time::Duration::ZERO,
        }
    }
}

/// A running server.
pub(crate) struct Coordinator {
    address: String,
    seen: Arc<Mutex<Vec<Request>>>,
}

impl Coordinator {
    /// Listens on a free port for as long as the test's runtime lives.
    pub(crate) async fn start(answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (answer, noted) = (Arc::new(answer), seen.clone());
        let router = axum::Router::new().fallback(move |request: axum::extract::Request| {
            let (answer, noted) = (answer.clone(), noted.clone());
            async move {
                let (parts, body) = request.into_parts();
                let request = Request {
                    method: parts.method.to_string(),
                    route: parts.uri.path().to_owned(),
                    headers: parts.headers,
                    body: to_bytes(body, usize::MAX).await.unwrap_or_default(),
                };
                let reply = answer(&request);
                noted.lock().unwrap().push(request);
                tokio::time::sleep(reply.after).await;
                reply.response
            }
        });
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { address, seen }
    }

    pub(crate) fn client(&self, cache: &Path) -> Client {
        Client::new(&self.address, None, cache).unwrap()
    }

    /// Requests so far whose method and route hold `part`, such as `POST /v1/leases`.
    pub(crate) fn requests(&self, part: &str) -> Vec<Request> {
        let seen = self.seen.lock().unwrap();
        let wanted = |request: &&Request| format!("{} {}", request.method, request.route).contains(part);
        seen.iter().filter(wanted).cloned().collect()
    }
}
