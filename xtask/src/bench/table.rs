//! Tables that are Markdown and can be read as they are.

/// A table: what its columns are called, and rows of as many cells.
#[derive(Clone, Debug, Default)]
pub struct Table {
    head: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub fn new<T: Into<String>>(head: impl IntoIterator<Item = T>) -> Self {
        Self {
            head: head.into_iter().map(Into::into).collect(),
            rows: Vec::new(),
        }
    }

    pub fn row<T: Into<String>>(&mut self, cells: impl IntoIterator<Item = T>) {
        let mut cells: Vec<String> = cells.into_iter().map(Into::into).collect();
        cells.resize(self.head.len(), String::new());
        self.rows.push(cells);
    }

    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The first column to the left, figures to the right, all of one width.
    pub fn markdown(&self) -> String {
        let width = |column: usize| {
            self.rows
                .iter()
                .chain([&self.head])
                .map(|row| row[column].chars().count())
                .max()
                .unwrap_or(0)
                .max(3)
        };
        let widths: Vec<usize> = (0..self.head.len()).map(width).collect();
        let line = |row: &[String]| {
            let mut text = String::from("|");
            for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
                text += &if column == 0 {
                    format!(" {cell:<width$} |")
                } else {
                    format!(" {cell:>width$} |")
                };
            }
            text + "\n"
        };
        let mut text = line(&self.head);
        text.push('|');
        for (column, width) in widths.iter().enumerate() {
            let dashes = "-".repeat(width + 1);
            text += &if column == 0 {
                format!("{dashes}-|")
            } else {
                format!("{dashes}:|")
            };
        }
        text.push('\n');
        for row in &self.rows {
            text += &line(row);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(["loop", "µs"]);
        table.row(["pipe", "1.25"]);
        table.row(["socketpair"]);
        assert_eq!(
            table.markdown(),
            "| loop       |   µs |\n\
             |------------|-----:|\n\
             | pipe       | 1.25 |\n\
             | socketpair |      |\n"
        );
    }
}
