//! `manifest.json`: what a checkpoint holds and where the run stood. Written by the ranks, read by both sides. A
//! checkpoint without one is not complete. It is sealed ([`crate::sealed`]): what it says decides where a run goes on.

pub mod coverage;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{fs, io};

use serde::{Deserialize, Serialize};

use crate::model_config::ModelConfig;
use crate::sealed::{self, Seal};
use crate::validation::Validations;

/// Version of the layout of a checkpoint.
const VERSION: u32 = 3;

/// The version before: the same without a seal.
const UNSEALED: u32 = 2;

/// The progress of a run after a step.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Progress {
    /// Optimizer steps done.
    pub step: u64,
    /// Rows taken from the training set (the data cursor), counted over all epochs.
    pub rows: u64,
    /// Label tokens trained on.
    pub label_tokens: u64,
    /// What validations have shown. Earlier checkpoints do not say.
    #[serde(default)]
    pub validations: Validations,
}

/// By unit, ranges `[start, end)` of its flat buffer, ascending: in a file, one after the other.
pub type UnitRanges = BTreeMap<String, Vec<[usize; 2]>>;

/// The contents of a checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    version: u32,
    /// The progress of the run at its step.
    pub progress: Progress,
    /// Seed of initialisation and shuffling: all randomness there is.
    pub seed: u64,
    /// Name of the prepared training data, which holds a hash of its contents.
    pub data: String,
    /// Names of the prepared validation data, each of which holds a hash of its contents. Earlier checkpoints do not say.
    #[serde(default)]
    pub validation_data: Vec<String>,
    /// The model's config.json.
    pub model: ModelConfig,
    /// Elements of each unit, by name.
    pub units: BTreeMap<String, usize>,
    /// Optimizer files: which elements of each unit a file holds.
    pub optimizer: BTreeMap<String, UnitRanges>,
    /// Elements without optimizer state, because they were frozen: they are what they were when training began.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub frozen: UnitRanges,
    /// Every other file in the folder.
    pub files: BTreeMap<String, FileEntry>,
}

/// The parts of a manifest.
#[derive(Debug, Clone)]
pub struct Contents {
    /// See [`Manifest::progress`].
    pub progress: Progress,
    /// See [`Manifest::seed`].
    pub seed: u64,
    /// See [`Manifest::data`].
    pub data: String,
    /// See [`Manifest::validation_data`].
    pub validation_data: Vec<String>,
    /// See [`Manifest::model`].
    pub model: ModelConfig,
    /// See [`Manifest::units`].
    pub units: BTreeMap<String, usize>,
    /// See [`Manifest::optimizer`].
    pub optimizer: BTreeMap<String, UnitRanges>,
    /// See [`Manifest::frozen`].
    pub frozen: UnitRanges,
    /// See [`Manifest::files`].
    pub files: BTreeMap<String, FileEntry>,
}

/// One file, so that damage is noticed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Length.
    pub bytes: u64,
    /// Hash of the content, hex.
    pub blake3: String,
}

/// A folder is no checkpoint that this version can go on from.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// The manifest, or a file that it names, cannot be read.
    #[error("{}: cannot be read", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The manifest is not one, or a file has another length than it says.
    #[error("{}: damaged: {rule}", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The rule that is broken.
        rule: String,
    },
    /// Another dslaunch wrote it.
    #[error("{}: is of version {found}, this dslaunch reads version {VERSION}", .path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// The version it has.
        found: u32,
    },
}

impl Manifest {
    /// Its file's name.
    pub const FILE: &'static str = "manifest.json";

    /// A manifest of the current version.
    pub fn new(contents: Contents) -> Self {
        let Contents { progress, seed, data, validation_data, model, units, optimizer, frozen, files } = contents;
        Self { version: VERSION, progress, seed, data, validation_data, model, units, optimizer, frozen, files }
    }

    /// Where a run goes on from here that scores `validation_data`: what was scored before counts only if it was the same data.
    pub fn progress_on(&self, validation_data: &[String]) -> Progress {
        let is_same = self.validation_data == validation_data;
        Progress {
            validations: if is_same { self.progress.validations } else { Validations::default() },
            ..self.progress
        }
    }

    /// The text of its file.
    pub fn to_text(&self) -> String {
        sealed::to_text(self)
    }

    /// Whether damage to the manifest itself would have been noticed. An earlier dslaunch wrote them without a seal.
    pub fn is_sealed(&self) -> bool {
        self.version > UNSEALED
    }

    /// Reads a checkpoint's manifest and checks that it is what was written. Nothing else is looked at.
    pub fn read(checkpoint: &Path) -> Result<Self, ManifestError> {
        let path = checkpoint.join(Self::FILE);
        let bytes = fs::read(&path).map_err(|source| ManifestError::Read { path: path.clone(), source })?;
        Self::parse(&bytes, path)
    }

    fn parse(bytes: &[u8], path: PathBuf) -> Result<Self, ManifestError> {
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let damaged = |rule: String| ManifestError::Damaged { path: path.clone(), rule };
        let text = std::str::from_utf8(bytes).map_err(|error| damaged(error.to_string()))?;
        let seal = sealed::check(text);
        if seal == Seal::Broken {
            return Err(damaged(sealed::BROKEN.to_owned()));
        }
        let Version { version: found } = serde_json::from_str(text).map_err(|error| damaged(error.to_string()))?;
        match (found, seal) {
            (VERSION, Seal::Whole) | (UNSEALED, Seal::Missing) => {
                serde_json::from_str(text).map_err(|error| damaged(error.to_string()))
            }
            (VERSION, _) => Err(damaged(sealed::MISSING.to_owned())),
            (UNSEALED, _) => Err(damaged(format!("version {UNSEALED} has no seal"))),
            _ => Err(ManifestError::Version { path, found }),
        }
    }

    /// Reads a checkpoint's manifest and checks that every file is there in full length. Files are not hashed.
    pub fn load(checkpoint: &Path) -> Result<Self, ManifestError> {
        let manifest = Self::read(checkpoint)?;
        manifest.check_files(checkpoint)?;
        Ok(manifest)
    }

    /// Checks that every file is there in full length. Files are not hashed.
    pub fn check_files(&self, checkpoint: &Path) -> Result<(), ManifestError> {
        for (name, entry) in &self.files {
            let path = checkpoint.join(name);
            let found = fs::metadata(&path).map_err(|source| ManifestError::Read { path: path.clone(), source })?.len();
            if found != entry.bytes {
                let rule = format!("has {found} bytes, the manifest says {}", entry.bytes);
                return Err(ManifestError::Damaged { path, rule });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> Manifest {
        let model = r#"{"architectures": ["LlamaForCausalLM"], "hidden_size": 8, "intermediate_size": 8,
                        "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 8}"#;
        Manifest::new(Contents {
            progress: Progress { step: 3, rows: 12, label_tokens: 100, validations: Validations::default() },
            seed: 42,
            data: "train-0123.rows".into(),
            validation_data: vec!["validation-0123.rows".into()],
            model: ModelConfig::parse(Path::new("config.json"), model).unwrap(),
            units: [("head".into(), 8)].into(),
            optimizer: [("o".into(), [("head".into(), vec![[0, 8]])].into())].into(),
            frozen: [].into(),
            files: [("o".into(), FileEntry { bytes: 4, blake3: String::new() })].into(),
        })
    }

    #[test]
    fn a_checkpoint_whose_files_are_whole_is_read() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("o"), "1234").unwrap();
        fs::write(dir.path().join(Manifest::FILE), manifest().to_text()).unwrap();
        assert_eq!(Manifest::load(dir.path()).unwrap(), manifest());
        fs::write(dir.path().join("o"), "123").unwrap();
        let err = Manifest::load(dir.path()).unwrap_err().to_string();
        assert!(err.ends_with("o: damaged: has 3 bytes, the manifest says 4"), "{err}");
        fs::remove_file(dir.path().join("o")).unwrap();
        assert!(matches!(Manifest::load(dir.path()), Err(ManifestError::Read { .. })));
    }

    #[test]
    fn what_was_scored_on_other_data_does_not_count() {
        let validations = Validations { step: 3, without_improvement: 2, ..Validations::default() };
        let mut manifest = manifest();
        manifest.progress.validations = validations;
        assert_eq!(manifest.progress_on(&["validation-0123.rows".into()]).validations, validations);
        let other = manifest.progress_on(&["validation-4567.rows".into()]);
        assert_eq!(other, Progress { validations: Validations::default(), ..manifest.progress });
        assert_eq!(manifest.progress_on(&[]).validations, Validations::default());
    }

    #[test]
    fn another_version_is_told_from_damage() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(Manifest::FILE), r#"{"version": 7, "new": true}"#).unwrap();
        assert!(matches!(Manifest::load(dir.path()), Err(ManifestError::Version { found: 7, .. })));
        fs::write(dir.path().join(Manifest::FILE), r#"{"version": 1"#).unwrap();
        assert!(matches!(Manifest::load(dir.path()), Err(ManifestError::Damaged { .. })));
        let newer = Manifest { version: 9, ..manifest() };
        fs::write(dir.path().join(Manifest::FILE), newer.to_text()).unwrap();
        assert!(matches!(Manifest::load(dir.path()), Err(ManifestError::Version { found: 9, .. })));
    }

    #[test]
    fn every_flipped_bit_is_damage() {
        let text = manifest().to_text().into_bytes();
        for bit in 0..8 * text.len() {
            let mut flipped = text.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let error = Manifest::parse(&flipped, Manifest::FILE.into()).unwrap_err();
            assert!(matches!(error, ManifestError::Damaged { .. }), "bit {bit}: {error}");
        }
    }

    #[test]
    fn a_manifest_of_the_version_before_needs_no_seal() {
        let dir = tempfile::tempdir().unwrap();
        let older = Manifest { version: UNSEALED, ..manifest() };
        fs::write(dir.path().join(Manifest::FILE), serde_json::to_string_pretty(&older).unwrap()).unwrap();
        let read = Manifest::read(dir.path()).unwrap();
        assert!(!read.is_sealed() && manifest().is_sealed());
        assert_eq!(read, older);
        let mut newer = serde_json::to_string_pretty(&manifest()).unwrap();
        fs::write(dir.path().join(Manifest::FILE), &newer).unwrap();
        assert!(Manifest::read(dir.path()).unwrap_err().to_string().ends_with("damaged: it has no seal"));
        newer = older.to_text();
        fs::write(dir.path().join(Manifest::FILE), &newer).unwrap();
        assert!(Manifest::read(dir.path()).unwrap_err().to_string().ends_with("damaged: version 2 has no seal"));
    }
}
