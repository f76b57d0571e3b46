//! The packages of `scripts/package`: pip installs the wheel into a new virtual environment, and what it installs trains there,
//! with no compiler's folder on the path.

#![allow(clippy::disallowed_methods, reason = "tests start what users would")]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tests::fixtures::{tiny_model, token_rows};
use tests::{interpreter, repository};

fn succeed(command: &mut Command) -> String {
    let Output { status, stdout, stderr } = command.output().expect("it starts");
    let (stdout, stderr) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    assert!(status.success(), "{command:?}: {status}\n{stdout}{stderr}");
    stdout.into_owned()
}

/// Makes both packages, and returns the wheel and the archive.
fn packages(out: &Path) -> (PathBuf, PathBuf) {
    succeed(Command::new(interpreter()).arg(repository().join("scripts/package/build.py")).arg(out));
    let mut paths: Vec<PathBuf> = fs::read_dir(out).expect("a folder").map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let [archive, wheel] = paths.try_into().expect("two files");
    (wheel, archive)
}

/// A new virtual environment that has what torch's package has, as links: to install that takes minutes.
fn environment(folder: &Path) -> PathBuf {
    let place = folder.join("environment");
    succeed(Command::new(interpreter()).args(["-m", "venv"]).arg(&place));
    let print = "import sysconfig; print(sysconfig.get_path('purelib'))";
    let site_packages = |python: &Path| PathBuf::from(succeed(Command::new(python).args(["-c", print])).trim());
    let (from, to) = (site_packages(&interpreter()), site_packages(&place.join("bin/python")));
    for entry in fs::read_dir(from).expect("a folder") {
        let entry = entry.expect("an entry");
        if !to.join(entry.file_name()).exists() {
            symlink(entry.path(), to.join(entry.file_name())).expect("a link");
        }
    }
    place
}

/// A command as in a shell where an environment is active, and nothing else is known.
fn command(program: impl AsRef<Path>, bin: &Path, folder: &Path) -> Command {
    let mut command = Command::new(program.as_ref());
    let path = format!("{}:/usr/bin:/bin", bin.display());
    command.env_clear().env("PATH", path).env("HOME", folder).current_dir(folder);
    command
}

/// Trains a tiny model with the program in `bin`.
fn trains(bin: &Path, folder: &Path, name: &str, library_path: Option<&Path>) {
    let model = tiny_model(&folder.join("model"));
    let data = token_rows(&folder.join("rows.jsonl"), 16, 32);
    let toml = format!(
        "[job]\noutput_dir = {name:?}\n[model]\npath = {model:?}\ninit = \"random\"\n[data]\ntrain = {data:?}\nseq_len = 40\n\
         [train]\nsteps = 3\n"
    );
    fs::write(folder.join("train.toml"), toml).expect("a file");
    let mut command = command(bin.join("dslaunch"), bin, folder);
    command.args(["--nproc", "2", "train.toml"]);
    if let Some(path) = library_path {
        command.env("LD_LIBRARY_PATH", path);
    }
    let said = succeed(&mut command);
    assert!(said.contains("done, 3 steps"), "{said}");
    assert!(folder.join(name).join("final/model.safetensors").exists());
}

/// Makes the quickstart's data and trains the first steps of its job, both from the folder that the archive has.
fn trains_the_quickstart(bin: &Path, folder: &Path, quickstart: &Path) {
    let data = ["--out", "runs/quickstart-data"];
    succeed(command(bin.join("python"), bin, folder).arg(quickstart.join("make_corpus.py")).args(data));
    let job = ["--nproc", "2", "--set", "train.steps=5"];
    let said = succeed(command(bin.join("dslaunch"), bin, folder).args(job).arg(quickstart.join("train.toml")));
    assert!(said.contains("done, 5 steps"), "{said}");
    assert!(folder.join("runs/quickstart/final/model.safetensors").exists());
}

#[test]
fn a_wheel_trains_in_a_new_environment() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let folder = scratch.path();
    let (wheel, archive) = packages(&folder.join("packages"));
    let again = packages(&folder.join("again"));
    for (one, other) in [(&wheel, &again.0), (&archive, &again.1)] {
        assert!(fs::read(one).unwrap() == fs::read(other).unwrap(), "{}: other bytes each time", one.display());
    }

    let place = environment(folder);
    let bin = place.join("bin");
    let pip = ["-m", "pip", "install", "--quiet", "--no-index", "--disable-pip-version-check"];
    succeed(command(bin.join("python"), &bin, folder).args(pip).arg(&wheel));
    let version = succeed(command(bin.join("dslaunch"), &bin, folder).arg("--version"));
    assert_eq!(version.trim(), format!("dslaunch {}", env!("CARGO_PKG_VERSION")));
    let doctor = succeed(command(bin.join("dslaunch"), &bin, folder).arg("doctor"));
    assert!(doctor.contains(place.to_str().expect("UTF-8")), "libtorch is another's: {doctor}");
    succeed(Command::new("tar").arg("-xzf").arg(&archive).arg("-C").arg(folder));
    let unpacked = folder.join(format!("dslaunch-{}", env!("CARGO_PKG_VERSION")));
    trains_the_quickstart(&bin, folder, &unpacked.join("examples/quickstart"));
    succeed(command(bin.join("python"), &bin, folder).args(["-m", "pip", "uninstall", "--quiet", "--yes", "dslaunch"]));
    assert!(!bin.join("dslaunch").exists() && !bin.join("dslaunch-rank").exists());

    let libtorch = repository().join(".venv/libtorch");
    trains(&unpacked.join("bin"), folder, "by-variable", Some(&libtorch.join("lib")));
    symlink(libtorch, unpacked.join("libtorch")).expect("a link");
    trains(&unpacked.join("bin"), folder, "unpacked", None);
    let dynamic = succeed(Command::new("readelf").arg("-dW").arg(unpacked.join("bin/dslaunch-rank")));
    let paths = dynamic.lines().find(|line| line.contains("RUNPATH")).expect("run paths");
    assert!(!paths.contains(":/") && !paths.contains("[/"), "it looks for libtorch where it was built: {paths}");
}
