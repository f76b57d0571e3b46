//! TensorBoard's event files: a file for each launch, in which every row is an event with a value for each of its numbers.
//!
//! - TB-1 What is written is whole records, each row with one write.
//! - TB-2 When training goes on from step k, a `SessionLog` of START at step k + 1 has readers drop what came of later steps, in
//!   this file and in earlier ones. A file's name sorts after those of earlier launches, for readers take them in that order.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crc::{CRC_32_ISCSI, Crc};
use nix::unistd::gethostname;
use prost::Message;

use super::whole_records::WholeRecords;
use crate::files::create_private_folder;
use crate::output::metrics::Row;

const CRC32C: Crc<u32> = Crc::<u32>::new(&CRC_32_ISCSI);
/// What a checksum is shifted by, so that a file that holds checksums of its own is no special case.
const MASK_DELTA: u32 = 0xa282_ead8;
/// The version of files that this is; since it, readers trust `SessionLog`.
const FILE_VERSION: &str = "brain.Event:2";
const PREFIX: &str = "events.out.tfevents.";

/// An event, of tensorflow/core/util/event.proto: the fields that are used here.
#[derive(Clone, PartialEq, Message)]
struct Event {
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(string, optional, tag = "3")]
    file_version: Option<String>,
    #[prost(message, optional, tag = "5")]
    summary: Option<Summary>,
    #[prost(message, optional, tag = "7")]
    session_log: Option<SessionLog>,
}

#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<Scalar>,
}

#[derive(Clone, PartialEq, Message)]
struct Scalar {
    #[prost(string, tag = "1")]
    tag: String,
    #[prost(float, optional, tag = "2")]
    simple_value: Option<f32>,
}

#[derive(Clone, PartialEq, Message)]
struct SessionLog {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// `SessionLog.status`: a session begins.
const START: i32 = 1;

/// The event file of this launch.
#[derive(Debug)]
pub struct EventFile {
    folder: PathBuf,
    file: Option<WholeRecords>,
    /// The last step that counts, of which nothing is in the file yet.
    rewind_to: Option<u64>,
}

impl EventFile {
    /// A file in `folder`; nothing is touched yet.
    pub fn new(folder: PathBuf) -> Self {
        Self { folder, file: None, rewind_to: None }
    }

    /// Training goes on from step `step` (TB-2). After an error the next row tries it again.
    pub fn rewind(&mut self, step: u64) -> io::Result<()> {
        self.rewind_to = Some(step);
        self.open().map(drop)
    }

    /// Adds a row.
    pub fn row(&mut self, row: &Row) -> io::Result<()> {
        let value = |point: super::catalogue::Point| Scalar {
            tag: point.tag(),
            // The format knows no other numbers.
            simple_value: Some(point.value.as_f64() as f32),
        };
        let summary = Summary { value: row.points().into_iter().map(value).collect() };
        let event = Event { summary: Some(summary), ..Event::now(row.step()) };
        self.open()?.append(&framed(&event))
    }

    /// Returns once all rows are on the disk.
    pub fn sync(&mut self) -> io::Result<()> {
        self.file.as_ref().map_or(Ok(()), WholeRecords::sync)
    }

    /// Where the latest failure was.
    pub fn path(&self) -> &Path {
        self.file.as_ref().map_or(&self.folder, WholeRecords::path)
    }

    /// The file, with all that has to come before the next row.
    fn open(&mut self) -> io::Result<&mut WholeRecords> {
        let file = match self.file.take() {
            Some(file) => file,
            None => {
                create_private_folder(&self.folder)?;
                let path = self.folder.join(file_name(&names(&self.folder)?));
                let mut file = WholeRecords::create(path)?;
                let version = Event { file_version: Some(FILE_VERSION.to_owned()), ..Event::now(0) };
                if let Err(error) = file.append(&framed(&version)) {
                    // An empty file is no event file; the next try makes another.
                    let _ = fs::remove_file(file.path());
                    return Err(error);
                }
                file
            }
        };
        let file = self.file.insert(file);
        if let Some(step) = self.rewind_to {
            let start = Event { session_log: Some(SessionLog { status: START }), ..Event::now(step + 1) };
            file.append(&framed(&start))?;
            self.rewind_to = None;
        }
        Ok(file)
    }
}

impl Event {
    fn now(step: u64) -> Self {
        let wall_time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        Self { wall_time, step: step.cast_signed(), ..Self::default() }
    }
}

/// A record: length, checksum of that, the event, checksum of that.
fn framed(event: &Event) -> Vec<u8> {
    let event = event.encode_to_vec();
    let length = (event.len() as u64).to_le_bytes();
    [&length[..], &masked(&length), &event, &masked(&event)].concat()
}

fn masked(bytes: &[u8]) -> [u8; 4] {
    CRC32C.checksum(bytes).rotate_right(15).wrapping_add(MASK_DELTA).to_le_bytes()
}

fn names(folder: &Path) -> io::Result<Vec<String>> {
    fs::read_dir(folder)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}

/// `events.out.tfevents.SECONDS.HOST.PID.0`, after all of `others` in the alphabet.
fn file_name(others: &[String]) -> String {
    let seconds = |name: &String| name.strip_prefix(PREFIX)?.split('.').next()?.parse::<u64>().ok();
    let newest = others.iter().filter_map(seconds).max().unwrap_or(0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let host = gethostname().map_or("localhost".to_owned(), |name| name.to_string_lossy().replace(['/', '.'], "-"));
    // Ten digits sort like numbers until the year 2286.
    format!("{PREFIX}{:010}.{host}.{}.0", now.max(newest.saturating_add(1)), std::process::id())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::sinks::catalogue::tests::{eval_row, full_row};

    /// The events of a file; panics where a record is not whole.
    fn events(mut bytes: &[u8]) -> Vec<Event> {
        let mut events = vec![];
        while !bytes.is_empty() {
            let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
            assert_eq!(bytes[8..12], masked(&bytes[..8]));
            let event = &bytes[12..12 + length];
            assert_eq!(bytes[12 + length..16 + length], masked(event));
            events.push(Event::decode(event).unwrap());
            bytes = &bytes[16 + length..];
        }
        events
    }

    fn files(folder: &Path) -> Vec<Vec<Event>> {
        let mut names = names(folder).unwrap();
        names.sort();
        names.iter().map(|name| events(&fs::read(folder.join(name)).unwrap())).collect()
    }

    #[test]
    fn a_checksum_is_masked_as_its_inventors_say() {
        // The check value of CRC-32C, rotated and shifted.
        assert_eq!(CRC32C.checksum(b"123456789"), 0xe306_9283);
        assert_eq!(
            u32::from_le_bytes(masked(b"123456789")),
            0xe306_9283_u32.rotate_right(15).wrapping_add(0xa282_ead8)
        );
    }

    #[test]
    fn tb_2_rows_of_all_launches_come_in_order_with_a_start_before_what_is_repeated() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("tensorboard");
        for first in [0, 2] {
            let mut file = EventFile::new(folder.clone());
            file.rewind(first).unwrap();
            file.row(&full_row(first + 1)).unwrap();
            file.row(&eval_row(first + 1)).unwrap();
            file.rewind(first).unwrap();
            file.sync().unwrap();
        }
        let files = files(&folder);
        assert_eq!(files.len(), 2);
        for (events, first) in files.iter().zip([0, 2]) {
            assert_eq!(events.len(), 5);
            assert_eq!(events[0].file_version.as_deref(), Some("brain.Event:2"));
            for start in [&events[1], &events[4]] {
                assert_eq!((start.session_log.as_ref().unwrap().status, start.step), (START, first + 1));
            }
            let values = &events[2].summary.as_ref().unwrap().value;
            assert_eq!((events[2].step, values.len()), (first + 1, 8 + 2 * 6));
            assert_eq!(
                (values[0].tag.as_str(), values[0].simple_value),
                ("train/loss", Some((2.0 + 1.0 / (first + 1) as f64) as f32))
            );
            assert!(values.iter().any(|value| value.tag == "gpu3/power_watts" && value.simple_value == Some(612.25)));
            assert_eq!(events[3].summary.as_ref().unwrap().value[0].tag, "validation/loss");
        }
    }

    #[test]
    fn a_name_sorts_after_all_others_whatever_the_clock_says() {
        let others = ["events.out.tfevents.4000000000.host.1.0".to_owned(), "events.out.tfevents.x".to_owned()];
        assert!(file_name(&others).starts_with("events.out.tfevents.4000000001."));
        assert!(file_name(&[]).as_str() > "events.out.tfevents.17");
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_tried_again_with_the_next_row() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("tensorboard");
        fs::write(&folder, "in the way").unwrap();
        let mut file = EventFile::new(folder.clone());
        assert!(file.rewind(4).is_err());
        assert!(file.row(&full_row(5)).is_err());
        fs::remove_file(&folder).unwrap();
        file.row(&full_row(6)).unwrap();
        let files = files(&folder);
        let steps: Vec<i64> = files[0].iter().map(|event| event.step).collect();
        assert_eq!(steps, [0, 5, 6], "the version, the start, the row");
    }
}
