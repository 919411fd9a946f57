//! Every spatial weight of a UNet by name, with what each of its axes counts.

use std::fmt;

use search_spaces::UnetConfig;

/// A block of the UNet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Block {
    /// First convolution, time embedding and head, which belong to no block.
    Frame,
    /// A level on the way down.
    Down(usize),
    /// The middle.
    Mid,
    /// A level on the way up, counted from the innermost.
    Up(usize),
}

impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Frame => Ok(()),
            Self::Down(i) => write!(f, "down_blocks.{i}."),
            Self::Mid => write!(f, "mid_block."),
            Self::Up(i) => write!(f, "up_blocks.{i}."),
        }
    }
}

/// One weight.
#[derive(Debug, Clone)]
pub(super) struct Weight {
    pub block: Block,
    /// `resnets`, `attentions`, `downsamplers` or `upsamplers`; nothing in [`Block::Frame`].
    pub module: &'static str,
    /// Which of the block's modules of this kind.
    pub index: usize,
    /// The rest of its name.
    pub tail: String,
    /// What each axis counts.
    pub axes: Vec<Axis>,
}

impl Weight {
    /// Its name under Stable Diffusion's key scheme.
    pub(super) fn name(&self) -> String {
        let Self {
            block,
            module,
            index,
            tail,
            ..
        } = self;
        match block {
            Block::Frame => tail.clone(),
            _ => format!("{block}{module}.{index}.{tail}"),
        }
    }

    pub(super) fn shape(&self) -> Vec<i64> {
        self.axes.iter().map(Axis::size).collect()
    }
}

/// What an axis counts, which decides what may be left out of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Axis {
    /// Something that pruning leaves alone: text width, latent channels, a kernel.
    Fixed(i64),
    /// Channels in parts that must stay parts (groups of a norm, heads, the two sides of a concatenation, the two
    /// halves of a gated layer); each part can lose its last channels.
    Parts(Vec<i64>),
    /// Cosines, then sines, of as many frequencies between 1 and 1/10000.
    Sinusoids(i64),
}

impl Axis {
    /// Channels of a tensor that passes through group norms.
    pub(super) fn grouped(channels: u64, groups: u64) -> Self {
        Self::Parts(vec![(channels / groups) as i64; groups as usize])
    }

    fn joined(first: u64, second: u64, groups: u64) -> Self {
        let part = |channels: u64| vec![(channels / groups) as i64; groups as usize];
        Self::Parts([part(first), part(second)].concat())
    }

    pub(super) fn size(&self) -> i64 {
        match self {
            Self::Fixed(size) | Self::Sinusoids(size) => *size,
            Self::Parts(parts) => parts.iter().sum(),
        }
    }

    /// Which of the places of `full` the places of this axis are; none where they do not fit.
    pub(super) fn pick_from(&self, full: &Self) -> Option<Vec<i64>> {
        match (self, full) {
            (Self::Fixed(ours), Self::Fixed(theirs)) if ours == theirs => Some((0..*ours).collect()),
            (Self::Parts(ours), Self::Parts(theirs)) if ours.len() == theirs.len() => {
                let (mut picked, mut start) = (Vec::new(), 0);
                for (ours, theirs) in ours.iter().zip(theirs) {
                    if ours > theirs {
                        return None;
                    }
                    picked.extend(start..start + ours);
                    start += theirs;
                }
                Some(picked)
            }
            (Self::Sinusoids(ours), Self::Sinusoids(theirs)) if ours <= theirs => {
                let (ours, theirs) = (ours / 2, theirs / 2);
                let nearest: Vec<i64> = (0..ours).map(|i| (i * theirs + ours / 2) / ours).collect();
                let sines = nearest.iter().map(|i| i + theirs);
                Some(nearest.iter().copied().chain(sines).collect())
            }
            _ => None,
        }
    }
}

/// All spatial weights of a UNet.
pub(super) fn weights(config: &UnetConfig) -> Vec<Weight> {
    Walk {
        config,
        weights: Vec::new(),
    }
    .all()
}

struct Walk<'a> {
    config: &'a UnetConfig,
    weights: Vec<Weight>,
}

impl Walk<'_> {
    /// In the order of the forward pass, following which tensors are skips.
    fn all(mut self) -> Vec<Weight> {
        let config = self.config;
        let levels = config.channels.len();
        let layers = config.layers_per_block as usize;
        self.entrance();

        let mut running = config.channels[0];
        let mut skips = vec![running];
        for (level, &channels) in config.channels.iter().enumerate() {
            let block = Block::Down(level);
            for layer in 0..layers {
                let inputs = self.channels(running);
                self.layer(block, layer, inputs, level);
                running = channels;
                skips.push(channels);
            }
            if level + 1 < levels {
                self.sampler(block, "downsamplers", channels);
                skips.push(channels);
            }
        }
        if config.middle {
            let channels = self.channels(running);
            self.resnet(Block::Mid, 0, channels.clone(), running);
            self.attention(Block::Mid, 0, running);
            self.resnet(Block::Mid, 1, channels, running);
        }
        for (up, level) in (0..levels).rev().enumerate() {
            let block = Block::Up(up);
            for layer in 0..=layers {
                let skip = skips.pop().unwrap_or_default();
                let inputs = Axis::joined(running, skip, config.norm_groups);
                self.layer(block, layer, inputs, level);
                running = config.channels[level];
            }
            if level > 0 {
                self.sampler(block, "upsamplers", running);
            }
        }
        self.head();
        self.weights
    }

    fn channels(&self, channels: u64) -> Axis {
        Axis::grouped(channels, self.config.norm_groups)
    }

    fn time(&self) -> Axis {
        Axis::Parts(vec![4 * self.config.channels[0] as i64])
    }

    fn push(&mut self, block: Block, module: &'static str, index: usize, tail: &str, axes: Vec<Axis>) {
        self.weights.push(Weight {
            block,
            module,
            index,
            tail: tail.to_owned(),
            axes,
        });
    }

    fn frame(&mut self, name: &str, axes: Vec<Axis>) {
        self.push(Block::Frame, "", 0, name, axes);
    }

    fn entrance(&mut self) {
        let first = self.config.channels[0];
        let (channels, latent) = (self.channels(first), self.latent());
        self.frame(
            "conv_in.weight",
            vec![channels.clone(), latent, Axis::Fixed(3), Axis::Fixed(3)],
        );
        self.frame("conv_in.bias", vec![channels]);
        let time = self.time();
        let sinusoids = Axis::Sinusoids(first as i64);
        self.frame("time_embedding.linear_1.weight", vec![time.clone(), sinusoids]);
        self.frame("time_embedding.linear_1.bias", vec![time.clone()]);
        self.frame("time_embedding.linear_2.weight", vec![time.clone(), time.clone()]);
        self.frame("time_embedding.linear_2.bias", vec![time]);
    }

    fn head(&mut self) {
        let (channels, latent) = (self.channels(self.config.channels[0]), self.latent());
        self.frame("conv_norm_out.weight", vec![channels.clone()]);
        self.frame("conv_norm_out.bias", vec![channels.clone()]);
        self.frame(
            "conv_out.weight",
            vec![latent.clone(), channels, Axis::Fixed(3), Axis::Fixed(3)],
        );
        self.frame("conv_out.bias", vec![latent]);
    }

    fn latent(&self) -> Axis {
        Axis::Fixed(self.config.latent_channels as i64)
    }

    fn layer(&mut self, block: Block, index: usize, inputs: Axis, level: usize) {
        let channels = self.config.channels[level];
        self.resnet(block, index, inputs, channels);
        if self.config.attention.get(level).copied().unwrap_or(false) {
            self.attention(block, index, channels);
        }
    }

    fn resnet(&mut self, block: Block, index: usize, inputs: Axis, channels: u64) {
        let (outputs, time) = (self.channels(channels), self.time());
        let mut push = |tail: &str, axes| self.push(block, "resnets", index, tail, axes);
        let kernel = |size| [Axis::Fixed(size), Axis::Fixed(size)];
        let convolution = |inputs: &Axis, size| {
            let [h, w] = kernel(size);
            vec![outputs.clone(), inputs.clone(), h, w]
        };
        push("norm1.weight", vec![inputs.clone()]);
        push("norm1.bias", vec![inputs.clone()]);
        push("conv1.weight", convolution(&inputs, 3));
        push("conv1.bias", vec![outputs.clone()]);
        push("time_emb_proj.weight", vec![outputs.clone(), time]);
        push("time_emb_proj.bias", vec![outputs.clone()]);
        push("norm2.weight", vec![outputs.clone()]);
        push("norm2.bias", vec![outputs.clone()]);
        push("conv2.weight", convolution(&outputs, 3));
        push("conv2.bias", vec![outputs.clone()]);
        if inputs.size() != outputs.size() {
            push("conv_shortcut.weight", convolution(&inputs, 1));
            push("conv_shortcut.bias", vec![outputs.clone()]);
        }
    }

    fn attention(&mut self, block: Block, index: usize, width: u64) {
        let config = self.config;
        let channels = self.channels(width);
        let heads = Axis::grouped(width, config.heads);
        let head = Axis::Parts(vec![(width / config.heads) as i64]);
        let text = Axis::Fixed(config.text_width as i64);
        let inner = (width * config.ff_multiplier) as i64;
        let mut push = |tail: &str, axes: &[&Axis]| {
            let axes = axes.iter().map(|&axis| axis.clone()).collect();
            self.push(block, "attentions", index, tail, axes);
        };
        let one = Axis::Fixed(1);
        push("norm.weight", &[&channels]);
        push("norm.bias", &[&channels]);
        for name in ["proj_in", "proj_out"] {
            push(&format!("{name}.weight"), &[&channels, &channels, &one, &one]);
            push(&format!("{name}.bias"), &[&channels]);
        }
        for name in ["norm1", "norm2", "norm3"] {
            push(&format!("transformer_blocks.0.{name}.weight"), &[&channels]);
            push(&format!("transformer_blocks.0.{name}.bias"), &[&channels]);
        }
        for (name, context) in [("attn1", &channels), ("attn2", &text)] {
            let mut push = |tail: &str, axes: &[&Axis]| push(&format!("transformer_blocks.0.{name}.{tail}"), axes);
            push("to_q.weight", &[&heads, &channels]);
            push("to_k.weight", &[&heads, context]);
            push("to_v.weight", &[&heads, context]);
            push("to_out.0.weight", &[&channels, &heads]);
            push("to_out.0.bias", &[&channels]);
            if config.qk_norm {
                push("norm_q.weight", &[&head]);
                push("norm_k.weight", &[&head]);
            }
        }
        let (gated, inner) = (Axis::Parts(vec![inner, inner]), Axis::Parts(vec![inner]));
        push("transformer_blocks.0.ff.net.0.proj.weight", &[&gated, &channels]);
        push("transformer_blocks.0.ff.net.0.proj.bias", &[&gated]);
        push("transformer_blocks.0.ff.net.2.weight", &[&channels, &inner]);
        push("transformer_blocks.0.ff.net.2.bias", &[&channels]);
    }

    fn sampler(&mut self, block: Block, module: &'static str, channels: u64) {
        let channels = self.channels(channels);
        let kernel = || Axis::Fixed(3);
        let axes = vec![channels.clone(), channels.clone(), kernel(), kernel()];
        self.push(block, module, 0, "conv.weight", axes);
        self.push(block, module, 0, "conv.bias", vec![channels]);
    }
}
