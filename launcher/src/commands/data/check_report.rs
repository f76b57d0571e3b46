//! What `dslaunch data check` prints, for people in 80 columns and as JSON.

use std::fmt::Write;

use serde::Serialize;

use crate::data::{Bin, ClassFound, DataError, Duplicate, Findings, Found, Lengths, LongRow, Split};

/// Classes that have a line of their own; more are counted.
const CLASSES_SHOWN: usize = 12;

/// Characters of a class's name; more are cut.
const NAME_CHARS: usize = 14;

/// Columns of a terminal.
const COLUMNS: usize = 80;

/// What is known of a split.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum SplitReport {
    /// All of its rows are sound.
    Sound(Box<Findings>),
    /// There is no data to look at.
    Bad {
        /// Why, a line each.
        problems: Vec<String>,
        /// How many there are: more than were kept, perhaps.
        num_problems: u64,
    },
}

impl SplitReport {
    /// Of data that cannot be prepared.
    pub fn of_error(error: &DataError) -> Self {
        match error {
            DataError::Problems(problems) => {
                let lines = problems.shown.iter().map(ToString::to_string).collect();
                Self::Bad { problems: lines, num_problems: problems.total }
            }
            other => Self::Bad { problems: vec![other.to_string()], num_problems: 1 },
        }
    }
}

/// All splits as one object, in which `faults` says what of them is lost or doubled.
pub fn json(reports: &[(Split, SplitReport)]) -> String {
    let mut object = serde_json::Map::new();
    for (split, report) in reports {
        let mut report_json = serde_json::to_value(report).expect("a report is plain data");
        if let SplitReport::Sound(findings) = report {
            report_json["faults"] = findings.faults().into();
        }
        object.insert(split.name(), report_json);
    }
    serde_json::to_string_pretty(&object).expect("a report is plain data") + "\n"
}

/// All splits, and in the last line what is wrong.
pub fn text(reports: &[(Split, SplitReport)]) -> String {
    let (mut text, mut faults) = (String::new(), vec![]);
    for (split, report) in reports {
        match report {
            SplitReport::Sound(findings) => {
                text += &of_split(split, findings);
                faults.extend(findings.faults().into_iter().map(|fault| format!("{} data: {fault}", split.name())));
            }
            SplitReport::Bad { num_problems, .. } => {
                let noun = if *num_problems == 1 { "problem" } else { "problems" };
                faults.push(format!("{} data: {} {noun}, told above", split.name(), number(*num_problems)));
            }
        }
    }
    text += &if faults.is_empty() { "every row is trained once and whole\n".into() } else { faults.join("\n") + "\n" };
    text
}

fn of_split(split: &Split, findings: &Findings) -> String {
    let Findings { files, file_rows, samples, tokens, trained_tokens, packed_rows, seq_len, fill, .. } = findings;
    let (share, per_row) = (*trained_tokens as f64 / *tokens as f64, *samples as f64 / *packed_rows as f64);
    let [file_rows, samples, tokens, trained_tokens, packed_rows] =
        [file_rows, samples, tokens, trained_tokens, packed_rows].map(|count| number(*count));
    let mut text = format!("{} data\n", split.name());
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "  {name:<10} {value}");
    };
    line("rows", format!("{file_rows} of {files} {}", if *files == 1 { "file" } else { "files" }));
    line(
        "samples",
        match findings.packs_batches {
            true => format!("{samples}, packed within each batch"),
            false => format!("{samples} in {packed_rows} rows of {seq_len} tokens, {per_row:.1} in each"),
        },
    );
    line("tokens", format!("{tokens}, {trained_tokens} of them trained ({:.1} %)", 100.0 * share));
    if !findings.packs_batches {
        line("fill", format!("{:.1} % of the tokens that rows can have", 100.0 * fill));
    }
    text += &of_lengths(&findings.lengths);
    text += &of_classes(&findings.classes);
    text += &of_faults(findings);
    text.push('\n');
    text
}

fn of_lengths(lengths: &Lengths) -> String {
    let Lengths { min, mean, max, percentiles, histogram } = lengths;
    let mut text = format!("  lengths    {} to {} tokens, {mean:.1} on average\n", number(*min), number(*max));
    let percentiles: Vec<_> = percentiles.iter().map(|(percent, tokens)| format!("{percent} %: {tokens}")).collect();
    let _ = writeln!(text, "             {}", percentiles.join("  "));
    text += &bars(histogram);
    text
}

/// A line for each of the largest classes: its shares of the samples, and of the tokens that are trained.
fn of_classes(classes: &[ClassFound]) -> String {
    let all = |count: fn(&ClassFound) -> u64| classes.iter().map(count).sum::<u64>().max(1) as f64;
    let (samples, trained) = (all(|class| class.samples), all(|class| class.trained_tokens));
    let cut = |name: &str| match name.char_indices().nth(NAME_CHARS) {
        Some((end, _)) => format!("{:?}", name[..end].to_owned() + "…"),
        None => format!("{name:?}"),
    };
    let shown = &classes[..classes.len().min(CLASSES_SHOWN)];
    let width = shown.iter().map(|class| cut(&class.name).chars().count()).max().unwrap_or(0);
    let mut text = String::new();
    for (idx, class) in shown.iter().enumerate() {
        let [of_samples, of_trained] =
            [class.samples as f64 / samples, class.trained_tokens as f64 / trained].map(|share| 100.0 * share);
        let (head, name, count) = (if idx == 0 { "classes" } else { "" }, cut(&class.name), number(class.samples));
        let noun = if class.samples == 1 { "sample" } else { "samples" };
        let _ = writeln!(
            text,
            "  {head:<10} {name:<width$}  {count} {noun} ({of_samples:.1} %), trained tokens {of_trained:.1} %"
        );
    }
    if let more @ 1.. = classes.len() - shown.len() {
        let rest = classes[CLASSES_SHOWN..].iter().map(|class| class.samples).sum();
        let _ = writeln!(text, "  {:<10} and {} more with {} samples", "", number(more as u64), number(rest));
    }
    text
}

/// A line for each bin: its tokens, a bar, and how many samples there are. The longest bar ends where the screen does.
fn bars(histogram: &[Bin]) -> String {
    let rows: Vec<_> = histogram
        .iter()
        .map(|bin| {
            let range =
                if bin.from == bin.to { number(bin.to) } else { format!("{} - {}", number(bin.from), number(bin.to)) };
            (range, bin.samples, number(bin.samples))
        })
        .collect();
    let most = histogram.iter().map(|bin| bin.samples).max().unwrap_or(0).max(1);
    let ranges = rows.iter().map(|(range, ..)| range.len()).max().unwrap_or(0);
    let counts = rows.iter().map(|(.., count)| count.len()).max().unwrap_or(0);
    let room = COLUMNS.saturating_sub(2 + ranges + 2 + 2 + counts).max(1) as u64;
    let mut text = String::new();
    for (range, samples, count) in &rows {
        // Whatever is there is seen.
        let len = (samples * room).div_ceil(most) as usize;
        let bar = format!("{}  {count}", "#".repeat(len));
        let _ = writeln!(text, "  {range:>ranges$}  {}", bar.trim_start());
    }
    text
}

fn of_faults(findings: &Findings) -> String {
    let Findings { truncated, dropped, split, empty, untrained, duplicates, repeated_files, in_training, .. } =
        findings;
    let (seq_len, own) = (findings.seq_len, String::clone);
    let too_long = format!("longer than data.seq_len = {seq_len}");
    let mut text = of_found(&format!("{too_long}: the end is lost"), truncated, of_long);
    text += &of_found(&format!("{too_long}: nothing is left"), dropped, of_long);
    text += &of_found(&format!("{too_long}: split, nothing is lost"), split, own);
    text += &of_found("a single token: nothing follows it", empty, own);
    text += &of_found("nothing in it is trained", untrained, own);
    text += &of_found("the same as an earlier row", duplicates, of_duplicate);
    text += &of_found("a row of the training data, too", in_training, of_duplicate);
    for name in repeated_files {
        let _ = writeln!(text, "  {name} is named more than once");
    }
    text
}

/// What is wrong, how often, and the first rows with it; nothing where it is not.
fn of_found<T>(what: &str, found: &Found<T>, told: impl Fn(&T) -> String) -> String {
    if found.count == 0 {
        return String::new();
    }
    let noun = if found.count == 1 { "row" } else { "rows" };
    let mut text = format!("  {} {noun}: {what}\n", number(found.count));
    found.first.iter().for_each(|row| {
        let _ = writeln!(text, "    {}", told(row));
    });
    if let more @ 1.. = found.count.saturating_sub(found.first.len() as u64) {
        let _ = writeln!(text, "    and {} more", number(more));
    }
    text
}

fn of_long(row: &LongRow) -> String {
    format!("{} has {} tokens", row.place, number(row.tokens as u64))
}

fn of_duplicate(row: &Duplicate) -> String {
    format!("{} is {}", row.place, row.same_as)
}

/// With a comma for each thousand.
fn number(value: u64) -> String {
    let digits = value.to_string();
    let groups: Vec<_> = digits.as_bytes().rchunks(3).rev().map(|group| String::from_utf8_lossy(group)).collect();
    groups.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(count: u64, places: &[&str]) -> Found<String> {
        Found { count, first: places.iter().map(|place| place.to_string()).collect() }
    }

    fn sound() -> Findings {
        Findings {
            files: 2,
            file_rows: 1204,
            samples: 1206,
            tokens: 843_112,
            trained_tokens: 421_556,
            packed_rows: 603,
            packs_batches: false,
            seq_len: 4096,
            fill: 0.971,
            lengths: Lengths::of(vec![3, 70, 71, 4096]),
            classes: vec![],
            truncated: Found::default(),
            dropped: Found::default(),
            split: found(2, &["a.jsonl:7"]),
            empty: Found::default(),
            untrained: Found::default(),
            duplicates: Found::default(),
            repeated_files: vec![],
            in_training: Found::default(),
        }
    }

    #[test]
    fn a_sound_split_is_measured_within_80_columns() {
        let text = text(&[(Split::Train, SplitReport::Sound(Box::new(sound())))]);
        let expected = "\
train data
  rows       1,204 of 2 files
  samples    1,206 in 603 rows of 4096 tokens, 2.0 in each
  tokens     843,112, 421,556 of them trained (50.0 %)
  fill       97.1 % of the tokens that rows can have
  lengths    3 to 4,096 tokens, 1060.0 on average
             1 %: 3  5 %: 3  25 %: 3  50 %: 70  75 %: 71  95 %: 4096  99 %: 4096
";
        assert!(text.starts_with(expected), "{text}");
        let bars: Vec<_> = text.lines().filter(|line| line.contains(" - ")).collect();
        assert_eq!(bars.len(), 9, "{text}");
        assert_eq!((bars[0].len(), bars[0].ends_with("#  3")), (80, true), "{text}");
        assert_eq!(bars[1], "      500 - 999  0");
        assert_eq!(bars[8].matches('#').count(), 20, "{text}");
        let end = "  2 rows: longer than data.seq_len = 4096: split, nothing is lost\n    a.jsonl:7\n    and 1 more\n\n\
                   every row is trained once and whole\n";
        assert!(text.ends_with(end), "{text}");
    }

    #[test]
    fn classes_have_their_shares_of_samples_and_of_what_is_trained() {
        let class = |name: &str, samples, trained_tokens| ClassFound {
            name: name.into(),
            samples,
            tokens: 2 * trained_tokens,
            trained_tokens,
        };
        let classes = [class("law", 3000, 10), class("maths and all that belongs to it", 999, 20), class("a", 1, 10)];
        let expected = "  classes    \"law\"              3,000 samples (75.0 %), trained tokens 25.0 %
             \"maths and all …\"  999 samples (25.0 %), trained tokens 50.0 %
             \"a\"                1 sample (0.0 %), trained tokens 25.0 %
";
        assert_eq!(of_classes(&classes), expected);
        let many: Vec<_> = (0..15).map(|idx| class(&idx.to_string(), 100, 1)).collect();
        assert!(of_classes(&many).ends_with("             and 3 more with 300 samples\n"), "{}", of_classes(&many));
        assert_eq!(of_classes(&[]), "");
    }

    #[test]
    fn what_is_lost_or_doubled_is_named_and_counted() {
        let long = |place: &str, tokens| LongRow { place: place.into(), tokens };
        let findings = Findings {
            truncated: Found { count: 1, first: vec![long("a.jsonl:3", 5000)] },
            untrained: found(1200, &[]),
            duplicates: Found {
                count: 1,
                first: vec![Duplicate { place: "b.parquet: row 2".into(), same_as: "a.jsonl:9".into() }],
            },
            split: Found::default(),
            ..sound()
        };
        let reports = [(Split::Train, SplitReport::Sound(Box::new(findings)))];
        let expected = "
  1 row: longer than data.seq_len = 4096: the end is lost
    a.jsonl:3 has 5,000 tokens
  1,200 rows: nothing in it is trained
    and 1,200 more
  1 row: the same as an earlier row
    b.parquet: row 2 is a.jsonl:9

train data: 1 row is truncated
train data: 1200 rows are without anything that is trained
train data: 1 row is there more than once
";
        let text = text(&reports);
        assert!(text.ends_with(expected), "{text}");
        let json: serde_json::Value = serde_json::from_str(&json(&reports)).unwrap();
        assert_eq!(json["train"]["truncated"]["first"][0]["tokens"], 5000);
        assert_eq!(json["train"]["faults"][0], "1 row is truncated");
        assert_eq!(json["train"]["lengths"]["histogram"][0]["from"], 0);
    }

    #[test]
    fn bad_rows_are_counted_in_text_and_listed_in_json() {
        let bad = SplitReport::Bad { problems: vec!["a.jsonl:1: not valid UTF-8".into()], num_problems: 21 };
        let reports = [(Split::Validation, bad)];
        assert_eq!(text(&reports), "validation data: 21 problems, told above\n");
        let json: serde_json::Value = serde_json::from_str(&json(&reports)).unwrap();
        assert_eq!(json["validation"]["problems"][0], "a.jsonl:1: not valid UTF-8");
        assert_eq!(json["validation"]["num_problems"], 21);
    }
}
