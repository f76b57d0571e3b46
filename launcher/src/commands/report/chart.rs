//! Draws a chart as SVG. Pure: numbers in, text out.
//!
//! - CHA-1 Whoever does not see the chart is told what it shows: a title, and a description with the last values.
//! - CHA-2 Colours are names (`s0`, `grid`) that a style sheet fills in: the page's, or, where the chart stands alone, its own.

use std::fmt::Write;

use super::html::escaped;
use super::series::{Scale, Series, Stroke, short, thinned};

/// The colours of curves that there are; more curves begin again.
pub const COLOURS: usize = 8;

/// A chart.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Chart {
    /// A name for its parts, unique on the page.
    pub id: String,
    /// Its title.
    pub title: String,
    /// The unit of its numbers.
    pub unit: String,
    /// Its curves; later ones lie above.
    pub series: Vec<Series>,
    /// Whether lines are means that run along.
    pub has_means: bool,
    /// Steps at which training failed and went on.
    pub marks: Vec<f64>,
}

/// Width and height, in units of which text is 13 high.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Size {
    width: f64,
    height: f64,
}

impl Size {
    /// For a phone, or a third of a screen.
    pub const SMALL: Self = Self { width: 420.0, height: 236.0 };
    /// For a whole screen.
    pub const WIDE: Self = Self { width: 1140.0, height: 330.0 };
    /// For a file, whose title and legend are drawn too.
    const FILE: Self = Self { width: 960.0, height: 420.0 };
}

const TEXT: f64 = 13.0;
const LEFT: f64 = 56.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 40.0;

/// The rules for a chart, on a page and alone.
pub const STYLE: &str = include_str!("chart.css");

impl Chart {
    /// Whether there is anything to draw.
    pub fn is_empty(&self) -> bool {
        self.series.iter().all(|series| series.values().next().is_none())
    }

    /// The chart for a page that has [`STYLE`]. `variant`: unique among those of this chart.
    pub fn svg(&self, size: Size, variant: &str) -> String {
        self.drawn(size, variant, "")
    }

    /// The chart as a file of its own, with its legend.
    pub fn svg_file(&self) -> String {
        let style = format!("<style>{STYLE}</style>\n<rect class=\"back\" width=\"100%\" height=\"100%\"/>\n");
        self.drawn(Size::FILE, "file", &style)
    }

    fn drawn(&self, size: Size, variant: &str, before: &str) -> String {
        let Size { width, height } = size;
        let name = format!("{}-{variant}", self.id);
        let is_file = !before.is_empty();
        let top = if is_file { TOP + 52.0 } else { TOP };
        let frame = Frame::of(self, size, top);
        let mut svg = format!(
            "<svg class=\"chart\" viewBox=\"0 0 {width} {height}\" role=\"img\" aria-labelledby=\"{name}-t {name}-d\" \
             xmlns=\"http://www.w3.org/2000/svg\">\n<title id=\"{name}-t\">{}</title>\n<desc id=\"{name}-d\">{}</desc>\n{before}",
            escaped(&self.title),
            escaped(&self.description()),
        );
        if is_file {
            svg += &self.legend_in_file();
        }
        svg += &frame.axes();
        for mark in &self.marks {
            let x = frame.x(*mark);
            add(
                &mut svg,
                format_args!(
                    "<line class=\"mark\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{top}\" y2=\"{:.1}\"><title>failure at step {mark}</title></line>",
                    frame.bottom
                ),
            );
        }
        for series in &self.series {
            svg += &frame.curve(series);
        }
        svg + "</svg>\n"
    }

    /// The unit, that the scale is by factors where it is, and that lines are means where they are.
    pub fn scale_in_words(&self) -> String {
        let is_log = Scale::of(self.series.iter().flat_map(Series::values)).is_log;
        let log = if is_log { "logarithmic" } else { "" };
        let mean = if self.has_means { "running mean" } else { "" };
        let parts = [self.unit.as_str(), log, mean];
        parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(", ")
    }

    /// `Training: 2.345 at step 400, lowest 2.3, highest 9.8.` for each curve.
    fn description(&self) -> String {
        let shown = self.series.iter().filter(|series| series.stroke != Stroke::Faint);
        let sentences = shown.filter_map(|series| {
            let (step, last) = series.points.iter().rev().find_map(|(step, value)| Some((*step, (*value)?)))?;
            let (low, high) =
                (series.values().fold(f64::INFINITY, f64::min), series.values().fold(f64::NEG_INFINITY, f64::max));
            Some(format!(
                "{}: {} at step {step}, lowest {}, highest {}.",
                series.label,
                short(last),
                short(low),
                short(high)
            ))
        });
        sentences.collect::<Vec<_>>().join(" ")
    }

    fn legend_in_file(&self) -> String {
        let title = format!("{}, {}", self.title, self.scale_in_words()).trim_end_matches(", ").to_owned();
        let mut svg = format!("<text class=\"title\" x=\"{LEFT}\" y=\"26\">{}</text>\n", escaped(&title));
        let mut x = LEFT;
        for series in self.series.iter().filter(|series| series.stroke != Stroke::Faint) {
            let class = series.colour % COLOURS;
            add(
                &mut svg,
                format_args!("<line class=\"curve s{class}\" x1=\"{x}\" x2=\"{}\" y1=\"45\" y2=\"45\"/>", x + 22.0),
            );
            add(&mut svg, format_args!("<text x=\"{}\" y=\"50\">{}</text>", x + 28.0, escaped(&series.label)));
            x += 28.0 + 8.0 * (series.label.chars().count() as f64 + 3.0);
        }
        svg
    }
}

/// Where the curves are.
struct Frame {
    steps: Scale,
    values: Scale,
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
}

impl Frame {
    fn of(chart: &Chart, size: Size, top: f64) -> Self {
        let all = chart.series.iter().flat_map(|series| series.points.iter().map(|(step, _)| *step));
        let steps = Scale::of_steps(all);
        let values = Scale::of(chart.series.iter().flat_map(Series::values));
        Self { steps, values, left: LEFT, right: size.width - RIGHT, top, bottom: size.height - BOTTOM }
    }

    fn x(&self, step: f64) -> f64 {
        self.left + self.steps.place(step) * (self.right - self.left)
    }

    fn y(&self, value: f64) -> f64 {
        self.bottom - self.values.place(value) * (self.bottom - self.top)
    }

    fn axes(&self) -> String {
        let mut svg = String::new();
        let (left, right, bottom) = (self.left, self.right, self.bottom);
        for tick in self.values.ticks(((bottom - self.top) / 34.0) as usize) {
            let y = self.y(tick);
            add(
                &mut svg,
                format_args!("<line class=\"grid\" x1=\"{left}\" x2=\"{right}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>"),
            );
            add(
                &mut svg,
                format_args!(
                    "<text class=\"y\" x=\"{}\" y=\"{:.1}\">{}</text>",
                    left - 6.0,
                    y + TEXT * 0.35,
                    short(tick)
                ),
            );
        }
        // There are no steps between steps.
        let is_whole = |tick: &f64| (tick - tick.round()).abs() < 1e-6;
        let count = ((right - left) / 90.0) as usize;
        for tick in self.steps.ticks(count).into_iter().filter(is_whole) {
            let x = self.x(tick);
            add(
                &mut svg,
                format_args!(
                    "<line class=\"tick\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{bottom}\" y2=\"{}\"/>",
                    bottom + 4.0
                ),
            );
            add(
                &mut svg,
                format_args!("<text class=\"x\" x=\"{x:.1}\" y=\"{}\">{}</text>", bottom + 4.0 + TEXT, short(tick)),
            );
        }
        add(
            &mut svg,
            format_args!("<line class=\"axis\" x1=\"{left}\" x2=\"{right}\" y1=\"{bottom}\" y2=\"{bottom}\"/>"),
        );
        let below = bottom + 8.0 + 2.0 * TEXT;
        add(
            &mut svg,
            format_args!("<text class=\"x\" x=\"{right}\" y=\"{below}\" style=\"text-anchor:end\">step</text>"),
        );
        svg
    }

    fn curve(&self, series: &Series) -> String {
        let mut path = String::new();
        let mut is_pen_down = false;
        let points = thinned(&series.points);
        for (step, value) in &points {
            let Some(value) = value else {
                is_pen_down = false;
                continue;
            };
            // Writing to a string cannot fail.
            let _ = write!(path, "{}{:.1} {:.1}", if is_pen_down { 'L' } else { 'M' }, self.x(*step), self.y(*value));
            is_pen_down = true;
        }
        let colour = series.colour % COLOURS;
        let kind = match series.stroke {
            Stroke::Line => "",
            Stroke::Faint => " faint",
            Stroke::Dots => " dotted",
            Stroke::Dashed => " dashed",
        };
        let mut svg = String::new();
        if !path.is_empty() {
            add(&mut svg, format_args!("<path class=\"curve s{colour}{kind}\" d=\"{path}\"/>"));
        }
        // A point alone is no line.
        let has_dots = series.stroke == Stroke::Dots && points.len() <= 60 || series.values().count() == 1;
        for (step, value) in points.iter().filter_map(|(step, value)| Some((step, (*value)?))).filter(|_| has_dots) {
            let (x, y, told) = (self.x(*step), self.y(value), short(value));
            let label = escaped(&series.label);
            add(
                &mut svg,
                format_args!(
                    "<circle class=\"dot s{colour}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.5\"><title>{label}: {told} at step {step}</title></circle>"
                ),
            );
        }
        svg
    }
}

fn add(svg: &mut String, element: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    let _ = writeln!(svg, "{element}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(points: Vec<(f64, Option<f64>)>) -> Chart {
        let series = vec![Series { label: "a < b".into(), points, colour: 9, stroke: Stroke::Dots }];
        Chart {
            id: "loss".into(),
            title: "Loss & more".into(),
            unit: "nats".into(),
            series,
            has_means: false,
            marks: vec![2.0],
        }
    }

    #[test]
    fn cha_1_a_chart_says_what_it_shows() {
        let svg = chart(vec![(1.0, Some(4.0)), (2.0, None), (3.0, Some(2.5))]).svg(Size::SMALL, "small");
        assert!(svg.contains("aria-labelledby=\"loss-small-t loss-small-d\""), "{svg}");
        assert!(svg.contains("<title id=\"loss-small-t\">Loss &amp; more</title>"), "{svg}");
        assert!(svg.contains("a &lt; b: 2.5 at step 3, lowest 2.5, highest 4."), "{svg}");
        assert_eq!(svg.matches("<circle class=\"dot s1\"").count(), 2);
        assert!(svg.contains("failure at step 2"));
    }

    #[test]
    fn a_gap_lifts_the_pen_and_all_points_are_inside() {
        let svg = chart(vec![(1.0, Some(4.0)), (2.0, Some(3.0)), (3.0, None), (4.0, Some(2.0))]).svg(Size::SMALL, "s");
        let path = svg.split(" d=\"").nth(1).unwrap().split('"').next().unwrap();
        assert_eq!((path.matches('M').count(), path.matches('L').count()), (2, 1), "{path}");
        for point in path.split(['M', 'L']).skip(1) {
            let (x, y) = point.split_once(' ').unwrap();
            let (x, y): (f64, f64) = (x.parse().unwrap(), y.parse().unwrap());
            assert!((LEFT..=420.0 - RIGHT).contains(&x) && (TOP..=236.0 - BOTTOM).contains(&y), "{point}");
        }
    }

    #[test]
    fn odd_numbers_of_points_are_drawn_too() {
        for points in [vec![], vec![(5.0, None)], vec![(5.0, Some(0.0))], vec![(5.0, Some(1e300)), (6.0, Some(-1e300))]]
        {
            let chart = chart(points);
            let svg = chart.svg_file();
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
            assert!(svg.ends_with("</svg>\n"));
        }
        assert!(chart(vec![(5.0, None)]).is_empty());
    }
}
