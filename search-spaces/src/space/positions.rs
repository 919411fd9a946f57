//! Positions, their choices and the declared structure.

use std::collections::BTreeSet;

use super::parse::{label_of, name_of};
use super::read::{Node, Section, all};
use super::{Choice, Position};
use crate::{Block, Operator, Shape, Structure, TemporalLayer, UnetConfig, UnetPosition};

/// Code of "no temporal layer".
const NONE: &str = "-";
const MOST_POSITIONS: usize = 256;
const MOST_CHOICES: usize = 256;

/// `[operators]` for all positions of the UNet, `[[positions]]` where one differs.
pub(super) fn temporal_positions(root: &Section, unet: Option<&UnetConfig>) -> Option<Vec<Position>> {
    let everywhere = root.need("operators", "an [operators] section").and_then(|node| {
        let section = node.section("an [operators] section with kinds and depths")?;
        let kinds = kinds(section.need("kinds", &operator_names())?);
        let depths = section.get("depths").map_or(Some(vec![1]), depths);
        section.finish();
        Some((kinds?, depths?))
    });
    let own = root.get("positions");
    let unet = unet?;
    let places = unet.positions();
    let own = own.map_or(Some(Vec::new()), |node| own_choices(&node, &places));
    let (everywhere, own) = (everywhere?, own?);
    let position = |(i, place): (usize, &UnetPosition)| {
        let own = own.iter().find(|own| own.position == i);
        let kinds = own.and_then(|own| own.kinds.as_ref()).unwrap_or(&everywhere.0);
        let depths = own.and_then(|own| own.depths.as_ref()).unwrap_or(&everywhere.1);
        let none = Choice {
            name: "none".into(),
            code: NONE.into(),
            layer: None,
            blocks: Vec::new(),
        };
        let layers = kinds
            .iter()
            .flat_map(|&operator| depths.iter().map(move |&depth| TemporalLayer { operator, depth }));
        let choices = layers.map(|layer| Choice {
            name: layer.to_string(),
            code: layer.code(),
            layer: Some(layer),
            blocks: unet
                .temporal_block(i, layer.operator)
                .map_or(Vec::new(), |b| vec![b; layer.depth.into()]),
        });
        Position {
            name: place.name.clone(),
            choices: std::iter::once(none).chain(choices).collect(),
        }
    };
    Some(places.iter().enumerate().map(position).collect())
}

struct OwnChoices {
    position: usize,
    kinds: Option<Vec<Operator>>,
    depths: Option<Vec<u8>>,
}

fn own_choices(node: &Node, places: &[UnetPosition]) -> Option<Vec<OwnChoices>> {
    let nodes = node.list("at most 32 [[positions]]", 0..=32)?;
    let names = || {
        places
            .iter()
            .map(|place| place.name.as_str())
            .collect::<Vec<_>>()
            .join(", ")
    };
    let mut seen = BTreeSet::new();
    let mut read = Vec::new();
    for node in &nodes {
        let Some(section) = node.section("a position with name, kinds and depths") else {
            read.push(None);
            continue;
        };
        let name = section.need("name", &names());
        let position = name.and_then(|node| {
            let text = node.text(&names())?;
            let position = places.iter().position(|place| place.name == text);
            position
                .filter(|position| seen.insert(*position))
                .or_else(|| node.refuse(format!("each once of {}", names())))
        });
        let kinds = section.get("kinds").map_or(Some(None), |node| kinds(node).map(Some));
        let depths = section.get("depths").map_or(Some(None), |node| depths(node).map(Some));
        section.finish();
        let own = || {
            Some(OwnChoices {
                position: position?,
                kinds: kinds?,
                depths: depths?,
            })
        };
        read.push(own());
    }
    read.into_iter().collect()
}

fn operator_names() -> String {
    Operator::ALL.map(Operator::as_str).join(", ")
}

fn kinds(node: Node) -> Option<Vec<Operator>> {
    let nodes = node.list(&format!("a list of {}", operator_names()), 0..=Operator::ALL.len())?;
    unique(&nodes, |node| {
        node.one_of(Operator::ALL.map(|operator| (operator.as_str(), operator)))
    })
}

fn depths(node: Node) -> Option<Vec<u8>> {
    let nodes = node.list("1 to 8 depths", 1..=8)?;
    unique(&nodes, |node| {
        node.integer(1..=16).and_then(|depth| u8::try_from(depth).ok())
    })
}

/// All values, each once.
fn unique<T: Ord + Copy>(nodes: &[Node], read: impl Fn(&Node) -> Option<T>) -> Option<Vec<T>> {
    let mut seen = BTreeSet::new();
    let once = |node: &Node| {
        let value = read(node)?;
        if seen.insert(value) {
            Some(value)
        } else {
            node.refuse("each value once")
        }
    };
    all(nodes.iter().map(once))
}

/// `[[choices]]` shared by positions, and `positions`: names, or tables with a name and choices, each of
/// them the code of a shared choice or a choice of its own.
pub(super) fn choice_positions(root: &Section) -> Option<Vec<Position>> {
    let shared = root.get("choices").map_or(Some(Vec::new()), |node| {
        let nodes = node.list("at most 256 [[choices]]", 0..=MOST_CHOICES)?;
        let choices = nodes.iter().map(choice).collect::<Vec<_>>();
        codes_once(&nodes, &choices);
        choices.into_iter().collect()
    });
    let allowed = "1 to 256 positions: names, or tables with name and choices";
    let nodes = root.need("positions", allowed)?.list(allowed, 1..=MOST_POSITIONS)?;
    // A position can be read, though not checked, where the shared choices are wrong.
    let known = shared.as_deref();
    let read: Vec<Option<Position>> = nodes.iter().map(|node| position(node, known)).collect();
    let mut names = BTreeSet::new();
    for (node, position) in nodes.iter().zip(&read) {
        if let Some(position) = position
            && !names.insert(position.name.as_str())
        {
            node.refuse::<()>("each name once");
        }
    }
    shared?;
    read.into_iter().collect()
}

fn position(node: &Node, shared: Option<&[Choice]>) -> Option<Position> {
    let (name, choices) = if node.is_text() {
        (name_of(node), shared.map(<[Choice]>::to_vec))
    } else {
        let section = node.section("a name, or a table with name and choices")?;
        let name = section.need("name", "a name").and_then(|node| name_of(&node));
        let choices = match section.get("choices") {
            None => shared.map(<[Choice]>::to_vec),
            Some(node) => own(&node, shared),
        };
        section.finish();
        (name, choices)
    };
    let (name, choices) = (name?, choices?);
    if choices.is_empty() {
        return node.refuse("a position with choices: [[choices]] for all positions, or its own");
    }
    Some(Position {
        name: name.to_owned(),
        choices,
    })
}

fn own(node: &Node, shared: Option<&[Choice]>) -> Option<Vec<Choice>> {
    let nodes = node.list("1 to 256 choices", 1..=MOST_CHOICES)?;
    let read = |node: &Node| {
        if !node.is_text() {
            return choice(node);
        }
        let code = node.text("the code of a shared choice")?;
        match shared?.iter().find(|choice| choice.code == code) {
            Some(choice) => Some(choice.clone()),
            None => node.refuse(format!(
                "a table, or a code of [[choices]]: {}",
                shared?
                    .iter()
                    .map(|choice| choice.code.as_str())
                    .collect::<Vec<_>>()
                    .join(", ")
            )),
        }
    };
    let choices: Vec<Option<Choice>> = nodes.iter().map(read).collect();
    codes_once(&nodes, &choices);
    choices.into_iter().collect()
}

fn codes_once(nodes: &[Node], choices: &[Option<Choice>]) {
    let mut codes = BTreeSet::new();
    for (node, choice) in nodes.iter().zip(choices) {
        if let Some(choice) = choice
            && !codes.insert(choice.code.as_str())
        {
            node.refuse::<()>("each code once");
        }
    }
}

fn choice(node: &Node) -> Option<Choice> {
    let section = node.section("a choice with name, code and blocks")?;
    let name = section.need("name", "a name").and_then(|node| label_of(&node));
    let code = section.need("code", CODE).and_then(|node| code_of(&node));
    let blocks = section.get("blocks").map_or(Some(Vec::new()), |node| {
        let nodes = node.list("a list of blocks", 0..=64)?;
        all(nodes.iter().map(block))
    });
    section.finish();
    Some(Choice {
        name: name?.to_owned(),
        code: code?.to_owned(),
        layer: None,
        blocks: blocks?,
    })
}

const CODE: &str = "1 to 16 ASCII letters, digits, `-`, `_` and `+`";

fn code_of<'a>(node: &Node<'a>) -> Option<&'a str> {
    let text = node.text(CODE)?;
    let sound = |c: char| c.is_ascii_alphanumeric() || "-_+".contains(c);
    if (1..=16).contains(&text.len()) && text.chars().all(sound) {
        Some(text)
    } else {
        node.refuse(CODE)
    }
}

fn block(node: &Node) -> Option<Block> {
    let section = node.section("a block with operator and shape")?;
    let operator = section
        .need("operator", "the name of an operator")
        .and_then(|node| label_of(&node));
    let shape = section.need("shape", "a table of dimensions").and_then(|node| {
        let dimensions = node.section("a table of dimensions")?;
        let sizes = dimensions
            .entries()
            .into_iter()
            .map(|(name, node)| Some((name.to_owned(), node.integer(0..=1 << 40)?)));
        all::<_, Shape>(sizes)
    });
    section.finish();
    Some(Block::new(operator?, shape?))
}

/// The `[structure]` section; a temporal UNet has "no layer" as its null choice and declares nothing else.
pub(super) fn structure(node: Option<Node>, positions: &[Position], temporal: bool) -> Option<Structure> {
    let null_index = |null: &str| {
        let find = |position: &Position| position.choices.iter().position(|choice| choice.code == null);
        positions
            .iter()
            .map(|position| find(position).and_then(|i| u16::try_from(i).ok()))
            .collect::<Vec<_>>()
    };
    let Some(node) = node else {
        let null = temporal.then(|| NONE.to_owned());
        let null_index = null.as_deref().map_or_else(|| vec![None; positions.len()], null_index);
        return Some(Structure {
            ordered: false,
            null,
            edges: None,
            null_index,
        });
    };
    let section = node.section("a [structure] section with ordered, null and edges")?;
    let ordered = section.boolean_or("ordered", false);
    let null = section.get("null").map_or(Some(None), |node| {
        let text = node.text("the code of a choice")?;
        let codes: BTreeSet<&str> = positions
            .iter()
            .flat_map(|p| &p.choices)
            .map(|c| c.code.as_str())
            .collect();
        if codes.contains(text) {
            Some(Some(text.to_owned()))
        } else {
            node.refuse(format!(
                "one of the codes {}",
                codes.into_iter().collect::<Vec<_>>().join(", ")
            ))
        }
    });
    let edges = section
        .get("edges")
        .map_or(Some(None), |node| edges(&node, positions.len()).map(Some));
    if let (Some(None), Some(Some(_))) = (&null, &edges) {
        section.report(
            "null",
            "nothing",
            "the code of the choice that cuts an edge, as `edges` are declared",
        );
    }
    section.finish();
    let null: Option<String> = null?;
    let null_index = null.as_deref().map_or_else(|| vec![None; positions.len()], null_index);
    Some(Structure {
        ordered: ordered?,
        null,
        edges: edges?,
        null_index,
    })
}

fn edges(node: &Node, positions: usize) -> Option<Vec<(u8, u8)>> {
    let allowed = format!("{positions} pairs [from, to], one per position, from < to");
    let nodes = node.list(&allowed, positions..=positions)?;
    let edge = |node: &Node| {
        let ends = node.list("[from, to]", 2..=2)?;
        let (from, to) = (ends[0].integer(0..=254), ends[1].integer(0..=254));
        let (from, to) = (u8::try_from(from?).ok()?, u8::try_from(to?).ok()?);
        if from < to {
            Some((from, to))
        } else {
            node.refuse("from < to")
        }
    };
    all(nodes.iter().map(edge))
}
