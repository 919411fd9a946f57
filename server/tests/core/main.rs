//! Leases, searches and tables on a real Postgres, with a clock that stands still until it is moved.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod ablations;
mod deploy_requests;
mod deployments;
mod gangs;
mod graphs;
mod harness;
mod job_requests;
mod leases;
mod profiling;
mod reports;
mod searching;
mod steering;
mod submission;
mod tables;
