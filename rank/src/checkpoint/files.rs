//! Writes files and folders so that they are there whole or not at all, and hashes files.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use proto::manifest::FileEntry;

use super::error::{Result, reading, writing};

/// The name under which `path` is written before it is renamed. Hidden, so that nobody takes it for the real thing.
pub(super) fn temporary_name(path: &Path) -> PathBuf {
    let name = path.file_name().expect("a path with a name").to_string_lossy();
    path.with_file_name(format!(".{name}.tmp"))
}

/// Makes an empty folder at `path`, whatever an interrupted run left there.
pub(super) fn fresh_folder(path: &Path) -> Result<()> {
    remove_hidden(path)?;
    fs::create_dir_all(path).map_err(writing(path))
}

/// Removes a folder, or a file in its place, if it is there. It is seen whole or not at all: it loses its name first.
pub(super) fn remove_folder(path: &Path) -> Result<()> {
    let old = old_name(path);
    remove_hidden(&old)?;
    match fs::rename(path, &old) {
        Err(err) if err.kind() == ErrorKind::NotFound => return Ok(()),
        renamed => renamed.map_err(writing(path))?,
    }
    remove_hidden(&old)
}

fn remove_hidden(path: &Path) -> Result<()> {
    let removed = match fs::remove_dir_all(path) {
        Err(err) if err.kind() == ErrorKind::NotADirectory => fs::remove_file(path),
        removed => removed,
    };
    match removed {
        Err(err) if err.kind() != ErrorKind::NotFound => Err(writing(path)(err)),
        _ => Ok(()),
    }
}

/// The name that a folder has while it is removed or replaced.
fn old_name(path: &Path) -> PathBuf {
    path.with_file_name(format!(".{}.old", path.file_name().expect("a path with a name").to_string_lossy()))
}

/// Writes a small file.
pub(super) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(path, bytes).map_err(writing(path))
}

/// Writes a small file and syncs it.
pub(super) fn write_synced(path: &Path, bytes: &[u8]) -> Result<()> {
    write(path, bytes)?;
    sync(path)
}

/// Writes a small file in place of the one that is there in a folder of ours. It is seen whole at any time, and the folder without
/// anything else: what is written lies beside it first, under the folder's temporary name.
pub(super) fn write_replacing(path: &Path, bytes: &[u8]) -> Result<()> {
    let folder = path.parent().expect("a file in a folder");
    let temporary = temporary_name(folder);
    remove_hidden(&temporary)?;
    write_synced(&temporary, bytes)?;
    fs::rename(&temporary, path).map_err(writing(path))?;
    sync(folder)
}

/// Has the link `path` lead to `target`, or to nothing any more. What is no link stays as it is; where a file system has no links,
/// there is none.
pub(super) fn replace_link(path: &Path, target: Option<&Path>) -> Result<()> {
    let there = fs::symlink_metadata(path).ok();
    if there.as_ref().is_some_and(|there| !there.is_symlink()) {
        return Ok(());
    }
    let Some(target) = target else {
        return if there.is_some() { fs::remove_file(path).map_err(writing(path)) } else { Ok(()) };
    };
    if fs::read_link(path).is_ok_and(|old| old == target) {
        return Ok(());
    }
    let temporary = temporary_name(path);
    remove_hidden(&temporary)?;
    match symlink(target, &temporary) {
        Err(err) if matches!(err.kind(), ErrorKind::Unsupported | ErrorKind::PermissionDenied) => Ok(()),
        linked => linked.and_then(|()| fs::rename(&temporary, path)).map_err(writing(path)),
    }
}

/// Waits until what was written to `path` (a file or a folder) is on the disk.
pub(super) fn sync(path: &Path) -> Result<()> {
    File::open(path).and_then(|file| file.sync_all()).map_err(writing(path))
}

/// Gives the folder `from` its real name `to`, in place of what was there. Its files are synced already.
pub(super) fn publish_folder(from: &Path, to: &Path) -> Result<()> {
    sync(from)?;
    let old = old_name(to);
    remove_hidden(&old)?;
    if to.symlink_metadata().is_ok() {
        fs::rename(to, &old).map_err(writing(to))?;
    }
    fs::rename(from, to).map_err(writing(to))?;
    sync(to.parent().expect("a folder in a folder"))?;
    remove_hidden(&old)
}

/// Length and hash of the file at `path`.
pub(super) fn file_entry(path: &Path) -> Result<FileEntry> {
    let file = File::open(path).map_err(reading(path))?;
    let bytes = file.metadata().map_err(reading(path))?.len();
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(file).map_err(reading(path))?;
    Ok(FileEntry { bytes, blake3: hasher.finalize().to_hex().to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn publishing_replaces_what_was_there() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join(".final.tmp"), dir.path().join("final"));
        for content in ["old", "new"] {
            fresh_folder(&from).unwrap();
            write_synced(&from.join("x"), content.as_bytes()).unwrap();
            publish_folder(&from, &to).unwrap();
            assert_eq!(fs::read_to_string(to.join("x")).unwrap(), content);
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing else is left");
    }

    #[test]
    fn a_file_in_a_folder_is_replaced_whole() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("step-00000001");
        fs::create_dir(&folder).unwrap();
        for content in ["old", "new"] {
            write_replacing(&folder.join("manifest.json"), content.as_bytes()).unwrap();
            assert_eq!(fs::read_to_string(folder.join("manifest.json")).unwrap(), content);
        }
        assert_eq!((fs::read_dir(dir.path()).unwrap().count(), fs::read_dir(&folder).unwrap().count()), (1, 1));
    }

    #[test]
    fn a_link_is_replaced_and_removed_and_nothing_else_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("best");
        replace_link(&path, None).unwrap();
        for target in ["checkpoints/a", "checkpoints/b", "checkpoints/b"] {
            replace_link(&path, Some(Path::new(target))).unwrap();
            assert_eq!(fs::read_link(&path).unwrap(), Path::new(target));
        }
        replace_link(&path, None).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        fs::write(&path, "the user's").unwrap();
        for target in [None, Some(Path::new("x"))] {
            replace_link(&path, target).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), "the user's");
        }
    }

    #[test]
    fn a_file_in_the_way_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join(".final.tmp"), dir.path().join("final"));
        for name in ["final", ".final.old", ".final.tmp"] {
            fs::write(dir.path().join(name), "a file").unwrap();
        }
        fresh_folder(&from).unwrap();
        publish_folder(&from, &to).unwrap();
        assert!(to.is_dir());
        remove_folder(&to).unwrap();
        remove_folder(&to).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
