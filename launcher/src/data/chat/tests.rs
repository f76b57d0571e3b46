use minijinja::Value;
use proto::config::TrainOn;

use super::conversation::Conversation;
use super::*;
use crate::data::object::Columns;

fn template(source: &str) -> ChatTemplate {
    let tokens = [("bos_token", "<s>"), ("eos_token", "</s>")];
    ChatTemplate::new(source, tokens.map(|(name, text)| (name.to_owned(), text.to_owned())).into()).unwrap()
}

fn built_in(name: &str) -> ChatTemplate {
    let (_, source) = builtin::ALL.iter().find(|(built_in, _)| *built_in == name).unwrap();
    template(source)
}

fn messages(turns: &[(&str, &str)]) -> Conversation {
    let turns: Vec<_> =
        turns.iter().map(|(role, content)| serde_json::json!({"role": role, "content": content})).collect();
    read(ConversationFormat::Messages, serde_json::json!({"messages": turns}).to_string().as_bytes(), Columns::SAME)
        .unwrap()
}

/// The text, with `[` and `]` around what is trained.
fn shown(template: &ChatTemplate, conversation: &Conversation, train_on: TrainOn) -> String {
    let Text { text, trained } = turns::text(template, conversation, train_on).unwrap();
    let (mut shown, mut end) = (String::new(), 0);
    for part in trained {
        shown.push_str(&format!("{}[{}]", &text[end..part.start], &text[part.clone()]));
        end = part.end;
    }
    shown + &text[end..]
}

const TURNS: [(&str, &str); 4] =
    [("user", "Hi."), ("assistant", "Hello!"), ("user", "How are you?"), ("assistant", "Fine.")];

#[test]
fn the_assistants_turns_are_found_in_every_built_in_template() {
    let check = |name: &str, expected: &str| {
        assert_eq!(shown(&built_in(name), &messages(&TURNS), TrainOn::Assistant), expected, "{name}");
    };
    check("deepseek", "<s>User: Hi.\n\nAssistant:[ Hello!</s>]User: How are you?\n\nAssistant:[ Fine.</s>]");
    check(
        "chatml",
        "<|im_start|>user\nHi.<|im_end|>\n<|im_start|>assistant\n[Hello!<|im_end|>\n]<|im_start|>user\nHow are \
         you?<|im_end|>\n<|im_start|>assistant\n[Fine.<|im_end|>\n]",
    );
    check("llama2", "<s>[INST] Hi. [/INST][ Hello! </s>]<s>[INST] How are you? [/INST][ Fine. </s>]");
    check("mistral", "<s>[INST] Hi. [/INST][ Hello!</s>][INST] How are you? [/INST][ Fine.</s>]");
    check(
        "zephyr",
        "<|user|>\nHi.</s>\n<|assistant|>\n[Hello!</s>\n]<|user|>\nHow are you?</s>\n<|assistant|>\n[Fine.</s>\n]",
    );
    check("vicuna", "<s>USER: Hi. ASSISTANT:[ Hello!</s>]USER: How are you? ASSISTANT:[ Fine.</s>]");
    for (name, _) in builtin::ALL {
        let found = turns::text(&built_in(name), &messages(&TURNS), TrainOn::Assistant).unwrap();
        let words: Vec<_> = found.trained.iter().map(|part| &found.text[part.clone()]).collect();
        assert!(words.len() == 2 && words[0].contains("Hello!") && words[1].contains("Fine."), "{name}: {words:?}");
        assert!(!words.iter().any(|words| words.contains("Hi.") || words.contains("How")), "{name}: {words:?}");
    }
}

#[test]
fn the_last_turn_or_all_of_it_may_be_trained() {
    let deepseek = built_in("deepseek");
    let check = |train_on, expected: &str| assert_eq!(shown(&deepseek, &messages(&TURNS), train_on), expected);
    check(TrainOn::Last, "<s>User: Hi.\n\nAssistant: Hello!</s>User: How are you?\n\nAssistant:[ Fine.</s>]");
    check(TrainOn::All, "[<s>User: Hi.\n\nAssistant: Hello!</s>User: How are you?\n\nAssistant: Fine.</s>]");
}

#[test]
fn a_template_that_says_what_is_generated_is_believed() {
    let source = "{% for m in messages %}\n{{ m.role }}:{% if m.role == 'assistant' %}\n  {%- generation %}\n  {{ m.content }};\
                  {%- endgeneration %}{% else %}{{ m.content }}{% endif %}\n{% endfor %}";
    let marked = template(source);
    assert_eq!(
        shown(&marked, &messages(&TURNS), TrainOn::Assistant),
        "user:Hi.assistant:[  Hello!;]user:How are you?assistant:[  Fine.;]"
    );
    assert_eq!(
        shown(&marked, &messages(&TURNS), TrainOn::Last),
        "user:Hi.assistant:  Hello!;user:How are you?assistant:[  Fine.;]"
    );
}

#[test]
fn turns_that_a_template_writes_otherwise_once_others_follow_are_what_changes_with_their_words() {
    // The end of a turn is written only behind the last one.
    let source =
        "{% for m in messages %}{{ m.role }}: {{ m.content.strip() }}{% if loop.last %}</s>{% endif %}\n{% endfor %}";
    assert_eq!(
        shown(&template(source), &messages(&TURNS), TrainOn::Assistant),
        "user: Hi.assistant:[ Hello!]user: How are you?assistant:[ Fine.</s>]"
    );
    // Earlier turns lose what stands before a bar.
    let source = "{% for m in messages %}<{{ m.content if loop.last else m.content.split('|')[-1] }}>{% endfor %}\
                  {% if add_generation_prompt %}<{% endif %}";
    let turns = [("user", "a"), ("assistant", "b|c"), ("user", "d"), ("assistant", "e|f")];
    assert_eq!(shown(&template(source), &messages(&turns), TrainOn::Assistant), "<a><[c]><d><[e|f>]");
}

#[test]
fn a_turn_that_a_template_does_not_show_is_not_guessed() {
    for source in [
        "{{ messages[1].content|length }}",
        "{% for m in messages %}{{ m.content|length }}{{ m.content }}{% endfor %}{{ messages|length }}",
    ] {
        let refused = turns::text(&template(source), &messages(&TURNS), TrainOn::Assistant).unwrap_err();
        assert_eq!(refused, crate::data::error::Rule::TurnsNotFound, "{source}");
    }
}

#[test]
fn rows_of_all_formats_are_conversations() {
    let check = |format, row: &str, expected: &str| {
        let conversation = read(format, row.as_bytes(), Columns::SAME).unwrap();
        let text = template("{% for m in messages %}{{ m.role }}={{ m.content }};{% endfor %}{{ tools is none }}")
            .render(&conversation.messages, &conversation.tools, false);
        assert_eq!(text.unwrap(), expected, "{row}");
    };
    use ConversationFormat::{Alpaca, Messages, Sharegpt};
    check(Alpaca, r#"{"instruction": "Add.", "input": "1 2", "output": "3"}"#, "user=Add.\n1 2;assistant=3;True");
    check(Alpaca, r#"{"instruction": "Go", "input": "", "output": "gone", "id": 7}"#, "user=Go;assistant=gone;True");
    check(
        Alpaca,
        r#"{"instruction": "b", "output": "d", "system": "s", "history": [["x", "y"]]}"#,
        "system=s;user=x;assistant=y;user=b;assistant=d;True",
    );
    check(
        Sharegpt,
        r#"{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "system": "s"}"#,
        "system=s;user=a;assistant=b;True",
    );
    check(
        Messages,
        r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "tools": [{"x": 1}]}"#,
        "user=a;assistant=b;False",
    );
}

#[test]
fn a_row_that_is_no_conversation_is_told_by_its_turn() {
    let check = |format, row: &str, expected: &str| {
        let told = read(format, row.as_bytes(), Columns::SAME).unwrap_err().rule.to_string();
        assert!(told.contains(expected), "{row}: {told}");
    };
    use ConversationFormat::{Alpaca, Messages, Sharegpt};
    check(Messages, r#"{"messages": []}"#, "no turn of this conversation is the assistant's");
    check(
        Messages,
        r#"{"messages": [{"role": "user", "content": "a"}]}"#,
        "no turn of this conversation is the assistant's",
    );
    check(Messages, r#"{"messages": [{"content": "a"}]}"#, r#"messages[0] needs "role", a text"#);
    check(Messages, r#"{"messages": [{"role": "user"}]}"#, r#"messages[0] needs "content", a text"#);
    check(
        Messages,
        r#"{"messages": [{"role": "assistant", "content": null, "tool_calls": null}]}"#,
        r#"messages[0] needs "content", a text, or "tool_calls""#,
    );
    check(Messages, r#"{"mesages": []}"#, r#"is "mesages" meant?"#);
    check(
        Sharegpt,
        r#"{"conversations": [{"from": "nobody", "value": "a"}]}"#,
        r#"conversations[0] is from "nobody": known are human"#,
    );
    check(Sharegpt, r#"{"conversations": [{"from": "gpt"}]}"#, r#"conversations[0] needs "value", a text"#);
    check(Alpaca, r#"{"instruction": "a", "output": ""}"#, r#""output" is empty"#);
    check(Alpaca, r#"{"output": "a"}"#, r#"alpaca rows need the key "instruction""#);
}

#[test]
fn a_template_that_refuses_a_conversation_says_why_and_where() {
    let refusal =
        |turns: &[(&str, &str)]| turns::text(&built_in("llama2"), &messages(turns), TrainOn::Assistant).unwrap_err();
    let told = refusal(&[("assistant", "a"), ("user", "b")]).to_string();
    assert!(
        told.contains("refuses this conversation: user and assistant must take turns, the user first (line 6"),
        "{told}"
    );
    let broken = ChatTemplate::new("{% if %}", vec![]).err().unwrap();
    assert!(broken.contains("line 1"), "{broken}");
}

#[test]
fn values_look_as_python_prints_them() {
    let check = |source: &str, expected: &str| {
        let row = r#"{"messages": [{"role": "assistant", "content": "é\"'\n<&>", "n": [1, 2.5, true, null, {"b": 1, "a": 1e16}]}]}"#;
        let conversation = read(ConversationFormat::Messages, row.as_bytes(), Columns::SAME).unwrap();
        let text = template(source).render(&conversation.messages, &Value::from(()), false).unwrap();
        assert_eq!(text, expected, "{source}");
    };
    check("{{ messages[0].n }}", "[1, 2.5, True, None, {'b': 1, 'a': 1e+16}]");
    check("{{ messages[0].content | tojson }}", r#""é\"'\n<&>""#);
    check("{{ messages[0].content | tojson(ensure_ascii=True) }}", r#""\u00e9\"'\n<&>""#);
    check("{{ messages[0].n | tojson }}", r#"[1, 2.5, true, null, {"b": 1, "a": 1e+16}]"#);
    check("{{ messages[0].n[4] | tojson(indent=2) }}", "{\n  \"b\": 1,\n  \"a\": 1e+16\n}");
    check("{{ {'b': [], 'a': {}} | tojson(sort_keys=true, separators=(',', ':')) }}", r#"{"a":{},"b":[]}"#);
    check("{{ [messages[0].content] }}", r#"['é"\'\n<&>']"#);
    check("{{ none }}{{ undefined_name }}{{ true }}", "NoneTrue");
    check("{{ ' a b '.strip().split(' ')[-1] }}{{ 'x'.startswith('x') }}", "bTrue");
}
