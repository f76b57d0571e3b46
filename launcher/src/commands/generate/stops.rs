//! Finds where a text ends: where one of the texts comes that the user has named. What may be the beginning of one is held back until
//! it is clear. Pure.

/// The texts that end a text, and what is held back of it.
#[derive(Debug, Default)]
pub struct Stops {
    texts: Vec<String>,
    held: String,
}

/// What is new of a text.
#[derive(Debug, PartialEq, Eq)]
pub struct Released {
    /// What is certain to be in it.
    pub text: String,
    /// Whether it ends there.
    pub is_end: bool,
}

impl Stops {
    /// A text ends before any of these, none of which is empty.
    pub fn new(texts: &[String]) -> Self {
        Self { texts: texts.to_vec(), held: String::new() }
    }

    /// Adds a piece. After the end there is nothing to add.
    pub fn push(&mut self, piece: &str) -> Released {
        self.held.push_str(piece);
        let first = self.texts.iter().filter_map(|text| self.held.find(text)).min();
        if let Some(end) = first {
            self.held.truncate(end);
            return Released { text: std::mem::take(&mut self.held), is_end: true };
        }
        let kept = self.texts.iter().map(|text| overlap(&self.held, text)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - kept);
        Released { text: std::mem::replace(&mut self.held, rest), is_end: false }
    }

    /// What is held back, once nothing more comes.
    pub fn finish(self) -> String {
        self.held
    }
}

/// How many bytes at the end of `text` are the beginning of `stop`.
fn overlap(text: &str, stop: &str) -> usize {
    let starts = stop.char_indices().map(|(at, _)| at).filter(|at| *at > 0);
    starts.filter(|at| text.ends_with(&stop[..*at])).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes out after each piece, what comes at the end, and whether the text was ended.
    fn run(stops: &[&str], pieces: &[&str]) -> (Vec<String>, String, bool) {
        let stops: Vec<String> = stops.iter().map(|stop| stop.to_string()).collect();
        let (mut stops, mut out) = (Stops::new(&stops), vec![]);
        for piece in pieces {
            let Released { text, is_end } = stops.push(piece);
            out.push(text);
            if is_end {
                return (out, stops.finish(), true);
            }
        }
        (out, stops.finish(), false)
    }

    #[test]
    fn a_text_ends_before_what_stops_it_however_it_is_cut_into_pieces() {
        let text = "One.\nTwo é ###\nThree";
        for (stop, expected) in
            [("###", "One.\nTwo é "), ("\n", "One."), ("é #", "One.\nTwo "), ("One", ""), ("e", "On")]
        {
            let letters: Vec<String> = text.chars().map(String::from).collect();
            for size in 1..=letters.len() {
                let pieces: Vec<String> = letters.chunks(size).map(|letters| letters.concat()).collect();
                let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
                let (out, held, is_end) = run(&[stop], &pieces);
                assert_eq!((out.concat().as_str(), held.as_str(), is_end), (expected, "", true), "{stop:?} {size}");
            }
        }
    }

    #[test]
    fn what_may_begin_a_stop_is_held_until_it_is_clear() {
        let check = |stops: &[&str], pieces: &[&str], out: &[&str], held: &str, is_end: bool| {
            let out: Vec<String> = out.iter().map(|text| text.to_string()).collect();
            assert_eq!(run(stops, pieces), (out, held.to_owned(), is_end), "{stops:?} {pieces:?}");
        };
        check(&["</end>"], &["a<", "/e", "x", "</", "end>b"], &["a", "", "</ex", "", ""], "", true);
        check(&["aab"], &["aa", "a", "b"], &["", "a", ""], "", true);
        check(&["stop", "top"], &["no st", "op"], &["no ", ""], "", true);
        check(&["abc"], &["xab"], &["x"], "ab", false);
        check(&[], &["a", "b"], &["a", "b"], "", false);
        check(&["é"], &["e", "é"], &["e", ""], "", true);
    }
}
