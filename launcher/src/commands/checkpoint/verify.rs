//! `dslaunch checkpoint verify`: checks that a checkpoint is as it was written, down to the last bit.

use std::cmp::Reverse;
use std::fs::{self, File};
use std::io;
use std::path::{Component, Path};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use proto::manifest::{FileEntry, Manifest, coverage};
use proto::model_config::ModelConfigFile;
use proto::run_dir::RunDir;

/// Everything that is wrong, one line each: files by name, then what does not fit together. Reads every file, in at
/// most `threads` threads.
pub fn problems(checkpoint: &Path, manifest: &Manifest, threads: usize) -> Vec<String> {
    let place = |name: &str| checkpoint.join(name).display().to_string();
    let mut problems = damaged_files(checkpoint, manifest, threads);
    match unnamed(checkpoint, manifest) {
        Ok(names) => problems.extend(names.into_iter().map(|name| (name, "the manifest does not name it".to_owned()))),
        Err(error) => problems.push((String::new(), format!("cannot be listed: {error}"))),
    }
    problems.sort();
    let of_files = problems.into_iter().map(|(name, what)| format!("{}: {what}", place(&name)));
    let of_manifest = coverage::problems(manifest).into_iter().chain(other_model(checkpoint, manifest));
    let of_manifest = of_manifest.chain(other_step(checkpoint, manifest));
    of_files.chain(of_manifest.map(|what| format!("{}: {what}", place(Manifest::FILE)))).collect()
}

/// A file's name and what is wrong with it.
type Fault = (String, String);

/// Threads take file after file, the largest first, so that none is left with a large one at the end.
fn damaged_files(checkpoint: &Path, manifest: &Manifest, threads: usize) -> Vec<Fault> {
    let mut files: Vec<(&String, &FileEntry)> = manifest.files.iter().collect();
    files.sort_by_key(|(_, entry)| Reverse(entry.bytes));
    let next = AtomicUsize::new(0);
    let work = || {
        let mut faults: Vec<Fault> = vec![];
        while let Some((name, entry)) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
            faults.extend(fault(checkpoint, name, entry).map(|what| ((*name).clone(), what)));
        }
        faults
    };
    thread::scope(|scope| {
        // This thread is one of them. A system that has no more than it does with fewer.
        let helpers = threads.min(files.len()).saturating_sub(1);
        let start = |_| thread::Builder::new().name("verify".into()).spawn_scoped(scope, work).ok();
        let helpers: Vec<_> = (0..helpers).filter_map(start).collect();
        let mut faults = work();
        for helper in helpers {
            faults.append(&mut helper.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
        faults
    })
}

fn fault(checkpoint: &Path, name: &str, entry: &FileEntry) -> Option<String> {
    let mut parts = Path::new(name).components();
    if !matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None)) {
        return Some("is no name of a file in this folder".to_owned());
    }
    match damage(&checkpoint.join(name), entry) {
        Ok(damage) => damage,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Some("is missing".to_owned()),
        Err(error) => Some(format!("cannot be read: {error}")),
    }
}

fn damage(path: &Path, entry: &FileEntry) -> io::Result<Option<String>> {
    let metadata = fs::metadata(path)?;
    if !metadata.is_file() {
        // A pipe would be waited for.
        return Ok(Some("is no file".to_owned()));
    }
    let found = metadata.len();
    if found != entry.bytes {
        return Ok(Some(format!("has {found} bytes, the manifest says {}", entry.bytes)));
    }
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(File::open(path)?)?;
    let differs = hasher.finalize().to_hex().as_str() != entry.blake3;
    Ok(differs.then(|| "its content is not what the manifest's hash says".to_owned()))
}

/// Lists the files in the folder that are not in the manifest.
fn unnamed(checkpoint: &Path, manifest: &Manifest) -> io::Result<Vec<String>> {
    let mut names = vec![];
    for entry in fs::read_dir(checkpoint)? {
        let name = entry?.file_name();
        let named = name.to_str().is_some_and(|name| name == Manifest::FILE || manifest.files.contains_key(name));
        if !named {
            names.push(name.to_string_lossy().into_owned());
        }
    }
    Ok(names)
}

/// config.json has a hash, the manifest has none: what both say has to agree.
fn other_model(checkpoint: &Path, manifest: &Manifest) -> Option<String> {
    let config = ModelConfigFile::load(&checkpoint.join("config.json")).ok()?.config;
    let key = manifest.model.difference(&config)?;
    Some(format!("its model has another {key} than config.json"))
}

/// Likewise the folder's name, if it is one that a run gives.
fn other_step(checkpoint: &Path, manifest: &Manifest) -> Option<String> {
    let name = super::name(checkpoint);
    let (named, step) = (RunDir::checkpoint_step(&name)?, manifest.progress.step);
    (named != step).then(|| format!("says step {step}, and the folder's name {name}"))
}
