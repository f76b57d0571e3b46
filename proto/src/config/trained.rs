//! Which parameters are trained.

use serde::{Deserialize, Serialize};

/// `model.trained`: which parameters are trained. The others are frozen: they compute and are gathered as trained ones are,
/// and have no gradients, no masters and no moments.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Trained {
    /// `"all"`: all of them.
    #[default]
    All,
    /// Those whose Hugging Face name contains one of these, such as `layers.7.` or `lm_head`.
    Containing(Vec<String>),
}

impl Trained {
    /// Whether the parameter of this name is trained.
    pub fn includes(&self, name: &str) -> bool {
        match self {
            Self::All => true,
            Self::Containing(parts) => parts.iter().any(|part| name.contains(part.as_str())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_contains_one_of_the_parts_is_trained() {
        let trained = Trained::Containing(vec!["layers.1.".into(), "lm_head".into()]);
        let is_trained = |name| (trained.includes(name), Trained::All.includes(name));
        assert_eq!(is_trained("model.layers.1.mlp.up_proj.weight"), (true, true));
        assert_eq!(is_trained("model.layers.11.mlp.up_proj.weight"), (false, true));
        assert_eq!(is_trained("lm_head.weight"), (true, true));
        assert!(!Trained::Containing(vec![]).includes("lm_head.weight"));
    }
}
