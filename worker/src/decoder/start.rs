//! What a new decoder begins with.
//!
//! A weight of the same name and shape is the original's. Where a convolution becomes separable and keeps its channels,
//! each of its input channels `i` has a matrix `W[:, i, :]` of outputs × places, and the product `P[:, i] D[i, :]` that is
//! nearest to it in the sum of squares is that of its largest singular value (Eckart & Young 1936): `D` gets the singular
//! vector of places, `P` the one of outputs times the value. Everything else is drawn from the seed.

use std::collections::HashMap;

use tch::{Kind, TchError, Tensor, nn};

use crate::models::seeded::seed_weights;

const DEPTHWISE: &str = "depthwise";
const POINTWISE: &str = "pointwise";

/// How many of the weights of a decoder came from where; scalars.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Origin {
    /// Taken over.
    pub copied: u64,
    /// Made of dense kernels.
    pub separated: u64,
    /// Drawn.
    pub drawn: u64,
}

/// Fills `vs` from the variables of the original VAE.
///
/// # Errors
/// Where libtorch refuses a decomposition.
pub fn from_original(vs: &nn::VarStore, original: &HashMap<String, Tensor>, seed: u64) -> Result<Origin, TchError> {
    seed_weights(vs, seed);
    let mut origin = Origin::default();
    let _guard = tch::no_grad_guard();
    for (name, mut variable) in vs.variables() {
        let same = original.get(&name).filter(|tensor| tensor.size() == variable.size());
        let count = variable.numel() as u64;
        let found = match same {
            Some(tensor) => {
                origin.copied += count;
                Some(tensor.shallow_clone())
            }
            None => {
                let separated = separated(&name, &variable, original)?;
                *(if separated.is_some() {
                    &mut origin.separated
                } else {
                    &mut origin.drawn
                }) += count;
                separated
            }
        };
        if let Some(found) = found {
            variable.f_copy_(&found)?;
        }
    }
    Ok(origin)
}

/// A weight of a separable convolution, from the dense one that stands in its place in the original.
fn separated(name: &str, variable: &Tensor, original: &HashMap<String, Tensor>) -> Result<Option<Tensor>, TchError> {
    let Some((dense, which)) = dense_of(name) else {
        return Ok(None);
    };
    let Some(kernel) = original.get(&dense) else {
        return Ok(None);
    };
    if kernel.dim() == 1 {
        // The bias, which the matrix carries.
        return Ok((kernel.size() == variable.size()).then(|| kernel.shallow_clone()));
    }
    let (filters, matrix) = nearest_product(kernel)?;
    let found = if which == DEPTHWISE { filters } else { matrix };
    Ok((found.size() == variable.size()).then_some(found))
}

/// The name of the dense weight, and which of the two this one is.
fn dense_of(name: &str) -> Option<(String, &'static str)> {
    [DEPTHWISE, POINTWISE].into_iter().find_map(|which| {
        let part = format!(".{which}.");
        name.contains(&part).then(|| (name.replacen(&part, ".", 1), which))
    })
}

/// The separable kernel that is nearest to a dense one: filters of length one, and their matrix.
///
/// # Shapes
/// - `kernel`: `[outputs, inputs, k, …]`; output `[inputs, 1, k, …]` and `[outputs, inputs, 1, …]`
fn nearest_product(kernel: &Tensor) -> Result<(Tensor, Tensor), TchError> {
    let size = kernel.size();
    let (outputs, inputs) = (size[0], size[1]);
    let by_input = kernel.to_kind(Kind::Double).flatten(2, -1).transpose(0, 1); // [inputs, outputs, places]
    // The singular vectors of places are the eigenvectors of the small Gram matrix, in ascending order.
    let (_, vectors) = by_input.transpose(1, 2).f_matmul(&by_input)?.f_linalg_eigh("L")?;
    let places = vectors.select(2, -1).unsqueeze(2); // [inputs, places, 1]
    let of_outputs = by_input.f_matmul(&places)?.squeeze_dim(2).transpose(0, 1); // [outputs, inputs]
    let shape = |front: [i64; 2], places: &[i64]| [&front[..], places].concat();
    let ones = vec![1; size.len() - 2];
    Ok((
        places.reshape(shape([inputs, 1], &size[2..])).to_kind(Kind::Float),
        of_outputs.reshape(shape([outputs, inputs], &ones)).to_kind(Kind::Float),
    ))
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;
    use crate::decoder::Part;
    use crate::decoder::tests::{compressed, original};
    use crate::models::seeded::{distance, normal};
    use crate::models::vae::Vae;

    /// Kernels that are products come back as they were; of others, what is left is the sum of the smaller singular
    /// values' squares.
    #[test]
    fn the_nearest_product_is_that_of_the_largest_singular_value() {
        let (filters, matrix) = (
            normal(&[3, 1, 3, 3], 1, Device::Cpu),
            normal(&[5, 3, 1, 1], 2, Device::Cpu),
        );
        let product = |filters: &Tensor, matrix: &Tensor| matrix * filters.transpose(0, 1);
        let kernel = product(&filters, &matrix);
        let (found_filters, found_matrix) = nearest_product(&kernel).unwrap();
        assert_eq!(
            (found_filters.size(), found_matrix.size()),
            (filters.size(), matrix.size())
        );
        assert!(distance(&product(&found_filters, &found_matrix), &kernel) < 1e-5);

        let kernel = normal(&[4, 2, 3, 3, 3], 3, Device::Cpu);
        let (filters, matrix) = nearest_product(&kernel).unwrap();
        let left = (product(&filters, &matrix) - &kernel).square().sum_dim_intlist(
            [0i64, 2, 3, 4].as_slice(),
            false,
            Kind::Double,
        );
        let values = kernel
            .flatten(2, -1)
            .transpose(0, 1)
            .svd(true, true)
            .1
            .to_kind(Kind::Double)
            .square();
        let smaller = values
            .narrow(1, 1, 3)
            .sum_dim_intlist([1i64].as_slice(), false, Kind::Double);
        assert!(distance(&left, &smaller) < 1e-4, "{left} {smaller}");
    }

    #[test]
    fn the_encoder_is_taken_over_to_the_last_bit_and_every_kernel_is_used() {
        let (before, _) = original();
        let vs = nn::VarStore::new(Device::Cpu);
        let _vae = Vae::new(&vs.root(), &compressed());
        let origin = from_original(&vs, &before.variables(), 7).unwrap();
        assert_eq!(origin.drawn, 0);
        assert!(origin.separated > 0);
        let old = before.variables();
        for (name, variable) in vs.variables() {
            if Part::of(&name).is_none() {
                assert_eq!(variable, old[&name], "{name}");
            }
        }
    }

    #[test]
    fn names_of_dense_kernels_are_found() {
        assert_eq!(
            dense_of("temporal_vae.decoder.res_blocks.0.conv1.depthwise.conv.weight"),
            Some((
                "temporal_vae.decoder.res_blocks.0.conv1.conv.weight".to_owned(),
                DEPTHWISE
            ))
        );
        assert_eq!(
            dense_of("decoder.up_blocks.0.upsamplers.0.conv.pointwise.bias"),
            Some(("decoder.up_blocks.0.upsamplers.0.conv.bias".to_owned(), POINTWISE))
        );
        assert_eq!(dense_of("decoder.conv_in.weight"), None);
    }
}
