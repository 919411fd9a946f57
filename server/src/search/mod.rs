//! Driving searches: what is stored decides, pure functions propose, one transaction moves on.
//!
//! Nothing is remembered between two moves but copies of what never changes. Any coordinator can make the
//! next move of any search, at any time, as often as it likes.

mod additive;
mod advance;
pub mod background;
pub mod bench_search;
mod containment;
mod context;
mod elimination;
mod estimate;
mod front;
mod lookup;
mod measuring;
mod profiling;
mod proposing;
mod recommendation;
mod steering;
mod submission;
mod tables;
mod verification;
pub mod views;

use std::borrow::Cow;

use protocol::{FieldProblem, SearchId, searches::SearchState};

pub use advance::{advance, advance_all};
pub use containment::contain;
pub use context::Caches;
pub use estimate::estimate;
pub use front::front;
pub use measuring::{FIGURE_3_SIZES, measure};
pub(crate) use profiling::{Asker, dtype as profiled_dtype};
pub(crate) use proposing::evaluator_of;
pub use recommendation::{Within, recommend};
pub use steering::{Steering, steer};
pub use submission::{Submitted, parse_space, read_space, submit};
pub(crate) use submission::{is_plain_name, short as shortened};
pub use verification::recalibrate;

use crate::{artifacts::ArtifactError, store::StoreError};

/// Why a search cannot be made, steered or moved on.
#[derive(Debug, thiserror::Error)]
pub enum SearchError {
    /// There is no such search.
    #[error("there is no search {0}")]
    NotFound(SearchId),
    /// The space file is wrong; every field at fault with line and column.
    #[error("the space file cannot be accepted")]
    Space(Vec<FieldProblem>),
    /// A field of the request is wrong.
    #[error("{field}: {message}")]
    Invalid {
        /// The field.
        field: Cow<'static, str>,
        /// What was found and what is allowed.
        message: String,
    },
    /// It cannot be done in the state the search is in.
    #[error("search {id} is {}; {wish}", state_name(*state))]
    WrongState {
        /// The search.
        id: SearchId,
        /// Where it stands.
        state: SearchState,
        /// What was asked for and when it can be done.
        wish: &'static str,
    },
    /// The idempotency key was used for another request.
    #[error("the idempotency key `{0}` was used for another request; choose a fresh one")]
    KeyReused(String),
    /// The artifact store failed.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A state as it is called on the wire.
#[must_use]
pub const fn state_name(state: SearchState) -> &'static str {
    match state {
        SearchState::Profiling => "profiling",
        SearchState::Eliminating => "eliminating",
        SearchState::Searching => "searching",
        SearchState::Verifying => "verifying",
        SearchState::Done => "done",
        SearchState::Paused => "paused",
        SearchState::Cancelled => "cancelled",
        SearchState::Failed => "failed",
    }
}
