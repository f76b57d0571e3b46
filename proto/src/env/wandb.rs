//! The variables by which users of Weights & Biases say what a run is called and where it belongs.

use std::ffi::OsString;

/// What they say. The API key itself is never read: only whether there is one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WandbEnv {
    /// The project (`WANDB_PROJECT`).
    pub project: Option<String>,
    /// The user or team that it belongs to (`WANDB_ENTITY`).
    pub entity: Option<String>,
    /// The run's name (`WANDB_NAME`).
    pub name: Option<String>,
    /// The group that it is shown in (`WANDB_RUN_GROUP`).
    pub group: Option<String>,
    /// Its tags, separated by commas (`WANDB_TAGS`).
    pub tags: Vec<String>,
    /// Whether it can be sent: there is a key (`WANDB_API_KEY`), and nobody wants it to stay here (`WANDB_MODE`).
    pub sends: bool,
}

impl WandbEnv {
    /// Reads the variables of this process.
    #[allow(clippy::disallowed_methods, reason = "this is where it is read")]
    pub fn from_process() -> Self {
        Self::read(|name| std::env::var_os(name))
    }

    /// The pure half of [`WandbEnv::from_process`]. An empty variable is as if it were not there.
    pub fn read(lookup: impl Fn(&str) -> Option<OsString>) -> Self {
        let text = |name: &str| {
            let value = lookup(name)?.to_string_lossy().trim().to_owned();
            Some(value).filter(|value| !value.is_empty())
        };
        let mode = text("WANDB_MODE").unwrap_or_default();
        let tags = text("WANDB_TAGS").unwrap_or_default();
        let tags = tags.split(',').map(str::trim).filter(|tag| !tag.is_empty());
        Self {
            project: text("WANDB_PROJECT"),
            entity: text("WANDB_ENTITY"),
            name: text("WANDB_NAME"),
            group: text("WANDB_RUN_GROUP"),
            tags: tags.map(str::to_owned).collect(),
            sends: text("WANDB_API_KEY").is_some() && !["offline", "disabled", "dryrun"].contains(&mode.as_str()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_read_and_empty_ones_are_none() {
        let set =
            [("WANDB_PROJECT", "llama"), ("WANDB_NAME", " "), ("WANDB_TAGS", "a, b,,"), ("WANDB_API_KEY", "secret")];
        let lookup = |name: &str| set.iter().find(|(known, _)| *known == name).map(|(_, value)| OsString::from(value));
        let tags = vec!["a".to_owned(), "b".to_owned()];
        let expected = WandbEnv { project: Some("llama".into()), tags, sends: true, ..WandbEnv::default() };
        assert_eq!(WandbEnv::read(lookup), expected);
        assert!(!format!("{:?}", WandbEnv::read(lookup)).contains("secret"));
        assert_eq!(WandbEnv::read(|_| None), WandbEnv::default());
        let offline = |name: &str| if name == "WANDB_MODE" { Some("offline".into()) } else { lookup(name) };
        assert!(!WandbEnv::read(offline).sends);
    }
}
