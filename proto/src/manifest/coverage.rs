//! Checks that the optimizer files of a manifest hold every element of every unit exactly once, but for what was frozen.
//! Pure.

use std::collections::BTreeMap;

use super::Manifest;

/// Ranges of one unit, and the files that hold them; `None`: they were frozen.
type Ranges<'m> = Vec<([usize; 2], Option<&'m str>)>;

/// Returns the violations, a sentence each.
pub fn problems(manifest: &Manifest) -> Vec<String> {
    let mut problems = vec![];
    let mut held: BTreeMap<&str, Ranges> = manifest.units.keys().map(|unit| (unit.as_str(), vec![])).collect();
    for (unit, ranges) in &manifest.frozen {
        match held.get_mut(unit.as_str()) {
            Some(of_unit) => of_unit.extend(ranges.iter().map(|&range| (range, None))),
            None => problems.push(format!("{unit} was frozen in part, and is no unit of the model")),
        }
    }
    for (file, ranges) in &manifest.optimizer {
        if !manifest.files.contains_key(file) {
            problems.push(format!("{file} holds optimizer state, but is not among the files"));
        }
        for (unit, ranges) in ranges {
            match held.get_mut(unit.as_str()) {
                Some(of_unit) => of_unit.extend(ranges.iter().map(|&range| (range, Some(file.as_str())))),
                None => problems.push(format!("{file} holds optimizer state of {unit}, which is no unit of the model")),
            }
        }
    }
    for (unit, ranges) in held {
        of_unit(unit, manifest.units[unit], ranges, &mut problems);
    }
    problems
}

fn of_unit(unit: &str, numel: usize, mut ranges: Ranges, problems: &mut Vec<String>) {
    ranges.sort_unstable();
    // Everything before it is held.
    let mut end = 0;
    for ([start, stop], file) in ranges {
        let says = file.map_or("frozen was".to_owned(), |file| format!("{file} holds"));
        if start > stop || stop > numel {
            problems.push(format!("{says} [{start}, {stop}) of {unit}, which has {numel} elements"));
            continue;
        }
        if start > end {
            problems.push(format!("no optimizer file holds [{end}, {start}) of {unit}"));
        }
        if start < end.min(stop) {
            problems.push(format!("{says} [{start}, {}) of {unit} once more", end.min(stop)));
        }
        end = end.max(stop);
    }
    if end < numel {
        problems.push(format!("no optimizer file holds [{end}, {numel}) of {unit}"));
    }
}
