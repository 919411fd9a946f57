//! Reading a TOML tree with its places: every getter reports what is wrong and goes on.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::ops::{Range, RangeInclusive};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::shortened;

/// One thing that is wrong with a space file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// Dotted path of the field, as in `search.width` or `objectives.0.metric`; empty for the file itself.
    pub field: String,
    /// What stands there.
    pub found: String,
    /// What may stand there.
    pub allowed: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}: ", self.line, self.column)?;
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        write!(f, "found {}; allowed: {}", self.found, self.allowed)
    }
}

/// The most problems that are listed; of the others only the number is told.
const MOST_PROBLEMS: usize = 100;

/// The text with the problems found so far.
pub(super) struct Document<'a> {
    source: &'a str,
    /// The first ones of the file, by place and order; line and column are worked out in the end.
    problems: RefCell<BTreeMap<(usize, usize), Problem>>,
    /// All that were found.
    found: Cell<usize>,
}

impl<'a> Document<'a> {
    pub(super) fn new(source: &'a str) -> Self {
        Self {
            source,
            problems: RefCell::default(),
            found: Cell::new(0),
        }
    }

    pub(super) fn report(
        &self,
        span: &Range<usize>,
        field: &str,
        found: impl Into<String>,
        allowed: impl Into<String>,
    ) {
        let problem = Problem {
            line: 1,
            column: 1,
            field: field.to_owned(),
            found: found.into(),
            allowed: allowed.into(),
        };
        let mut problems = self.problems.borrow_mut();
        problems.insert((span.start, self.found.get()), problem);
        self.found.set(self.found.get() + 1);
        if problems.len() > MOST_PROBLEMS {
            problems.pop_last();
        }
    }

    pub(super) fn is_sound(&self) -> bool {
        self.found.get() == 0
    }

    /// The problems in the order of the file, and how many are not listed.
    pub(super) fn into_problems(self) -> Vec<Problem> {
        let breaks = self.source.match_indices('\n').map(|(newline, _)| newline + 1);
        let lines: Vec<usize> = std::iter::once(0).chain(breaks).collect();
        let problems = self.problems.into_inner();
        let more = self.found.get() - problems.len();
        let more = (more > 0).then(|| Problem {
            line: 1,
            column: 1,
            field: String::new(),
            found: format!("{more} more problems"),
            allowed: format!("none; the first {MOST_PROBLEMS} are listed"),
        });
        let placed = problems.into_iter().map(|((start, _), problem)| {
            let start = floor_char_boundary(self.source, start);
            let line = lines.partition_point(|line| *line <= start);
            Problem {
                line,
                column: self.source[lines[line - 1]..start].chars().count() + 1,
                ..problem
            }
        });
        placed.chain(more).collect()
    }

    /// The text at a span, as a message quotes it.
    fn quote(&self, span: &Range<usize>) -> String {
        let text =
            &self.source[floor_char_boundary(self.source, span.start)..floor_char_boundary(self.source, span.end)];
        let line = text.lines().next().unwrap_or_default();
        let more = if text.lines().nth(1).is_some() { " …" } else { "" };
        format!("`{}{more}`", shortened(line))
    }
}

fn floor_char_boundary(text: &str, index: usize) -> usize {
    (0..=index.min(text.len()))
        .rev()
        .find(|&i| text.is_char_boundary(i))
        .unwrap_or(0)
}

/// All values, or `None` where one is wrong. Every value is read first, so that each problem is reported.
pub(super) fn all<T, C: FromIterator<T>>(values: impl IntoIterator<Item = Option<T>>) -> Option<C> {
    let read: Vec<Option<T>> = values.into_iter().collect();
    read.into_iter().collect()
}

/// A table of the file. Keys that nobody asks for are reported when it is finished.
pub(super) struct Section<'a> {
    document: &'a Document<'a>,
    path: String,
    span: Range<usize>,
    table: &'a DeTable<'a>,
    asked: RefCell<Vec<&'static str>>,
    open: Cell<bool>,
}

impl<'a> Section<'a> {
    pub(super) fn root(document: &'a Document<'a>, table: &'a DeTable<'a>) -> Self {
        Self::at(document, String::new(), 0..0, table)
    }

    fn at(document: &'a Document<'a>, path: String, span: Range<usize>, table: &'a DeTable<'a>) -> Self {
        Self {
            document,
            path,
            span,
            table,
            asked: RefCell::default(),
            open: Cell::new(false),
        }
    }

    /// The value of a key, where it stands.
    pub(super) fn get(&self, key: &'static str) -> Option<Node<'a>> {
        self.asked.borrow_mut().push(key);
        let value = self.table.get(key)?;
        Some(Node {
            document: self.document,
            path: self.path_of(key),
            value,
        })
    }

    /// The value of a key that must stand there.
    pub(super) fn need(&self, key: &'static str, allowed: &str) -> Option<Node<'a>> {
        let node = self.get(key);
        if node.is_none() {
            self.document.report(&self.span, &self.path_of(key), "nothing", allowed);
        }
        node
    }

    pub(super) fn need_integer(&self, key: &'static str, range: RangeInclusive<u64>) -> Option<u64> {
        self.need(key, &integers(&range))?.integer(range)
    }

    pub(super) fn need_boolean(&self, key: &'static str) -> Option<bool> {
        self.need(key, "true or false")?.boolean()
    }

    pub(super) fn integer_or(&self, key: &'static str, default: u64, range: RangeInclusive<u64>) -> Option<u64> {
        self.get(key).map_or(Some(default), |node| node.integer(range))
    }

    pub(super) fn number_or(&self, key: &'static str, default: f64, range: RangeInclusive<f64>) -> Option<f64> {
        self.get(key).map_or(Some(default), |node| node.number(range))
    }

    pub(super) fn boolean_or(&self, key: &'static str, default: bool) -> Option<bool> {
        self.get(key).map_or(Some(default), |node| node.boolean())
    }

    /// Every key with its value; any key is allowed.
    pub(super) fn entries(&self) -> Vec<(&'a str, Node<'a>)> {
        self.open.set(true);
        let node = |(key, value): (&'a Spanned<_>, _)| {
            let name: &'a std::borrow::Cow<'a, str> = key.get_ref();
            (
                name.as_ref(),
                Node {
                    document: self.document,
                    path: self.path_of(name),
                    value,
                },
            )
        };
        self.table.iter().map(node).collect()
    }

    /// Reports every key that was not asked for.
    pub(super) fn finish(self) {
        if self.open.get() {
            return;
        }
        let asked = self.asked.into_inner();
        let allowed = format!("the keys {}", asked.join(", "));
        for (key, _) in self
            .table
            .iter()
            .filter(|(key, _)| !asked.contains(&key.get_ref().as_ref()))
        {
            let field = if self.path.is_empty() {
                key.get_ref().to_string()
            } else {
                format!("{}.{}", self.path, key.get_ref())
            };
            self.document
                .report(&key.span(), &shortened(&field), "an unknown key", allowed.as_str());
        }
    }

    pub(super) fn report(&self, key: &str, found: impl Into<String>, allowed: impl Into<String>) {
        let span = self.table.get(key).map_or(self.span.clone(), Spanned::span);
        self.document.report(&span, &self.path_of(key), found, allowed);
    }

    fn path_of(&self, key: &str) -> String {
        if self.path.is_empty() {
            shortened(key)
        } else {
            format!("{}.{}", self.path, shortened(key))
        }
    }
}

/// A value of the file.
#[derive(Clone)]
pub(super) struct Node<'a> {
    document: &'a Document<'a>,
    path: String,
    value: &'a Spanned<DeValue<'a>>,
}

impl<'a> Node<'a> {
    /// Reports the value as it stands.
    pub(super) fn refuse<T>(&self, allowed: impl Into<String>) -> Option<T> {
        let found = self.document.quote(&self.value.span());
        self.document.report(&self.value.span(), &self.path, found, allowed);
        None
    }

    pub(super) fn is_text(&self) -> bool {
        matches!(self.value.get_ref(), DeValue::String(_))
    }

    pub(super) fn text(&self, allowed: &str) -> Option<&'a str> {
        match self.value.get_ref() {
            DeValue::String(text) => Some(text.as_ref()),
            _ => self.refuse(allowed),
        }
    }

    pub(super) fn boolean(&self) -> Option<bool> {
        match self.value.get_ref() {
            DeValue::Boolean(value) => Some(*value),
            _ => self.refuse("true or false"),
        }
    }

    pub(super) fn integer(&self, range: RangeInclusive<u64>) -> Option<u64> {
        let value = match self.value.get_ref() {
            DeValue::Integer(digits) => u64::from_str_radix(digits.as_str(), digits.radix()).ok(),
            _ => None,
        };
        value
            .filter(|value| range.contains(value))
            .or_else(|| self.refuse(integers(&range)))
    }

    pub(super) fn number(&self, range: RangeInclusive<f64>) -> Option<f64> {
        let value: Option<f64> = match self.value.get_ref() {
            DeValue::Integer(digits) => i64::from_str_radix(digits.as_str(), digits.radix())
                .ok()
                .map(|i| i as f64),
            DeValue::Float(digits) => digits.as_str().parse().ok(),
            _ => None,
        };
        value
            .filter(|value| value.is_finite() && range.contains(value))
            .or_else(|| self.refuse(numbers(&range)))
    }

    /// One of some names.
    pub(super) fn one_of<T>(&self, names: impl IntoIterator<Item = (&'static str, T)>) -> Option<T> {
        let mut allowed = Vec::new();
        let text = match self.value.get_ref() {
            DeValue::String(text) => Some(text.as_ref()),
            _ => None,
        };
        for (name, value) in names {
            if text == Some(name) {
                return Some(value);
            }
            allowed.push(name);
        }
        self.refuse(allowed.join(", "))
    }

    pub(super) fn list(&self, allowed: &str, length: RangeInclusive<usize>) -> Option<Vec<Node<'a>>> {
        let DeValue::Array(array) = self.value.get_ref() else {
            return self.refuse(allowed);
        };
        if !length.contains(&array.len()) {
            self.document.report(
                &self.value.span(),
                &self.path,
                format!("{} entries", array.len()),
                allowed,
            );
            return None;
        }
        let node = |(i, value)| Node {
            document: self.document,
            path: format!("{}.{i}", self.path),
            value,
        };
        Some(array.iter().enumerate().map(node).collect())
    }

    pub(super) fn section(&self, allowed: &str) -> Option<Section<'a>> {
        match self.value.get_ref() {
            DeValue::Table(table) => Some(Section::at(self.document, self.path.clone(), self.value.span(), table)),
            _ => self.refuse(allowed),
        }
    }
}

fn integers(range: &RangeInclusive<u64>) -> String {
    format!("an integer from {} to {}", range.start(), range.end())
}

fn numbers(range: &RangeInclusive<f64>) -> String {
    let bounds = (range.start(), range.end());
    match bounds {
        (low, high) if low.is_finite() && *high < f64::MAX => format!("a number from {low} to {high}"),
        (low, _) if low.is_finite() => format!("a number from {low} on"),
        _ => "a finite number".to_owned(),
    }
}
