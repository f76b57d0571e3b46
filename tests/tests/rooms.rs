//! The rooms of the house: which top-level module of a crate uses which, and how much lies in a file and in a folder.
//!
//! - ROOM-1 No circle between the top-level modules of a crate.
//! - ROOM-2 Where ARCHITECTURE.md has a table of a crate's rooms, each room has a row and uses no room that its row does not
//!   name.
//! - ROOM-3 No folder holds more than 20 files, and no file more than 500 lines before its tests.
//! - ROOM-4 A rank knows its backend where its world is made, and its device below the list of operations.
//! - ROOM-5 No parameter of a rank's function is a tuple of three or more.
//!
//! Test modules are not looked at. A crate's root (lib.rs) belongs to no room; what it re-exports counts as a use of the
//! module that it comes from.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use tests::repository;

/// The members that have rooms.
const CRATES: [&str; 4] = ["proto", "comm", "rank", "launcher"];

const MOST_FILES: usize = 20;
const MOST_LINES: usize = 500;

/// By room, the rooms that it uses.
type Arrows = BTreeMap<String, BTreeSet<String>>;

#[test]
fn no_rooms_of_a_crate_form_a_circle() {
    for name in CRATES {
        let circles = circles(&Crate::read(&repository().join(name).join("src")).arrows());
        assert!(circles.is_empty(), "{name}: these rooms use each other: {circles:?}");
    }
}

#[test]
fn every_arrow_stands_in_architecture() {
    let text = fs::read_to_string(repository().join("ARCHITECTURE.md")).unwrap();
    let mut tables = 0;
    for name in CRATES {
        let Some(allowed) = table(&text, name) else { continue };
        tables += 1;
        let arrows = Crate::read(&repository().join(name).join("src")).arrows();
        assert_eq!(
            allowed.keys().collect::<Vec<_>>(),
            arrows.keys().collect::<Vec<_>>(),
            "{name}: rows of ARCHITECTURE.md on the left, rooms on the right"
        );
        for (room, uses) in &arrows {
            let more: Vec<_> = uses.difference(&allowed[room]).collect();
            assert!(more.is_empty(), "{name}/{room} uses {more:?}, which its row in ARCHITECTURE.md does not allow");
        }
    }
    assert!(tables > 0, "ARCHITECTURE.md has no table with the columns room, owns, may use");
}

#[test]
fn no_file_and_no_folder_is_too_large() {
    for name in CRATES {
        let read = Crate::read(&repository().join(name).join("src"));
        for file in &read.files {
            let path = file.path.display();
            assert!(file.lines <= MOST_LINES, "{name}/{path}: {} lines before its tests", file.lines);
        }
        for (folder, files) in read.folders() {
            assert!(files <= MOST_FILES, "{name}/{}: {files} files", folder.display());
        }
    }
    for folder in ["tests/src", "tests/tests", "scripts", "scripts/peers", "docs"] {
        let entries = fs::read_dir(repository().join(folder)).unwrap();
        let files = entries.filter(|entry| entry.as_ref().unwrap().path().is_file()).count();
        assert!(files <= MOST_FILES, "{folder}: {files} files");
    }
}

#[test]
fn a_rank_knows_its_backend_and_its_device_in_one_place_each() {
    let check = |word: &str, allowed: &[&str]| {
        for file in Crate::read(&repository().join("rank/src")).files {
            let is_allowed = allowed.iter().any(|place| file.path.starts_with(place));
            assert!(is_allowed || !file.code.contains(word), "rank/{} names {word}", file.path.display());
        }
    };
    check("ShmWorld", &["start.rs"]);
    check("Device::Cpu", &["device", "kernels/cpu"]);
}

#[test]
fn no_parameter_of_a_rank_is_a_tuple_of_three() {
    for file in Crate::read(&repository().join("rank/src")).files {
        for parameter in parameters(&file.code) {
            let elements = tuple_elements(&parameter);
            assert!(elements < 3, "rank/{}: a parameter is a tuple of {elements}: {parameter}", file.path.display());
        }
    }
    let of = |code: &str| parameters(code).iter().map(|parameter| tuple_elements(parameter)).max();
    assert_eq!(of("fn f(a: u8, b: &(u8, [u8; 2], Vec<(u8, u8)>)) {}"), Some(3));
    assert_eq!(of("fn f<T: Fn(u8, u8, u8)>(a: (T, Map<u8, u8>), b: impl Fn(u8, u8, u8)) {}"), Some(2));
}

#[test]
fn a_circle_is_found_by_whatever_words_it_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let check = |files: &[(&str, &str)], expected: &[&[&str]]| {
        let src = tempfile::tempdir_in(&dir).unwrap();
        for (path, text) in files {
            let path = src.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let found = circles(&Crate::read(src.path()).arrows());
        assert_eq!(found, expected.iter().map(|circle| circle.to_vec()).collect::<Vec<_>>(), "{files:?}");
    };
    let lib = ("lib.rs", "mod a; mod b;\npub use b::Thing;\n");
    check(&[lib, ("a.rs", "use crate::b::x;\n"), ("b.rs", "fn f() { crate::a::g() }\n")], &[&["a", "b"]]);
    check(
        &[lib, ("a/mod.rs", ""), ("a/c.rs", "use super::super::{b, x};\n"), ("b.rs", "use super::a;")],
        &[&["a", "b"]],
    );
    check(&[lib, ("a.rs", "use crate::{Thing, x::{y}};"), ("b.rs", "use crate::{x::{y, z}, a::w};")], &[&["a", "b"]]);
    check(&[lib, ("a.rs", "use crate::b;"), ("b.rs", "")], &[]);
    check(&[lib, ("a.rs", "use crate::b;"), ("b.rs", "// crate::a\nconst B: &str = \"crate::a {\";\n")], &[]);
    let tested = "fn f() {}\n#[cfg(test)]\nmod tests {\n    use crate::a;\n}\n";
    check(&[lib, ("a.rs", "use crate::b;"), ("b.rs", tested)], &[]);
    let apart = [("b/mod.rs", "#[cfg(test)]\n#[path = \"cases.rs\"]\nmod tests;"), ("b/cases.rs", "use crate::a;")];
    check(&[lib, ("a.rs", "use crate::b;"), apart[0], apart[1]], &[]);
}

/// The parameters of all functions in `code`, each from its name to its type.
fn parameters(code: &str) -> Vec<String> {
    let mut found = vec![];
    for (at, _) in code.match_indices("fn ") {
        if code[..at].chars().next_back().is_some_and(is_of_a_word) {
            continue;
        }
        let mut depth = 0;
        let start = code[at..].char_indices().find(|&(_, letter)| {
            depth += i32::from(letter == '<') - i32::from(letter == '>');
            letter == '(' && depth == 0
        });
        let Some((start, _)) = start else { continue };
        found.extend(inside(&code[at + start..]));
    }
    found
}

/// What stands between the commas of the bracket that `text` begins with.
fn inside(text: &str) -> Vec<String> {
    let (mut parts, mut depth, mut start) = (vec![], 0, 1);
    let mut before = ' ';
    for (at, letter) in text.char_indices() {
        match letter {
            '(' | '[' | '{' | '<' => depth += 1,
            // Not that of `->`.
            '>' if before == '-' => {}
            ')' | ']' | '}' | '>' => depth -= 1,
            _ => {}
        }
        if depth == 0 || (depth == 1 && letter == ',') {
            parts.push(text[start..at].trim().to_owned());
            start = at + 1;
        }
        if depth == 0 {
            break;
        }
        before = letter;
    }
    parts.retain(|part| !part.is_empty());
    parts
}

/// How many elements the type of a parameter has if it is a tuple; 0 if it is none.
fn tuple_elements(parameter: &str) -> usize {
    // A pattern may come first, which has no `: `.
    let kind = parameter.split_once(": ").map_or("", |(_, kind)| kind);
    let kind = kind.trim_start_matches('&').trim_start_matches("mut ");
    if kind.starts_with('(') { inside(kind).len() } else { 0 }
}

/// The sources of a crate.
struct Crate {
    files: Vec<Source>,
    /// By item that the root re-exports, the module that it comes from.
    exports: BTreeMap<String, String>,
}

/// One source file that is not a test.
struct Source {
    /// Below src.
    path: PathBuf,
    /// Its text without comments, literals and test modules.
    code: String,
    /// Lines before its tests.
    lines: usize,
}

impl Crate {
    fn read(src: &Path) -> Self {
        let mut paths = vec![];
        list(src, &mut paths);
        paths.sort();
        let mut tests = BTreeSet::new();
        let mut files = vec![];
        for path in paths {
            let text = fs::read_to_string(&path).unwrap();
            let plain = without_literals(&text);
            let (code, modules) = without_tests(&text, &plain);
            tests.extend(modules.into_iter().flat_map(|module| places_of(&path, &module)));
            let lines = match plain.find("#[cfg(test)]\nmod tests {") {
                Some(at) => text[..at].lines().count(),
                None => text.lines().count(),
            };
            files.push(Source { path, code, lines });
        }
        files.retain(|file| !tests.iter().any(|test| file.path.starts_with(test)));
        for file in &mut files {
            file.path = file.path.strip_prefix(src).unwrap().to_owned();
        }
        let root = files.iter().find(|file| file.path == Path::new("lib.rs")).expect("a library has a lib.rs");
        let exports = exports(&root.code);
        Self { files, exports }
    }

    fn arrows(&self) -> Arrows {
        let rooms: BTreeSet<String> = self.files.iter().filter_map(Source::room).collect();
        let mut arrows: Arrows = rooms.iter().map(|room| (room.clone(), BTreeSet::new())).collect();
        for file in &self.files {
            let Some(room) = file.room() else { continue };
            for used in file.uses() {
                let used = self.exports.get(&used).cloned().unwrap_or(used);
                if used != room && rooms.contains(&used) {
                    arrows.get_mut(&room).expect("every room is there").insert(used);
                }
            }
        }
        arrows
    }

    fn folders(&self) -> BTreeMap<PathBuf, usize> {
        let mut folders = BTreeMap::new();
        for file in &self.files {
            *folders.entry(file.path.parent().expect("below src").to_owned()).or_default() += 1;
        }
        folders
    }
}

impl Source {
    /// The top-level module that it belongs to; none of the crate's roots does.
    fn room(&self) -> Option<String> {
        let first = Path::new(self.path.components().next()?.as_os_str());
        let name = first.file_stem()?.to_str()?.to_owned();
        let is_root = self.path.components().count() == 1 && (name == "lib" || name == "main");
        (!is_root).then_some(name)
    }

    /// Modules between it and the crate's root.
    fn depth(&self) -> usize {
        let is_folders = self.path.file_name().is_some_and(|name| name == "mod.rs");
        self.path.components().count() - usize::from(is_folders)
    }

    /// The names right below the crate's root that it uses.
    fn uses(&self) -> Vec<String> {
        let from_root = format!("{}!", "super::".repeat(self.depth()));
        let prefixes = ["crate::", from_root.trim_end_matches('!')];
        let mut names = vec![];
        for prefix in prefixes {
            for (at, _) in self.code.match_indices(prefix) {
                let before = self.code[..at].chars().next_back();
                // A longer path, or a longer word.
                if before.is_some_and(|before| before == ':' || before == '$' || is_of_a_word(before)) {
                    continue;
                }
                names.extend(first_names(&self.code[at + prefix.len()..]));
            }
        }
        names
    }
}

/// `a::b` is a; `{a::b, c::{d, e}}` are a and c.
fn first_names(tree: &str) -> Vec<String> {
    let word = |text: &str| text.trim_start().chars().take_while(|&letter| is_of_a_word(letter)).collect::<String>();
    let Some(inside) = tree.strip_prefix('{') else { return vec![word(tree)] };
    let (mut names, mut depth, mut start) = (vec![], 0, 0);
    for (at, letter) in inside.char_indices() {
        match letter {
            '{' => depth += 1,
            '}' if depth == 0 => {
                names.push(word(&inside[start..at]));
                break;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => {
                names.push(word(&inside[start..at]));
                start = at + 1;
            }
            _ => {}
        }
    }
    names
}

/// What the root's `pub use module::{A, B};` make of the crate's names.
fn exports(root: &str) -> BTreeMap<String, String> {
    let mut exports = BTreeMap::new();
    for (at, start) in root.match_indices("pub use ") {
        let tree = &root[at + start.len()..];
        let tree = &tree[..tree.find(';').unwrap_or(tree.len())];
        let tree = tree.strip_prefix("crate::").or(tree.strip_prefix("self::")).unwrap_or(tree);
        let mut words = tree.split(|letter| !is_of_a_word(letter)).filter(|word| !word.is_empty());
        let module = words.next().unwrap_or_default().to_owned();
        exports.extend(words.map(|word| (word.to_owned(), module.clone())));
    }
    exports
}

fn is_of_a_word(letter: char) -> bool {
    letter.is_alphanumeric() || letter == '_'
}

/// All source files below `folder`.
fn list(folder: &Path, paths: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            list(&path, paths);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            paths.push(path);
        }
    }
}

/// A test module that lies in a file of its own.
struct TestModule {
    name: String,
    /// What `#[path = ..]` says.
    file: Option<String>,
}

/// Where the module that the file at `path` declares may lie.
fn places_of(path: &Path, module: &TestModule) -> Vec<PathBuf> {
    let parent = path.parent().expect("a file in src");
    let stem = path.file_stem().and_then(|stem| stem.to_str()).expect("a Rust file");
    let own = if ["mod", "lib", "main"].contains(&stem) { parent.to_owned() } else { parent.join(stem) };
    match &module.file {
        Some(file) => vec![parent.join(file)],
        None => vec![own.join(&module.name), own.join(format!("{}.rs", module.name))],
    }
}

/// `plain` is `text` without literals, at the same places. Returns that without what is for tests only, and the test modules
/// that lie elsewhere.
fn without_tests(text: &str, plain: &str) -> (String, Vec<TestModule>) {
    const TEST: &str = "#[cfg(test)]";
    let (mut code, mut modules, mut at) = (String::new(), vec![], 0);
    while let Some(found) = plain[at..].find(TEST) {
        let start = at + found;
        code += &plain[at..start];
        let end = start + plain[start..].find([';', '{']).expect("an attribute stands before an item");
        if plain[end..].starts_with(';') {
            let head = &text[start..end];
            let name = plain[start..end].split_whitespace().next_back().unwrap_or_default().to_owned();
            let file = head.split_once("#[path = \"").and_then(|(_, path)| Some(path.split_once('"')?.0.to_owned()));
            if plain[start..end].contains("mod ") {
                modules.push(TestModule { name, file });
            }
            at = end + 1;
        } else {
            at = end + closing_brace(&plain[end..]) + 1;
        }
    }
    (code + &plain[at..], modules)
}

/// Where the brace closes that `text` begins with.
fn closing_brace(text: &str) -> usize {
    let mut depth = 0;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'{' => depth += 1,
            b'}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return at;
        }
    }
    panic!("a brace is not closed: {}", text.lines().next().unwrap_or_default());
}

/// `text` with spaces for comments and for what stands in quotes, byte for byte, so that all else stays in its place.
fn without_literals(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut plain = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let end = literal(&bytes[at..]).map_or(at, |length| at + length);
        plain[at..end].iter_mut().filter(|byte| **byte != b'\n').for_each(|byte| *byte = b' ');
        // Words at once: r of `for"` begins no raw string.
        let word = bytes[end..].iter().take_while(|&&byte| byte.is_ascii_alphanumeric() || byte == b'_').count();
        at = if end > at { end } else { at + word.max(1) };
    }
    String::from_utf8(plain).expect("whole letters become spaces")
}

/// The length of the comment or literal that `bytes` begin with, if they do.
fn literal(bytes: &[u8]) -> Option<usize> {
    let until = |end: &[u8], from: usize| {
        let found = bytes[from..].windows(end.len()).position(|window| window == end);
        found.map_or(bytes.len(), |found| from + found + end.len())
    };
    match bytes {
        [b'/', b'/', ..] => Some(until(b"\n", 0) - 1),
        [b'/', b'*', ..] => Some(until(b"*/", 2)),
        [b'r', rest @ ..] | [b'b', b'r', rest @ ..] => {
            let hashes = rest.iter().take_while(|&&byte| byte == b'#').count();
            let begin = bytes.len() - rest.len() + hashes;
            let end = [&b"\""[..], &b"#".repeat(hashes)].concat();
            (bytes.get(begin) == Some(&b'"')).then(|| until(&end, begin + 1))
        }
        [b'"', ..] => Some(quoted(bytes, b'"')),
        [b'b', b'"', ..] => Some(1 + quoted(&bytes[1..], b'"')),
        // A lifetime has no second quote.
        [b'\'', b'\\', ..] => Some(quoted(bytes, b'\'')),
        [b'\'', ..] => {
            let letter = utf8_length(*bytes.get(1)?);
            (bytes.get(1 + letter) == Some(&b'\'')).then_some(letter + 2)
        }
        _ => None,
    }
}

fn utf8_length(first: u8) -> usize {
    match first {
        0xF0.. => 4,
        0xE0.. => 3,
        0xC0.. => 2,
        _ => 1,
    }
}

/// The length of what stands between two quotes, them included.
fn quoted(bytes: &[u8], quote: u8) -> usize {
    let mut at = 1;
    while at < bytes.len() && bytes[at] != quote {
        at += if bytes[at] == b'\\' { 2 } else { 1 };
    }
    (at + 1).min(bytes.len())
}

/// The rooms that `from` uses, and those that they use, and so on.
fn reach<'a>(arrows: &'a Arrows, from: &'a String) -> BTreeSet<&'a String> {
    let (mut seen, mut next) = (BTreeSet::new(), vec![from]);
    while let Some(room) = next.pop() {
        next.extend(arrows[room].iter().filter(|&used| seen.insert(used)));
    }
    seen
}

/// The rooms that use each other by whatever way, each circle sorted.
fn circles(arrows: &Arrows) -> Vec<Vec<String>> {
    let reached: BTreeMap<&String, BTreeSet<&String>> = arrows.keys().map(|room| (room, reach(arrows, room))).collect();
    let circle = |room: &String| {
        let back = reached[room].iter().filter(|&&other| reached[other].contains(room));
        back.map(|&other| other.clone()).collect::<Vec<_>>()
    };
    let circles: BTreeSet<_> = arrows.keys().map(circle).filter(|circle| !circle.is_empty()).collect();
    circles.into_iter().collect()
}

/// The table of a crate's rooms in ARCHITECTURE.md, if there is one: it follows the paragraph that begins with the crate's
/// name.
fn table(text: &str, name: &str) -> Option<Arrows> {
    let section = text.split_once(&format!("**`{name}/`**"))?.1;
    let section = section.split("\n**`").next()?;
    let rows = section.split_once("| room | owns | may use |\n")?.1;
    let words = |cell: &str| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect::<BTreeSet<_>>();
    let mut table = Arrows::new();
    for row in rows.lines().skip(1).take_while(|row| row.starts_with('|')) {
        let cells: Vec<_> = row.split('|').collect();
        let [_, room, _, uses, _] = cells[..] else { panic!("a row of three cells: {row}") };
        table.insert(words(room).pop_first().expect("the first cell names a room"), words(uses));
    }
    Some(table)
}
