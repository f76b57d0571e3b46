use std::fs;
use std::path::{Path, PathBuf};

use super::*;

type Lines<'a> = &'a [(&'a [i32], Option<&'a [i32]>)];

fn sample(line: u64, tokens: &[i32], labels: Option<&[i32]>) -> Sample {
    let origin = Origin { source: (line % 2) as u32, line };
    Sample { tokens: tokens.to_vec(), labels: labels.map(<[i32]>::to_vec), origin, class: (line % 3 / 2) as u32 }
}

/// Writes `rows` and returns the bytes of the file. Lines are numbered from 1 over all rows.
fn write(rows: &[Lines]) -> (DatasetSummary, Vec<u8>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("train.rows");
    let mut writer = DatasetWriter::create(&path, vec!["a.jsonl".into(), "b.jsonl".into()]).unwrap();
    let mut line = 0;
    for row in rows {
        let samples: Vec<_> = row
            .iter()
            .map(|(tokens, labels)| {
                line += 1;
                sample(line, tokens, *labels)
            })
            .collect();
        writer.push_row(&samples).unwrap();
    }
    if line > 1 {
        writer.name_classes(vec!["maths".into(), "law".into()]);
    }
    let summary = writer.finish().unwrap();
    assert_eq!(verify(&path, 2).unwrap(), summary);
    assert_eq!(names(folder.path()), ["train.rows"]);
    (summary, fs::read(&path).unwrap())
}

fn names(folder: &Path) -> Vec<String> {
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

fn open(bytes: Vec<u8>) -> Result<Dataset<Vec<u8>>, DatasetError> {
    Dataset::open(bytes, Path::new("x.rows"))
}

const ROWS: &[Lines] = &[
    &[(&[5, 6, 7], None), (&[8, 9], Some(&[8, 3]))],
    &[(&[1], None)],
    &[(&[4, 4, 4, 4], Some(&[-100, -100, 4, 900]))],
];

/// Reads every number that a dataset offers, in one list.
fn everything(data: &Dataset<impl AsRef<[u8]>>) -> Vec<i64> {
    let mut all = Vec::new();
    for row in (0..data.num_rows()).map(|i| data.row(i)) {
        all.extend(row.tokens().map(i64::from));
        all.extend(row.targets().map(i64::from));
        all.extend(row.sample_lens().map(|len| len as i64));
        all.push(row.num_labels() as i64);
        for sample in row.samples() {
            let origin = data.origin(sample);
            all.extend([i64::from(origin.source), origin.line as i64]);
        }
    }
    all.extend(data.classes_of_samples().map(i64::from));
    all
}

#[test]
fn what_was_written_is_read_and_targets_are_labels_shifted_within_a_sample() {
    let (summary, bytes) = write(ROWS);
    let data = open(bytes).unwrap();
    assert_eq!(data.summary(), &summary);
    let check = |row: usize, tokens: &[i32], targets: &[i32], lens: &[usize], labels: usize| {
        let row = data.row(row);
        assert_eq!(row.tokens().collect::<Vec<_>>(), tokens);
        assert_eq!(row.targets().collect::<Vec<_>>(), targets);
        assert_eq!(row.sample_lens().collect::<Vec<_>>(), lens);
        assert_eq!((row.num_labels(), row.num_tokens()), (labels, tokens.len()));
    };
    check(0, &[5, 6, 7, 8, 9], &[6, 7, IGNORED, 3, IGNORED], &[3, 2], 3);
    check(1, &[1], &[IGNORED], &[1], 0);
    check(2, &[4, 4, 4, 4], &[IGNORED, 4, 900, IGNORED], &[4], 2);
    assert_eq!(data.row(2).samples(), 3..4);
    assert_eq!(data.origin(3), Origin { source: 0, line: 4 });
    let expected = DatasetSummary {
        long: LongCounts::default(),
        rows: 3,
        samples: 4,
        tokens: 10,
        label_tokens: 5,
        rows_without_labels: 1,
        longest_row: 5,
        max_token: 900,
        sources: vec!["a.jsonl".into(), "b.jsonl".into()],
        classes: [("maths", 3, 8), ("law", 1, 2)]
            .map(|(name, samples, tokens)| ClassCount { name: name.into(), samples, tokens })
            .into(),
    };
    assert_eq!(summary, expected);
}

#[test]
fn classes_are_read_and_one_class_takes_no_room() {
    let (_, bytes) = write(ROWS);
    assert_eq!(open(bytes.clone()).unwrap().classes_of_samples().collect::<Vec<_>>(), [0, 1, 0, 0]);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("train.rows");
    let lengths = [vec![], vec!["all".to_owned()]].map(|names| {
        let mut writer = DatasetWriter::create(&path, vec!["a".into()]).unwrap();
        for line in 1..4 {
            writer.push_row(&[Sample { class: 0, ..sample(2 * line, &[1, 2], None) }]).unwrap();
        }
        if !names.is_empty() {
            writer.name_classes(names.clone());
        }
        let summary = writer.finish().unwrap();
        assert_eq!(
            summary.classes.iter().map(|class| (&class.name, class.samples)).collect::<Vec<_>>(),
            names.iter().map(|name| (name, 3)).collect::<Vec<_>>()
        );
        let bytes = fs::read(&path).unwrap();
        assert_eq!(open(bytes.clone()).unwrap().classes_of_samples().collect::<Vec<_>>(), [0, 0, 0]);
        bytes.len()
    });
    let of_name = r#","classes":[{"name":"all","samples":3,"tokens":6}]"#.len();
    assert_eq!(lengths[0] + of_name, lengths[1]);
}

#[test]
fn samples_keep_their_classes() {
    let (_, bytes) = write(ROWS);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("train.rows");
    fs::write(&path, bytes).unwrap();
    let samples: Vec<_> = Samples::open(&path, 1).unwrap().map(|sample| sample.unwrap()).collect();
    let found: Vec<_> = samples.iter().map(|sample| (sample.origin.line, sample.class)).collect();
    assert_eq!(found, [(2, 1), (4, 0), (1, 0), (3, 0)]);
}

#[test]
fn a_file_without_rows_is_sound() {
    let (summary, bytes) = write(&[]);
    assert_eq!((summary.rows, open(bytes).unwrap().num_rows()), (0, 0));
}

#[test]
fn a_file_cut_anywhere_is_a_typed_error() {
    let (_, bytes) = write(ROWS);
    for len in 0..bytes.len() {
        match open(bytes[..len].to_vec()) {
            Err(DatasetError::Foreign { .. }) => assert!(len < 8, "foreign at {len}"),
            Err(DatasetError::Damaged { at, .. }) => assert!(at <= len as u64 && len >= 8, "{at} of {len}"),
            other => panic!("cut at {len}: {other:?}"),
        }
    }
}

/// Opens the file and checks every row of it, as ranks do.
fn open_and_check(bytes: Vec<u8>) -> Result<(), DatasetError> {
    let data = open(bytes)?;
    (0..data.num_rows()).try_for_each(|row| data.check(row))
}

#[test]
fn a_file_with_a_changed_bit_is_an_error_for_launcher_and_ranks() {
    // SET-4
    let (_, bytes) = write(ROWS);
    open_and_check(bytes.clone()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("train.rows");
    for bit in 0..8 * bytes.len() {
        let mut damaged = bytes.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        if bit % 8 == bit / 8 % 8 {
            fs::write(&path, &damaged).unwrap();
            let error = verify(&path, 1).unwrap_err().to_string();
            assert!(error.starts_with(path.to_str().unwrap()), "bit {bit}: {error}");
        }
        open_and_check(damaged).unwrap_err();
    }
}

#[test]
fn damage_in_a_file_of_many_blocks_is_found_at_its_block_and_in_its_rows_only() {
    let tokens: Vec<i32> = (0..900).collect();
    let row: Lines = &[(&tokens, None)];
    let rows = vec![row; 100];
    let (summary, mut bytes) = write(&rows);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("train.rows");
    // Pairs of 7200 bytes a row: row 50 begins at byte 360016, in the block that begins at 344064 and ends at 360448.
    bytes[360_016 + 500] ^= 4;
    fs::write(&path, &bytes).unwrap();
    for threads in [1, 3] {
        let error = verify(&path, threads).unwrap_err().to_string();
        let expected =
            format!("{}: damaged at byte 360448: these 16384 bytes are not what was written", path.display());
        assert_eq!(error, expected);
    }
    let data = open(bytes).unwrap();
    let damaged: Vec<usize> = (0..100).filter(|&row| data.check(row).is_err()).collect();
    assert_eq!(damaged, [50, 51, 52], "all rows of that block");
    assert_eq!(data.summary(), &summary);
}

#[test]
fn errors_name_file_and_place() {
    let check = |bytes: Vec<u8>, expected: &str| assert_eq!(open(bytes).unwrap_err().to_string(), expected);
    check(b"PK\x03\x04 and so on, a zip file".to_vec(), "x.rows: not a file of prepared data");
    let (_, bytes) = write(ROWS);
    let mut other = bytes.clone();
    other[8] = 7;
    check(other, "x.rows: prepared data of version 7, but this dslaunch reads version 3");
    check(
        bytes[..bytes.len() - 3].to_vec(),
        &format!("x.rows: damaged at byte {}: the file ends too early", bytes.len() - 3),
    );
    // The index begins after 10 pairs; its second entry says where row 1 begins.
    let mut backwards = bytes.clone();
    backwards[16 + 80 + 8] = 0;
    check(backwards, "x.rows: damaged at byte 0: these 224 bytes are not what was written");
    let missing = verify(Path::new("no/such.rows"), 1).unwrap_err();
    assert_eq!(missing.to_string(), "no/such.rows: cannot open it");
}

#[test]
fn a_writer_that_does_not_finish_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path: PathBuf = folder.path().join("train.rows");
    let mut writer = DatasetWriter::create(&path, vec!["a".into()]).unwrap();
    writer.push_row(&[Sample { class: 0, ..sample(2, &[1, 2], None) }]).unwrap();
    assert_eq!(names(folder.path()).len(), 1);
    drop(writer);
    assert_eq!(names(folder.path()), [""; 0]);
}

#[test]
fn bytes_need_no_alignment() {
    let (_, bytes) = write(ROWS);
    let mut shifted = vec![0];
    shifted.extend_from_slice(&bytes);
    let data = Dataset::open(&shifted[1..], Path::new("x.rows")).unwrap();
    assert_eq!(everything(&data), everything(&open(bytes).unwrap()));
}
