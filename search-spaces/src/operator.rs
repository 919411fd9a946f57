//! The six temporal operators of the paper (section 3.2, figure 3) and stacks of them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A kind of temporal layer. Its exact layers are described in [`crate::counts`].
///
/// Queries do not interact in cross-attention, so with keys and values from text alone the 1D and the
/// 3D layer would be one function. Here the rotary term on the queries tells them apart: time only in
/// 1D, time, height and width in 3D; 1D also replicates keys and values at every location.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Operator {
    /// Convolution over time, kernel (3, 1, 1).
    Conv1d,
    /// Convolution over time and space, kernel (3, 3, 3).
    Conv3d,
    /// Each location attends to itself in the other frames.
    #[serde(rename = "self_attention1d")]
    SelfAttention1d,
    /// Every token of the clip attends to every other.
    #[serde(rename = "self_attention3d")]
    SelfAttention3d,
    /// Each location attends to the text; rotary position in time on the queries.
    #[serde(rename = "cross_attention1d")]
    CrossAttention1d,
    /// All tokens attend to the text; rotary position in time, height and width on the queries.
    #[serde(rename = "cross_attention3d")]
    CrossAttention3d,
}

impl Operator {
    /// Every operator, in the order of the paper.
    pub const ALL: [Self; 6] = [
        Self::Conv1d,
        Self::Conv3d,
        Self::SelfAttention1d,
        Self::SelfAttention3d,
        Self::CrossAttention1d,
        Self::CrossAttention3d,
    ];

    /// Name on the wire, in space files and in look-up tables.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Conv1d => "conv1d",
            Self::Conv3d => "conv3d",
            Self::SelfAttention1d => "self_attention1d",
            Self::SelfAttention3d => "self_attention3d",
            Self::CrossAttention1d => "cross_attention1d",
            Self::CrossAttention3d => "cross_attention3d",
        }
    }

    /// Two characters, for the printed form of an architecture.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::Conv1d => "c1",
            Self::Conv3d => "c3",
            Self::SelfAttention1d => "s1",
            Self::SelfAttention3d => "s3",
            Self::CrossAttention1d => "x1",
            Self::CrossAttention3d => "x3",
        }
    }

    /// Whether the operator attends to text.
    #[must_use]
    pub const fn reads_text(self) -> bool {
        matches!(self, Self::CrossAttention1d | Self::CrossAttention3d)
    }

    /// Whether the operator is a convolution.
    #[must_use]
    pub const fn is_convolution(self) -> bool {
        matches!(self, Self::Conv1d | Self::Conv3d)
    }
}

impl fmt::Display for Operator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A name that is no temporal operator.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no temporal operator; allowed: conv1d, conv3d, self_attention1d, self_attention3d, \
     cross_attention1d, cross_attention3d"
)]
pub struct UnknownOperator(String);

impl FromStr for Operator {
    type Err = UnknownOperator;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|operator| operator.as_str() == text)
            .ok_or_else(|| UnknownOperator(text.into()))
    }
}

/// `depth` layers of one kind, one after another, each with weights of its own. The paper allows no
/// mixture of kinds at a position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TemporalLayer {
    /// The kind of every layer of the stack.
    pub operator: Operator,
    /// How many layers, at least 1.
    pub depth: u8,
}

impl TemporalLayer {
    /// `c1` for one Conv1D, `s3x2` for two SelfAttention3D.
    #[must_use]
    pub fn code(self) -> String {
        match self.depth {
            1 => self.operator.code().into(),
            depth => format!("{}x{depth}", self.operator.code()),
        }
    }
}

impl fmt::Display for TemporalLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.depth {
            1 => self.operator.fmt(f),
            depth => write!(f, "{} ×{depth}", self.operator),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operator_is_read_back_from_its_name_and_from_json() {
        for operator in Operator::ALL {
            assert_eq!(operator.as_str().parse(), Ok(operator));
            let json = serde_json::to_string(&operator).unwrap();
            assert_eq!(json, format!("\"{operator}\""));
            assert_eq!(serde_json::from_str::<Operator>(&json).unwrap(), operator);
        }
        assert!("conv2d".parse::<Operator>().unwrap_err().to_string().contains("conv1d"));
    }

    #[test]
    fn a_stack_says_its_depth_in_its_code() {
        let code = |depth| {
            TemporalLayer {
                operator: Operator::SelfAttention3d,
                depth,
            }
            .code()
        };
        assert_eq!([code(1), code(2)], ["s3", "s3x2"]);
    }
}
