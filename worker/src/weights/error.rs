//! Why a weight file was refused.

use std::path::PathBuf;

use tch::Kind;

/// What is wrong with a weight file, by tensor.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// The file could not be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// It is no safetensors file.
    #[error("{path} is no safetensors file: {problem}")]
    Format {
        /// The file.
        path: PathBuf,
        /// What was found.
        problem: String,
    },
    /// The file ends before its tensors do, or goes on after them.
    #[error("{path} has {found} bytes, its header describes {expected}{cut}", cut = cut(.tensor))]
    Length {
        /// The file.
        path: PathBuf,
        /// Its bytes.
        found: u64,
        /// The bytes of its header and all tensors.
        expected: u64,
        /// The first tensor that is not whole.
        tensor: Option<String>,
    },
    /// The model has a tensor that the file lacks.
    #[error("{path} has no tensor `{tensor}`, expected with shape {expected:?}")]
    Missing {
        /// The file.
        path: PathBuf,
        /// The published name.
        tensor: String,
        /// The model's shape.
        expected: Vec<i64>,
    },
    /// The file has a tensor that the model lacks: another model's, or one under a wrong name.
    #[error("{path} holds `{tensor}` of shape {shape:?}, which the model does not have{hint}", hint = hint(.nearest))]
    Unexpected {
        /// The file.
        path: PathBuf,
        /// Its name in the file.
        tensor: String,
        /// Its shape.
        shape: Vec<i64>,
        /// The expected name that is most like it, one that is missing where there is one.
        nearest: Option<String>,
    },
    /// The file holds none of the models that are known in its place.
    #[error("{path} holds {found}; expected are {allowed}")]
    Unknown {
        /// The file.
        path: PathBuf,
        /// Its first tensors.
        found: String,
        /// What would do.
        allowed: &'static str,
    },
    /// Two tensors of the file are the same one of the model.
    #[error("{path} holds `{tensor}` twice, as `{}` and as `{}`; expected once", .found[0], .found[1])]
    Twice {
        /// The file.
        path: PathBuf,
        /// The published name.
        tensor: String,
        /// The names in the file.
        found: [String; 2],
    },
    /// Several parts of the file could be the model.
    #[error("{path} holds the model's tensors under each of {found:?}; expected one of them")]
    Ambiguous {
        /// The file.
        path: PathBuf,
        /// Beginnings of names.
        found: Vec<String>,
    },
    /// A tensor has another shape.
    #[error("`{tensor}` of {path} has shape {found:?}, expected is {expected:?}")]
    Shape {
        /// The file.
        path: PathBuf,
        /// Its name in the file.
        tensor: String,
        /// Its shape.
        found: Vec<i64>,
        /// The model's shape.
        expected: Vec<i64>,
    },
    /// A tensor is not made of floating-point numbers that can be converted.
    #[error("`{tensor}` of {path} is of type {found}, expected is F32, F16, BF16 or F64")]
    Type {
        /// The file.
        path: PathBuf,
        /// Its name in the file.
        tensor: String,
        /// Its type.
        found: String,
    },
    /// A tensor holds infinities or what is no number, perhaps only in the model's format.
    #[error("`{tensor}` of {path} has {count} of {of} numbers that are not finite as {kind:?}, expected is none")]
    NotFinite {
        /// The file.
        path: PathBuf,
        /// Its name in the file.
        tensor: String,
        /// How many.
        count: i64,
        /// Of how many.
        of: usize,
        /// The model's format.
        kind: Kind,
    },
    /// libtorch refused a tensor.
    #[error("`{tensor}` of {path}: {source}")]
    Torch {
        /// The file.
        path: PathBuf,
        /// Its name.
        tensor: String,
        /// What libtorch says.
        source: tch::TchError,
    },
}

fn cut(tensor: &Option<String>) -> String {
    tensor
        .as_ref()
        .map_or_else(String::new, |name| format!("; it ends within or before `{name}`"))
}

fn hint(nearest: &Option<String>) -> String {
    nearest
        .as_ref()
        .map_or_else(String::new, |name| format!("; nearest expected name: `{name}`"))
}
