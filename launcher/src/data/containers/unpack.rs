//! The bytes of a source file, unpacked where it is packed by gzip or zstd, whatever its name says.

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::Path;
use std::rc::Rc;

use flate2::bufread::MultiGzDecoder;
use ruzstd::decoding::StreamingDecoder;

/// First bytes of a file that is packed.
const GZIP: &[u8] = b"\x1f\x8b";
const ZSTD: &[u8] = b"\x28\xb5\x2f\xfd";

/// Read at a time.
const BUFFER_BYTES: usize = 1 << 18;

/// What was read of a file so far, packed as it lies there.
#[derive(Debug, Default)]
pub struct Seen {
    /// Of all of it.
    pub hasher: blake3::Hasher,
    /// Its length.
    pub bytes: u64,
}

/// An open file.
pub struct Unpacked {
    /// Its bytes.
    pub bytes: Box<dyn BufRead>,
    /// What was seen of it.
    pub seen: Rc<RefCell<Seen>>,
    /// Whether its bytes are those that lie there.
    pub is_plain: bool,
}

/// Opens the file at `path`.
pub fn open(path: &Path) -> io::Result<Unpacked> {
    let seen = Rc::new(RefCell::new(Seen::default()));
    let mut packed = BufReader::with_capacity(BUFFER_BYTES, Watched { file: File::open(path)?, seen: seen.clone() });
    let head = packed.fill_buf()?;
    let mut is_plain = false;
    let bytes: Box<dyn BufRead> = if head.starts_with(GZIP) {
        Box::new(BufReader::with_capacity(BUFFER_BYTES, MultiGzDecoder::new(packed)))
    } else if head.starts_with(ZSTD) {
        Box::new(BufReader::with_capacity(BUFFER_BYTES, ZstdFrames::Between(packed)))
    } else {
        is_plain = true;
        Box::new(packed)
    };
    Ok(Unpacked { bytes, seen, is_plain })
}

/// Opens the file at `path`, which is not packed, in its midst.
pub fn open_at(path: &Path, byte: u64) -> io::Result<Unpacked> {
    let (mut file, seen) = (File::open(path)?, Rc::new(RefCell::new(Seen::default())));
    file.seek(SeekFrom::Start(byte))?;
    let bytes = Box::new(BufReader::with_capacity(BUFFER_BYTES, Watched { file, seen: seen.clone() }));
    Ok(Unpacked { bytes, seen, is_plain: true })
}

/// Whether the first byte of a text that is not blank is `byte`. `head`: the first bytes of its file, packed or not.
pub fn begins_with(head: &[u8], byte: u8) -> bool {
    let mut text = [0; 4096];
    let read = if head.starts_with(GZIP) {
        MultiGzDecoder::new(head).read(&mut text)
    } else if head.starts_with(ZSTD) {
        StreamingDecoder::new(head).map_or(Ok(0), |mut decoder| decoder.read(&mut text))
    } else {
        (&mut &*head).read(&mut text)
    };
    // What cannot be unpacked is told by whoever reads it.
    let text = &text[..read.unwrap_or(0)];
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    text.trim_ascii_start().first() == Some(&byte)
}

/// A file that tells what is read of it.
struct Watched {
    file: File,
    seen: Rc<RefCell<Seen>>,
}

impl Read for Watched {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.file.read(buffer)?;
        let mut seen = self.seen.borrow_mut();
        seen.hasher.update(&buffer[..len]);
        seen.bytes += len as u64;
        Ok(len)
    }
}

/// A file of zstd: frames, one after the other.
enum ZstdFrames {
    /// Before a frame, or at the end of the file.
    Between(BufReader<Watched>),
    /// In a frame.
    Within(Box<StreamingDecoder<BufReader<Watched>, ruzstd::decoding::FrameDecoder>>),
    /// After an error.
    Failed,
}

impl Read for ZstdFrames {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match std::mem::replace(self, Self::Failed) {
                Self::Between(mut packed) => {
                    if packed.fill_buf()?.is_empty() {
                        *self = Self::Between(packed);
                        return Ok(0);
                    }
                    let decoder = StreamingDecoder::new(packed);
                    *self = Self::Within(Box::new(decoder.map_err(|error| invalid(&error))?));
                }
                Self::Within(mut decoder) => match decoder.read(buffer)? {
                    0 if !buffer.is_empty() => *self = Self::Between(decoder.into_inner()),
                    len => {
                        *self = Self::Within(decoder);
                        return Ok(len);
                    }
                },
                Self::Failed => return Err(io::Error::other("it was not readable before")),
            }
        }
    }
}

fn invalid(error: &dyn std::error::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error.to_string())
}
