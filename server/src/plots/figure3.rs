//! The paper's Figure 3: what the six temporal operators cost over the size of their input, closed form
//! beside measured.

use std::ops::Range;

use lut::{FIGURE_3_FRAMES, FigurePoint, Lookup};
use plotters::{
    chart::ChartBuilder,
    coord::{Shift, combinators::IntoLogRange},
    element::{Circle, Cross, EmptyElement, PathElement, Text},
    prelude::{BindKeyPoints, DrawingArea, DrawingBackend},
    style::{
        Color, RGBColor,
        text_anchor::{HPos, Pos, VPos},
    },
};
use search_spaces::Operator;

use super::{
    Format, PlotError,
    axis::tick,
    canvas::{Outcome, Pen, Picture, render},
    colours::{AXIS, FAINT_INK, GRID, INK, LIMIT},
};

const MIB: f64 = 1_048_576.0;

/// Draws the points of [`lut::figure3`] under a title that names device and runtime.
///
/// # Errors
/// When the picture cannot be drawn or written.
pub fn figure3(points: &[FigurePoint], title: &str, format: Format) -> Result<Vec<u8>, PlotError> {
    render(&Figure3Picture::of(points, title), format)
}

#[derive(Clone, Copy, PartialEq)]
enum Known {
    /// By a formula, or measured at this very size.
    Exactly,
    /// Between measured sizes.
    Between,
}

/// One operator in one panel: (size, value).
struct Curve {
    operator: Operator,
    values: Vec<(f64, f64, Known)>,
    /// Sizes that the device has too little memory for.
    out_of_memory: Vec<f64>,
}

struct Panel {
    name: &'static str,
    curves: Vec<Curve>,
}

struct Figure3Picture {
    title: String,
    sizes: Vec<f64>,
    panels: Vec<Panel>,
}

impl Figure3Picture {
    fn of(points: &[FigurePoint], title: &str) -> Self {
        let mut sizes: Vec<f64> = points.iter().map(|point| point.size as f64).collect();
        sizes.sort_by(f64::total_cmp);
        sizes.dedup();
        let exactly = |value: f64| Some((value, Known::Exactly));
        let cost = |point: &FigurePoint, part: fn(&lut::Cost) -> Option<f64>| match &point.answer {
            Lookup::Measured(cost) => Some((part(cost)?, Known::Exactly)),
            Lookup::Interpolated(cost, _) | Lookup::Extrapolated(cost) => Some((part(cost)?, Known::Between)),
            Lookup::OutOfMemory { .. } | Lookup::Unsupported { .. } | Lookup::Missing(_) => None,
        };
        let panels = vec![
            panel("Computation, closed form (GMACs)", points, false, |point| {
                exactly(point.work.macs as f64 / 1e9)
            }),
            panel("Latency, measured (ms)", points, true, |point| {
                cost(point, |cost| Some(cost.latency_ms.value))
            }),
            panel("Activations, closed form (MiB)", points, false, |point| {
                exactly(point.work.activation_bytes as f64 / MIB)
            }),
            panel("Peak memory, measured (MiB)", points, true, |point| {
                cost(point, |cost| cost.peak_memory_bytes.map(|bytes| bytes.value / MIB))
            }),
        ];
        Self {
            title: title.to_owned(),
            sizes,
            panels,
        }
    }
}

fn panel(
    name: &'static str,
    points: &[FigurePoint],
    measured: bool,
    value: impl Fn(&FigurePoint) -> Option<(f64, Known)>,
) -> Panel {
    let curve = |operator: Operator| {
        let of_operator = || points.iter().filter(move |point| point.operator == operator);
        let values =
            of_operator().filter_map(|point| value(point).map(|(value, known)| (point.size as f64, value, known)));
        // A logarithmic axis has no place for zero.
        let values = values
            .filter(|(_, value, _)| value.is_finite() && *value > 0.0)
            .collect();
        let failed = of_operator().filter(|point| measured && matches!(point.answer, Lookup::OutOfMemory { .. }));
        Curve {
            operator,
            values,
            out_of_memory: failed.map(|point| point.size as f64).collect(),
        }
    };
    Panel {
        name,
        curves: Operator::ALL.into_iter().map(curve).collect(),
    }
}

impl Picture for Figure3Picture {
    fn size(&self) -> (u32, u32) {
        (1080, 820)
    }

    fn draw<DB: DrawingBackend>(&self, area: &DrawingArea<DB, Shift>, pen: Pen) -> Outcome<DB> {
        area.draw(&Text::new(
            self.title.clone(),
            (pen.px(28), pen.px(22)),
            pen.heading(19),
        ))?;
        let subtitle = format!(
            "temporal operators over the size of their input, {FIGURE_3_FRAMES} frames · hollow: between measured sizes · ×: out of memory"
        );
        area.draw(&Text::new(subtitle, (pen.px(28), pen.px(48)), pen.text(13, FAINT_INK)))?;
        legend(area, pen)?;
        let (_, below) = area.split_vertically(pen.px(104));
        let cells = below.split_evenly((2, 2));
        for (cell, panel) in cells.iter().zip(&self.panels) {
            self.draw_panel(cell, panel, pen)?;
        }
        Ok(())
    }
}

impl Figure3Picture {
    fn draw_panel<DB: DrawingBackend>(&self, area: &DrawingArea<DB, Shift>, panel: &Panel, pen: Pen) -> Outcome<DB> {
        area.draw(&Text::new(panel.name, (pen.px(72), pen.px(8)), pen.text(14, INK)))?;
        let x = match (self.sizes.first(), self.sizes.last()) {
            (Some(low), Some(high)) => low * 0.85..high * 1.18,
            _ => 1.0..100.0,
        };
        let y = decades(
            panel
                .curves
                .iter()
                .flat_map(|curve| curve.values.iter().map(|(_, value, _)| *value)),
        );
        let mut chart = ChartBuilder::on(area)
            .margin_top(pen.px(34))
            .margin_left(pen.px(16))
            .margin_right(pen.px(24))
            .margin_bottom(pen.px(8))
            .x_label_area_size(pen.px(40))
            .y_label_area_size(pen.px(56))
            .build_cartesian_2d(
                x.clone().log_scale().with_key_points(self.sizes.clone()),
                y.clone().log_scale(),
            )?;
        chart
            .configure_mesh()
            .light_line_style(plotters::style::TRANSPARENT)
            .bold_line_style(GRID.stroke_width(pen.size(1)))
            .axis_style(AXIS.stroke_width(pen.size(1)))
            .set_all_tick_mark_size(pen.px(4))
            .x_label_formatter(&|size| format!("{size}²"))
            .y_label_formatter(&|value| tick(*value))
            .y_labels(7)
            .label_style(pen.text(11, FAINT_INK))
            .axis_desc_style(pen.text(12, INK))
            .x_desc("Height × width of the input")
            .draw()?;
        if panel
            .curves
            .iter()
            .all(|curve| curve.values.is_empty() && curve.out_of_memory.is_empty())
        {
            let style = pen.text(13, FAINT_INK).pos(Pos::new(HPos::Center, VPos::Center));
            let middle = (f64::sqrt(x.start * x.end), f64::sqrt(y.start * y.end));
            chart.draw_series([EmptyElement::at(middle) + Text::new("not measured yet", (0, 0), style)])?;
        }
        for curve in &panel.curves {
            let colour = colour(curve.operator);
            let line: Vec<(f64, f64)> = curve.values.iter().map(|(size, value, _)| (*size, *value)).collect();
            chart.draw_series([PathElement::new(line, colour.stroke_width(pen.size(2)))])?;
            for &(size, value, known) in &curve.values {
                chart.draw_series([Circle::new((size, value), pen.px(5), plotters::style::WHITE.filled())])?;
                let style = if known == Known::Exactly {
                    colour.filled()
                } else {
                    colour.stroke_width(pen.size(2))
                };
                chart.draw_series([Circle::new((size, value), pen.px(4), style)])?;
            }
            for &size in &curve.out_of_memory {
                let at = (size, y.end * 0.8);
                chart.draw_series([Cross::new(at, pen.px(5), colour.stroke_width(pen.size(2)))])?;
                chart.draw_series([Circle::new(at, pen.px(8), LIMIT.stroke_width(pen.size(1)))])?;
            }
        }
        Ok(())
    }
}

fn legend<DB: DrawingBackend>(area: &DrawingArea<DB, Shift>, pen: Pen) -> Outcome<DB> {
    for (column, operator) in (0..).zip(Operator::ALL) {
        let (x, y) = (32 + 172 * column, 84);
        let colour = colour(operator);
        let line = vec![(pen.px(x), pen.px(y)), (pen.px(x + 22), pen.px(y))];
        area.draw(&PathElement::new(line, colour.stroke_width(pen.size(2))))?;
        area.draw(&Circle::new((pen.px(x + 11), pen.px(y)), pen.px(4), colour.filled()))?;
        let style = pen.text(13, INK).pos(Pos::new(HPos::Left, VPos::Center));
        area.draw(&Text::new(name(operator), (pen.px(x + 30), pen.px(y)), style))?;
    }
    Ok(())
}

/// Whole decades around the values.
fn decades(values: impl Iterator<Item = f64>) -> Range<f64> {
    let (low, high) = values.fold((f64::INFINITY, 0.0_f64), |(low, high), value| {
        (low.min(value), high.max(value))
    });
    if low > high {
        return 0.1..100.0;
    }
    let (low, high) = (10_f64.powf(low.log10().floor()), 10_f64.powf(high.log10().ceil()));
    low..if high > low { high } else { low * 10.0 }
}

/// One hue a kind, light for time alone, dark for space and time.
fn colour(operator: Operator) -> RGBColor {
    match operator {
        Operator::Conv1d => RGBColor(106, 168, 222),
        Operator::Conv3d => RGBColor(28, 84, 150),
        Operator::SelfAttention1d => RGBColor(246, 166, 74),
        Operator::SelfAttention3d => RGBColor(189, 86, 6),
        Operator::CrossAttention1d => RGBColor(120, 190, 130),
        Operator::CrossAttention3d => RGBColor(29, 112, 60),
    }
}

fn name(operator: Operator) -> &'static str {
    match operator {
        Operator::Conv1d => "Conv1D",
        Operator::Conv3d => "Conv3D",
        Operator::SelfAttention1d => "SelfAttention1D",
        Operator::SelfAttention3d => "SelfAttention3D",
        Operator::CrossAttention1d => "CrossAttention1D",
        Operator::CrossAttention3d => "CrossAttention3D",
    }
}

#[cfg(test)]
mod tests {
    use lut::{EntryState, Lut, Measurement, Runtime, Samples, figure3_blocks};
    use search_spaces::{Dtype, Space};

    use super::*;

    /// A table that knows some sizes of every operator, and that SelfAttention3D does not fit at the largest.
    fn example() -> Vec<FigurePoint> {
        let space = Space::parse(include_str!("../../../search-spaces/spaces/snapgen-v.toml")).unwrap();
        let unet = space.unet().unwrap();
        let sizes = [8, 16, 32, 64];
        let mut table = Lut::new(
            "phone",
            Runtime {
                name: "test".to_owned(),
                version: "1".to_owned(),
            },
            Dtype::F32,
        );
        for (operator, size, block) in figure3_blocks(unet, &sizes) {
            if (operator, size) == (Operator::SelfAttention3d, 64) {
                table.insert(
                    block,
                    EntryState::OutOfMemory {
                        detail: "3 GiB asked for".to_owned(),
                    },
                );
                continue;
            }
            if size == 32 && operator != Operator::Conv1d {
                continue;
            }
            let work = search_spaces::work(&block, Dtype::F32).unwrap();
            let samples = |value: f64| Samples::new(vec![value; 3]).unwrap();
            let measured = Measurement {
                latency_ms: samples(0.05 + work.macs as f64 / 4e7),
                peak_memory_bytes: samples(1.3 * work.activation_bytes as f64),
            };
            table.insert(block, EntryState::Measured(measured));
        }
        lut::figure3(&table, unet, &sizes)
    }

    #[test]
    fn closed_form_and_measurement_stand_side_by_side() {
        let svg = String::from_utf8(figure3(&example(), "phone, test@1", Format::Svg).unwrap()).unwrap();
        for text in [
            "Conv1D",
            "CrossAttention3D",
            "Latency, measured (ms)",
            "out of memory",
            "64²",
        ] {
            assert!(svg.contains(text), "{text} is missing");
        }
        insta::assert_snapshot!("figure3", svg);
        if let Some(folder) = std::env::var_os("TEMPONAS_SHOW_PLOTS") {
            let png = figure3(&example(), "phone, test@1", Format::Png).unwrap();
            std::fs::write(std::path::Path::new(&folder).join("figure3.png"), png).unwrap();
        }
    }

    #[test]
    fn an_empty_table_says_that_nothing_is_measured() {
        let space = Space::parse(include_str!("../../../search-spaces/spaces/snapgen-v.toml")).unwrap();
        let table = Lut::new(
            "phone",
            Runtime {
                name: "test".to_owned(),
                version: "1".to_owned(),
            },
            Dtype::F32,
        );
        let points = lut::figure3(&table, space.unet().unwrap(), &[8, 16]);
        let svg = String::from_utf8(figure3(&points, "phone", Format::Svg).unwrap()).unwrap();
        assert_eq!(svg.matches("not measured yet").count(), 2);
    }

    #[test]
    fn an_axis_spans_whole_decades() {
        assert_eq!(decades([2.0, 30.0].into_iter()), 1.0..100.0);
        assert_eq!(decades([1.0].into_iter()), 1.0..10.0);
        assert_eq!(decades(std::iter::empty()), 0.1..100.0);
    }
}
