//! The wire between dslaunch and a rank that generates text (`proto/generate.proto`): messages over a pair of sockets, each after its
//! length.

use std::io::{self, Read, Write};

use prost::Message;
use prost::encoding::{decode_varint, encoded_len_varint};

pub use messages::*;

mod messages {
    #![allow(missing_docs, reason = "generated; generate.proto holds the documentation")]
    tonic::include_proto!("dslaunch.generate.v1");
}

/// The longest message: a prompt of some ten million tokens. Nothing longer is read.
const BYTES_MAX: u64 = 64 << 20;

/// The longest length, as bytes.
const LENGTH_BYTES_MAX: usize = 10;

/// Writes a message in one piece. Blocks as long as nobody reads.
pub fn write(to: &mut impl Write, message: &impl Message) -> io::Result<()> {
    let length = message.encoded_len();
    let mut bytes = Vec::with_capacity(length + encoded_len_varint(length as u64));
    message.encode_length_delimited(&mut bytes).expect("a vector has room");
    to.write_all(&bytes)?;
    to.flush()
}

/// Reads the next message; `None` at the end of the stream. Blocks until it is there.
///
/// # Errors
/// The system's; the stream ends within a message; what comes is no message.
pub fn read<M: Message + Default>(from: &mut impl Read) -> io::Result<Option<M>> {
    let Some(length) = read_length(from)? else { return Ok(None) };
    let mut bytes = vec![0; length];
    from.read_exact(&mut bytes)?;
    M::decode(bytes.as_slice()).map(Some).map_err(|error| invalid(error.to_string()))
}

fn read_length(from: &mut impl Read) -> io::Result<Option<usize>> {
    let mut bytes = Vec::with_capacity(LENGTH_BYTES_MAX);
    loop {
        let mut byte = [0];
        match from.read(&mut byte) {
            Ok(0) if bytes.is_empty() => return Ok(None),
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => bytes.push(byte[0]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        }
        if byte[0] < 0x80 {
            break;
        }
        if bytes.len() == LENGTH_BYTES_MAX {
            return Err(invalid("a message's length has no end".into()));
        }
    }
    let length = decode_varint(&mut bytes.as_slice()).map_err(|error| invalid(error.to_string()))?;
    if length > BYTES_MAX {
        return Err(invalid(format!("a message of {length} bytes, and at most {BYTES_MAX} are read")));
    }
    Ok(Some(length as usize))
}

fn invalid(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(token: u32) -> Token {
        Token { id: 3, token }
    }

    #[test]
    fn messages_are_read_as_they_were_written() {
        let mut stream = Vec::new();
        let long = Request { id: 1, prompt: vec![200_000; 1000], ..Request::default() };
        write(&mut stream, &token(7)).unwrap();
        write(&mut stream, &Loaded {}).unwrap();
        write(&mut stream, &long).unwrap();
        let mut left = stream.as_slice();
        assert_eq!(read::<Token>(&mut left).unwrap(), Some(token(7)));
        assert_eq!(read::<Loaded>(&mut left).unwrap(), Some(Loaded {}));
        assert_eq!(read::<Request>(&mut left).unwrap(), Some(long));
        assert_eq!(read::<Token>(&mut left).unwrap(), None);
    }

    #[test]
    fn a_stream_that_is_cut_or_is_none_is_an_error() {
        let mut stream = Vec::new();
        write(&mut stream, &Request { prompt: vec![1; 300], ..Request::default() }).unwrap();
        let kind = |bytes: &[u8]| read::<Request>(&mut &bytes[..]).unwrap_err().kind();
        for end in 1..stream.len() {
            assert_eq!(kind(&stream[..end]), io::ErrorKind::UnexpectedEof, "{end}");
        }
        assert_eq!(kind(&[0xff; 20]), io::ErrorKind::InvalidData);
        assert_eq!(kind(&[0xff, 0xff, 0xff, 0xff, 0x7f]), io::ErrorKind::InvalidData, "32 GiB");
        assert_eq!(kind(&[2, 0xff, 0xff]), io::ErrorKind::InvalidData);
    }
}
