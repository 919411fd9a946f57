//! Workers.

use chrono::{DateTime, Utc};
use protocol::{
    JobId, WorkerId,
    devices::{Device, RuntimeName, WorkerRegistration, WorkerView},
    jobs::JobKind,
};

use super::{Store, StoreError, Tx, devices, signed, unsigned};

/// What a worker may take.
#[derive(Debug, Clone)]
pub struct Capabilities {
    /// The worker.
    pub id: WorkerId,
    /// Its device.
    pub device: String,
    /// The runtime it measures with.
    pub runtime: Option<RuntimeName>,
    /// Kinds it takes.
    pub kinds: Vec<JobKind>,
    /// Evaluators it brings.
    pub evaluators: Vec<String>,
    /// Memory for a job, in bytes.
    pub memory_bytes: i64,
}

/// Registers a worker and its device; a repeated registration replaces what was said before.
///
/// # Errors
/// When Postgres is away.
pub async fn register(tx: &mut Tx, worker: &WorkerRegistration, now: DateTime<Utc>) -> Result<(), StoreError> {
    devices::register(tx.connection(), &worker.device, now).await?;
    sqlx::query!(
        "INSERT INTO workers (id, name, device, runtime_name, runtime_version, kinds, evaluators, memory_bytes,
                              registered_at, last_seen)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $9)
         ON CONFLICT (id) DO UPDATE SET name = excluded.name, device = excluded.device,
             runtime_name = excluded.runtime_name, runtime_version = excluded.runtime_version, kinds = excluded.kinds,
             evaluators = excluded.evaluators, memory_bytes = excluded.memory_bytes, last_seen = excluded.last_seen",
        worker.id.0,
        worker.name,
        worker.device.name,
        worker.runtime.as_ref().map(|runtime| runtime.name.as_str()),
        worker.runtime.as_ref().map(|runtime| runtime.version.as_str()),
        worker.kinds.as_slice() as &[JobKind],
        worker.evaluators.as_slice(),
        signed(worker.memory_bytes),
        now,
    )
    .execute(tx.connection())
    .await?;
    sqlx::query!(
        "UPDATE devices SET last_seen = $2 WHERE name = $1",
        worker.device.name,
        now
    )
    .execute(tx.connection())
    .await?;
    Ok(())
}

impl Store {
    /// Notes that a worker was heard of and answers what it may take; absent where it is not registered.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn hear_worker(&self, id: WorkerId, now: DateTime<Utc>) -> Result<Option<Capabilities>, StoreError> {
        let row = sqlx::query!(
            r#"WITH heard AS (UPDATE workers SET last_seen = $2 WHERE id = $1
                              RETURNING device, runtime_name, runtime_version, kinds, evaluators, memory_bytes),
                    seen AS (UPDATE devices SET last_seen = $2 WHERE name = (SELECT device FROM heard))
               SELECT device, runtime_name, runtime_version, kinds AS "kinds: Vec<JobKind>", evaluators, memory_bytes
               FROM heard"#,
            id.0,
            now,
        )
        .fetch_optional(&self.pool)
        .await?;
        Ok(row.map(|row| Capabilities {
            id,
            device: row.device,
            runtime: runtime(row.runtime_name, row.runtime_version),
            kinds: row.kinds,
            evaluators: row.evaluators,
            memory_bytes: row.memory_bytes,
        }))
    }

    /// Workers by id after a cursor, oldest first, at most `limit`.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn workers(&self, after: Option<WorkerId>, limit: i64) -> Result<Vec<WorkerView>, StoreError> {
        let rows = sqlx::query!(
            r#"SELECT w.id AS "id: WorkerId", w.name, w.device, w.runtime_name, w.runtime_version,
                   w.kinds AS "kinds: Vec<JobKind>", w.evaluators, w.memory_bytes, w.last_seen, d.description,
                   d.memory_bytes AS device_memory_bytes,
                   ARRAY(SELECT j.id FROM jobs j
                         WHERE j.state = 'leased'
                           AND (j.worker_id = w.id
                                OR EXISTS (SELECT FROM seats t WHERE t.job_id = j.id AND t.attempt = j.handovers
                                                                 AND t.worker_id = w.id AND t.done_at IS NULL))
                         ORDER BY j.id)
                       AS "running!: Vec<JobId>"
               FROM workers w JOIN devices d ON d.name = w.device
               WHERE $1::uuid IS NULL OR w.id > $1 ORDER BY w.id LIMIT $2"#,
            after.map(|id| id.0),
            limit,
        )
        .fetch_all(&self.pool)
        .await?;
        let workers = rows.into_iter().map(|row| WorkerView {
            worker: WorkerRegistration {
                id: row.id,
                name: row.name,
                device: Device {
                    name: row.device,
                    description: row.description,
                    memory_bytes: row.device_memory_bytes.map(unsigned),
                },
                runtime: runtime(row.runtime_name, row.runtime_version),
                kinds: row.kinds,
                evaluators: row.evaluators,
                memory_bytes: unsigned(row.memory_bytes),
            },
            last_seen: row.last_seen,
            running: row.running,
        });
        Ok(workers.collect())
    }

    /// How many workers heard of since a moment take jobs of a kind.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn workers_taking(&self, kind: JobKind, alive_since: DateTime<Utc>) -> Result<u64, StoreError> {
        let count = sqlx::query_scalar!(
            r#"SELECT count(*) AS "count!" FROM workers WHERE $1 = ANY (kinds) AND last_seen >= $2"#,
            kind as JobKind,
            alive_since,
        );
        Ok(unsigned(count.fetch_one(&self.pool).await?))
    }
}

/// Name and version, which the schema keeps together.
pub(super) fn runtime(name: Option<String>, version: Option<String>) -> Option<RuntimeName> {
    name.zip(version).map(|(name, version)| RuntimeName { name, version })
}
