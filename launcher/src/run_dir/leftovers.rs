//! Removes the hidden folders and files that interrupted saves leave behind. They may be as large as a checkpoint, and nobody
//! comes back for them.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use proto::run_dir::RunDir;

use crate::error::LaunchError;

/// Removes them. The caller holds the run directory's lock, and no rank runs.
///
/// A final model that was about to be replaced and has lost its name gets it back.
pub fn remove(run_dir: &RunDir) -> Result<(), LaunchError> {
    let model = run_dir.final_model();
    let name = model.file_name().expect("a folder in the run directory").to_string_lossy();
    let replaced = model.with_file_name(format!(".{name}.old"));
    if fs::symlink_metadata(&model).is_err() && replaced.is_dir() {
        fs::rename(&replaced, &model).map_err(LaunchError::io(format!("rename {}", replaced.display())))?;
    }
    let files = [run_dir.metrics(), run_dir.plan(), run_dir.identity(), run_dir.trainer_state(), run_dir.best()];
    let is_file = |of: &str| files.iter().any(|path| path.file_name().is_some_and(|name| name == of));
    remove_those_of(run_dir.root(), |of| of == name || is_file(of))?;
    remove_those_of(&run_dir.checkpoints(), |of| RunDir::checkpoint_step(of).is_some())
}

/// Removes `.NAME.tmp` and `.NAME.old` in `folder` of every NAME that `is_ours`.
fn remove_those_of(folder: &Path, is_ours: impl Fn(&str) -> bool) -> Result<(), LaunchError> {
    let failed = || LaunchError::io(format!("list {}", folder.display()));
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed()(error)),
    };
    for entry in entries {
        let entry = entry.map_err(failed())?;
        let is_leftover = entry.file_name().to_str().and_then(hidden_name).is_some_and(&is_ours);
        if is_leftover {
            remove_all(&entry.path())?;
        }
    }
    Ok(())
}

/// NAME of `.NAME.tmp` and `.NAME.old`.
fn hidden_name(name: &str) -> Option<&str> {
    let name = name.strip_prefix('.')?;
    name.strip_suffix(".tmp").or(name.strip_suffix(".old"))
}

fn remove_all(path: &PathBuf) -> Result<(), LaunchError> {
    let removed = match fs::remove_dir_all(path) {
        Err(error) if error.kind() == ErrorKind::NotADirectory => fs::remove_file(path),
        removed => removed,
    };
    removed.map_err(LaunchError::io(format!("remove {}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.collect();
        names.sort();
        names
    }

    #[test]
    fn leftovers_go_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let run_dir = RunDir::new(dir.path());
        remove(&run_dir).unwrap();
        for name in [".step-00000004.tmp", ".step-00000004.old", "step-00000002", ".step-x.tmp", ".mine.tmp"] {
            fs::create_dir_all(run_dir.checkpoints().join(name).join("files")).unwrap();
        }
        fs::write(run_dir.checkpoints().join(".step-00000006.old"), "a file").unwrap();
        fs::write(dir.path().join(".metrics.jsonl.tmp"), "half").unwrap();
        for name in [".final.tmp", ".final.old", "final", ".cache.old"] {
            fs::create_dir_all(dir.path().join(name).join(name)).unwrap();
        }
        remove(&run_dir).unwrap();
        assert_eq!(names(&run_dir.checkpoints()), [".mine.tmp", ".step-x.tmp", "step-00000002"]);
        assert_eq!(names(dir.path()), [".cache.old", "checkpoints", "final"]);
        assert_eq!(names(&run_dir.final_model()), ["final"]);
    }

    #[test]
    fn a_final_model_without_its_name_gets_it_back() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join(".final.old/model")).unwrap();
        fs::create_dir_all(dir.path().join(".final.tmp")).unwrap();
        remove(&RunDir::new(dir.path())).unwrap();
        assert_eq!(names(dir.path()), ["final"]);
        assert!(dir.path().join("final/model").is_dir());
    }

    #[test]
    fn a_file_where_the_checkpoints_should_be_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let run_dir = RunDir::new(dir.path());
        fs::write(run_dir.checkpoints(), "").unwrap();
        let error = remove(&run_dir).unwrap_err().to_string();
        assert_eq!(error, format!("cannot list {}", run_dir.checkpoints().display()));
    }
}
