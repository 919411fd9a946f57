//! The coordinator and the `temponas` command.

pub mod api;
pub mod app;
pub mod artifacts;
pub mod auth;
pub mod config;
pub mod event_hub;
pub mod metrics;
pub mod store;

/// Every migration, in order.
pub static MIGRATOR: sqlx::migrate::Migrator = sqlx::migrate!("../migrations");
