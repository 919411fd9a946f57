//! CLIP as a whole: both towers with their projections into the space that pictures share with captions, under the
//! published keys (Radford et al. 2021, section 2.4; Dosovitskiy et al. 2021).

use serde::{Deserialize, Serialize};
use tch::{Tensor, nn};

use super::encoder_layer::{EncoderLayer, Sees};
use super::norm::{Start, layer_norm, linear};
use super::text::{LARGEST, TextConfig, TextEncoder, pooled};

/// Sizes of a [`ClipModel`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClipConfig {
    /// Of the image tower and the shared space.
    pub image: ClipImageConfig,
    /// Of the text encoder.
    pub text: TextConfig,
}

impl ClipConfig {
    /// Looks whether a model of these sizes can be built.
    ///
    /// # Errors
    /// The size that cannot be, what it is and what is allowed.
    pub fn check(&self) -> Result<(), String> {
        let checked = self.image.check().and_then(|()| self.text.check());
        checked.map_err(|problem| format!("clip.{problem}"))
    }
}

/// Both towers and both projections.
#[derive(Debug)]
pub struct ClipModel {
    image: ClipImage,
    text: TextEncoder,
    visual_projection: nn::Linear,
    text_projection: nn::Linear,
}

impl ClipModel {
    /// Fresh weights under `vs` for `vocabulary` tokens.
    pub fn new(vs: &nn::Path<'_>, cfg: &ClipConfig, vocabulary: i64) -> Self {
        let project = |name, inputs| linear(vs / name, inputs, cfg.image.projection, false, Start::Random);
        Self {
            image: ClipImage::new(vs, &cfg.image),
            text: TextEncoder::new(vs, &cfg.text, vocabulary),
            visual_projection: project("visual_projection", cfg.image.width),
            text_projection: project("text_projection", cfg.text.width),
        }
    }

    /// Pictures in the shared space.
    ///
    /// # Shapes
    /// - `pixels`: `[b, 3, image, image]`, normalised as in CLIP's training; output `[b, projection]`
    pub fn image_features(&self, pixels: &Tensor) -> Tensor {
        self.image.forward(pixels).apply(&self.visual_projection)
    }

    /// Captions in the shared space.
    ///
    /// # Shapes
    /// - `tokens`: `[b, tokens]`, each row with an `end`; output `[b, projection]`
    pub fn text_features(&self, tokens: &Tensor, end: i64) -> Tensor {
        pooled(&self.text.forward(tokens), tokens, end).apply(&self.text_projection)
    }
}

/// Sizes of a [`ClipImage`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClipImageConfig {
    /// Rows and columns of a picture in pixels.
    pub image: i64,
    /// Rows and columns of a patch; divides `image`.
    pub patch: i64,
    /// Width of a patch's embedding.
    pub width: i64,
    /// Attention heads; divides `width`.
    pub heads: i64,
    /// Layers.
    pub layers: i64,
    /// Width of the shared space.
    pub projection: i64,
}

impl ClipImageConfig {
    /// Looks whether a tower of these sizes can be built.
    ///
    /// # Errors
    /// The size that cannot be, what it is and what is allowed.
    pub fn check(&self) -> Result<(), String> {
        let sizes = [
            ("image", self.image),
            ("patch", self.patch),
            ("width", self.width),
            ("heads", self.heads),
            ("layers", self.layers),
            ("projection", self.projection),
        ];
        if let Some((name, found)) = sizes.into_iter().find(|(_, size)| !(1..=LARGEST).contains(size)) {
            return Err(format!("image.{name} is {found}; allowed is 1 to {LARGEST}"));
        }
        for (name, found, of, whole) in [
            ("patch", self.patch, "image", self.image),
            ("heads", self.heads, "width", self.width),
        ] {
            if whole % found != 0 {
                return Err(format!(
                    "image.{name} is {found}; allowed are divisors of `{of}`, {whole}"
                ));
            }
        }
        Ok(())
    }
}

/// A transformer over the patches of a picture.
#[derive(Debug)]
struct ClipImage {
    class_embedding: Tensor,
    patch_embedding: nn::Conv2D,
    position_embedding: Tensor,
    pre_layer_norm: nn::LayerNorm,
    layers: Vec<EncoderLayer>,
    post_layer_norm: nn::LayerNorm,
}

impl ClipImage {
    fn new(vs: &nn::Path<'_>, cfg: &ClipImageConfig) -> Self {
        let vs = vs / "vision_model";
        let (width, embeddings) = (cfg.width, &vs / "embeddings");
        let normal = nn::Init::Randn { mean: 0.0, stdev: 0.02 };
        let patches = nn::ConvConfig {
            stride: cfg.patch,
            bias: false,
            ..Default::default()
        };
        let side = cfg.image / cfg.patch;
        Self {
            class_embedding: embeddings.var("class_embedding", &[width], normal),
            patch_embedding: nn::conv2d(&embeddings / "patch_embedding", 3, width, cfg.patch, patches),
            position_embedding: (&embeddings / "position_embedding").var("weight", &[1 + side * side, width], normal),
            // So it is spelt in all published files.
            pre_layer_norm: layer_norm(&vs / "pre_layrnorm", width),
            layers: (0..cfg.layers)
                .map(|i| EncoderLayer::new(&(&vs / "encoder" / "layers" / i), width, cfg.heads, Sees::All))
                .collect(),
            post_layer_norm: layer_norm(&vs / "post_layernorm", width),
        }
    }

    /// The state of the class token after the last norm: `[b, 3, image, image]` → `[b, width]`.
    fn forward(&self, pixels: &Tensor) -> Tensor {
        let patches = pixels.apply(&self.patch_embedding).flatten(2, 3).transpose(1, 2); // [b, patches, width]
        let class = self.class_embedding.expand([patches.size()[0], 1, -1], false);
        let embedded = Tensor::cat(&[class, patches], 1) + &self.position_embedding;
        let mut xs = embedded.apply(&self.pre_layer_norm);
        for layer in &self.layers {
            xs = layer.forward(&xs);
        }
        xs.select(1, 0).apply(&self.post_layer_norm)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_that_cannot_be_are_named() {
        let good = ClipImageConfig {
            image: 8,
            patch: 4,
            width: 6,
            heads: 2,
            layers: 1,
            projection: 5,
        };
        assert_eq!(good.check(), Ok(()));
        let change = |change: &dyn Fn(&mut ClipImageConfig)| {
            let mut changed = good;
            change(&mut changed);
            changed.check().unwrap_err()
        };
        assert_eq!(
            change(&|c| c.patch = 3),
            "image.patch is 3; allowed are divisors of `image`, 8"
        );
        assert_eq!(
            change(&|c| c.heads = 4),
            "image.heads is 4; allowed are divisors of `width`, 6"
        );
        assert_eq!(
            change(&|c| c.projection = 0),
            "image.projection is 0; allowed is 1 to 65536"
        );
        let text = TextConfig {
            tokens: 4,
            width: 6,
            heads: 4,
            layers: 1,
        };
        let error = ClipConfig { image: good, text }.check().unwrap_err();
        assert_eq!(error, "clip.text.heads is 4; allowed are divisors of the width 6");
    }
}
