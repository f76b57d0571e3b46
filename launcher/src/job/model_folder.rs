//! What can be said of `model.path` before anything in it is read.

use std::path::Path;

use proto::config::{Problem, TrainConfig};

/// What is wrong with the folder of the job's model, which `path` is from the root.
pub fn problem(config: &TrainConfig, path: &Path) -> Option<Problem> {
    let rule = rule(&config.model.path.to_string_lossy(), path)?;
    Some(config.origins.problem("model.path", rule))
}

/// What is wrong with a model's folder, which is `written` so and is `path` from the root.
pub fn rule(written: &str, path: &Path) -> Option<String> {
    Some(if path.is_dir() {
        return None;
    } else if path.exists() {
        "is a file: the folder that holds config.json and *.safetensors is wanted".to_owned()
    } else if written.starts_with('~') {
        "there is no such folder: only a shell knows what ~ is, so write the whole path".to_owned()
    } else if is_hub_id(written) {
        format!(
            "there is no such folder, and nothing is downloaded: `hf download {written} --local-dir {written}` does that"
        )
    } else {
        "there is no such folder".to_owned()
    })
}

/// `owner/name`, as on the Hugging Face Hub.
pub fn is_hub_id(path: &str) -> bool {
    let is_name = |name: &str| {
        let is_word = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        !name.starts_with('.') && !name.is_empty() && name.bytes().all(is_word)
    };
    path.split_once('/').is_some_and(|(owner, name)| is_name(owner) && is_name(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(path: &str) -> Option<String> {
        let toml = format!("[model]\npath = {path:?}\n[data]\ntrain = \"d\"\n");
        let config = TrainConfig::parse("train.toml".as_ref(), &toml, &[]).unwrap();
        problem(&config, &Path::new("/no/such/place").join(path)).map(|problem| problem.rule)
    }

    #[test]
    fn a_path_that_is_none_is_told_by_its_looks() {
        assert_eq!(said("/tmp"), None);
        assert!(said("/proc/version").unwrap().starts_with("is a file"));
        assert!(said("~/models/x").unwrap().contains("only a shell knows"));
        let hub = said("deepseek-ai/deepseek-llm-7b-base").unwrap();
        assert!(hub.contains("`hf download deepseek-ai/deepseek-llm-7b-base --local-dir"), "{hub}");
        for path in ["models/x/y", "./x", "../x", "x", "/a/b"] {
            assert_eq!(said(path).unwrap(), "there is no such folder", "{path}");
        }
    }
}
