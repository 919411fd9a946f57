//! A block of a look-up table as something that runs: its module with fresh weights, and inputs for it.

use search_spaces::{Block, Dtype, Operator, Shape, Space, UnetConfig};
use tch::{Device, Kind, Tensor, nn, nn::Module};

use crate::assets::Recipe;
use crate::models::blocks::{Downsample, Head, Layer, MidBlock, TimeEmbedding, Upsample};
use crate::models::chain::Chain;
use crate::models::norm::{Conv2d, conv2d};
use crate::models::published;
use crate::models::resnet::ResnetConfig;
use crate::models::seeded::{normal, seed_all_weights, seed_weights};
use crate::models::temporal::{Clip, TemporalConfig, TemporalOperator};
use crate::models::text::{TextConfig, TextEncoder};
use crate::models::transformer::TransformerConfig;
use crate::models::unet::{conv_in, export_conv_in};
use crate::models::vae::{CHUNK_FRAMES, CHUNK_LATENTS, Vae, VaeConfig};
use crate::onnx::{Dtype as GraphDtype, Graph, Precision};

/// Seed of weights and inputs; their values do not change what is measured.
const SEED: u64 = 1;

/// Tokens of a vocabulary of captions; its size does not change what is measured.
const LEAST_VOCABULARY: i64 = 64;

/// What a block takes.
#[derive(Debug)]
pub struct Inputs {
    xs: Tensor,
    skip: Option<Tensor>,
    time: Tensor,
    text: Tensor,
}

impl Inputs {
    /// The same tensors once more; nothing is copied.
    pub fn again(&self) -> Self {
        Self {
            xs: self.xs.shallow_clone(),
            skip: self.skip.as_ref().map(Tensor::shallow_clone),
            time: self.time.shallow_clone(),
            text: self.text.shallow_clone(),
        }
    }

    /// The same with other tensors under the names of [`Self::named`].
    #[must_use]
    pub fn with(mut self, named: &[(String, Tensor)]) -> Self {
        for (name, tensor) in named {
            let tensor = tensor.shallow_clone();
            match name.as_str() {
                "xs" => self.xs = tensor,
                "skip" => self.skip = Some(tensor),
                "time" => self.time = tensor,
                "text" => self.text = tensor,
                _ => {}
            }
        }
        self
    }

    /// The tensors under the names that they have in [`Subject::export`]'s graph.
    #[must_use]
    pub fn named(&self) -> Vec<(&'static str, &Tensor)> {
        let skip = self.skip.iter().map(|skip| ("skip", skip));
        [("xs", &self.xs), ("time", &self.time), ("text", &self.text)]
            .into_iter()
            .chain(skip)
            .collect()
    }
}

/// A block's module on a device.
#[derive(Debug)]
pub struct Subject {
    module: Kernel,
    shape: Shape,
    kind: Kind,
    device: Device,
}

#[derive(Debug)]
enum Kernel {
    TimeEmbedding(TimeEmbedding),
    ConvIn(Conv2d),
    Down(Layer),
    Up(Layer),
    Mid(Box<MidBlock>),
    Downsample(Downsample),
    Upsample(Upsample),
    Head(Head),
    Temporal(TemporalOperator),
    Text(TextEncoder),
    Decoder(Box<Vae>),
}

/// libtorch's number format for ours.
pub fn kind_of(dtype: Dtype) -> Kind {
    match dtype {
        Dtype::F32 => Kind::Float,
        Dtype::F16 => Kind::Half,
        Dtype::Bf16 => Kind::BFloat16,
    }
}

impl Subject {
    /// The module of `block`, with weights in `dtype` on `device`.
    ///
    /// # Errors
    /// What is not known or missing, in words.
    pub fn new(space: &Space, block: &Block, dtype: Dtype, device: Device) -> Result<Self, String> {
        let mut vs = nn::VarStore::new(device);
        let module = Dimensions { shape: &block.shape }.module(&vs.root(), &block.operator, space)?;
        seed_weights(&vs, SEED);
        vs.freeze();
        vs.set_kind(kind_of(dtype));
        Ok(Self {
            module,
            shape: block.shape.clone(),
            kind: kind_of(dtype),
            device,
        })
    }

    /// As [`Self::new`] in float32 on the processor, with weights of `seed`, none of which is as training starts: what
    /// comes out tells whether all of them are used rightly.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn drawn(space: &Space, block: &Block, seed: u64) -> Result<Self, String> {
        let vs = nn::VarStore::new(Device::Cpu);
        let module = Dimensions { shape: &block.shape }.module(&vs.root(), &block.operator, space)?;
        seed_all_weights(&vs, seed);
        Ok(Self {
            module,
            shape: block.shape.clone(),
            kind: Kind::Float,
            device: Device::Cpu,
        })
    }

    /// Inputs of the block's shape, the same in every call.
    ///
    /// # Errors
    /// The dimension that is missing.
    pub fn inputs(&self) -> Result<Inputs, String> {
        let get = |name| Dimensions { shape: &self.shape }.get(name);
        let or = |name: &str, other: i64| self.shape.get(name).map_or(other, |size| size as i64);
        let random = |shape: &[i64]| {
            normal(shape, SEED, Device::Cpu)
                .to_device(self.device)
                .to_kind(self.kind)
        };
        let b = get("b")?;
        let frames =
            |channels: i64| -> Result<Tensor, String> { Ok(random(&[b * get("t")?, channels, get("h")?, get("w")?])) };
        let xs = match &self.module {
            Kernel::TimeEmbedding(_) => Tensor::full([b], 0.5, (Kind::Float, self.device)),
            Kernel::ConvIn(_) => random(&[b, get("c_in")?, get("t")?, get("h")?, get("w")?]),
            Kernel::Down(_) | Kernel::Up(_) | Kernel::Head(_) => frames(get("c_in")?)?,
            Kernel::Mid(_) | Kernel::Downsample(_) | Kernel::Upsample(_) | Kernel::Temporal(_) => frames(get("c")?)?,
            Kernel::Text(_) => Tensor::arange(b * get("l")?, (Kind::Int64, self.device))
                .remainder(LEAST_VOCABULARY)
                .reshape([b, -1]),
            Kernel::Decoder(_) => random(&[b, get("c")?, get("t")?, get("h")?, get("w")?]),
        };
        let skip = match &self.module {
            Kernel::Up(_) => Some(frames(get("skip")?)?),
            _ => None,
        };
        Ok(Inputs {
            xs,
            skip,
            time: random(&[b, or("temb", 1)]),
            text: random(&[b, or("l", 1), or("d", 1)]),
        })
    }

    /// One pass, exactly as the UNet makes it.
    pub fn forward(&self, inputs: Inputs) -> Tensor {
        let Inputs { xs, skip, time, text } = inputs;
        match (&self.module, skip) {
            (Kernel::TimeEmbedding(module), _) => module.forward(&xs),
            (Kernel::ConvIn(module), _) => conv_in(module, &xs),
            (Kernel::Down(module) | Kernel::Up(module), None) => module.forward(&xs, &time, &text),
            (Kernel::Down(module) | Kernel::Up(module), Some(skip)) => module.forward_with_skip(xs, skip, &time, &text),
            (Kernel::Mid(module), _) => module.forward(&xs, &time, &text),
            (Kernel::Downsample(module), _) => module.forward(&xs),
            (Kernel::Upsample(module), _) => {
                let (_, _, h, w) = xs.size4().expect("inputs of an upsampler are [n, c, h, w]");
                module.forward(&xs, self.upsampled([h, w]))
            }
            (Kernel::Head(module), _) => xs.through(module),
            (Kernel::Temporal(module), _) => {
                let frames = self.shape.get("t").map_or(1, |t| t as i64);
                module.forward(&xs, Clip { frames, text: &text })
            }
            (Kernel::Text(module), _) => module.forward(&xs),
            (Kernel::Decoder(module), _) => module.decode(&xs, frames_of(xs.size()[2])),
        }
    }
}

impl Subject {
    /// [`Self::forward`] as a graph: of [`Inputs::named`] those that the block reads, to `ys`.
    ///
    /// # Errors
    /// The dimension that is missing.
    pub fn export(&self, name: &str, precision: Precision) -> Result<Graph, String> {
        let inputs = self.inputs()?;
        let mut graph = Graph::new(name, precision);
        let xs = match &self.module {
            Kernel::TimeEmbedding(_) => graph.input_of("xs", GraphDtype::F32, &inputs.xs.size()),
            Kernel::Text(_) => graph.input_of("xs", GraphDtype::I64, &inputs.xs.size()),
            _ => graph.input("xs", &inputs.xs.size()),
        };
        let skip = inputs.skip.map(|skip| graph.input("skip", &skip.size()));
        let time = graph.input("time", &inputs.time.size());
        let text = graph.input("text", &inputs.text.size());
        let ys = match (&self.module, skip) {
            (Kernel::TimeEmbedding(module), _) => xs.through(&mut graph, module),
            (Kernel::ConvIn(module), _) => export_conv_in(&mut graph, module, &xs),
            (Kernel::Down(module) | Kernel::Up(module), None) => module.export(&mut graph, &xs, &time, &text),
            (Kernel::Down(module) | Kernel::Up(module), Some(skip)) => {
                module.export_with_skip(&mut graph, &xs, &skip, &time, &text)
            }
            (Kernel::Mid(module), _) => module.export(&mut graph, &xs, &time, &text),
            (Kernel::Downsample(module), _) => xs.through(&mut graph, module),
            (Kernel::Upsample(module), _) => {
                let size = self.upsampled([xs.size(2), xs.size(3)]);
                module.export(&mut graph, &xs, size)
            }
            (Kernel::Head(module), _) => xs.through(&mut graph, module),
            (Kernel::Temporal(module), _) => {
                let frames = self.shape.get("t").map_or(1, |t| t as i64);
                module.export(&mut graph, &xs, frames, &text)
            }
            (Kernel::Text(module), _) => module.export(&mut graph, &xs),
            (Kernel::Decoder(module), _) => module.export(&mut graph, &xs, frames_of(xs.size(2))),
        };
        graph.output("ys", &ys);
        Ok(graph)
    }

    /// Rows and columns to which an upsampler goes: the double, where the shape does not say.
    fn upsampled(&self, [height, width]: [i64; 2]) -> [i64; 2] {
        let or = |name: &str, size: i64| self.shape.get(name).map_or(2 * size, |size| size as i64);
        [or("h_out", height), or("w_out", width)]
    }
}

/// Frames that so many latent frames stand for.
fn frames_of(latents: i64) -> i64 {
    let rest = latents % CHUNK_LATENTS;
    latents / CHUNK_LATENTS * CHUNK_FRAMES + (4 * rest - 3).max(0)
}

/// Reads a shape into the sizes of modules.
struct Dimensions<'a> {
    shape: &'a Shape,
}

impl Dimensions<'_> {
    fn get(&self, name: &str) -> Result<i64, String> {
        let size = self
            .shape
            .get(name)
            .ok_or_else(|| format!("the shape `{}` has no dimension `{name}`", self.shape))?;
        i64::try_from(size).map_err(|_| format!("`{name}` is {size}, which no tensor can be"))
    }

    fn module(&self, vs: &nn::Path<'_>, operator: &str, space: &Space) -> Result<Kernel, String> {
        if let Ok(operator) = operator.parse::<Operator>() {
            return Ok(Kernel::Temporal(TemporalOperator::new(
                vs / "layer",
                operator,
                self.temporal(operator)?,
            )));
        }
        Ok(match operator {
            "unet.time_embedding" => Kernel::TimeEmbedding(TimeEmbedding::new(
                vs / "time_embedding",
                self.get("c_in")?,
                self.get("c_out")?,
            )),
            "unet.conv_in" => Kernel::ConvIn(conv2d(vs / "conv_in", self.get("c_in")?, self.get("c_out")?, 3, 1)),
            "unet.down" => Kernel::Down(self.layer(vs, self.get("c_in")?)?),
            "unet.up" => Kernel::Up(self.layer(vs, self.get("c_in")? + self.get("skip")?)?),
            "unet.mid" => {
                let c = self.get("c")?;
                Kernel::Mid(Box::new(MidBlock::new(vs, self.resnet(c, c)?, self.transformer(c)?)))
            }
            "unet.downsample" => Kernel::Downsample(Downsample::new(vs / "downsample", self.get("c")?)),
            "unet.upsample" => Kernel::Upsample(Upsample::new(vs / "upsample", self.get("c")?)),
            "unet.conv_out" => Kernel::Head(Head::new(
                vs,
                self.get("c_in")?,
                self.get("c_out")?,
                self.get("groups")?,
            )),
            "text_encoder" => Kernel::Text(self.text_encoder(vs, space)?),
            "vae.decode" => Kernel::Decoder(Box::new(Vae::new(vs, &vae(space)?))),
            other => {
                return Err(format!(
                    "`{other}` is no operator of this worker; allowed: the six temporal operators, unet.*, text_encoder, vae.decode"
                ));
            }
        })
    }

    fn temporal(&self, operator: Operator) -> Result<TemporalConfig, String> {
        let channels = self.get("c")?;
        let groups = if operator.is_convolution() {
            self.divisor("groups", channels)?
        } else {
            1
        };
        let heads = if operator.is_convolution() {
            1
        } else {
            self.divisor("heads", channels)?
        };
        let text_width = if operator.reads_text() { self.get("d")? } else { 1 };
        Ok(TemporalConfig {
            channels,
            heads,
            text_width,
            groups,
        })
    }

    fn resnet(&self, inputs: i64, outputs: i64) -> Result<ResnetConfig, String> {
        let groups = self.divisor("groups", inputs)?;
        self.divisor("groups", outputs)?;
        Ok(ResnetConfig {
            inputs,
            outputs,
            time_width: self.get("temb")?,
            groups,
        })
    }

    fn transformer(&self, channels: i64) -> Result<TransformerConfig, String> {
        Ok(TransformerConfig {
            channels,
            heads: self.divisor("heads", channels)?,
            text_width: self.get("d")?,
            groups: self.divisor("groups", channels)?,
            ff_multiplier: self.get("ff")?,
            qk_norm: self.get("qk_norm")? != 0,
            rope: self.shape.get("rope").is_some_and(|rope| rope != 0),
        })
    }

    fn layer(&self, vs: &nn::Path<'_>, inputs: i64) -> Result<Layer, String> {
        let outputs = self.get("c_out")?;
        let attention = if self.get("attention")? == 0 {
            None
        } else {
            Some(self.transformer(outputs)?)
        };
        Ok(Layer::new(vs, 0, self.resnet(inputs, outputs)?, attention))
    }

    /// The text encoder of the space's dataset, or the large one where the width is CLIP's.
    fn text_encoder(&self, vs: &nn::Path<'_>, space: &Space) -> Result<TextEncoder, String> {
        let (tokens, width) = (self.get("l")?, self.get("d")?);
        let large = TextConfig {
            tokens,
            ..published::clip_vit_l14()
        };
        let (config, vocabulary) = match recipe(space) {
            Ok(recipe) if recipe.text.width == width => (TextConfig { tokens, ..recipe.text }, LEAST_VOCABULARY),
            _ if width == large.width => (large, published::CLIP_VOCABULARY),
            _ => return Err(format!("no text encoder of width {width} is known")),
        };
        Ok(TextEncoder::new(vs, &config, vocabulary))
    }

    fn divisor(&self, name: &str, of: i64) -> Result<i64, String> {
        let found = self.get(name)?;
        if found > 0 && of % found == 0 {
            Ok(found)
        } else {
            Err(format!("`{name}` is {found}, it must divide {of}"))
        }
    }
}

/// The VAE of the space's dataset, or the large one where the text is CLIP's.
fn vae(space: &Space) -> Result<VaeConfig, String> {
    let large = |unet: &UnetConfig| unet.text_width as i64 == published::clip_vit_l14().width;
    match recipe(space) {
        Ok(recipe) => Ok(recipe.vae),
        Err(_) if space.unet().is_some_and(large) => Ok(published::open_sora_vae()),
        Err(problem) => Err(problem),
    }
}

fn recipe(space: &Space) -> Result<Recipe, String> {
    let dataset = space
        .evaluation
        .as_ref()
        .map_or("", |evaluation| evaluation.dataset.as_str());
    Recipe::of(dataset).ok_or_else(|| format!("no trained parts are known for the dataset `{dataset}`"))
}
