//! Conversations become rows of which some turns are trained.

use super::*;

const CHAT: &str =
    r#"{"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "world world"}]}"#;

/// Words between the marks of ends.
pub const WORDS: &str =
    "{% for m in messages %}{{ m.content }} {% if m.role == 'assistant' %}</s> {% endif %}{% endfor %}";

#[test]
fn of_a_conversation_the_assistants_words_and_their_end_are_trained() {
    let setup = Setup::new(&[
        CHAT,
        r#"{"messages": [{"role": "assistant", "content": "hello"}, {"role": "user", "content": "world"}]}"#,
    ]);
    setup.write("chat_template.jinja", WORDS);
    let prepared = prepare(&setup.job, &DataProgress::default()).unwrap();
    // Nothing is put in front: the template would have written it.
    let expected = [(vec![4, 5, 5, 2], vec![5, 5, 2, IGNORED]), (vec![4, 2, 5], vec![2, IGNORED, IGNORED])];
    assert_eq!(rows(&prepared.path), expected);
}

#[test]
fn where_a_template_ends_no_turn_the_last_one_is_ended() {
    let mut setup = Setup::new(&[CHAT]);
    setup.write("words.jinja", "{% for m in messages %}{{ m.content }} {% endfor %}\n");
    setup.job.chat_template = setup.folder.path().join("words.jinja").display().to_string();
    let prepared = prepare(&setup.job, &DataProgress::default()).unwrap();
    assert_eq!(rows(&prepared.path), [(vec![4, 5, 5, 2], vec![5, 5, 2, IGNORED])]);
    setup.job.train_on = TrainOn::All;
    let prepared = prepare(&setup.job, &DataProgress::default()).unwrap();
    assert_eq!(rows(&prepared.path), [(vec![4, 5, 5, 2], vec![5, 5, 2, IGNORED])]);
}

#[test]
fn the_template_is_found_where_transformers_finds_it() {
    let setup = Setup::new(&[CHAT]);
    let tokens = || rows(&prepare(&setup.job, &DataProgress::default()).unwrap().path)[0].0.clone();
    let told = setup.error();
    assert!(
        told.starts_with("data.jsonl: format messages needs a chat template, and the model's files have none"),
        "{told}"
    );
    let named =
        |text: &str| serde_json::json!([{"name": "tools", "template": ""}, {"name": "default", "template": text}]);
    let config = |template: serde_json::Value| {
        serde_json::json!({"bos_token": {"content": "<s>"}, "chat_template": template}).to_string()
    };
    setup.write("tokenizer_config.json", config(named("{{ bos_token }} {{ messages[1].content }}")));
    assert_eq!(tokens(), [1, 5, 5, 2]);
    setup.write("tokenizer_config.json", config("{{ bos_token }} hello {{ messages[1].content }}".into()));
    assert_eq!(tokens(), [1, 4, 5, 5, 2]);
    setup.write("chat_template.json", r#"{"chat_template": "{{ messages[0].content }} {{ messages[1].content }}"}"#);
    assert_eq!(tokens(), [4, 5, 5, 2]);
    setup.write("chat_template.jinja", "{{ messages[1].content }}");
    assert_eq!(tokens(), [5, 5, 2]);
    setup.write("chat_template.jinja", "{% if %}");
    let told = setup.error_beside(1);
    assert!(
        told.contains("chat_template.jinja cannot be used: ") && told.contains("(line 1 of the template)"),
        "{told}"
    );
}
