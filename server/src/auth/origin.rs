//! What keeps other sites' pages away from a coordinator that answers a browser without a password.
//!
//! A page of another site can send requests to a loopback address, and a name of its own that it lets
//! point there (DNS rebinding) even makes it the same origin. So an open coordinator answers only to
//! loopback names, and writes are taken only from pages it served itself.

use std::net::IpAddr;

use axum::http::{HeaderMap, Method, StatusCode, Uri, header, uri::Authority};

use crate::api::problem::Problem;

/// The host that the request was sent to must be a loopback name or address.
pub(super) fn loopback_host(headers: &HeaderMap, uri: &Uri) -> Result<(), Problem> {
    let Some(host) = host(headers, uri) else {
        return Err(refused("the request names no host"));
    };
    if is_loopback(host.host()) {
        return Ok(());
    }
    Err(refused(&format!(
        "without tokens this coordinator answers only to localhost, not to `{}`; start it with `--tokens required` to reach it under another name",
        host.host()
    )))
}

/// A request that a page of another origin makes a browser send may not change anything.
pub(super) fn same_site(method: &Method, headers: &HeaderMap, uri: &Uri) -> Result<(), Problem> {
    if matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS) {
        return Ok(());
    }
    let site = headers.get("sec-fetch-site").and_then(|value| value.to_str().ok());
    if matches!(site, Some("cross-site" | "same-site")) {
        return Err(refused("another site's page may not change anything here"));
    }
    let Some(origin) = headers.get(header::ORIGIN) else {
        return Ok(());
    };
    let origin = origin
        .to_str()
        .ok()
        .and_then(|origin| origin.split_once("://"))
        .map(|(_, authority)| authority);
    let ours = host(headers, uri);
    if origin.is_some() && origin == ours.as_ref().map(Authority::as_str) {
        return Ok(());
    }
    Err(refused("the Origin header names another site than the Host header"))
}

fn host(headers: &HeaderMap, uri: &Uri) -> Option<Authority> {
    let from_header = headers
        .get(header::HOST)
        .and_then(|host| host.to_str().ok()?.parse().ok());
    from_header.or_else(|| uri.authority().cloned())
}

fn is_loopback(host: &str) -> bool {
    let name = host.trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost")
        || name.to_ascii_lowercase().ends_with(".localhost")
        || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn refused(detail: &str) -> Problem {
    Problem::new(
        StatusCode::FORBIDDEN,
        "foreign-origin",
        "The request comes from elsewhere",
    )
    .detail(detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (name.parse::<header::HeaderName>().unwrap(), value.parse().unwrap()))
            .collect()
    }

    #[test]
    fn an_open_coordinator_answers_only_to_loopback_names() {
        let uri = Uri::from_static("/v1/searches");
        let admitted = |host: &str| loopback_host(&headers(&[("host", host)]), &uri).is_ok();
        for ours in [
            "localhost",
            "localhost:8080",
            "LOCALHOST:1",
            "127.0.0.1:8080",
            "127.9.9.9",
            "[::1]:8080",
            "a.localhost",
        ] {
            assert!(admitted(ours), "{ours}");
        }
        for foreign in [
            "evil.example",
            "evil.example:8080",
            "10.0.0.1",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
        ] {
            assert!(!admitted(foreign), "{foreign}");
        }
        assert!(loopback_host(&headers(&[]), &uri).is_err());
    }

    #[test]
    fn another_sites_page_cannot_write() {
        let uri = Uri::from_static("/v1/searches");
        let admitted = |method: Method, pairs: &[(&str, &str)]| same_site(&method, &headers(pairs), &uri).is_ok();
        let host = ("host", "localhost:8080");
        assert!(admitted(Method::POST, &[host]), "not a browser");
        assert!(admitted(
            Method::POST,
            &[
                host,
                ("origin", "http://localhost:8080"),
                ("sec-fetch-site", "same-origin")
            ]
        ));
        assert!(
            !admitted(Method::POST, &[host, ("origin", "http://localhost:8000")]),
            "another port is another site"
        );
        assert!(!admitted(Method::POST, &[host, ("origin", "null")]));
        assert!(!admitted(Method::DELETE, &[host, ("sec-fetch-site", "cross-site")]));
        assert!(
            admitted(Method::GET, &[host, ("origin", "http://evil.example")]),
            "reading needs CORS, which is not given"
        );
    }
}
