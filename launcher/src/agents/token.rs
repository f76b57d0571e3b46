//! The run's token: what tells the agents of a run on several machines from anybody else who can reach node 0.

use std::fmt;
use std::io;

use crate::random::random_hex;

/// A secret that the user has given to all machines. It shows up in no log, and never on the wire
/// ([`handshake`](super::handshake)).
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// A fresh one.
    pub fn random() -> io::Result<Self> {
        random_hex(32).map(Self)
    }

    /// One that the user has chosen: printable ASCII without spaces.
    pub fn given(text: &str) -> Option<Self> {
        let is_one = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
        is_one.then(|| Self(text.to_owned()))
    }

    /// Whether `candidate` is this token, in a time that does not tell how much of it is right.
    pub fn is(&self, candidate: &[u8]) -> bool {
        let token = self.0.as_bytes();
        let difference = token.iter().zip(candidate).fold(0, |bits, (a, b)| bits | (a ^ b));
        std::hint::black_box(difference) == 0 && token.len() == candidate.len()
    }

    /// The token itself, for a client.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_token_itself_is_the_token() {
        let token = Token::random().unwrap();
        let text = token.expose().as_bytes().to_vec();
        assert_eq!(text.len(), 64);
        assert!(token.is(&text));
        assert!(!token.is(b""));
        assert!(!token.is(&text[..63]));
        assert!(!token.is(&[&text[..], b"0"].concat()));
        let mut other = text.clone();
        other[63] ^= 1;
        assert!(!token.is(&other));
        assert_ne!(Token::random().unwrap(), token);
    }

    #[test]
    fn a_given_token_is_one_word() {
        assert!(Token::given("a-b").unwrap().is(b"a-b"));
        for wrong in ["", "a b", "a\n", "\u{e9}"] {
            assert!(Token::given(wrong).is_none(), "{wrong:?}");
        }
    }

    #[test]
    fn debug_does_not_show_it() {
        assert_eq!(format!("{:?}", Token::random().unwrap()), "Token(..)");
    }
}
