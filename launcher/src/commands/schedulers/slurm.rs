//! A batch script for Slurm.

use super::{Command, plain_name};

/// The script that runs `command`; `options` are the user's for sbatch.
pub fn script(command: &Command, options: &[String]) -> String {
    let name = plain_name(&command.name);
    let mut directives = vec![
        format!("--job-name={name}"),
        "--nodes=1".to_owned(),
        "--ntasks-per-node=1".to_owned(),
        "--requeue".to_owned(),
        "--open-mode=append".to_owned(),
        "--signal=USR1@120".to_owned(),
    ];
    let says_cores = |option: &String| option.starts_with("--cpus-per-task") || option.starts_with("-c");
    if let Some(nproc) = command.nproc.filter(|_| !options.iter().any(says_cores)) {
        // A task has one core unless the script says otherwise: too few for several ranks.
        directives.push(format!("--cpus-per-task={nproc}"));
    }
    // The user's come last: sbatch takes the last of two.
    directives.extend(options.iter().cloned());
    let directives: String = directives.iter().map(|option| format!("#SBATCH {option}\n")).collect();
    let folder = quoted(&command.folder);
    let words: Vec<_> = std::iter::once(&command.program).chain(&command.args).map(|word| quoted(word)).collect();
    let words = words.join(" ");
    format!(
        "#!/bin/bash
# Submit with sbatch. One task on the node: dslaunch starts the ranks itself.
# --signal without B: goes to the tasks of the step, that is to dslaunch, 120 seconds before the time is over.
{directives}
cd {folder} || exit 3
# What tells the nodes of this job from others who can reach them.
if [ \"${{SLURM_JOB_NUM_NODES:-1}}\" -gt 1 ]; then
    DSLAUNCH_JOB_TOKEN=$(head -c 32 /dev/urandom | od -An -v -tx1 | tr -d ' \\n')
    export DSLAUNCH_JOB_TOKEN
fi
# Slurm's srun does not take --cpus-per-task over from the batch job by itself. --wait=0: the step ends when dslaunch does.
srun -K1 --wait=0 --kill-on-bad-exit=1 ${{SLURM_CPUS_PER_TASK:+--cpus-per-task=\"$SLURM_CPUS_PER_TASK\"}} \\
    {words}
code=$?
# 75: stopped in good order with a checkpoint, from which the job goes on.
if [ \"$code\" -eq 75 ]; then
    scontrol requeue \"$SLURM_JOB_ID\"
fi
exit \"$code\"
"
    )
}

/// One word, as a shell reads it.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::super::example;
    use super::*;

    fn lines(options: &[&str]) -> Vec<String> {
        let options: Vec<_> = options.iter().map(|&option| option.to_owned()).collect();
        script(&example("/srv/a b".as_ref()), &options).lines().map(str::to_owned).collect()
    }

    #[test]
    fn the_users_options_come_after_ours() {
        let directives: Vec<_> = lines(&["--time=1:00:00", "--nodes=2"])
            .into_iter()
            .filter_map(|line| Some(line.strip_prefix("#SBATCH ")?.to_owned()))
            .collect();
        assert_eq!(directives[0], "--job-name=a--job--100-");
        assert_eq!(directives[directives.len() - 3..], ["--cpus-per-task=2", "--time=1:00:00", "--nodes=2"]);
        assert!(!lines(&["--cpus-per-task=16"]).contains(&"#SBATCH --cpus-per-task=2".to_owned()));
        assert!(!lines(&["-c16"]).contains(&"#SBATCH --cpus-per-task=2".to_owned()));
    }

    /// Runs the script with stand-ins for Slurm's commands: what they get is what was meant.
    #[test]
    #[allow(clippy::disallowed_methods, reason = "the script is run as Slurm would run it")]
    fn a_shell_reads_the_script_as_it_is_meant() {
        use std::os::unix::fs::PermissionsExt;
        use std::process::Command as Process;
        let dir = tempfile::Builder::new().prefix("it's a").tempdir().unwrap();
        let tool = |name: &str, body: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        };
        let log = dir.path().join("log");
        tool(
            "srun",
            "printf '%s\\n' \"$PWD\" \"$@\" > \"$LOG\"; printf %s \"$DSLAUNCH_JOB_TOKEN\" > \"$LOG.token\"; exit $CODE",
        );
        tool("scontrol", "printf '%s\\n' scontrol \"$@\" >> \"$LOG\"");
        let command = example(dir.path());
        let path = dir.path().join("job.sh");
        std::fs::write(&path, script(&command, &["--gpus-per-node=4".into()])).unwrap();
        let syntax = Process::new("bash").arg("-n").arg(&path).output().unwrap();
        assert!(syntax.status.success() && syntax.stderr.is_empty(), "{syntax:?}");
        for (code, requeue) in [(0, &[][..]), (1, &[]), (75, &["scontrol", "requeue", "42"])] {
            let tools = format!("{}:/usr/bin:/bin", dir.path().display());
            let nodes = if code == 0 { "2" } else { "1" };
            let variables = [
                ("PATH", tools),
                ("CODE", code.to_string()),
                ("SLURM_JOB_ID", "42".into()),
                ("SLURM_JOB_NUM_NODES", nodes.into()),
            ];
            let mut bash = Process::new("bash");
            bash.arg(&path).env_clear().envs(variables).env("LOG", &log).env("SLURM_CPUS_PER_TASK", "2");
            assert_eq!(bash.status().unwrap().code(), Some(code));
            let mut expected = vec![dir.path().to_str().unwrap(), "-K1", "--wait=0", "--kill-on-bad-exit=1"];
            expected.extend(["--cpus-per-task=2", &command.program]);
            expected.extend(command.args.iter().map(String::as_str));
            expected.extend(requeue);
            let got = std::fs::read_to_string(&log).unwrap();
            assert_eq!(got.lines().collect::<Vec<_>>(), expected);
            let token = std::fs::read_to_string(dir.path().join("log.token")).unwrap();
            assert_eq!(token.len(), if nodes == "2" { 64 } else { 0 }, "{token}");
            assert!(token.bytes().all(|byte| byte.is_ascii_hexdigit()), "{token}");
        }
    }
}
