//! Artifacts over REST.

use protocol::artifacts::UPLOAD_OFFSET;
use reqwest::{Method, StatusCode, header};
use sqlx::PgPool;
use temponas_server::{artifacts::digest_of, config::TokenMode};
use tokio::io::AsyncWriteExt;

use crate::server::{Server, problem};

fn bytes(length: usize) -> Vec<u8> {
    (0..length).map(|index| (index * 31 % 251) as u8).collect()
}

#[sqlx::test(migrator = "temponas_server::MIGRATOR")]
async fn what_was_sent_is_what_is_read(pool: PgPool) {
    let server = Server::start(pool, TokenMode::Auto).await;
    let sent = bytes(100_000);
    let path = format!("/v1/artifacts/{}", digest_of(&sent));
    let put = || {
        server
            .request(Method::PUT, &path)
            .header(header::CONTENT_TYPE, "image/gif")
            .body(sent.clone())
            .send()
    };
    assert_eq!(put().await.unwrap().status(), StatusCode::CREATED);
    assert_eq!(
        put().await.unwrap().status(),
        StatusCode::OK,
        "once more changes nothing"
    );

    let reply = server.request(Method::GET, &path).send().await.unwrap();
    assert_eq!(reply.headers()[header::CONTENT_TYPE], "image/gif");
    assert_eq!(reply.headers()["x-content-type-options"], "nosniff");
    assert_eq!(reply.headers()[header::CONTENT_DISPOSITION], "inline");
    let tag = reply.headers()[header::ETAG].clone();
    assert_eq!(reply.bytes().await.unwrap(), sent);

    let head = server.request(Method::HEAD, &path).send().await.unwrap();
    assert_eq!(head.headers()[header::CONTENT_LENGTH], "100000");
    let known = server
        .request(Method::GET, &path)
        .header(header::IF_NONE_MATCH, tag)
        .send()
        .await
        .unwrap();
    assert_eq!(known.status(), StatusCode::NOT_MODIFIED);
}

#[sqlx::test(migrator = "temponas_server::MIGRATOR")]
async fn an_artifact_that_is_too_long_is_refused_whether_or_not_its_length_is_announced(pool: PgPool) {
    let server = Server::with(pool, |config| config.max_artifact_bytes = 1000).await;
    let put = async |length: usize, announced: bool| {
        let sent = bytes(length);
        let path = format!("/v1/artifacts/{}", digest_of(&sent));
        let body = match announced {
            true => reqwest::Body::from(sent),
            false => reqwest::Body::wrap_stream(futures::stream::iter([Ok::<_, std::io::Error>(sent)])),
        };
        server.request(Method::PUT, &path).body(body).send().await.unwrap()
    };
    for announced in [true, false] {
        let refused = problem(put(1001, announced).await).await;
        assert_eq!(
            (refused.status, refused.kind.as_str()),
            (413, "/problems/artifact-too-large")
        );
        assert!(refused.detail.unwrap().contains("1000 bytes"));
    }
    assert_eq!(put(1000, false).await.status(), StatusCode::CREATED);
}

#[sqlx::test(migrator = "temponas_server::MIGRATOR")]
async fn a_range_is_a_part_and_one_beyond_the_end_is_refused(pool: PgPool) {
    let server = Server::start(pool, TokenMode::Auto).await;
    let sent = bytes(1000);
    let path = format!("/v1/artifacts/{}", digest_of(&sent));
    server
        .request(Method::PUT, &path)
        .body(sent.clone())
        .send()
        .await
        .unwrap();
    let get = |range: &'static str| server.request(Method::GET, &path).header(header::RANGE, range).send();
    let part = get("bytes=100-199").await.unwrap();
    assert_eq!(part.status(), StatusCode::PARTIAL_CONTENT);
    assert_eq!(part.headers()[header::CONTENT_RANGE], "bytes 100-199/1000");
    assert_eq!(part.bytes().await.unwrap(), sent[100..200]);
    assert_eq!(get("bytes=-10").await.unwrap().bytes().await.unwrap(), sent[990..]);
    let beyond = get("bytes=1000-").await.unwrap();
    assert_eq!(beyond.headers()[header::CONTENT_RANGE], "bytes */1000");
    assert_eq!(problem(beyond).await.status, 416);
}

#[sqlx::test(migrator = "temponas_server::MIGRATOR")]
async fn corrupted_bytes_never_become_an_artifact(pool: PgPool) {
    let server = Server::start(pool, TokenMode::Auto).await;
    let mut sent = bytes(5000);
    let path = format!("/v1/artifacts/{}", digest_of(&sent));
    sent[4000] ^= 1;
    let document = problem(server.request(Method::PUT, &path).body(sent).send().await.unwrap()).await;
    assert_eq!(
        (document.status, document.kind.as_str()),
        (422, "/problems/wrong-digest")
    );
    assert_eq!(
        server.request(Method::GET, &path).send().await.unwrap().status(),
        StatusCode::NOT_FOUND
    );
}

#[sqlx::test(migrator = "temponas_server::MIGRATOR")]
async fn an_upload_whose_connection_broke_goes_on_from_the_offset_that_is_told(pool: PgPool) {
    let server = Server::start(pool, TokenMode::Auto).await;
    let sent = bytes(20_000_000);
    let path = format!("/v1/artifacts/{}", digest_of(&sent));
    let half = 12_345_678;
    let mut connection = tokio::net::TcpStream::connect(server.address).await.unwrap();
    let head = format!(
        "PUT {path} HTTP/1.1\r\nhost: {}\r\ncontent-length: {}\r\n\r\n",
        server.address,
        sent.len()
    );
    connection.write_all(head.as_bytes()).await.unwrap();
    connection.write_all(&sent[..half]).await.unwrap();
    drop(connection);

    let mut offset = 0;
    for _ in 0..100 {
        let reply = server.request(Method::HEAD, &path).send().await.unwrap();
        assert_eq!(reply.status(), StatusCode::NOT_FOUND, "half an artifact is none");
        offset = reply.headers()[UPLOAD_OFFSET].to_str().unwrap().parse().unwrap();
        if offset == half {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert_eq!(offset, half, "what had arrived was kept");
    let put = |from: usize| {
        server
            .request(Method::PUT, &path)
            .header(UPLOAD_OFFSET, from)
            .body(sent[from..].to_vec())
            .send()
    };
    let early = put(half - 1).await.unwrap();
    assert_eq!(early.headers()[UPLOAD_OFFSET], half.to_string());
    assert_eq!(problem(early).await.status, 409);
    assert_eq!(put(half).await.unwrap().status(), StatusCode::CREATED);
    assert_eq!(
        server
            .request(Method::GET, &path)
            .send()
            .await
            .unwrap()
            .bytes()
            .await
            .unwrap(),
        sent
    );
}

#[sqlx::test(migrator = "temponas_server::MIGRATOR")]
async fn a_page_that_someone_uploaded_cannot_run_as_ours(pool: PgPool) {
    let server = Server::start(pool, TokenMode::Auto).await;
    let sent = b"<script>alert(1)</script>".to_vec();
    let path = format!("/v1/artifacts/{}", digest_of(&sent));
    server
        .request(Method::PUT, &path)
        .header(header::CONTENT_TYPE, "text/html")
        .body(sent)
        .send()
        .await
        .unwrap();
    let reply = server.request(Method::GET, &path).send().await.unwrap();
    assert_eq!(reply.headers()[header::CONTENT_DISPOSITION], "attachment");
    assert!(
        reply.headers()[header::CONTENT_SECURITY_POLICY]
            .to_str()
            .unwrap()
            .contains("sandbox")
    );
}
