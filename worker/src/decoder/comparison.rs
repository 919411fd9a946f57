//! An original decoder beside the compressed one: the columns of the paper's Table A1, and what they cost.

use std::ops::ControlFlow;

use lut::Samples;
use protocol::jobs::ResultTable;
use tch::{Device, Kind, Tensor};

use super::material::{Material, Network};
use crate::data::{DataError, Split};
use crate::models::seeded::normal;
use crate::models::vae::{CHUNK_FRAMES, Work};
use crate::profile::{InTurn, InTurnError, Progress, Settings, in_turn};
use crate::scoring::images::{Likeness, Lpips};
use crate::shim::count_macs;

/// What stands in the paper's Table A1: seconds on a phone, PSNR, SSIM, LPIPS, FloLPIPS.
const PAPER: [(&str, [&str; 5]); 2] = [
    (
        "Open-Sora (the paper's)",
        ["27200", "29.07", "0.8066", "0.1336", "0.1303"],
    ),
    (
        "SnapGen-V (the paper's)",
        ["500", "29.21", "0.8240", "0.0949", "0.0915"],
    ),
];

/// A figure with its standard error.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Mean {
    /// The mean.
    pub value: f64,
    /// Its standard error, of independent clips; 0 of one.
    pub standard_error: f64,
}

impl Mean {
    fn of(values: &[f64]) -> Self {
        let count = values.len().max(1) as f64;
        let value = values.iter().sum::<f64>() / count;
        let squares: f64 = values.iter().map(|x| (x - value).powi(2)).sum();
        Self {
            value,
            standard_error: (squares / (count - 1.0).max(1.0) / count).sqrt(),
        }
    }
}

/// How near both come to clips that were kept apart, clip by clip.
#[derive(Debug, Clone, PartialEq)]
pub struct Quality {
    /// Of the original decoder.
    pub original: Vec<Likeness>,
    /// Of the compressed one, of the same clips.
    pub compressed: Vec<Likeness>,
}

type Measure = fn(&Likeness) -> Option<f64>;
const MEASURES: [(&str, Measure); 3] = [
    ("psnr_db", |likeness| Some(likeness.psnr_db)),
    ("ssim", |likeness| Some(likeness.ssim)),
    ("lpips", |likeness| likeness.lpips),
];

impl Quality {
    fn mean(of: &[Likeness], measure: Measure) -> Option<Mean> {
        let values: Option<Vec<f64>> = of.iter().map(measure).collect();
        Some(Mean::of(&values?))
    }

    /// The compressed decoder's figure less the original's, clip by clip.
    fn difference(&self, measure: Measure) -> Option<Mean> {
        let pairs = self.compressed.iter().zip(&self.original);
        let values: Option<Vec<f64>> = pairs.map(|(new, old)| Some(measure(new)? - measure(old)?)).collect();
        Some(Mean::of(&values?))
    }

    /// PSNR of the compressed decoder less that of the original, in dB.
    #[must_use]
    pub fn psnr_difference_db(&self) -> Mean {
        let difference = self.difference(|likeness| Some(likeness.psnr_db));
        difference.unwrap_or(Mean {
            value: f64::NAN,
            standard_error: 0.0,
        })
    }
}

/// Both decoders side by side.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    /// How near they come.
    pub quality: Quality,
    /// Decoders of the original over time and of single frames, then those of the compressed VAE, for one clip.
    pub work: [[Work; 2]; 2],
    /// Over time, of single frames, and both, for one clip.
    pub times: [InTurn; 3],
    /// Frames, height and width of the clip.
    pub clip: [i64; 3],
}

/// Why decoders could not be compared.
#[derive(Debug, thiserror::Error)]
pub enum ComparisonError {
    /// Whoever asked does not want to wait any longer, or the clock gave no number.
    #[error(transparent)]
    Times(#[from] InTurnError),
    /// Clips cannot be read.
    #[error(transparent)]
    Data(#[from] DataError),
    /// What ran is not what the configuration says.
    #[error("decoding a clip took {seen} multiply-accumulates, the closed form of its configuration says {expected}")]
    Macs {
        /// Seen by the observer.
        seen: u64,
        /// By the closed form.
        expected: u64,
    },
}

/// Names of the two parts and of the whole in figures, as beginnings.
const PARTS: [&str; 3] = ["temporal_", "spatial_", ""];

/// Decodes up to `most` clips that were kept apart with both, and times both in turn on one clip.
///
/// # Errors
/// Where clips cannot be read, a decoder is not what its configuration says, or `progress` breaks off.
pub fn compare(
    material: &Material,
    compressed: &Network,
    lpips: Option<&Lpips>,
    most: usize,
    settings: &Settings,
    progress: Progress<'_>,
) -> Result<Comparison, ComparisonError> {
    let quality = quality(material, compressed, lpips, most, &mut |share| {
        progress(0.5 * share, "decoding clips kept apart")
    })?;
    let size = material.pictures.clip(Split::HeldOut, 0, None)?.size();
    let clip = [size[2], size[3], size[4]];
    let [frames, height, width] = clip;
    let networks = [&material.original, compressed];
    let latents = networks.map(|network| latents_of(network, clip));
    let mut work = [[Work::default(); 2]; 2];
    for ((network, latents), work) in networks.iter().zip(&latents).zip(&mut work) {
        let decode = || drop(tch::no_grad(|| network.vae.decode(latents, frames)));
        let ((), seen) = count_macs(decode);
        *work = network.config.decoder_work(frames, height / 8, width / 8);
        let expected = work[0].macs + work[1].macs;
        if seen != expected {
            return Err(ComparisonError::Macs { seen, expected });
        }
    }
    let runs = |which: usize| {
        let (network, latents) = (networks[which], &latents[which]);
        let per_frame = tch::no_grad(|| network.vae.decode_time(latents, frames));
        let over_time = move || drop(tch::no_grad(|| network.vae.decode_time(latents, frames)));
        let of_frames = move || drop(tch::no_grad(|| network.vae.decode_frames(&per_frame)));
        let both = move || drop(tch::no_grad(|| network.vae.decode(latents, frames)));
        (over_time, of_frames, both)
    };
    let (old, new) = (runs(0), runs(1));
    let mut part = 0;
    let mut timed = |subjects: [&dyn Fn(); 2]| {
        part += 1;
        in_turn(settings, subjects, &mut |share, status| {
            progress(0.5 + (f64::from(part) - 1.0 + share) / 6.0, status)
        })
    };
    let times = [
        timed([&old.0, &new.0])?,
        timed([&old.1, &new.1])?,
        timed([&old.2, &new.2])?,
    ];
    Ok(Comparison {
        quality,
        work,
        times,
        clip,
    })
}

/// Latents of noise: what they hold does not change how long they take.
fn latents_of(network: &Network, [frames, height, width]: [i64; 3]) -> Tensor {
    let times = match network.config.temporal {
        Some(_) => crate::models::vae::latent_frames(frames),
        None => frames,
    };
    let channels = network.config.spatial.latent_channels;
    let device = network.vs.device();
    normal(&[1, channels, times, height / 8, width / 8], 1, Device::Cpu).to_device(device)
}

fn quality(
    material: &Material,
    compressed: &Network,
    lpips: Option<&Lpips>,
    most: usize,
    progress: &mut dyn FnMut(f64) -> ControlFlow<()>,
) -> Result<Quality, ComparisonError> {
    let all = material.pictures.clips(Split::HeldOut);
    let count = all.min(most);
    let device = material.original.vs.device();
    let (mut of_original, mut of_compressed) = (Vec::new(), Vec::new());
    for i in 0..count {
        if progress(i as f64 / count as f64).is_break() {
            return Err(InTurnError::Interrupted.into());
        }
        let clip = material
            .pictures
            .clip(Split::HeldOut, i * all / count, None)?
            .to_device(device);
        let latents = tch::no_grad(|| material.original.vae.encode(&clip));
        let frames = |clip: &Tensor| clip.get(0).transpose(0, 1).to_kind(Kind::Float).contiguous();
        let wanted = frames(&clip);
        let likeness = |network: &Network| {
            let decoded = tch::no_grad(|| network.vae.decode(&latents, clip.size()[2]));
            Likeness::of(&frames(&decoded), &wanted, lpips)
        };
        of_original.push(likeness(&material.original));
        of_compressed.push(likeness(compressed));
    }
    Ok(Quality {
        original: of_original,
        compressed: of_compressed,
    })
}

impl Comparison {
    /// The figures by name, with standard errors where they are measured. Those of the original have `original_` in
    /// front; those of the decoders over time and of single frames `temporal_` and `spatial_`.
    #[must_use]
    pub fn figures(&self) -> Vec<(String, f64, f64)> {
        let mut figures = Vec::new();
        let mut told = |name: String, mean: Option<Mean>| {
            figures.extend(mean.map(|mean| (name, mean.value, mean.standard_error)));
        };
        let Quality { original, compressed } = &self.quality;
        for (name, measure) in MEASURES {
            told(name.to_owned(), Quality::mean(compressed, measure));
            told(format!("original_{name}"), Quality::mean(original, measure));
            told(format!("{name}_difference"), self.quality.difference(measure));
        }
        let exact = |value: f64| {
            Some(Mean {
                value,
                standard_error: 0.0,
            })
        };
        for (i, part) in PARTS.into_iter().enumerate() {
            let [old, new] = self.work.map(|work| if i < 2 { work[i] } else { work[0] + work[1] });
            told(format!("{part}parameters"), exact(new.parameters as f64));
            told(format!("original_{part}parameters"), exact(old.parameters as f64));
            told(format!("{part}macs"), exact(new.macs as f64));
            told(format!("original_{part}macs"), exact(old.macs as f64));
            let InTurn {
                first_ms,
                second_ms,
                ratio,
            } = &self.times[i];
            told(format!("{part}latency_ms"), median(second_ms));
            told(format!("original_{part}latency_ms"), median(first_ms));
            told(format!("{part}speed_up"), median(ratio));
        }
        figures
    }

    /// Table A1 with the paper's rows below: FloLPIPS stays empty, as no worker has its flow network's weights.
    #[must_use]
    pub fn table(&self, runtime: &str) -> ResultTable {
        let [frames, height, width] = self.clip;
        let columns = [
            "decoder",
            "time (ms)",
            "PSNR (dB)",
            "SSIM",
            "LPIPS",
            "FloLPIPS",
            "parameters (M)",
            "MACs (G)",
        ];
        let row = |name: &str, side: usize, of: &[Likeness]| {
            let work = self.work[side][0] + self.work[side][1];
            let ms = [&self.times[2].first_ms, &self.times[2].second_ms][side];
            let measure = |i: usize, digits: usize| match Quality::mean(of, MEASURES[i].1) {
                Some(mean) => format!("{:.digits$} ± {:.digits$}", mean.value, mean.standard_error),
                None => String::new(),
            };
            vec![
                name.to_owned(),
                ms.median().map_or(String::new(), |ms| format!("{ms:.1}")),
                measure(0, 2),
                measure(1, 4),
                measure(2, 4),
                String::new(),
                format!("{:.3}", work.parameters as f64 / 1e6),
                format!("{:.3}", work.macs as f64 / 1e9),
            ]
        };
        let of_paper = |(name, cells): (&str, [&str; 5])| {
            let cells = std::iter::once(name).chain(cells).chain(["", ""]);
            cells.map(str::to_owned).collect()
        };
        let Quality { original, compressed } = &self.quality;
        let ours = [row("original", 0, original), row("compressed", 1, compressed)];
        ResultTable {
            title: format!(
                "The VAE's decoder (Table A1): {frames} frames of {height}×{width} in {runtime}; the paper's rows are \
                 {CHUNK_FRAMES} frames of 512×512 on a phone"
            ),
            columns: columns.map(str::to_owned).to_vec(),
            rows: ours.into_iter().chain(PAPER.map(of_paper)).collect(),
        }
    }
}

fn median(samples: &Samples) -> Option<Mean> {
    Some(Mean {
        value: samples.median()?,
        standard_error: samples.standard_error().unwrap_or(0.0),
    })
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;

    use super::*;
    use crate::decoder::plan::Plan;
    use crate::decoder::tests::{RECIPE, material};

    /// 1, 2, 3: mean 2, sample variance 1, standard error 1/√3; differences have errors of their own.
    #[test]
    fn differences_are_taken_clip_by_clip() {
        let likeness = |psnr_db: f64, lpips| Likeness {
            psnr_db,
            ssim: 0.5,
            lpips,
        };
        let quality = Quality {
            original: [1.0, 2.0, 3.0].map(|db| likeness(db, Some(0.1))).to_vec(),
            compressed: [0.5, 1.5, 2.5].map(|db| likeness(db, None)).to_vec(),
        };
        let mean = Quality::mean(&quality.original, MEASURES[0].1).unwrap();
        assert!((mean.value - 2.0).abs() < 1e-12 && (mean.standard_error - 1.0 / 3f64.sqrt()).abs() < 1e-12);
        let difference = quality.psnr_difference_db();
        assert!((difference.value + 0.5).abs() < 1e-12 && difference.standard_error < 1e-12);
        assert_eq!(quality.difference(MEASURES[2].1), None, "nothing is made up");
    }

    #[test]
    fn both_decoders_are_measured_and_what_no_worker_has_stays_empty() {
        let material = material();
        let plan = Plan::parse(RECIPE, 5).unwrap();
        let config = plan.config(&material.original.config).unwrap();
        let (compressed, _) = material.original.compressed(&config, 5).unwrap();
        let settings = Settings {
            samples: 3,
            ..Settings::new(Device::Cpu, 1, u64::MAX)
        };
        let found = compare(&material, &compressed, None, 2, &settings, &mut |_, _| {
            ControlFlow::Continue(())
        })
        .unwrap();
        let figures = found.figures();
        let figure = |name: &str| {
            figures
                .iter()
                .find(|(found, ..)| found == name)
                .map(|(_, value, _)| *value)
        };
        assert!(
            figure("original_psnr_db") > figure("psnr_db"),
            "nothing was trained yet"
        );
        assert_eq!(figure("lpips"), None);
        assert!(figure("spatial_macs").unwrap() < figure("original_spatial_macs").unwrap() / 3.0);
        assert!(
            ["speed_up", "temporal_latency_ms"]
                .map(|name| figure(name).unwrap() > 0.0)
                .iter()
                .all(|found| *found)
        );
        let table = found.table("libtorch");
        assert!(table.rows.iter().all(|row| row.len() == table.columns.len()));
        assert!(table.rows[..2].iter().all(|row| row[4].is_empty() && row[5].is_empty()));
        assert_eq!(table.rows[3][5], "0.0915");
        let error = compare(&material, &compressed, None, 2, &settings, &mut |_, _| {
            ControlFlow::Break(())
        })
        .unwrap_err();
        assert!(matches!(error, ComparisonError::Times(InTurnError::Interrupted)));
    }
}
