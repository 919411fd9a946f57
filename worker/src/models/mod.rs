//! The temporal UNet, block by block. Shapes, sources and equations stand with each block.

pub mod attention;
pub mod blocks;
pub mod chain;
pub mod clip;
mod encoder_layer;
pub mod norm;
pub mod published;
pub mod resnet;
pub mod rotary;
pub mod seeded;
mod segment;
pub mod temporal;
pub mod text;
pub mod tokenizer;
pub mod trained;
pub mod transformer;
pub mod unet;
pub mod vae;

pub use unet::UNet;
