//! Whatever a shell's `ulimit` leaves to a job: it ends in success, or in words and with an exit code of the table, in time and without a
//! panic, and started again without the limit it gives the result of a quiet run.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::unistd::geteuid;
use tests::fixtures::{tiny_model, token_rows};
use tests::job::Job;
use tests::trials::Trials;

/// Longest that a job may take, on a busy machine too.
const DEADLINE: Duration = Duration::from_secs(60);

fn job(folder: &Path, name: &str) -> Job {
    let model = tiny_model(&folder.join("model"));
    let data = token_rows(&folder.join("rows.jsonl"), 32, 32);
    let toml = format!(
        "[model]\npath = {model:?}\ninit = \"random\"\n[data]\ntrain = {data:?}\nseq_len = 40\n\
         [train]\nsteps = 4\nmicro_batch_size = 2\nglobal_batch_size = 8\n[checkpoint]\nevery_steps = 2\n"
    );
    Job::new(&folder.join(name), &toml).nproc(2)
}

/// Opens a folder and all in it to everybody: another user than root, whom limits bind, uses it.
fn open_to_all(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    let folder = path.is_dir();
    fs::set_permissions(path, fs::Permissions::from_mode(if folder { 0o777 } else { 0o666 })).unwrap();
    if folder {
        fs::read_dir(path).unwrap().for_each(|entry| open_to_all(&entry.unwrap().path()));
    }
}

#[test]
fn every_limit_ends_in_words() {
    let folder = tempfile::tempdir().unwrap();
    let quiet = job(folder.path(), "quiet").succeed();
    let mut endings = [0; 4];
    for (trial, mut draw) in Trials::or_else(8).draws() {
        let job = job(folder.path(), &format!("limited-{trial}"));
        let (flag, limit) = match draw.below(3) {
            0 => ("n", 4 + draw.below(40)),
            1 => ("v", 50_000 + draw.below(1_000_000)),
            // Processes of a user: root has no limit.
            _ => ("u", 1 + draw.below(24)),
        };
        let what = format!("trial {trial}, ulimit -{flag} {limit}");
        let script = format!("ulimit -{flag} {limit} && exec \"$@\"");
        let shell = ["sh", "-c", &script, "sh"];
        let nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "sh", "-c", &script, "sh"];
        let since = Instant::now();
        let finished = if flag == "u" && geteuid().is_root() {
            fs::create_dir_all(job.run_dir().path("")).unwrap();
            open_to_all(folder.path());
            job.finish_under(&nobody)
        } else {
            job.finish_under(&shell)
        };
        let output = format!("{what}: {:?}\n{}{}", finished.status, finished.stdout, finished.stderr);
        println!("{what}: {:?}, {:.1?}", finished.status.code(), since.elapsed());
        assert!(since.elapsed() < DEADLINE, "{output}");
        assert!(!output.contains("panicked at"), "{output}");
        let code = finished.status.code().filter(|code| [0, 1, 3].contains(code));
        let code = code.unwrap_or_else(|| panic!("{output}"));
        endings[code as usize] += 1;
        assert!(code == 0 || !finished.stderr.trim().is_empty(), "it says nothing: {output}");
        let again = job.finish();
        assert!(again.status.success(), "{what}, without it: {}{}", again.stdout, again.stderr);
        assert!(again.run.final_weights() == quiet.final_weights(), "{what}: final weights differ in bits");
    }
    println!("{} succeeded, {} failed, {} could not run", endings[0], endings[1], endings[3]);
}
