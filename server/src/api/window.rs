//! Which part of a list is asked for, and the page that answers it.

use std::{fmt::Display, str::FromStr};

use protocol::Page;
use serde::Deserialize;
use utoipa::IntoParams;

use super::problem::Problem;

/// The most items of a page.
const MOST: i64 = 1000;

/// Which part of a list.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Window {
    /// `next_cursor` of the page before.
    pub cursor: Option<String>,
    /// Items at most, 1 to 1000; 100 unless given.
    pub limit: Option<i64>,
}

impl Window {
    /// Items at most.
    pub(super) fn limit(&self) -> Result<i64, Problem> {
        let limit = self.limit.unwrap_or(100);
        if (1..=MOST).contains(&limit) {
            Ok(limit)
        } else {
            Err(Problem::invalid(
                "limit",
                format_args!("{limit} is not from 1 to {MOST}"),
            ))
        }
    }

    /// Where the page before ended.
    pub(super) fn after<T: FromStr>(&self) -> Result<Option<T>, Problem> {
        let Some(cursor) = &self.cursor else { return Ok(None) };
        let refused = |_| Problem::invalid("cursor", "is none that a page gave; pass `next_cursor` as it came");
        cursor.parse().map(Some).map_err(refused)
    }
}

/// A page from `limit + 1` items at most: the one too many says that there is more.
pub(super) fn page<T, C: Display>(mut items: Vec<T>, limit: i64, cursor: impl Fn(&T) -> C) -> Page<T> {
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let more = items.len() > limit;
    items.truncate(limit);
    let next_cursor = items.last().filter(|_| more).map(|last| cursor(last).to_string());
    Page { items, next_cursor }
}
