//! Several bars where there is a terminal, lines elsewhere.

use std::{collections::BTreeMap, io::IsTerminal};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Length of a bar in its own units.
const WHOLE: u64 = 1000;

/// Bars by name, in the order in which they came.
pub(super) struct Progress {
    bars: MultiProgress,
    by_name: BTreeMap<String, ProgressBar>,
    said: BTreeMap<String, String>,
    has_terminal: bool,
}

impl Progress {
    pub(super) fn new() -> Self {
        let has_terminal = std::io::stderr().is_terminal();
        let bars = MultiProgress::new();
        if !has_terminal {
            bars.set_draw_target(ProgressDrawTarget::hidden());
        }
        Self {
            bars,
            by_name: BTreeMap::new(),
            said: BTreeMap::new(),
            has_terminal,
        }
    }

    /// Shows a share, 0 to 1, and what is being done.
    pub(super) fn set(&mut self, name: &str, share: f64, doing: &str) {
        let bars = &self.bars;
        let bar = self.by_name.entry(name.to_owned()).or_insert_with(|| {
            let bar = bars.add(ProgressBar::new(WHOLE));
            let style = ProgressStyle::with_template("{prefix:<24} {bar:24.green/dim} {percent:>3} %  {msg}");
            if let Ok(style) = style {
                bar.set_style(style.progress_chars("━╸─"));
            }
            bar.set_prefix(name.to_owned());
            bar
        });
        bar.set_position((share.clamp(0.0, 1.0) * WHOLE as f64) as u64);
        bar.set_message(doing.to_owned());
        if !self.has_terminal && self.said.get(name).is_none_or(|said| said != doing) {
            eprintln!("{name}: {doing}");
            self.said.insert(name.to_owned(), doing.to_owned());
        }
    }

    /// Says a line beside the bars.
    pub(super) fn say(&self, line: &str) {
        if self.has_terminal {
            // A line that cannot be drawn is one less to read.
            let _ = self.bars.println(line);
        } else {
            eprintln!("{line}");
        }
    }

    /// Takes the bars away.
    pub(super) fn finish(self) {
        for bar in self.by_name.values() {
            bar.finish_and_clear();
        }
    }
}
