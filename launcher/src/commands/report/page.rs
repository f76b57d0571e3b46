//! The page of one run. Pure.

use std::time::Duration;

use super::chart::{COLOURS, Chart, STYLE, Size};
use super::charts;
use super::html::{escaped, facts, notes, page, section, table};
use super::read::Run;
use super::series::{Series, Stroke, short};
use super::timeline::{Kind, Timeline};
use crate::output::plan_table::plan_rows;
use crate::output::sinks::catalogue::{EVAL_LOSS, LOSS, METRICS, Subject, TOKENS, TOKENS_PER_SECOND};
use crate::output::units;

/// Lines of a story that are shown: the first and the last ones of longer ones.
const MOST_MOMENTS: usize = 300;

/// Samples that are shown: the latest.
const MOST_SAMPLES: usize = 100;

/// The page of `run`. `made`: when, in words.
pub fn of(run: &Run, made: &str) -> String {
    let loss = charts::loss(run);
    let mut figures = figure(&loss, true);
    for chart in charts::others(run) {
        figures += &figure(&chart, false);
    }
    let figures = if figures.is_empty() { String::new() } else { format!("<div class=\"charts\">\n{figures}</div>\n") };
    let body = [
        head(run, made),
        notes(&run.notes),
        cards(&cards_of(run)),
        section("Curves", &figures),
        section("Samples", &samples(run)),
        section("What happened", &story(&run.timeline)),
        section("Plan", &plan(run)),
        section("Checkpoints", &checkpoints(run)),
        section("Settings", &settings(run)),
        section("Last values", &last_values(run)),
    ];
    page(&format!("{}: {}", run.name, run.timeline.outcome.word), &body.concat(), STYLE)
}

/// What the model has written at validations: the latest of each prompt, and those before for whoever asks.
fn samples(run: &Run) -> String {
    let rows: Vec<Vec<String>> = run
        .samples
        .iter()
        .rev()
        .take(MOST_SAMPLES)
        .map(|sample| vec![format!("step {}", sample.step), sample.prompt.clone(), sample.text.clone()])
        .collect();
    let last =
        run.samples.last().map_or(0, |sample| run.samples.iter().filter(|other| other.step == sample.step).count());
    let (latest, before) = rows.split_at(last.min(rows.len()));
    if latest.is_empty() {
        return String::new();
    }
    let heads = ["after", "prompt", "text"];
    let latest: Vec<Vec<String>> = latest.iter().rev().cloned().collect();
    let shown = table("samples of the latest validation", &heads, &latest);
    if before.is_empty() {
        return shown;
    }
    format!("{shown}<details><summary>before</summary>\n{}</details>\n", table("earlier samples", &heads, before))
}

fn head(run: &Run, made: &str) -> String {
    let outcome = &run.timeline.outcome;
    let reason = outcome.reason.as_ref().map_or(String::new(), |reason| format!("<p>{}</p>\n", escaped(reason)));
    format!(
        "<header>\n<h1>{} <span class=\"badge {}\">{}</span></h1>\n{reason}<p class=\"faint\">{} &middot; report made {}</p>\n</header>\n",
        escaped(&run.name),
        class(outcome.kind),
        escaped(&outcome.word),
        escaped(&run.dir.display().to_string()),
        escaped(made),
    )
}

/// The numbers that are asked for first: name and value.
pub fn cards_of(run: &Run) -> Vec<(String, String)> {
    let story = &run.timeline;
    let mut cards = vec![];
    let mut card = |name: &str, value: Option<String>| cards.extend(value.map(|value| (name.to_owned(), value)));
    let step = run.latest(&LOSS).map(|(step, _)| step);
    card(
        "steps",
        step.map(|step| match &run.plan {
            Some(plan) => format!("{step} of {}", plan.steps),
            None => step.to_string(),
        }),
    );
    card("loss", run.latest(&LOSS).map(|(_, loss)| format!("{loss:.4}")));
    card("best validation loss", run.lowest(&EVAL_LOSS).map(|(_, loss)| format!("{loss:.4}")));
    card("label tokens", run.latest(&TOKENS).map(|(_, tokens)| units::count(tokens as u64)));
    card("tokens/s, median", median(run).map(short));
    let time = Duration::try_from_secs_f64(story.seconds).unwrap_or_default();
    card("time", (!time.is_zero()).then(|| units::duration(time)));
    card("on steps that count", story.goodput.map(|part| format!("{:.1} %", part * 100.0)));
    card("launches", (story.launches > 1).then(|| story.launches.to_string()));
    card("restarts", (story.restarts > 0).then(|| story.restarts.to_string()));
    card("memory at most", story.peak_bytes.map(units::bytes));
    cards
}

fn median(run: &Run) -> Option<f64> {
    let mut rates: Vec<f64> =
        run.curves_of(&TOKENS_PER_SECOND).flat_map(|curve| curve.points.iter().filter_map(|point| point.1)).collect();
    rates.sort_by(f64::total_cmp);
    rates.get(rates.len() / 2).copied()
}

fn cards(all: &[(String, String)]) -> String {
    let card = |(name, value): &(String, String)| {
        format!("<div class=\"card\"><b>{}</b><span>{}</span></div>\n", escaped(value), escaped(name))
    };
    format!("<div class=\"cards\">\n{}</div>\n", all.iter().map(card).collect::<String>())
}

/// A chart with its legend, and its last values for whoever reads tables.
pub fn figure(chart: &Chart, is_wide: bool) -> String {
    if chart.is_empty() {
        return String::new();
    }
    let small = chart.svg(Size::SMALL, "small");
    let drawing = match is_wide {
        true => format!(
            "<div class=\"on-narrow\">{small}</div>\n<div class=\"on-wide\">{}</div>\n",
            chart.svg(Size::WIDE, "wide")
        ),
        false => small,
    };
    let shown = || chart.series.iter().filter(|series| series.stroke != Stroke::Faint);
    let legend: String = if shown().count() > 1 { shown().map(entry).collect() } else { String::new() };
    let legend = if legend.is_empty() { legend } else { format!("<ul class=\"legend\">\n{legend}</ul>\n") };
    let marks = match chart.marks.len() {
        0 => "",
        _ => "<figcaption>dashed lines: steps at which training failed</figcaption>\n",
    };
    let rows: Vec<Vec<String>> = chart.series.iter().filter_map(values).collect();
    let heads = ["curve", "first", "lowest", "highest", "last"];
    format!(
        "<figure{}>\n<h3>{} <span>{}</span></h3>\n{legend}{drawing}{}<details><summary>values</summary>\n{}</details>\n</figure>\n",
        if is_wide { " class=\"wide\"" } else { "" },
        escaped(&chart.title),
        escaped(&chart.scale_in_words()),
        if is_wide { marks } else { "" },
        table(&format!("{}: values", chart.title), &heads, &rows),
    )
}

fn entry(series: &Series) -> String {
    let class = series.colour % COLOURS;
    let dashed = if series.stroke == Stroke::Dashed { " dashed" } else { "" };
    format!(
        "<li><svg class=\"chart\" viewBox=\"0 0 22 8\" aria-hidden=\"true\"><path class=\"curve s{class}{dashed}\" d=\"M0 4L22 4\"/></svg>{}</li>\n",
        escaped(&series.label)
    )
}

fn values(series: &Series) -> Option<Vec<String>> {
    let (first, last) = (series.values().next()?, series.values().last()?);
    let (low, high) =
        (series.values().fold(f64::INFINITY, f64::min), series.values().fold(f64::NEG_INFINITY, f64::max));
    Some([series.label.clone()].into_iter().chain([first, low, high, last].map(short)).collect())
}

fn story(timeline: &Timeline) -> String {
    let all = &timeline.moments;
    let left_out = all.len().saturating_sub(MOST_MOMENTS);
    let half = MOST_MOMENTS / 2;
    let mut items = String::new();
    for (at, told) in all.iter().enumerate() {
        if left_out > 0 && at == half {
            items += &format!(
                "<li><time></time><span></span><p class=\"faint\">{left_out} more lines are in events.jsonl</p></li>\n"
            );
        }
        if left_out > 0 && (half..half + left_out).contains(&at) {
            continue;
        }
        let time = units::duration(Duration::try_from_secs_f64(told.at).unwrap_or_default());
        let mark = match told.kind {
            Kind::Good => "✓",
            Kind::Warning => "!",
            Kind::Bad => "✗",
            Kind::Plain => "·",
        };
        let class = class(told.kind);
        let text = escaped(&told.text);
        items += &format!(
            "<li><time>{time}</time><span class=\"{class}\" aria-hidden=\"true\">{mark}</span><p>{text}</p></li>\n"
        );
    }
    if items.is_empty() { items } else { format!("<ol class=\"story\">\n{items}</ol>\n") }
}

/// The class of a kind in the style sheet.
pub fn class(kind: Kind) -> &'static str {
    match kind {
        Kind::Good => "good",
        Kind::Warning => "warning",
        Kind::Bad => "bad",
        Kind::Plain => "plain",
    }
}

fn plan(run: &Run) -> String {
    let rows = run.plan.iter().flat_map(plan_rows).map(|(name, text)| (name.to_owned(), text));
    let rows: Vec<_> = rows.collect();
    if rows.is_empty() { String::new() } else { facts(&rows) }
}

fn checkpoints(run: &Run) -> String {
    let row = |fact: &super::read::CheckpointFact| {
        let state = match (fact.is_complete, fact.is_best) {
            (true, true) => "complete, the best",
            (true, false) => "complete",
            (false, _) => "incomplete",
        };
        vec![fact.step.to_string(), fact.name.clone(), units::bytes(fact.bytes), state.to_owned()]
    };
    let rows: Vec<_> = run.checkpoints.iter().map(row).collect();
    if rows.is_empty() { String::new() } else { table("checkpoints", &["step", "folder", "size", ""], &rows) }
}

fn settings(run: &Run) -> String {
    let rows: Vec<_> = run.settings.iter().map(|(key, value)| (key.clone(), value.to_string())).collect();
    if rows.is_empty() {
        return String::new();
    }
    let count = units::plural(rows.len() as u64, "key");
    format!(
        "<details><summary>{count} of train.toml that can change a result, with defaults</summary>\n{}</details>\n",
        facts(&rows)
    )
}

/// Every metric, for whoever does not look at curves.
fn last_values(run: &Run) -> String {
    let mut rows = vec![];
    for metric in METRICS {
        for curve in run.curves_of(metric) {
            let of = match &curve.subject {
                Subject::Job => String::new(),
                Subject::Gpu(gpu) => format!(" of GPU {gpu}"),
                Subject::Set(set) => format!(" of {set}"),
            };
            let last = curve.points.iter().rev().find_map(|(step, value)| Some((*step, (*value)?)));
            let (step, value) = last.map_or(("".to_owned(), "not finite".to_owned()), |(step, value)| {
                (step.to_string(), value.to_string())
            });
            rows.push(vec![format!("{}{of}", metric.key), value, metric.unit.to_owned(), step]);
        }
    }
    if rows.is_empty() { String::new() } else { table("last values", &["metric", "value", "unit", "step"], &rows) }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::commands::report::read::{Curve, SampleFact};
    use crate::commands::report::timeline::{Outcome, Told};
    use crate::output::sinks::catalogue::{GPU_MEMORY, GRAD_NORM};

    /// A run of `steps` steps without a plan.
    pub fn run(name: &str, steps: usize) -> Run {
        let points = |value: fn(f64) -> f64| (1..=steps).map(|step| (step as f64, Some(value(step as f64)))).collect();
        let curve = |metric, subject, value| Curve { metric, subject, points: points(value) };
        let told = Told { at: 3.0, kind: Kind::Bad, text: "<rank 0> has failed".into() };
        let outcome = Outcome { kind: Kind::Bad, word: "failed".into(), reason: Some("no \"budget\"".into()) };
        Run {
            dir: PathBuf::from("/runs").join(name),
            name: name.to_owned(),
            plan: None,
            settings: [("train.steps".to_owned(), steps.into()), ("model.path".to_owned(), "m".into())].into(),
            curves: vec![
                curve(&LOSS, Subject::Job, |step| 9.0 / step),
                curve(&GRAD_NORM, Subject::Job, |_| 1.0),
                curve(&EVAL_LOSS, Subject::Job, |step| 8.0 / step),
                curve(&GPU_MEMORY, Subject::Gpu(1), |_| (3_u64 << 30) as f64),
            ],
            timeline: Timeline {
                moments: vec![told],
                outcome,
                seconds: 75.0,
                failed_steps: vec![7],
                ..Timeline::default()
            },
            checkpoints: vec![],
            samples: [(10, "old"), (20, "new"), (20, "<b>bold</b>")]
                .map(|(step, text)| SampleFact { step, prompt: "Once".into(), text: text.into() })
                .into(),
            notes: vec!["a note & more".into()],
        }
    }

    #[test]
    fn a_page_has_everything_needs_nothing_and_escapes_all() {
        let page = of(&run("<sft>", 100), "now");
        for part in [
            "&lt;sft&gt;",
            "a note &amp; more",
            "no &quot;budget&quot;",
            "&lt;rank 0&gt; has failed",
            "<td>new</td></tr>\n<tr><th scope=\"row\">step 20</th><td>Once</td><td>&lt;b&gt;bold&lt;/b&gt;",
            "<summary>before</summary>",
            "GPU memory in use",
            "1m15s",
            "train.steps",
        ] {
            assert!(page.contains(part), "{part}");
        }
        // No address but that of the namespace, and no script.
        assert_eq!(page.matches("://").count(), page.matches("xmlns=\"http://www.w3.org/2000/svg\"").count());
        assert!(!page.contains("<script") && !page.contains(" src=") && !page.contains("url("));
        let ids: Vec<&str> = page.split(" id=\"").skip(1).map(|rest| rest.split('"').next().unwrap()).collect();
        let unique: std::collections::BTreeSet<_> = ids.iter().collect();
        assert_eq!(unique.len(), ids.len(), "{ids:?}");
    }

    #[test]
    fn a_long_run_is_a_small_page() {
        let page = of(&run("long", 200_000), "now");
        assert!(page.len() < 600_000, "{}", page.len());
    }

    #[test]
    fn a_run_without_rows_is_a_page_too() {
        let empty =
            Run { curves: vec![], settings: Default::default(), timeline: Timeline::default(), ..run("empty", 0) };
        let page = of(&empty, "now");
        assert!(page.contains("<h1>empty") && !page.contains("<figure"), "{page}");
    }
}
