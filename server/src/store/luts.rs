//! Look-up tables: raw results as they came, merged on reading.

use chrono::{DateTime, Utc};
use lut::{Entry, EntryState, LutKey, Measurement, Runtime, Samples};
use protocol::devices::RuntimeName;
use search_spaces::Block;
use sqlx::PgConnection;
use uuid::Uuid;

use super::{Store, StoreError};

/// What a batch of results turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BatchOutcome {
    /// It is new and stored.
    Stored,
    /// It stood there already; nothing changed.
    Repeated,
    /// Another batch has its id; nothing changed.
    Conflicting,
}

/// A batch of results for one device and runtime, recognised by its id and the digest of its content.
pub struct Batch<'a> {
    /// Chosen by the sender.
    pub id: Uuid,
    /// Device of every entry.
    pub device: &'a str,
    /// Runtime of every entry.
    pub runtime: &'a RuntimeName,
    /// SHA-256 of the content.
    pub digest: &'a str,
    /// The results.
    pub entries: &'a [Entry],
}

/// Stores a batch once.
///
/// # Errors
/// When Postgres is away.
pub async fn insert_batch(
    connection: &mut PgConnection,
    batch: &Batch<'_>,
    now: DateTime<Utc>,
) -> Result<BatchOutcome, StoreError> {
    let inserted = sqlx::query!(
        "INSERT INTO lut_batches (id, device, runtime_name, runtime_version, digest, received_at)
         VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (id) DO NOTHING",
        batch.id,
        batch.device,
        batch.runtime.name,
        batch.runtime.version,
        batch.digest,
        now,
    )
    .execute(&mut *connection)
    .await?;
    if inserted.rows_affected() == 0 {
        let standing = sqlx::query_scalar!("SELECT digest FROM lut_batches WHERE id = $1", batch.id)
            .fetch_one(&mut *connection)
            .await?;
        return Ok(if standing == batch.digest {
            BatchOutcome::Repeated
        } else {
            BatchOutcome::Conflicting
        });
    }
    for entry in batch.entries {
        insert_entry(connection, batch, entry).await?;
    }
    Ok(BatchOutcome::Stored)
}

async fn insert_entry(connection: &mut PgConnection, batch: &Batch<'_>, entry: &Entry) -> Result<(), StoreError> {
    let (latency_ms, peak_memory_bytes, detail) = match &entry.state {
        EntryState::Measured(measured) => (measured.latency_ms.values(), measured.peak_memory_bytes.values(), None),
        EntryState::OutOfMemory { detail } | EntryState::Unsupported { detail } => {
            (&[] as &[f64], &[] as &[f64], Some(detail.as_str()))
        }
    };
    sqlx::query!(
        "INSERT INTO lut_entries (batch_id, device, runtime_name, runtime_version, dtype, operator, shape, state,
                                  detail, latency_ms, peak_memory_bytes)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8::text::entry_state, $9, $10, $11)",
        batch.id,
        batch.device,
        batch.runtime.name,
        batch.runtime.version,
        entry.key.dtype.as_str(),
        entry.key.block.operator,
        entry.key.block.shape.to_string(),
        entry.state.label(),
        detail,
        latency_ms,
        peak_memory_bytes,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Which part of a device's table to read.
#[derive(Debug, Clone, Default)]
pub struct LutFilter<'a> {
    /// Only this runtime.
    pub runtime: Option<&'a RuntimeName>,
    /// Only this number format.
    pub dtype: Option<&'a str>,
    /// Only this operator.
    pub operator: Option<&'a str>,
}

/// Raw results of a device, in the order in which they came.
///
/// # Errors
/// When Postgres is away, or a row is none that this program wrote.
pub async fn entries(
    connection: &mut PgConnection,
    device: &str,
    filter: &LutFilter<'_>,
) -> Result<Vec<Entry>, StoreError> {
    let rows = sqlx::query!(
        r#"SELECT id, runtime_name, runtime_version, dtype, operator, shape, state::text AS "state!", detail,
               latency_ms, peak_memory_bytes
           FROM lut_entries
           WHERE device = $1 AND ($2::text IS NULL OR (runtime_name = $2 AND runtime_version = $3))
             AND ($4::text IS NULL OR dtype = $4) AND ($5::text IS NULL OR operator = $5)
           ORDER BY id"#,
        device,
        filter.runtime.map(|runtime| runtime.name.as_str()),
        filter.runtime.map(|runtime| runtime.version.as_str()),
        filter.dtype,
        filter.operator,
    )
    .fetch_all(connection)
    .await?;
    let entries = rows.into_iter().map(|row| {
        let wrong = |what: String| StoreError::inconsistent("lut_entries", row.id, what);
        let samples = |values: Vec<f64>| Samples::new(values).map_err(|error| wrong(error.to_string()));
        let detail = row.detail.clone().unwrap_or_default();
        Ok(Entry {
            key: LutKey {
                device: device.to_owned(),
                runtime: Runtime::new(row.runtime_name, row.runtime_version),
                dtype: row
                    .dtype
                    .parse()
                    .map_err(|error: search_spaces::UnknownDtype| wrong(error.to_string()))?,
                block: Block {
                    operator: row.operator,
                    shape: row.shape.parse().map_err(|error| wrong(format!("{error}")))?,
                },
            },
            state: match row.state.as_str() {
                "measured" => EntryState::Measured(Measurement {
                    latency_ms: samples(row.latency_ms)?,
                    peak_memory_bytes: samples(row.peak_memory_bytes)?,
                }),
                "out_of_memory" => EntryState::OutOfMemory { detail },
                _ => EntryState::Unsupported { detail },
            },
        })
    });
    entries.collect()
}

impl Store {
    /// Raw results of a device, in the order in which they came.
    ///
    /// # Errors
    /// As [`entries`].
    pub async fn lut_entries(&self, device: &str, filter: &LutFilter<'_>) -> Result<Vec<Entry>, StoreError> {
        let mut connection = self.pool.acquire().await?;
        entries(&mut connection, device, filter).await
    }
}
