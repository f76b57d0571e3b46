//! A file that only grows by whole records: what could not be written whole is taken back, so that a full disk costs records and
//! never makes those after it unreadable.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::files::open_no_link;

/// The open file.
#[derive(Debug)]
pub struct WholeRecords {
    path: PathBuf,
    file: File,
    /// Its length: all records so far.
    bytes: u64,
    /// A part of a record may stand behind them.
    is_torn: bool,
}

impl WholeRecords {
    /// Makes the file at `path`, which must not be there.
    pub fn create(path: PathBuf) -> io::Result<Self> {
        let file = open_no_link(&path, OpenOptions::new().append(true).create_new(true))?;
        Ok(Self { path, file, bytes: 0, is_torn: false })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its length.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Adds `records` with one write: all of them, or after an error none.
    pub fn append(&mut self, records: &[u8]) -> io::Result<()> {
        if self.is_torn {
            self.cut(self.bytes)?;
        }
        if let Err(error) = self.file.write_all(records) {
            self.is_torn = true;
            // Where this fails too, the next call tries it again first.
            let _ = self.cut(self.bytes);
            return Err(error);
        }
        self.bytes += records.len() as u64;
        Ok(())
    }

    /// Takes back all but the first `bytes`.
    pub fn cut(&mut self, bytes: u64) -> io::Result<()> {
        self.file.set_len(bytes)?;
        (self.bytes, self.is_torn) = (bytes, false);
        Ok(())
    }

    /// Returns once all of it is on the disk.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn records_are_added_and_taken_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("records");
        let mut records = WholeRecords::create(path.clone()).unwrap();
        records.append(b"one").unwrap();
        records.append(b"two").unwrap();
        records.cut(3).unwrap();
        records.append(b"three").unwrap();
        records.sync().unwrap();
        assert_eq!((fs::read(&path).unwrap().as_slice(), records.bytes()), (b"onethree".as_slice(), 8));
        assert!(WholeRecords::create(path).is_err(), "somebody else's file");
    }

    #[test]
    fn what_is_torn_is_cut_before_the_next_record() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("records");
        let mut records = WholeRecords::create(path.clone()).unwrap();
        records.append(b"one").unwrap();
        fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b"tw").unwrap();
        records.is_torn = true;
        records.append(b"three").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"onethree");
        let mut full = WholeRecords {
            path,
            file: File::options().write(true).open("/dev/full").unwrap(),
            bytes: 0,
            is_torn: false,
        };
        assert!(full.append(b"x").is_err() && full.bytes() == 0 && full.is_torn);
    }
}
