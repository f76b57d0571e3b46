//! Finds the token by which a run's nodes know each other: where the user says, or in a file of the user's own.
//!
//! - TOK-1 A token comes from a file only if nobody but the user (and root) can read or write it.
//! - TOK-2 There is no token that could be guessed: where the user gives none, and all nodes are on this machine, they share a
//!   random one, which the first of them leaves in the user's own folder.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::unistd::geteuid;

use super::error::{MIN_TOKEN_BYTES, RunError};
use super::nodes::{TOKEN_VARIABLES, TokenSource};
use super::rounds::MeetingPlace;
use crate::agents::token::Token;
use crate::files::{create_private_folder, open_no_link};
use crate::random::random_hex;

/// More is no token.
const MOST_BYTES: u64 = 4096;

/// The permissions of everybody but the owner.
const OTHERS: u32 = 0o077;

/// The run's token.
pub fn find(source: &TokenSource, place: &MeetingPlace) -> Result<Token, RunError> {
    match source {
        TokenSource::File(path) => {
            let file = File::open(path).map_err(refused(path))?;
            in_file(path, file)
        }
        TokenSource::Variable(text) => {
            word(text.to_str().unwrap_or_default(), format!("the variable {}", TOKEN_VARIABLES[0]))
        }
        TokenSource::None if place.is_loopback() => {
            let folder = proto::env::private_folder().ok_or(RunError::NoTokenFolder)?;
            own(&folder.join("dslaunch/nodes"))
        }
        TokenSource::None => Err(RunError::NoToken(place.endpoint())),
    }
}

/// The token in `folder`, which all nodes of this user on this machine share. The first of them makes both.
fn own(folder: &Path) -> Result<Token, RunError> {
    create_private_folder(folder).map_err(refused(folder))?;
    let found = fs::symlink_metadata(folder).map_err(refused(folder))?;
    if !found.is_dir() {
        return Err(refuse(folder, "expected a folder".to_owned()));
    }
    private(folder, &found, "chmod 700")?;
    let path = folder.join("token");
    let open = || open_no_link(&path, OpenOptions::new().read(true));
    let file = match open() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            leave_new(&path).map_err(refused(&path))?;
            open()
        }
        opened => opened,
    };
    in_file(&path, file.map_err(refused(&path))?)
}

/// Leaves a new token at `path`, whole or not at all, unless another node was faster.
fn leave_new(path: &Path) -> io::Result<()> {
    let draft = path.with_extension(random_hex(8)?);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
    let written = file.write_all(random_hex(32)?.as_bytes()).and_then(|()| match fs::hard_link(&draft, path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        linked => linked,
    });
    fs::remove_file(&draft)?;
    written
}

fn in_file(path: &Path, file: File) -> Result<Token, RunError> {
    // Of what was opened: the name may be another file's meanwhile.
    private(path, &file.metadata().map_err(refused(path))?, "chmod 600")?;
    let mut text = String::new();
    file.take(MOST_BYTES).read_to_string(&mut text).map_err(refused(path))?;
    word(&text, format!("the file {}", path.display()))
}

/// TOK-1.
fn private(path: &Path, found: &Metadata, remedy: &str) -> Result<(), RunError> {
    match not_private(found.uid(), found.mode(), geteuid().as_raw()) {
        None => Ok(()),
        Some(NotPrivate::OfAnother) => {
            Err(refuse(path, format!("expected a file of your own (uid {}), not of uid {}", geteuid(), found.uid())))
        }
        Some(NotPrivate::Open) => {
            let mode = found.mode() & 0o777;
            Err(refuse(path, format!("expected that nobody else can read or write it, not mode {mode:o}: {remedy} it")))
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NotPrivate {
    OfAnother,
    Open,
}

/// Root can read everything in any case.
fn not_private(owner: u32, mode: u32, user: u32) -> Option<NotPrivate> {
    match owner == user || owner == 0 {
        false => Some(NotPrivate::OfAnother),
        true => (mode & OTHERS != 0).then_some(NotPrivate::Open),
    }
}

fn word(text: &str, place: String) -> Result<Token, RunError> {
    let token = Token::given(text.trim()).filter(|token| token.expose().len() >= MIN_TOKEN_BYTES);
    token.ok_or(RunError::TokenText(place))
}

fn refused(path: &Path) -> impl FnOnce(io::Error) -> RunError {
    let path = path.to_owned();
    move |error| refuse(&path, error.to_string())
}

fn refuse(path: &Path, reason: String) -> RunError {
    RunError::TokenFile { path: PathBuf::from(path), reason }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::SocketAddr;
    use std::os::unix::fs::PermissionsExt;

    fn place(host: &str) -> MeetingPlace {
        MeetingPlace::at(host, vec![SocketAddr::new(host.parse().unwrap(), 7)])
    }

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_run_that_others_can_reach_needs_a_token() {
        let refusal = |source: &TokenSource, host: &str| find(source, &place(host)).unwrap_err().to_string();
        let told = refusal(&TokenSource::None, "10.0.0.1");
        assert!(told.starts_with("10.0.0.1:7 can be reached from other machines, and the run has no token"), "{told}");
        let variable = |text: &str| TokenSource::Variable(text.into());
        let long = "0123456789abcdef";
        assert!(find(&variable(long), &place("10.0.0.1")).unwrap().is(long.as_bytes()));
        assert_eq!(
            refusal(&variable("short"), "127.0.0.1"),
            "the token in the variable DSLAUNCH_JOB_TOKEN: expected one word of at least 16 printable ASCII characters"
        );
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("token");
        assert!(refusal(&TokenSource::File(file.clone()), "::1").contains("No such file"));
        fs::write(&file, format!("{long}\n")).unwrap();
        set_mode(&file, 0o600);
        assert!(find(&TokenSource::File(file), &place("::1")).unwrap().is(long.as_bytes()));
    }

    #[test]
    fn tok_1_a_file_that_others_can_read_or_write_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("token");
        fs::write(&file, "0123456789abcdef").unwrap();
        for mode in [0o666, 0o644, 0o604, 0o640, 0o620, 0o602] {
            set_mode(&file, mode);
            let told = find(&TokenSource::File(file.clone()), &place("::1")).unwrap_err().to_string();
            let rule = format!("expected that nobody else can read or write it, not mode {mode:o}: chmod 600 it");
            assert_eq!(told, format!("the token's file {}: {rule}", file.display()));
        }
        for mode in [0o600, 0o400] {
            set_mode(&file, mode);
            assert!(find(&TokenSource::File(file.clone()), &place("::1")).is_ok(), "{mode:o}");
        }
        assert_eq!(not_private(1000, 0o600, 1001), Some(NotPrivate::OfAnother));
        assert_eq!(not_private(0, 0o400, 1001), None, "root's");
        assert_eq!(not_private(0, 0o444, 1001), Some(NotPrivate::Open));
    }

    #[test]
    fn tok_2_all_nodes_of_a_user_find_one_random_token() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("a/nodes");
        let found: Vec<_> = std::thread::scope(|scope| {
            let nodes: Vec<_> = (0..8).map(|_| scope.spawn(|| own(&folder).unwrap())).collect();
            nodes.into_iter().map(|node| node.join().unwrap()).collect()
        });
        assert!(found.iter().all(|token| *token == found[0] && token.expose().len() == 64));
        assert_ne!(own(&dir.path().join("b/nodes")).unwrap(), found[0]);
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
        assert_eq!((mode(&folder), mode(&folder.join("token"))), (0o700, 0o600));
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1, "no draft is left");
    }

    #[test]
    fn tok_1_the_users_own_folder_and_file_are_looked_at_too() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("nodes");
        own(&folder).unwrap();
        let refusal = || own(&folder).unwrap_err().to_string();
        set_mode(&folder.join("token"), 0o644);
        assert!(refusal().contains("not mode 644"), "{}", refusal());
        set_mode(&folder, 0o755);
        assert!(refusal().contains("not mode 755: chmod 700 it"), "{}", refusal());
        set_mode(&folder, 0o700);
        fs::rename(folder.join("token"), dir.path().join("elsewhere")).unwrap();
        std::os::unix::fs::symlink(dir.path().join("elsewhere"), folder.join("token")).unwrap();
        assert!(refusal().contains("nodes/token"), "a link is not followed: {}", refusal());
    }
}
