//! One safetensors file, tensor by tensor.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, Metadata, TensorInfo, View};
use tch::{Device, Kind, TchError, Tensor};

use super::WeightsError;

/// Bytes of the header's length.
const LENGTH_BYTES: u64 = 8;
/// The format's own limit.
const LONGEST_HEADER: u64 = 100_000_000;

/// An open file whose header was read and found to describe its bytes.
#[derive(Debug)]
pub struct WeightFile {
    path: PathBuf,
    file: File,
    /// Where the bytes of the tensors begin.
    start: u64,
    tensors: BTreeMap<String, TensorInfo>,
}

impl WeightFile {
    /// Reads the header and holds it against the length of the file.
    ///
    /// # Errors
    /// Where it cannot be read, is no safetensors file or is not whole.
    pub fn open(path: &Path) -> Result<Self, WeightsError> {
        let failed = |source| WeightsError::File {
            path: path.to_owned(),
            source,
        };
        let mut file = File::open(path).map_err(failed)?;
        let length = file.metadata().map_err(failed)?.len();
        let broken = |problem: String| WeightsError::Format {
            path: path.to_owned(),
            problem,
        };
        let mut head = Vec::new();
        file.by_ref()
            .take(LENGTH_BYTES)
            .read_to_end(&mut head)
            .map_err(failed)?;
        let Ok(size) = <[u8; 8]>::try_from(head.as_slice()).map(u64::from_le_bytes) else {
            return Err(broken(format!(
                "it has {length} bytes, the length of the header alone takes 8"
            )));
        };
        let rest = length - LENGTH_BYTES;
        if size > rest.min(LONGEST_HEADER) {
            let problem = match head.starts_with(b"PK\x03\x04") {
                true => "it is a zip archive, as PyTorch writes; convert it to safetensors first".to_owned(),
                false => format!("its header should take {size} bytes, {rest} are there and {LONGEST_HEADER} allowed"),
            };
            return Err(broken(problem));
        }
        let mut header = Vec::new();
        file.by_ref().take(size).read_to_end(&mut header).map_err(failed)?;
        let header: Metadata = serde_json::from_slice(&header).map_err(|error| broken(error.to_string()))?;
        let start = LENGTH_BYTES + size;
        let expected = start.saturating_add(header.data_len() as u64);
        let tensors: BTreeMap<String, TensorInfo> = header
            .tensors()
            .into_iter()
            .map(|(name, info)| (name, info.clone()))
            .collect();
        if length != expected {
            let cut = tensors
                .iter()
                .filter(|(_, info)| start.saturating_add(info.data_offsets.1 as u64) > length);
            return Err(WeightsError::Length {
                path: path.to_owned(),
                found: length,
                expected,
                tensor: cut
                    .min_by_key(|(_, info)| info.data_offsets.0)
                    .map(|(name, _)| name.clone()),
            });
        }
        Ok(Self {
            path: path.to_owned(),
            file,
            start,
            tensors,
        })
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Names of its tensors, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Shape of a tensor.
    ///
    /// # Errors
    /// Where there is none of this name.
    pub fn shape(&self, name: &str) -> Result<Vec<i64>, WeightsError> {
        Ok(self.info(name)?.shape.iter().map(|&size| size as i64).collect())
    }

    /// Number format of a tensor, and where its bytes begin in the file.
    ///
    /// # Errors
    /// Where there is none of this name, or it is no float.
    pub fn place(&self, name: &str) -> Result<(Kind, u64), WeightsError> {
        let kind = self.require_float(name)?;
        Ok((kind, self.start + self.info(name)?.data_offsets.0 as u64))
    }

    /// Reads one tensor in the file's own format.
    ///
    /// # Errors
    /// Where there is none of this name, it is no float, or it cannot be read.
    pub fn tensor(&self, name: &str) -> Result<Tensor, WeightsError> {
        let (kind, at) = self.place(name)?;
        let (begin, end) = self.info(name)?.data_offsets;
        let mut bytes = vec![0; end - begin];
        let failed = |source| WeightsError::File {
            path: self.path.clone(),
            source,
        };
        self.file.read_exact_at(&mut bytes, at).map_err(failed)?;
        Tensor::f_from_data_size(&bytes, &self.shape(name)?, kind).map_err(|source| self.torch(name, source))
    }

    pub(super) fn require_float(&self, name: &str) -> Result<Kind, WeightsError> {
        let found = self.info(name)?.dtype;
        FLOATS
            .into_iter()
            .find(|(dtype, _)| *dtype == found)
            .map(|(_, kind)| kind)
            .ok_or_else(|| WeightsError::Type {
                path: self.path.clone(),
                tensor: name.to_owned(),
                found: format!("{found:?}"),
            })
    }

    pub(super) fn torch(&self, name: &str, source: TchError) -> WeightsError {
        WeightsError::Torch {
            path: self.path.clone(),
            tensor: name.to_owned(),
            source,
        }
    }

    fn info(&self, name: &str) -> Result<&TensorInfo, WeightsError> {
        self.tensors.get(name).ok_or_else(|| WeightsError::Format {
            path: self.path.clone(),
            problem: format!("it has no tensor `{name}`"),
        })
    }
}

/// The formats that weights are read from and saved in.
const FLOATS: [(Dtype, Kind); 4] = [
    (Dtype::F32, Kind::Float),
    (Dtype::F16, Kind::Half),
    (Dtype::BF16, Kind::BFloat16),
    (Dtype::F64, Kind::Double),
];

/// Saves tensors under their names, whole or not at all; the same tensors give the same bytes. They are copied to
/// the processor one by one.
///
/// # Errors
/// Where one is no float or the file cannot be written.
pub fn save_tensors(tensors: impl IntoIterator<Item = (String, Tensor)>, path: &Path) -> Result<(), WeightsError> {
    let failed = |source| WeightsError::File {
        path: path.to_owned(),
        source,
    };
    let stored: BTreeMap<String, Stored> = tensors
        .into_iter()
        .map(|(name, tensor)| {
            let stored = Stored::new(&tensor).ok_or_else(|| WeightsError::Type {
                path: path.to_owned(),
                tensor: name.clone(),
                found: format!("{:?}", tensor.kind()),
            })?;
            Ok((name, stored))
        })
        .collect::<Result<_, WeightsError>>()?;
    // It writes beside the place and renames.
    safetensors::serialize_to_file(&stored, None, path).map_err(|error| match error {
        safetensors::SafeTensorError::IoError(source) => failed(source),
        other => WeightsError::Format {
            path: path.to_owned(),
            problem: other.to_string(),
        },
    })?;
    File::open(path).and_then(|file| file.sync_all()).map_err(failed)
}

/// A tensor about to be saved.
struct Stored {
    tensor: Tensor,
    dtype: Dtype,
    shape: Vec<usize>,
}

impl Stored {
    fn new(tensor: &Tensor) -> Option<Self> {
        let (dtype, _) = FLOATS.into_iter().find(|(_, kind)| *kind == tensor.kind())?;
        Some(Self {
            tensor: tensor.detach(),
            dtype,
            shape: tensor.size().iter().map(|&size| size as usize).collect(),
        })
    }
}

impl View for &Stored {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let tensor = self.tensor.to_device(Device::Cpu).contiguous();
        let mut bytes = vec![0; self.data_len()];
        tensor.copy_data_u8(&mut bytes, tensor.numel());
        bytes.into()
    }

    fn data_len(&self) -> usize {
        self.tensor.numel() * self.tensor.kind().elt_size_in_bytes()
    }
}
