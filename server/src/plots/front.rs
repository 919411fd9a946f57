//! The front: what to maximise against what to minimise.

use std::ops::Range;

use plotters::{
    chart::{ChartBuilder, ChartContext},
    coord::{Shift, types::RangedCoordf64},
    element::{Circle, DashedPathElement, EmptyElement, PathElement, Polygon, Rectangle, Text},
    prelude::{Cartesian2d, DrawingArea, DrawingBackend},
    style::{
        Color, RGBColor, ShapeStyle, TRANSPARENT, WHITE,
        text_anchor::{HPos, Pos, VPos},
    },
};
use protocol::{
    Figure, Metrics,
    searches::{CandidateState, FrontView},
};

use super::{
    Format, PlotError,
    axis::{around, name_and_scale, tick},
    canvas::{Outcome, Pen, Picture, render},
    colours::{AXIS, FAINT_INK, GRID, INK, LIMIT, MAIN, REFERENCE, on_scale},
};

/// A number beside a point takes this share of the chart's width and height.
const LABEL: (f64, f64) = (0.045, 0.032);

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

/// Keeps numbers from being written over each other.
struct Labels {
    taken: Vec<(f64, f64)>,
    x: Range<f64>,
    y: Range<f64>,
}

impl Labels {
    /// Whether there is room for a mark's number; if so it is taken.
    fn is_free(&mut self, mark: &Mark) -> bool {
        let share = |value: f64, range: &Range<f64>| (value - range.start) / (range.end - range.start);
        let at = (share(mark.x.at, &self.x), share(mark.y.at, &self.y));
        let overlaps = |other: &(f64, f64)| (at.0 - other.0).abs() < LABEL.0 && (at.1 - other.1).abs() < LABEL.1;
        let is_free = !self.taken.iter().any(overlaps);
        if is_free {
            self.taken.push(at);
        }
        is_free
    }
}

type Chart<'a, DB> = ChartContext<'a, DB, Cartesian2d<RangedCoordf64, RangedCoordf64>>;

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

impl Picture for FrontPicture {
    fn size(&self) -> (u32, u32) {
        (960, 600 + 16 * u32::try_from(self.missing.len()).unwrap_or(0))
    }

    fn draw<DB: DrawingBackend>(&self, area: &DrawingArea<DB, Shift>, pen: Pen) -> Outcome<DB> {
        let (_, height) = self.size();
        let notes = 16 * i32::try_from(self.missing.len()).unwrap_or(0);
        area.draw(&Text::new(
            self.title.clone(),
            (pen.px(28), pen.px(22)),
            pen.heading(19),
        ))?;
        let mut subtitle = format!("{} points on the front · bars: one standard error", self.points.len());
        if self.points.iter().any(|point| point.verified.is_some()) {
            subtitle += " · diamonds: measured whole on the device";
        }
        area.draw(&Text::new(subtitle, (pen.px(28), pen.px(48)), pen.text(13, FAINT_INK)))?;
        for (line, note) in (0..).zip(&self.missing) {
            let at = (pen.px(28), pen.px(height as i32 - notes - 8 + 16 * line));
            area.draw(&Text::new(format!("not drawn — {note}"), at, pen.text(12, FAINT_INK)))?;
        }
        let (x_range, y_range) = (self.x_range(), self.y_range());
        let mut chart = ChartBuilder::on(area)
            .margin_top(pen.px(78))
            .margin_left(pen.px(20))
            .margin_right(pen.px(if self.shade.is_some() { 112 } else { 32 }))
            .margin_bottom(pen.px(18 + notes))
            .x_label_area_size(pen.px(50))
            .y_label_area_size(pen.px(64))
            .build_cartesian_2d(x_range.clone(), y_range.clone())?;
        grid(&mut chart, &self.x_name, &self.y_name, pen)?;
        self.draw_limit(&mut chart, &x_range, &y_range, pen)?;
        chart.draw_series([PathElement::new(
            self.outline(),
            MAIN.mix(0.55).stroke_width(pen.size(2)),
        )])?;
        self.draw_references(&mut chart, pen)?;
        self.draw_points(&mut chart, pen)?;
        if let Some(shade) = &self.shade {
            draw_scale(area, shade, self.size(), notes, pen)?;
        }
        Ok(())
    }
}

impl FrontPicture {
    fn draw_limit<DB: DrawingBackend>(
        &self,
        chart: &mut Chart<'_, DB>,
        x: &Range<f64>,
        y: &Range<f64>,
        pen: Pen,
    ) -> Outcome<DB> {
        let Some(limit) = self.limit.filter(|limit| x.contains(limit)) else {
            return Ok(());
        };
        chart.draw_series([Rectangle::new(
            [(limit, y.start), (x.end, y.end)],
            LIMIT.mix(0.06).filled(),
        )])?;
        let ends = vec![(limit, y.start), (limit, y.end)];
        let line = DashedPathElement::new(ends, pen.size(6), pen.size(5), LIMIT.stroke_width(pen.size(1)));
        chart.draw_series([line])?;
        let style = pen.text(12, LIMIT).pos(Pos::new(HPos::Right, VPos::Top));
        let label = Text::new(format!("limit {}", tick(limit)), (pen.px(-6), pen.px(6)), style);
        chart.draw_series([EmptyElement::at((limit, y.end)) + label])?;
        Ok(())
    }

    fn draw_references<DB: DrawingBackend>(&self, chart: &mut Chart<'_, DB>, pen: Pen) -> Outcome<DB> {
        for mark in &self.references {
            bars(chart, mark, REFERENCE.stroke_width(pen.size(1)), pen)?;
            let side = pen.px(5);
            let square = Rectangle::new([(-side, -side), (side, side)], REFERENCE.filled());
            let style = pen.text(11, FAINT_INK).pos(Pos::new(HPos::Left, VPos::Center));
            let label = Text::new(mark.label.clone(), (pen.px(10), 0), style);
            let at = EmptyElement::at((mark.x.at, mark.y.at));
            chart.draw_series([at + square + label])?;
        }
        Ok(())
    }

    fn draw_points<DB: DrawingBackend>(&self, chart: &mut Chart<'_, DB>, pen: Pen) -> Outcome<DB> {
        for mark in &self.points {
            let Some((verified, within)) = mark.verified else {
                continue;
            };
            let colour = if within { INK } else { LIMIT };
            let (from, to) = ((mark.x.at, mark.y.at), (verified.at, mark.y.at));
            chart.draw_series([PathElement::new(
                vec![from, to],
                colour.mix(0.6).stroke_width(pen.size(1)),
            )])?;
            let r = pen.px(7);
            let corners = vec![(0, -r), (r, 0), (0, r), (-r, 0)];
            let mut outline = corners.clone();
            outline.push((0, -r));
            let at = EmptyElement::at(to);
            let diamond = Polygon::new(corners, WHITE.filled());
            let edge = PathElement::new(outline, colour.stroke_width(pen.size(2)));
            chart.draw_series([at + diamond + edge])?;
        }
        let mut labels = Labels {
            taken: Vec::new(),
            x: self.x_range(),
            y: self.y_range(),
        };
        for mark in &self.points {
            let colour = self.colour(mark);
            bars(chart, mark, colour.stroke_width(pen.size(1)), pen)?;
            let at = EmptyElement::at((mark.x.at, mark.y.at));
            let rim = Circle::new((0, 0), pen.px(6), WHITE.filled());
            let disc = Circle::new((0, 0), pen.px(5), colour.filled());
            chart.draw_series([at + rim + disc])?;
            if !labels.is_free(mark) {
                continue;
            }
            let is_right = mark.verified.is_some_and(|(verified, _)| verified.at < mark.x.at);
            let (side, shift) = if is_right { (HPos::Left, 7) } else { (HPos::Right, -7) };
            let style = pen.text(11, INK).pos(Pos::new(side, VPos::Bottom));
            let label = Text::new(format!("#{}", mark.label), (pen.px(shift), pen.px(-6)), style);
            chart.draw_series([EmptyElement::at((mark.x.at, mark.y.at)) + label])?;
        }
        Ok(())
    }
}

fn bars<DB: DrawingBackend>(chart: &mut Chart<'_, DB>, mark: &Mark, style: ShapeStyle, pen: Pen) -> Outcome<DB> {
    let cap = pen.px(3);
    let (x, y) = (mark.x, mark.y);
    let at = EmptyElement::at;
    if y.error > 0.0 {
        let ends = [(x.at, y.at - y.error), (x.at, y.at + y.error)];
        chart.draw_series([PathElement::new(ends.to_vec(), style)])?;
        chart.draw_series(ends.map(|end| at(end) + PathElement::new(vec![(-cap, 0), (cap, 0)], style)))?;
    }
    if x.error > 0.0 {
        let ends = [(x.at - x.error, y.at), (x.at + x.error, y.at)];
        chart.draw_series([PathElement::new(ends.to_vec(), style)])?;
        chart.draw_series(ends.map(|end| at(end) + PathElement::new(vec![(0, -cap), (0, cap)], style)))?;
    }
    Ok(())
}

/// Light lines, axis names, ticks.
pub(super) fn grid<DB: DrawingBackend>(chart: &mut Chart<'_, DB>, x: &str, y: &str, pen: Pen) -> Outcome<DB> {
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(GRID.stroke_width(pen.size(1)))
        .axis_style(AXIS.stroke_width(pen.size(1)))
        .set_all_tick_mark_size(pen.px(4))
        .x_labels(9)
        .y_labels(7)
        .x_label_formatter(&|value| tick(*value))
        .y_label_formatter(&|value| tick(*value))
        .label_style(pen.text(12, FAINT_INK))
        .axis_desc_style(pen.text(13, INK))
        .x_desc(x)
        .y_desc(y)
        .draw()
}

/// The colour scale of the third objective, beside the chart.
fn draw_scale<DB: DrawingBackend>(
    area: &DrawingArea<DB, Shift>,
    shade: &Shade,
    (width, height): (u32, u32),
    notes: i32,
    pen: Pen,
) -> Outcome<DB> {
    const STEPS: i32 = 48;
    let (left, top) = (width as i32 - 84, 110);
    let bottom = height as i32 - notes - 150;
    let length = bottom - top;
    for step in 0..STEPS {
        let share = f64::from(step) / f64::from(STEPS - 1);
        let low = bottom - length * step / STEPS;
        let high = bottom - length * (step + 1) / STEPS;
        let corners = [(pen.px(left), pen.px(high)), (pen.px(left + 12), pen.px(low))];
        area.draw(&Rectangle::new(corners, on_scale(share).filled()))?;
    }
    let middle = f64::midpoint(shade.range.start, shade.range.end);
    for (value, y) in [
        (shade.range.start, bottom),
        (middle, (top + bottom) / 2),
        (shade.range.end, top),
    ] {
        let style = pen.text(11, FAINT_INK).pos(Pos::new(HPos::Left, VPos::Center));
        area.draw(&Text::new(three_digits(value), (pen.px(left + 18), pen.px(y)), style))?;
    }
    let (name, unit) = shade.name.split_once(" (").unwrap_or((&shade.name, ""));
    let style = || pen.text(12, INK).pos(Pos::new(HPos::Left, VPos::Bottom));
    area.draw(&Text::new(
        name.to_owned(),
        (pen.px(left - 14), pen.px(top - 22)),
        style(),
    ))?;
    let unit = unit.trim_end_matches(')').to_owned();
    area.draw(&Text::new(
        unit,
        (pen.px(left - 14), pen.px(top - 8)),
        pen.text(11, FAINT_INK).pos(Pos::new(HPos::Left, VPos::Bottom)),
    ))
}

fn three_digits(value: f64) -> String {
    let decimals = if value == 0.0 {
        0.0
    } else {
        (2.0 - value.abs().log10().floor()).clamp(0.0, 4.0)
    };
    format!("{value:.*}", decimals as usize)
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
