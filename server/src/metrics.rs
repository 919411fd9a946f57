//! Counters and durations of this process for `/metrics`.

use std::{fmt, sync::Mutex, sync::PoisonError, time::Duration};

use prometheus_client::{
    encoding::{EncodeLabelSet, text},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};

/// What a request is counted under: the route's template, never the path, so that ids do not multiply series.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RequestLabels {
    method: String,
    route: String,
    status: u16,
}

/// What jobs are counted under.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct JobLabels {
    /// The kind of job.
    pub kind: String,
    /// Its state.
    pub state: String,
}

/// The process's metrics.
pub struct Metrics {
    registry: Mutex<Registry>,
    requests: Family<RequestLabels, Histogram>,
    jobs: Family<JobLabels, Gauge>,
    event_streams: Gauge,
    artifact_bytes_received: Counter,
    artifact_bytes_sent: Counter,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

impl Default for Metrics {
    fn default() -> Self {
        let requests = Family::new_with_constructor(request_histogram as fn() -> Histogram);
        let jobs = Family::<JobLabels, Gauge>::default();
        let event_streams = Gauge::default();
        let artifact_bytes_received = Counter::default();
        let artifact_bytes_sent = Counter::default();
        let mut registry = Registry::with_prefix("temponas");
        registry.register_with_unit(
            "request_duration",
            "Time to answer a request",
            Unit::Seconds,
            requests.clone(),
        );
        registry.register("jobs", "Jobs in the database by kind and state", jobs.clone());
        registry.register("event_streams", "Open event streams", event_streams.clone());
        registry.register(
            "artifact_received_bytes",
            "Bytes of artifacts received",
            artifact_bytes_received.clone(),
        );
        registry.register(
            "artifact_sent_bytes",
            "Bytes of artifacts sent",
            artifact_bytes_sent.clone(),
        );
        let registry = Mutex::new(registry);
        Self {
            registry,
            requests,
            jobs,
            event_streams,
            artifact_bytes_received,
            artifact_bytes_sent,
        }
    }
}

fn request_histogram() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 4.0, 8))
}

impl Metrics {
    /// Counts an answered request.
    pub fn answered(&self, method: &str, route: &str, status: u16, took: Duration) {
        let labels = RequestLabels {
            method: method.to_owned(),
            route: route.to_owned(),
            status,
        };
        self.requests.get_or_create(&labels).observe(took.as_secs_f64());
    }

    /// Counts bytes of an artifact that arrived.
    pub fn received(&self, bytes: u64) {
        self.artifact_bytes_received.inc_by(bytes);
    }

    /// Counts bytes of an artifact that left.
    pub fn sent(&self, bytes: u64) {
        self.artifact_bytes_sent.inc_by(bytes);
    }

    /// Counts an open event stream until the guard is dropped.
    #[must_use]
    pub fn event_stream(&self) -> impl Drop + Send + Sync + use<> {
        struct Guard(Gauge);
        impl Drop for Guard {
            fn drop(&mut self) {
                self.0.dec();
            }
        }
        self.event_streams.inc();
        Guard(self.event_streams.clone())
    }

    /// The text of `/metrics`, with the jobs as the database has them now.
    ///
    /// # Errors
    /// Never in practice: writing into a string does not fail.
    pub fn render(&self, jobs: &[(JobLabels, i64)]) -> Result<String, fmt::Error> {
        let registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        self.jobs.clear();
        for (labels, count) in jobs {
            self.jobs.get_or_create(labels).set(*count);
        }
        let mut output = String::new();
        text::encode(&mut output, &registry)?;
        Ok(output)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_counted_is_rendered_under_its_route() {
        let metrics = Metrics::default();
        metrics.answered("GET", "/v1/searches/{id}", 200, Duration::from_millis(3));
        let stream = metrics.event_stream();
        let jobs = JobLabels {
            kind: "evaluate".into(),
            state: "queued".into(),
        };
        let text = metrics.render(&[(jobs, 7)]).unwrap();
        assert!(
            text.contains(r#"temponas_jobs{kind="evaluate",state="queued"} 7"#),
            "{text}"
        );
        assert!(
            text.contains(r#"request_duration_seconds_count{method="GET",route="/v1/searches/{id}",status="200"} 1"#)
        );
        assert!(text.contains("temponas_event_streams 1"));
        drop(stream);
        assert!(metrics.render(&[]).unwrap().contains("temponas_event_streams 0"));
    }
}
