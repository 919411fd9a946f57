//! Training and measuring the evaluators.
//!
//! They read what the sampler yields, so they are trained on decoded latents with a little noise, never on drawn
//! clips. What they must refuse is made here too: static clips, shuffled clips, clips spliced from several clips, and
//! frames that show nothing.

use std::collections::BTreeMap;

use rand::RngExt;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use tch::{Device, Kind, Tensor, nn};

use super::AssetsError;
use super::train::{Workshop, draw, in_chunks, pick};
use crate::data::{Attributes, FRAMES, Prompt, Split, Vocabulary};
use crate::models::seeded::{normal_from, seed_weights, standard_normal};
use crate::models::tokenizer::Tokenizer;
use crate::models::vae::Vae;
use crate::scoring::evaluators::{ClipReader, Evaluators, FrameReader};

/// Most noise in the latents of a clip that still counts as good, in standard deviations.
const LATENT_NOISE: f64 = 0.25;
/// Noise in the pixels of every clip the evaluators see, in units of −1..1.
const PIXEL_NOISE: f64 = 0.04;

/// Latents of clips with their captions.
pub(super) struct Coded<'a> {
    /// `[n, 4, t, h, w]`
    pub latents: &'a Tensor,
    pub prompts: &'a [Prompt],
}

/// Decoded clips of three kinds, bytes `[n, 3, FRAMES, side, side]`; row `i` of the first two belongs to caption `i`.
struct Material {
    good: Tensor,
    spliced: Tensor,
    /// Frames that show nothing: latents mixed with noise or with another frame.
    blank: Tensor,
}

impl Workshop<'_> {
    /// Trains both evaluators and says how good they are on clips kept apart.
    pub(super) fn evaluators(
        &self,
        vae: &Vae,
        train: &Coded<'_>,
        held_out: &Coded<'_>,
        tokenizer: &Tokenizer,
    ) -> Result<(nn::VarStore, BTreeMap<String, f64>), AssetsError> {
        let vocabulary = self.source.vocabulary();
        let vs = nn::VarStore::new(Device::Cpu);
        let frames = FrameReader::new(
            &(vs.root() / "frames"),
            self.evaluators,
            vocabulary.objects.len() as i64,
            vocabulary.colors.len() as i64,
        );
        let clips = ClipReader::new(&(vs.root() / "clips"), self.evaluators, tokenizer.size());
        seed_weights(&vs, self.recipe.seed);
        let material = self.material("evaluator-material", vae, train)?;
        self.frame_reader(&vs, &frames, &material, train.prompts, &vocabulary)?;
        self.clip_reader(&vs, &clips, &material, train.prompts, tokenizer)?;
        for (_, variable) in vs.variables() {
            let _ = variable.set_requires_grad(false);
        }
        let evaluators = Evaluators::new(frames, clips, tokenizer.clone(), self.recipe.text.tokens, vocabulary);
        let material = self.material("evaluator-held-out", vae, held_out)?;
        let mut all = self.source.prompts(Split::Train);
        all.extend(self.source.prompts(Split::HeldOut));
        Ok((vs, accuracies(&evaluators, &material, held_out.prompts, &all)))
    }

    fn material(&self, name: &str, vae: &Vae, coded: &Coded<'_>) -> Result<Material, AssetsError> {
        let count = coded.prompts.len();
        let mut rng = self.rng(name, 0);
        let good = jittered(coded.latents, &mut rng);
        let spliced = jittered(&splice(coded, &mut rng), &mut rng);
        let blank = blank(coded.latents, &mut rng);
        let decode = |latents: &Tensor| {
            in_chunks(count, |indices| {
                to_bytes(&vae.decode(&pick(latents, indices), FRAMES as i64))
            })
        };
        Ok(Material {
            good: self.kept(&format!("{name}-good"), || decode(&good))?,
            spliced: self.kept(&format!("{name}-spliced"), || decode(&spliced))?,
            blank: self.kept(&format!("{name}-blank"), || decode(&blank))?,
        })
    }

    fn frame_reader(
        &self,
        vs: &nn::VarStore,
        reader: &FrameReader,
        material: &Material,
        prompts: &[Prompt],
        vocabulary: &Vocabulary,
    ) -> Result<(), AssetsError> {
        const NAME: &str = "frame-reader";
        only(vs, "frames.");
        let schedule = self.training.frame_reader;
        let none = (vocabulary.objects.len() as i64, vocabulary.colors.len() as i64);
        self.stage(NAME, schedule).run(vs, |step| {
            let mut rng = self.rng(NAME, step);
            let (mut frames, mut objects, mut colors) = (Vec::new(), Vec::new(), Vec::new());
            for index in draw(&mut rng, prompts.len(), schedule.batch) {
                let at = rng.random_range(0..FRAMES as i64);
                let shows_nothing = rng.random::<f64>() < 0.25;
                let clips = if shows_nothing { &material.blank } else { &material.good };
                frames.push(clips.get(index as i64).select(1, at));
                let seen = prompts[index].attributes;
                let classes = if shows_nothing {
                    none
                } else {
                    (seen.object as i64, seen.color as i64)
                };
                objects.push(classes.0);
                colors.push(classes.1);
            }
            let frames = seen_by_evaluators(&Tensor::stack(&frames, 0), &mut rng);
            let (object, color) = reader.forward(&frames);
            object.cross_entropy_for_logits(&Tensor::from_slice(&objects))
                + color.cross_entropy_for_logits(&Tensor::from_slice(&colors))
        })
    }

    /// Good clips against all captions of the training set, bad ones against them too. Each clip's own caption counts
    /// as much as all others together, and of those the few that differ in one word as much as the rest.
    fn clip_reader(
        &self,
        vs: &nn::VarStore,
        reader: &ClipReader,
        material: &Material,
        prompts: &[Prompt],
        tokenizer: &Tokenizer,
    ) -> Result<(), AssetsError> {
        const NAME: &str = "clip-reader";
        only(vs, "clips.");
        let schedule = self.training.clip_reader;
        let mut captions: Vec<&str> = prompts.iter().map(|p| &*p.caption).collect();
        captions.sort_unstable();
        captions.dedup();
        let tokens = tokenizer.encode_all(&captions, self.recipe.text.tokens);
        let others = weights_of_others(&captions, prompts);
        self.stage(NAME, schedule).run(vs, |step| {
            let mut rng = self.rng(NAME, step);
            let (mut clips, mut own, mut fits) = (Vec::new(), Vec::new(), Vec::new());
            for (i, index) in draw(&mut rng, prompts.len(), schedule.batch).into_iter().enumerate() {
                let good = material.good.get(index as i64);
                let clip = match i % 6 {
                    0..=2 => good,
                    3 | 4 => material.spliced.get(index as i64),
                    _ if rng.random::<f64>() < 0.4 => still(&good, &mut rng),
                    _ => shuffled(&good, &mut rng),
                };
                clips.push(clip);
                let caption = captions.binary_search(&&*prompts[index].caption).unwrap_or_default();
                own.push(caption as i64);
                fits.push(if i % 6 < 3 { 1f32 } else { 0.0 });
            }
            let clips = seen_by_evaluators(&Tensor::stack(&clips, 0), &mut rng);
            let logits = reader.logits(&reader.embed_clips(&clips), &reader.embed_captions(&tokens));
            let own = Tensor::from_slice(&own);
            let is_own = logits.zeros_like().detach().scatter_value(1, &own.unsqueeze(1), 1.0);
            let labels = &is_own * Tensor::from_slice(&fits).unsqueeze(1);
            let weights = &is_own + others.index_select(0, &own);
            let loss =
                logits.binary_cross_entropy_with_logits(&labels, Some(&weights), None::<&Tensor>, tch::Reduction::Sum);
            loss / (2.0 * schedule.batch as f64)
        })
    }
}

/// What each caption (row) weighs against a clip of another: rows sum to 1, half of it on captions that differ in one
/// attribute. `[captions, captions]`
fn weights_of_others(captions: &[&str], prompts: &[Prompt]) -> Tensor {
    let attributes: BTreeMap<&str, Attributes> = prompts.iter().map(|p| (&*p.caption, p.attributes)).collect();
    let differences = |a: &str, b: &str| match (attributes.get(a), attributes.get(b)) {
        (Some(a), Some(b)) => [a.object != b.object, a.color != b.color, a.motion != b.motion]
            .into_iter()
            .filter(|&d| d)
            .count(),
        _ => 3,
    };
    let rows: Vec<f32> = captions
        .iter()
        .flat_map(|own| {
            let apart: Vec<usize> = captions.iter().map(|other| differences(own, other)).collect();
            let near = apart.iter().filter(|&&d| d == 1).count() as f32;
            let far = apart.iter().filter(|&&d| d > 1).count() as f32;
            apart.into_iter().map(move |d| match d {
                0 => 0.0,
                1 => {
                    if far > 0.0 {
                        0.5 / near
                    } else {
                        1.0 / near
                    }
                }
                _ => {
                    if near > 0.0 {
                        0.5 / far
                    } else {
                        1.0 / far
                    }
                }
            })
        })
        .collect();
    let count = captions.len() as i64;
    Tensor::from_slice(&rows).reshape([count, count])
}

fn only(vs: &nn::VarStore, prefix: &str) {
    for (name, variable) in vs.variables() {
        let _ = variable.set_requires_grad(name.starts_with(prefix));
    }
}

fn to_bytes(clips: &Tensor) -> Tensor {
    ((clips.clamp(-1.0, 1.0) + 1.0) * 127.5).round().to_kind(Kind::Uint8)
}

fn seen_by_evaluators(bytes: &Tensor, rng: &mut ChaCha8Rng) -> Tensor {
    let clips = bytes.to_kind(Kind::Float) / 127.5 - 1.0;
    // One small noise picture per clip, over all its frames: cheap, and a cue to nothing.
    let size = clips.size();
    let mut shape = size.clone();
    if let [_, _, time, ..] = shape.as_mut_slice()
        && size.len() == 5
    {
        *time = 1;
    }
    &clips + normal_from(rng, &shape, Device::Cpu) * PIXEL_NOISE
}

fn jittered(latents: &Tensor, rng: &mut ChaCha8Rng) -> Tensor {
    let strengths: Vec<f32> = (0..latents.size()[0])
        .map(|_| (rng.random::<f64>() * LATENT_NOISE) as f32)
        .collect();
    latents + normal_from(rng, &latents.size(), Device::Cpu) * Tensor::from_slice(&strengths).reshape([-1, 1, 1, 1, 1])
}

/// Each clip cut into two to five pieces along its latent frames, every piece after the first from another clip: of
/// what the caption names mostly, of anything else. This is what a backbone without temporal layers yields.
fn splice(coded: &Coded<'_>, rng: &mut ChaCha8Rng) -> Tensor {
    let (count, length) = (coded.prompts.len(), coded.latents.size()[2]);
    let clips: Vec<Tensor> = (0..count)
        .map(|index| {
            let twins: Vec<usize> = (0..count)
                .filter(|&other| other != index && coded.prompts[other].attributes == coded.prompts[index].attributes)
                .collect();
            let mut cuts: Vec<i64> = (1..length).collect();
            cuts.shuffle(rng);
            cuts.truncate(rng.random_range(1..length as usize));
            let mut from = index;
            let frames: Vec<Tensor> = (0..length)
                .map(|at| {
                    if cuts.contains(&at) {
                        let same = !twins.is_empty() && rng.random::<f64>() < 0.8;
                        from = if same {
                            twins[rng.random_range(0..twins.len())]
                        } else {
                            rng.random_range(0..count)
                        };
                    }
                    coded.latents.get(from as i64).select(1, at)
                })
                .collect();
            Tensor::stack(&frames, 1)
        })
        .collect();
    Tensor::stack(&clips, 0)
}

/// Latents that show nothing: mostly noise, or half of one frame and half of another clip's.
fn blank(latents: &Tensor, rng: &mut ChaCha8Rng) -> Tensor {
    let count = latents.size()[0] as usize;
    let clips: Vec<Tensor> = (0..count)
        .map(|index| {
            let clip = latents.get(index as i64);
            if rng.random::<f64>() < 0.4 {
                return (clip + latents.get(rng.random_range(0..count) as i64)) * 0.5;
            }
            let t = 0.6 + 0.4 * rng.random::<f64>();
            let offset = 0.5 * standard_normal(rng);
            clip * (1.0 - t) + normal_from(rng, &latents.size()[1..], Device::Cpu) * t + offset * t
        })
        .collect();
    Tensor::stack(&clips, 0)
}

/// One frame all the time.
fn still(clip: &Tensor, rng: &mut ChaCha8Rng) -> Tensor {
    let at = rng.random_range(0..FRAMES as i64);
    clip.narrow(1, at, 1).expand_as(clip)
}

/// Frames in another order: single ones, or groups of four as the latents hold them.
fn shuffled(clip: &Tensor, rng: &mut ChaCha8Rng) -> Tensor {
    let group = if rng.random::<f64>() < 0.5 { 1 } else { 4 };
    let mut groups: Vec<Vec<i64>> = (0..FRAMES as i64)
        .collect::<Vec<_>>()
        .chunks(group)
        .map(<[i64]>::to_vec)
        .collect();
    let in_order = groups.clone();
    let reversed: Vec<Vec<i64>> = groups.iter().rev().cloned().collect();
    // Backwards is another motion, in order is none of our business: both would be called bad wrongly or too easily.
    while groups == in_order || groups == reversed {
        groups.shuffle(rng);
    }
    clip.index_select(1, &Tensor::from_slice(&groups.concat()))
}

/// What the evaluators get right on clips they were not trained on.
fn accuracies(
    evaluators: &Evaluators,
    material: &Material,
    prompts: &[Prompt],
    all: &[Prompt],
) -> BTreeMap<String, f64> {
    let mut rng = crate::models::seeded::generator(0, 0);
    let mut means: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    let mut note = |name: &str, value: f64| means.entry(name.to_owned()).or_default().push(value);
    for (index, prompt) in prompts.iter().enumerate() {
        let bytes = material.good.get(index as i64);
        let fits = |bytes: &Tensor, prompt: &Prompt| {
            let clip = (bytes.to_kind(Kind::Float) / 127.5 - 1.0).unsqueeze(0);
            evaluators.read(&clip, prompt)
        };
        let good = fits(&bytes, prompt);
        note("object_class", good.object_class);
        if let Some(color) = good.color {
            note("color", color);
        }
        note("consistency_good", f64::from(good.overall_consistency >= 0.5));
        let bad = [
            ("consistency_static", fits(&still(&bytes, &mut rng), prompt)),
            ("consistency_shuffled", fits(&shuffled(&bytes, &mut rng), prompt)),
            ("consistency_spliced", fits(&material.spliced.get(index as i64), prompt)),
        ];
        for (name, reading) in bad {
            note(name, f64::from(reading.overall_consistency < 0.5));
        }
        for (attribute, name) in ["object", "color", "motion"].iter().enumerate() {
            if let Some(other) = differing(prompt, all, attribute) {
                let reading = fits(&bytes, other);
                note(
                    &format!("consistency_wrong_{name}"),
                    f64::from(reading.overall_consistency < 0.5),
                );
            }
        }
    }
    let mut found: BTreeMap<String, f64> = means
        .into_iter()
        .map(|(name, values)| (name, values.iter().sum::<f64>() / values.len() as f64))
        .collect();
    // Half the weight on good clips, half on the kinds of bad ones.
    let bad: Vec<f64> = found
        .iter()
        .filter(|(name, _)| name.starts_with("consistency_") && *name != "consistency_good")
        .map(|(_, value)| *value)
        .collect();
    let bad = bad.iter().sum::<f64>() / bad.len().max(1) as f64;
    let both = (found.get("consistency_good").copied().unwrap_or(0.0) + bad) / 2.0;
    found.insert("overall_consistency".to_owned(), both);
    found
}

/// A prompt that differs in one attribute (0 object, 1 colour, 2 motion) and in nothing else.
fn differing<'a>(prompt: &Prompt, all: &'a [Prompt], attribute: usize) -> Option<&'a Prompt> {
    let key = |p: &Prompt| [Some(p.attributes.object), Some(p.attributes.color), p.attributes.motion];
    let mine = key(prompt);
    all.iter()
        .find(|other| (0..3).all(|a| (mine[a] == key(other)[a]) != (a == attribute)))
}
