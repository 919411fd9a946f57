//! LAION's aesthetic predictors: how much people like a picture, read from CLIP's embedding of it.

use std::path::Path;

use tch::{Device, Tensor, nn};

use crate::models::norm::{Start, linear};
use crate::weights::{self, Layout, WeightFile, WeightsError};

/// Widths of the perceptron after its input, and numbers of its matrices: dropout stands between.
const WIDTHS: [i64; 5] = [1024, 128, 64, 16, 1];
const NUMBERS: [usize; 5] = [0, 2, 4, 6, 7];
/// What a file may hold.
const ALLOWED: &str = "`weight` and `bias` (LAION's linear head), or `layers.0`, `layers.2`, `layers.4`, `layers.6` and \
                       `layers.7`, each with weight and bias (the improved predictor)";

/// Matrices one after the other, without anything between.
#[derive(Debug)]
pub struct Aesthetic(Vec<nn::Linear>);

/// Which of the published ones a file holds.
#[derive(Debug, Clone, Copy)]
enum Form {
    /// One matrix, `sa_0_4_vit_l_14_linear`: the one that VBench uses.
    Linear,
    /// Five, `sac+logos+ava1-l14-linearMSE`.
    Perceptron,
}

impl Aesthetic {
    /// Reads either of the published heads for unit vectors of `width`.
    ///
    /// # Errors
    /// Where the file is neither, or does not fit.
    pub fn read(path: &Path, width: i64, device: Device) -> Result<Self, WeightsError> {
        let form = Form::of(&WeightFile::open(path)?)?;
        let vs = nn::VarStore::new(device);
        let head = Self::new(&vs.root(), form, width);
        weights::load(&vs, path, &Layout::PLAIN)?;
        Ok(head)
    }

    fn new(vs: &nn::Path<'_>, form: Form, width: i64) -> Self {
        let layer = |vs, inputs, outputs| linear(vs, inputs, outputs, true, Start::Random);
        Self(match form {
            Form::Linear => vec![layer(vs.clone(), width, 1)],
            Form::Perceptron => {
                let inputs = std::iter::once(width).chain(WIDTHS);
                let sizes = NUMBERS.into_iter().zip(inputs.zip(WIDTHS));
                sizes
                    .map(|(number, (inputs, outputs))| layer(vs / "layers" / number, inputs, outputs))
                    .collect()
            }
        })
    }

    /// # Shapes
    /// - `pictures`: `[n, width]`, CLIP's projected embeddings at length 1; output `[n]`
    pub fn forward(&self, pictures: &Tensor) -> Tensor {
        let xs = self
            .0
            .iter()
            .fold(pictures.shallow_clone(), |xs, layer| xs.apply(layer));
        xs.squeeze_dim(-1)
    }
}

impl Form {
    fn of(file: &WeightFile) -> Result<Self, WeightsError> {
        let has = |name: &str| file.names().any(|found| found == name);
        if has("weight") {
            return Ok(Self::Linear);
        }
        if file.names().any(|name| name.starts_with("layers.")) {
            return Ok(Self::Perceptron);
        }
        let found: Vec<String> = file.names().take(3).map(|name| format!("`{name}`")).collect();
        Err(WeightsError::Unknown {
            path: file.path().to_owned(),
            found: found.join(", "),
            allowed: ALLOWED,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use tch::Kind;

    use super::*;
    use crate::models::seeded::{normal, seed_weights};

    const WIDTH: i64 = 6;

    fn file(folder: &tempfile::TempDir, form: Form) -> (std::path::PathBuf, HashMap<String, Tensor>) {
        let vs = nn::VarStore::new(Device::Cpu);
        let _ = Aesthetic::new(&vs.root(), form, WIDTH);
        seed_weights(&vs, 3);
        let path = folder.path().join("aesthetic");
        weights::save(&vs, &path).unwrap();
        (path, vs.variables())
    }

    /// Without anything between, five matrices are one; here that one is worked out in another order, in float64.
    #[test]
    fn both_published_heads_are_read_and_are_linear() {
        let folder = tempfile::tempdir().unwrap();
        let pictures = normal(&[4, WIDTH], 9, Device::Cpu);
        for (form, names) in [
            (Form::Linear, vec![String::new()]),
            (Form::Perceptron, NUMBERS.map(|n| format!("layers.{n}.")).to_vec()),
        ] {
            let (path, tensors) = file(&folder, form);
            assert_eq!(tensors.len(), 2 * names.len());
            let (mut matrix, mut offset) = (None::<Tensor>, Tensor::zeros([1], (Kind::Double, Device::Cpu)));
            for name in names.iter().rev() {
                let of = |end: &str| tensors[&format!("{name}{end}")].to_kind(Kind::Double).detach();
                let after = matrix.unwrap_or_else(|| Tensor::ones([1, 1], (Kind::Double, Device::Cpu)));
                offset += after.matmul(&of("bias"));
                matrix = Some(after.matmul(&of("weight")));
            }
            let expected = pictures
                .to_kind(Kind::Double)
                .matmul(&matrix.unwrap().tr())
                .squeeze_dim(-1)
                + offset;
            let head = Aesthetic::read(&path, WIDTH, Device::Cpu).unwrap();
            let found = head.forward(&pictures).to_kind(Kind::Double);
            assert_eq!(found.size(), [4]);
            assert!(found.allclose(&expected, 1e-4, 1e-5, false), "{form:?}");
        }
    }

    #[test]
    fn another_file_is_refused_with_what_it_holds() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("aesthetic");
        let refused = |tensors: Vec<(&str, Vec<i64>)>| {
            let tensors = tensors
                .into_iter()
                .map(|(name, shape)| (name.to_owned(), Tensor::zeros(&shape, (Kind::Float, Device::Cpu))));
            weights::save_tensors(tensors, &path).unwrap();
            Aesthetic::read(&path, WIDTH, Device::Cpu).unwrap_err().to_string()
        };
        let error = refused(vec![("head.0.bias", vec![1]), ("head.0.weight", vec![1, 6])]);
        assert!(
            error.contains("holds `head.0.bias`, `head.0.weight`") && error.contains("`layers.7`"),
            "{error}"
        );
        let error = refused(vec![("bias", vec![1]), ("weight", vec![1, 7])]);
        assert!(
            error.contains("`weight` of ") && error.contains("has shape [1, 7], expected is [1, 6]"),
            "{error}"
        );
        let error = refused(vec![("weight", vec![1, 6])]);
        assert!(error.contains("no tensor `bias`"), "{error}");
        let error = refused(vec![("layers.0.weight", vec![1024, 6])]);
        assert!(error.contains("no tensor `layers.0.bias`"), "{error}");
    }
}
