//! Distillation of a diffusion model to few steps without guidance, by adversarial fine-tuning in latent space (the
//! paper's section 3.3): the generator is the model itself, the discriminator its way down, frozen, with heads that learn
//! to tell its clips from real ones.

mod check;
mod comparison;
mod discriminator;
mod head;
pub mod loss;
mod objective;

pub use check::{DistillCheckArgs, command};
pub use comparison::{Compared, Comparison, ComparisonError, ScoreModel, denoise_speed_up, interval};
pub use discriminator::{Discriminator, Sources};
pub use head::{Head, HeadConfig, HeadKind};
pub use objective::{Adversary, Terms};

#[cfg(test)]
mod tests;
