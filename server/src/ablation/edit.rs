//! One thing changed: a key of a recipe, the depth of an architecture, a stage without temporal layers.

use std::collections::BTreeSet;

use search_spaces::{Architecture, Space, TemporalLayer};
use toml::{Table, Value};

/// The most layers that stand at a position.
const MOST_LAYERS: u64 = 16;

/// Why something cannot be changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EditError {
    /// The recipe is no TOML.
    #[error("the recipe is no TOML: {0}")]
    Recipe(String),
    /// The recipe lacks a section.
    #[error("the recipe has no [{0}]")]
    Section(&'static str),
    /// A position would hold too many layers.
    #[error("{position} would hold {layers} temporal layers; at most {MOST_LAYERS} are possible")]
    TooDeep {
        /// The position.
        position: String,
        /// Layers there.
        layers: u64,
    },
    /// No layer would be left, or there is none.
    #[error("no temporal layer would be left")]
    Empty,
    /// The space cannot hold the changed architecture.
    #[error("the space cannot hold it: {0}")]
    Space(String),
}

/// A recipe with another value of one key.
pub(super) fn recipe(text: &str, section: &'static str, key: &str, value: Value) -> Result<String, EditError> {
    let mut table: Table = text
        .parse()
        .map_err(|error: toml::de::Error| EditError::Recipe(error.to_string()))?;
    let found = table.get_mut(section).and_then(Value::as_table_mut);
    found.ok_or(EditError::Section(section))?.insert(key.to_owned(), value);
    toml::to_string(&table).map_err(|error| EditError::Recipe(error.to_string()))
}

/// A number of a recipe.
pub(super) fn number(text: &str, section: &str, key: &str) -> Option<f64> {
    let table: Table = text.parse().ok()?;
    let value = table.get(section)?.get(key)?;
    value
        .as_float()
        .or_else(|| value.as_integer().map(|number| number as f64))
}

/// An architecture with `factor` times as many temporal layers, and a space that holds it: text and printed form.
///
/// Depths are rounded so that the layers up to each position come nearest below: their sum is exact for whole factors,
/// and halving single layers keeps every other one.
pub(super) fn scaled(space: &Space, architecture: &Architecture, factor: f64) -> Result<(String, String), EditError> {
    let mut before = 0.0;
    let mut layers = Vec::new();
    for (position, layer) in space.positions.iter().zip(space.layers(architecture)) {
        let depth = layer.map_or(0.0, |layer| f64::from(layer.depth));
        let after = before + depth;
        let wanted = ((after * factor).floor() - (before * factor).floor()) as u64;
        before = after;
        if wanted > MOST_LAYERS {
            return Err(EditError::TooDeep {
                position: position.name.clone(),
                layers: wanted,
            });
        }
        layers.push(layer.filter(|_| wanted > 0).map(|layer| TemporalLayer {
            depth: wanted as u8,
            ..layer
        }));
    }
    if layers.iter().all(Option::is_none) {
        return Err(EditError::Empty);
    }
    let text = with_depths(
        &space.source,
        layers.iter().flatten().map(|layer| layer.depth).collect(),
    )?;
    let wider = Space::parse(&text).map_err(|error| EditError::Space(error.to_string()))?;
    let printed = wider.print(&holding(&wider, &layers)?);
    Ok((text, printed))
}

/// An architecture without temporal layers at the positions whose names begin with `stage`, in printed form.
pub(super) fn without(space: &Space, architecture: &Architecture, stage: &str) -> Result<String, EditError> {
    let layers: Vec<_> = space
        .positions
        .iter()
        .zip(space.layers(architecture))
        .map(|(position, layer)| layer.filter(|_| !position.name.starts_with(stage)))
        .collect();
    Ok(space.print(&holding(space, &layers)?))
}

/// The architecture that has these layers.
fn holding(space: &Space, layers: &[Option<TemporalLayer>]) -> Result<Architecture, EditError> {
    let choices = space.positions.iter().zip(layers).map(|(position, layer)| {
        let found = position.choices.iter().position(|choice| choice.layer == *layer);
        let found = found.and_then(|found| u16::try_from(found).ok());
        found.ok_or_else(|| EditError::Space(format!("{} has no such choice", position.name)))
    });
    Ok(Architecture::new(choices.collect::<Result<Vec<_>, _>>()?))
}

/// A space whose positions may all have these depths besides their own.
fn with_depths(text: &str, depths: BTreeSet<u8>) -> Result<String, EditError> {
    let wrong = |error: &dyn std::fmt::Display| EditError::Space(error.to_string());
    let mut table: Table = text.parse().map_err(|error: toml::de::Error| wrong(&error))?;
    let add = |section: &mut Table, usual: &[i64]| {
        let own = section.get("depths").and_then(Value::as_array);
        let own: Option<Vec<i64>> = own.map(|own| own.iter().filter_map(Value::as_integer).collect());
        let mut all: BTreeSet<i64> = own.unwrap_or_else(|| usual.to_vec()).into_iter().collect();
        all.extend(depths.iter().map(|depth| i64::from(*depth)));
        section.insert("depths".to_owned(), all.into_iter().collect::<Vec<_>>().into());
    };
    if let Some(everywhere) = table.get_mut("operators").and_then(Value::as_table_mut) {
        add(everywhere, &[1]);
    }
    let own = table.get_mut("positions").and_then(Value::as_array_mut);
    for section in own.into_iter().flatten().filter_map(Value::as_table_mut) {
        if section.contains_key("depths") {
            add(section, &[]);
        }
    }
    toml::to_string(&table).map_err(|error| wrong(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TINY: &str = include_str!("../../../search-spaces/spaces/shapes-tiny.toml");
    const PAPER: &str = include_str!("../../../search-spaces/spaces/snapgen-v.toml");
    const ADVERSARIAL: &str = include_str!("../../../worker/recipes/adversarial.toml");

    fn scale(text: &str, architecture: &str, factor: f64) -> Result<(String, String), EditError> {
        let space = Space::parse(text).unwrap();
        scaled(&space, &space.architecture(architecture).unwrap(), factor)
    }

    fn layers(text: &str, architecture: &str) -> u32 {
        let space = Space::parse(text).unwrap();
        let layers = space.layers(&space.architecture(architecture).unwrap());
        layers.into_iter().flatten().map(|layer| u32::from(layer.depth)).sum()
    }

    #[test]
    fn depth_is_multiplied_in_a_space_that_can_hold_it() {
        for factor in [2.0, 4.0] {
            let (text, printed) = scale(TINY, "c1.-.s1.s3.c1", factor).unwrap();
            assert_eq!(layers(&text, &printed), 4 * factor as u32, "{printed}");
        }
        assert_eq!(scale(TINY, "c1.-.s1.s3.c1", 2.0).unwrap().1, "c1x2.-.s1x2.s3x2.c1x2");
    }

    #[test]
    fn halving_keeps_half_of_the_layers_wherever_they_stand() {
        assert_eq!(scale(TINY, "c1.s1.s1.s3.c1", 0.5).unwrap().1, "-.s1.-.s3.-");
        let space = Space::parse(PAPER).unwrap();
        let deep = space.references.last().unwrap();
        let before = layers(PAPER, &space.print(&deep.architecture));
        let (text, printed) = scaled(&space, &deep.architecture, 0.5).unwrap();
        assert_eq!(layers(&text, &printed), before / 2, "{printed}");
    }

    #[test]
    fn what_cannot_be_scaled_says_why() {
        assert_eq!(scale(TINY, "c1.-.-.-.-", 0.5), Err(EditError::Empty));
        let deep = TINY.replace("depths = [1]", "depths = [1, 6]");
        assert!(matches!(
            scale(&deep, "c1x6.-.-.-.-", 4.0),
            Err(EditError::TooDeep { layers: 24, .. })
        ));
    }

    #[test]
    fn a_stage_loses_its_temporal_layers_alone() {
        let space = Space::parse(TINY).unwrap();
        let all = space.architecture("c1.c1.s1.s3.c1").unwrap();
        assert_eq!(without(&space, &all, "down").unwrap(), "-.-.s1.s3.c1");
        assert_eq!(without(&space, &all, "mid").unwrap(), "c1.c1.-.s3.c1");
        assert_eq!(without(&space, &all, "up").unwrap(), "c1.c1.s1.-.-");
    }

    #[test]
    fn one_key_of_a_recipe_changes_and_nothing_else() {
        let edited = recipe(ADVERSARIAL, "adversarial", "noise_mean", Value::Float(-2.0)).unwrap();
        let (mut before, mut after): (Table, Table) = (ADVERSARIAL.parse().unwrap(), edited.parse().unwrap());
        assert_eq!(number(&edited, "adversarial", "noise_mean"), Some(-2.0));
        for table in [&mut before, &mut after] {
            table["adversarial"].as_table_mut().unwrap().remove("noise_mean");
        }
        assert_eq!(before, after);
        assert_eq!(
            recipe(ADVERSARIAL, "joint", "image_share", Value::Float(0.0)),
            Err(EditError::Section("joint"))
        );
    }
}
