//! The checkpoints of a run. Reads names, manifests and file lengths; the contents are the ranks' business.
//!
//! - CKP-1 A checkpoint counts only when it is complete: it has its final name and its manifest.
//! - CKP-2 All checkpoints of a run belong to one history: those that a new beginning leaves behind are moved away, so
//!   that no restart ever goes on from them.

use std::cmp::Reverse;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use proto::manifest::{Manifest, ManifestError};
use proto::run_dir::RunDir;
use proto::validation::Scored;

use crate::files::free_name;

/// A complete checkpoint, all files of which are there in full length.
#[derive(Debug, Clone, PartialEq)]
pub struct Checkpoint {
    /// Its folder.
    pub path: PathBuf,
    /// Its manifest.
    pub manifest: Manifest,
}

/// The result of [`newest`].
#[derive(Debug)]
pub struct Found {
    /// The newest checkpoint that is whole.
    pub newest: Option<Checkpoint>,
    /// The faults of newer ones, from the newest on.
    pub damaged: Vec<ManifestError>,
}

impl Checkpoint {
    /// The checkpoint at `path`.
    pub fn load(path: PathBuf) -> Result<Self, ManifestError> {
        Ok(Self { manifest: Manifest::load(&path)?, path })
    }

    /// The steps it was made after.
    pub fn step(&self) -> u64 {
        self.manifest.progress.step
    }
}

/// Whether there is a complete checkpoint at `path`, whole or damaged.
pub fn is_complete(path: &Path) -> bool {
    path.join(Manifest::FILE).is_file()
}

/// The newest complete checkpoint of the run, whole or damaged.
pub fn newest_complete(run_dir: &RunDir) -> io::Result<Option<PathBuf>> {
    let complete = all(run_dir)?.into_iter().filter(|(_, path)| is_complete(path));
    Ok(complete.max_by_key(|&(step, _)| step).map(|(_, path)| path))
}

/// The newest whole checkpoint of the run, that which it began from included, wherever that lies.
pub fn newest(run_dir: &RunDir, beginning: Option<&Checkpoint>) -> io::Result<Found> {
    let mut candidates = all(run_dir)?;
    if let Some(elsewhere) = beginning.filter(|beginning| !is_of(run_dir, beginning)) {
        candidates.push((elsewhere.step(), elsewhere.path.clone()));
    }
    candidates.retain(|(_, path)| is_complete(path));
    // Stable: of two of the same step, the run's own is the later one and comes first.
    candidates.sort_by_key(|&(step, _)| Reverse(step));
    let mut found = Found { newest: None, damaged: vec![] };
    for (_, path) in candidates {
        match Checkpoint::load(path) {
            Ok(checkpoint) => {
                found.newest = Some(checkpoint);
                break;
            }
            Err(error) => found.damaged.push(error),
        }
    }
    Ok(found)
}

/// The checkpoint with the lowest validation loss, which the run directory's link leads to.
#[derive(Debug, Clone, PartialEq)]
pub struct Best {
    /// Its folder.
    pub path: PathBuf,
    /// Its step and loss.
    pub scored: Scored,
}

/// Reads where the run directory's link leads to. `None`: there is no checkpoint that was validated, or none is kept for that.
pub fn best(run_dir: &RunDir) -> Option<Best> {
    let path = run_dir.root().join(fs::read_link(run_dir.best()).ok()?);
    let progress = Manifest::read(&path).ok()?.progress;
    Some(Best { path, scored: progress.validations.at(progress.step)? })
}

/// Moves what does not lead to `beginning` out of the run's history: later checkpoints of the run; all, if `beginning`
/// is of another run or there is none. Returns where to, if there were any.
pub fn set_aside(run_dir: &RunDir, beginning: Option<&Checkpoint>) -> io::Result<Option<PathBuf>> {
    let kept = beginning.filter(|beginning| is_of(run_dir, beginning)).map(Checkpoint::step);
    let left_behind = all(run_dir)?.into_iter().filter(|&(step, _)| Some(step) > kept);
    let mut moved = false;
    for (_, path) in left_behind {
        set_aside_one(run_dir, &path)?;
        moved = true;
    }
    Ok(moved.then(|| set_aside_folder(run_dir)))
}

/// Moves the checkpoint at `path` out of the run's history. Returns where to.
pub fn set_aside_one(run_dir: &RunDir, path: &Path) -> io::Result<PathBuf> {
    let folder = set_aside_folder(run_dir);
    fs::create_dir_all(&folder)?;
    let to = free_name(&folder, &path.file_name().expect("a checkpoint has a name").to_string_lossy());
    fs::rename(path, &to)?;
    Ok(to)
}

/// Returns the folder that [`set_aside`] moves them to.
pub fn set_aside_folder(run_dir: &RunDir) -> PathBuf {
    run_dir.root().join("old-checkpoints")
}

/// Whether `checkpoint` lies among those of the run, links resolved.
fn is_of(run_dir: &RunDir, checkpoint: &Checkpoint) -> bool {
    let real = |path: &Path| path.canonicalize().ok();
    let folder = real(&run_dir.checkpoints());
    folder.is_some() && checkpoint.path.parent().and_then(real) == folder
}

/// Every folder that has a checkpoint's name, and its step.
fn all(run_dir: &RunDir) -> io::Result<Vec<(u64, PathBuf)>> {
    let entries = match fs::read_dir(run_dir.checkpoints()) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(vec![]),
        Err(error) => return Err(error),
    };
    let mut checkpoints = vec![];
    for entry in entries {
        let entry = entry?;
        if let Some(step) = entry.file_name().to_str().and_then(RunDir::checkpoint_step) {
            checkpoints.push((step, entry.path()));
        }
    }
    Ok(checkpoints)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    use proto::manifest::{Contents, FileEntry, Progress};
    use proto::model_config::ModelConfig;

    /// Writes a checkpoint of `step` steps and as many rows, with one file of 4 bytes.
    pub(crate) fn write(path: &Path, step: u64) {
        let model = r#"{"architectures": ["LlamaForCausalLM"], "hidden_size": 8, "intermediate_size": 8,
                        "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 8}"#;
        let manifest = Manifest::new(Contents {
            progress: Progress { step, rows: step, label_tokens: step, ..Progress::default() },
            seed: 42,
            data: "train-0123.rows".into(),
            validation_data: vec![],
            model: ModelConfig::parse(Path::new("config.json"), model).unwrap(),
            units: [].into(),
            optimizer: [].into(),
            frozen: [].into(),
            files: [("weights".into(), FileEntry { bytes: 4, blake3: String::new() })].into(),
        });
        fs::create_dir_all(path).unwrap();
        fs::write(path.join("weights"), "1234").unwrap();
        fs::write(path.join(Manifest::FILE), manifest.to_text()).unwrap();
    }

    fn run(complete: &[u64], incomplete: &[&str]) -> (tempfile::TempDir, RunDir) {
        let dir = tempfile::tempdir().unwrap();
        let run_dir = RunDir::new(dir.path().join("run"));
        complete.iter().for_each(|&step| write(&run_dir.checkpoint(step), step));
        for name in incomplete {
            fs::create_dir_all(run_dir.checkpoints().join(name)).unwrap();
        }
        (dir, run_dir)
    }

    /// The newest whole step and the number of damaged ones before it.
    fn newest_step(run_dir: &RunDir, beginning: Option<&Checkpoint>) -> (Option<u64>, usize) {
        let found = newest(run_dir, beginning).unwrap();
        (found.newest.map(|checkpoint| checkpoint.step()), found.damaged.len())
    }

    #[test]
    fn the_newest_complete_checkpoint_is_found() {
        assert_eq!(newest_step(&run(&[], &[]).1, None), (None, 0));
        let (_dir, run_dir) = run(&[500, 1000, 20], &["step-00002000", ".step-00003000.tmp", "other"]);
        let found = newest(&run_dir, None).unwrap().newest.unwrap();
        assert_eq!((&found.path, found.step(), found.manifest.progress.rows), (&run_dir.checkpoint(1000), 1000, 1000));
        assert_eq!(newest_step(&run(&[], &["step-00000001"]).1, None), (None, 0));
    }

    #[test]
    fn a_damaged_checkpoint_is_passed_over_and_named() {
        let (_dir, run_dir) = run(&[10, 20, 30], &[]);
        fs::write(run_dir.checkpoint(20).join("weights"), "123").unwrap();
        fs::write(run_dir.checkpoint(30).join(Manifest::FILE), "{").unwrap();
        assert_eq!(newest_step(&run_dir, None), (Some(10), 2));
        let damaged = newest(&run_dir, None).unwrap().damaged;
        assert!(damaged[0].to_string().contains("step-00000030/manifest.json: damaged: "), "{damaged:?}");
        assert!(damaged[1].to_string().ends_with("step-00000020/weights: damaged: has 3 bytes, the manifest says 4"));
        fs::remove_file(run_dir.checkpoint(10).join("weights")).unwrap();
        assert_eq!(newest_step(&run_dir, None), (None, 3));
    }

    #[test]
    fn the_checkpoint_that_the_run_began_from_is_one_of_its() {
        let (dir, run_dir) = run(&[5], &[]);
        write(&dir.path().join("elsewhere"), 7);
        let elsewhere = Checkpoint::load(dir.path().join("elsewhere")).unwrap();
        assert_eq!(newest_step(&run_dir, Some(&elsewhere)), (Some(7), 0));
        write(&run_dir.checkpoint(7), 7);
        assert_eq!(newest(&run_dir, Some(&elsewhere)).unwrap().newest.unwrap().path, run_dir.checkpoint(7));
        fs::write(run_dir.checkpoint(7).join("weights"), "").unwrap();
        assert_eq!(newest_step(&run_dir, Some(&elsewhere)), (Some(7), 1));
        fs::remove_dir_all(&elsewhere.path).unwrap();
        assert_eq!(newest_step(&run_dir, Some(&elsewhere)), (Some(5), 1));
        let own = Checkpoint::load(run_dir.checkpoint(5)).unwrap();
        fs::write(own.path.join("weights"), "").unwrap();
        assert_eq!(newest_step(&run_dir, Some(&own)), (None, 2), "named once");
    }

    #[test]
    fn a_new_beginning_leaves_no_newer_checkpoint_in_the_history_and_loses_none() {
        let (dir, run_dir) = run(&[5, 10, 15], &["step-00000020"]);
        let old = run_dir.root().join("old-checkpoints");
        let at = |step| Checkpoint::load(run_dir.checkpoint(step)).unwrap();
        assert_eq!(set_aside(&run_dir, Some(&at(10))).unwrap(), Some(old.clone()));
        assert_eq!(set_aside(&run_dir, Some(&at(10))).unwrap(), None);
        assert_eq!(newest_step(&run_dir, None), (Some(10), 0));
        assert!(is_complete(&old.join("step-00000015")) && old.join("step-00000020").is_dir());
        fs::create_dir(run_dir.checkpoint(15)).unwrap();
        set_aside(&run_dir, None).unwrap();
        assert_eq!(newest_step(&run_dir, None), (None, 0));
        assert!(old.join("step-00000015.1").is_dir() && old.join("step-00000005").is_dir());
        write(&dir.path().join("elsewhere"), 7);
        write(&run_dir.checkpoint(6), 6);
        set_aside(&run_dir, Some(&Checkpoint::load(dir.path().join("elsewhere")).unwrap())).unwrap();
        assert_eq!(newest_step(&run_dir, None), (None, 0), "another run's checkpoint: no other belongs to it");
    }
}
