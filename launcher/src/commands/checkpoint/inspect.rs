//! `dslaunch checkpoint inspect`: describes a checkpoint for people. Pure, but for a look at its run's link to the best one.

use std::path::Path;

use proto::manifest::{Manifest, UnitRanges};
use proto::model_config::DiskDType;
use proto::run_dir::RunDir;

use crate::output::units::{bytes, count, plural, printable};

/// The checkpoint as a table, then its files, then who holds which part of the optimizer state.
pub fn table(checkpoint: &Path, manifest: &Manifest) -> String {
    let progress = manifest.progress;
    let rows = [
        ("checkpoint", checkpoint.display().to_string()),
        ("step", progress.step.to_string()),
        ("rows", format!("{} taken, counted over all epochs", progress.rows)),
        ("tokens", format!("{} label tokens trained on", progress.label_tokens)),
        ("seed", manifest.seed.to_string()),
        ("data", manifest.data.clone()),
        ("validation", validation(checkpoint, manifest)),
        ("model", model(manifest)),
        ("files", files_in_all(manifest)),
        (
            "manifest",
            if manifest.is_sealed() { "as written" } else { "without a seal: an earlier dslaunch wrote it" }.to_owned(),
        ),
    ];
    let mut lines: Vec<String> = rows.map(|(name, text)| format!("{name:<12}{}", printable(&text))).into();
    lines.extend(files(manifest));
    let ranks = plural(manifest.optimizer.len() as u64, "rank");
    lines.push(format!("{:<12}written by {ranks}", "optimizer"));
    lines.extend(optimizer(manifest));
    lines.join("\n")
}

/// What validations have shown up to its step, and whether it is the best of its run.
fn validation(checkpoint: &Path, manifest: &Manifest) -> String {
    let validations = manifest.progress.validations;
    if validations.step == 0 {
        return "none so far".to_owned();
    }
    let here = match validations.at(manifest.progress.step) {
        Some(scored) => format!("loss {:.4}", scored.loss),
        None if validations.step == manifest.progress.step => "the loss is not a number".to_owned(),
        None => format!("none at this step, the newest after step {}", validations.step),
    };
    let best = validations.best.map(|best| format!("; the best so far {:.4} after step {}", best.loss, best.step));
    let without = match validations.without_improvement {
        0 => String::new(),
        since => format!("; {} since without improvement", plural(since, "validation")),
    };
    let is_best = if is_best_of_its_run(checkpoint) { "; the best of its run directory" } else { "" };
    format!("{here}{}{without}{is_best}", best.unwrap_or_default())
}

fn is_best_of_its_run(checkpoint: &Path) -> bool {
    let Ok(real) = checkpoint.canonicalize() else { return false };
    let run_dir = real.parent().and_then(Path::parent).map(RunDir::new);
    let best = run_dir.and_then(|run_dir| run_dir.best().canonicalize().ok());
    best.is_some_and(|best| best == real)
}

fn model(manifest: &Manifest) -> String {
    let model = &manifest.model;
    let dtype = match model.dtype {
        Some(DiskDType::Bf16) => ", bf16 on disk",
        Some(DiskDType::F16) => ", fp16 on disk",
        Some(DiskDType::F32) => ", fp32 on disk",
        None => "",
    };
    format!(
        "{} parameters in {} ({}, hidden size {}, vocabulary {}){dtype}",
        count(manifest.units.values().map(|&numel| numel as u64).fold(0, u64::saturating_add)),
        plural(manifest.units.len() as u64, "unit"),
        plural(model.num_hidden_layers as u64, "layer"),
        model.hidden_size,
        model.vocab_size,
    )
}

fn files_in_all(manifest: &Manifest) -> String {
    let sum = manifest.files.values().map(|file| file.bytes).fold(0, u64::saturating_add);
    format!("{}, {}", manifest.files.len(), bytes(sum))
}

fn files(manifest: &Manifest) -> impl Iterator<Item = String> {
    let width = manifest.files.keys().map(|name| name.chars().count()).max().unwrap_or(0);
    let line = move |name: &String, size: u64| format!("  {:<width$}  {:>10}", printable(name), bytes(size));
    manifest.files.iter().map(move |(name, file)| line(name, file.bytes))
}

fn optimizer(manifest: &Manifest) -> impl Iterator<Item = String> {
    manifest.optimizer.iter().map(|(name, ranges)| {
        let held = ranges.values().flatten().map(|[start, end]| end.saturating_sub(*start) as u64);
        let held = count(held.fold(0, u64::saturating_add));
        let units = plural(ranges.len() as u64, "unit");
        printable(&format!("  {name}  {held} parameters of {units}: {}", summary(ranges)))
    })
}

/// Units whose names count on from each other, with the same ranges.
struct Run<'m> {
    prefix: &'m str,
    /// The first and the last number, if the name ends with one.
    numbers: Option<[u64; 2]>,
    ranges: &'m [[usize; 2]],
}

/// `embed_tokens [0, 64), layers.0-29 [0, 128)`.
fn summary(ranges: &UnitRanges) -> String {
    let mut units: Vec<_> = ranges.iter().map(|(unit, ranges)| (numbered(unit), &ranges[..])).collect();
    // By number, not by digits.
    units.sort();
    let mut runs: Vec<Run> = vec![];
    for ((prefix, number), ranges) in units {
        let before = runs.last_mut().filter(|run| run.prefix == prefix && run.ranges == ranges);
        match (before.and_then(|run| run.numbers.as_mut()), number) {
            (Some([_, last]), Some(number)) if last.checked_add(1) == Some(number) => *last = number,
            _ => runs.push(Run { prefix, numbers: number.map(|number| [number, number]), ranges }),
        }
    }
    let text = |Run { prefix, numbers, ranges }| match numbers {
        None => format!("{prefix} {}", listed(ranges)),
        Some([first, last]) if first == last => format!("{prefix}{first} {}", listed(ranges)),
        Some([first, last]) => format!("{prefix}{first}-{last} {}", listed(ranges)),
    };
    runs.into_iter().map(text).collect::<Vec<_>>().join(", ")
}

/// `[0, 64)`, or `[0, 64) and 8 more` where tensor parallelism cuts each parameter.
fn listed(ranges: &[[usize; 2]]) -> String {
    match ranges {
        [] => "nothing".to_owned(),
        [[start, end]] => format!("[{start}, {end})"),
        [[start, end], rest @ ..] => format!("[{start}, {end}) and {} more", rest.len()),
    }
}

/// A unit's name and the number that it ends with, `layers.` and 12.
fn numbered(unit: &str) -> (&str, Option<u64>) {
    let prefix = unit.trim_end_matches(|c: char| c.is_ascii_digit());
    match unit[prefix.len()..].parse() {
        // Written as a number is: no zeros before it.
        Ok(number) if format!("{prefix}{number}") == unit => (prefix, Some(number)),
        _ => (unit, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_with_the_same_range_are_one_entry_in_the_order_of_their_numbers() {
        let check = |units: &[(&str, [usize; 2])], expected: &str| {
            let units = units.iter().map(|&(unit, range)| (unit.to_owned(), vec![range]));
            assert_eq!(summary(&units.collect()), expected);
        };
        let mut units = vec![("embed_tokens", [0, 64]), ("head", [0, 65])];
        let layers: Vec<String> = (0..12).map(|layer| format!("layers.{layer}")).collect();
        units.extend(layers.iter().map(|layer| (layer.as_str(), [0, 128])));
        check(&units, "embed_tokens [0, 64), head [0, 65), layers.0-11 [0, 128)");
        check(&[("layers.1", [0, 4]), ("layers.2", [4, 8]), ("layers.4", [4, 8])], {
            "layers.1 [0, 4), layers.2 [4, 8), layers.4 [4, 8)"
        });
        check(&[("layers.01", [0, 4]), ("9", [0, 4])], "9 [0, 4), layers.01 [0, 4)");
        check(&[], "");
    }
}
