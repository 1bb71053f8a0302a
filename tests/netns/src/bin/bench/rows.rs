//! The table: one row a measurement, on the screen and as JSON.

use std::fmt::Write as _;

use serde_json::json;
use weave_netns::measure::median;

/// What a ratio should be.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Goal {
    /// At least this: for what shall be high.
    AtLeast(f64),
    /// At most this: for what shall be low.
    AtMost(f64),
    /// Shown for orientation.
    None,
}

/// One measurement.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    name: String,
    unit: &'static str,
    ours: f64,
    reference: f64,
    ratio: f64,
    spread: f64,
    rounds: usize,
    goal: Goal,
}

impl Row {
    /// A row from paired rounds.
    pub(crate) fn paired(
        name: &str,
        unit: &'static str,
        goal: Goal,
        ours: &[f64],
        reference: &[f64],
    ) -> Self {
        let ratios: Vec<_> = ours.iter().zip(reference).map(|(ours, reference)| ours / reference).collect();
        Self {
            name: name.to_owned(),
            unit,
            ours: median(ours),
            reference: median(reference),
            ratio: median(&ratios),
            spread: spread(&ratios),
            rounds: ratios.len(),
            goal,
        }
    }

    /// A row against a budget that must not be exceeded.
    pub(crate) fn budget(name: &str, unit: &'static str, ours: &[f64], budget: f64) -> Self {
        Self::paired(name, unit, Goal::AtMost(1.0), ours, &vec![budget; ours.len()])
    }

    fn verdict(&self) -> String {
        match self.goal {
            Goal::AtLeast(goal) => format!(">= {goal:<5.3} {}", word(self.ratio >= goal)),
            Goal::AtMost(goal) => format!("<= {goal:<5.3} {}", word(self.ratio <= goal)),
            Goal::None => String::new(),
        }
    }
}

const fn word(reached: bool) -> &'static str {
    if reached { "reached" } else { "MISSED" }
}

/// How far apart the middle half of the values lies.
fn spread(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |part: usize| sorted.get(sorted.len() * part / 4).copied().unwrap_or(f64::NAN);
    at(3) - at(1)
}

/// All rows for people; the spread is that of the middle half of the rounds' ratios.
pub(crate) fn table(rows: &[Row]) -> String {
    let head = ["measurement", "unit", "ours", "reference", "ratio", "spread", "goal"];
    let [name, unit, ours, reference, ratio, spread, goal] = head;
    let mut text =
        format!("\n{name:<28} {unit:<5} {ours:>10} {reference:>10} {ratio:>7} {spread:>7}  {goal}\n");
    for row in rows {
        let _ = writeln!(
            text,
            "{:<28} {:<5} {:>10.3} {:>10.3} {:>7.3} {:>7.3}  {}",
            row.name,
            row.unit,
            row.ours,
            row.reference,
            row.ratio,
            row.spread,
            row.verdict()
        );
    }
    text
}

/// All rows for programs.
pub(crate) fn json(rows: &[Row]) -> String {
    let list: Vec<_> = rows
        .iter()
        .map(|row| {
            json!({
                "name": row.name, "unit": row.unit, "ours": rounded(row.ours),
                "reference": rounded(row.reference), "ratio": rounded(row.ratio), "rounds": row.rounds,
            })
        })
        .collect();
    format!("{:#}\n", serde_json::Value::from(list))
}

/// Digits that mean something.
fn rounded(value: f64) -> f64 {
    (value * 1e4).round() / 1e4
}
