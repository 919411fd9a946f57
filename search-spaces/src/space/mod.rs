//! A search space: positions with their choices, objectives, limits and settings, read from a TOML file.

mod evaluation;
mod parse;
mod positions;
mod read;
mod recipe;
mod search;
mod settings;
mod training;
mod unet;

use std::collections::BTreeSet;

pub use evaluation::BUILT_IN_DIMENSIONS;
pub use parse::SpaceError;
pub use read::Problem;
pub use recipe::{Adversarial, Decoder, Distillation, Heads, Joint, Mix, Prediction, Recipe, Stage, Trains};
pub use settings::{
    ActionMode, ActionsSettings, Direction, Evaluation, Limits, Nsga2Settings, Objective, Pipeline, SearchSettings,
    Start, StrategySettings, TableSettings,
};
pub use training::{Precision, TimestepShift, TrainingSettings};

use crate::action::Neighbour;
use crate::{Action, Architecture, ArchitectureError, Block, Structure, TemporalLayer, UnetConfig};

/// A validated search space.
#[derive(Debug, Clone, PartialEq)]
pub struct Space {
    /// Short name, unique for its owner.
    pub name: String,
    /// One line for people.
    pub title: String,
    /// What an architecture of the space is.
    pub kind: SpaceKind,
    /// Where something is chosen.
    pub positions: Vec<Position>,
    /// How choices relate, as far as the file declares it.
    pub structure: Structure,
    /// What is traded against what.
    pub objectives: Vec<Objective>,
    /// Upper bounds that a candidate must keep.
    pub limits: Limits,
    /// Architectures that are evaluated first and drawn beside the front.
    pub references: Vec<Reference>,
    /// How the space is searched.
    pub search: SearchSettings,
    /// How a candidate is trained and scored; absent where somebody else evaluates.
    pub evaluation: Option<Evaluation>,
    /// What surrounds the UNet when a whole clip is made; absent where only one step matters.
    pub pipeline: Option<Pipeline>,
    /// The TOML text that this was read from.
    pub source: String,
}

/// What an architecture of a space is.
#[derive(Debug, Clone, PartialEq)]
pub enum SpaceKind {
    /// Temporal layers at the positions of a UNet.
    TemporalUnet(UnetConfig),
    /// Blocks that run one after another; their costs add up.
    BlockSequence,
    /// Named choices whose costs do not compose.
    Categorical,
    /// Named choices whose evaluations are rows of an uploaded table.
    Table(TableSettings),
}

impl SpaceKind {
    /// Name in space files.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::TemporalUnet(_) => "temporal-unet",
            Self::BlockSequence => "block-sequence",
            Self::Categorical => "categorical",
            Self::Table(_) => "table",
        }
    }
}

/// A place where one of several choices stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    /// Name, unique in the space.
    pub name: String,
    /// What may stand there.
    pub choices: Vec<Choice>,
}

/// Something that may stand at a position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// Name for people.
    pub name: String,
    /// Short form, unique at its position; architectures are printed with it.
    pub code: String,
    /// The temporal layers it stands for, in a temporal UNet.
    pub layer: Option<TemporalLayer>,
    /// What runs when it is taken, one after another; empty where nothing does or nothing is known.
    pub blocks: Vec<Block>,
}

/// A named architecture that is evaluated beside the search.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// Name for people.
    pub name: String,
    /// The architecture.
    pub architecture: Architecture,
}

impl Space {
    /// Codes joined by dots, `-.c1.s3x2.-.c1`, or concatenated where every code of the space is one
    /// character, `22222222`. A choice that does not exist is printed as `?`.
    #[must_use]
    pub fn print(&self, architecture: &Architecture) -> String {
        let codes = self.positions.iter().enumerate().map(|(i, position)| {
            let choice = architecture
                .choices()
                .get(i)
                .and_then(|&choice| position.choices.get(usize::from(choice)));
            choice.map_or("?", |choice| choice.code.as_str())
        });
        codes.collect::<Vec<_>>().join(self.separator())
    }

    /// Reads the printed form.
    ///
    /// # Errors
    /// Names the position, what was found and what is allowed there.
    pub fn architecture(&self, text: &str) -> Result<Architecture, ArchitectureError> {
        let codes: Vec<&str> = match self.separator() {
            "" => text.split_inclusive(|_| true).collect(),
            separator => text.split(separator).collect(),
        };
        if codes.len() != self.positions.len() {
            return Err(self.wrong_length(text, codes.len()));
        }
        let choices = self.positions.iter().zip(&codes).map(|(position, code)| {
            let choice = position.choices.iter().position(|choice| choice.code == *code);
            choice
                .and_then(|choice| u16::try_from(choice).ok())
                .ok_or_else(|| position.refuses(code))
        });
        Ok(Architecture::new(choices.collect::<Result<Vec<_>, _>>()?))
    }

    /// Whether every choice of the architecture exists here.
    ///
    /// # Errors
    /// Names the first position that is wrong.
    pub fn check(&self, architecture: &Architecture) -> Result<(), ArchitectureError> {
        let choices = architecture.choices();
        if choices.len() != self.positions.len() {
            return Err(self.wrong_length(&format!("{choices:?}"), choices.len()));
        }
        match self
            .positions
            .iter()
            .zip(choices)
            .find(|(position, choice)| usize::from(**choice) >= position.choices.len())
        {
            Some((position, choice)) => Err(position.refuses(&choice.to_string())),
            None => Ok(()),
        }
    }

    /// Number of architectures; saturates.
    #[must_use]
    pub fn size(&self) -> u128 {
        self.positions.iter().fold(1, |size: u128, position| {
            size.saturating_mul(position.choices.len() as u128)
        })
    }

    /// The temporal layers at each position; `None` where there is none.
    #[must_use]
    pub fn layers(&self, architecture: &Architecture) -> Vec<Option<TemporalLayer>> {
        self.chosen(architecture)
            .map(|choice| choice.and_then(|choice| choice.layer))
            .collect()
    }

    /// The choice taken at each position; `None` where it does not exist.
    pub fn chosen(&self, architecture: &Architecture) -> impl Iterator<Item = Option<&Choice>> {
        self.positions.iter().enumerate().map(move |(i, position)| {
            architecture
                .choices()
                .get(i)
                .and_then(|&choice| position.choices.get(usize::from(choice)))
        })
    }

    /// The UNet of a temporal space.
    #[must_use]
    pub fn unet(&self) -> Option<&UnetConfig> {
        match &self.kind {
            SpaceKind::TemporalUnet(unet) => Some(unet),
            SpaceKind::BlockSequence | SpaceKind::Categorical | SpaceKind::Table(_) => None,
        }
    }

    /// Every distinct block that a look-up table needs for the space: backbone, choices and, where the
    /// pipeline has to be measured, text encoder and decoder.
    #[must_use]
    pub fn blocks(&self) -> Vec<Block> {
        let mut blocks = BTreeSet::new();
        if let Some(unet) = self.unet() {
            blocks.extend(unet.schedule(&[]).into_iter().map(|step| step.block));
            if let Some(pipeline) = &self.pipeline {
                blocks.extend(pipeline.text_latency_ms.is_none().then(|| unet.text_encoder_block()));
                blocks.extend(pipeline.decode_latency_ms.is_none().then(|| unet.decoder_block()));
            }
        }
        let choices = self.positions.iter().flat_map(|position| &position.choices);
        blocks.extend(choices.flat_map(|choice| choice.blocks.iter().cloned()));
        blocks.into_iter().collect()
    }

    /// The architecture with the null choice at every position, where all positions have one.
    #[must_use]
    pub fn backbone(&self) -> Option<Architecture> {
        let nulls: Option<Vec<u16>> = (0..self.positions.len()).map(|i| self.structure.null_at(i)).collect();
        nulls.map(Architecture::new)
    }

    /// Every architecture that differs at exactly one position, with the action that leads there.
    #[must_use]
    pub fn neighbours(&self, architecture: &Architecture) -> Vec<Neighbour> {
        let changes =
            self.positions
                .iter()
                .zip(architecture.choices())
                .enumerate()
                .flat_map(|(i, (position, &from))| {
                    let choices = u16::try_from(position.choices.len()).unwrap_or(u16::MAX);
                    (0..choices).filter(move |&to| to != from).map(move |to| (i, to))
                });
        changes
            .map(|(position, to)| Neighbour {
                action: self.action(position, architecture.choices()[position], to),
                architecture: architecture.with(position, to),
            })
            .collect()
    }

    /// The action that changes one choice into another at a position.
    #[must_use]
    pub fn action(&self, position: usize, from: u16, to: u16) -> Action {
        match self.structure.null_at(position) {
            Some(null) if null == to => Action::Remove { position },
            Some(null) if null == from => Action::Add { position, choice: to },
            _ => Action::Swap { position, from, to },
        }
    }

    /// The architecture after an action; the action's own choices decide, not what stood there.
    #[must_use]
    pub fn apply(&self, architecture: &Architecture, action: Action) -> Architecture {
        match action {
            Action::Add { position, choice }
            | Action::Swap {
                position, to: choice, ..
            } => architecture.with(position, choice),
            Action::Remove { position } => match self.structure.null_at(position) {
                Some(null) => architecture.with(position, null),
                None => architecture.clone(),
            },
        }
    }

    /// An action in words: `add conv1d at down.0`.
    #[must_use]
    pub fn describe(&self, action: Action) -> String {
        let position = self.positions.get(action.position());
        let place = position.map_or("?", |position| position.name.as_str());
        let name = |choice: u16| {
            position
                .and_then(|position| position.choices.get(usize::from(choice)))
                .map_or("?", |choice| choice.name.as_str())
        };
        match action {
            Action::Add { choice, .. } => format!("add {} at {place}", name(choice)),
            Action::Remove { .. } => format!("remove the layer at {place}"),
            Action::Swap { from, to, .. } => format!("swap {} for {} at {place}", name(from), name(to)),
        }
    }

    fn separator(&self) -> &'static str {
        let mut codes = self
            .positions
            .iter()
            .flat_map(|position| &position.choices)
            .map(|choice| &choice.code);
        if codes.all(|code| code.chars().count() == 1) {
            ""
        } else {
            "."
        }
    }

    fn wrong_length(&self, text: &str, found: usize) -> ArchitectureError {
        ArchitectureError::Length {
            text: shortened(text),
            space: self.name.clone(),
            found,
            expected: self.positions.len(),
            positions: self
                .positions
                .iter()
                .map(|p| p.name.as_str())
                .collect::<Vec<_>>()
                .join(", "),
        }
    }
}

impl Position {
    fn refuses(&self, found: &str) -> ArchitectureError {
        ArchitectureError::Choice {
            position: self.name.clone(),
            found: shortened(found),
            allowed: self
                .choices
                .iter()
                .map(|choice| choice.code.as_str())
                .collect::<Vec<_>>()
                .join(", "),
        }
    }
}

/// What was found, short enough for a message.
fn shortened(text: &str) -> String {
    const LONGEST: usize = 80;
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
