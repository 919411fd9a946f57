//! What the agent does with a job.

mod model;
mod profile;

use std::path::PathBuf;
use std::time::Instant;

use job_client::files::{is_plain, lay_out};
use job_client::{Attempt, Client, ClientError, JobError, Work};
use protocol::devices::RuntimeName;
use protocol::jobs::{DeviceSeconds, ExportedGraph, GraphOutcome, GraphProfile, JobInput, JobResult, Outcome};

use crate::child::{ChildError, Children};
use crate::journal::Journal;
use crate::measure::{Finding, Plan, Request};

/// The agent's work.
#[derive(Debug, Clone)]
pub struct Agent {
    /// The device's name.
    pub device: String,
    /// The runtime under whose name its figures stand.
    pub runtime: RuntimeName,
    /// How graphs are measured.
    pub children: Children,
    /// Bytes that a graph may take.
    pub memory_bytes: u64,
    /// What was measured.
    pub journal: Journal,
    /// Where graphs are laid out.
    pub graphs: PathBuf,
}

impl Work for Agent {
    fn run(&self, attempt: Attempt) -> Result<JobResult, JobError> {
        self.journal.hold(&attempt.job).map_err(JobError::attempt)?;
        let bench = Bench {
            agent: self,
            attempt: &attempt,
            tokio: tokio::runtime::Handle::current(),
            started: Instant::now(),
        };
        match &attempt.job.input {
            JobInput::Profile(input) => profile::run(&bench, input),
            JobInput::ProfileModel(input) => model::run(&bench, input),
            other => Err(JobError::Input(format!("an agent takes no {} jobs", other.kind()))),
        }
    }

    async fn registered(&self, client: &Client) -> Result<(), ClientError> {
        self.journal.take_up(client).await
    }
}

/// One attempt at a job on this device.
struct Bench<'a> {
    agent: &'a Agent,
    attempt: &'a Attempt,
    tokio: tokio::runtime::Handle,
    started: Instant,
}

impl Bench<'_> {
    /// Measures a graph after its files have been fetched.
    fn measure(&self, graph: &ExportedGraph, plan: Plan) -> Result<Finding, JobError> {
        let request = Request {
            graph: self.fetch(graph)?,
            inputs: graph.inputs.clone(),
            plan,
            memory_bytes: self.agent.memory_bytes,
        };
        let found = self.agent.children.measure(&request, &|| self.attempt.pulse.stops());
        let finding = found.map_err(|error| match error {
            ChildError::Interrupted => JobError::Interrupted,
            error => JobError::attempt(error),
        })?;
        if let GraphOutcome::OutOfMemory { detail } | GraphOutcome::Unsupported { detail } = &finding.outcome {
            self.attempt.pulse.write(&format!("{}: {detail}", graph.name));
        }
        Ok(finding)
    }

    /// Lays a graph's files out side by side under their names, by which the graph finds its weights.
    fn fetch(&self, graph: &ExportedGraph) -> Result<PathBuf, JobError> {
        let Some(first) = graph.files.first() else {
            return Err(JobError::Input(format!("graph `{}` has no file", graph.name)));
        };
        let folder = self.agent.graphs.join(first.digest.as_str());
        for file in &graph.files {
            if !is_plain(&file.name) {
                return Err(JobError::Input(format!("`{}` is no plain file name", file.name)));
            }
            let place = folder.join(&file.name);
            if !place.exists() {
                let fetched = self.tokio.block_on(self.attempt.client.fetch(&file.digest));
                let fetched = fetched.map_err(JobError::attempt)?;
                lay_out(&fetched, &place).map_err(JobError::attempt)?;
            }
        }
        Ok(folder.join(&first.name))
    }

    /// Says how far the job is.
    fn progress(&self, done: usize, of: usize, name: &str) -> Result<(), JobError> {
        let pulse = &self.attempt.pulse;
        pulse.spent(self.spent());
        pulse.progress(
            done as f64 / of.max(1) as f64,
            &format!("measuring {name}, {} of {of}", done + 1),
        );
        if pulse.stops() {
            Err(JobError::Interrupted)
        } else {
            Ok(())
        }
    }

    fn spent(&self) -> DeviceSeconds {
        DeviceSeconds {
            profile: self.started.elapsed().as_secs_f64(),
            ..DeviceSeconds::default()
        }
    }

    fn result(&self, outcome: Outcome, artifacts: Vec<protocol::artifacts::ArtifactRef>) -> JobResult {
        JobResult {
            device_seconds: self.spent(),
            artifacts,
            outcome,
        }
    }
}

fn profile_of(graph: &ExportedGraph, outcome: GraphOutcome) -> GraphProfile {
    GraphProfile {
        name: graph.name.clone(),
        file_bytes: graph.files.iter().map(|file| file.bytes).sum(),
        outcome,
    }
}
