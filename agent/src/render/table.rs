//! Text in columns.

use std::fmt;

/// Rows of cells, printed with the cells of each column below each other.
#[derive(Debug, Default)]
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// Adds a row.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let widths = widths(self.rows.iter().cloned());
        self.rows.iter().try_for_each(|row| writeln!(f, "{}", aligned(row, &widths)))
    }
}

/// The width of each column: that of its widest cell.
pub(crate) fn widths(rows: impl Iterator<Item = Vec<String>>) -> Vec<usize> {
    let mut widths: Vec<usize> = Vec::new();
    for row in rows {
        for (column, cell) in row.iter().enumerate() {
            let width = cell.chars().count();
            match widths.get_mut(column) {
                Some(widest) => *widest = width.max(*widest),
                None => widths.push(width),
            }
        }
    }
    widths
}

/// One row in columns of these widths, without spaces at the end.
pub(crate) fn aligned(row: &[String], widths: &[usize]) -> String {
    let cells = row.iter().zip(widths).map(|(cell, width)| format!("{:<width$}", clean(cell)));
    cells.collect::<Vec<_>>().join(" ").trim_end().to_owned()
}

/// The text without what a terminal would obey: control characters and those that reorder or hide text become
/// `?`.
pub(crate) fn clean(text: &str) -> String {
    let obeyed = |letter: char| {
        letter.is_control()
            || matches!(letter, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
    };
    text.chars().map(|letter| if obeyed(letter) { '?' } else { letter }).collect()
}
