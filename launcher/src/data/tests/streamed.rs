//! Data that is prepared window by window while it is trained.

use std::collections::BTreeMap;
use std::sync::mpsc;
use std::time::Duration;

use proto::run_dir::window_file;

use super::*;

/// Longest wait for a window.
const PATIENCE: Duration = Duration::from_secs(60);

struct Waiting(mpsc::Sender<Answer>);

impl Asker for Waiting {
    fn is_gone(&self) -> bool {
        false
    }

    fn answer(self: Box<Self>, answer: Answer) {
        self.0.send(answer).unwrap();
    }
}

fn settings(window: u64, ahead: u64) -> StreamSettings {
    StreamSettings { window, ahead, threads: 2, threads_beside: 1 }
}

fn open(setup: &Setup, window: u64, ahead: u64) -> Stream {
    Stream::open(setup.job.clone(), settings(window, ahead), 0).unwrap()
}

fn ask(stream: &Stream, position: u64) -> Answer {
    let (sender, answer) = mpsc::channel();
    stream.ask(position, Box::new(Waiting(sender)));
    answer.recv_timeout(PATIENCE).expect("every wait ends")
}

fn window(stream: &Stream, position: u64) -> Spot {
    match ask(stream, position) {
        Answer::Window(spot) => spot,
        Answer::Failed => panic!("{:?}", stream.take_failure()),
    }
}

/// Waits until nothing is made any more, and returns the windows that are there.
fn settled(stream: &Stream) -> Vec<u64> {
    // The last one that is wanted is asked for, and what comes after it needs no more than a look.
    while !stream.text().is_empty() {
        std::thread::yield_now();
    }
    let names = fs::read_dir(stream.folder()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut numbers: Vec<u64> =
        names.filter_map(|name| name.strip_prefix("window-")?.strip_suffix(".rows")?.parse().ok()).collect();
    numbers.sort_unstable();
    numbers
}

/// Texts of 1 to 20 words.
fn texts(count: usize) -> Vec<String> {
    (0..count).map(|i| format!(r#"{{"text": "hello{}"}}"#, " world".repeat(i * 7 % 20))).collect()
}

fn setup(lines: &[String]) -> Setup {
    Setup::new(&lines.iter().map(String::as_str).collect::<Vec<_>>())
}

/// The bytes of each window of a pass.
fn all(setup: &Setup, window_rows: u64) -> BTreeMap<u64, Vec<u8>> {
    let stream = open(setup, window_rows, 1);
    let (mut windows, mut position) = (BTreeMap::new(), 0);
    loop {
        let spot = window(&stream, position);
        if spot.pass == 1 {
            return windows;
        }
        let path = window_file(stream.folder(), spot.number);
        let rows = super::rows(&path).len() as u64;
        assert!((1..=window_rows).contains(&rows), "{rows}");
        windows.insert(spot.number, fs::read(&path).unwrap());
        assert_eq!(position, spot.first_position);
        position += rows;
    }
}

#[test]
fn windows_hold_the_rows_of_the_sources_in_their_order() {
    for packing in [false, true] {
        let mut setup = setup(&texts(300));
        setup.write("more.jsonl", texts(7).join("\n"));
        setup.job.from[0].path.push(setup.folder.path().join("more.jsonl").display().to_string());
        setup.job.packing = packing;
        let windows = all(&setup, 16);
        let path = Path::new("w");
        let open = |bytes: &Vec<u8>| Dataset::open(bytes.clone(), path).unwrap();
        assert!(windows.values().rev().skip(1).all(|bytes| open(bytes).num_rows() == 16), "all but the last are full");
        let mut tokens: Vec<i32> = vec![];
        for bytes in windows.values() {
            let data = open(bytes);
            let mut rows: Vec<_> = (0..data.num_rows()).map(|row| data.row(row)).collect();
            let place = |row: &proto::dataset::Row<'_>| data.origin(row.samples().start);
            rows.sort_by_key(|row| (place(row).source, place(row).line));
            tokens.extend(rows.iter().flat_map(|row| row.tokens()));
        }
        let whole = prepare(&setup.job, &DataProgress::default()).unwrap();
        let expected: Vec<i32> = super::rows(&whole.path).into_iter().flat_map(|(tokens, _)| tokens).collect();
        if packing {
            let sorted = |mut tokens: Vec<i32>| {
                tokens.sort_unstable();
                tokens
            };
            assert_eq!(sorted(tokens), sorted(expected));
        } else {
            assert_eq!(tokens, expected);
        }
    }
}

#[test]
fn a_window_has_the_same_bits_whenever_and_however_it_is_made() {
    for packing in [false, true] {
        let mut setup = setup(&texts(400));
        setup.job.packing = packing;
        let windows = all(&setup, 8);
        assert!(windows.len() > 20, "{}", windows.len());
        // MAK-1: after the index is known, from the middle of a text, by one thread.
        setup.job.threads = 1;
        let stream = open(&setup, 8, 1);
        for number in [13, 2, 19, 3] {
            let spot = window(&stream, number * 8);
            assert_eq!((spot.number, spot.pass, spot.first_position), (number, 0, number * 8));
            assert!(fs::read(window_file(stream.folder(), number)).unwrap() == windows[&number], "window {number}");
        }
        drop(stream);
        // Without the index, and with a damaged window in the way.
        fs::remove_dir_all(&setup.job.cache_dir).unwrap();
        let stream = open(&setup, 8, 1);
        window(&stream, 17 * 8);
        assert!(fs::read(window_file(stream.folder(), 17)).unwrap() == windows[&17]);
        let path = window_file(stream.folder(), 17);
        drop(stream);
        let mut bytes = fs::read(&path).unwrap();
        bytes[100] ^= 1;
        fs::write(&path, bytes).unwrap();
        // Where it is wanted from the beginning: elsewhere it would be removed before anybody looks at it.
        let stream = Stream::open(setup.job.clone(), settings(8, 1), 17 * 8).unwrap();
        window(&stream, 17 * 8);
        assert!(fs::read(&path).unwrap() == windows[&17]);
        let notes = stream.take_notes();
        assert!(notes[0].starts_with("warning: a window of the train data is prepared anew: "), "{notes:?}");
    }
}

#[test]
fn only_some_windows_are_on_disk() {
    let setup = setup(&texts(400));
    let stream = open(&setup, 8, 3);
    let mut most = 0;
    for number in 0..30 {
        window(&stream, number * 8);
        most = most.max(settled(&stream).len());
    }
    assert_eq!(most, 3 + 1 + 3);
    drop(stream);
    let stream = open(&setup, 8, 1);
    window(&stream, 29 * 8);
    assert_eq!(settled(&stream), [27, 28, 29, 30], "what is there is kept as far as it is wanted");
}

#[test]
fn a_row_that_is_wrong_fails_its_window_and_no_other() {
    let mut lines = texts(20_000);
    lines[19_000] = r#"{"text": 7}"#.into();
    let setup = setup(&lines);
    let stream = open(&setup, 1000, 2);
    window(&stream, 0);
    let mut position = 0;
    while let Answer::Window(spot) = ask(&stream, position) {
        assert_eq!(spot.pass, 0);
        position += 1000;
    }
    assert!(position > 1000, "{position}");
    let failure = stream.take_failure().unwrap().to_string();
    let failure = failure.replace(&format!("{}/", setup.folder.path().display()), "");
    assert_eq!(failure, "data.jsonl:19001:10: invalid type: integer `7`, expected a string");
    assert!(stream.take_failure().is_none());
    window(&stream, position - 1000);
    window(&stream, 0);
    assert_eq!(ask(&stream, position + 5000), Answer::Failed);
}

#[test]
fn data_without_anything_to_learn_fails_once_that_is_known() {
    let error = |lines: &[&str], long_samples| {
        let mut setup = Setup::new(lines);
        setup.job.long_samples = AutoOr::Given(long_samples);
        let stream = open(&setup, 8, 2);
        assert_eq!(ask(&stream, 0), Answer::Failed);
        let error = stream.take_failure().unwrap().to_string();
        error.replace(&format!("{}/", setup.folder.path().display()), "")
    };
    let untrained = [r#"{"input_ids": [1, 2], "labels": [-100, -100]}"#];
    assert_eq!(
        error(&untrained, LongSamples::Error),
        "data.jsonl: none of the 1 rows has a label token, so there is nothing to learn"
    );
    let long = [r#"{"input_ids": [1, 2, 3, 4, 5, 6, 7, 8, 9]}"#];
    assert_eq!(
        error(&long, LongSamples::Drop),
        "data.jsonl: all 1 samples are longer than data.seq_len = 8, or what was left of them trained nothing"
    );
}

#[test]
fn sources_that_change_meanwhile_are_an_error() {
    let setup = setup(&texts(3000));
    let stream = open(&setup, 8, 2);
    window(&stream, 0);
    settled(&stream);
    let path = setup.folder.path().join("data.jsonl");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text + "\n{\"text\": \"hello\"}").unwrap();
    let mut position = 0;
    while ask(&stream, position) != Answer::Failed {
        position += 8;
    }
    let failure = stream.take_failure().unwrap().to_string();
    assert!(failure.ends_with("data.jsonl: the file changed while it was being read"), "{failure}");
    let before = stream.folder().to_owned();
    drop(stream);
    let stream = open(&setup, 8, 2);
    assert!(stream.folder() != before && !before.exists(), "other sources have other windows");
    window(&stream, 0);
}

/// Ranks of a job that ends must not hear different things of one window.
#[test]
fn what_was_given_up_stays_given_up() {
    let setup = setup(&texts(3000));
    let stream = open(&setup, 8, 1);
    let (sender, answer) = mpsc::channel();
    stream.ask(200 * 8, Box::new(Waiting(sender.clone())));
    stream.give_up(None);
    assert_eq!(answer.recv_timeout(PATIENCE), Ok(Answer::Failed));
    stream.ask(200 * 8, Box::new(Waiting(sender)));
    assert_eq!(answer.recv_timeout(PATIENCE), Ok(Answer::Failed));
    assert!(stream.take_failure().is_none());
    window(&stream, 0);
    stream.give_up(None);
    window(&stream, 8);
}

#[test]
fn what_was_prepared_otherwise_is_removed() {
    let setup = setup(&texts(50));
    prepare(&setup.job, &DataProgress::default()).unwrap();
    drop(open(&setup, 8, 2));
    drop(open(&setup, 16, 2));
    let cached = setup.cached();
    assert!(cached.len() == 1 && cached[0].ends_with("-16.stream"), "{cached:?}");
    prepare(&setup.job, &DataProgress::default()).unwrap();
    let cached = setup.cached();
    assert!(cached.len() == 1 && cached[0].ends_with(".rows"), "{cached:?}");
}
