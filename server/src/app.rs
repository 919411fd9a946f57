//! What every handler shares.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use chrono::{DateTime, TimeDelta, Utc};

use crate::{
    artifacts::ArtifactStore, config::Config, event_hub::EventHub, metrics::Metrics, search::Caches, store::Store,
};

/// The coordinator's parts. It holds no state of its own: all that must last is in `store` and `artifacts`.
#[derive(Debug)]
pub struct App {
    /// Postgres.
    pub store: Store,
    /// Bytes named by their digest.
    pub artifacts: ArtifactStore,
    /// Time; tests move it.
    pub clock: Clock,
    /// Wake-ups for long polls and event streams.
    pub events: EventHub,
    /// Counters and durations for `/metrics`.
    pub metrics: Metrics,
    /// Copies of what never changes in a search.
    pub searches: Caches,
    /// Settings.
    pub config: Config,
}

/// The time of day, as an argument: in tests it stands still until it is moved.
#[derive(Clone, Default)]
pub enum Clock {
    /// The machine's clock.
    #[default]
    System,
    /// A clock that only [`Clock::advance`] moves.
    Manual(Arc<Mutex<DateTime<Utc>>>),
}

impl Clock {
    /// A clock that stands at `start`.
    #[must_use]
    pub fn manual(start: DateTime<Utc>) -> Self {
        Self::Manual(Arc::new(Mutex::new(start)))
    }

    /// The time now.
    #[must_use]
    pub fn now(&self) -> DateTime<Utc> {
        match self {
            Self::System => Utc::now(),
            Self::Manual(time) => *time.lock().unwrap_or_else(PoisonError::into_inner),
        }
    }

    /// Moves a manual clock forward; the machine's clock cannot be moved, so there it does nothing.
    pub fn advance(&self, by: TimeDelta) {
        if let Self::Manual(time) = self {
            *time.lock().unwrap_or_else(PoisonError::into_inner) += by;
        }
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::System => f.write_str("System"),
            Self::Manual(_) => write!(f, "Manual({})", self.now()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manual_clock_moves_only_when_told() {
        let start = DateTime::UNIX_EPOCH;
        let clock = Clock::manual(start);
        let shared = clock.clone();
        assert_eq!(clock.now(), start);
        shared.advance(TimeDelta::seconds(30));
        assert_eq!(clock.now(), start + TimeDelta::seconds(30));
    }
}
