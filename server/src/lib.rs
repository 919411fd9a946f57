//! The coordinator and the `temponas` command.

pub mod ablation;
pub mod api;
pub mod app;
pub mod artifacts;
mod aside;
pub mod auth;
pub mod cli;
pub mod client;
pub mod config;
pub mod coordinator;
pub mod demo;
pub mod deployments;
pub mod dispatch;
pub mod embedded_postgres;
pub mod event_hub;
pub mod job_requests;
pub mod metrics;
pub mod plots;
pub mod report;
pub mod samples;
pub mod search;
pub mod shipped;
pub mod store;

/// Every migration, in order.
pub static MIGRATOR: sqlx::migrate::Migrator = sqlx::migrate!("../migrations");
