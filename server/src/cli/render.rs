//! How figures, tables and files are written.

use std::{
    fs,
    io::{self, IsTerminal, Write},
    path::Path,
};

use anyhow::{Context, bail};
use comfy_table::{ContentArrangement, LineStyle, Table, presets::NOTHING};
use protocol::{
    Figure, Metrics,
    searches::{Budget, EliminationView, FrontView, SearchState},
};

/// Prints text; a reader that has seen enough and closed the pipe is no error.
pub(super) fn print(text: &str) -> io::Result<()> {
    match io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
        _ => Ok(()),
    }
}

/// Prints a line.
pub(super) fn say(line: &str) -> io::Result<()> {
    print(&format!("{line}\n"))
}

/// Writes into a file, or to standard output where that is no terminal or the bytes are text.
pub(super) fn deliver(bytes: &[u8], output: Option<&Path>) -> anyhow::Result<()> {
    match output {
        Some(path) => fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display())),
        None if io::stdout().is_terminal() && std::str::from_utf8(bytes).is_err() => {
            bail!("a picture is nothing for a terminal: name a file with --output")
        }
        None => match io::stdout().lock().write_all(bytes) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
            _ => Ok(()),
        },
    }
}

/// A table with these column heads.
pub(super) fn table(heads: impl Into<comfy_table::Row>) -> Table {
    let mut table = Table::new();
    table
        .load_style(NOTHING.header_separator(LineStyle::none().fill('─').junction('─')))
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_header(heads);
    table
}

/// A figure in the unit of its metric, with its standard error where it has one.
pub(super) fn figure(metric: &str, figure: &Figure) -> String {
    let value = value(metric, figure.value);
    if figure.standard_error == 0.0 {
        return value;
    }
    format!("{value} ± {}", self::value(metric, figure.standard_error))
}

/// A number in the unit of its metric.
pub(super) fn value(metric: &str, number: f64) -> String {
    if metric.ends_with("_bytes") {
        return format!("{} MiB", significant(number / f64::from(1 << 20)));
    }
    if metric.ends_with("_ms") {
        return format!("{} ms", significant(number));
    }
    match metric {
        "parameters" | "params" | "macs" | "flops" => short_count(number),
        _ => significant(number),
    }
}

/// Four significant digits, without an exponent where that is readable.
fn significant(number: f64) -> String {
    if number == 0.0 || !number.is_finite() {
        return number.to_string();
    }
    let magnitude = number.abs().log10().floor();
    if (-4.0..6.0).contains(&magnitude) {
        let decimals = (3.0 - magnitude).clamp(0.0, 6.0);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 0 to 6")]
        return format!("{number:.*}", decimals as usize);
    }
    format!("{number:.3e}")
}

fn short_count(number: f64) -> String {
    let (scale, unit) = match number.abs() {
        size if size >= 1e9 => (1e9, " G"),
        size if size >= 1e6 => (1e6, " M"),
        size if size >= 1e3 => (1e3, " k"),
        _ => (1.0, ""),
    };
    format!("{}{unit}", significant(number / scale))
}

/// A number of multiply-accumulates.
pub(super) fn macs(macs: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "shown with four digits")]
    let macs = macs as f64;
    if macs >= 1e12 {
        format!("{} TMAC", significant(macs / 1e12))
    } else {
        format!("{}MAC", short_count(macs))
    }
}

/// What a metric is called above a column.
pub(super) fn head(metric: &str) -> String {
    let words = metric.trim_end_matches("_ms").trim_end_matches("_bytes");
    words.replace('_', " ")
}

/// What a search has spent and what is left, in a line.
pub(super) fn budget(budget: &Budget) -> String {
    let mut text = format!("{} of {} evaluations", budget.evaluations, budget.max_evaluations);
    let hours = hours(budget.device_hours);
    match budget.max_device_hours {
        Some(limit) => text += &format!(", {hours} of {} on devices", self::hours(limit)),
        None => text += &format!(", {hours} on devices"),
    }
    let seconds = budget.device_seconds;
    let parts = [
        ("training", seconds.train),
        ("sampling", seconds.sample),
        ("scoring", seconds.score),
        ("measuring", seconds.profile),
    ];
    let parts: Vec<String> = parts
        .into_iter()
        .filter(|(_, spent)| *spent > 0.0)
        .map(|(name, spent)| format!("{name} {}", self::hours(spent / 3600.0)))
        .collect();
    if !parts.is_empty() {
        text += &format!(" ({})", parts.join(", "));
    }
    if let Some(limit) = budget.stall_limit {
        text += &format!("; no growth for {} of {limit} evaluations", budget.stalled_evaluations);
    }
    text
}

/// The coarse step's outcome, where it has one: what left the space and of what nothing is known, each with its reason.
pub(super) fn elimination(view: &EliminationView) -> io::Result<()> {
    for (fate, choices) in [("left the space", &view.removed), ("not known", &view.undecided)] {
        for choice in choices {
            say(&format!(
                "{fate}: {} at {}: {}",
                choice.choice, choice.position, choice.reason
            ))?;
        }
    }
    if view.architectures_before != view.architectures_after {
        let (before, after) = (&view.architectures_before, &view.architectures_after);
        say(&format!("{after} of {before} architectures stay"))?;
    }
    Ok(())
}

/// A state in a word.
pub(super) fn state(state: SearchState) -> &'static str {
    match state {
        SearchState::Profiling => "profiling",
        SearchState::Eliminating => "eliminating",
        SearchState::Searching => "searching",
        SearchState::Verifying => "verifying",
        SearchState::Done => "done",
        SearchState::Paused => "paused",
        SearchState::Cancelled => "cancelled",
        SearchState::Failed => "failed",
    }
}

/// A front as a table: best first, predicted beside verified.
pub(super) fn front(front: &FrontView) -> Table {
    let metrics: Vec<&str> = front
        .objectives
        .iter()
        .map(|objective| objective.metric.as_str())
        .collect();
    let mut heads = vec!["#".to_owned(), "architecture".to_owned()];
    heads.extend(metrics.iter().map(|metric| head(metric)));
    let is_verified = |metric: &&&str| front.points.iter().any(|point| point.verified.contains_key(**metric));
    let verified: Vec<&str> = metrics.iter().filter(is_verified).copied().collect();
    heads.extend(verified.iter().map(|metric| format!("{} verified", head(metric))));
    let mut table = table(heads);
    let cell = |metrics: &Metrics, metric: &str| {
        metrics
            .get(metric)
            .map_or_else(String::new, |found| figure(metric, found))
    };
    for point in &front.points {
        let name = match &point.reference {
            Some(reference) => format!("{} ({reference})", point.architecture),
            None => point.architecture.clone(),
        };
        let mut row = vec![point.number.to_string(), name];
        row.extend(metrics.iter().map(|metric| cell(&point.metrics, metric)));
        row.extend(verified.iter().map(|metric| {
            let broken = point.verified_within_limits == Some(false);
            cell(&point.verified, metric) + if broken { " (over a limit)" } else { "" }
        }));
        table.add_row(row);
    }
    table
}

/// A length of time given in hours.
pub(super) fn hours(hours: f64) -> String {
    let seconds = (hours * 3600.0).max(0.0);
    if seconds < 99.5 {
        format!("{seconds:.1} s")
    } else if seconds < 3600.0 {
        format!("{:.1} min", seconds / 60.0)
    } else {
        format!("{hours:.2} h")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_carry_their_unit_and_their_error() {
        let figure_of = |metric, value, standard_error| figure(metric, &Figure { value, standard_error });
        assert_eq!(figure_of("latency_ms", 12.3456, 0.25), "12.35 ms ± 0.2500 ms");
        assert_eq!(figure_of("peak_memory_bytes", 3.5 * 1_048_576.0, 0.0), "3.500 MiB");
        assert_eq!(figure_of("parameters", 412_345.0, 0.0), "412.3 k");
        assert_eq!(figure_of("quality", 0.61234, 0.0), "0.6123");
        assert_eq!(value("accuracy", 0.0), "0");
    }

    #[test]
    fn times_are_readable_at_every_length() {
        assert_eq!(hours(0.01), "36.0 s");
        assert_eq!(hours(0.5), "30.0 min");
        assert_eq!(hours(2.0), "2.00 h");
    }
}
