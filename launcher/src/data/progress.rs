//! How far the preparation of data is, for whoever waits for it, and their wish that it stops.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Counts of a preparation under way, shared by its threads and whoever waits.
#[derive(Debug, Default)]
pub struct DataProgress {
    /// Bytes of all sources; 0 until they are known.
    all_bytes: AtomicU64,
    /// Bytes that were parsed.
    bytes: AtomicU64,
    /// Tokens that they gave.
    tokens: AtomicU64,
    /// When parsing began.
    began: OnceLock<Instant>,
    is_stopped: AtomicBool,
}

impl DataProgress {
    /// There are so many bytes to parse.
    pub fn begin(&self, all_bytes: u64) {
        self.all_bytes.store(all_bytes, Relaxed);
        self.began.get_or_init(Instant::now);
    }

    /// So many of them were parsed, and gave so many tokens.
    pub fn parsed(&self, bytes: u64, tokens: u64) {
        self.bytes.fetch_add(bytes, Relaxed);
        self.tokens.fetch_add(tokens, Relaxed);
    }

    /// Tokens so far.
    pub fn tokens(&self) -> u64 {
        self.tokens.load(Relaxed)
    }

    /// Bytes that were parsed so far.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Relaxed)
    }

    /// Nobody wants the data any more: what is under way ends soon, with an error, and leaves nothing.
    pub fn stop(&self) {
        self.is_stopped.store(true, Relaxed);
    }

    /// Whether nobody wants the data any more.
    pub fn is_stopped(&self) -> bool {
        self.is_stopped.load(Relaxed)
    }

    /// `37 %, 1234567 tokens/s, 12 s left`; empty before anything was parsed.
    pub fn text(&self) -> String {
        self.began.get().map_or(String::new(), |began| self.text_after(began.elapsed()))
    }

    fn text_after(&self, elapsed: Duration) -> String {
        let [all_bytes, bytes, tokens] = [&self.all_bytes, &self.bytes, &self.tokens].map(|count| count.load(Relaxed));
        if bytes == 0 || all_bytes == 0 {
            return String::new();
        }
        let (done, seconds) = ((bytes as f64 / all_bytes as f64).min(1.0), elapsed.as_secs_f64().max(1e-3));
        let left = (seconds * (1.0 - done) / done).ceil();
        format!("{:.0} %, {:.0} tokens/s, {left:.0} s left", 100.0 * done, tokens as f64 / seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_says_how_far_how_fast_and_how_long() {
        let progress = DataProgress::default();
        let seconds = Duration::from_secs;
        assert_eq!(progress.text(), "");
        progress.begin(1000);
        assert_eq!(progress.text(), "");
        progress.parsed(100, 40);
        progress.parsed(150, 60);
        assert_eq!(progress.text_after(seconds(2)), "25 %, 50 tokens/s, 6 s left");
        progress.parsed(750, 300);
        assert_eq!(progress.text_after(seconds(4)), "100 %, 100 tokens/s, 0 s left");
    }
}
