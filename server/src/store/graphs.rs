//! Graphs of blocks, for runtimes that cannot build blocks themselves.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use protocol::{jobs::ExportedGraph, luts::Block};
use sqlx::{PgConnection, types::Json};

use super::{StoreError, Tx};
use crate::samples;

/// Keeps the graph of a block; that of the same exporter stands.
///
/// # Errors
/// When Postgres is away.
pub async fn keep(
    tx: &mut Tx,
    dtype: &str,
    block: &Block,
    exporter: &str,
    graph: &ExportedGraph,
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    sqlx::query!(
        "INSERT INTO block_graphs (dtype, operator, shape, exporter, graph, created_at) VALUES ($1, $2, $3, $4, $5, $6)
         ON CONFLICT (dtype, operator, shape, exporter) DO NOTHING",
        dtype,
        block.operator,
        samples::lut_block(block).shape.to_string(),
        exporter,
        Json(graph) as _,
        now,
    )
    .execute(tx.connection())
    .await?;
    Ok(())
}

/// The newest graph of each block of a number format, by operator and shape.
///
/// # Errors
/// When Postgres is away.
pub async fn newest(
    connection: &mut PgConnection,
    dtype: &str,
) -> Result<BTreeMap<(String, String), ExportedGraph>, StoreError> {
    let rows = sqlx::query!(
        r#"SELECT DISTINCT ON (operator, shape) operator, shape, graph AS "graph: Json<ExportedGraph>"
           FROM block_graphs WHERE dtype = $1 ORDER BY operator, shape, created_at DESC, exporter DESC"#,
        dtype,
    )
    .fetch_all(connection)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| ((row.operator, row.shape), row.graph.0))
        .collect())
}
