//! Plots as SVG that follows the light or dark theme of the reader.

use std::fmt::Write as _;

const SIZE: (f64, f64) = (840.0, 420.0);
/// The edges of the plot; labels and legend are outside.
const LEFT: f64 = 78.0;
const TOP: f64 = 48.0;
const RIGHT: f64 = SIZE.0 - 262.0;
const BOTTOM: f64 = SIZE.1 - 56.0;
/// Distinct for colour-blind readers too; for a light background and for a dark one.
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

/// The style sheet for a light background and for a dark one.
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

/// The range of an axis, and the values that are written beside it.
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
        // Without trailing zeros.
        let text = format!("{value:.4}");
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

/// Draws a plot.
pub(crate) fn draw(plot: &Plot<'_>) -> String {
    let points = || plot.lines.iter().flat_map(|line| line.points.iter());
    let canvas = Canvas {
        x: Scale::new(points().map(|point| point.0), plot.x.log),
        y: Scale::new(points().map(|point| point.1), plot.y.log),
    };
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {} {}\" \
         font-family=\"sans-serif\" font-size=\"13\">\n\
         {}\n<rect width=\"100%\" height=\"100%\" class=\"ground\"/>\n\
         <text x=\"{LEFT}\" y=\"26\" font-size=\"16\" font-weight=\"bold\">{}</text>\n",
        SIZE.0,
        SIZE.1,
        style(),
        escaped(plot.title)
    );
    canvas.axes(&mut svg, plot);
    for (number, line) in plot.lines.iter().enumerate() {
        canvas.line(&mut svg, number, line);
    }
    svg.push_str("</svg>\n");
    svg
}

/// Where values lie in the picture.
struct Canvas {
    x: Scale,
    y: Scale,
}

impl Canvas {
    fn at_x(&self, value: f64) -> f64 {
        LEFT + self.x.place(value) * (RIGHT - LEFT)
    }

    fn at_y(&self, value: f64) -> f64 {
        BOTTOM - self.y.place(value) * (BOTTOM - TOP)
    }

    /// The grid, the marks and labels of both axes.
    fn axes(&self, svg: &mut String, plot: &Plot<'_>) {
        for mark in &self.x.marks {
            let at = self.at_x(*mark);
            let _ = writeln!(
                svg,
                "<path d=\"M{at:.1} {TOP}V{BOTTOM}\" class=\"grid\"/>\n\
                 <text x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
                BOTTOM + 18.0,
                shown(*mark)
            );
        }
        for mark in &self.y.marks {
            let at = self.at_y(*mark);
            let _ = writeln!(
                svg,
                "<path d=\"M{LEFT} {at:.1}H{RIGHT}\" class=\"grid\"/>\n\
                 <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                LEFT - 6.0,
                at + 4.0,
                shown(*mark)
            );
        }
        let _ = writeln!(
            svg,
            "<path d=\"M{LEFT} {TOP}V{BOTTOM}H{RIGHT}\" fill=\"none\" class=\"frame\"/>\n\
             <text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{}</text>\n\
             <text transform=\"translate(18 {}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
            (LEFT + RIGHT) / 2.0,
            SIZE.1 - 14.0,
            escaped(plot.x.label),
            (TOP + BOTTOM) / 2.0,
            escaped(plot.y.label)
        );
    }

    /// A line with its points, and its entry in the legend.
    fn line(&self, svg: &mut String, number: usize, line: &Line) {
        let colour = number % COLOURS.len();
        // The second round of colours is dashed.
        let dash = match number / COLOURS.len() {
            0 => "",
            _ => " stroke-dasharray=\"6 4\"",
        };
        let drawable = |(x, y): &&(f64, f64)| {
            x.is_finite() && y.is_finite() && (!self.x.log || *x > 0.0) && (!self.y.log || *y > 0.0)
        };
        let points = line.points.iter().filter(drawable);
        let places: Vec<(f64, f64)> = points
            .map(|(x, y)| (self.at_x(*x), self.at_y(*y)))
            .collect();
        let path: Vec<String> = places
            .iter()
            .map(|(x, y)| format!("{x:.1} {y:.1}"))
            .collect();
        if !path.is_empty() {
            let _ = writeln!(
                svg,
                "<path d=\"M{}\" fill=\"none\" class=\"l{colour}\" stroke-width=\"2\"{dash}/>",
                path.join("L")
            );
        }
        for (x, y) in &places {
            let _ = writeln!(
                svg,
                "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.5\" class=\"d{colour}\"/>"
            );
        }
        let key = TOP + 10.0 + 20.0 * number as f64;
        let _ = writeln!(
            svg,
            "<path d=\"M{} {key}h22\" class=\"l{colour}\" stroke-width=\"3\"{dash}/>\n\
             <text x=\"{}\" y=\"{}\">{}</text>",
            RIGHT + 12.0,
            RIGHT + 40.0,
            key + 4.0,
            escaped(&line.name)
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plot_lies_within_its_frame_and_labels_its_curves() {
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
        let first = format!("<path d=\"M{:.1} {:.1}L", LEFT, BOTTOM);
        assert!(svg.contains(&first), "{svg}");
    }

    #[test]
    fn tick_marks_are_round_numbers_around_all_values() {
        let scale = Scale::new([3.0, 47.0].into_iter(), false);
        assert_eq!(scale.marks, [0.0, 10.0, 20.0, 30.0, 40.0, 50.0]);
        let scale = Scale::new([0.3, 47.0].into_iter(), true);
        assert_eq!((scale.from, scale.to), (0.1, 100.0));
        // Nothing to show.
        assert!(Scale::new(std::iter::empty(), true).to.is_finite());
    }
}
