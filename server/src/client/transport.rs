//! Requests and their answers: what is sent again, what is a problem, how lists are read to their end.

use std::time::Duration;

use protocol::{Page, ProblemDocument};
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde::de::DeserializeOwned;

use super::{Client, ClientError};

const PAGE: u16 = 500;

/// How often a request is sent again that can be, while the coordinator or its database is away.
const TRIES: u32 = 5;

impl Client {
    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.retry(|| self.request(Method::GET, path)).await
    }

    /// Reads a list to its end.
    pub(super) async fn list<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, &str)],
    ) -> Result<Vec<T>, ClientError> {
        let mut items = Vec::new();
        let mut cursor: Option<String> = None;
        loop {
            let position = cursor.as_ref().map(|cursor| ("cursor", cursor.as_str()));
            let page: Page<T> = self
                .retry(|| {
                    self.request(Method::GET, path)
                        .query(query)
                        .query(&[("limit", PAGE)])
                        .query(&position.as_slice())
                })
                .await?;
            items.extend(page.items);
            cursor = page.next_cursor;
            if cursor.is_none() {
                return Ok(items);
            }
        }
    }

    pub(super) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let mut url = self.base.clone();
        url.set_path(&format!("{}{path}", self.base.path().trim_end_matches('/')));
        let request = self.http.request(method, url);
        match &self.token {
            Some(token) => request.bearer_auth(token.reveal()),
            None => request,
        }
    }

    pub(super) async fn retry<T: DeserializeOwned>(
        &self,
        request: impl Fn() -> RequestBuilder,
    ) -> Result<T, ClientError> {
        let reply = self.send(request).await?;
        let (url, status) = (reply.url().to_string(), reply.status());
        let text = reply.text().await.map_err(|source| self.unreachable(source))?;
        serde_json::from_str(&text).map_err(|error| ClientError::Strange {
            url,
            status,
            text: error.to_string(),
        })
    }

    /// Sends a request that may be sent twice, again where the coordinator asks to come back.
    pub(super) async fn send(&self, request: impl Fn() -> RequestBuilder) -> Result<Response, ClientError> {
        let mut left = TRIES;
        loop {
            left -= 1;
            let reply = request().send().await.map_err(|source| self.unreachable(source))?;
            if reply.status() != StatusCode::SERVICE_UNAVAILABLE || left == 0 {
                return accepted(reply).await;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    pub(super) fn unreachable(&self, source: reqwest::Error) -> ClientError {
        ClientError::Unreachable {
            url: self.url().to_owned(),
            source,
        }
    }
}

/// The answer, if it is no problem.
pub(super) async fn accepted(reply: Response) -> Result<Response, ClientError> {
    if reply.status().is_success() {
        return Ok(reply);
    }
    let (url, status) = (reply.url().to_string(), reply.status());
    let text = reply.text().await.unwrap_or_default();
    Err(match serde_json::from_str(&text) {
        Ok(problem) => ClientError::Refused(Box::new(problem)),
        Err(_) => ClientError::Strange {
            url,
            status,
            text: text.chars().take(200).collect(),
        },
    })
}

pub(super) fn describe(problem: &ProblemDocument) -> String {
    let mut text = problem.title.clone();
    if let Some(detail) = &problem.detail {
        text += &format!(": {detail}");
    }
    for error in &problem.errors {
        let place = match (error.line, error.column) {
            (Some(line), Some(column)) => format!("line {line}, column {column}: "),
            (Some(line), None) => format!("line {line}: "),
            _ => String::new(),
        };
        text += &format!("\n  {place}{}: {}", error.field, error.message);
    }
    text
}
