//! Which roles a route admits, read from its OpenAPI description.

use std::collections::HashMap;

use axum::http::Method;
use protocol::tokens::Role;
use utoipa::openapi::{OpenApi, path::Operation};

/// Name of the security scheme in the document.
pub(crate) const SCHEME: &str = "token";

/// Roles admitted by method and route template, besides admin, who may do everything.
#[derive(Debug, Default)]
pub struct RouteRoles(HashMap<(Method, String), Vec<Role>>);

impl RouteRoles {
    /// Reads the roles of every operation.
    #[must_use]
    pub fn from_document(document: &OpenApi) -> Self {
        let operations = document.paths.paths.iter().flat_map(|(path, item)| {
            let methods = [
                (Method::GET, &item.get),
                (Method::PUT, &item.put),
                (Method::POST, &item.post),
                (Method::DELETE, &item.delete),
                (Method::HEAD, &item.head),
                (Method::PATCH, &item.patch),
            ];
            methods.into_iter().filter_map(move |(method, operation)| {
                operation
                    .as_ref()
                    .map(|operation| ((method, path.clone()), admitted_by(operation)))
            })
        });
        Self(operations.collect())
    }

    /// The roles that may use a route, besides admin.
    #[must_use]
    pub fn admitted(&self, method: &Method, route: &str) -> &[Role] {
        let of = |method: &Method| self.0.get(&(method.clone(), route.to_owned()));
        // axum answers HEAD by the handler of GET.
        let found = of(method).or_else(|| (method == Method::HEAD).then(|| of(&Method::GET)).flatten());
        found.map_or(&[], Vec::as_slice)
    }

    /// Every route with its roles.
    pub fn iter(&self) -> impl Iterator<Item = (&Method, &str, &[Role])> {
        self.0
            .iter()
            .map(|((method, route), roles)| (method, route.as_str(), roles.as_slice()))
    }
}

/// Adds to every operation's description a sentence on who may use it.
pub(crate) fn describe(document: &mut OpenApi) {
    for item in document.paths.paths.values_mut() {
        let operations = [
            &mut item.get,
            &mut item.put,
            &mut item.post,
            &mut item.delete,
            &mut item.head,
        ];
        for operation in operations.into_iter().flatten() {
            let sentence = format!("Admits: {}.", list(&admitted_by(operation)));
            operation.description = Some(match operation.description.take() {
                Some(text) if !text.is_empty() => format!("{text}\n\n{sentence}"),
                _ => sentence,
            });
        }
    }
}

fn admitted_by(operation: &Operation) -> Vec<Role> {
    let requirements = serde_json::to_value(&operation.security).unwrap_or_default();
    let requirements = requirements.as_array().into_iter().flatten();
    let scopes = requirements
        .filter_map(|requirement| requirement.get(SCHEME)?.as_array())
        .flatten();
    scopes
        .filter_map(|scope| serde_json::from_value(scope.clone()).ok())
        .collect()
}

/// The roles in words; admin is always among them.
pub(super) fn list(roles: &[Role]) -> String {
    let others = roles
        .iter()
        .filter(|role| **role != Role::Admin)
        .map(|role| name(*role));
    ["admin"].into_iter().chain(others).collect::<Vec<_>>().join(", ")
}

/// The role's name on the wire.
pub(crate) fn name(role: Role) -> &'static str {
    match role {
        Role::Admin => "admin",
        Role::Researcher => "researcher",
        Role::Worker => "worker",
        Role::Device => "device",
        Role::Viewer => "viewer",
    }
}
