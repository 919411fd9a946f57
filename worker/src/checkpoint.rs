//! Checkpoints: named tensors and a step in one safetensors file, written whole or not at all.

pub use job_client::files::{persist, temporary_beside, write_atomically, write_through};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use tch::{Device, Kind, Tensor};

/// Key of the file's metadata that holds everything but the tensors, as JSON.
const STATE: &str = "state";

/// The state of a training.
#[derive(Debug)]
pub struct Checkpoint {
    /// Steps taken.
    pub step: u64,
    /// Free text that travels along, such as JSON of what else its owner must remember.
    pub notes: BTreeMap<String, String>,
    tensors: BTreeMap<String, Tensor>,
}

/// Why a checkpoint could not be read.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// It is no safetensors file.
    #[error("not a checkpoint: {0}")]
    Format(#[from] safetensors::SafeTensorError),
    /// A part is missing.
    #[error("the checkpoint has no `{0}`")]
    Missing(String),
    /// A tensor does not fit the model.
    #[error("`{name}` of the checkpoint is {found:?}, the model needs {expected:?}")]
    Shape {
        /// Its name.
        name: String,
        /// Its shape in the checkpoint.
        found: Vec<i64>,
        /// The shape of the variable.
        expected: Vec<i64>,
    },
    /// A number format that checkpoints do not use.
    #[error("`{name}` of the checkpoint is {found}; allowed: F32, F64, F16, BF16, I64")]
    Kind {
        /// The tensor.
        name: String,
        /// Its format.
        found: String,
    },
    /// libtorch refused a tensor.
    #[error(transparent)]
    Torch(#[from] tch::TchError),
}

impl Checkpoint {
    /// From named tensors at a step.
    pub fn new(step: u64, tensors: impl IntoIterator<Item = (String, Tensor)>) -> Self {
        Self {
            step,
            notes: BTreeMap::new(),
            tensors: tensors.into_iter().collect(),
        }
    }

    /// The same with more tensors.
    #[must_use]
    pub fn with(mut self, tensors: impl IntoIterator<Item = (String, Tensor)>) -> Self {
        self.tensors.extend(tensors);
        self
    }

    /// All tensors in the order of their names, sharing memory with the state they were taken from.
    #[must_use]
    pub fn tensors(&self) -> Vec<Tensor> {
        self.tensors.values().map(Tensor::shallow_clone).collect()
    }

    /// The tensors whose name starts with `prefix`, without it.
    #[must_use]
    pub fn under(&self, prefix: &str) -> HashMap<String, Tensor> {
        let named = self
            .tensors
            .iter()
            .filter_map(|(name, tensor)| Some((name.strip_prefix(prefix)?, tensor)));
        named
            .map(|(name, tensor)| (name.to_owned(), tensor.shallow_clone()))
            .collect()
    }

    /// Looks whether a tensor is there in the shape of a variable.
    ///
    /// # Errors
    /// Where it is missing or has another shape.
    pub fn check(&self, name: &str, variable: &Tensor) -> Result<(), CheckpointError> {
        self.fitting(name, variable).map(drop)
    }

    /// Copies a tensor into a variable of its shape.
    ///
    /// # Errors
    /// Where it is missing or has another shape.
    pub fn copy_into(&self, name: &str, variable: &mut Tensor) -> Result<(), CheckpointError> {
        let tensor = self.fitting(name, variable)?;
        Ok(tch::no_grad(|| variable.f_copy_(tensor))?)
    }

    fn fitting(&self, name: &str, variable: &Tensor) -> Result<&Tensor, CheckpointError> {
        let tensor = self
            .tensors
            .get(name)
            .ok_or_else(|| CheckpointError::Missing(name.to_owned()))?;
        let (found, expected) = (tensor.size(), variable.size());
        if found == expected {
            return Ok(tensor);
        }
        Err(CheckpointError::Shape {
            name: name.to_owned(),
            found,
            expected,
        })
    }

    /// The file's bytes: the same tensors give the same bytes.
    ///
    /// # Errors
    /// Where a tensor is of a number format that checkpoints do not use.
    pub fn encode(&self) -> Result<Vec<u8>, CheckpointError> {
        // One key: several would make the order of the bytes depend on a hash seed.
        let state = serde_json::to_string(&State {
            step: self.step,
            notes: self.notes.clone(),
        });
        let state = state.map_err(|_| CheckpointError::Missing(STATE.to_owned()))?;
        encode_tensors(&self.tensors, HashMap::from([(STATE.to_owned(), state)]))
    }

    /// Reads what [`Self::encode`] wrote.
    ///
    /// # Errors
    /// Where the bytes are no such file.
    pub fn decode(bytes: &[u8]) -> Result<Self, CheckpointError> {
        let (_, header) = SafeTensors::read_metadata(bytes)?;
        let metadata = header.metadata().as_ref();
        let state = metadata
            .and_then(|m| m.get(STATE))
            .and_then(|state| serde_json::from_str(state).ok());
        let State { step, notes } = state.ok_or_else(|| CheckpointError::Missing(STATE.to_owned()))?;
        Ok(Self {
            step,
            notes,
            tensors: decode_tensors(bytes)?,
        })
    }
}

/// What is not a tensor.
#[derive(Serialize, Deserialize)]
struct State {
    step: u64,
    notes: BTreeMap<String, String>,
}

/// Named tensors as a safetensors file.
///
/// # Errors
/// Where a tensor is of a number format that is not written.
pub fn encode_tensors(
    tensors: &BTreeMap<String, Tensor>,
    metadata: HashMap<String, String>,
) -> Result<Vec<u8>, CheckpointError> {
    let raw: Vec<_> = tensors
        .iter()
        .map(|(name, tensor)| Ok((name, raw_of(name, tensor)?)))
        .collect::<Result<_, CheckpointError>>()?;
    let views: Vec<_> = raw
        .iter()
        .map(|(name, (dtype, shape, bytes))| Ok((name.as_str(), TensorView::new(*dtype, shape.clone(), bytes)?)))
        .collect::<Result<_, CheckpointError>>()?;
    Ok(safetensors::serialize(views, Some(metadata))?)
}

/// Named tensors of a safetensors file.
///
/// # Errors
/// Where the bytes are no such file or hold a number format that is not read.
pub fn decode_tensors(bytes: &[u8]) -> Result<BTreeMap<String, Tensor>, CheckpointError> {
    let file = SafeTensors::deserialize(bytes)?;
    file.tensors()
        .into_iter()
        .map(|(name, view)| {
            let tensor = tensor_of(&name, &view)?;
            Ok((name, tensor))
        })
        .collect()
}

/// A tensor of a safetensors file.
///
/// # Errors
/// Where it is of a number format that is not read.
pub(crate) fn tensor_of(name: &str, view: &TensorView<'_>) -> Result<Tensor, CheckpointError> {
    let kind = kind_of(view.dtype()).ok_or_else(|| CheckpointError::Kind {
        name: name.to_owned(),
        found: format!("{:?}", view.dtype()),
    })?;
    let shape: Vec<i64> = view.shape().iter().map(|&size| size as i64).collect();
    Ok(Tensor::f_from_data_size(view.data(), &shape, kind)?)
}

type Raw = (Dtype, Vec<usize>, Vec<u8>);

fn raw_of(name: &str, tensor: &Tensor) -> Result<Raw, CheckpointError> {
    let tensor = tensor.detach().to_device(Device::Cpu).contiguous();
    let dtype = [Dtype::F32, Dtype::F64, Dtype::F16, Dtype::BF16, Dtype::I64]
        .into_iter()
        .find(|dtype| kind_of(*dtype) == Some(tensor.kind()))
        .ok_or_else(|| CheckpointError::Kind {
            name: name.to_owned(),
            found: format!("{:?}", tensor.kind()),
        })?;
    let mut bytes = vec![0; tensor.numel() * tensor.kind().elt_size_in_bytes()];
    tensor.f_copy_data_u8(&mut bytes, tensor.numel())?;
    Ok((dtype, tensor.size().iter().map(|&size| size as usize).collect(), bytes))
}

pub(crate) fn kind_of(dtype: Dtype) -> Option<Kind> {
    match dtype {
        Dtype::F32 => Some(Kind::Float),
        Dtype::F64 => Some(Kind::Double),
        Dtype::F16 => Some(Kind::Half),
        Dtype::BF16 => Some(Kind::BFloat16),
        Dtype::I64 => Some(Kind::Int64),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::seeded::normal;

    fn example() -> Checkpoint {
        let tensors = [
            ("b".to_owned(), normal(&[3, 2], 1, Device::Cpu)),
            ("a.x".to_owned(), normal(&[4], 2, Device::Cpu).to_kind(Kind::Half)),
            ("a.n".to_owned(), Tensor::from_slice(&[7i64])),
        ];
        let mut checkpoint = Checkpoint::new(41, tensors);
        checkpoint.notes.insert("curve".to_owned(), "[1,2]".to_owned());
        checkpoint
    }

    #[test]
    fn what_is_written_is_read_back_and_written_the_same() {
        let bytes = example().encode().unwrap();
        let read = Checkpoint::decode(&bytes).unwrap();
        assert_eq!((read.step, read.notes["curve"].as_str()), (41, "[1,2]"));
        assert_eq!(read.under("a.").len(), 2);
        assert_eq!(read.under("")["b"], example().under("")["b"]);
        assert_eq!(read.encode().unwrap(), bytes);
    }

    #[test]
    fn a_cut_or_foreign_file_is_an_error() {
        let bytes = example().encode().unwrap();
        for length in [0, 7, 8, 40, bytes.len() - 1] {
            assert!(Checkpoint::decode(&bytes[..length]).is_err(), "{length} bytes");
        }
        assert!(Checkpoint::decode(b"not a checkpoint at all").is_err());
    }

    #[test]
    fn a_tensor_of_another_shape_names_both() {
        let mut variable = Tensor::zeros([5], (Kind::Float, Device::Cpu));
        let error = example().copy_into("b", &mut variable).unwrap_err();
        assert_eq!(
            error.to_string(),
            "`b` of the checkpoint is [3, 2], the model needs [5]"
        );
    }
}
