//! Formats numbers for people. Pure.

use std::time::Duration;

/// `1h02m`, `3m20s`, `4.2s`.
pub fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    match seconds.round() as u64 {
        0..60 => format!("{seconds:.1}s"),
        whole @ 60..3600 => format!("{}m{:02}s", whole / 60, whole % 60),
        whole => format!("{}h{:02}m", whole / 3600, whole % 3600 / 60),
    }
}

/// `40 s`, and like [`duration`] from a minute on: of what goes on, without parts of a second.
pub fn seconds(duration: Duration) -> String {
    match duration.as_secs() {
        seconds @ 0..60 => format!("{seconds} s"),
        seconds => self::duration(Duration::from_secs(seconds)),
    }
}

/// `1.50 GiB`.
pub fn bytes(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..0x10_0000 => format!("{:.1} KiB", bytes as f64 / 1024.0),
        0x10_0000..0x4000_0000 => format!("{:.1} MiB", bytes as f64 / (1u64 << 20) as f64),
        _ => format!("{:.2} GiB", bytes as f64 / (1u64 << 30) as f64),
    }
}

/// `6.91 B`, `420.0 M`, `33.1 K`, `12`.
pub fn count(count: u64) -> String {
    match count {
        0..10_000 => count.to_string(),
        10_000..1_000_000 => format!("{:.1} K", count as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} M", count as f64 / 1e6),
        _ => format!("{:.2} B", count as f64 / 1e9),
    }
}

/// `1 rank`, `2 ranks`.
pub fn plural(count: u64, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

/// `2, 3, 5`.
pub fn list(numbers: &[usize]) -> String {
    numbers.iter().map(usize::to_string).collect::<Vec<_>>().join(", ")
}

/// Text from a file or a file's name, safe to print: a terminal must not obey it, and it must stay one line.
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_keep_two_units() {
        let check = |seconds: f64, text: &str| assert_eq!(duration(Duration::from_secs_f64(seconds)), text);
        check(4.23, "4.2s");
        check(59.7, "1m00s");
        check(200.0, "3m20s");
        check(3725.0, "1h02m");
        let check = |millis: u64, text: &str| assert_eq!(seconds(Duration::from_millis(millis)), text);
        check(40_900, "40 s");
        check(59_999, "59 s");
        check(60_000, "1m00s");
    }

    #[test]
    fn sizes_keep_their_magnitude() {
        assert_eq!(bytes(1000), "1000 B");
        assert_eq!(bytes(3 << 29), "1.50 GiB");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(count(6_910_000_000), "6.91 B");
        assert_eq!(count(33_100), "33.1 K");
        assert_eq!(plural(1, "rank") + &plural(2, "rank"), "1 rank2 ranks");
    }
}
