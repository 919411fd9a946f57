//! The OpenAPI document.

use temponas_server::api;

#[test]
fn the_committed_document_is_that_of_the_routes() {
    let committed = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/openapi.json")).unwrap_or_default();
    let current = api::docs::text();
    assert!(committed == current, "server/openapi.json is stale: run `make openapi`");
}

#[test]
fn every_operation_says_whom_it_admits_and_that_errors_are_problem_documents() {
    let document: serde_json::Value = serde_json::from_str(api::docs::text()).unwrap();
    let paths = document["paths"].as_object().unwrap();
    assert!(paths.len() > 25, "only {} paths", paths.len());
    for (path, item) in paths {
        for (method, operation) in item.as_object().unwrap() {
            let description = operation["description"].as_str().unwrap_or_default();
            assert!(description.contains("Admits: admin"), "{method} {path}");
            assert!(
                operation["security"][0]["token"].is_array(),
                "{method} {path} states no roles"
            );
            if method != "head" {
                let problem = &operation["responses"]["default"]["content"]["application/problem+json"];
                assert!(problem.is_object(), "{method} {path} does not describe its errors");
            }
        }
    }
}

#[test]
fn the_browsable_page_needs_no_other_host() {
    let document = api::docs::text();
    assert!(document.starts_with('{') && document.ends_with("}\n"));
    assert!(!document.contains("cdn."), "nothing is loaded from elsewhere");
}
