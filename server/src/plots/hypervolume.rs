//! Hypervolume over evaluations.

use plotters::{
    chart::ChartBuilder,
    coord::Shift,
    element::{Circle, PathElement, Polygon, Text},
    prelude::{DrawingArea, DrawingBackend},
    style::Color,
};
use protocol::searches::FrontView;

use super::{
    Format, PlotError,
    axis::around,
    canvas::{Outcome, Pen, Picture, render},
    colours::{FAINT_INK, MAIN},
    front::grid,
};

/// Draws how the hypervolume grew, under a title.
///
/// # Errors
/// When the picture cannot be drawn or written.
pub fn hypervolume(front: &FrontView, title: &str, format: Format) -> Result<Vec<u8>, PlotError> {
    let steps = front
        .history
        .iter()
        .map(|point| (point.evaluations as f64, point.hypervolume))
        .collect();
    let hours = front.history.last().map_or(0.0, |point| point.device_hours);
    render(
        &HypervolumePicture {
            title: title.to_owned(),
            steps,
            hours,
        },
        format,
    )
}

struct HypervolumePicture {
    title: String,
    /// (evaluations, hypervolume), in the order of evaluations.
    steps: Vec<(f64, f64)>,
    hours: f64,
}

impl HypervolumePicture {
    /// The hypervolume stays until an evaluation lifts it.
    fn stairs(&self) -> Vec<(f64, f64)> {
        let mut stairs = vec![(0.0, 0.0)];
        let mut height = 0.0;
        for &(evaluations, volume) in &self.steps {
            stairs.push((evaluations, height));
            stairs.push((evaluations, volume));
            height = volume;
        }
        stairs
    }
}

impl Picture for HypervolumePicture {
    fn size(&self) -> (u32, u32) {
        (960, 480)
    }

    fn draw<DB: DrawingBackend>(&self, area: &DrawingArea<DB, Shift>, pen: Pen) -> Outcome<DB> {
        area.draw(&Text::new(
            self.title.clone(),
            (pen.px(28), pen.px(22)),
            pen.heading(19),
        ))?;
        let subtitle = match self.steps.last() {
            Some((evaluations, volume)) => {
                format!(
                    "{volume:.4} after {evaluations} evaluations and {:.2} device-hours",
                    self.hours
                )
            }
            None => "no evaluation yet".to_owned(),
        };
        area.draw(&Text::new(subtitle, (pen.px(28), pen.px(48)), pen.text(13, FAINT_INK)))?;
        let stairs = self.stairs();
        let width = stairs.iter().map(|(x, _)| *x).fold(1.0, f64::max);
        let heights = around(stairs.iter().map(|(_, y)| *y), true);
        let mut chart = ChartBuilder::on(area)
            .margin_top(pen.px(78))
            .margin_left(pen.px(20))
            .margin_right(pen.px(32))
            .margin_bottom(pen.px(18))
            .x_label_area_size(pen.px(50))
            .y_label_area_size(pen.px(64))
            .build_cartesian_2d(0.0..width * 1.02, 0.0..heights.end.max(1e-6))?;
        grid(&mut chart, "Evaluations", "Hypervolume", pen)?;
        let mut below = stairs.clone();
        below.extend([(width, 0.0), (0.0, 0.0)]);
        chart.draw_series([Polygon::new(below, MAIN.mix(0.10).filled())])?;
        chart.draw_series([PathElement::new(stairs, MAIN.stroke_width(pen.size(2)))])?;
        if let Some(last) = self.steps.last() {
            chart.draw_series([Circle::new(*last, pen.px(4), MAIN.filled())])?;
        }
        Ok(())
    }
}
