//! Renders a chat template as transformers does: Jinja with its settings, the model's special tokens, and marks around what
//! `{% generation %}` encloses.

use minijinja::syntax::SyntaxConfig;
use minijinja::{AutoEscape, Environment, Error, Value};

use super::python;

/// Put around what a template says is the assistant's. Both are code points that no text has (Unicode calls them
/// noncharacters).
pub const MARKS: [char; 2] = ['\u{fdd0}', '\u{fdd1}'];

/// The filter that `{% generation %}` becomes.
const GENERATION: &str = "dslaunch_generation";

/// A template, and the special tokens that it may name. Shared by all threads.
pub struct ChatTemplate {
    env: Environment<'static>,
    /// `bos_token` and so on with their texts.
    special_tokens: Vec<(String, String)>,
    /// Whether it says itself what the assistant's words are.
    marks_generation: bool,
}

impl ChatTemplate {
    /// Of its source. The error is the engine's, with the line.
    pub fn new(source: &str, special_tokens: Vec<(String, String)>) -> Result<Self, String> {
        let mut env = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        env.set_syntax(syntax.map_err(|error| error.to_string())?);
        env.set_auto_escape_callback(|_| AutoEscape::None);
        python::add_to(&mut env);
        env.add_filter(GENERATION, |text: String| format!("{}{text}{}", MARKS[0], MARKS[1]));
        let (source, marks_generation) = with_filters(source);
        env.add_template_owned("chat template", source).map_err(|error| describe(&error))?;
        Ok(Self { env, special_tokens, marks_generation })
    }

    /// Whether it says itself what the assistant's words are: then [`MARKS`] enclose them.
    pub fn marks_generation(&self) -> bool {
        self.marks_generation
    }

    /// The text of a conversation. With `is_asking` it ends where the assistant's next words begin. The error is the template's.
    pub fn render(&self, messages: &[Value], tools: &Value, is_asking: bool) -> Result<String, String> {
        let tokens = self.special_tokens.iter().map(|(name, text)| (name.as_str(), Value::from(text.as_str())));
        let given = [
            ("messages", Value::from(messages.to_vec())),
            ("tools", tools.clone()),
            ("documents", Value::from(())),
            ("add_generation_prompt", Value::from(is_asking)),
        ];
        let context = Value::from_pairs(tokens.chain(given));
        let template = self.env.get_template("chat template").map_err(|error| describe(&error))?;
        template.render(context).map_err(|error| describe(&error))
    }
}

/// What is wrong, and in which line of the template.
fn describe(error: &Error) -> String {
    let what = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    match error.line() {
        Some(line) => format!("{what} (line {line} of the template)"),
        None => what,
    }
}

/// Turns `{% generation %}` and its end, which Jinja does not know, into a filter over what stands between, and says whether
/// there is any. Tag stays tag, so nothing changes in what whitespace is taken away around it.
fn with_filters(source: &str) -> (String, bool) {
    let (mut text, mut rest, mut found) = (String::with_capacity(source.len()), source, false);
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at);
        text.push_str(before);
        let inner = &tag[2..];
        let trimmed = inner.strip_prefix(['-', '+']).unwrap_or(inner);
        let words = trimmed.trim_start();
        let name = words.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default();
        let instead = match name {
            "generation" => Some(format!("filter {GENERATION}")),
            "endgeneration" => Some("endfilter".to_owned()),
            _ => None,
        };
        match instead {
            Some(instead) => {
                found = true;
                text.push_str(&tag[..tag.len() - words.len()]);
                text.push_str(&instead);
                rest = &words[name.len()..];
            }
            None => {
                text.push_str("{%");
                rest = inner;
            }
        }
    }
    text.push_str(rest);
    (text, found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generation_becomes_a_filter_and_other_tags_stay() {
        let check = |source: &str, expected: &str| assert_eq!(with_filters(source).0, expected);
        check("{%- generation -%}a{%+ endgeneration %}", "{%- filter dslaunch_generation -%}a{%+ endfilter %}");
        check("{% if generation %}{%endif%}{{ '{%' }}", "{% if generation %}{%endif%}{{ '{%' }}");
        assert!(!with_filters("{% if generation %}{% endif %}{%").1);
    }
}
