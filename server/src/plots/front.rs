//! The front: what to maximise against what to minimise.

mod draw;

use std::ops::Range;

use plotters::style::RGBColor;
use protocol::{
    Figure, Metrics,
    searches::{CandidateState, FrontView},
};

use super::{
    Format, PlotError,
    axis::{around, name_and_scale},
    canvas::render,
    colours::{MAIN, on_scale},
};

pub(super) use draw::grid;

/// Draws a front under a title: its points with their standard errors, coloured by a third objective where
/// there is one; verified figures joined to the predicted ones; limits; reference architectures.
///
/// # Errors
/// When the picture cannot be drawn or written.
pub fn front(front: &FrontView, title: &str, format: Format) -> Result<Vec<u8>, PlotError> {
    render(&FrontPicture::of(front, title), format)
}

/// A figure with its standard error, in the axis' unit.
#[derive(Debug, Clone, Copy)]
struct Value {
    at: f64,
    error: f64,
}

struct Mark {
    label: String,
    x: Value,
    y: Value,
    /// Where it was measured whole, and whether it is within the limits there.
    verified: Option<(Value, bool)>,
    shade: Option<f64>,
}

/// A third objective, shown as colour.
struct Shade {
    name: String,
    range: Range<f64>,
}

struct FrontPicture {
    title: String,
    x_name: String,
    y_name: String,
    points: Vec<Mark>,
    references: Vec<Mark>,
    /// References without figures, each with the reason.
    missing: Vec<String>,
    limit: Option<f64>,
    shade: Option<Shade>,
    /// Whether more of `y` is better.
    y_rises: bool,
}

impl FrontPicture {
    fn of(front: &FrontView, title: &str) -> Self {
        let rises = |direction: &str| direction.starts_with("max");
        let objectives = &front.objectives;
        let y = objectives
            .iter()
            .position(|objective| rises(&objective.direction))
            .unwrap_or(0);
        let others: Vec<usize> = (0..objectives.len()).filter(|index| *index != y).collect();
        let metric = |index: Option<&usize>| {
            index
                .and_then(|index| objectives.get(*index))
                .map(|found| found.metric.as_str())
        };
        let (y_metric, x_metric) = (
            metric(Some(&y)).unwrap_or("quality"),
            metric(others.first()).unwrap_or("latency_ms"),
        );
        let shade_metric = metric(others.get(1));
        let ((x_name, x_scale), (y_name, y_scale)) = (name_and_scale(x_metric), name_and_scale(y_metric));
        let mark = |label: String, metrics: &Metrics, verified: &Metrics, within: Option<bool>| {
            let shade = shade_metric.and_then(|metric| Some(metrics.get(metric)?.value / name_and_scale(metric).1));
            Some(Mark {
                label,
                x: scaled(metrics.get(x_metric)?, x_scale),
                y: scaled(metrics.get(y_metric)?, y_scale),
                verified: verified
                    .get(x_metric)
                    .map(|found| (scaled(found, x_scale), within != Some(false))),
                shade,
            })
        };
        let points: Vec<Mark> = front
            .points
            .iter()
            .filter_map(|point| {
                mark(
                    format!("{}", point.number),
                    &point.metrics,
                    &point.verified,
                    point.verified_within_limits,
                )
            })
            .collect();
        let (mut references, mut missing) = (Vec::new(), Vec::new());
        for candidate in &front.references {
            let name = candidate
                .reference
                .clone()
                .unwrap_or_else(|| candidate.architecture.clone());
            let mut metrics = candidate.predicted.clone();
            metrics.extend(candidate.measured.clone());
            match mark(name.clone(), &metrics, &candidate.verified, None) {
                Some(found) => references.push(found),
                None => missing.push(format!(
                    "{name}: {}",
                    reason(candidate.state, candidate.state_reason.as_deref())
                )),
            }
        }
        let shade = shade_metric.and_then(|metric| {
            let values = || points.iter().filter_map(|point| point.shade);
            let (low, high) = values().fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
                (low.min(value), high.max(value))
            });
            (low <= high).then(|| Shade {
                name: name_and_scale(metric).0,
                range: low..high,
            })
        });
        let limit = front
            .limits
            .iter()
            .find(|limit| limit.metric == x_metric)
            .map(|limit| limit.at_most / x_scale);
        let y_rises = objectives.get(y).is_none_or(|objective| rises(&objective.direction));
        Self {
            title: title.to_owned(),
            x_name,
            y_name,
            points,
            references,
            missing,
            limit,
            shade,
            y_rises,
        }
    }

    fn x_range(&self) -> Range<f64> {
        let marks = self.points.iter().chain(&self.references);
        let values = marks.flat_map(|mark| {
            let verified = mark.verified.iter().map(|(value, _)| value.at);
            [mark.x.at - mark.x.error, mark.x.at + mark.x.error]
                .into_iter()
                .chain(verified)
        });
        let range = around(values, true);
        match self.limit {
            // A limit far beyond all points would press them into a corner.
            Some(limit) if limit < 2.0 * range.end => range.start..range.end.max(limit * 1.06),
            _ => range,
        }
    }

    fn y_range(&self) -> Range<f64> {
        let marks = self.points.iter().chain(&self.references);
        around(
            marks.flat_map(|mark| [mark.y.at - mark.y.error, mark.y.at + mark.y.error]),
            false,
        )
    }

    /// The outline of what is best in these two objectives alone, left to right.
    fn outline(&self) -> Vec<(f64, f64)> {
        let mut points: Vec<(f64, f64)> = self.points.iter().map(|point| (point.x.at, point.y.at)).collect();
        points.sort_by(|one, other| one.0.total_cmp(&other.0).then(other.1.total_cmp(&one.1)));
        let mut steps: Vec<(f64, f64)> = Vec::new();
        for (x, y) in points {
            match steps.last().copied() {
                Some((_, best)) if (y > best) != self.y_rises || y == best => {}
                Some((_, best)) => steps.extend([(x, best), (x, y)]),
                None => steps.push((x, y)),
            }
        }
        steps
    }

    fn colour(&self, mark: &Mark) -> RGBColor {
        match (&self.shade, mark.shade) {
            (Some(shade), Some(value)) if shade.range.end > shade.range.start => {
                on_scale((value - shade.range.start) / (shade.range.end - shade.range.start))
            }
            _ => MAIN,
        }
    }
}

fn scaled(figure: &Figure, scale: f64) -> Value {
    Value {
        at: figure.value / scale,
        error: figure.standard_error / scale,
    }
}

fn reason(state: CandidateState, reason: Option<&str>) -> String {
    let state = match state {
        CandidateState::Proposed | CandidateState::Evaluating => "not evaluated yet",
        CandidateState::Evaluated => "without a figure for an axis",
        CandidateState::Infeasible => "infeasible",
        CandidateState::Failed => "failed",
    };
    reason.map_or_else(|| state.to_owned(), |reason| format!("{state}, {reason}"))
}

#[cfg(test)]
mod tests {
    use protocol::{
        CandidateId, SearchId,
        searches::{CandidateView, FrontPoint, HypervolumePoint, LimitView, ObjectiveView},
    };
    use uuid::Uuid;

    use super::*;
    use crate::plots::hypervolume;

    fn metrics(figures: &[(&str, f64, f64)]) -> Metrics {
        let figure = |value, standard_error| Figure { value, standard_error };
        figures
            .iter()
            .map(|(name, value, error)| ((*name).to_owned(), figure(*value, *error)))
            .collect()
    }

    fn point(number: u64, quality: f64, latency: f64, mebibytes: f64) -> FrontPoint {
        let bytes = mebibytes * 1_048_576.0;
        FrontPoint {
            candidate_id: CandidateId(Uuid::nil()),
            number,
            architecture: "-.c1.-.-.s3".to_owned(),
            reference: None,
            metrics: metrics(&[
                ("quality", quality, 0.021),
                ("latency_ms", latency, 0.4),
                ("peak_memory_bytes", bytes, 0.0),
            ]),
            calibrated: Metrics::new(),
            verified: Metrics::new(),
            verified_within_limits: None,
        }
    }

    fn reference(number: u64, name: &str, measured: &[(&str, f64, f64)], reason: Option<&str>) -> CandidateView {
        CandidateView {
            id: CandidateId(Uuid::nil()),
            search_id: SearchId(Uuid::nil()),
            number,
            architecture: "s3.s3.s3.s3.s3".to_owned(),
            layers: Vec::new(),
            state: if reason.is_some() {
                CandidateState::Infeasible
            } else {
                CandidateState::Evaluated
            },
            state_reason: reason.map(str::to_owned),
            reference: Some(name.to_owned()),
            parent: None,
            action: None,
            why: None,
            predicted: Metrics::new(),
            calibrated: Metrics::new(),
            measured: metrics(measured),
            verified: Metrics::new(),
            out_of_memory: None,
            evaluator: None,
            on_front: false,
            job_id: None,
            device_seconds: None,
            artifacts: Vec::new(),
            created_at: chrono::DateTime::UNIX_EPOCH,
            evaluated_at: None,
        }
    }

    fn example() -> FrontView {
        let mut points = vec![
            point(14, 0.81, 41.0, 6.1),
            point(9, 0.74, 29.5, 5.2),
            point(22, 0.66, 21.0, 4.4),
            point(5, 0.52, 15.2, 4.6),
            point(17, 0.41, 12.8, 3.2),
            point(0, 0.22, 9.1, 2.9),
        ];
        points[0].verified = metrics(&[("latency_ms", 44.5, 0.3)]);
        points[0].verified_within_limits = Some(false);
        points[2].verified = metrics(&[("latency_ms", 19.8, 0.2)]);
        points[2].verified_within_limits = Some(true);
        let objective = |metric: &str, direction: &str| ObjectiveView {
            metric: metric.to_owned(),
            direction: direction.to_owned(),
            range: None,
        };
        let step = |evaluations, hypervolume| HypervolumePoint {
            evaluations,
            device_hours: 0.1,
            hypervolume,
        };
        FrontView {
            search_id: SearchId(Uuid::nil()),
            objectives: vec![
                objective("quality", "maximize"),
                objective("latency_ms", "minimize"),
                objective("peak_memory_bytes", "minimize"),
            ],
            limits: vec![LimitView {
                metric: "latency_ms".to_owned(),
                at_most: 43.0,
            }],
            points,
            references: vec![
                reference(
                    1,
                    "backbone alone",
                    &[("quality", 0.2, 0.02), ("latency_ms", 8.0, 0.1)],
                    None,
                ),
                reference(
                    2,
                    "AnimateDiff-like",
                    &[("quality", 0.47, 0.02), ("latency_ms", 25.0, 0.1)],
                    None,
                ),
                reference(
                    3,
                    "SelfAttention3D everywhere",
                    &[],
                    Some("out of memory on the device"),
                ),
            ],
            history: vec![
                step(1, 0.11),
                step(3, 0.2),
                step(4, 0.34),
                step(9, 0.41),
                step(15, 0.47),
                step(24, 0.48),
            ],
        }
    }

    #[test]
    fn the_front_shows_points_errors_limits_references_and_verified_figures() {
        let svg = String::from_utf8(front(&example(), "shapes-tiny on a test machine", Format::Svg).unwrap()).unwrap();
        for text in [
            "Quality",
            "Latency (ms)",
            "limit 43",
            "#14",
            "backbone alone",
            "out of memory on the device",
        ] {
            assert!(svg.contains(text), "{text} is missing");
        }
        insta::assert_snapshot!("front", svg);
        insta::assert_snapshot!(
            "hypervolume",
            String::from_utf8(hypervolume(&example(), "Hypervolume", Format::Svg).unwrap()).unwrap()
        );
    }

    #[test]
    fn a_picture_in_pixels_is_a_png_of_twice_the_size() {
        let png = front(&example(), "a front", Format::Png).unwrap();
        let picture = image::load_from_memory(&png).unwrap();
        assert_eq!((picture.width(), picture.height()), (1920, 2 * (600 + 16)));
        if let Some(folder) = std::env::var_os("TEMPONAS_SHOW_PLOTS") {
            let folder = std::path::PathBuf::from(folder);
            std::fs::write(folder.join("front.png"), png).unwrap();
            std::fs::write(
                folder.join("hypervolume.png"),
                hypervolume(&example(), "Hypervolume", Format::Png).unwrap(),
            )
            .unwrap();
        }
    }

    #[test]
    fn a_front_without_points_or_objectives_is_drawn_all_the_same() {
        let mut empty = example();
        (empty.points, empty.references, empty.history) = (Vec::new(), Vec::new(), Vec::new());
        assert!(front(&empty, "nothing yet", Format::Svg).is_ok());
        assert!(hypervolume(&empty, "nothing yet", Format::Svg).is_ok());
        empty.objectives.clear();
        assert!(front(&empty, "nothing at all", Format::Svg).is_ok());
    }

    #[test]
    fn the_outline_joins_only_what_is_best_in_both_objectives() {
        let mut with_third = example();
        with_third.points.push(point(30, 0.45, 30.0, 1.0));
        let picture = FrontPicture::of(&with_third, "");
        let outline = picture.outline();
        assert!(
            outline
                .windows(2)
                .all(|pair| pair[0].0 <= pair[1].0 && pair[0].1 <= pair[1].1),
            "{outline:?}"
        );
        assert!(!outline.contains(&(30.0, 0.45)));
    }
}
