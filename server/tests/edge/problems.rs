//! Whatever is wrong with a request: a problem document, never a panic, never a 500.

use reqwest::{Method, header};
use sqlx::PgPool;
use temponas_server::config::TokenMode;

use crate::server::{Server, problem};

const NOBODY: &str = "018f0000-0000-7000-8000-000000000000";

#[sqlx::test(migrator = "temponas_server::MIGRATOR")]
async fn every_wrong_request_is_answered_with_a_problem_document(pool: PgPool) {
    let server = Server::start(pool, TokenMode::Auto).await;
    let digest = "0".repeat(64);
    let cases: Vec<(Method, String, Option<&str>, &[u16])> = vec![
        (Method::GET, "/v1".into(), None, &[404]),
        (Method::GET, "/v1/".into(), None, &[404]),
        (Method::GET, "/v1/nothing".into(), None, &[404]),
        (Method::POST, "/somewhere".into(), Some("{}"), &[404]),
        (Method::GET, "/no/such/file.js".into(), None, &[404]),
        (Method::GET, "/docs/no-such-file".into(), None, &[404]),
        (Method::PATCH, "/v1/searches".into(), Some("{}"), &[405]),
        (Method::DELETE, format!("/v1/artifacts/{digest}"), None, &[405]),
        (Method::GET, format!("/v1/searches/{NOBODY}"), None, &[404]),
        (Method::GET, "/v1/searches/not-an-id".into(), None, &[400]),
        (Method::GET, "/v1/searches/%FF%FE".into(), None, &[400]),
        (Method::GET, format!("/v1/searches/{NOBODY}/front"), None, &[404]),
        (Method::GET, format!("/v1/searches/{NOBODY}/front.csv"), None, &[404]),
        (Method::GET, format!("/v1/searches/{NOBODY}/front.svg"), None, &[404]),
        (Method::GET, format!("/v1/searches/{NOBODY}/front.pdf"), None, &[404]),
        (Method::GET, format!("/v1/searches/{NOBODY}/candidates"), None, &[404]),
        (Method::GET, format!("/v1/searches/{NOBODY}/jobs"), None, &[404]),
        (Method::GET, format!("/v1/searches/{NOBODY}/events"), None, &[404]),
        (
            Method::GET,
            format!("/v1/searches/{NOBODY}/recommendation?latency_ms=x"),
            None,
            &[400],
        ),
        (Method::POST, format!("/v1/searches/{NOBODY}/pause"), None, &[404]),
        (Method::GET, "/v1/searches?limit=0".into(), None, &[400, 422]),
        (Method::GET, "/v1/searches?limit=-1".into(), None, &[400, 422]),
        (Method::GET, "/v1/searches?limit=many".into(), None, &[400]),
        (Method::GET, "/v1/searches?colour=red".into(), None, &[400]),
        (Method::GET, "/v1/searches?cursor=%00%FF".into(), None, &[400, 422]),
        (Method::GET, format!("/v1/candidates/{NOBODY}"), None, &[404]),
        (Method::GET, format!("/v1/jobs/{NOBODY}"), None, &[404]),
        (Method::GET, "/v1/devices/nowhere".into(), None, &[404]),
        (Method::GET, "/v1/luts/nowhere".into(), None, &[404]),
        (Method::GET, "/v1/luts/nowhere/figure3.svg".into(), None, &[404]),
        (Method::GET, "/v1/artifacts/short".into(), None, &[400]),
        (Method::GET, format!("/v1/artifacts/{digest}"), None, &[404]),
        (Method::DELETE, format!("/v1/tokens/{NOBODY}"), None, &[404]),
        (Method::POST, "/v1/searches".into(), Some(""), &[400]),
        (Method::POST, "/v1/searches".into(), Some("{"), &[400]),
        (Method::POST, "/v1/searches".into(), Some("[]"), &[422]),
        (Method::POST, "/v1/searches".into(), Some("null"), &[422]),
        (Method::POST, "/v1/searches".into(), Some("{}"), &[422]),
        (Method::POST, "/v1/searches".into(), Some(r#"{"space": 1}"#), &[422]),
        (
            Method::POST,
            "/v1/searches".into(),
            Some(r#"{"space": "", "colour": 1}"#),
            &[422],
        ),
        (
            Method::POST,
            "/v1/searches".into(),
            Some(r#"{"space": "name = "}"#),
            &[422],
        ),
        (
            Method::POST,
            "/v1/searches".into(),
            Some(r#"{"space": "name = 'x'\nkind = 'y'"}"#),
            &[422],
        ),
        (
            Method::POST,
            "/v1/searches".into(),
            Some(r#"{"space": "x", "seed": -1}"#),
            &[422],
        ),
        (
            Method::POST,
            "/v1/searches".into(),
            Some(r#"{"space": "x", "seed": 1e400}"#),
            &[400, 422],
        ),
        (
            Method::POST,
            "/v1/searches".into(),
            Some(r#"{"space": "\u0000"}"#),
            &[422],
        ),
        (
            Method::POST,
            "/v1/spaces:validate".into(),
            Some(r#"{"space": "x = ["}"#),
            &[422],
        ),
        (
            Method::POST,
            "/v1/leases".into(),
            Some(r#"{"worker_id": "018f0000-0000-7000-8000-000000000000"}"#),
            &[404, 409, 422],
        ),
        (Method::POST, "/v1/leases".into(), Some(r#"{"worker_id": 7}"#), &[422]),
        (
            Method::POST,
            format!("/v1/jobs/{NOBODY}/heartbeat"),
            Some(r#"{"lease_token": "018f0000-0000-7000-8000-000000000000", "progress": 0.5}"#),
            &[404, 409],
        ),
        (
            Method::POST,
            format!("/v1/jobs/{NOBODY}/failure"),
            Some(r#"{"lease_token": "018f0000-0000-7000-8000-000000000000", "error": "x", "retry": true}"#),
            &[404, 409],
        ),
        (
            Method::POST,
            format!("/v1/jobs/{NOBODY}/result"),
            Some(r#"{"lease_token": "x"}"#),
            &[422],
        ),
        (
            Method::POST,
            "/v1/devices".into(),
            Some(r#"{"name": "../etc", "description": ""}"#),
            &[422],
        ),
        (
            Method::POST,
            "/v1/devices".into(),
            Some(r#"{"name": "\u0000", "description": ""}"#),
            &[422],
        ),
        (Method::POST, "/v1/workers".into(), Some(r#"{"id": 1}"#), &[422]),
        (
            Method::POST,
            "/v1/workers".into(),
            Some(
                r#"{"id": "018f0000-0000-7000-8000-000000000000", "name": "\u0000", "kinds": ["evaluate"],
                    "device": {"name": "x", "description": ""}, "memory_bytes": 1}"#,
            ),
            &[422],
        ),
        (Method::GET, "/v1/devices?cursor=%00".into(), None, &[422]),
        (Method::POST, "/v1/luts/nowhere/samples".into(), Some("{}"), &[404, 422]),
        (
            Method::POST,
            "/v1/luts/nowhere/import".into(),
            Some("[1, 2"),
            &[400, 404, 422],
        ),
        (Method::POST, "/v1/tokens".into(), Some(r#"{"role": "king"}"#), &[422]),
        (
            Method::POST,
            "/v1/tokens".into(),
            Some(r#"{"role": "viewer", "expires_in_seconds": 0}"#),
            &[422],
        ),
        (
            Method::POST,
            "/v1/tokens".into(),
            Some(r#"{"role": "viewer", "expires_in_seconds": 18446744073709551615}"#),
            &[422],
        ),
        (
            Method::POST,
            "/v1/tokens".into(),
            Some(r#"{"role": "viewer", "name": "a\u0000b"}"#),
            &[422],
        ),
    ];
    let mut wrong = Vec::new();
    for (method, path, body, allowed) in cases {
        let mut request = server.request(method.clone(), &path);
        if let Some(body) = body {
            request = request.header(header::CONTENT_TYPE, "application/json").body(body);
        }
        let reply = request.send().await.unwrap();
        let status = reply.status().as_u16();
        let shown = format!("{method} {path} {}", body.unwrap_or_default());
        assert!(reply.headers().contains_key("x-request-id"), "{shown}");
        let document = problem(reply).await;
        if !allowed.contains(&status) {
            wrong.push(format!("{shown}: {status} {document:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[sqlx::test(migrator = "temponas_server::MIGRATOR")]
async fn a_wrong_field_is_named(pool: PgPool) {
    let server = Server::start(pool, TokenMode::Auto).await;
    let send = async |body: &'static str| {
        let request = server
            .request(Method::POST, "/v1/tokens")
            .header(header::CONTENT_TYPE, "application/json");
        problem(request.body(body).send().await.unwrap()).await
    };
    let found = send("{\n \"role\": \"king\"}").await;
    assert_eq!(
        (found.errors[0].field.as_str(), found.errors[0].line),
        ("role", Some(2))
    );
    let expiry = send(r#"{"role": "viewer", "expires_in_seconds": 0}"#).await;
    assert_eq!(expiry.errors[0].field, "expires_in_seconds");
    let id = problem(server.request(Method::GET, "/v1/searches/xyz").send().await.unwrap()).await;
    assert_eq!(id.errors[0].field, "id");
    assert!(id.errors[0].message.contains("xyz"), "{id:?}");
}

#[sqlx::test(migrator = "temponas_server::MIGRATOR")]
async fn only_json_is_taken_as_json(pool: PgPool) {
    let server = Server::start(pool, TokenMode::Auto).await;
    for kind in ["text/plain", "application/x-www-form-urlencoded", "json"] {
        let request = server
            .request(Method::POST, "/v1/tokens")
            .header(header::CONTENT_TYPE, kind);
        let document = problem(request.body(r#"{"role": "viewer"}"#).send().await.unwrap()).await;
        assert_eq!(
            document.status, 415,
            "{kind}: a form of another site's page must not pass for JSON"
        );
    }
}

#[sqlx::test(migrator = "temponas_server::MIGRATOR")]
async fn a_body_of_100_megabytes_is_refused_with_a_document(pool: PgPool) {
    let server = Server::start(pool, TokenMode::Auto).await;
    let body = vec![b' '; 100_000_000];
    for path in ["/v1/searches", "/v1/spaces:validate", "/v1/leases"] {
        let request = server
            .request(Method::POST, path)
            .header(header::CONTENT_TYPE, "application/json");
        let document = problem(request.body(body.clone()).send().await.unwrap()).await;
        assert_eq!(
            (document.status, document.kind.as_str()),
            (413, "/problems/body-too-large"),
            "{path}"
        );
    }
}
