//! What a researcher brings, at the smallest sizes: weight files under their published names, CLIP's vocabulary, a
//! folder of captioned clips, a space and a recipe.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use end_to_end::{program, said};
use image::{Delay, Frame, Rgba, RgbaImage, codecs::gif::GifEncoder};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};

/// The backbone as it is published: three levels of two layers.
const FULL: &str = r#"
    channels = [16, 32, 32]
    layers_per_block = 2
    attention = [true, true, false]
    qk_norm = false
"#;

/// The backbone as it is pruned, after the paper's steps: the innermost level, a layer of each level and the attention
/// at the highest resolution are gone.
const PRUNED: &str = r#"
    channels = [16, 24]
    layers_per_block = 1
    attention = [false, true]
    qk_norm = true
    rope = true
"#;

/// What the space is besides its channels.
const SPACE: &str = r#"
name = "NAME"
kind = "temporal-unet"

[unet]
latent_channels = 4
frames = 5
height = 4
width = 4
middle = true
heads = 2
text_tokens = 8
text_width = 32
norm_groups = 4
ff_multiplier = 2
dtype = "f32"
parts = 1
UNET

[operators]
kinds = ["conv1d", "self_attention1d"]
depths = [1]

[[objectives]]
metric = "quality"
direction = "maximise"
range = [0, 1]

[[objectives]]
metric = "latency_ms"
direction = "minimise"

[search]
strategy = "random"
seed = 1
width = 1
max_evaluations = 3
finalists = 1

[evaluation]
evaluator = "vbench"
dataset = "NAME"
ranks = 2
steps = 8
batch = 4
learning_rate = 1e-3
weight_decay = 0.01
text_dropout = 0.1
noise_mean = 0.0
noise_std = 1.0
prompts = 2
videos_per_prompt = 1
sample_steps = 2
guidance = 4.0
dimensions = { temporal_flickering = 1 }
checkpoint_every = 4
train_seed = 1
score_seed = 2
"#;

/// Long enough to be killed within.
const RECIPE: &str = r#"
name = "short"
stage = "pruning"
trains = "all"

[training]
steps = 240
batch = 4
learning_rate = 1e-3
weight_decay = 0.01
text_dropout = 0.1
noise_mean = 0.0
noise_std = 1.0
checkpoint_every = 10

[distillation]
teacher_predicts = "noise"
predicts = "velocity"
"#;

const SIZES: &str = "
[text]
tokens = 8
width = 32
heads = 2
layers = 1
[vae.spatial]
block_out_channels = [4, 4, 8, 8]
layers_per_block = 1
norm_groups = 2
latent_channels = 4
[vae.temporal]
filters = 4
channel_multipliers = [1, 1, 2, 2]
res_blocks = 1
norm_groups = 2
";

/// Two merges: 256 bytes, each also as the end of a word, the merges, begin and end.
const MERGES: &str = "#version: 0.2\nc a\nca t</w>\n";
const TOKENS: usize = 2 * 256 + 2 + 2;

/// Pictures of a clip, at ten a second.
const PICTURES: u32 = 20;
/// Clips of each size.
const CLIPS: u32 = 6;

/// Files as a user has them.
pub(crate) struct User {
    /// Trained parts, a folder for each name.
    pub(crate) parts: PathBuf,
    /// Datasets, each a folder of captioned clips.
    pub(crate) data: PathBuf,
    /// The pruned backbone with the search around it.
    pub(crate) space: PathBuf,
    /// The pruning.
    pub(crate) recipe: PathBuf,
    folder: PathBuf,
}

impl User {
    /// Name of the imported parts.
    pub(crate) const FULL: &str = "full";
    /// Name of the parts with the pruned backbone, and of the space.
    pub(crate) const PRUNED: &str = "pruned";
    /// Name of the dataset.
    pub(crate) const CLIPS: &str = "squares";

    /// Writes everything into a folder.
    pub(crate) fn new(folder: &Path) -> Result<Self> {
        let user = Self {
            parts: folder.join("parts"),
            data: folder.join("data"),
            space: folder.join("pruned.toml"),
            recipe: folder.join("recipe.toml"),
            folder: folder.to_owned(),
        };
        fs::write(&user.space, space(Self::PRUNED, PRUNED))?;
        fs::write(folder.join("full.toml"), space(Self::FULL, FULL))?;
        fs::write(&user.recipe, RECIPE)?;
        fs::write(folder.join("sizes.toml"), SIZES)?;
        let packed = fs::File::create(folder.join("bpe.txt.gz"))?;
        let mut packed = flate2::write::GzEncoder::new(packed, flate2::Compression::fast());
        std::io::Write::write_all(&mut packed, MERGES.as_bytes())?;
        packed.finish()?;
        user.draw_weights().context("drawing weights")?;
        clips(&user.data.join(Self::CLIPS)).context("making clips")?;
        Ok(user)
    }

    /// Has them checked and laid out as parts.
    pub(crate) fn import(&self) -> Result<String> {
        let mut command = Command::new(program("temponas-worker")?);
        command.args(["import", "--name", Self::FULL]);
        for (flag, file) in [
            ("--unet", "unet/weights.safetensors"),
            ("--text", "text/weights.safetensors"),
            ("--vae", "vae/weights.safetensors"),
            ("--tokenizer", "bpe.txt.gz"),
            ("--space", "full.toml"),
            ("--sizes", "sizes.toml"),
            ("--out", "parts"),
        ] {
            command.arg(flag).arg(self.folder.join(file));
        }
        said(&mut command)
    }

    /// Weights under the published names, drawn by name and shape as for comparisons with other implementations.
    fn draw_weights(&self) -> Result<()> {
        let unet: toml::Table = space(Self::FULL, FULL).parse()?;
        let sizes: toml::Table = SIZES.parse()?;
        let mut unet = json!(unet.get("unet").context("no [unet]")?);
        // Settings that a space file may leave out.
        unet["rope"] = json!(false);
        self.draw(
            "unet",
            &json!({ "unet": unet }),
            &[
                ("sample", &[1, 4, 1, 4, 4], Dtype::F32),
                ("time", &[1], Dtype::F32),
                ("text", &[1, 8, 32], Dtype::F32),
            ],
        )?;
        let text = json!({ "text_encoder": { "config": sizes["text"], "vocabulary": TOKENS, "end": TOKENS - 1 } });
        self.draw("text", &text, &[("tokens", &[1, 8], Dtype::I64)])?;
        let vae = json!({ "vae": sizes["vae"] });
        self.draw("vae", &vae, &[("clip", &[1, 3, 1, 16, 16], Dtype::F32)])
    }

    fn draw(&self, name: &str, model: &Value, inputs: &[(&str, &[usize], Dtype)]) -> Result<()> {
        let case = self.folder.join(name);
        fs::create_dir_all(&case)?;
        fs::write(case.join("case.json"), json!({ "model": model, "seed": 1 }).to_string())?;
        let zeros = vec![0; 8 << 10];
        let inputs = inputs.iter().map(|(name, shape, dtype)| {
            let bytes = shape.iter().product::<usize>() * if *dtype == Dtype::I64 { 8 } else { 4 };
            Ok((*name, TensorView::new(*dtype, shape.to_vec(), &zeros[..bytes])?))
        });
        let inputs: Vec<(&str, TensorView<'_>)> = inputs.collect::<Result<_>>()?;
        fs::write(case.join("inputs.safetensors"), safetensors::serialize(inputs, None)?)?;
        let mut command = Command::new(program("temponas-worker")?);
        said(command.arg("parity").arg(&case).arg("--draw")).map(drop)
    }
}

fn space(name: &str, unet: &str) -> String {
    SPACE.replace("NAME", name).replace("UNET", unet)
}

/// Squares that move to the right, in pictures of two sizes.
fn clips(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder)?;
    let mut captions = String::new();
    for (width, clip) in [32, 48]
        .into_iter()
        .flat_map(|width| (0..CLIPS).map(move |clip| (width, clip)))
    {
        let name = format!("{width}-{clip}.gif");
        let mut encoder = GifEncoder::new_with_speed(fs::File::create(folder.join(&name))?, 30);
        for number in 0..PICTURES {
            let mut picture = RgbaImage::from_pixel(width, 32, Rgba([20, 20, 40, 255]));
            for (x, y) in (0..8).flat_map(|x| (0..8).map(move |y| (x, y))) {
                let left = (number + 2 * clip + x) % width;
                picture.put_pixel(left, y + clip, Rgba([250, (40 * clip) as u8, 60, 255]));
            }
            encoder.encode_frame(Frame::from_parts(picture, 0, 0, Delay::from_numer_denom_ms(100, 1)))?;
        }
        captions += &json!({ "file": name, "caption": format!("a square of colour {clip}") }).to_string();
        captions.push('\n');
    }
    Ok(fs::write(folder.join("captions.jsonl"), captions)?)
}
