//! Lines with aligned columns, for people and for `awk`.

use std::io;

use unicode_width::UnicodeWidthStr;

const RESET: &str = "\x1b[0m";
/// The least width of the last column, even if the terminal is too narrow for it.
const MIN_WIDTH: usize = 12;
/// The columns that a narrow terminal leaves out, in this order.
const OPTIONAL: [&str; 2] = ["TOKEN", "SINCE"];

/// `None` if stdout is no terminal, or one of unknown width.
pub(super) fn terminal_width() -> Option<usize> {
    let size = rustix::termios::tcgetwinsize(io::stdout()).ok()?;
    Some(usize::from(size.ws_col)).filter(|columns| *columns > 0)
}

/// The width of each column.
fn widths(lines: &[impl AsRef<[String]>]) -> Vec<usize> {
    let columns = lines.iter().map(|line| line.as_ref().len()).max();
    let widest = |column: usize| {
        let cells = lines.iter().filter_map(|line| line.as_ref().get(column));
        cells.map(|cell| cell.width()).max().unwrap_or_default()
    };
    (0..columns.unwrap_or_default()).map(widest).collect()
}

/// Removes optional columns until the table fits the width.
pub(super) fn drop_columns(lines: &mut [Vec<String>], width: usize) {
    for name in OPTIONAL {
        let widths = widths(lines);
        let last = widths.len().saturating_sub(1);
        let least: usize = widths.iter().take(last).map(|width| width + 2).sum();
        if least + MIN_WIDTH <= width {
            return;
        }
        let head = lines.first();
        let column = head.and_then(|head| head.iter().position(|cell| cell == name));
        let Some(column) = column else { continue };
        for line in lines.iter_mut() {
            line.remove(column);
        }
    }
}

/// Lines with aligned columns. There is one colour for each line: in the first line it is that of
/// the whole line, in the others that of the second cell.
pub(super) fn aligned(
    lines: &[impl AsRef<[String]>],
    columns: Option<usize>,
    colours: Option<&[&str]>,
) -> String {
    let widths = widths(lines);
    let last = widths.len().saturating_sub(1);
    let before: usize = widths.iter().take(last).map(|width| width + 2).sum();
    let left = columns.map_or(usize::MAX, |all| all.saturating_sub(before).max(MIN_WIDTH));
    let mut text = String::new();
    for (n, line) in lines.iter().enumerate() {
        let colour = colours.and_then(|colours| colours.get(n));
        let cells: Vec<String> = line
            .as_ref()
            .iter()
            .zip(&widths)
            .enumerate()
            .map(|(column, (cell, width))| {
                if column == last {
                    return cut(cell, left);
                }
                let blanks = " ".repeat(width.saturating_sub(cell.width()));
                match colour {
                    Some(colour) if n > 0 && column == 1 => {
                        format!("{colour}{cell}{RESET}{blanks}")
                    }
                    _ => format!("{cell}{blanks}"),
                }
            })
            .collect();
        let line = cells.join("  ");
        match colour {
            Some(colour) if n == 0 => text.push_str(&format!("{colour}{}{RESET}", line.trim_end())),
            _ => text.push_str(line.trim_end()),
        }
        text.push('\n');
    }
    text
}

/// The cell cut to the width, with an ellipsis.
fn cut(cell: &str, columns: usize) -> String {
    if cell.width() <= columns {
        return cell.to_owned();
    }
    let mut shown = String::new();
    for c in cell.chars() {
        shown.push(c);
        if shown.width() + 1 > columns {
            shown.pop();
            break;
        }
    }
    shown + "…"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let line = |a: &str, b: &str, c: &str| [a.to_owned(), b.to_owned(), c.to_owned()];
        let lines = [
            line("NAME", "X", "LAST"),
            line("jöb", "longer", "1"),
            line("仕事", "-", "a longer one"),
        ];
        assert_eq!(
            aligned(&lines, None, None),
            "NAME  X       LAST\njöb   longer  1\n仕事  -       a longer one\n"
        );
        assert_eq!(
            aligned(&lines[..2], None, Some(&["<", ">"])),
            "<NAME  X       LAST\x1b[0m\njöb   >longer\x1b[0m  1\n"
        );
    }

    #[test]
    fn in_a_narrow_terminal_token_and_since_are_left_out() {
        let line = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let head = "NAME STATE HOLDER TOKEN SINCE HELD FREE WHAT";
        let left = |room| {
            let mut lines = [
                line(head),
                line("job held db1.17.ab 1795551621401 2026 6ms 29s sh"),
            ];
            drop_columns(&mut lines, room);
            lines[0].join(" ")
        };
        assert_eq!(left(80), head);
        assert_eq!(left(66), "NAME STATE HOLDER SINCE HELD FREE WHAT");
        assert_eq!(left(10), "NAME STATE HOLDER HELD FREE WHAT");
    }

    #[test]
    fn in_a_terminal_the_last_column_is_cut_to_the_width_that_is_left() {
        assert_eq!(cut("abcdef", 6), "abcdef");
        assert_eq!(cut("abcdefg", 6), "abcde…");
        assert_eq!(cut("仕事仕事", 6), "仕事…");
    }
}
