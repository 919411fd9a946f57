//! Who may do what.
//!
//! Each route states the roles it admits once, in the `security` of its OpenAPI description; the gate
//! reads them from there, so that what is documented is what is enforced, and a route that states none
//! admits only admins. On a loopback address the coordinator is open: whoever shows no token acts as
//! admin, but only under a loopback host name and not from another site's page. Whoever shows a token is
//! held to it everywhere.

mod origin;
mod roles;
mod secret;
mod tokens;

use std::sync::Arc;

use axum::{
    extract::{MatchedPath, Request, State},
    http::{HeaderMap, StatusCode, header, request::Parts},
    middleware::Next,
    response::{IntoResponse, Response},
};
use protocol::{TokenId, tokens::Role};

pub use roles::RouteRoles;
pub(crate) use roles::{SCHEME, describe, name as role_name};
pub use secret::TokenSecret;
pub use tokens::{TokenError, create, name_problem};

use crate::{api::problem::Problem, app::App};

/// Name of the cookie by which the page carries a token.
pub const COOKIE: &str = "temponas_token";

/// Who sends a request, as an extension of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// What they may do.
    pub role: Role,
    /// Their token; absent on an open coordinator.
    pub token: Option<TokenId>,
}

/// What the gate needs.
#[derive(Clone)]
pub struct Gate {
    app: Arc<App>,
    roles: Arc<RouteRoles>,
}

impl Gate {
    /// A gate for the routes of an OpenAPI document.
    #[must_use]
    pub fn new(app: Arc<App>, roles: RouteRoles) -> Self {
        Self {
            app,
            roles: Arc::new(roles),
        }
    }
}

/// Middleware: finds out who asks, and refuses whom the route does not admit.
pub async fn guard(State(gate): State<Gate>, request: Request, next: Next) -> Response {
    let (mut parts, body) = request.into_parts();
    match admit(&gate, &parts).await {
        Ok(identity) => {
            parts.extensions.insert(identity);
            next.run(Request::from_parts(parts, body)).await
        }
        Err(problem) => refuse(problem),
    }
}

async fn admit(gate: &Gate, request: &Parts) -> Result<Identity, Problem> {
    let route = request.extensions.get::<MatchedPath>().map(MatchedPath::as_str);
    let headers = &request.headers;
    let bearer = bearer(headers)?;
    let open = !gate.app.config.demands_tokens();
    if open && bearer.is_none() {
        origin::loopback_host(headers, &request.uri)?;
    }
    if bearer.is_none() {
        origin::same_site(&request.method, headers, &request.uri)?;
    }
    let identity = match bearer.or_else(|| cookie(headers)) {
        Some(secret) => identify(gate, &secret).await?,
        None if open => Identity {
            role: Role::Admin,
            token: None,
        },
        None => {
            return Err(unauthorized(
                "send `Authorization: Bearer …` with a token of `temponas token create`",
            ));
        }
    };
    let Some(route) = route else { return Ok(identity) };
    let admitted = gate.roles.admitted(&request.method, route);
    if identity.role == Role::Admin || admitted.contains(&identity.role) {
        return Ok(identity);
    }
    Err(
        Problem::new(StatusCode::FORBIDDEN, "wrong-role", "The token does not admit to this").detail(format_args!(
            "this route admits {}, the token's role is {}",
            roles::list(admitted),
            roles::name(identity.role)
        )),
    )
}

async fn identify(gate: &Gate, secret: &TokenSecret) -> Result<Identity, Problem> {
    let now = gate.app.clock.now();
    let Some(grant) = gate.app.store.use_token(&secret.sha256(), now).await? else {
        return Err(unauthorized("the token is not known here"));
    };
    if grant.revoked_at.is_some() {
        return Err(unauthorized("the token was revoked"));
    }
    if let Some(end) = grant.expires_at.filter(|end| *end <= now) {
        return Err(unauthorized(&format!("the token expired at {}", end.to_rfc3339())));
    }
    Ok(Identity {
        role: grant.role,
        token: Some(grant.id),
    })
}

fn bearer(headers: &HeaderMap) -> Result<Option<TokenSecret>, Problem> {
    let Some(value) = headers.get(header::AUTHORIZATION) else {
        return Ok(None);
    };
    let text = value.to_str().unwrap_or_default();
    match text.split_once(' ') {
        Some((scheme, secret)) if scheme.eq_ignore_ascii_case("bearer") => Ok(Some(TokenSecret::given(secret.trim()))),
        _ => Err(unauthorized("the Authorization header must read `Bearer …`")),
    }
}

fn cookie(headers: &HeaderMap) -> Option<TokenSecret> {
    let pairs = headers
        .get_all(header::COOKIE)
        .into_iter()
        .filter_map(|value| value.to_str().ok());
    let mut pairs = pairs
        .flat_map(|value| value.split(';'))
        .filter_map(|pair| pair.trim().split_once('='));
    pairs
        .find(|(name, _)| *name == COOKIE)
        .map(|(_, secret)| TokenSecret::given(secret))
}

fn unauthorized(detail: &str) -> Problem {
    Problem::new(StatusCode::UNAUTHORIZED, "unauthorized", "A valid token is needed").detail(detail)
}

fn refuse(problem: Problem) -> Response {
    let needs_token = problem.status() == StatusCode::UNAUTHORIZED;
    let mut response = problem.into_response();
    if needs_token {
        let challenge = header::HeaderValue::from_static("Bearer realm=\"temponas\"");
        response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
    }
    response
}
