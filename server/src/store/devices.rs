//! Devices.

use chrono::{DateTime, Utc};
use protocol::devices::{Device, DeviceView, RuntimeName};
use sqlx::PgConnection;

use super::{Store, StoreError, signed, unsigned};

/// Registers a device, or takes over what is newly said of it; a memory once known is not forgotten.
///
/// # Errors
/// When Postgres is away.
pub async fn register(connection: &mut PgConnection, device: &Device, now: DateTime<Utc>) -> Result<(), StoreError> {
    sqlx::query!(
        "INSERT INTO devices (name, description, memory_bytes, created_at) VALUES ($1, $2, $3, $4)
         ON CONFLICT (name) DO UPDATE SET
             description = CASE WHEN excluded.description = '' THEN devices.description ELSE excluded.description END,
             memory_bytes = coalesce(excluded.memory_bytes, devices.memory_bytes)",
        device.name,
        device.description,
        device.memory_bytes.map(signed),
        now,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Memory of a device, where it is known.
///
/// # Errors
/// When Postgres is away.
pub async fn memory(connection: &mut PgConnection, name: &str) -> Result<Option<u64>, StoreError> {
    let query = sqlx::query_scalar!("SELECT memory_bytes FROM devices WHERE name = $1", name);
    Ok(query.fetch_optional(connection).await?.flatten().map(unsigned))
}

impl Store {
    /// Devices by name after a cursor, at most `limit`; with `name` only that one. Where only look-ups run, as in the
    /// coordinator itself, there is no device.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn devices(
        &self,
        name: Option<&str>,
        after: Option<&str>,
        limit: i64,
    ) -> Result<Vec<DeviceView>, StoreError> {
        let rows = sqlx::query!(
            r#"SELECT name, description, memory_bytes, last_seen,
                   (SELECT count(DISTINCT (runtime_name, runtime_version, dtype, operator, shape))
                    FROM lut_entries WHERE device = devices.name) AS "entries!"
               FROM devices WHERE ($1::text IS NULL OR name = $1) AND ($2::text IS NULL OR name > $2)
                 AND (NOT EXISTS (SELECT FROM workers w WHERE w.device = devices.name)
                      OR EXISTS (SELECT FROM workers w WHERE w.device = devices.name AND w.kinds <> '{lookup}'))
               ORDER BY name LIMIT $3"#,
            name,
            after,
            limit,
        )
        .fetch_all(&self.pool)
        .await?;
        let mut devices = Vec::with_capacity(rows.len());
        for row in rows {
            devices.push(DeviceView {
                runtimes: self.lut_runtimes(&row.name).await?,
                device: Device {
                    name: row.name,
                    description: row.description,
                    memory_bytes: row.memory_bytes.map(unsigned),
                },
                last_seen: row.last_seen,
                lut_entries: unsigned(row.entries),
            });
        }
        Ok(devices)
    }

    /// One device.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn device(&self, name: &str) -> Result<Option<DeviceView>, StoreError> {
        Ok(self.devices(Some(name), None, 1).await?.pop())
    }

    /// Runtimes that have entries in the device's table.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn lut_runtimes(&self, device: &str) -> Result<Vec<RuntimeName>, StoreError> {
        let query = sqlx::query_as!(
            RuntimeName,
            "SELECT DISTINCT runtime_name AS name, runtime_version AS version FROM lut_batches WHERE device = $1
             ORDER BY 1, 2",
            device,
        );
        Ok(query.fetch_all(&self.pool).await?)
    }

    /// Runtimes of the device's table and of the workers on it heard of since a moment.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn runtimes(&self, device: &str, alive_since: DateTime<Utc>) -> Result<Vec<RuntimeName>, StoreError> {
        let query = sqlx::query_as!(
            RuntimeName,
            r#"SELECT runtime_name AS "name!", runtime_version AS "version!" FROM lut_batches WHERE device = $1
               UNION SELECT runtime_name, runtime_version FROM workers
                     WHERE device = $1 AND runtime_name IS NOT NULL AND last_seen >= $2
               ORDER BY 1, 2"#,
            device,
            alive_since,
        );
        Ok(query.fetch_all(&self.pool).await?)
    }
}
