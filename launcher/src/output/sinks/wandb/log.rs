//! The framing of W&B's transaction log. Pure: bytes in, bytes out.
//!
//! The log is LevelDB's with two differences: its checksum is CRC-32 as zlib has it, and the seven bytes of the file's header
//! belong to the first block. A block has 32 KiB; a record is cut into chunks at the ends of blocks, and a chunk is its checksum,
//! its length, its type and its bytes.

use crc::{CRC_32_ISO_HDLC, Crc};

const CRC32: Crc<u32> = Crc::<u32>::new(&CRC_32_ISO_HDLC);
/// The file's first bytes: ident, magic number, version.
pub const FILE_HEADER: [u8; 7] = *b":W&B\xe1\xbe\x00";
const BLOCK_BYTES: u64 = 32_768;
const CHUNK_HEADER_BYTES: u64 = 7;

/// The part of its record that a chunk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Part {
    Full = 1,
    First = 2,
    Middle = 3,
    Last = 4,
}

/// Adds `record` to `log`, the end of a file whose length before was `start`.
pub fn append(log: &mut Vec<u8>, start: u64, record: &[u8]) {
    let (mut rest, mut is_first) = (record, true);
    loop {
        let left = BLOCK_BYTES - (start + log.len() as u64) % BLOCK_BYTES;
        if left < CHUNK_HEADER_BYTES {
            log.extend(std::iter::repeat_n(0, left as usize));
            continue;
        }
        // Where only the header fits in, the chunk is empty.
        let taken = rest.len().min((left - CHUNK_HEADER_BYTES) as usize);
        let (bytes, after) = rest.split_at(taken);
        let part = match (is_first, after.is_empty()) {
            (true, true) => Part::Full,
            (true, false) => Part::First,
            (false, false) => Part::Middle,
            (false, true) => Part::Last,
        };
        let mut checksum = CRC32.digest();
        checksum.update(&[part as u8]);
        checksum.update(bytes);
        log.extend(checksum.finalize().to_le_bytes());
        log.extend(u16::try_from(taken).expect("less than a block").to_le_bytes());
        log.push(part as u8);
        log.extend(bytes);
        if after.is_empty() {
            return;
        }
        (rest, is_first) = (after, false);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The records of a file, read by the rules of the format.
    pub fn records(file: &[u8]) -> Vec<Vec<u8>> {
        assert_eq!(file[..7], FILE_HEADER);
        let (mut records, mut open, mut at): (Vec<Vec<u8>>, Option<Vec<u8>>, usize) = (vec![], None, 7);
        while at < file.len() {
            let left = 32_768 - at % 32_768;
            if left < 7 {
                assert!(file[at..at + left].iter().all(|&byte| byte == 0), "padding at {at}");
                at += left;
                continue;
            }
            let length = usize::from(u16::from_le_bytes([file[at + 4], file[at + 5]]));
            assert!(7 + length <= left, "a chunk at {at} ends in another block");
            let (part, bytes) = (file[at + 6], &file[at + 7..at + 7 + length]);
            assert_eq!(file[at..at + 4], CRC32.checksum(&file[at + 6..at + 7 + length]).to_le_bytes());
            match part {
                1 => records.push(bytes.to_vec()),
                2 => open = Some(bytes.to_vec()),
                3 => open.as_mut().unwrap().extend(bytes),
                4 => {
                    let mut record = open.take().unwrap();
                    record.extend(bytes);
                    records.push(record);
                }
                other => panic!("type {other}"),
            }
            at += 7 + length;
        }
        assert_eq!(open, None);
        records
    }

    fn record(length: usize, seed: usize) -> Vec<u8> {
        (0..length).map(|at| ((at * 31 + seed * 7) % 251) as u8).collect()
    }

    #[test]
    fn the_checksum_is_zlibs() {
        assert_eq!(CRC32.checksum(b"123456789"), 0xcbf4_3926);
        let mut log = FILE_HEADER.to_vec();
        append(&mut log, 0, b"ab");
        assert_eq!(log[11..], [2, 0, 1, b'a', b'b']);
        assert_eq!(log[7..11], CRC32.checksum(b"\x01ab").to_le_bytes());
    }

    #[test]
    fn records_of_all_lengths_around_a_block_come_back() {
        // The first record leaves 0 to 20 bytes of its block: none, padding, a header alone, a header and a little.
        for left in 0..=20 {
            for length in [0, 1, 6, 7, 8, 32_740, 32_753, 32_754, 32_761, 32_762, 32_768, 100_000] {
                let first = record(32_768 - 7 - 7 - left, 1);
                let expected = [first, record(length, 2), record(3, 3)];
                let mut file = FILE_HEADER.to_vec();
                for record in &expected {
                    // As it is written: with what the file has already, and nothing else, known.
                    let mut added = vec![];
                    append(&mut added, file.len() as u64, record);
                    file.extend(added);
                }
                assert_eq!(records(&file), expected, "{left} bytes left, then {length}");
            }
        }
    }

    #[test]
    fn where_seven_bytes_are_left_the_first_chunk_is_empty() {
        let mut file = FILE_HEADER.to_vec();
        append(&mut file, 0, &record(32_768 - 7 - 7 - 7, 1));
        assert_eq!(file.len(), 32_768 - 7);
        append(&mut file, 0, b"x");
        assert_eq!(file[32_768 - 3..32_768], [0, 0, Part::First as u8]);
        assert_eq!(file[32_768 + 4..], [1, 0, Part::Last as u8, b'x']);
    }
}
