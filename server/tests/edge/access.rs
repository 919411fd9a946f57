//! Tokens and roles.

use axum::http::Method as RouteMethod;
use chrono::TimeDelta;
use protocol::{
    Page,
    tokens::{CreatedToken, Role, TokenView},
};
use reqwest::{Method, StatusCode};
use sqlx::PgPool;
use temponas_server::{api, auth::RouteRoles, config::TokenMode};

use crate::server::{Server, problem};

const ROLES: [Role; 5] = [Role::Admin, Role::Researcher, Role::Worker, Role::Device, Role::Viewer];

/// A path that fits a route's template and names nothing that exists.
fn path_of(route: &str) -> String {
    let id = "018f0000-0000-7000-8000-000000000000";
    route
        .replace("{digest}", &"0".repeat(64))
        .replace("{device}", "nowhere")
        .replace("{name}", "nowhere")
        .replace("{id}", id)
}

#[sqlx::test(migrator = "temponas_server::MIGRATOR")]
async fn each_route_admits_the_roles_it_states_and_no_other(pool: PgPool) {
    let server = Server::start(pool, TokenMode::Required).await;
    let routes = RouteRoles::from_document(&api::document());
    let mut seen = 0;
    for role in ROLES {
        let secret = server.token(role).await;
        for (method, route, admitted) in routes.iter() {
            let path = path_of(route);
            let reply = server
                .request(method.clone(), &path)
                .bearer_auth(&secret)
                .send()
                .await
                .unwrap();
            let status = reply.status();
            if role == Role::Admin || admitted.contains(&role) {
                assert!(
                    !matches!(status.as_u16(), 401 | 403),
                    "{role:?} {method} {route}: {status}"
                );
            } else {
                assert_eq!(status, StatusCode::FORBIDDEN, "{role:?} {method} {route}");
                if method != RouteMethod::HEAD {
                    assert_eq!(problem(reply).await.kind, "/problems/wrong-role");
                }
            }
            seen += 1;
        }
    }
    assert!(seen > 100, "only {seen} pairs of role and route");
}

#[sqlx::test(migrator = "temponas_server::MIGRATOR")]
async fn a_device_takes_measurements_and_nothing_else(pool: PgPool) {
    let server = Server::start(pool, TokenMode::Required).await;
    let register = async |role: Role, kinds: serde_json::Value| {
        let worker = serde_json::json!({
            "id": "018f0000-0000-7000-8000-000000000000", "name": "phone", "kinds": kinds, "memory_bytes": 1,
            "device": {"name": "phone", "description": ""}, "runtime": {"name": "coreml", "version": "18"},
        });
        let request = server.request(Method::POST, "/v1/workers").json(&worker);
        request.bearer_auth(server.token(role).await).send().await.unwrap()
    };
    let measures = register(Role::Device, serde_json::json!(["profile", "verify"])).await;
    assert_eq!(measures.status(), StatusCode::CREATED);
    for kind in ["evaluate", "lookup"] {
        let refused = problem(register(Role::Device, serde_json::json!(["profile", kind])).await).await;
        assert_eq!((refused.status, refused.kind.as_str()), (403, "/problems/wrong-role"));
        let error = &refused.errors[0];
        assert_eq!(error.field, "kinds");
        assert!(
            error.message.contains(kind) && error.message.contains("profile, verify"),
            "{error:?}"
        );
    }
    let trains = register(Role::Worker, serde_json::json!(["evaluate"])).await;
    assert_eq!(trains.status(), StatusCode::CREATED);
}

#[test]
fn roles_are_what_their_names_say() {
    let routes = RouteRoles::from_document(&api::document());
    let admitted = |method: RouteMethod, route: &str| routes.admitted(&method, route).to_vec();
    assert_eq!(admitted(RouteMethod::POST, "/v1/tokens"), [], "only admins make tokens");
    assert!(!admitted(RouteMethod::POST, "/v1/searches").contains(&Role::Worker));
    assert!(!admitted(RouteMethod::POST, "/v1/leases").contains(&Role::Researcher));
    for (method, route, roles) in routes.iter() {
        let writes = !matches!(*method, RouteMethod::GET | RouteMethod::HEAD);
        let only_checks = route == "/v1/spaces:validate";
        assert!(
            !(writes && roles.contains(&Role::Viewer)) || only_checks,
            "a viewer only reads: {method} {route}"
        );
    }
}

#[sqlx::test(migrator = "temponas_server::MIGRATOR")]
async fn without_a_valid_token_nothing_is_answered(pool: PgPool) {
    let server = Server::start(pool, TokenMode::Required).await;
    for header in [
        None,
        Some("Bearer nonsense"),
        Some("Basic dXNlcjpwYXNz"),
        Some("Bearer"),
        Some("Bearer "),
    ] {
        let mut request = server.request(Method::GET, "/v1/searches");
        if let Some(header) = header {
            request = request.header("authorization", header);
        }
        let reply = request.send().await.unwrap();
        assert!(
            reply.headers()["www-authenticate"]
                .to_str()
                .unwrap()
                .starts_with("Bearer"),
            "{header:?}"
        );
        assert_eq!(problem(reply).await.status, 401, "{header:?}");
    }
    let metrics = server.request(Method::GET, "/metrics").send().await.unwrap();
    assert_eq!(metrics.status(), StatusCode::UNAUTHORIZED);
    for open in ["/healthz", "/", "/docs/", "/openapi.json"] {
        assert!(
            server
                .request(Method::GET, open)
                .send()
                .await
                .unwrap()
                .status()
                .is_success(),
            "{open}"
        );
    }
}

#[sqlx::test(migrator = "temponas_server::MIGRATOR")]
async fn counters_are_for_whoever_may_read(pool: PgPool) {
    let server = Server::start(pool, TokenMode::Required).await;
    let secret = server.token(Role::Viewer).await;
    let reply = server
        .request(Method::GET, "/metrics")
        .bearer_auth(secret)
        .send()
        .await
        .unwrap();
    assert_eq!(reply.status(), StatusCode::OK);
    assert!(reply.text().await.unwrap().ends_with("# EOF\n"), "OpenMetrics");
    let document: serde_json::Value = serde_json::from_str(api::docs::text()).unwrap();
    assert!(document["paths"]["/metrics"]["get"].is_object());
}

#[sqlx::test(migrator = "temponas_server::MIGRATOR")]
async fn a_token_is_shown_once_and_ends_by_time_or_by_revocation(pool: PgPool) {
    let server = Server::start(pool.clone(), TokenMode::Required).await;
    let admin = server.token(Role::Admin).await;
    let make = async |body: serde_json::Value| -> CreatedToken {
        let reply = server
            .request(Method::POST, "/v1/tokens")
            .bearer_auth(&admin)
            .json(&body)
            .send()
            .await
            .unwrap();
        assert_eq!(reply.status(), StatusCode::CREATED);
        reply.json().await.unwrap()
    };
    let read = async |secret: &str| {
        server
            .request(Method::GET, "/v1/searches")
            .bearer_auth(secret)
            .send()
            .await
            .unwrap()
            .status()
    };
    let short = make(serde_json::json!({"role": "viewer", "name": "for an hour", "expires_in_seconds": 3600})).await;
    let long = make(serde_json::json!({"role": "researcher"})).await;
    assert_eq!(read(&short.secret).await, StatusCode::OK);
    assert_eq!(read(&long.secret).await, StatusCode::OK);

    let list = server
        .request(Method::GET, "/v1/tokens")
        .bearer_auth(&admin)
        .send()
        .await
        .unwrap()
        .text()
        .await
        .unwrap();
    assert!(!list.contains(&short.secret), "the list shows no secrets");
    let page: Page<TokenView> = serde_json::from_str(&list).unwrap();
    let shown = page.items.iter().find(|token| token.id == short.token.id).unwrap();
    assert_eq!(shown.last_used_at, Some(server.app.clock.now()));
    let stored: Vec<Vec<u8>> = sqlx::query_scalar("SELECT secret_sha256 FROM tokens")
        .fetch_all(&pool)
        .await
        .unwrap();
    assert!(
        stored
            .iter()
            .all(|hash| hash.len() == 32 && hash != short.secret.as_bytes()),
        "only hashes are stored"
    );

    server.app.clock.advance(TimeDelta::seconds(3601));
    assert_eq!(read(&short.secret).await, StatusCode::UNAUTHORIZED, "expired");
    assert_eq!(read(&long.secret).await, StatusCode::OK);
    let revoke = format!("/v1/tokens/{}", long.token.id);
    let reply = server
        .request(Method::DELETE, &revoke)
        .bearer_auth(&admin)
        .send()
        .await
        .unwrap();
    assert_eq!(reply.status(), StatusCode::NO_CONTENT);
    assert_eq!(read(&long.secret).await, StatusCode::UNAUTHORIZED, "revoked");
}

#[sqlx::test(migrator = "temponas_server::MIGRATOR")]
async fn tokens_are_listed_page_by_page(pool: PgPool) {
    let server = Server::start(pool, TokenMode::Auto).await;
    for _ in 0..5 {
        server.token(Role::Viewer).await;
    }
    let mut path = "/v1/tokens?limit=2".to_owned();
    let mut sizes = Vec::new();
    loop {
        let page: Page<TokenView> = server
            .request(Method::GET, &path)
            .send()
            .await
            .unwrap()
            .json()
            .await
            .unwrap();
        sizes.push(page.items.len());
        let Some(cursor) = page.next_cursor else { break };
        path = format!("/v1/tokens?limit=2&cursor={cursor}");
    }
    assert_eq!(sizes, [2, 2, 1]);
}

#[sqlx::test(migrator = "temponas_server::MIGRATOR")]
async fn an_open_coordinator_answers_this_machine_and_not_other_sites(pool: PgPool) {
    let server = Server::start(pool, TokenMode::Auto).await;
    let get = async |name: &'static str, value: String| {
        server
            .request(Method::GET, "/v1/searches")
            .header(name, value)
            .send()
            .await
            .unwrap()
            .status()
    };
    assert_eq!(get("host", server.address.to_string()).await, StatusCode::OK);
    assert_eq!(get("host", "localhost:9".to_owned()).await, StatusCode::OK);
    assert_eq!(get("host", "rebound.example".to_owned()).await, StatusCode::FORBIDDEN);
    let post = async |origin: String| {
        let request = server.request(Method::POST, "/v1/tokens").header("origin", origin);
        request
            .json(&serde_json::json!({"role": "viewer"}))
            .send()
            .await
            .unwrap()
    };
    assert_eq!(
        post(format!("http://{}", server.address)).await.status(),
        StatusCode::CREATED
    );
    assert_eq!(
        problem(post("http://other.example".to_owned()).await).await.kind,
        "/problems/foreign-origin"
    );
}

#[sqlx::test(migrator = "temponas_server::MIGRATOR")]
async fn whoever_shows_a_token_is_held_to_it_even_where_none_is_needed(pool: PgPool) {
    let server = Server::start(pool, TokenMode::Auto).await;
    let viewer = server.token(Role::Viewer).await;
    let new = serde_json::json!({"role": "admin"});
    let reply = server
        .request(Method::POST, "/v1/tokens")
        .bearer_auth(viewer)
        .json(&new)
        .send()
        .await
        .unwrap();
    assert_eq!(reply.status(), StatusCode::FORBIDDEN);
}
