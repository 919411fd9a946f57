//! The spaces that ship.

use reqwest::{Method, StatusCode};
use serde_json::Value;
use sqlx::PgPool;
use temponas_server::config::TokenMode;

use crate::server::{Server, problem};

#[sqlx::test(migrator = "temponas_server::MIGRATOR")]
async fn shipped_spaces_are_listed_page_by_page_and_read_whole(pool: PgPool) {
    let server = Server::start(pool, TokenMode::Auto).await;
    let get = |path: String| server.request(Method::GET, &path).send();
    let read = async |path: String| -> Value { get(path).await.unwrap().json().await.unwrap() };
    let (mut names, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = read(format!("/v1/spaces?limit=2{cursor}")).await;
        let items = page["items"].as_array().unwrap();
        names.extend(items.iter().map(|space| space["name"].as_str().unwrap().to_owned()));
        let Some(next) = page["next_cursor"].as_str() else {
            break;
        };
        cursor = format!("&cursor={next}");
    }
    let all = [
        "emoji-small",
        "nas-bench-201",
        "nas-bench-macro",
        "shapes-tiny",
        "snapgen-v",
    ];
    assert_eq!(names, all);

    let space = read("/v1/spaces/nas-bench-201".to_owned()).await;
    assert_eq!(space["kind"], "table");
    assert_eq!(space["architectures"], "15625");
    let text = space["text"].as_str().unwrap();
    let body = serde_json::json!({ "space": text });
    let checked = server.request(Method::POST, "/v1/spaces:validate").json(&body).send();
    let checked: Value = checked.await.unwrap().json().await.unwrap();
    assert_eq!(
        checked["positions"], space["positions"],
        "what is read can be submitted"
    );

    let missing = problem(get("/v1/spaces/nowhere".to_owned()).await.unwrap()).await;
    assert_eq!(missing.status, StatusCode::NOT_FOUND.as_u16());
}
