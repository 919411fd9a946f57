//! Data of the paper's Figure 3: what the six temporal operators cost over the size of their input.

use search_spaces::{Block, Operator, UnetConfig, Work, work};

use crate::{Lookup, Lut};

/// Frames of the paper's Figure 3.
pub const FIGURE_3_FRAMES: u64 = 12;

/// One operator at one input size: closed form beside the table's answer.
#[derive(Debug, Clone, PartialEq)]
pub struct FigurePoint {
    /// The operator.
    pub operator: Operator,
    /// Height and width of the input, latent pixels.
    pub size: u64,
    /// What is measured.
    pub block: Block,
    /// MACs and activation bytes (and parameters, bytes moved) in closed form.
    pub work: Work,
    /// Latency and peak memory as the table knows them.
    pub answer: Lookup,
}

/// The blocks of the figure, which a device must have measured for it to be full: every operator at every size, 12
/// frames, with the channels, heads and text of the UNet's first level.
pub fn figure3_blocks(unet: &UnetConfig, sizes: &[u64]) -> Vec<(Operator, u64, Block)> {
    let at = |operator: Operator, size: u64| {
        let unet = UnetConfig {
            frames: FIGURE_3_FRAMES,
            height: size,
            width: size,
            ..unet.clone()
        };
        Some((operator, size, unet.temporal_block(0, operator)?))
    };
    Operator::ALL
        .into_iter()
        .flat_map(|operator| sizes.iter().filter_map(move |&size| at(operator, size)))
        .collect()
}

/// The figure's points, operator by operator in the order of `sizes`.
pub fn figure3(lut: &Lut, unet: &UnetConfig, sizes: &[u64]) -> Vec<FigurePoint> {
    let point = |(operator, size, block): (Operator, u64, Block)| {
        let work = work(&block, lut.dtype())?;
        Some(FigurePoint {
            operator,
            size,
            work,
            answer: lut.get(&block),
            block,
        })
    };
    figure3_blocks(unet, sizes).into_iter().filter_map(point).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{eager, flat, measured, unet};

    #[test]
    fn closed_form_stands_beside_what_was_measured() {
        let space = flat("");
        // The sizes of the specification's table: 320 channels, 8 heads, 77 tokens of 768.
        let unet = UnetConfig {
            channels: vec![320],
            heads: 8,
            text_tokens: 77,
            text_width: 768,
            ..unet(&space).clone()
        };
        let mut lut = eager();
        for (operator, size, block) in figure3_blocks(&unet, &[32, 64]) {
            if (operator, size) != (Operator::SelfAttention3d, 64) {
                lut.insert(block, measured(&[size as f64], &[]));
            }
        }
        let points = figure3(&lut, &unet, &[32, 64]);
        assert_eq!(points.len(), 12);
        let at_64: Vec<(&str, f64)> = points
            .iter()
            .filter(|point| point.size == 64)
            .map(|point| (point.operator.as_str(), point.work.macs as f64 / 1e9))
            .collect();
        let published = [
            ("conv1d", 15.1),
            ("conv3d", 135.9),
            ("self_attention1d", 20.5),
            ("self_attention3d", 1566.0),
            ("cross_attention3d", 12.5),
        ];
        for (operator, gigamacs) in published {
            let ours = at_64.iter().find(|(name, _)| *name == operator).expect("all six").1;
            assert!(
                (ours - gigamacs).abs() <= 0.05_f64.max(5e-4 * gigamacs),
                "{operator}: {ours} against {gigamacs}"
            );
        }
        for point in points {
            match point.answer {
                Lookup::Measured(cost) => assert_eq!(cost.latency_ms.value, point.size as f64),
                Lookup::Missing(_) => assert_eq!((point.operator, point.size), (Operator::SelfAttention3d, 64)),
                other => panic!("{other:?}"),
            }
        }
    }
}
