//! Recipe files: the schedule and the settings of one stage between the image model and the distilled video model.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::TrainingSettings;
use super::parse::{NAME, SpaceError, name_of, parsed};
use super::read::{Node, Section, all};
use super::training::{betas, training};

/// One stage of training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Recipe {
    /// Short name.
    pub name: String,
    /// One line for people.
    pub title: String,
    /// Which weights move.
    pub trains: Trains,
    /// How they move.
    pub training: TrainingSettings,
    /// What the stage is, with the settings that it alone has.
    pub stage: Stage,
}

/// Which weights a stage moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Trains {
    /// Backbone and temporal layers.
    All,
    /// Temporal layers; the backbone is frozen.
    Temporal,
}

/// A stage of the paper's schedule.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// The pruned image model learns from the full one.
    Pruning(Distillation),
    /// It changes over to rectified flow and to the latents of the spatial-temporal VAE.
    Adaptation,
    /// The temporal layers of one candidate of a search.
    Candidates,
    /// The found model, on images and videos.
    Joint(Joint),
    /// Its distillation to few steps against a discriminator.
    Adversarial(Adversarial),
    /// A decoder for the VAE's frozen encoder: over time on clips, and of single frames on pictures.
    Decoder(Decoder),
}

/// What an image model predicts of a noised picture.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Prediction {
    /// The noise of a diffusion, as Stable Diffusion.
    #[default]
    Noise,
    /// The velocity of rectified flow.
    Velocity,
}

/// Weights of the losses of distillation from the full image model.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Distillation {
    /// What the full model predicts.
    #[serde(default)]
    pub teacher_predicts: Prediction,
    /// What the pruned one learns to predict.
    #[serde(default)]
    pub predicts: Prediction,
    /// Of the error against the data.
    pub task_weight: f64,
    /// Of the error against the full model's output.
    pub output_weight: f64,
    /// Of the error against the full model's features, block by block.
    pub feature_weight: f64,
}

/// Settings of the joint training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Joint {
    /// What it is trained on.
    pub mix: Mix,
}

/// What the batches of a stage are drawn from. Each batch is of one bucket: one length, size and frame rate.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Mix {
    /// Share of the batches that are images, from 0 to 1.
    pub image_share: f64,
    /// Frames a second of the clips; those of every rate where absent.
    #[serde(default)]
    pub frame_rate_hz: Option<f64>,
    /// Shares of buckets by name, such as `51x512x512@10`, relative to others of their kind (images or clips). A kind
    /// of which none is named has all its buckets, each by the number of its clips.
    #[serde(default)]
    pub bucket_shares: BTreeMap<String, f64>,
}

/// What judges a clip after each block of the discriminator's backbone.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Heads {
    /// One head: a residual block in space, then attention over time (the paper's).
    #[default]
    Unified,
    /// Two heads: residual blocks in space, convolutions over time (SF-V's).
    Separate,
}

/// Settings of the adversarial distillation; the generator's are those of the training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Adversarial {
    /// What it is trained on.
    pub mix: Mix,
    /// What judges.
    pub heads: Heads,
    /// Steps of a sample, and times at which the generator is trained.
    pub sample_steps: u32,
    /// AdamW's learning rate of the discriminator's heads.
    pub heads_learning_rate: f64,
    /// AdamW's decays of theirs.
    pub heads_betas: [f64; 2],
    /// Mean of the logit of the discriminator's times.
    pub noise_mean: f64,
    /// Standard deviation of the logit of the discriminator's times.
    pub noise_std: f64,
    /// Weight of the reconstruction beside the adversarial loss.
    pub reconstruction_weight: f64,
    /// c of the pseudo-Huber distance, in √elements of a clip.
    pub huber_scale: f64,
    /// Weight of the penalty on the discriminator's gradient at real clips.
    pub r1_weight: f64,
}

/// Settings of the training of a decoder. The steps of the training are those of each of its two parts, its batch is one
/// of clips.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Decoder {
    /// Whether its convolutions are depth-wise and then point-wise (Appendix B).
    pub separable: bool,
    /// Whether there is attention over all places of a frame's latents.
    pub middle_attention: bool,
    /// Channels of the levels of the part of single frames, all pixels first; the original's where absent.
    #[serde(default)]
    pub spatial_channels: Option<Vec<u32>>,
    /// Channels of the four levels of the part over time, all frames first; the original's where absent.
    #[serde(default)]
    pub temporal_channels: Option<Vec<u32>>,
    /// Pictures of a step of the part of single frames.
    pub pictures: u32,
    /// Height and width in pixels, multiples of 8, of what is read from a folder.
    pub size: [u32; 2],
    /// Frames a second of clips that are read from a folder.
    pub frame_rate_hz: f64,
    /// Weight of the error against what was encoded.
    pub reconstruction_weight: f64,
    /// Weight of the error against the original decoder's output.
    pub distillation_weight: f64,
    /// Weight of the error against the original decoder's features, level by level.
    pub feature_weight: f64,
    /// Weight of the perceptual distance of pictures.
    pub perceptual_weight: f64,
}

impl Recipe {
    /// Reads and checks a recipe file.
    ///
    /// # Errors
    /// Every problem with its line, column and field, what was found and what is allowed.
    pub fn parse(toml: &str) -> Result<Self, SpaceError> {
        parsed(toml, |document, tree| recipe(Section::root(document, tree)))
    }
}

fn recipe(root: Section) -> Option<Recipe> {
    let name = root.need("name", NAME).and_then(|node| name_of(&node));
    let title = root.get("title").map_or(Some(""), |node| node.text("a line of text"));
    let trains = root
        .need("trains", "all, temporal")
        .and_then(|node| node.one_of([("all", Trains::All), ("temporal", Trains::Temporal)]));
    let settings = root
        .need("training", "a section")
        .and_then(|node| node.section("a section"))
        .and_then(|section| finished(section, training));
    let stage = root
        .need("stage", "the stage's name")
        .and_then(|node| stage(&root, &node));
    root.finish();
    Some(Recipe {
        name: name?.to_owned(),
        title: title?.to_owned(),
        trains: trains?,
        training: settings?,
        stage: stage?,
    })
}

/// The stage of a name, with the section that belongs to it.
fn stage(root: &Section, name: &Node) -> Option<Stage> {
    type Read = fn(&Section) -> Option<Stage>;
    let own = |key: &'static str, read: Read| {
        let section = root.need(key, "a section")?.section("a section")?;
        finished(section, read)
    };
    const STAGES: [&str; 6] = ["pruning", "adaptation", "candidates", "joint", "adversarial", "decoder"];
    match name.one_of(STAGES.map(|name| (name, name)))? {
        "pruning" => own("distillation", distillation),
        "joint" => own("joint", |section| {
            Some(Stage::Joint(Joint {
                mix: mix(section, None)?,
            }))
        }),
        "adversarial" => own("adversarial", adversarial),
        "decoder" => own("decoder", decoder),
        "adaptation" => Some(Stage::Adaptation),
        _ => Some(Stage::Candidates),
    }
}

fn finished<T>(section: Section, read: impl FnOnce(&Section) -> Option<T>) -> Option<T> {
    let value = read(&section);
    section.finish();
    value
}

fn distillation(section: &Section) -> Option<Stage> {
    let weight = |key| section.number_or(key, 1.0, 0.0..=1e6);
    let (task, output, features) = (weight("task_weight"), weight("output_weight"), weight("feature_weight"));
    let prediction = |key, otherwise| {
        section.get(key).map_or(Some(otherwise), |node| {
            node.one_of([("noise", Prediction::Noise), ("velocity", Prediction::Velocity)])
        })
    };
    let teacher_predicts = prediction("teacher_predicts", Prediction::Noise);
    let predicts = prediction("predicts", teacher_predicts.unwrap_or_default());
    if (teacher_predicts, predicts) == (Some(Prediction::Velocity), Some(Prediction::Noise)) {
        section.report("predicts", "noise", "velocity, as the teacher predicts velocities");
    }
    Some(Stage::Pruning(Distillation {
        teacher_predicts: teacher_predicts?,
        predicts: predicts?,
        task_weight: task?,
        output_weight: output?,
        feature_weight: features?,
    }))
}

/// `image_share` is needed where nothing stands for it.
fn mix(section: &Section, image_share: Option<f64>) -> Option<Mix> {
    let image_share = match image_share {
        Some(usual) => section.number_or("image_share", usual, 0.0..=1.0),
        None => section
            .need("image_share", "a number from 0 to 1")
            .and_then(|node| node.number(0.0..=1.0)),
    };
    let frame_rate_hz = section
        .get("frame_rate_hz")
        .map_or(Some(None), |node| node.number(0.01..=1000.0).map(Some));
    let bucket_shares = section
        .get("bucket_shares")
        .map_or(Some(BTreeMap::new()), |node| bucket_shares(&node));
    Some(Mix {
        image_share: image_share?,
        frame_rate_hz: frame_rate_hz?,
        bucket_shares: bucket_shares?,
    })
}

fn bucket_shares(node: &Node) -> Option<BTreeMap<String, f64>> {
    let section = node.section("a table of buckets with shares")?;
    let share = |(name, node): (&str, Node)| {
        if !is_bucket(name) {
            return node.refuse("a share of a bucket FRAMESxHEIGHTxWIDTH@RATE, such as \"51x512x512@10\"");
        }
        Some((name.to_owned(), node.number(0.0..=1e6)?))
    };
    let shares: BTreeMap<String, f64> = all(section.entries().into_iter().map(share))?;
    if shares.is_empty() || shares.values().sum::<f64>() > 0.0 {
        Some(shares)
    } else {
        node.refuse("at least one bucket with a share above 0")
    }
}

/// Whether a name is one of a bucket, as `encode` prints them.
fn is_bucket(name: &str) -> bool {
    let (size, rate) = name
        .split_once('@')
        .map_or((name, None), |(size, rate)| (size, Some(rate)));
    let sizes: Vec<Option<u32>> = size.split('x').map(|part| part.parse().ok()).collect();
    let sizes_are_counts = sizes.len() == 3 && sizes.iter().all(|part| part.is_some_and(|count| count > 0));
    let rate_is_number = rate.map_or(sizes.first() == Some(&Some(1)), |rate| {
        rate.parse::<f64>().is_ok_and(|rate| rate > 0.0)
    });
    sizes_are_counts && rate_is_number
}

fn adversarial(section: &Section) -> Option<Stage> {
    let mix = mix(section, Some(0.0));
    let heads = section.get("heads").map_or(Some(Heads::Unified), |node| {
        node.one_of([("unified", Heads::Unified), ("separate", Heads::Separate)])
    });
    let sample_steps = section
        .need_integer("sample_steps", 1..=1000)
        .and_then(|steps| u32::try_from(steps).ok());
    let need = |key, range: std::ops::RangeInclusive<f64>| {
        let allowed = format!("a number from {} to {}", range.start(), range.end());
        section.need(key, &allowed).and_then(|node| node.number(range))
    };
    let heads_learning_rate = need("heads_learning_rate", 0.0..=10.0);
    let heads_betas = section
        .need("heads_betas", "two numbers from 0 to 0.999999")
        .and_then(|node| betas(&node));
    let (noise_mean, noise_std) = (need("noise_mean", -10.0..=10.0), need("noise_std", 1e-3..=10.0));
    let reconstruction_weight = need("reconstruction_weight", 0.0..=1e6);
    let huber_scale = need("huber_scale", 0.0..=1e6);
    let r1_weight = need("r1_weight", 0.0..=1e6);
    if let (Some(Heads::Separate), Some(share)) = (heads, mix.as_ref().map(|mix| mix.image_share))
        && share > 0.0
    {
        section.report(
            "image_share",
            share.to_string(),
            "0 with separate heads, of which those over time cannot judge images",
        );
    }
    Some(Stage::Adversarial(Adversarial {
        mix: mix?,
        heads: heads?,
        sample_steps: sample_steps?,
        heads_learning_rate: heads_learning_rate?,
        heads_betas: heads_betas?,
        noise_mean: noise_mean?,
        noise_std: noise_std?,
        reconstruction_weight: reconstruction_weight?,
        huber_scale: huber_scale?,
        r1_weight: r1_weight?,
    }))
}

fn decoder(section: &Section) -> Option<Stage> {
    const PIXELS: [u64; 2] = [8, 4096];
    let separable = section.boolean_or("separable", true);
    let middle_attention = section.boolean_or("middle_attention", true);
    let channels = |key, allowed: &str, length| {
        let Some(node) = section.get(key) else {
            return Some(None);
        };
        let list = node.list(allowed, length)?;
        let widths: Option<Vec<u32>> = all(list.iter().map(|width| small_of(width.integer(1..=65_536)?)));
        widths.map(Some)
    };
    let spatial_channels = channels("spatial_channels", "1 to 8 numbers of channels", 1..=8);
    let temporal_channels = channels("temporal_channels", "4 numbers of channels", 4..=4);
    let pictures = section.need_integer("pictures", 1..=65_536).and_then(small_of);
    let side = |node: &Node| {
        let [least, most] = PIXELS;
        let pixels = node.integer(least..=most)?;
        if pixels % 8 != 0 {
            return node.refuse("a multiple of 8");
        }
        small_of(pixels)
    };
    let size = section.get("size").map_or(Some([256, 256]), |node| {
        let sides = node.list("height and width in pixels", 2..=2)?;
        let (height, width) = (side(&sides[0]), side(&sides[1]));
        Some([height?, width?])
    });
    let frame_rate_hz = section.number_or("frame_rate_hz", 24.0, 0.01..=1000.0);
    let weight = |key, usual| section.number_or(key, usual, 0.0..=1e6);
    let reconstruction_weight = weight("reconstruction_weight", 1.0);
    let distillation_weight = weight("distillation_weight", 1.0);
    let feature_weight = weight("feature_weight", 0.0);
    let perceptual_weight = weight("perceptual_weight", 0.0);
    if (reconstruction_weight, distillation_weight) == (Some(0.0), Some(0.0)) {
        section.report(
            "reconstruction_weight",
            "0",
            "a number above 0, or a `distillation_weight` above 0",
        );
    }
    Some(Stage::Decoder(Decoder {
        separable: separable?,
        middle_attention: middle_attention?,
        spatial_channels: spatial_channels?,
        temporal_channels: temporal_channels?,
        pictures: pictures?,
        size: size?,
        frame_rate_hz: frame_rate_hz?,
        reconstruction_weight: reconstruction_weight?,
        distillation_weight: distillation_weight?,
        feature_weight: feature_weight?,
        perceptual_weight: perceptual_weight?,
    }))
}

fn small_of(number: u64) -> Option<u32> {
    u32::try_from(number).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "name = \"short\"\nstage = \"joint\"\ntrains = \"all\"\n\n[joint]\nimage_share = 0.2\n\n\
                        [training]\nsteps = 10\nbatch = 8\naccumulate = 2\ncheckpoint_every = 5\n";

    fn problems(toml: &str) -> String {
        Recipe::parse(toml).expect_err("a wrong recipe").to_string()
    }

    #[test]
    fn a_recipe_is_read_with_the_defaults_of_a_training() {
        let recipe = Recipe::parse(GOOD).expect("a good recipe");
        let mix = Mix {
            image_share: 0.2,
            ..Mix::default()
        };
        assert_eq!(recipe.stage, Stage::Joint(Joint { mix }));
        assert_eq!(
            (recipe.training.micro_batch(), recipe.training.learning_rate),
            (4, 5e-5)
        );
    }

    #[test]
    fn a_pruned_model_predicts_what_its_teacher_does_unless_it_changes_over_to_velocities() {
        let with = |keys: &str| {
            let toml = GOOD.replace("\"joint\"", "\"pruning\"");
            toml.replace("[joint]\nimage_share = 0.2", &format!("[distillation]\n{keys}"))
        };
        let read = |keys: &str| match Recipe::parse(&with(keys)).expect("a good recipe").stage {
            Stage::Pruning(distillation) => (distillation.teacher_predicts, distillation.predicts),
            other => panic!("{other:?}"),
        };
        let (noise, velocity) = (Prediction::Noise, Prediction::Velocity);
        assert_eq!(read(""), (noise, noise));
        assert_eq!(read("teacher_predicts = \"velocity\""), (velocity, velocity));
        assert_eq!(read("predicts = \"velocity\""), (noise, velocity));
        let problem = problems(&with("teacher_predicts = \"velocity\"\npredicts = \"noise\""));
        assert!(
            problem.contains("distillation.predicts: found noise; allowed: velocity"),
            "{problem}"
        );
    }

    #[test]
    fn what_is_wrong_is_named_with_what_is_allowed() {
        let unknown = problems(&GOOD.replace("steps = 10", "steps = 10\nmomentum = 0.9"));
        assert!(
            unknown.contains("training.momentum: found an unknown key; allowed: the keys steps, batch"),
            "{unknown}"
        );
        let other = problems(&GOOD.replace("\"joint\"", "\"finetuning\""));
        assert!(
            other.contains(
                "stage: found `\"finetuning\"`; allowed: pruning, adaptation, candidates, joint, adversarial, decoder"
            ),
            "{other}"
        );
        let foreign = problems(&GOOD.replace("\"joint\"", "\"adaptation\""));
        assert!(foreign.contains("joint: found an unknown key"), "{foreign}");
        let uneven = problems(&GOOD.replace("accumulate = 2", "accumulate = 3"));
        assert!(
            uneven.contains("training.accumulate: found 3; allowed: a divisor of the batch of 8"),
            "{uneven}"
        );
        for (wrong, allowed) in [
            ("betas = [0.9]", "two numbers from 0 to 0.999999"),
            ("betas = [0.9, 1.5]", "a number from 0 to 0.999999"),
            ("ema = 1", "a number from 0 to 0.999999"),
            ("precision = \"f16\"", "f32, bf16"),
            ("timestep_shift = \"auto\"", "none, resolution"),
            ("timestep_shift = 0", "a number from 0.01 to 100"),
            ("warmup_steps = -1", "an integer from 0 to 10000000"),
            ("gradient_checkpointing = 1", "true or false"),
            ("max_gradient_norm = 0", "a number from 0.000000001 to 1000000000"),
        ] {
            let found = problems(&format!("{GOOD}{wrong}\n"));
            assert!(found.contains(&format!("allowed: {allowed}")), "{found}");
        }
        let missing =
            problems("name = \"a\"\nstage = \"adversarial\"\ntrains = \"all\"\n[training]\nsteps = 1\n[adversarial]\n");
        assert!(missing.contains("training.batch: found nothing"), "{missing}");
        assert!(missing.contains("adversarial.heads_betas: found nothing"), "{missing}");
    }

    #[test]
    fn a_mix_names_frame_rate_and_buckets() {
        let with = |keys: &str| GOOD.replace("image_share = 0.2\n", &format!("image_share = 0.2\n{keys}\n"));
        let good = "frame_rate_hz = 10\nbucket_shares = { \"51x512x512@10\" = 3, \"1x512x512\" = 1 }";
        let Stage::Joint(Joint { mix }) = Recipe::parse(&with(good)).expect("a good recipe").stage else {
            panic!("a joint stage");
        };
        assert_eq!(
            (mix.frame_rate_hz, mix.bucket_shares["51x512x512@10"]),
            (Some(10.0), 3.0)
        );
        for (wrong, allowed) in [
            (
                "frame_rate_hz = 0",
                "joint.frame_rate_hz: found `0`; allowed: a number from 0.01 to 1000",
            ),
            (
                "bucket_shares = { \"51x512\" = 1 }",
                "a share of a bucket FRAMESxHEIGHTxWIDTH@RATE",
            ),
            (
                "bucket_shares = { \"51x512x512\" = 1 }",
                "a share of a bucket FRAMESxHEIGHTxWIDTH@RATE",
            ),
            ("bucket_shares = { \"1x8x8\" = -1 }", "a number from 0 to 1000000"),
            (
                "bucket_shares = { \"1x8x8\" = 0 }",
                "at least one bucket with a share above 0",
            ),
        ] {
            let found = problems(&with(wrong));
            assert!(found.contains(allowed), "{found}");
        }
    }

    #[test]
    fn separate_heads_take_no_images() {
        let adversarial = |keys: &str| {
            format!(
                "name = \"a\"\nstage = \"adversarial\"\ntrains = \"all\"\n[training]\nsteps = 1\nbatch = 2\n\
                 checkpoint_every = 1\n[adversarial]\nsample_steps = 4\nheads_learning_rate = 1e-4\n\
                 heads_betas = [0.5, 0.999]\nnoise_mean = -1\nnoise_std = 1\nreconstruction_weight = 0.1\n\
                 huber_scale = 1e-3\nr1_weight = 0\n{keys}\n"
            )
        };
        let read = |keys: &str| match Recipe::parse(&adversarial(keys)).expect("a good recipe").stage {
            Stage::Adversarial(settings) => (settings.heads, settings.mix.image_share),
            other => panic!("{other:?}"),
        };
        assert_eq!(read(""), (Heads::Unified, 0.0));
        assert_eq!(read("image_share = 0.3"), (Heads::Unified, 0.3));
        assert_eq!(read("heads = \"separate\""), (Heads::Separate, 0.0));
        let found = problems(&adversarial("heads = \"separate\"\nimage_share = 0.3"));
        assert!(
            found.contains("adversarial.image_share: found 0.3; allowed: 0 with separate heads"),
            "{found}"
        );
        let found = problems(&adversarial("heads = \"both\""));
        assert!(found.contains("allowed: unified, separate"), "{found}");
    }

    #[test]
    fn a_decoder_keeps_what_is_not_named() {
        let with = |keys: &str| {
            let toml = GOOD.replace("\"joint\"", "\"decoder\"");
            toml.replace("[joint]\nimage_share = 0.2", &format!("[decoder]\n{keys}"))
        };
        let Stage::Decoder(found) = Recipe::parse(&with("pictures = 8")).expect("a good recipe").stage else {
            panic!("a decoder")
        };
        assert!(found.separable && found.middle_attention);
        assert_eq!((found.spatial_channels, found.temporal_channels), (None, None));
        assert_eq!(
            (found.size, found.reconstruction_weight, found.distillation_weight),
            ([256, 256], 1.0, 1.0)
        );
        for (keys, problem) in [
            ("", "decoder.pictures: found nothing"),
            (
                "pictures = 8\ntemporal_channels = [8]",
                "decoder.temporal_channels: found",
            ),
            (
                "pictures = 8\nspatial_channels = [8, 0]",
                "decoder.spatial_channels.1: found `0`; allowed: an integer from 1",
            ),
            (
                "pictures = 8\nsize = [256, 100]",
                "decoder.size.1: found `100`; allowed: a multiple of 8",
            ),
            (
                "pictures = 8\nfeature_weight = -1",
                "decoder.feature_weight: found `-1`",
            ),
            (
                "pictures = 8\nreconstruction_weight = 0\ndistillation_weight = 0",
                "decoder.reconstruction_weight: found 0; allowed: a number above 0, or a `distillation_weight`",
            ),
        ] {
            let found = problems(&with(keys));
            assert!(found.contains(problem), "{found}");
        }
    }
}
