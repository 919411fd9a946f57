//! The forward pass of a UNet, step by step, and what is alive meanwhile.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Block, Shape, TemporalLayer, UnetConfig, UnetPosition, work};

/// One step of a forward pass.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// What runs.
    pub block: Block,
    /// How often it runs, one after another, each time with weights of its own.
    pub repeat: u8,
    /// Index of the position whose temporal layers these are; `None` for the backbone.
    pub position: Option<usize>,
    /// Parameters of all repeats.
    pub parameters: u64,
    /// Elements of its input; for an up layer the running tensor and the skip tensor it concatenates.
    pub input_elements: u64,
    /// Elements of its output.
    pub output_elements: u64,
    /// Elements alive during the step besides its own input: skip tensors still to be used, time and
    /// text embedding. A tensor that is both input and waiting skip is counted as input.
    pub held_elements: u64,
    /// The part it belongs to, from 0. Parts are contiguous.
    pub part: u64,
}

/// Parameters of the heaviest part: the most that a device must hold at once.
#[must_use]
pub fn heaviest_part(steps: &[Step]) -> u64 {
    let mut parts: BTreeMap<u64, u64> = BTreeMap::new();
    for step in steps {
        let part = parts.entry(step.part).or_default();
        *part = part.saturating_add(step.parameters);
    }
    parts.into_values().max().unwrap_or(0)
}

impl UnetConfig {
    /// The forward pass of one clip, step by step, with the temporal layers at each position.
    ///
    /// Skip tensors are the output of `conv_in`, of every down layer and of every downsampler, used in
    /// reverse by the up layers. Temporal layers of a down level run on the output of its last layer
    /// before the downsampler, and the skip tensor of that layer is the tensor after them. With a single
    /// frame temporal layers are skipped. A missing entry of `layers` means no layer.
    #[must_use]
    pub fn schedule(&self, layers: &[Option<TemporalLayer>]) -> Vec<Step> {
        let mut pass = Pass::new(self, layers);
        pass.run();
        let mut steps = pass.steps;
        split(&mut steps, self.parts);
        steps
    }
}

/// The running tensor of a forward pass.
#[derive(Clone, Copy)]
struct Running {
    channels: u64,
    elements: u64,
    /// The same tensor also waits as the newest skip tensor.
    is_skip: bool,
}

struct Pass<'a> {
    unet: &'a UnetConfig,
    layers: &'a [Option<TemporalLayer>],
    places: Vec<UnetPosition>,
    position: usize,
    running: Running,
    /// Channels and elements of the skip tensors, newest last.
    skips: Vec<(u64, u64)>,
    steps: Vec<Step>,
}

impl<'a> Pass<'a> {
    fn new(unet: &'a UnetConfig, layers: &'a [Option<TemporalLayer>]) -> Self {
        let latent = unet.frames.saturating_mul(unet.height).saturating_mul(unet.width);
        let running = Running {
            channels: unet.latent_channels,
            elements: latent.saturating_mul(unet.latent_channels),
            is_skip: false,
        };
        Self {
            unet,
            layers,
            places: unet.positions(),
            position: 0,
            running,
            skips: Vec::new(),
            steps: Vec::new(),
        }
    }

    fn run(&mut self) {
        let levels = self.unet.channels.len();
        if levels == 0 {
            return;
        }
        self.time_embedding();
        self.conv_in();
        for level in 0..levels {
            self.down(level, level + 1 == levels);
        }
        if self.unet.middle {
            self.mid(levels - 1);
        }
        for level in (0..levels).rev() {
            self.up(level, level == 0);
        }
        self.conv_out();
    }

    fn time_embedding(&mut self) {
        let (first, width) = (self.unet.channels[0], self.unet.time_width());
        let block = Block::new(
            "unet.time_embedding",
            Shape::new([("b", 1), ("c_in", first), ("c_out", width)]),
        );
        let held = self.text().saturating_add(self.running.elements);
        self.steps.push(Step {
            parameters: work(&block, self.unet.dtype).map_or(0, |work| work.parameters),
            block,
            repeat: 1,
            position: None,
            input_elements: first,
            output_elements: width,
            held_elements: held,
            part: 0,
        });
    }

    fn conv_in(&mut self) {
        let shape = self
            .video(0)
            .with("c_in", self.unet.latent_channels)
            .with("c_out", self.unet.channels[0]);
        self.backbone("unet.conv_in", shape, self.unet.channels[0], 0);
        self.push_skip();
    }

    fn down(&mut self, level: usize, last_level: bool) {
        let unet = self.unet;
        for layer in 0..unet.layers_per_block {
            let shape = self.layer_shape(level, self.running.channels);
            self.backbone("unet.down", shape, unet.channels[level], level);
            if layer + 1 == unet.layers_per_block {
                self.temporal();
            }
            self.push_skip();
        }
        if !last_level {
            let shape = self.video(level).with("c", unet.channels[level]);
            self.backbone("unet.downsample", shape, unet.channels[level], level + 1);
            self.push_skip();
        }
    }

    fn mid(&mut self, level: usize) {
        let unet = self.unet;
        let shape = self
            .video(level)
            .with("c", unet.channels[level])
            .with("temb", unet.time_width())
            .with("groups", unet.norm_groups);
        self.backbone("unet.mid", unet.with_attention(shape), unet.channels[level], level);
        self.temporal();
    }

    fn up(&mut self, level: usize, last_level: bool) {
        let unet = self.unet;
        for _ in 0..=unet.layers_per_block {
            let Some((skip_channels, skip_elements)) = self.skips.pop() else {
                continue;
            };
            let shape = self
                .layer_shape(level, self.running.channels)
                .with("skip", skip_channels);
            // Without a mid block the first up layer concatenates a tensor with itself.
            if !self.running.is_skip {
                self.running.elements = self.running.elements.saturating_add(skip_elements);
            }
            self.running.is_skip = false;
            self.backbone("unet.up", shape, unet.channels[level], level);
        }
        self.temporal();
        if !last_level {
            self.backbone("unet.upsample", self.upsampled(level), unet.channels[level], level - 1);
        }
    }

    fn conv_out(&mut self) {
        let unet = self.unet;
        let shape = self
            .video(0)
            .with("c_in", unet.channels[0])
            .with("c_out", unet.latent_channels)
            .with("groups", unet.norm_groups);
        self.backbone("unet.conv_out", shape, unet.latent_channels, 0);
    }

    fn temporal(&mut self) {
        let position = self.position;
        self.position += 1;
        let layer = self.layers.get(position).copied().flatten();
        let Some(layer) = layer.filter(|layer| self.unet.frames > 1 && layer.depth > 0) else {
            return;
        };
        let block = self.unet.temporal_block_at(&self.places[position], layer.operator);
        self.step(block, layer.depth, Some(position), self.running.elements);
    }

    fn backbone(&mut self, operator: &str, shape: Shape, channels: u64, level: usize) {
        let (height, width) = self.unet.size(level);
        let output = [self.unet.frames, height, width]
            .into_iter()
            .fold(channels, u64::saturating_mul);
        self.step(Block::new(operator, shape), 1, None, output);
        self.running = Running {
            channels,
            elements: output,
            is_skip: false,
        };
    }

    fn step(&mut self, block: Block, repeat: u8, position: Option<usize>, output_elements: u64) {
        let parameters = work(&block, self.unet.dtype).map_or(0, |work| work.parameters);
        self.steps.push(Step {
            block,
            repeat,
            position,
            parameters: parameters.saturating_mul(repeat.into()),
            input_elements: self.running.elements,
            output_elements,
            held_elements: self.held(),
            part: 0,
        });
    }

    fn held(&self) -> u64 {
        let skips = self
            .skips
            .iter()
            .fold(0_u64, |sum, (_, elements)| sum.saturating_add(*elements));
        let besides = if self.running.is_skip { self.running.elements } else { 0 };
        let time = self.unet.time_width();
        skips
            .saturating_sub(besides)
            .saturating_add(time)
            .saturating_add(self.text())
    }

    fn text(&self) -> u64 {
        self.unet.text_tokens.saturating_mul(self.unet.text_width)
    }

    fn push_skip(&mut self) {
        self.skips.push((self.running.channels, self.running.elements));
        self.running.is_skip = true;
    }

    fn video(&self, level: usize) -> Shape {
        let (height, width) = self.unet.size(level);
        self.unet.video_shape(height, width)
    }

    /// An upsampler of a level. It goes to the size of the next skip tensor, which was halved upwards: where that is not
    /// the double, it is named. Blocks of even sizes keep the keys under which tables know them.
    fn upsampled(&self, level: usize) -> Shape {
        let ((height, width), (rows, columns)) = (self.unet.size(level), self.unet.size(level - 1));
        let mut shape = self.video(level).with("c", self.unet.channels[level]);
        for (name, output, input) in [("h_out", rows, height), ("w_out", columns, width)] {
            if output != input.saturating_mul(2) {
                shape = shape.with(name, output);
            }
        }
        shape
    }

    fn layer_shape(&self, level: usize, c_in: u64) -> Shape {
        let unet = self.unet;
        let attention = unet.attention.get(level).copied().unwrap_or(false);
        let shape = self
            .video(level)
            .with("c_in", c_in)
            .with("c_out", unet.channels[level])
            .with("temb", unet.time_width())
            .with("groups", unet.norm_groups)
            .with("attention", attention.into());
        if attention { unet.with_attention(shape) } else { shape }
    }
}

/// Splits the steps into at most `parts` contiguous parts whose largest holds as few parameters as a cut
/// between steps allows.
fn split(steps: &mut [Step], parts: u64) {
    let total = steps
        .iter()
        .fold(0_u64, |sum, step| sum.saturating_add(step.parameters));
    let largest = steps.iter().map(|step| step.parameters).max().unwrap_or(0);
    let (mut low, mut high) = (largest, total);
    while low < high {
        let middle = low + (high - low) / 2;
        if fill(steps, middle) < parts.max(1) {
            high = middle
        } else {
            low = middle + 1
        }
    }
    fill(steps, low);
}

/// Fills parts of at most `capacity` parameters one after another; the number of the last part.
fn fill(steps: &mut [Step], capacity: u64) -> u64 {
    let (mut part, mut filled) = (0, 0_u64);
    for step in steps {
        if filled.saturating_add(step.parameters) > capacity {
            part += 1;
            filled = 0;
        }
        filled = filled.saturating_add(step.parameters);
        step.part = part;
    }
    part
}
