//! Writes files atomically: a reader sees the old content or the new, never a part. Opens what may not be a link, and makes
//! folders that nobody else may look into.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use nix::fcntl::OFlag;

/// Writes `bytes` to `path` so that a crash at any moment leaves the old file or the new one.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let temporary = parent.join(format!(".{}.tmp", name.to_string_lossy()));
    let replaced = write_synced(&temporary, bytes).and_then(|()| fs::rename(&temporary, path));
    if let Err(error) = replaced {
        // What cannot be removed is written over by the next one.
        let _ = fs::remove_file(&temporary);
        return Err(error);
    }
    // The new name is on disk only once the folder is.
    File::open(parent)?.sync_all()
}

/// Writes a file that is not there, whatever lies at its name: a link is not followed to where it points.
fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Opens the file at `path` for adding to it, and makes it if need be. A link in its place is an error.
pub fn open_to_append(path: &Path) -> io::Result<File> {
    open_no_link(path, OpenOptions::new().create(true).append(true))
}

/// Opens the file at `path`, itself and not what a link in its place points to: that is an error.
pub fn open_no_link(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    options.custom_flags(OFlag::O_NOFOLLOW.bits()).open(path)
}

/// Makes a folder, and those above it, that nobody else may look into, unless it is there.
pub fn create_private_folder(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// A name in `folder` that is not taken: `name` itself or `name.1`, `name.2` and so on.
pub fn free_name(folder: &Path, name: &str) -> std::path::PathBuf {
    let numbered = (1..).map(|number: u64| folder.join(format!("{name}.{number}")));
    let mut names = std::iter::once(folder.join(name)).chain(numbered);
    names.find(|path| fs::symlink_metadata(path).is_err()).expect("the numbers do not end")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_and_nothing_else_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("plan.json");
        for text in ["one", "two"] {
            write_atomically(&path, text.as_bytes()).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn links_in_the_place_of_files_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::write(path("victim"), "mine").unwrap();
        for name in [".plan.json.tmp", "plan.json", "events.jsonl"] {
            std::os::unix::fs::symlink(path("victim"), path(name)).unwrap();
        }
        write_atomically(&path("plan.json"), b"plan").unwrap();
        assert!(open_to_append(&path("events.jsonl")).is_err());
        assert_eq!(fs::read_to_string(path("victim")).unwrap(), "mine");
        assert_eq!(fs::read_to_string(path("plan.json")).unwrap(), "plan");
        assert!(fs::symlink_metadata(path("plan.json")).unwrap().is_file());
    }

    #[test]
    fn a_private_folder_is_nobody_elses() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("logs/attempt-0");
        create_private_folder(&path).unwrap();
        create_private_folder(&path).unwrap();
        assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn a_taken_name_gets_a_number() {
        let dir = tempfile::tempdir().unwrap();
        for expected in ["logs", "logs.1", "logs.2"] {
            let path = free_name(dir.path(), "logs");
            assert_eq!(path, dir.path().join(expected));
            fs::create_dir(path).unwrap();
        }
    }
}
