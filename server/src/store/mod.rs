//! The only SQL.

use sqlx::{PgPool, Postgres, pool::PoolConnection};

pub mod artifacts;
pub mod candidates;
pub mod deployments;
pub mod devices;
pub mod events;
pub mod fronts;
pub mod graphs;
pub mod health;
pub mod jobs;
pub mod luts;
pub mod searches;
pub mod seats;
pub mod tokens;
mod transaction;
pub mod workers;

pub use transaction::Tx;

/// Postgres, through a pool of connections.
#[derive(Debug, Clone)]
pub struct Store {
    pool: PgPool,
}

/// Why the store could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Postgres is away, or refused a statement.
    #[error("the database could not answer")]
    Database(#[from] sqlx::Error),
    /// A row says what this program would never have written.
    #[error("{table} {row}: {what}")]
    Inconsistent {
        /// The table.
        table: &'static str,
        /// The row's key.
        row: String,
        /// What is wrong with it.
        what: String,
    },
}

impl StoreError {
    /// A row that says what this program would never have written.
    pub(crate) fn inconsistent(table: &'static str, row: impl ToString, what: impl ToString) -> Self {
        Self::Inconsistent {
            table,
            row: row.to_string(),
            what: what.to_string(),
        }
    }
}

impl Store {
    /// A store on an open pool whose migrations have run.
    #[must_use]
    pub fn new(pool: PgPool) -> Self {
        Self { pool }
    }

    /// The pool, for what this process does beside requests.
    #[must_use]
    pub fn pool(&self) -> &PgPool {
        &self.pool
    }

    /// A connection of its own for several reads.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn connection(&self) -> Result<PoolConnection<Postgres>, StoreError> {
        Ok(self.pool.acquire().await?)
    }

    /// Opens a transaction that may tell events.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn begin(&self) -> Result<Tx, StoreError> {
        Ok(Tx::new(self.pool.begin().await?))
    }
}

/// A count or number from a column that holds no negative ones.
pub(crate) fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

/// A number for a column; what exceeds it becomes the largest.
pub(crate) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
