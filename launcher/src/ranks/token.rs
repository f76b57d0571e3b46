//! The job's token: what tells its ranks from anybody else who can reach the control service, and, on several machines, its
//! agents from anybody else who can reach node 0.

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;

use nix::sys::memfd::{MFdFlags, memfd_create};

/// A secret. That of an attempt is 32 random bytes as hex, and shows up in no environment, no file system and no log; that of a
/// run on several machines is the user's.
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

    /// A descriptor whose file holds the token, to be inherited by ranks. It is gone with the last of them.
    pub fn to_memfd(&self) -> io::Result<OwnedFd> {
        let mut file = File::from(memfd_create("dslaunch-token", MFdFlags::MFD_CLOEXEC)?);
        file.write_all(self.0.as_bytes())?;
        Ok(file.into())
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

/// `bytes` random bytes from the kernel, as hex.
pub fn random_hex(bytes: usize) -> io::Result<String> {
    let mut random = vec![0; bytes];
    File::open("/dev/urandom")?.read_exact(&mut random)?;
    Ok(random.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Seek;

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
    fn the_memfd_holds_the_token_and_debug_does_not_show_it() {
        let token = Token::random().unwrap();
        let mut file = File::from(token.to_memfd().unwrap());
        let mut text = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, token.expose());
        assert_eq!(format!("{token:?}"), "Token(..)");
    }
}
