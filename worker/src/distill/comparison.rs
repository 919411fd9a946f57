//! The distilled model beside the diffusion model it came from: scores over the same prompts and seeds, and the time of
//! denoising.

use std::time::Instant;

use lut::{SampleError, Samples};
use protocol::jobs::ResultTable;
use search_spaces::{Estimate, Evaluation};
use tch::{Device, Kind, Tensor};

use crate::flow::Sampler;
use crate::models::UNet;
use crate::models::seeded::normal;
use crate::scoring::{Paired, Score, paired};

/// Steps of a sample that the paper's Table 5 compares.
const TABLE_STEPS: [u32; 3] = [1, 2, 4];
/// Clips that are denoised together when it is timed.
const CLIPS: i64 = 8;

/// Why the models could not be compared.
#[derive(Debug, thiserror::Error)]
pub enum ComparisonError<E: std::error::Error + 'static> {
    /// A model could not be scored.
    #[error(transparent)]
    Score(E),
    /// The clock gave no number.
    #[error("the clock: {0}")]
    Clock(#[from] SampleError),
}

/// Scores a model; hears the number of the score and of how many it is.
pub type ScoreModel<'s, E> = dyn FnMut(&UNet, &Evaluation, (usize, usize)) -> Result<Score, E> + 's;

/// The models to compare, and how.
#[derive(Debug, Clone, Copy)]
pub struct Comparison<'a> {
    /// The diffusion model.
    pub teacher: &'a UNet,
    /// The distilled one.
    pub student: &'a UNet,
    /// How the diffusion model is scored.
    pub evaluation: &'a Evaluation,
    /// Steps that the distilled model was made for.
    pub steps: u32,
    /// Shape of one clip's latents: `[channels, frames, height, width]`.
    pub latents: [i64; 4],
    /// Tokens of a text and their width.
    pub text: [i64; 2],
    /// Where everything is.
    pub device: Device,
    /// Pairs of timed samples.
    pub repeats: u32,
}

/// What was found.
#[derive(Debug)]
pub struct Compared {
    /// The diffusion model, guided.
    pub teacher: Score,
    /// The distilled one by steps, without guidance.
    pub student: Vec<(u32, Score)>,
    /// How many times faster the distilled model denoises, each pair timed in turn.
    pub speed_up: Samples,
    evaluation: Evaluation,
    steps: u32,
}

impl Comparison<'_> {
    /// Scores the diffusion model, then the distilled one at 1, 2 and 4 steps and those it was made for, and times both.
    ///
    /// # Errors
    /// What `score` says.
    pub fn run<E: std::error::Error + 'static>(
        &self,
        score: &mut ScoreModel<'_, E>,
    ) -> Result<Compared, ComparisonError<E>> {
        let mut all_steps = TABLE_STEPS.to_vec();
        all_steps.push(self.steps);
        all_steps.sort_unstable();
        all_steps.dedup();
        let of = all_steps.len() + 1;
        let teacher = score(self.teacher, self.evaluation, (0, of)).map_err(ComparisonError::Score)?;
        let mut student = Vec::new();
        for (i, steps) in all_steps.into_iter().enumerate() {
            let evaluation = self.unguided(steps);
            let scored = score(self.student, &evaluation, (i + 1, of)).map_err(ComparisonError::Score)?;
            student.push((steps, scored));
        }
        Ok(Compared {
            teacher,
            student,
            speed_up: self.speed_up()?,
            evaluation: self.evaluation.clone(),
            steps: self.steps,
        })
    }

    fn unguided(&self, steps: u32) -> Evaluation {
        Evaluation {
            sample_steps: steps,
            guidance: Sampler::DISTILLED.guidance,
            ..self.evaluation.clone()
        }
    }

    fn speed_up(&self) -> Result<Samples, SampleError> {
        let sampler = |evaluation: &Evaluation| Sampler {
            steps: evaluation.sample_steps,
            shift: evaluation.training.timestep_shift,
            guidance: evaluation.guidance,
        };
        let subjects = [
            (self.teacher, sampler(self.evaluation)),
            (self.student, sampler(&self.unguided(self.steps))),
        ];
        denoise_speed_up(subjects, self.latents, self.text, self.device, self.repeats)
    }
}

/// How many times longer the first takes than the second to denoise 8 clips together, pair by pair in turn, after one
/// pair that is not counted.
///
/// # Errors
/// Where the clock gives no number.
pub fn denoise_speed_up(
    subjects: [(&UNet, Sampler); 2],
    latents: [i64; 4],
    text: [i64; 2],
    device: Device,
    repeats: u32,
) -> Result<Samples, SampleError> {
    let [channels, frames, height, width] = latents;
    let noise = normal(&[CLIPS, channels, frames, height, width], 1, Device::Cpu).to_device(device);
    let text = normal(&[CLIPS, text[0], text[1]], 2, Device::Cpu).to_device(device);
    let null = text.narrow(0, 0, 1);
    let seconds = |which: usize| {
        let (unet, sampler) = &subjects[which];
        let started = Instant::now();
        let clips: Tensor = sampler.sample(unet, &noise, &text, &null);
        // Reading a number waits for an accelerator to finish.
        let _ = clips.mean(Kind::Float).double_value(&[]);
        started.elapsed().as_secs_f64()
    };
    let mut ratios = Vec::new();
    for pair in 0..=repeats {
        // Whoever runs first finds the caches as the other left them.
        let mut taken = [0.0; 2];
        for which in if pair.is_multiple_of(2) { [0, 1] } else { [1, 0] } {
            taken[which] = seconds(which);
        }
        if pair > 0 {
            ratios.push(taken[0] / taken[1]);
        }
    }
    Samples::new(ratios)
}

impl Compared {
    /// The distilled model's score at the steps it was made for.
    #[must_use]
    pub fn score(&self) -> Option<&Score> {
        self.at(self.steps)
    }

    fn at(&self, steps: u32) -> Option<&Score> {
        self.student.iter().find(|(of, _)| *of == steps).map(|(_, score)| score)
    }

    /// The distilled model at some steps against the diffusion model.
    #[must_use]
    pub fn paired(&self, steps: u32) -> Option<Paired> {
        let score = self.at(steps)?;
        Some(paired(
            &score.per_prompt,
            &self.teacher.per_prompt,
            &self.evaluation.dimensions,
        ))
    }

    /// The figures by name: those of the distilled model plain, those of the diffusion model after `teacher_`.
    #[must_use]
    pub fn figures(&self) -> Vec<(String, Estimate)> {
        let own = self.score().into_iter().flat_map(|score| score.metrics.clone());
        let teacher = self.teacher.metrics.iter();
        let teacher = teacher.map(|(name, figure)| (format!("teacher_{name}"), *figure));
        let mut all: Vec<(String, Estimate)> = own.chain(teacher).collect();
        for (steps, score) in &self.student {
            all.extend(
                score
                    .metrics
                    .get("quality")
                    .map(|figure| (format!("quality_{steps}_steps"), *figure)),
            );
        }
        if let Some(Paired { difference, ratio }) = self.paired(self.steps) {
            all.push(("quality_difference".to_owned(), difference));
            all.push(("quality_ratio".to_owned(), ratio));
        }
        all.extend(self.speed_up.median().map(|value| {
            let standard_error = self.speed_up.standard_error().unwrap_or(0.0);
            ("denoise_speed_up".to_owned(), Estimate { value, standard_error })
        }));
        all
    }

    /// Table 5 with the scores that `evaluator` has; columns of which there is no evaluator say so and stay empty.
    #[must_use]
    pub fn table(&self, evaluator: &str) -> ResultTable {
        const COLUMNS: [(&str, &str); 7] = [
            ("quality", "score"),
            ("overall_consistency", "overall consistency"),
            ("object_class", "object class"),
            ("color", "color"),
            ("dynamic_degree", "dynamic degree"),
            ("temporal_flickering", "temporal flickering"),
            ("aesthetic_quality", "aesthetic quality"),
        ];
        // Who it is, without how good.
        let who = evaluator.split(" (").next().unwrap_or(evaluator);
        let known = |name: &str| self.teacher.metrics.contains_key(name);
        let heading = |(name, title): (&str, &str)| match known(name) {
            true => format!("{title} ({who})"),
            false => format!("{title} (no evaluator)"),
        };
        let columns = ["model", "steps", "guidance"].map(str::to_owned).into_iter();
        let columns = columns.chain(COLUMNS.map(heading));
        let columns = columns
            .chain(["score against the diffusion model, 95 %".to_owned()])
            .collect();
        let row = |model: &str, steps: u32, guidance: f64, score: &Score, ratio: String| {
            let cell = |(name, _): (&str, &str)| {
                let figure = score.metrics.get(name);
                figure.map_or(String::new(), |figure| {
                    format!("{:.3} ± {:.3}", figure.value, figure.standard_error)
                })
            };
            let first = [model.to_owned(), steps.to_string(), guidance.to_string()].into_iter();
            first.chain(COLUMNS.map(cell)).chain([ratio]).collect()
        };
        let teacher = row(
            "diffusion",
            self.evaluation.sample_steps,
            self.evaluation.guidance,
            &self.teacher,
            String::new(),
        );
        let student = self.student.iter().map(|(steps, score)| {
            let ratio = self.paired(*steps).map_or(String::new(), |paired| {
                let [low, high] = interval(paired.ratio, score.per_prompt.len());
                format!("{:.3} [{low:.3}, {high:.3}]", paired.ratio.value)
            });
            row("distilled", *steps, Sampler::DISTILLED.guidance, score, ratio)
        });
        ResultTable {
            title: "Steps of the distilled model (Table 5)".to_owned(),
            columns,
            rows: std::iter::once(teacher).chain(student).collect(),
        }
    }
}

/// The ends of an estimate's 95 % interval over `prompts`: Student's law, by its series in 1/degrees of freedom
/// (Abramowitz & Stegun 1964, 26.7.5).
#[must_use]
pub fn interval(estimate: Estimate, prompts: usize) -> [f64; 2] {
    const Z: f64 = 1.959_964;
    let degrees = prompts.saturating_sub(1).max(1) as f64;
    let first = (Z.powi(3) + Z) / (4.0 * degrees);
    let second = (5.0 * Z.powi(5) + 16.0 * Z.powi(3) + 3.0 * Z) / (96.0 * degrees * degrees);
    let third = (3.0 * Z.powi(7) + 19.0 * Z.powi(5) + 17.0 * Z.powi(3) - 15.0 * Z) / (384.0 * degrees.powi(3));
    let half = (Z + first + second + third) * estimate.standard_error;
    [estimate.value - half, estimate.value + half]
}
