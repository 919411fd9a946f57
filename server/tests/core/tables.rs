//! Table spaces: the coordinator's own worker answers, through the same leases.

use std::time::Duration;

use protocol::searches::{NewSearch, SearchState};
use sqlx::PgPool;
use temponas_server::{MIGRATOR, search};

use crate::harness::{Harness, new_search, table, table_space};

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_table_search_runs_by_itself_and_finds_the_tables_own_front(pool: PgPool) {
    let t = Harness::new(pool);
    let digest = t.upload(table().as_bytes()).await;
    let _background = search::background::start(t.app.clone());
    let space = table_space().replace("max_evaluations = 20", "max_evaluations = 27");
    let id = t
        .try_submit(&NewSearch {
            table: Some(digest),
            ..new_search(&space)
        })
        .await
        .unwrap();
    let waited = async {
        while t.state(id).await != SearchState::Done {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), waited)
        .await
        .expect("it ends by itself");
    let parsed = search_spaces::Space::parse(&space).unwrap();
    let own = search_spaces::Table::parse(&parsed, table().as_bytes()).unwrap();
    let ranges = own.ranges(&parsed).unwrap();
    let figures = t.app.store.search_figures(id).await.unwrap();
    assert_eq!(figures.evaluations, 27, "all there are");
    // Summed in another order: the last bit may differ.
    let difference = figures.hypervolume.unwrap() - own.hypervolume(&parsed, &ranges);
    assert!(difference.abs() < 1e-12, "{difference}");
    assert_eq!(figures.front_points, own.front(&parsed, &ranges).len() as u64);
}
