//! `[[validation.source]]`: several validation sets.

use super::*;

#[test]
fn sets_are_read_and_data_validation_is_one() {
    let sets = r#"format = "text"
[[validation.source]]
name = "a.1"
path = "a.jsonl"
[[validation.source]]
name = "b"
path = ["b*.jsonl"]
format = "auto"
columns = { prompt = "question" }"#;
    let text = format!("{REQUIRED}{sets}\n");
    let sets = parse(&text, &[]).unwrap().validation_sets();
    let [first, second] = &sets[..] else { panic!("{sets:?}") };
    assert_eq!((first.name.as_str(), first.path.len(), first.format), ("a.1", 1, AutoOr::Given(DataFormat::Text)));
    assert_eq!((second.name.as_str(), second.format), ("b", AutoOr::Auto));
    assert_eq!(second.source().columns, [("prompt".into(), "question".into())].into());
    let sets = parse(&with("data", "validation = \"v.jsonl\""), &[]).unwrap().validation_sets();
    assert_eq!(
        (sets.len(), sets[0].name.as_str(), sets[0].path.as_slice()),
        (1, "validation", &["v.jsonl".to_owned()][..])
    );
    assert!(parse(REQUIRED, &[]).unwrap().validation_sets().is_empty());
}

#[test]
fn mistakes_have_places() {
    let text = format!("{REQUIRED}[[validation.source]]\nname = \"a b\"\npth = \"x\"\n");
    let name = "must be letters, digits, `_`, `-` and `.`, 64 at most";
    let found = check_all(
        &text,
        &[],
        &[(6, 8, "validation.source[0].name", name), (7, 1, "validation.source[0].pth", "unknown key")],
    );
    assert_eq!(found[1].suggestion.as_deref(), Some("did you mean `path`?"));
}
