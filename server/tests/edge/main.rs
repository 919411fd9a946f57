//! The coordinator from outside: over REST, and as real processes that are killed.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod access;
mod artifacts;
mod cluster;
mod commands;
mod document;
mod events;
mod problems;
mod server;
mod spaces;
