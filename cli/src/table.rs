//! Tables as Docker prints them: columns of the width of their longest cell, three spaces apart.

use std::fmt::Write;

/// Spaces between two columns.
const GAP: usize = 3;

/// The table with this heading and these rows, each line with its newline. No spaces are at the end of a line.
pub fn render(heading: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = heading.iter().map(|cell| cell.len()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    line(&mut text, &widths, heading.iter().copied());
    for row in rows {
        line(&mut text, &widths, row.iter().map(String::as_str));
    }
    text
}

fn line<'a>(text: &mut String, widths: &[usize], cells: impl Iterator<Item = &'a str>) {
    let mut line = String::new();
    for (cell, width) in cells.zip(widths) {
        // Writing to a String cannot fail.
        let _ = write!(line, "{cell:<width$}", width = width + GAP);
    }
    text.push_str(line.trim_end());
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_longest_cell() {
        let rows = [vec!["a".to_owned(), "long cell".to_owned(), "x".to_owned()]];
        assert_eq!(
            render(&["FIRST", "B", "C"], &rows),
            "FIRST   B           C\na       long cell   x\n"
        );
    }
}
