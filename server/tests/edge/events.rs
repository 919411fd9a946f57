//! Event streams.

use std::time::Duration;

use futures::StreamExt;
use protocol::{SearchId, events::Event};
use sqlx::PgPool;
use temponas_server::{client::Client, config::TokenMode};

use crate::server::{Server, start_of_time};

async fn insert_search(pool: &PgPool) -> SearchId {
    let id = SearchId::new();
    sqlx::query(
        "INSERT INTO searches (id, name, space_name, space, strategy, seed, priority, max_evaluations, state, created_at)
         VALUES ($1, 'n', 's', '', 'random', 0, 0, 1, 'profiling', $2)",
    )
    .bind(id.0)
    .bind(start_of_time())
    .execute(pool)
    .await
    .unwrap();
    sqlx::query("INSERT INTO search_streams (search_id) VALUES ($1)")
        .bind(id.0)
        .execute(pool)
        .await
        .unwrap();
    id
}

/// Appends an event as the store does: numbered under the lock of the stream's row, told at commit.
async fn append(pool: &PgPool, id: SearchId, linger: Duration) {
    let mut tx = pool.begin().await.unwrap();
    let sequence: i64 = sqlx::query_scalar(
        "UPDATE search_streams SET last_sequence = last_sequence + 1 WHERE search_id = $1 RETURNING last_sequence",
    )
    .bind(id.0)
    .fetch_one(&mut *tx)
    .await
    .unwrap();
    let body = serde_json::json!({"type": "search_state", "state": "profiling", "reason": sequence.to_string()});
    sqlx::query("INSERT INTO events (search_id, sequence, at, body) VALUES ($1, $2, $3, $4)")
        .bind(id.0)
        .bind(sequence)
        .bind(start_of_time())
        .bind(body)
        .execute(&mut *tx)
        .await
        .unwrap();
    sqlx::query("SELECT pg_notify('temponas_events', '')")
        .execute(&mut *tx)
        .await
        .unwrap();
    tokio::time::sleep(linger).await;
    tx.commit().await.unwrap();
}

#[sqlx::test(migrator = "temponas_server::MIGRATOR")]
async fn a_reader_that_comes_back_misses_nothing_and_sees_nothing_twice(pool: PgPool) {
    const EVENTS: i64 = 240;
    let server = Server::start(pool.clone(), TokenMode::Auto).await;
    let id = insert_search(&pool).await;
    let writers: Vec<_> = (0..3)
        .map(|writer| {
            let pool = pool.clone();
            tokio::spawn(async move {
                for number in 0..EVENTS / 3 {
                    append(&pool, id, Duration::from_millis(((writer + number) % 4) as u64)).await;
                }
            })
        })
        .collect();
    let client = Client::new(&format!("http://{}", server.address), None).unwrap();
    let mut seen: Vec<i64> = Vec::new();
    let reading = async {
        while (seen.len() as i64) < EVENTS {
            let last = seen.last().copied().unwrap_or(0);
            // Every connection breaks after some events, in the middle of what is being written.
            let mut stream = client.events(id, last).await.unwrap().take(17);
            while let Some(event) = stream.next().await {
                let event: Event = event.unwrap();
                seen.push(event.sequence);
                if seen.len() as i64 == EVENTS {
                    break;
                }
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(60), reading)
        .await
        .expect("all events within a minute");
    for writer in writers {
        writer.await.unwrap();
    }
    assert_eq!(seen, (1..=EVENTS).collect::<Vec<i64>>());
}

#[sqlx::test(migrator = "temponas_server::MIGRATOR")]
async fn an_event_arrives_without_waiting_for_the_next_look(pool: PgPool) {
    let server = Server::start(pool.clone(), TokenMode::Auto).await;
    let id = insert_search(&pool).await;
    let client = Client::new(&format!("http://{}", server.address), None).unwrap();
    let mut stream = client.events(id, 0).await.unwrap();
    // The listener has subscribed once it has heard a first event.
    append(&pool, id, Duration::ZERO).await;
    stream.next().await.unwrap().unwrap();
    let started = std::time::Instant::now();
    append(&pool, id, Duration::ZERO).await;
    assert_eq!(stream.next().await.unwrap().unwrap().sequence, 2);
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
}

#[sqlx::test(migrator = "temponas_server::MIGRATOR")]
async fn a_wrong_last_event_id_is_named(pool: PgPool) {
    let server = Server::start(pool.clone(), TokenMode::Auto).await;
    let id = insert_search(&pool).await;
    let request = server.request(reqwest::Method::GET, &format!("/v1/searches/{id}/events"));
    let document = crate::server::problem(request.header("last-event-id", "seven").send().await.unwrap()).await;
    assert_eq!(document.errors[0].field, "last-event-id");
}
