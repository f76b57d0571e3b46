//! Chat templates that come with dslaunch: for base models, whose files have none. Each says in its own words what the models
//! that it is named for were trained with.

/// Every name with its template.
pub const ALL: &[(&str, &str)] = &[
    ("alpaca", include_str!("builtin/alpaca.jinja")),
    ("chatml", include_str!("builtin/chatml.jinja")),
    ("deepseek", include_str!("builtin/deepseek.jinja")),
    ("llama2", include_str!("builtin/llama2.jinja")),
    ("llama3", include_str!("builtin/llama3.jinja")),
    ("mistral", include_str!("builtin/mistral.jinja")),
    ("qwen", include_str!("builtin/qwen.jinja")),
    ("vicuna", include_str!("builtin/vicuna.jinja")),
    ("zephyr", include_str!("builtin/zephyr.jinja")),
];

/// The names, for messages.
pub fn names() -> String {
    let names: Vec<_> = ALL.iter().map(|(name, _)| *name).collect();
    names.join(", ")
}
