//! Plots, as SVG that follows whether the reader's pages are light or dark: each brings its own ground, so
//! that it can be read on either.

use std::fmt::Write as _;

const SIZE: (f64, f64) = (840.0, 420.0);
/// Left, top, right, bottom: what the labels need.
const FRAME: (f64, f64, f64, f64) = (78.0, 48.0, 262.0, 56.0);
/// Told apart by those who see no difference between red and green too; on light ground and on dark.
const COLOURS: [[&str; 2]; 8] = [
    ["#0072b2", "#4aa3df"],
    ["#d55e00", "#f0803c"],
    ["#009e73", "#2cc295"],
    ["#cc79a7", "#dd93bd"],
    ["#b87f00", "#e6b13a"],
    ["#3a93c7", "#8fd0f5"],
    ["#000000", "#f0f0f0"],
    ["#7f7f7f", "#9a9a9a"],
];

/// How it looks on light ground, and on dark.
fn style() -> String {
    let all = |which: usize| {
        let [ground, text, grid, frame] = match which {
            0 => ["#ffffff", "#1f2328", "#dddddd", "#444444"],
            _ => ["#0d1117", "#e6edf3", "#30363d", "#9198a1"],
        };
        let lines = COLOURS.iter().enumerate().map(|(at, colours)| {
            let colour = colours[which];
            format!(".l{at}{{stroke:{colour}}}.d{at}{{fill:{colour}}}")
        });
        format!(
            ".ground{{fill:{ground}}}text{{fill:{text}}}.grid{{stroke:{grid}}}.frame{{stroke:{frame}}}{}",
            lines.collect::<String>()
        )
    };
    format!(
        "<style>{}@media(prefers-color-scheme:dark){{{}}}</style>",
        all(0),
        all(1)
    )
}

/// Lines over two axes.
#[derive(Debug)]
pub(crate) struct Plot<'a> {
    pub(crate) title: &'a str,
    pub(crate) x: Axis<'a>,
    pub(crate) y: Axis<'a>,
    pub(crate) lines: Vec<Line>,
}

#[derive(Debug)]
pub(crate) struct Axis<'a> {
    pub(crate) label: &'a str,
    pub(crate) log: bool,
}

#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) name: String,
    pub(crate) points: Vec<(f64, f64)>,
}

/// The values at the ends of an axis, and those that are written beside it.
struct Scale {
    log: bool,
    from: f64,
    to: f64,
    marks: Vec<f64>,
}

impl Scale {
    fn new(values: impl Iterator<Item = f64>, log: bool) -> Self {
        let (least, most) = values
            .filter(|value| value.is_finite() && (!log || *value > 0.0))
            .fold((f64::MAX, f64::MIN), |(least, most), value| {
                (least.min(value), most.max(value))
            });
        if least > most {
            return Self::new([1.0, 10.0].into_iter(), log);
        }
        if log {
            let (from, to) = (least.log10().floor(), most.log10().ceil());
            let to = if to > from { to } else { from + 1.0 };
            let marks = (from as i32..=to as i32).map(|power| 10f64.powi(power));
            return Self {
                log,
                from: 10f64.powf(from),
                to: 10f64.powf(to),
                marks: marks.collect(),
            };
        }
        let step = pretty(if most > 0.0 { most / 5.0 } else { 1.0 });
        let steps = (most / step).ceil().max(1.0);
        Self {
            log,
            from: 0.0,
            to: step * steps,
            marks: (0..=steps as u32).map(|at| f64::from(at) * step).collect(),
        }
    }

    /// From 0 to 1.
    fn place(&self, value: f64) -> f64 {
        match self.log {
            true => {
                (value.max(self.from).log10() - self.from.log10())
                    / (self.to.log10() - self.from.log10())
            }
            false => (value - self.from) / (self.to - self.from),
        }
    }
}

/// The next of 1, 2, 5, 10, …
fn pretty(step: f64) -> f64 {
    let unit = 10f64.powf(step.log10().floor());
    let found = [1.0, 2.0, 5.0]
        .into_iter()
        .find(|by| by * unit >= step * 0.999);
    found.unwrap_or(10.0) * unit
}

fn shown(value: f64) -> String {
    if value >= 1000.0 {
        crate::report::thousands(value.round() as i64)
    } else {
        // Without the digits that say nothing.
        let text = format!("{value:.4}");
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

/// Draw it.
pub(crate) fn draw(plot: &Plot<'_>) -> String {
    let (left, top) = (FRAME.0, FRAME.1);
    let (right, bottom) = (SIZE.0 - FRAME.2, SIZE.1 - FRAME.3);
    let points = || plot.lines.iter().flat_map(|line| line.points.iter());
    let x = Scale::new(points().map(|point| point.0), plot.x.log);
    let y = Scale::new(points().map(|point| point.1), plot.y.log);
    let at_x = |value: f64| left + x.place(value) * (right - left);
    let at_y = |value: f64| bottom - y.place(value) * (bottom - top);

    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {} {}\" \
         font-family=\"sans-serif\" font-size=\"13\">\n\
         {}\n<rect width=\"100%\" height=\"100%\" class=\"ground\"/>\n\
         <text x=\"{left}\" y=\"26\" font-size=\"16\" font-weight=\"bold\">{}</text>\n",
        SIZE.0,
        SIZE.1,
        style(),
        escaped(plot.title)
    );
    for mark in &x.marks {
        let at = at_x(*mark);
        let _ = writeln!(
            svg,
            "<path d=\"M{at:.1} {top}V{bottom}\" class=\"grid\"/>\n\
             <text x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
            bottom + 18.0,
            shown(*mark)
        );
    }
    for mark in &y.marks {
        let at = at_y(*mark);
        let _ = writeln!(
            svg,
            "<path d=\"M{left} {at:.1}H{right}\" class=\"grid\"/>\n\
             <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            left - 6.0,
            at + 4.0,
            shown(*mark)
        );
    }
    let _ = writeln!(
        svg,
        "<path d=\"M{left} {top}V{bottom}H{right}\" fill=\"none\" class=\"frame\"/>\n\
         <text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{}</text>\n\
         <text transform=\"translate(18 {}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
        (left + right) / 2.0,
        SIZE.1 - 14.0,
        escaped(plot.x.label),
        (top + bottom) / 2.0,
        escaped(plot.y.label)
    );
    for (number, line) in plot.lines.iter().enumerate() {
        let colour = number % COLOURS.len();
        // A second round of the colours is dashed.
        let dash = match number / COLOURS.len() {
            0 => "",
            _ => " stroke-dasharray=\"6 4\"",
        };
        let good = line.points.iter().filter(|(px, py)| {
            px.is_finite() && py.is_finite() && (!x.log || *px > 0.0) && (!y.log || *py > 0.0)
        });
        let places: Vec<(f64, f64)> = good.map(|(px, py)| (at_x(*px), at_y(*py))).collect();
        let path: Vec<String> = places
            .iter()
            .map(|(px, py)| format!("{px:.1} {py:.1}"))
            .collect();
        if !path.is_empty() {
            let _ = writeln!(
                svg,
                "<path d=\"M{}\" fill=\"none\" class=\"l{colour}\" stroke-width=\"2\"{dash}/>",
                path.join("L")
            );
        }
        for (px, py) in &places {
            let _ = writeln!(
                svg,
                "<circle cx=\"{px:.1}\" cy=\"{py:.1}\" r=\"3.5\" class=\"d{colour}\"/>"
            );
        }
        let key = top + 10.0 + 20.0 * number as f64;
        let _ = writeln!(
            svg,
            "<path d=\"M{} {key}h22\" class=\"l{colour}\" stroke-width=\"3\"{dash}/>\n\
             <text x=\"{}\" y=\"{}\">{}</text>",
            right + 12.0,
            right + 40.0,
            key + 4.0,
            escaped(&line.name)
        );
    }
    svg.push_str("</svg>\n");
    svg
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plot_lies_within_its_frame_and_says_what_it_shows() {
        let svg = draw(&Plot {
            title: "a < b & c",
            x: Axis {
                label: "tasks",
                log: true,
            },
            y: Axis {
                label: "cycles a second",
                log: false,
            },
            lines: vec![Line {
                name: "one".into(),
                points: vec![(1.0, 0.0), (1000.0, 95.0), (10.0, f64::NAN)],
            }],
        });
        assert!(
            svg.contains("a &lt; b &amp; c") && svg.contains(">1,000<") && svg.contains(">100<")
        );
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        let first = format!("<path d=\"M{:.1} {:.1}L", FRAME.0, SIZE.1 - FRAME.3);
        assert!(svg.contains(&first), "{svg}");
    }

    #[test]
    fn marks_are_round_numbers_that_hold_all_values() {
        let scale = Scale::new([3.0, 47.0].into_iter(), false);
        assert_eq!(scale.marks, [0.0, 10.0, 20.0, 30.0, 40.0, 50.0]);
        let scale = Scale::new([0.3, 47.0].into_iter(), true);
        assert_eq!((scale.from, scale.to), (0.1, 100.0));
        // Nothing to show.
        assert!(Scale::new(std::iter::empty(), true).to.is_finite());
    }
}
