//! Chains of tensor steps that hold one intermediate at a time.

use tch::{Tensor, nn::Module};

/// Consuming steps: each drops its input as soon as its output is there.
///
/// Temporaries of a plain method chain live to the end of the statement, which would make the measured peak of a block
/// larger than its schedule.
pub trait Chain {
    /// Through a module.
    fn through(self, module: &impl Module) -> Tensor;
    /// Through any step.
    fn then(self, step: impl FnOnce(&Tensor) -> Tensor) -> Tensor;
}

impl Chain for Tensor {
    fn through(self, module: &impl Module) -> Tensor {
        module.forward(&self)
    }

    fn then(self, step: impl FnOnce(&Tensor) -> Tensor) -> Tensor {
        step(&self)
    }
}
