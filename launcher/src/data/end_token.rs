//! Chooses the token that ends each sample. A model's files may name several; the tokenizer's own is what its users train with.

use std::path::Path;

use serde_json::Value;
use tokenizers::Tokenizer;

use super::error::{DataError, Problem, Problems};
use super::model_files;

/// The tokens that a model's files name, the one that counts first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EndTokens {
    /// `eos_token` of tokenizer_config.json: a text.
    pub of_tokenizer: Option<String>,
    /// `eos_token_id` of generation_config.json: the first.
    pub of_generation: Option<u32>,
    /// `eos_token_id` of config.json: the first.
    pub of_config: Option<u32>,
}

impl EndTokens {
    /// Those in the model's `folder`, whose config.json has been read. A file that is not there names none.
    pub fn read(folder: &Path, of_config: Option<u32>) -> Result<Self, DataError> {
        let tokenizer = object(&folder.join("tokenizer_config.json"))?;
        let generation = object(&folder.join("generation_config.json"))?;
        let id = &generation["eos_token_id"];
        Ok(Self {
            of_tokenizer: model_files::token_text(&tokenizer["eos_token"]),
            of_generation: id.as_u64().or(id[0].as_u64()).and_then(|id| u32::try_from(id).ok()),
            of_config,
        })
    }

    /// The id that counts, and the file that names it. A text that the tokenizer does not know names nothing.
    pub fn choose(&self, tokenizer: &Tokenizer) -> Option<(u32, &'static str)> {
        let of_tokenizer = self.of_tokenizer.as_ref().and_then(|text| tokenizer.token_to_id(text));
        let candidates = [
            (of_tokenizer, "tokenizer_config.json"),
            (self.of_generation, "generation_config.json"),
            (self.of_config, "config.json"),
        ];
        candidates.into_iter().find_map(|(id, file)| Some((id?, file)))
    }
}

fn object(path: &Path) -> Result<Value, DataError> {
    model_files::json(path).map_err(|rule| {
        let mut problems = Problems::default();
        problems.push(Problem::of_file(path.to_string_lossy(), rule));
        DataError::Problems(problems)
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::fixture;
    use super::*;

    #[test]
    fn the_tokenizers_own_comes_before_those_of_generation_and_model() {
        let tokenizer: Tokenizer = fixture::words().parse().unwrap();
        let check = |files: &[(&str, &str)], expected: Option<(u32, &str)>| {
            let folder = tempfile::tempdir().unwrap();
            files.iter().for_each(|(name, text)| fs::write(folder.path().join(name), text).unwrap());
            let tokens = EndTokens::read(folder.path(), Some(7)).unwrap();
            assert_eq!(tokens.choose(&tokenizer), expected, "{files:?}");
        };
        let generation = ("generation_config.json", r#"{"eos_token_id": [5, 6]}"#);
        check(&[], Some((7, "config.json")));
        check(&[generation], Some((5, "generation_config.json")));
        check(&[("generation_config.json", r#"{"eos_token_id": 4}"#)], Some((4, "generation_config.json")));
        for named in [r#"{"eos_token": "</s>"}"#, r#"{"eos_token": {"content": "</s>", "lstrip": false}}"#] {
            check(&[generation, ("tokenizer_config.json", named)], Some((fixture::EOS, "tokenizer_config.json")));
        }
        check(&[("tokenizer_config.json", r#"{"eos_token": "<none>"}"#)], Some((7, "config.json")));
        check(&[("tokenizer_config.json", r#"{"eos_token": null}"#)], Some((7, "config.json")));
    }

    #[test]
    fn a_file_that_is_no_json_is_named() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("tokenizer_config.json"), "{").unwrap();
        let error = EndTokens::read(folder.path(), None).unwrap_err().to_string();
        assert!(error.contains("/tokenizer_config.json: EOF while parsing"), "{error}");
    }
}
