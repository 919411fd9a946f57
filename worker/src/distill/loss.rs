//! Equations 4 to 6 of the paper, and what they are asked about.
//!
//! The signs are the paper's: real clips are driven to −1 and generated ones to +1, and the generator lowers the
//! judgement of its own. Most public code has them the other way round; one half of each would make the generator work
//! against itself.

use tch::{Kind, Tensor};

/// Clips moved along a velocity from one time to another: `x_t + (t' − t) v`, which is `x̂_{t'}` of a generator's
/// velocity and the real `x_{t'}` of the true one, `ε − x₀`.
///
/// # Shapes
/// - `xs`, `velocity`: `[batch, …]`; `from`, `to`: `[batch]`; output as `xs`
pub fn moved(xs: &Tensor, velocity: &Tensor, from: &Tensor, to: &Tensor) -> Tensor {
    let mut shape = vec![1; xs.dim()];
    shape[0] = -1;
    xs + velocity * (to - from).reshape(&shape)
}

/// What the discriminator lowers (equation 4): `E[max(0, 1 + D(real))] + E[max(0, 1 − D(fake))]`; judgements `[batch]`.
pub fn discriminator_loss(real: &Tensor, fake: &Tensor) -> Tensor {
    let mean = |tensor: Tensor| tensor.mean(None::<Kind>);
    mean((real + 1.0).relu()) + mean((-fake + 1.0).relu())
}

/// What the generator lowers (equation 5): `E[D(fake)]`; judgements `[batch]`.
pub fn generator_loss(fake: &Tensor) -> Tensor {
    fake.mean(None::<Kind>)
}

/// How far a clean clip is from what it should be (equation 6), the mean over clips of `√(‖x̂₀ − x₀‖² + c²) − c` with the
/// norm over a whole clip and `c = scale · √elements` (the rule of improved consistency training, Song & Dhariwal 2023).
///
/// # Shapes
/// - `found`, `clean`: `[batch, …]`; output a scalar
pub fn reconstruction_loss(found: &Tensor, clean: &Tensor, scale: f64) -> Tensor {
    let apart = (found - clean).flatten(1, -1);
    let squared_c = scale * scale * apart.size()[1] as f64;
    let squares = apart.square().sum_dim_intlist([1i64].as_slice(), false, None::<Kind>);
    ((squares + squared_c).sqrt() - squared_c.sqrt()).mean(None::<Kind>)
}

/// What holds the discriminator flat around real clips, `E[(D(x + αn) − D(x))²]` over nudges `αn`: R1 (Mescheder et al.
/// 2018) by differences, whose mean over small nudges is `α² ‖∇D‖²`. The exact gradient would need a second derivative of
/// the backbone, which libtorch's fused attention does not have; this needs no derivative of the backbone at all.
pub fn flatness_loss(real: &Tensor, nudged: &Tensor) -> Tensor {
    (nudged - real).square().mean(None::<Kind>)
}
