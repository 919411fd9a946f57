//! How a front is drawn.

use std::ops::Range;

use plotters::{
    chart::{ChartBuilder, ChartContext},
    coord::{Shift, types::RangedCoordf64},
    element::{Circle, DashedPathElement, EmptyElement, PathElement, Polygon, Rectangle, Text},
    prelude::{Cartesian2d, DrawingArea, DrawingBackend},
    style::{
        Color, ShapeStyle, TRANSPARENT, WHITE,
        text_anchor::{HPos, Pos, VPos},
    },
};

use super::{FrontPicture, Mark, Shade};
use crate::plots::{
    axis::tick,
    canvas::{Outcome, Pen, Picture},
    colours::{AXIS, FAINT_INK, GRID, INK, LIMIT, MAIN, REFERENCE, on_scale},
};

/// A number beside a point takes this share of the chart's width and height.
const LABEL: (f64, f64) = (0.045, 0.032);

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
pub(in crate::plots) fn grid<DB: DrawingBackend>(chart: &mut Chart<'_, DB>, x: &str, y: &str, pen: Pen) -> Outcome<DB> {
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
