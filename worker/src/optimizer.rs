//! AdamW whose whole state can be written down and read back.
//!
//! libtorch's own optimizers keep their moments out of reach of `tch`; a training that is to go on from a checkpoint
//! with the same bytes needs them.

use tch::{Kind, TchError, Tensor};

use crate::shim;

/// Settings of [`AdamW`] (Loshchilov & Hutter 2019, algorithm 2).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWConfig {
    /// Decay of the mean of gradients.
    pub beta1: f64,
    /// Decay of the mean of squared gradients.
    pub beta2: f64,
    /// Added to the root of the mean of squares.
    pub eps: f64,
    /// Decay of the weights, a share of the learning rate.
    pub weight_decay: f64,
    /// Gradients are scaled down to this norm, all together.
    pub max_gradient_norm: f64,
}

impl Default for AdamWConfig {
    fn default() -> Self {
        Self {
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.01,
            max_gradient_norm: 1.0,
        }
    }
}

/// The same tensors in short pieces, seen through to their storage: a processor's intermediate results then stay in its
/// caches, and large tensors need no temporary copies of themselves. Tensors of one shape, the ones written to
/// contiguous; in one piece where they are small, strided or on an accelerator.
pub(crate) fn pieces<const N: usize>(tensors: [&Tensor; N]) -> Vec<[Tensor; N]> {
    const LENGTH: i64 = 1 << 20;
    let count = tensors[0].numel() as i64;
    let whole = tensors.iter().any(|t| !t.is_contiguous() || t.device().is_cuda());
    if count <= LENGTH || whole {
        return vec![tensors.map(Tensor::shallow_clone)];
    }
    let flat = tensors.map(|tensor| tensor.view([-1]));
    let piece = |start: i64| {
        let length = LENGTH.min(count - start);
        flat.each_ref().map(|tensor| tensor.narrow(0, start, length))
    };
    (0..count).step_by(LENGTH as usize).map(piece).collect()
}

/// AdamW over named variables.
#[derive(Debug)]
pub struct AdamW {
    cfg: AdamWConfig,
    slots: Vec<Slot>,
    steps: i64,
}

#[derive(Debug)]
struct Slot {
    name: String,
    variable: Tensor,
    /// The variable itself, or what it is a rounded copy of.
    master: Tensor,
    mean: Tensor,
    square: Tensor,
}

impl Slot {
    /// Brings the variable to its master, where that is another tensor. Runs without a graph.
    fn round(&mut self) {
        if self.variable.kind() != self.master.kind() {
            self.variable.copy_(&self.master);
        }
    }
}

impl AdamW {
    /// Over `variables` by name; those that need no gradient are left out.
    pub fn new(variables: impl IntoIterator<Item = (String, Tensor)>, cfg: AdamWConfig) -> Self {
        let mut slots: Vec<Slot> = variables
            .into_iter()
            .filter(|(_, variable)| variable.requires_grad())
            .map(|(name, variable)| {
                let (mean, square) = (variable.zeros_like().detach(), variable.zeros_like().detach());
                Slot {
                    name,
                    master: variable.shallow_clone(),
                    variable,
                    mean,
                    square,
                }
            })
            .collect();
        // The norm of all gradients is a sum: its order must not depend on a hash map's.
        slots.sort_by(|a, b| a.name.cmp(&b.name));
        Self { cfg, slots, steps: 0 }
    }

    /// Steps taken.
    #[must_use]
    pub const fn steps(&self) -> i64 {
        self.steps
    }

    /// Turns the variables into copies of the number format `kind` and keeps what they were as float32 masters: steps
    /// move the masters, gradients are added up in float32, and after each step the variables are rounded anew. A step
    /// too small to show in `kind` is not lost.
    ///
    /// # Errors
    /// Where libtorch refuses.
    pub fn keep_masters(&mut self, kind: Kind) -> Result<(), TchError> {
        for slot in &mut self.slots {
            let found = slot.variable.detach();
            // The variable moves to storage of its own; the master keeps the one it had.
            slot.variable.f_set_data(&found.f_to_kind(kind)?)?;
            slot.master = found.f_to_kind(Kind::Float)?;
            slot.mean = slot.mean.f_to_kind(Kind::Float)?;
            slot.square = slot.square.f_to_kind(Kind::Float)?;
            if !shim::keep_gradient_as_float(&slot.variable) {
                let problem = format!("gradients of `{}` cannot be kept in float32", slot.name);
                return Err(TchError::Torch(problem));
            }
        }
        Ok(())
    }

    /// The float32 weights by name: masters where there are any, else the variables themselves.
    pub fn masters(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.slots.iter().map(|slot| (slot.name.as_str(), &slot.master))
    }

    /// Replaces a weight, its rounded copy included.
    ///
    /// # Errors
    /// Where the shapes differ. A name that is not there changes nothing.
    pub fn set_master(&mut self, name: &str, value: &Tensor) -> Result<(), TchError> {
        let found = self.slots.binary_search_by(|slot| slot.name.as_str().cmp(name));
        let Ok(index) = found else { return Ok(()) };
        tch::no_grad(|| {
            let slot = &mut self.slots[index];
            slot.master.f_copy_(value)?;
            slot.round();
            Ok(())
        })
    }

    /// One step down the gradient of `loss`; as [`Self::step`].
    pub fn backward_step(&mut self, loss: &Tensor, learning_rate: f64) -> f64 {
        self.zero_gradients();
        loss.backward();
        self.step(learning_rate)
    }

    /// Forgets the gradients of the step before.
    pub fn zero_gradients(&mut self) {
        for slot in &mut self.slots {
            slot.variable.zero_grad();
        }
    }

    /// One step down the gradients that stand at the variables; their norm before they were scaled down. Where that is
    /// no finite number, nothing has moved. A variable without one, as temporal layers have none on images, is stepped
    /// as with a gradient of zero, which is what it has in any later step: so a training that goes on from a checkpoint
    /// takes the same steps.
    pub fn step(&mut self, learning_rate: f64) -> f64 {
        tch::no_grad(|| self.step_without_graph(learning_rate))
    }

    fn step_without_graph(&mut self, learning_rate: f64) -> f64 {
        let AdamWConfig {
            beta1,
            beta2,
            eps,
            weight_decay,
            max_gradient_norm,
        } = self.cfg;
        let found: Vec<Tensor> = self.slots.iter().map(|slot| slot.variable.grad()).collect();
        if !found.iter().any(Tensor::defined) {
            self.steps += 1;
            return 0.0;
        }
        let gradients: Vec<Tensor> = found
            .into_iter()
            .zip(&self.slots)
            .map(|(gradient, slot)| match gradient.defined() {
                true => gradient,
                false => slot.master.zeros_like(),
            })
            .collect();
        let squares: Vec<Tensor> = gradients
            .iter()
            .flat_map(|g| pieces([g]))
            .map(|[g]| g.square().sum(Kind::Float))
            .collect();
        let norm = Tensor::stack(&squares, 0).sum(Kind::Float).sqrt().double_value(&[]);
        if !norm.is_finite() {
            return norm;
        }
        self.steps += 1;
        let (correction1, correction2) = (1.0 - beta1.powi(self.steps as i32), 1.0 - beta2.powi(self.steps as i32));
        let shrink = (max_gradient_norm / (norm + 1e-6)).min(1.0);
        for (slot, gradient) in self.slots.iter_mut().zip(gradients) {
            for [mut master, mut mean, mut square, gradient] in
                pieces([&slot.master, &slot.mean, &slot.square, &gradient])
            {
                let gradient = gradient * shrink;
                let _ = mean.g_mul_scalar_(beta1).g_add_(&(&gradient * (1.0 - beta1)));
                let _ = square.g_mul_scalar_(beta2).g_add_(&(gradient.square() * (1.0 - beta2)));
                let root = (&square / correction2).sqrt() + eps;
                let change = &mean / root * (learning_rate / correction1);
                let _ = master.g_mul_scalar_(1.0 - learning_rate * weight_decay).g_sub_(&change);
            }
            slot.round();
        }
        norm
    }

    /// The moments by name and the number of steps.
    #[must_use]
    pub fn state(&self) -> Vec<(String, Tensor)> {
        let moments = self.slots.iter().flat_map(|slot| {
            [
                (format!("mean.{}", slot.name), slot.mean.shallow_clone()),
                (format!("square.{}", slot.name), slot.square.shallow_clone()),
            ]
        });
        moments
            .chain([("steps".to_owned(), Tensor::from_slice(&[self.steps]))])
            .collect()
    }

    /// Takes over a [`Self::state`] of the same variables.
    ///
    /// # Errors
    /// Where a tensor is missing or has another shape.
    pub fn load_state(&mut self, state: &std::collections::HashMap<String, Tensor>) -> Result<(), TchError> {
        let find = |name: &str| {
            state
                .get(name)
                .ok_or_else(|| TchError::Torch(format!("the optimizer's state lacks `{name}`")))
        };
        tch::no_grad(|| {
            for slot in &mut self.slots {
                slot.mean.f_copy_(find(&format!("mean.{}", slot.name))?)?;
                slot.square.f_copy_(find(&format!("square.{}", slot.name))?)?;
            }
            self.steps = find("steps")?.f_int64_value(&[0])?;
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variable(values: &[f64]) -> Tensor {
        Tensor::from_slice(values).to_kind(Kind::Float).set_requires_grad(true)
    }

    fn adamw(x: &Tensor) -> AdamW {
        AdamW::new(
            [("x".to_owned(), x.shallow_clone())],
            AdamWConfig {
                max_gradient_norm: 1e9,
                ..Default::default()
            },
        )
    }

    /// The first step of Adam is the learning rate times the sign of the gradient, after the weight decay.
    #[test]
    fn the_first_step_follows_the_sign_of_the_gradient() {
        let x = variable(&[1.0, -2.0]);
        adamw(&x).backward_step(&x.square().sum(Kind::Float), 0.1);
        let values = Vec::<f32>::try_from(&x).expect("two numbers");
        for (value, wanted) in values.iter().zip([0.999 - 0.1, -2.0 * 0.999 + 0.1]) {
            assert!((f64::from(*value) - wanted).abs() < 1e-5, "{value} {wanted}");
        }
    }

    /// On images temporal layers have no gradient; a training that goes on with such a step has never had one there.
    #[test]
    fn a_missing_gradient_is_one_of_zero() {
        let (x, y) = (variable(&[3.0]), variable(&[3.0]));
        let (mut a, mut b) = (adamw(&x), adamw(&y));
        for (adamw, x) in [(&mut a, &x), (&mut b, &y)] {
            adamw.backward_step(&x.square().sum(Kind::Float), 0.01);
        }
        let fresh = variable(&[f64::from(f32::try_from(&y).expect("a number"))]);
        let other = variable(&[1.0]);
        let mut restored = AdamW::new(
            [
                ("x".to_owned(), fresh.shallow_clone()),
                ("z".to_owned(), other.shallow_clone()),
            ],
            b.cfg,
        );
        let mut state: std::collections::HashMap<String, Tensor> = b.state().into_iter().collect();
        for moment in ["mean.z", "square.z"] {
            state.insert(moment.to_owned(), Tensor::zeros([1], (Kind::Float, tch::Device::Cpu)));
        }
        restored.load_state(&state).expect("the same variables");
        a.zero_gradients();
        a.step(0.01);
        restored.backward_step(&other.square().sum(Kind::Float), 0.01);
        assert!(!fresh.grad().defined() && x.grad().defined());
        assert_eq!(f32::try_from(&x).expect("x"), f32::try_from(&fresh).expect("a copy"));
    }

    #[test]
    fn a_restored_state_goes_on_as_if_nothing_had_happened() {
        let (x, y) = (variable(&[3.0, 1.0]), variable(&[3.0, 1.0]));
        let loss = |x: &Tensor| (x.square() * Tensor::from_slice(&[1f32, 5.0])).sum(Kind::Float);
        let (mut a, mut b) = (adamw(&x), adamw(&y));
        for _ in 0..4 {
            a.backward_step(&loss(&x), 0.01);
            b.backward_step(&loss(&y), 0.01);
        }
        let mut restored = adamw(&y);
        restored
            .load_state(&b.state().into_iter().collect())
            .expect("the same variables");
        for _ in 0..4 {
            a.backward_step(&loss(&x), 0.01);
            restored.backward_step(&loss(&y), 0.01);
        }
        assert_eq!(
            Vec::<f32>::try_from(&x).expect("x"),
            Vec::<f32>::try_from(&y).expect("y")
        );
    }

    /// In bfloat16 numbers near 1 are 2⁻⁷ apart: steps of a hundredth of that would all be lost.
    #[test]
    fn masters_keep_steps_that_the_rounded_weights_cannot_show() {
        let x = variable(&[1.0]);
        let mut adamw = AdamW::new(
            [("x".to_owned(), x.shallow_clone())],
            AdamWConfig {
                weight_decay: 0.0,
                ..Default::default()
            },
        );
        adamw.keep_masters(Kind::BFloat16).expect("a float32 variable");
        assert_eq!(x.kind(), Kind::BFloat16);
        let step = 2f64.powi(-7) / 100.0;
        adamw.backward_step(&x.sum(Kind::Float), step);
        let master = |adamw: &AdamW| adamw.masters().next().map(|(_, m)| m.double_value(&[0]));
        assert_eq!(x.double_value(&[0]), 1.0, "too little to show");
        assert!((master(&adamw).expect("x") - (1.0 - step)).abs() < 1e-7);
        for _ in 1..100 {
            adamw.backward_step(&x.sum(Kind::Float), step);
        }
        assert!((master(&adamw).expect("x") - (1.0 - 100.0 * step)).abs() < 1e-5);
        assert!((x.double_value(&[0]) - (1.0 - 100.0 * step)).abs() < 1.0 / 512.0);
    }

    #[test]
    fn pieces_are_the_whole_and_write_through() {
        let long = (1 << 20) + 5;
        let whole = Tensor::arange(long, (Kind::Float, tch::Device::Cpu));
        let matrix = whole.reshape([long, 1]);
        let mut sum = 0;
        for [mut a, b] in pieces([&whole, &matrix]) {
            sum += a.numel() as i64;
            let _ = a.g_mul_scalar_(2.0);
            assert_eq!(a, b, "one storage");
        }
        assert_eq!(sum, long);
        assert_eq!(whole.double_value(&[long - 1]), 2.0 * (long - 1) as f64);
        let turned = Tensor::zeros([2, 1 << 20], (Kind::Float, tch::Device::Cpu)).tr();
        assert_eq!(pieces([&turned]).len(), 1);
        assert_eq!(pieces([&turned.contiguous()]).len(), 2);
    }

    #[test]
    fn gradients_that_are_no_numbers_move_nothing() {
        let x = variable(&[3.0, 1.0]);
        let mut adamw = adamw(&x);
        adamw.backward_step(&x.square().sum(Kind::Float), 0.1);
        let (before, state) = (Vec::<f32>::try_from(&x).expect("two numbers"), adamw.state());
        for factor in [f64::NAN, f64::INFINITY] {
            let norm = adamw.backward_step(&(x.get(0) * factor), 0.1);
            assert!(!norm.is_finite(), "{norm}");
        }
        assert_eq!(Vec::<f32>::try_from(&x).expect("two numbers"), before);
        assert_eq!(adamw.state(), state);
    }

    #[test]
    fn gradients_are_scaled_down_to_the_allowed_norm() {
        let x = variable(&[300.0]);
        let mut adamw = AdamW::new([("x".to_owned(), x.shallow_clone())], AdamWConfig::default());
        adamw.backward_step(&x.square().sum(Kind::Float), 0.0);
        let mean = adamw.state()[0].1.double_value(&[0]);
        assert!((mean - 0.1).abs() < 1e-4, "{mean}");
    }
}
