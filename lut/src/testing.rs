//! Small spaces and tables for tests.

use search_spaces::{Block, Dtype, Space, UnetConfig};

use crate::{EntryState, Lut, Measurement, Runtime, Samples};

pub(crate) fn samples(values: &[f64]) -> Samples {
    Samples::new(values.to_vec()).expect("valid samples")
}

pub(crate) fn measured(latency_ms: &[f64], peak_memory_bytes: &[f64]) -> EntryState {
    EntryState::Measured(Measurement {
        latency_ms: samples(latency_ms),
        peak_memory_bytes: samples(peak_memory_bytes),
    })
}

pub(crate) fn out_of_memory() -> EntryState {
    EntryState::OutOfMemory {
        detail: "tried to allocate 8 GiB".into(),
    }
}

pub(crate) fn eager() -> Lut {
    Lut::new("desk", Runtime::new("libtorch-cpu-1t", "2.11.0"), Dtype::F32)
}

pub(crate) fn ahead_of_time() -> Lut {
    Lut::new("phone", Runtime::new("coreml-ne", "18"), Dtype::F32)
}

const REST: &str = "
[[objectives]]
metric = \"parameters\"
direction = \"maximise\"
[[objectives]]
metric = \"latency_ms\"
direction = \"minimise\"
[search]
strategy = \"random\"
max_evaluations = 10
";

/// A space whose file ends with objectives and search settings of no matter.
pub(crate) fn space(toml: &str) -> Space {
    match Space::parse(&format!("{toml}{REST}")) {
        Ok(space) => space,
        Err(error) => panic!("{error}"),
    }
}

/// One level of 32 channels on 2 frames of 4×4 without attention: time embedding, conv_in, one down layer, position
/// `down.0`, two up layers of one shape, position `up.0`, conv_out.
pub(crate) fn flat(more: &str) -> Space {
    space(&format!(
        "name = \"flat\"\nkind = \"temporal-unet\"\n\
         [unet]\nlatent_channels = 4\nframes = 2\nheight = 4\nwidth = 4\nchannels = [32]\nlayers_per_block = 1\n\
         attention = [false]\nmiddle = false\nheads = 4\ntext_tokens = 3\ntext_width = 8\nnorm_groups = 8\n{more}\n\
         [operators]\nkinds = [\"conv1d\", \"conv3d\", \"self_attention3d\"]\ndepths = [1, 2]\n"
    ))
}

/// A table with every block of a space.
pub(crate) fn full(mut lut: Lut, space: &Space, state: impl Fn(&Block) -> EntryState) -> Lut {
    for block in space.blocks() {
        let state = state(&block);
        lut.insert(block, state);
    }
    lut
}

pub(crate) fn unet(space: &Space) -> &UnetConfig {
    space.unet().expect("a temporal space")
}
