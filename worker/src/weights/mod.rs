//! Weight files in published layouts: safetensors, read strictly and saved under the same keys.
//!
//! A file must hold exactly the tensors of the model, in their shapes and in a floating-point format; what differs is
//! told with file, tensor, what was found and what is expected. Names are looked at before any number is read. Tensors
//! are read one by one, so that a file of several gigabytes never stands in memory beside the model.

mod error;
mod file;
mod layout;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use tch::{Tensor, nn};

pub use error::WeightsError;
pub use file::{WeightFile, save_tensors};
pub use layout::Layout;

use layout::{common_prefix, nearest};

/// Fills every variable of a store from a file that holds these tensors and no others.
///
/// # Errors
/// Where the file differs from the model. The variables then hold a mixture if numbers are what differs, else what
/// they held.
pub fn load(vs: &nn::VarStore, path: &Path, layout: &Layout) -> Result<(), WeightsError> {
    load_into(vs.variables(), path, layout)
}

/// As [`load`], for some variables by their published names.
///
/// # Errors
/// As [`load`].
pub fn load_into(variables: HashMap<String, Tensor>, path: &Path, layout: &Layout) -> Result<(), WeightsError> {
    let file = WeightFile::open(path)?;
    let shapes = variables.iter().map(|(name, v)| (name.clone(), v.size())).collect();
    let names = check(&file, &shapes, layout)?;
    for (name, mut variable) in variables {
        let stored = &names[&name];
        let read = file.tensor(stored)?;
        let torch = |source| file.torch(stored, source);
        // Where a 1×1 convolution stands for a matrix, or the reverse, the numbers are the same.
        let shaped = read.f_view(variable.size().as_slice()).map_err(torch)?;
        tch::no_grad(|| variable.f_copy_(&shaped)).map_err(torch)?;
        require_finite(&file, stored, &variable)?;
    }
    Ok(())
}

/// Saves every variable of a store under its published name, whole or not at all.
///
/// # Errors
/// Where the file cannot be written.
pub fn save(vs: &nn::VarStore, path: &Path) -> Result<(), WeightsError> {
    save_tensors(vs.variables(), path)
}

/// Compares what a file says of itself with what is expected, without reading numbers; gives for each expected name
/// the name it has in the file.
///
/// # Errors
/// For the first tensor, in order of names, that is missing, not known, twice there, of another shape or no float.
pub fn check(
    file: &WeightFile,
    expected: &BTreeMap<String, Vec<i64>>,
    layout: &Layout,
) -> Result<HashMap<String, String>, WeightsError> {
    let known: Vec<(&str, String)> = file
        .names()
        .filter(|name| !layout.ignores(name))
        .map(|name| (name, layout.published(name)))
        .collect();
    let prefix = common_prefix(file.path(), known.iter().map(|(_, name)| name.as_str()), expected)?;
    let mut found: HashMap<String, String> = HashMap::new();
    let mut strangers = Vec::new();
    for (stored, published) in &known {
        let name = published
            .strip_prefix(&prefix)
            .filter(|name| expected.contains_key(*name));
        let Some(name) = name else {
            strangers.push(*stored);
            continue;
        };
        if let Some(other) = found.insert(name.to_owned(), (*stored).to_owned()) {
            return Err(WeightsError::Twice {
                path: file.path().to_owned(),
                tensor: name.to_owned(),
                found: [other, (*stored).to_owned()],
            });
        }
    }
    let missing = || expected.keys().filter(|name| !found.contains_key(*name));
    if let Some(&stored) = strangers.first() {
        let published = layout.published(stored);
        let bare = published.strip_prefix(&prefix).unwrap_or(&published);
        return Err(WeightsError::Unexpected {
            path: file.path().to_owned(),
            tensor: stored.to_owned(),
            shape: file.shape(stored)?,
            nearest: nearest(bare, missing()).or_else(|| nearest(bare, expected.keys())),
        });
    }
    if let Some(name) = missing().next() {
        return Err(WeightsError::Missing {
            path: file.path().to_owned(),
            tensor: name.clone(),
            expected: expected[name].clone(),
        });
    }
    for (name, shape) in expected {
        let stored = &found[name];
        file.require_float(stored)?;
        let stored_shape = file.shape(stored)?;
        if stored_shape != *shape && !layout.same_numbers(name, &stored_shape, shape) {
            return Err(WeightsError::Shape {
                path: file.path().to_owned(),
                tensor: stored.clone(),
                found: stored_shape,
                expected: shape.clone(),
            });
        }
    }
    Ok(found)
}

fn require_finite(file: &WeightFile, stored: &str, variable: &Tensor) -> Result<(), WeightsError> {
    let torch = |source| file.torch(stored, source);
    let finite = variable
        .f_isfinite()
        .and_then(|each| each.f_sum(tch::Kind::Int64))
        .map_err(torch)?;
    let broken = variable.numel() as i64 - finite.f_int64_value(&[]).map_err(torch)?;
    if broken == 0 {
        return Ok(());
    }
    Err(WeightsError::NotFinite {
        path: file.path().to_owned(),
        tensor: stored.to_owned(),
        count: broken,
        of: variable.numel(),
        kind: variable.kind(),
    })
}

#[cfg(test)]
mod tests;
