//! CLIP's image tower and both projections into the space that pictures share with captions, under the published keys
//! (Radford et al. 2021, section 2.4; Dosovitskiy et al. 2021).

use serde::{Deserialize, Serialize};
use tch::{Tensor, nn};

use super::encoder_layer::{EncoderLayer, Sees};
use super::norm::{Start, layer_norm, linear};
use super::text::LARGEST;

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
            return Err(format!("clip_image.{name} is {found}; allowed is 1 to {LARGEST}"));
        }
        for (name, found, of, whole) in [
            ("patch", self.patch, "image", self.image),
            ("heads", self.heads, "width", self.width),
        ] {
            if whole % found != 0 {
                return Err(format!(
                    "clip_image.{name} is {found}; allowed are divisors of `{of}`, {whole}"
                ));
            }
        }
        Ok(())
    }
}

/// A transformer over the patches of a picture, and the matrices that take pictures and captions to one space.
#[derive(Debug)]
pub struct ClipImage {
    class_embedding: Tensor,
    patch_embedding: nn::Conv2D,
    position_embedding: Tensor,
    pre_layer_norm: nn::LayerNorm,
    layers: Vec<EncoderLayer>,
    post_layer_norm: nn::LayerNorm,
    visual_projection: nn::Linear,
    text_projection: nn::Linear,
}

impl ClipImage {
    /// Fresh weights under `vs`, for captions that a text encoder of `text_width` has pooled.
    pub fn new(vs: &nn::Path<'_>, cfg: &ClipImageConfig, text_width: i64) -> Self {
        let &ClipImageConfig { width, projection, .. } = cfg;
        let tower = vs / "vision_model";
        let embeddings = &tower / "embeddings";
        let normal = nn::Init::Randn { mean: 0.0, stdev: 0.02 };
        let patches = nn::ConvConfig {
            stride: cfg.patch,
            bias: false,
            ..Default::default()
        };
        let side = cfg.image / cfg.patch;
        let project = |name, inputs| linear(vs / name, inputs, projection, false, Start::Random);
        Self {
            class_embedding: embeddings.var("class_embedding", &[width], normal),
            patch_embedding: nn::conv2d(&embeddings / "patch_embedding", 3, width, cfg.patch, patches),
            position_embedding: (&embeddings / "position_embedding").var("weight", &[1 + side * side, width], normal),
            // So it is spelt in all published files.
            pre_layer_norm: layer_norm(&tower / "pre_layrnorm", width),
            layers: (0..cfg.layers)
                .map(|i| EncoderLayer::new(&(&tower / "encoder" / "layers" / i), width, cfg.heads, Sees::All))
                .collect(),
            post_layer_norm: layer_norm(&tower / "post_layernorm", width),
            visual_projection: project("visual_projection", width),
            text_projection: project("text_projection", text_width),
        }
    }

    /// Pictures in the shared space: the state of the class token after the last norm, projected.
    ///
    /// # Shapes
    /// - `pixels`: `[b, 3, image, image]`, normalised as in CLIP's training; output `[b, projection]`
    pub fn image_features(&self, pixels: &Tensor) -> Tensor {
        let patches = pixels.apply(&self.patch_embedding).flatten(2, 3).transpose(1, 2); // [b, patches, width]
        let class = self.class_embedding.expand([patches.size()[0], 1, -1], false);
        let embedded = Tensor::cat(&[class, patches], 1) + &self.position_embedding;
        let mut xs = embedded.apply(&self.pre_layer_norm);
        for layer in &self.layers {
            xs = layer.forward(&xs);
        }
        let class = xs.select(1, 0).apply(&self.post_layer_norm);
        class.apply(&self.visual_projection)
    }

    /// Captions in the shared space.
    ///
    /// # Shapes
    /// - `pooled`: `[b, text_width]` of the text encoder; output `[b, projection]`
    pub fn text_features(&self, pooled: &Tensor) -> Tensor {
        pooled.apply(&self.text_projection)
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
            "clip_image.patch is 3; allowed are divisors of `image`, 8"
        );
        assert_eq!(
            change(&|c| c.heads = 4),
            "clip_image.heads is 4; allowed are divisors of `width`, 6"
        );
        assert_eq!(
            change(&|c| c.projection = 0),
            "clip_image.projection is 0; allowed is 1 to 65536"
        );
    }
}
