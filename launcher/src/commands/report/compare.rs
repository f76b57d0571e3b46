//! The page of several runs: their curves one over the other, and in what their settings differ. Pure.

use std::collections::BTreeSet;

use serde_json::Value;

use super::chart::STYLE;
use super::charts;
use super::html::{escaped, notes, page, section, table};
use super::page::{cards_of, figure};
use super::read::Run;

/// The page of `runs`. `made`: when, in words.
pub fn of(runs: &[Run], made: &str) -> String {
    let names = names(runs);
    let charts = charts::compared(runs, &names);
    let figures: String = charts.iter().enumerate().map(|(at, chart)| figure(chart, at == 0)).collect();
    let figures = if figures.is_empty() { figures } else { format!("<div class=\"charts\">\n{figures}</div>\n") };
    let of_runs: Vec<String> = runs
        .iter()
        .zip(&names)
        .flat_map(|(run, name)| run.notes.iter().map(move |note| format!("{name}: {note}")))
        .collect();
    let title = names.join(", ");
    let body = [
        format!(
            "<header>\n<h1>{}</h1>\n<p class=\"faint\">report made {}</p>\n</header>\n",
            escaped(&title),
            escaped(made)
        ),
        notes(&of_runs),
        section("Results", &results(runs, &names)),
        section("Curves", &figures),
        section("Settings that differ", &differences(runs, &names)),
    ];
    page(&title, &body.concat(), STYLE)
}

/// A name for each run that no other has.
fn names(runs: &[Run]) -> Vec<String> {
    let count = |name: &str| runs.iter().filter(|run| run.name == name).count();
    let names = runs.iter().map(|run| match count(&run.name) {
        1 => run.name.clone(),
        _ => run.dir.display().to_string(),
    });
    names.collect()
}

fn results(runs: &[Run], names: &[String]) -> String {
    let all: Vec<Vec<(String, String)>> = runs.iter().map(cards_of).collect();
    let mut keys: Vec<&String> = vec![];
    for (key, _) in all.iter().flatten() {
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    let value = |cards: &Vec<(String, String)>, key: &String| {
        cards.iter().find(|(name, _)| name == key).map_or(String::new(), |(_, value)| value.clone())
    };
    let outcomes = runs.iter().map(|run| run.timeline.outcome.word.clone());
    let mut rows = vec![["outcome".to_owned()].into_iter().chain(outcomes).collect::<Vec<_>>()];
    rows.extend(
        keys.iter().map(|key| [(*key).clone()].into_iter().chain(all.iter().map(|cards| value(cards, key))).collect()),
    );
    table("results", &heads(names), &rows)
}

fn differences(runs: &[Run], names: &[String]) -> String {
    let keys: BTreeSet<&String> = runs.iter().flat_map(|run| run.settings.keys()).collect();
    let texts = |key: &String| {
        runs.iter().map(|run| run.settings.get(key).map_or("unset".to_owned(), Value::to_string)).collect::<Vec<_>>()
    };
    let rows = keys.into_iter().map(|key| (key, texts(key)));
    let rows = rows.filter(|(_, texts)| texts.iter().any(|text| *text != texts[0]));
    let rows: Vec<Vec<String>> = rows.map(|(key, texts)| [key.clone()].into_iter().chain(texts).collect()).collect();
    if rows.is_empty() {
        return "<p>None that can change a result.</p>\n".to_owned();
    }
    table("settings that differ", &heads(names), &rows)
}

fn heads(names: &[String]) -> Vec<&str> {
    [""].into_iter().chain(names.iter().map(String::as_str)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::report::page::tests::run;

    #[test]
    fn curves_lie_over_each_other_and_only_what_differs_is_listed() {
        let page = of(&[run("a", 10), run("b<", 20)], "now");
        for part in
            ["<title>a, b&lt;</title>", "Training loss", "Validation loss", "train.steps", "b&lt;: a note &amp; more"]
        {
            assert!(page.contains(part), "{part}");
        }
        assert!(!page.contains("model.path"), "it is the same");
        let loss = page.split("<h3>Training loss").nth(1).unwrap().split("</figure>").next().unwrap();
        assert!(loss.contains("curve s0") && loss.contains("curve s1"));
    }

    #[test]
    fn runs_of_one_name_are_told_apart() {
        let mut runs = [run("a", 1), run("a", 1)];
        runs[1].dir = "/elsewhere".into();
        assert_eq!(names(&runs), ["/runs/a", "/elsewhere"]);
        assert!(of(&runs, "now").contains("None that can change a result."));
    }
}
