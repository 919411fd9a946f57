//! Which weights of the full UNet a pruned one starts from.
//!
//! Blocks follow BK-SDM (Kim et al. 2023, section 3): on the way down the leading layers of each level are kept; on
//! the way up the first, which takes what comes from below, and the last ones, each with the skip it had; a pruned UNet
//! without the innermost levels takes its up blocks from the outer ones. Where a level is narrower, each group of the
//! group norms keeps its leading channels, so a group stays a group; each head keeps its leading channels too, as does
//! each half of the gated feed-forward, and each side of what is joined with a skip tensor.

use std::collections::{BTreeMap, HashMap};

use search_spaces::UnetConfig;
use tch::{Device, Kind, Tensor, nn};

use super::layout::{Axis, Block, Weight, weights};

/// How one weight of the pruned UNet starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Start {
    /// Places of a weight of the full UNet.
    Copied {
        /// Its name there.
        from: String,
        /// Along each axis, which places; none where all of them are taken.
        picks: Vec<Option<Vec<i64>>>,
    },
    /// Places of the unit matrix, as a 1×1 convolution: the full UNet adds its input as it is, where the pruned one,
    /// whose widths differ there, needs a convolution to add it.
    Identity {
        /// Width of the full UNet there.
        width: i64,
        /// Which outputs and which inputs.
        picks: [Vec<i64>; 2],
    },
    /// Zeros: the bias of [`Self::Identity`].
    Zero,
    /// Ones: the full UNet does not normalise queries and keys.
    One,
    /// As drawn: the full UNet has nothing of the kind.
    Fresh {
        /// What it lacks.
        lacking: &'static str,
    },
}

/// Why a UNet cannot start from another.
#[derive(Debug, thiserror::Error)]
pub enum CopyMapError {
    /// A setting does not fit.
    #[error("the pruned UNet has `{setting}` {found}, the full one {full}; allowed: {allowed}")]
    Setting {
        /// Its name in a space file.
        setting: &'static str,
        /// What the pruned one has.
        found: u64,
        /// What the full one has.
        full: u64,
        /// What would fit.
        allowed: &'static str,
    },
    /// A tensor would be larger than what it starts from.
    #[error(
        "`{tensor}` is {found:?} in the pruned UNet and {full:?} in the full one, its `{from}`; widths can only shrink"
    )]
    Wider {
        /// The weight of the pruned UNet.
        tensor: String,
        /// Its shape.
        found: Vec<i64>,
        /// What it would start from.
        from: String,
        /// The shape of that.
        full: Vec<i64>,
    },
    /// A weight that should be there is not, or has another shape than its configuration says.
    #[error("`{tensor}` is {found}; expected is {expected:?}")]
    Tensor {
        /// Its name.
        tensor: String,
        /// Its shape, or that it is missing.
        found: String,
        /// The shape by the configuration.
        expected: Vec<i64>,
    },
    /// libtorch refused a tensor.
    #[error(transparent)]
    Torch(#[from] tch::TchError),
}

/// The start of every weight of a pruned UNet.
#[derive(Debug, Clone)]
pub struct CopyMap {
    starts: BTreeMap<String, (Start, Vec<i64>)>,
    full_shapes: HashMap<String, Vec<i64>>,
}

impl CopyMap {
    /// The map from a full UNet to a pruned one.
    ///
    /// # Errors
    /// Where the pruned one has more of anything, or differs in what pruning leaves alone.
    pub fn new(full: &UnetConfig, pruned: &UnetConfig) -> Result<Self, CopyMapError> {
        check_settings(full, pruned)?;
        let levels_dropped = full.channels.len() - pruned.channels.len();
        let layers_dropped = (full.layers_per_block - pruned.layers_per_block) as usize;
        let full: HashMap<String, Weight> = weights(full).into_iter().map(|w| (w.name(), w)).collect();
        let start = |weight: Weight| {
            let from = Weight {
                block: match weight.block {
                    Block::Up(i) => Block::Up(i + levels_dropped),
                    other => other,
                },
                index: match weight.block {
                    Block::Up(_) if weight.index > 0 => weight.index + layers_dropped,
                    _ => weight.index,
                },
                ..weight.clone()
            };
            let start = match full.get(&from.name()) {
                Some(found) => copied(&weight, found)?,
                None => without_source(&weight, &from, &full)?,
            };
            Ok((weight.name(), (start, weight.shape())))
        };
        Ok(Self {
            starts: weights(pruned)
                .into_iter()
                .map(start)
                .collect::<Result<_, CopyMapError>>()?,
            full_shapes: full.iter().map(|(name, w)| (name.clone(), w.shape())).collect(),
        })
    }

    /// The start of every weight, by its name in the pruned UNet.
    pub fn starts(&self) -> impl Iterator<Item = (&str, &Start)> {
        self.starts.iter().map(|(name, (start, _))| (name.as_str(), start))
    }

    /// Sets the weights of a pruned UNet from those of the full one; fresh ones stay as they are.
    ///
    /// # Errors
    /// Where either lacks a tensor or has it in another shape than the map was made for.
    pub fn copy(&self, full: &HashMap<String, Tensor>, pruned: &nn::VarStore) -> Result<(), CopyMapError> {
        let pruned = pruned.variables();
        for (name, (start, shape)) in &self.starts {
            let mut variable = found(&pruned, name, shape)?.shallow_clone();
            let on = (variable.kind(), variable.device());
            let value = match start {
                Start::Copied { from, picks } => {
                    let source = found(full, from, self.full_shapes.get(from).unwrap_or(shape))?;
                    Some(picked(source, picks))
                }
                Start::Identity { width, picks } => {
                    let unit = Tensor::eye(*width, (Kind::Float, Device::Cpu));
                    let picks = picks.clone().map(Some);
                    Some(picked(&unit, &picks).unsqueeze(-1).unsqueeze(-1))
                }
                Start::Zero => Some(Tensor::zeros(shape, on)),
                Start::One => Some(Tensor::ones(shape, on)),
                Start::Fresh { .. } => None,
            };
            if let Some(value) = value {
                tch::no_grad(|| variable.f_copy_(&value))?;
            }
        }
        Ok(())
    }
}

fn check_settings(full: &UnetConfig, pruned: &UnetConfig) -> Result<(), CopyMapError> {
    let same = "the same";
    let no_more = "no more";
    let levels = |config: &UnetConfig| config.channels.len() as u64;
    let settings = [
        ("latent_channels", pruned.latent_channels, full.latent_channels, same),
        ("heads", pruned.heads, full.heads, same),
        ("norm_groups", pruned.norm_groups, full.norm_groups, same),
        ("text_width", pruned.text_width, full.text_width, same),
        ("channels (levels)", levels(pruned), levels(full), no_more),
        (
            "layers_per_block",
            pruned.layers_per_block,
            full.layers_per_block,
            no_more,
        ),
        ("ff_multiplier", pruned.ff_multiplier, full.ff_multiplier, no_more),
    ];
    for (setting, found, full, allowed) in settings {
        if found > full || (found < full && allowed == same) {
            return Err(CopyMapError::Setting {
                setting,
                found,
                full,
                allowed,
            });
        }
    }
    Ok(())
}

fn copied(weight: &Weight, from: &Weight) -> Result<Start, CopyMapError> {
    let pick = |(ours, theirs): (&Axis, &Axis)| {
        let picked = ours.pick_from(theirs)?;
        Some((picked.len() as i64 != theirs.size()).then_some(picked))
    };
    let picks: Option<Vec<_>> = weight.axes.iter().zip(&from.axes).map(pick).collect();
    let picks = picks.filter(|_| weight.axes.len() == from.axes.len());
    Ok(Start::Copied {
        from: from.name(),
        picks: picks.ok_or_else(|| wider(weight, from))?,
    })
}

fn wider(weight: &Weight, from: &Weight) -> CopyMapError {
    CopyMapError::Wider {
        tensor: weight.name(),
        found: weight.shape(),
        from: from.name(),
        full: from.shape(),
    }
}

/// The start of a weight whose namesake the full UNet lacks.
fn without_source(weight: &Weight, from: &Weight, full: &HashMap<String, Weight>) -> Result<Start, CopyMapError> {
    if weight.tail.ends_with("norm_q.weight") || weight.tail.ends_with("norm_k.weight") {
        return Ok(Start::One);
    }
    let block = Weight {
        tail: "norm1.weight".to_owned(),
        ..from.clone()
    };
    let block = full.get(&block.name());
    match (weight.module, weight.tail.as_str(), block) {
        ("resnets", "conv_shortcut.bias", Some(_)) => Ok(Start::Zero),
        ("resnets", "conv_shortcut.weight", Some(norm)) => {
            let pick = |axis: &Axis| axis.pick_from(&norm.axes[0]).ok_or_else(|| wider(weight, norm));
            Ok(Start::Identity {
                width: norm.axes[0].size(),
                picks: [pick(&weight.axes[0])?, pick(&weight.axes[1])?],
            })
        }
        ("attentions", _, _) => Ok(Start::Fresh {
            lacking: "attention at this level",
        }),
        _ => Ok(Start::Fresh { lacking: "this block" }),
    }
}

fn found<'a>(tensors: &'a HashMap<String, Tensor>, name: &str, shape: &[i64]) -> Result<&'a Tensor, CopyMapError> {
    let tensor = tensors.get(name);
    tensor
        .filter(|tensor| tensor.size() == shape)
        .ok_or_else(|| CopyMapError::Tensor {
            tensor: name.to_owned(),
            found: tensor.map_or("missing".to_owned(), |tensor| format!("{:?}", tensor.size())),
            expected: shape.to_owned(),
        })
}

fn picked(tensor: &Tensor, picks: &[Option<Vec<i64>>]) -> Tensor {
    let axes = (0..).zip(picks);
    axes.fold(tensor.detach(), |tensor, (axis, pick)| match pick {
        Some(places) => tensor.index_select(axis, &Tensor::from_slice(places).to_device(tensor.device())),
        None => tensor,
    })
}

/// A place where both UNets have the same picture in hand, at the same size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharedPosition {
    /// Index among the full UNet's positions.
    pub full: usize,
    /// Index among the pruned UNet's positions.
    pub pruned: usize,
    /// The full UNet's channels that the pruned one's started as; none where it has them all.
    pub channels: Option<Vec<i64>>,
}

/// The positions whose features are compared: every level down and up that both have, and the middle where it stands
/// at the same size.
///
/// # Errors
/// As [`CopyMap::new`].
pub fn shared_positions(full: &UnetConfig, pruned: &UnetConfig) -> Result<Vec<SharedPosition>, CopyMapError> {
    check_settings(full, pruned)?;
    let (all, ours) = (full.positions(), pruned.positions());
    let levels_dropped = full.channels.len() - pruned.channels.len();
    let mut shared = Vec::new();
    for (index, position) in ours.iter().enumerate() {
        let name = match position.name.split_once('.') {
            Some(("up", i)) => format!("up.{}", i.parse::<usize>().unwrap_or_default() + levels_dropped),
            None if levels_dropped > 0 => continue,
            _ => position.name.clone(),
        };
        let Some(theirs) = all.iter().position(|other| other.name == name) else {
            continue;
        };
        let axis = |channels, config: &UnetConfig| Axis::grouped(channels, config.norm_groups);
        let (narrow, wide) = (axis(position.channels, pruned), axis(all[theirs].channels, full));
        let picked = narrow.pick_from(&wide).ok_or_else(|| CopyMapError::Wider {
            tensor: position.name.clone(),
            found: vec![narrow.size()],
            from: name,
            full: vec![wide.size()],
        })?;
        shared.push(SharedPosition {
            full: theirs,
            pruned: index,
            channels: (narrow.size() != wide.size()).then_some(picked),
        });
    }
    Ok(shared)
}

#[cfg(test)]
mod tests;
