//! Pruning of the spatial backbone: a smaller UNet that starts from parts of a full one and learns from it.

pub mod copy_map;
mod layout;
