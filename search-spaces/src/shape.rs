//! Named dimensions.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Named dimensions of a block, ordered by name: `c=64 h=8 t=5 w=8`. A map on the wire.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Shape(BTreeMap<String, u64>);

impl Shape {
    /// From pairs of name and size; a later pair of the same name wins.
    #[must_use]
    pub fn new<const N: usize>(dimensions: [(&str, u64); N]) -> Self {
        Self(
            dimensions
                .into_iter()
                .map(|(name, size)| (name.to_owned(), size))
                .collect(),
        )
    }

    /// Size of one dimension.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<u64> {
        self.0.get(name).copied()
    }

    /// The same shape with one dimension set.
    #[must_use]
    pub fn with(mut self, name: &str, size: u64) -> Self {
        self.0.insert(name.to_owned(), size);
        self
    }

    /// Name and size of every dimension, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, u64)> {
        self.0.iter().map(|(name, size)| (name.as_str(), *size))
    }

    /// Whether no dimension is named.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<(String, u64)> for Shape {
    fn from_iter<I: IntoIterator<Item = (String, u64)>>(dimensions: I) -> Self {
        Self(dimensions.into_iter().collect())
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (name, size)) in self.iter().enumerate() {
            if i > 0 {
                f.write_str(" ")?;
            }
            write!(f, "{name}={size}")?;
        }
        Ok(())
    }
}

/// A text that is no shape.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no dimension; write name=size, separated by spaces, each name once, as in `c=64 h=8 t=5 w=8`")]
pub struct ShapeError(String);

impl FromStr for Shape {
    type Err = ShapeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut shape = BTreeMap::new();
        for word in text.split_whitespace() {
            let refused = || ShapeError(word.to_owned());
            let (name, size) = word.split_once('=').ok_or_else(refused)?;
            let size = size.parse().map_err(|_| refused())?;
            if name.is_empty() || shape.insert(name.to_owned(), size).is_some() {
                return Err(refused());
            }
        }
        Ok(Self(shape))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_printed_form_reads_back(dimensions in prop::collection::btree_map("[a-z_]{1,8}", any::<u64>(), 0..8)) {
            let shape: Shape = dimensions.into_iter().collect();
            prop_assert_eq!(shape.to_string().parse::<Shape>().unwrap(), shape);
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,40}") {
            let _ = text.parse::<Shape>();
        }
    }

    #[test]
    fn dimensions_are_printed_by_name_and_a_repeated_one_is_refused() {
        assert_eq!(
            Shape::new([("w", 8), ("c", 64), ("t", 5)]).with("h", 8).to_string(),
            "c=64 h=8 t=5 w=8"
        );
        assert!("c=1 c=2".parse::<Shape>().is_err());
    }
}
