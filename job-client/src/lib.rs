//! What every program does that takes jobs from a coordinator: it registers, leases a job, keeps the lease, fetches and
//! sends artifacts, and hands in what was found; neither a lost connection nor its own death loses a result.
//!
//! What is done with a job is the program's own (see [`Work`]).

pub mod client;
#[cfg(test)]
mod fake_coordinator;
pub mod files;
pub mod host;
mod lease;
mod pulse;
mod runtime;
mod seat;

pub use client::{Client, ClientError, digest_of};
pub use pulse::Pulse;
pub use runtime::{Attempt, JobError, Work, Worker};
pub use seat::{Gang, Gathered};
