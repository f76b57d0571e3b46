//! "Did you mean": the nearest of a few known names.

/// Names from other trainers that no edit distance would find.
const ALIASES: [(&str, &str); 9] = [
    ("lr", "learning_rate"),
    ("batch_size", "micro_batch_size"),
    ("per_device_train_batch_size", "micro_batch_size"),
    ("max_length", "seq_len"),
    ("max_seq_len", "seq_len"),
    ("gradient_clipping", "max_grad_norm"),
    ("gradient_checkpointing", "activation_checkpointing"),
    ("tp", "tensor"),
    ("pp", "pipeline"),
];

/// No name is longer, and the distance's cost grows with the square of the length.
const LONGEST: usize = 64;

pub(super) fn did_you_mean(name: &str) -> String {
    format!("did you mean {name}?")
}

/// The candidate with the fewest edits (a swap of neighbours is one) from `typed`, unless even that is too far.
///
/// Case does not count, and `-` is `_`. The first of equals wins. Short names have to be closer: an edit in four letters.
pub(super) fn nearest<'c>(typed: &str, candidates: impl IntoIterator<Item = &'c str>) -> Option<&'c str> {
    if typed.len() > LONGEST {
        return None;
    }
    let typed = plain(typed);
    let farthest = |candidate: &str| candidate.len().max(typed.len()).div_ceil(4).min(3);
    // No distance is less than the difference of lengths, which costs nothing to know. Candidates are ASCII.
    let letters = typed.chars().count();
    candidates
        .into_iter()
        .filter(|candidate| candidate.len().abs_diff(letters) <= farthest(candidate))
        .map(|candidate| (strsim::osa_distance(&typed, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= farthest(candidate))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// The nearest candidate, or else the one that goes by this name in other trainers.
pub(super) fn nearest_or_alias<'c>(typed: &str, candidates: &[&'c str]) -> Option<&'c str> {
    let alias = || {
        let (_, name) = ALIASES.iter().find(|(alias, _)| alias.eq_ignore_ascii_case(typed))?;
        candidates.iter().copied().find(|candidate| candidate == name)
    };
    nearest(typed, candidates.iter().copied()).or_else(alias)
}

/// The first candidate whose words are all among `typed`'s or the reverse: `steps` for `max_steps`.
pub(super) fn same_words<'c>(typed: &str, candidates: &[&'c str]) -> Option<&'c str> {
    let typed = Some(plain(typed)).filter(|typed| typed.len() <= LONGEST)?;
    candidates.iter().copied().find(|name| all_in(name, &typed) || all_in(&typed, name))
}

fn plain(typed: &str) -> String {
    typed.to_lowercase().replace(['-', ' '], "_")
}

fn all_in(few: &str, many: &str) -> bool {
    few.split('_').all(|word| word.len() > 1 && many.split('_').any(|other| other == word))
}
