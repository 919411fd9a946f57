//! A typed client of the REST interface, for the commands and the demo.

mod artifacts;
mod deployments;
mod transport;

use std::{fmt::Display, str::FromStr, time::Duration};

use eventsource_stream::Eventsource;
use futures::{Stream, StreamExt, TryStreamExt};
use protocol::{
    CandidateId, JobId, ProblemDocument, SearchId,
    devices::{DeviceView, WorkerView},
    events::Event,
    jobs::{JobKind, JobRequest, JobState, JobView},
    luts::{BlockEstimate, LutEntryView, ProfileReply, ProfileRequest, TableSummary},
    searches::{CandidateDetail, CandidateView, FrontView, NewSearch, Recommendation, SearchEstimate, SearchView},
};
use reqwest::{Method, StatusCode, Url, header};

use transport::{accepted, describe};

use crate::config::Secret;

/// Why a request did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The address is none.
    #[error("`{url}` is no address of a coordinator: {reason}")]
    Address {
        /// What was given.
        url: String,
        /// Why.
        reason: String,
    },
    /// The coordinator refused.
    #[error("{}", describe(.0))]
    Refused(Box<ProblemDocument>),
    /// The coordinator cannot be reached, or the connection broke.
    #[error("cannot reach the coordinator at {url} (--url)")]
    Unreachable {
        /// Its address.
        url: String,
        /// Why.
        source: reqwest::Error,
    },
    /// Something answered, and not as a coordinator of this version does.
    #[error("{url} answered {status} with what this command does not understand: {text}")]
    Strange {
        /// What was asked.
        url: String,
        /// Its status.
        status: StatusCode,
        /// The beginning of the answer, or what is wrong with it.
        text: String,
    },
    /// A file cannot be read or written.
    #[error("cannot read or write {path}")]
    File {
        /// The file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// An abbreviated id fits none or several.
    #[error("{0}")]
    Id(String),
}

/// A coordinator at an address.
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    base: Url,
    token: Option<Secret>,
}

impl Client {
    /// A client of the coordinator at `url`.
    ///
    /// # Errors
    /// When the address is none, or no connection can be made at all on this machine.
    pub fn new(url: &str, token: Option<Secret>) -> Result<Self, ClientError> {
        let wrong = |reason: String| ClientError::Address {
            url: url.to_owned(),
            reason,
        };
        let base = Url::parse(url).map_err(|error| wrong(error.to_string()))?;
        if base.cannot_be_a_base() || !matches!(base.scheme(), "http" | "https") {
            return Err(wrong("it must begin with http:// or https://".to_owned()));
        }
        let http = reqwest::Client::builder()
            .connect_timeout(Duration::from_secs(5))
            .build();
        Ok(Self {
            http: http.map_err(|error| wrong(error.to_string()))?,
            base,
            token,
        })
    }

    /// The coordinator's address, without a slash at the end.
    #[must_use]
    pub fn url(&self) -> &str {
        self.base.as_str().trim_end_matches('/')
    }

    /// Whether the coordinator answers and its database does.
    pub async fn is_healthy(&self) -> bool {
        let reply = self
            .request(Method::GET, "/healthz")
            .timeout(Duration::from_secs(5))
            .send()
            .await;
        reply.is_ok_and(|reply| reply.status().is_success())
    }

    /// Submits a search; with the same `key` again it answers with the same search.
    ///
    /// # Errors
    /// When it is refused or the coordinator cannot be reached.
    pub async fn submit(&self, search: &NewSearch, key: &str) -> Result<SearchView, ClientError> {
        self.retry(|| {
            self.request(Method::POST, "/v1/searches")
                .header("idempotency-key", key)
                .json(search)
        })
        .await
    }

    /// What a submission would cost.
    ///
    /// # Errors
    /// When it is refused or the coordinator cannot be reached.
    pub async fn estimate(&self, search: &NewSearch) -> Result<SearchEstimate, ClientError> {
        self.retry(|| {
            self.request(Method::POST, "/v1/searches")
                .query(&[("dry_run", true)])
                .json(search)
        })
        .await
    }

    /// All searches, newest first.
    ///
    /// # Errors
    /// When the coordinator refuses or cannot be reached.
    pub async fn searches(&self) -> Result<Vec<SearchView>, ClientError> {
        self.list("/v1/searches", &[]).await
    }

    /// One search.
    ///
    /// # Errors
    /// When there is none, or the coordinator cannot be reached.
    pub async fn search(&self, id: SearchId) -> Result<SearchView, ClientError> {
        self.get(&format!("/v1/searches/{id}")).await
    }

    /// The search whose id begins or ends with `text`.
    ///
    /// # Errors
    /// When none or several do, or the coordinator cannot be reached.
    pub async fn find_search(&self, text: &str) -> Result<SearchId, ClientError> {
        if let Ok(id) = text.parse() {
            return Ok(id);
        }
        let ids: Vec<SearchId> = self.searches().await?.into_iter().map(|search| search.id).collect();
        expand(text, "search", &ids)
    }

    /// `pause`, `resume` or `cancel`.
    ///
    /// # Errors
    /// When the search's state does not allow it, or the coordinator cannot be reached.
    pub async fn steer(&self, id: SearchId, what: &str) -> Result<SearchView, ClientError> {
        self.retry(|| self.request(Method::POST, &format!("/v1/searches/{id}/{what}")))
            .await
    }

    /// The front.
    ///
    /// # Errors
    /// When there is no such search, or the coordinator cannot be reached.
    pub async fn front(&self, id: SearchId) -> Result<FrontView, ClientError> {
        self.get(&format!("/v1/searches/{id}/front")).await
    }

    /// All candidates of a search, by number.
    ///
    /// # Errors
    /// When there is no such search, or the coordinator cannot be reached.
    pub async fn candidates(&self, id: SearchId) -> Result<Vec<CandidateView>, ClientError> {
        self.list(&format!("/v1/searches/{id}/candidates"), &[]).await
    }

    /// One candidate with its curve.
    ///
    /// # Errors
    /// When there is none, or the coordinator cannot be reached.
    pub async fn candidate(&self, id: CandidateId) -> Result<CandidateDetail, ClientError> {
        self.get(&format!("/v1/candidates/{id}")).await
    }

    /// The best verified candidate within limits given as (metric, at most).
    ///
    /// # Errors
    /// When there is no such search or metric, or the coordinator cannot be reached.
    pub async fn recommendation(&self, id: SearchId, limits: &[(&str, f64)]) -> Result<Recommendation, ClientError> {
        let path = format!("/v1/searches/{id}/recommendation");
        self.retry(|| self.request(Method::GET, &path).query(limits)).await
    }

    /// All devices.
    ///
    /// # Errors
    /// When the coordinator refuses or cannot be reached.
    pub async fn devices(&self) -> Result<Vec<DeviceView>, ClientError> {
        self.list("/v1/devices", &[]).await
    }

    /// All workers.
    ///
    /// # Errors
    /// When the coordinator refuses or cannot be reached.
    pub async fn workers(&self) -> Result<Vec<WorkerView>, ClientError> {
        self.list("/v1/workers", &[]).await
    }

    /// Entries of a device's table, of one operator or of all.
    ///
    /// # Errors
    /// When there is no such device, or the coordinator cannot be reached.
    pub async fn lut(&self, device: &str, operator: Option<&str>) -> Result<Vec<LutEntryView>, ClientError> {
        let query: Vec<(&str, &str)> = operator.map(|operator| ("operator", operator)).into_iter().collect();
        self.list(&format!("/v1/luts/{device}"), &query).await
    }

    /// A device's tables with the leave-out error of each operator.
    ///
    /// # Errors
    /// When there is no such device, or the coordinator cannot be reached.
    pub async fn lut_summary(&self, device: &str) -> Result<Vec<TableSummary>, ClientError> {
        self.get(&format!("/v1/luts/{device}/summary")).await
    }

    /// What a block costs by a device's table; `query` as the route takes it.
    ///
    /// # Errors
    /// When there is no such device or table, or the coordinator cannot be reached.
    pub async fn lut_estimate(&self, device: &str, query: &[(&str, &str)]) -> Result<BlockEstimate, ClientError> {
        let path = format!("/v1/luts/{device}/estimate");
        self.retry(|| self.request(Method::GET, &path).query(query)).await
    }

    /// Asks workers on a device to measure blocks. Asking twice queues nothing twice.
    ///
    /// # Errors
    /// When there is no such device, the request is refused, or the coordinator cannot be reached.
    pub async fn profile(&self, device: &str, wish: &ProfileRequest) -> Result<ProfileReply, ClientError> {
        let path = format!("/v1/luts/{device}/profile");
        self.retry(|| self.request(Method::POST, &path).json(wish)).await
    }

    /// Jobs, oldest first: of one search or of all, in one state or in any, of one kind or of all.
    ///
    /// # Errors
    /// When there is no such search, or the coordinator cannot be reached.
    pub async fn jobs(
        &self,
        search: Option<SearchId>,
        state: Option<JobState>,
        kind: Option<JobKind>,
    ) -> Result<Vec<JobView>, ClientError> {
        let search = search.map(|id| id.to_string());
        let state = state.map(JobState::as_str);
        let kind = kind.map(JobKind::as_str);
        let wishes = [("search", search.as_deref()), ("state", state), ("kind", kind)];
        let query: Vec<(&str, &str)> = wishes
            .into_iter()
            .filter_map(|(name, wish)| Some((name, wish?)))
            .collect();
        self.list("/v1/jobs", &query).await
    }

    /// One job with its attempts and their logs.
    ///
    /// # Errors
    /// When there is none, or the coordinator cannot be reached.
    pub async fn job(&self, id: JobId) -> Result<JobView, ClientError> {
        self.get(&format!("/v1/jobs/{id}")).await
    }

    /// Asks for a job that belongs to no search; with the same id again it answers with the same job.
    ///
    /// # Errors
    /// When the coordinator refuses or cannot be reached.
    pub async fn ask(&self, wish: &JobRequest) -> Result<JobView, ClientError> {
        self.retry(|| self.request(Method::POST, "/v1/jobs").json(wish)).await
    }

    /// Ends a job that belongs to no search.
    ///
    /// # Errors
    /// When there is none, it cannot be ended, or the coordinator cannot be reached.
    pub async fn cancel_job(&self, id: JobId) -> Result<JobView, ClientError> {
        self.retry(|| self.request(Method::POST, &format!("/v1/jobs/{id}/cancel")))
            .await
    }

    /// The job whose id begins or ends with `text`.
    ///
    /// # Errors
    /// When none or several do, or the coordinator cannot be reached.
    pub async fn find_job(&self, text: &str) -> Result<JobId, ClientError> {
        if let Ok(id) = text.parse() {
            return Ok(id);
        }
        let ids: Vec<JobId> = self
            .jobs(None, None, None)
            .await?
            .into_iter()
            .map(|job| job.id)
            .collect();
        expand(text, "job", &ids)
    }

    /// Bytes of any route.
    ///
    /// # Errors
    /// When the coordinator refuses or cannot be reached.
    pub async fn bytes(&self, path: &str, query: &[(&str, &str)]) -> Result<Vec<u8>, ClientError> {
        let reply = self.send(|| self.request(Method::GET, path).query(query)).await?;
        Ok(reply.bytes().await.map_err(|source| self.unreachable(source))?.to_vec())
    }

    /// Posts text under a media type.
    ///
    /// # Errors
    /// When the coordinator refuses or cannot be reached.
    pub async fn post_text(&self, path: &str, media_type: &str, text: &str) -> Result<String, ClientError> {
        let request = || {
            self.request(Method::POST, path)
                .header(header::CONTENT_TYPE, media_type)
                .body(text.to_owned())
        };
        let reply = self.send(request).await?;
        reply.text().await.map_err(|source| self.unreachable(source))
    }

    /// What a search tells from event number `after` on, until the connection ends.
    ///
    /// # Errors
    /// When there is no such search, or the coordinator cannot be reached.
    pub async fn events(
        &self,
        id: SearchId,
        after: i64,
    ) -> Result<impl Stream<Item = Result<Event, String>> + Unpin + use<>, ClientError> {
        let request = self
            .request(Method::GET, &format!("/v1/searches/{id}/events"))
            .header("last-event-id", after);
        let reply = accepted(request.send().await.map_err(|source| self.unreachable(source))?).await?;
        let events = reply.bytes_stream().eventsource().map_err(|error| error.to_string());
        let parsed = events.and_then(|event| {
            std::future::ready(serde_json::from_str::<Event>(&event.data).map_err(|error| error.to_string()))
        });
        Ok(Box::pin(parsed.map(|event| event)))
    }
}

/// The id that begins or ends with `text`; the ends differ even among ids of one second.
///
/// # Errors
/// When none or several do.
pub fn expand<I: Display + FromStr + Copy>(text: &str, kind: &str, ids: &[I]) -> Result<I, ClientError> {
    if let Ok(id) = text.parse() {
        return Ok(id);
    }
    let wanted = text.to_ascii_lowercase();
    let fits = |id: &&I| {
        let id = id.to_string();
        !wanted.is_empty() && (id.starts_with(&wanted) || id.ends_with(&wanted))
    };
    let found: Vec<&I> = ids.iter().filter(fits).collect();
    match found.as_slice() {
        [one] => Ok(**one),
        [] => Err(ClientError::Id(format!(
            "no {kind} has an id that begins or ends with `{text}`"
        ))),
        several => {
            let several: Vec<String> = several.iter().take(5).map(ToString::to_string).collect();
            Err(ClientError::Id(format!(
                "`{text}` fits more than one {kind}: {} …",
                several.join(", ")
            )))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_may_be_abbreviated_to_what_is_unique() {
        let ids: Vec<SearchId> = [
            "018f0000-0000-7000-8000-00000000000a",
            "018f0000-0000-7000-8000-00000000000b",
        ]
        .map(|id| id.parse().unwrap())
        .to_vec();
        assert_eq!(expand("00b", "search", &ids).unwrap(), ids[1]);
        assert_eq!(
            expand::<SearchId>(&ids[0].to_string(), "search", &[]).unwrap(),
            ids[0],
            "a whole id need not be known"
        );
        assert!(
            expand("018f", "search", &ids)
                .unwrap_err()
                .to_string()
                .contains("more than one")
        );
        assert!(
            expand("xyz", "search", &ids)
                .unwrap_err()
                .to_string()
                .contains("no search")
        );
        assert!(expand("", "search", &ids).is_err());
    }

    #[test]
    fn an_address_must_be_one() {
        assert!(
            Client::new("localhost:8080", None).is_err(),
            "that is the scheme `localhost`"
        );
        assert!(Client::new("http://localhost:8080/", None).is_ok());
    }
}
