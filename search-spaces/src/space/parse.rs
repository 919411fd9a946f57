//! From TOML to a validated space. Everything that is wrong is reported at once.

use std::collections::BTreeSet;

use toml::de::DeTable;

use super::evaluation::{evaluation, pipeline};
use super::positions::{choice_positions, structure, temporal_positions};
use super::read::{Document, Node, Problem, Section, all};
use super::search::search;
use super::unet::unet;
use super::{Direction, Evaluation, Limits, Objective, Reference, Space, SpaceKind, TableSettings};
use crate::metric;

/// A space file or recipe that cannot be used: all that is wrong with it, in the order of the file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
pub struct SpaceError(pub Vec<Problem>);

const LONGEST_SOURCE: usize = 1 << 20;

impl Space {
    /// Reads and checks a space file.
    ///
    /// # Errors
    /// Every problem with its line, column and field, what was found and what is allowed. Broken TOML is
    /// reported alone, since nothing else can be trusted then; and what is written in terms of a wrong
    /// part, as an architecture in terms of the positions, is judged once that part is right.
    pub fn parse(toml: &str) -> Result<Self, SpaceError> {
        parsed(toml, |document, tree| read(document, tree, toml))
    }
}

/// What `read` makes of a TOML text, if nothing in it is wrong.
pub(super) fn parsed<T>(toml: &str, read: impl FnOnce(&Document, &DeTable) -> Option<T>) -> Result<T, SpaceError> {
    let document = Document::new(toml);
    if toml.len() > LONGEST_SOURCE {
        document.report(
            &(0..0),
            "",
            format!("{} bytes", toml.len()),
            format!("at most {LONGEST_SOURCE} bytes"),
        );
        return Err(SpaceError(document.into_problems()));
    }
    let (tree, errors) = DeTable::parse_recoverable(toml);
    for error in &errors {
        document.report(
            &error.span().unwrap_or(0..0),
            "",
            format!("broken TOML: {}", error.message()),
            "valid TOML",
        );
    }
    let value = if errors.is_empty() {
        read(&document, tree.get_ref())
    } else {
        None
    };
    match value {
        Some(value) if document.is_sound() => Ok(value),
        _ => Err(SpaceError(document.into_problems())),
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    TemporalUnet,
    BlockSequence,
    Categorical,
    Table,
}

fn read(document: &Document, tree: &DeTable, source: &str) -> Option<Space> {
    let root = Section::root(document, tree);
    let name = root.need("name", NAME).and_then(|node| name_of(&node));
    let title = root.get("title").map_or(Some(""), |node| node.text("a line of text"));
    let kind = root
        .need("kind", "temporal-unet, block-sequence, categorical, table")
        .and_then(|node| {
            node.one_of([
                ("temporal-unet", Kind::TemporalUnet),
                ("block-sequence", Kind::BlockSequence),
                ("categorical", Kind::Categorical),
                ("table", Kind::Table),
            ])
        });
    let Some(kind) = kind else {
        // What else may stand in the file depends on the kind.
        return None;
    };
    let unet = match kind {
        Kind::TemporalUnet => section(&root, "unet").and_then(unet),
        _ => None,
    };
    let table = match kind {
        Kind::Table => section(&root, "table").and_then(table),
        _ => None,
    };
    let pipeline = match kind {
        Kind::TemporalUnet => optional(root.get("pipeline"), pipeline),
        _ => Some(None),
    };
    let positions = match kind {
        Kind::TemporalUnet => temporal_positions(&root, unet.as_ref()),
        Kind::BlockSequence | Kind::Categorical | Kind::Table => choice_positions(&root),
    };
    let structure = match kind {
        Kind::TemporalUnet => None,
        _ => root.get("structure"),
    };
    let structure = positions
        .as_ref()
        .and_then(|positions| self::structure(structure, positions, kind == Kind::TemporalUnet));
    let objectives = objectives(&root, kind);
    let has_pipeline = !matches!(pipeline, Some(None));
    let limits = limits(&root, kind, has_pipeline);
    if let (Some(objectives), Kind::TemporalUnet, false) = (&objectives, kind, has_pipeline)
        && objectives
            .iter()
            .any(|objective| objective.metric == metric::PIPELINE_LATENCY_MS)
    {
        root.report(
            "objectives",
            metric::PIPELINE_LATENCY_MS,
            "this metric only with a [pipeline] section",
        );
    }
    let evaluation_node = root.get("evaluation");
    let evaluation = optional(evaluation_node.clone(), evaluation);
    if evaluation_node.is_some() && kind != Kind::TemporalUnet {
        let allowed = "this section in a temporal-unet only; candidates of other spaces are evaluated by others";
        root.report("evaluation", "a section", allowed);
    }
    let references = root.get("references");
    let search_section = section(&root, "search");
    // Architectures can only be read once the positions are.
    let shell = match (positions, structure) {
        (Some(positions), Some(structure)) => Some(Space {
            name: name.unwrap_or_default().to_owned(),
            title: title.unwrap_or_default().to_owned(),
            kind: SpaceKind::Categorical,
            positions,
            structure,
            objectives: objectives.clone().unwrap_or_default(),
            limits: limits.clone().unwrap_or_default(),
            references: Vec::new(),
            search: super::SearchSettings::default(),
            evaluation: None,
            pipeline: None,
            source: source.to_owned(),
        }),
        _ => None,
    };
    let references = match &shell {
        Some(shell) => references.map_or(Some(Vec::new()), |node| self::references(&node, shell)),
        None => None,
    };
    let before = references.as_ref().map_or(0, Vec::len);
    let search = search_section.and_then(|section| search(section, shell.as_ref(), objectives.as_deref(), before));
    if let (Some(Some(Evaluation { inherit: true, .. })), Some(search)) = (&evaluation, &search)
        && search.is_paper()
        && let Some(section) = evaluation_node.and_then(|node| node.section("a section"))
    {
        let allowed = "false with mode = \"paper\", where every candidate is trained from scratch";
        section.report("inherit", "true", allowed);
    }
    root.finish();

    let kind = match kind {
        Kind::TemporalUnet => SpaceKind::TemporalUnet(unet?),
        Kind::BlockSequence => SpaceKind::BlockSequence,
        Kind::Categorical => SpaceKind::Categorical,
        Kind::Table => SpaceKind::Table(table?),
    };
    name?;
    title?;
    objectives?;
    limits?;
    Some(Space {
        kind,
        references: references?,
        search: search?,
        evaluation: evaluation?,
        pipeline: pipeline?,
        ..shell?
    })
}

fn section<'a>(root: &Section<'a>, key: &'static str) -> Option<Section<'a>> {
    let allowed = format!("a [{key}] section");
    root.need(key, &allowed)?.section(&allowed)
}

/// `None` where the section is wrong, `Some(None)` where there is none.
fn optional<T>(node: Option<Node>, read: impl FnOnce(Section) -> Option<T>) -> Option<Option<T>> {
    match node {
        None => Some(None),
        Some(node) => node.section("a section").and_then(read).map(Some),
    }
}

pub(super) const NAME: &str = "1 to 64 lower-case letters, digits, `-`, `_` and `.`";

/// A name of letters that are safe in files and addresses.
pub(super) fn name_of<'a>(node: &Node<'a>) -> Option<&'a str> {
    let text = node.text(NAME)?;
    let sound = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_.".contains(c);
    if (1..=64).contains(&text.len()) && text.chars().all(sound) {
        Some(text)
    } else {
        node.refuse(NAME)
    }
}

/// A short text for people.
pub(super) fn label_of<'a>(node: &Node<'a>) -> Option<&'a str> {
    let allowed = "a text of 1 to 80 characters";
    let text = node.text(allowed)?;
    let sound = (1..=80).contains(&text.chars().count()) && !text.chars().any(char::is_control);
    if sound { Some(text) } else { node.refuse(allowed) }
}

fn table(section: Section) -> Option<TableSettings> {
    let key = section
        .need("key", "the column that holds the architecture")
        .and_then(|node| label_of(&node));
    let known = section.get("known").map_or(Some(Vec::new()), |node| {
        let nodes = node.list("a list of columns", 0..=64)?;
        all(nodes.iter().map(|node| label_of(node).map(str::to_owned)))
    });
    section.finish();
    Some(TableSettings {
        key: key?.to_owned(),
        known: known?,
    })
}

/// A metric that the kind of space has.
fn metric_of<'a>(node: &Node<'a>, kind: Kind) -> Option<&'a str> {
    match kind {
        Kind::TemporalUnet => node.one_of(metric::ALL.map(|name| (name, name))),
        Kind::BlockSequence | Kind::Categorical | Kind::Table => label_of(node),
    }
}

fn objectives(root: &Section, kind: Kind) -> Option<Vec<Objective>> {
    let allowed = "2 to 8 [[objectives]]";
    let nodes = root.need("objectives", allowed)?.list(allowed, 2..=8)?;
    let read: Vec<Option<Objective>> = nodes
        .iter()
        .map(|node| {
            let section = node.section("an objective with metric, direction and range")?;
            let metric = section
                .need("metric", "the name of a metric")
                .and_then(|node| metric_of(&node, kind));
            let direction = section
                .need("direction", "maximise, minimise")
                .and_then(|node| node.one_of([("maximise", Direction::Maximise), ("minimise", Direction::Minimise)]));
            let range = section.get("range").map_or(Some(None), |node| range(&node).map(Some));
            section.finish();
            Some(Objective {
                metric: metric?.to_owned(),
                direction: direction?,
                range: range?,
            })
        })
        .collect();
    let mut seen = BTreeSet::new();
    for (node, objective) in nodes.iter().zip(&read) {
        if let Some(objective) = objective
            && !seen.insert(objective.metric.as_str())
        {
            node.refuse::<()>("each metric once");
        }
    }
    read.into_iter().collect()
}

fn range(node: &Node) -> Option<(f64, f64)> {
    let allowed = "two numbers, the lower first";
    let ends = node.list(allowed, 2..=2)?;
    let any = f64::NEG_INFINITY..=f64::INFINITY;
    let (low, high) = (ends[0].number(any.clone()), ends[1].number(any));
    let (low, high) = (low?, high?);
    if low < high && (high - low).is_finite() {
        Some((low, high))
    } else {
        node.refuse(allowed)
    }
}

fn limits(root: &Section, kind: Kind, has_pipeline: bool) -> Option<Limits> {
    let Some(node) = root.get("limits") else {
        return Some(Limits::default());
    };
    let section = node.section("a [limits] section of metrics with their upper bounds")?;
    let bounded = [
        metric::LATENCY_MS,
        metric::PEAK_MEMORY_BYTES,
        metric::PARAMETERS,
        metric::MACS,
    ];
    let limit = |(name, node): (&str, Node)| {
        let bounded = bounded.contains(&name) || (name == metric::PIPELINE_LATENCY_MS && has_pipeline);
        if kind == Kind::TemporalUnet && !bounded {
            return node.refuse(
                "upper bounds of latency_ms, peak_memory_bytes, parameters, macs and, with a [pipeline] section, \
                 pipeline_latency_ms",
            );
        }
        Some((name.to_owned(), node.number(0.0..=f64::MAX)?))
    };
    all(section.entries().into_iter().map(limit))
}

fn references(node: &Node, shell: &Space) -> Option<Vec<Reference>> {
    let nodes = node.list("at most 64 [[references]]", 0..=64)?;
    let read: Vec<Option<Reference>> = nodes
        .iter()
        .map(|node| {
            let section = node.section("a reference with name and architecture")?;
            let name = section.need("name", "a name").and_then(|node| label_of(&node));
            let architecture = section
                .need("architecture", "the printed form of an architecture")
                .and_then(|node| architecture_of(&node, shell, ""));
            section.finish();
            Some(Reference {
                name: name?.to_owned(),
                architecture: architecture?,
            })
        })
        .collect();
    let mut names = BTreeSet::new();
    let mut architectures = BTreeSet::new();
    for (node, reference) in nodes.iter().zip(&read) {
        if let Some(reference) = reference {
            if !names.insert(&reference.name) {
                node.refuse::<()>("each name once");
            }
            if !architectures.insert(&reference.architecture) {
                node.refuse::<()>("each architecture once");
            }
        }
    }
    read.into_iter().collect()
}

/// An architecture; `words` are other texts that the caller takes.
pub(super) fn architecture_of(node: &Node, shell: &Space, words: &str) -> Option<crate::Architecture> {
    let text = node.text("the printed form of an architecture")?;
    match shell.architecture(text) {
        Ok(architecture) => Some(architecture),
        Err(error) => node.refuse(format!("{words}{}", error.allowed())),
    }
}
