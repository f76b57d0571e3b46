//! Which charts a report has: of one run, and of several, one over the other. Pure.

use super::chart::{COLOURS, Chart};
use super::read::{Curve, Run};
use super::series::{Point, Series, Stroke, smoothed};
use crate::output::sinks::catalogue::{
    EVAL_LOSS, EXCHANGE_SHARE, GPU_CLOCK, GPU_MEMORY, GPU_POWER, GPU_TEMPERATURE, GPU_UTILIZATION, GRAD_NORM,
    LEARNING_RATE, LOSS, Metric, PIPELINE_BUBBLE, SET_LOSS, STEP_SECONDS, Subject, TOKENS_PER_SECOND,
};

/// Bytes in the unit in which memory is shown.
const GIB: f64 = (1_u64 << 30) as f64;

/// Charts of one metric, after that of losses.
static SINGLE: [(&Metric, &str); 4] = [
    (&LEARNING_RATE, "Learning rate"),
    (&GRAD_NORM, "Gradient norm"),
    (&TOKENS_PER_SECOND, "Tokens per second"),
    (&STEP_SECONDS, "Time of a step"),
];

/// Charts of the GPUs.
static OF_GPUS: [(&Metric, &str); 5] = [
    (&GPU_MEMORY, "GPU memory in use"),
    (&GPU_UTILIZATION, "GPU utilisation"),
    (&GPU_TEMPERATURE, "GPU temperature"),
    (&GPU_POWER, "GPU power"),
    (&GPU_CLOCK, "GPU clock"),
];

/// The loss of training and validation.
pub fn loss(run: &Run) -> Chart {
    let mut drawing = Drawing::new(&LOSS, "Loss");
    for curve in run.curves_of(&LOSS) {
        drawing.add(curve, "training", 0, Noise::Faint);
    }
    for curve in run.curves_of(&EVAL_LOSS) {
        drawing.dots(curve, "validation", 1);
    }
    for (number, curve) in run.curves_of(&SET_LOSS).enumerate() {
        if let Subject::Set(set) = &curve.subject {
            drawing.dots(curve, &format!("validation: {set}"), 2 + number);
        }
    }
    drawing.marked(run)
}

/// All others that there are numbers for.
pub fn others(run: &Run) -> Vec<Chart> {
    let mut charts = vec![];
    for (metric, title) in SINGLE {
        let mut drawing = Drawing::new(metric, title);
        let noise = if *metric == LEARNING_RATE { Noise::Exact } else { Noise::Faint };
        run.curves_of(metric).for_each(|curve| drawing.add(curve, metric.key, 0, noise));
        charts.push(drawing);
    }
    let mut waits = Drawing::new(&EXCHANGE_SHARE, "Part of a step spent waiting");
    run.curves_of(&PIPELINE_BUBBLE)
        .for_each(|curve| waits.add(curve, "pipeline stages for each other", 0, Noise::Left));
    run.curves_of(&EXCHANGE_SHARE).for_each(|curve| waits.dots(curve, "rank 0 for exchanges", 1));
    charts.push(waits);
    for (metric, title) in OF_GPUS {
        let mut drawing = Drawing::new(metric, title);
        for curve in run.curves_of(metric) {
            let Subject::Gpu(gpu) = curve.subject else { continue };
            let noise = if *metric == GPU_MEMORY { Noise::Exact } else { Noise::Left };
            drawing.add(curve, &format!("GPU {gpu}"), gpu, noise);
        }
        charts.push(drawing);
    }
    charts.into_iter().map(|drawing| drawing.marked(run)).filter(|chart| !chart.is_empty()).collect()
}

/// The same of several runs, each in a colour of its own, which `names` names.
pub fn compared(runs: &[Run], names: &[String]) -> Vec<Chart> {
    let titles = [(&LOSS, "Training loss"), (&EVAL_LOSS, "Validation loss")];
    let charts = titles.into_iter().chain(SINGLE).map(|(metric, title)| {
        let mut drawing = Drawing::new(metric, title);
        for (colour, (run, name)) in runs.iter().zip(names).enumerate() {
            for curve in run.curves_of(metric) {
                if metric == &EVAL_LOSS {
                    drawing.dots(curve, name, colour);
                } else {
                    let noise = match metric {
                        metric if *metric == LOSS => Noise::Faint,
                        metric if *metric == LEARNING_RATE => Noise::Exact,
                        _ => Noise::Left,
                    };
                    drawing.add(curve, name, colour, noise);
                }
            }
        }
        drawing.0
    });
    charts.filter(|chart| !chart.is_empty()).collect()
}

/// What becomes of the points themselves where a mean stands for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Noise {
    /// They are a faint line behind it.
    Faint,
    /// They are left out: there are too many curves.
    Left,
    /// None does: each of them counts, or none is off the line.
    Exact,
}

/// A chart that is being made.
struct Drawing(Chart);

impl Drawing {
    fn new(metric: &Metric, title: &str) -> Self {
        let unit = match metric.unit {
            "B" => "GiB",
            // A bare number.
            "1" => "",
            unit => unit,
        };
        Self(Chart { id: metric.key.to_owned(), title: title.to_owned(), unit: unit.to_owned(), ..Chart::default() })
    }

    /// Adds a curve: as it is, or as its mean where it has many points.
    fn add(&mut self, curve: &Curve, label: &str, colour: usize, noise: Noise) {
        let points = in_unit(curve);
        let stroke = if (colour / COLOURS).is_multiple_of(2) { Stroke::Line } else { Stroke::Dashed };
        let series = |points: Vec<Point>, stroke| Series { label: label.to_owned(), points, colour, stroke };
        let Some(mean) = smoothed(&points).filter(|_| noise != Noise::Exact) else {
            self.0.series.push(series(points, stroke));
            return;
        };
        self.0.has_means = true;
        if noise == Noise::Faint {
            // Behind all other lines.
            self.0.series.insert(0, series(points, Stroke::Faint));
        }
        self.0.series.push(series(mean, stroke));
    }

    /// Adds a curve of few points, each of which is seen.
    fn dots(&mut self, curve: &Curve, label: &str, colour: usize) {
        self.0.series.push(Series { label: label.to_owned(), points: in_unit(curve), colour, stroke: Stroke::Dots });
    }

    /// The chart, with the steps at which `run` failed, as far as they are on it.
    fn marked(self, run: &Run) -> Chart {
        let last =
            self.0.series.iter().filter_map(|series| series.points.last()).map(|(step, _)| *step).fold(0.0, f64::max);
        let steps = run.timeline.failed_steps.iter().map(|&step| step as f64);
        Chart { marks: steps.filter(|step| *step > 0.0 && *step <= last).collect(), ..self.0 }
    }
}

fn in_unit(curve: &Curve) -> Vec<Point> {
    let part = if curve.metric == &GPU_MEMORY { GIB } else { 1.0 };
    curve.points.iter().map(|(step, value)| (*step, value.map(|value| value / part))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::report::page::tests::run;

    #[test]
    fn many_points_are_a_mean_with_the_points_behind_it_and_few_are_themselves() {
        let strokes = |chart: &Chart| chart.series.iter().map(|series| series.stroke).collect::<Vec<_>>();
        let long = loss(&run("long", 100));
        assert_eq!(strokes(&long), [Stroke::Faint, Stroke::Line, Stroke::Dots]);
        assert_eq!(
            (long.scale_in_words().as_str(), long.marks.as_slice()),
            ("nats per label token, logarithmic, running mean", [7.0].as_slice())
        );
        let short = loss(&run("short", 5));
        assert_eq!((strokes(&short), short.has_means, short.marks.len()), (vec![Stroke::Line, Stroke::Dots], false, 0));
    }

    #[test]
    fn there_are_charts_of_what_was_measured_in_its_unit() {
        let charts = others(&run("a", 5));
        let titles: Vec<&str> = charts.iter().map(|chart| chart.title.as_str()).collect();
        assert_eq!(titles, ["Gradient norm", "GPU memory in use"]);
        assert_eq!((charts[1].unit.as_str(), charts[1].series[0].values().next()), ("GiB", Some(3.0)));
        assert_eq!(charts[0].unit, "");
    }
}
