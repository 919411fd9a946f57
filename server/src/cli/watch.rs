//! `temponas watch`: follows a search to its end.

use std::{io::IsTerminal, process::ExitCode, time::Duration};

use clap::Args;
use futures::StreamExt;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use protocol::{
    SearchId,
    events::{Event, EventBody},
    jobs::{JobKind, JobState},
    searches::{CandidateState, CandidateView, SearchState, SearchView},
};

use super::{Remote, render};
use crate::{
    client::{Client, ClientError},
    config::ConfigFile,
};

/// How long to wait before a broken stream is taken up again.
const PAUSE: Duration = Duration::from_secs(1);

#[derive(Debug, Args)]
pub(super) struct WatchArgs {
    /// The search's id, or the beginning or end of it
    id: String,
    #[command(flatten)]
    remote: Remote,
}

pub(super) async fn run(args: WatchArgs, file: &ConfigFile) -> anyhow::Result<ExitCode> {
    let client = args.remote.client(file)?;
    let id = client.find_search(&args.id).await?;
    follow(&client, id).await
}

/// Shows a search until it ends; fails where the search failed.
pub(super) async fn follow(client: &Client, id: SearchId) -> anyhow::Result<ExitCode> {
    let search = until_end(client, id).await?;
    let front = client.front(id).await?;
    if !front.points.is_empty() {
        render::say(&render::front(&front).to_string())?;
    }
    render::say(&format!(
        "{}: {}",
        render::state(search.state),
        render::budget(&search.budget)
    ))?;
    if let Some(reason) = &search.state_reason {
        render::say(reason)?;
    }
    Ok(if search.state == SearchState::Failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// Shows progress until the search has ended, whatever happens to the connection meanwhile.
pub(super) async fn until_end(client: &Client, id: SearchId) -> anyhow::Result<SearchView> {
    let mut search = client.search(id).await?;
    let mut screen = Screen::new(&search);
    let mut seen = 0;
    while !has_ended(search.state) {
        match client.events(id, seen).await {
            Ok(mut events) => {
                while let Some(Ok(event)) = events.next().await {
                    seen = event.sequence;
                    let ended = matches!(&event.body, EventBody::SearchState { state, .. } if has_ended(*state));
                    screen.show(&event);
                    if ended {
                        break;
                    }
                }
            }
            Err(error @ (ClientError::Refused(_) | ClientError::Strange { .. })) if !is_passing(&error) => {
                return Err(error.into());
            }
            Err(error) => screen.say(&format!("{error}; trying again")),
        }
        match client.search(id).await {
            Ok(view) => search = view,
            Err(ClientError::Unreachable { .. }) => {}
            Err(error) if is_passing(&error) => {}
            Err(error) => return Err(error.into()),
        }
        screen.budget(&search);
        if !has_ended(search.state) {
            tokio::time::sleep(PAUSE).await;
        }
    }
    screen.bar.finish_and_clear();
    Ok(search)
}

fn is_passing(error: &ClientError) -> bool {
    matches!(error, ClientError::Refused(problem) if problem.status == 503)
}

/// Whether nothing will follow any more.
pub(super) fn has_ended(state: SearchState) -> bool {
    matches!(state, SearchState::Done | SearchState::Cancelled | SearchState::Failed)
}

/// A bar where there is a terminal, lines elsewhere.
struct Screen {
    bar: ProgressBar,
    lines_only: bool,
    metrics: Vec<String>,
    state: SearchState,
    hypervolume: Option<f64>,
    front_points: usize,
    running: Option<String>,
}

impl Screen {
    fn new(search: &SearchView) -> Self {
        let lines_only = !std::io::stderr().is_terminal();
        let bar = ProgressBar::new(search.budget.max_evaluations);
        if lines_only {
            bar.set_draw_target(ProgressDrawTarget::hidden());
        }
        let style = ProgressStyle::with_template("{elapsed_precise} {bar:30.green/dim} {pos}/{len} evaluations  {msg}");
        if let Ok(style) = style {
            bar.set_style(style.progress_chars("━╸─"));
        }
        bar.enable_steady_tick(Duration::from_millis(250));
        let metrics = search
            .objectives
            .iter()
            .map(|objective| objective.metric.clone())
            .collect();
        let mut screen = Self {
            bar,
            lines_only,
            metrics,
            state: search.state,
            hypervolume: None,
            front_points: 0,
            running: None,
        };
        screen.budget(search);
        screen
    }

    fn say(&self, line: &str) {
        if self.lines_only {
            eprintln!("{line}");
        } else {
            self.bar.println(line);
        }
    }

    fn budget(&mut self, search: &SearchView) {
        self.state = search.state;
        self.hypervolume = search.hypervolume;
        self.front_points = usize::try_from(search.front_points).unwrap_or(usize::MAX);
        self.bar.set_position(search.budget.evaluations);
        self.refresh();
    }

    fn show(&mut self, event: &Event) {
        match &event.body {
            EventBody::SearchState { state, reason } => {
                self.state = *state;
                let reason = reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
                self.say(&format!("{}{reason}", render::state(*state)));
            }
            EventBody::Candidate { candidate } => {
                if let Some(line) = self.candidate_line(candidate) {
                    self.say(&line);
                }
            }
            EventBody::Front {
                evaluations,
                hypervolume,
                points,
            } => {
                self.bar.set_position(*evaluations);
                self.hypervolume = Some(*hypervolume);
                self.front_points = points.len();
            }
            EventBody::Job {
                kind,
                state,
                progress,
                status,
                ..
            } => {
                self.running = job_text(*kind, *state, *progress, status.as_deref());
            }
        }
        self.refresh();
    }

    fn candidate_line(&self, candidate: &CandidateView) -> Option<String> {
        let name = match &candidate.reference {
            Some(reference) => format!("{} ({reference})", candidate.architecture),
            None => candidate.architecture.clone(),
        };
        let outcome = match candidate.state {
            CandidateState::Proposed | CandidateState::Evaluating => return None,
            CandidateState::Infeasible => format!("infeasible: {}", candidate.state_reason.as_deref().unwrap_or("")),
            CandidateState::Failed => format!("failed: {}", candidate.state_reason.as_deref().unwrap_or("")),
            CandidateState::Evaluated => {
                let known = |metric: &String| {
                    let figures = [&candidate.verified, &candidate.measured, &candidate.predicted];
                    let figure = figures.iter().find_map(|figures| figures.get(metric))?;
                    Some(format!("{} {}", render::head(metric), render::figure(metric, figure)))
                };
                let figures: Vec<String> = self.metrics.iter().filter_map(known).collect();
                let mark = match (candidate.on_front, candidate.verified.is_empty()) {
                    (true, true) => "  on the front",
                    (true, false) => "  on the front, verified",
                    (false, true) => "",
                    (false, false) => "  verified",
                };
                format!("{}{mark}", figures.join(", "))
            }
        };
        Some(format!("#{:<4} {name}  {outcome}", candidate.number))
    }

    fn refresh(&self) {
        let mut parts = vec![render::state(self.state).to_owned()];
        if self.front_points > 0 {
            parts.push(format!("front {}", self.front_points));
        }
        if let Some(volume) = self.hypervolume {
            parts.push(format!("hypervolume {volume:.4}"));
        }
        parts.extend(self.running.clone());
        self.bar.set_message(parts.join(" · "));
    }
}

fn job_text(kind: JobKind, state: JobState, progress: f64, status: Option<&str>) -> Option<String> {
    let is_running = state == JobState::Leased && kind != JobKind::Lookup;
    is_running.then(|| {
        format!("{kind} {:.0} % {}", progress * 100.0, status.unwrap_or_default())
            .trim_end()
            .to_owned()
    })
}
