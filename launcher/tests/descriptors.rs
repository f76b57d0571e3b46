//! DSC-3: a launcher that has used up its descriptors still ends what its ranks have left. A process of its own, for it is
//! this process that has none left.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};

use launcher::process::cgroup::AttemptGroup;
use launcher::process::sweeper;
use nix::sys::prctl::set_child_subreaper;
use nix::sys::resource::{Resource, setrlimit};

#[tokio::test]
#[allow(clippy::disallowed_methods, reason = "a descendant that nobody else has started")]
async fn what_ranks_have_left_is_ended_without_a_free_descriptor() {
    // As the launcher is, so that it is the parent of those whose parents are ended first.
    set_child_subreaper(true).unwrap();
    sweeper::start();
    let (mut reader, writer) = io::pipe().unwrap();
    let mut child = Command::new("/bin/sh")
        .args(["-c", "for i in 1 2 3 4 5 6; do setsid sleep 1000 & done; exec sleep 1000"])
        .stdin(Stdio::null())
        .stdout(writer)
        .spawn()
        .unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, 64, 64).unwrap();
    let mut used_up = Vec::new();
    let error = loop {
        match File::open("/dev/null") {
            Ok(file) => used_up.push(file),
            Err(error) => break error,
        }
    };
    assert_eq!(error.raw_os_error(), Some(libc::EMFILE));
    let swept = AttemptGroup::create(0).clear().await;
    assert_eq!(swept.warnings(), [""; 0]);
    assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL));
    // Ends only when nobody holds it open any more.
    assert_eq!(reader.read(&mut [0]).unwrap(), 0);
    drop(used_up);
}
