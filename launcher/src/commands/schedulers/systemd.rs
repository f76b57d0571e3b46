//! A unit file for systemd.
//!
//! systemd stops and restarts the launcher; the launcher stops and restarts its ranks. So the unit gives dslaunch the
//! time it needs, takes only its word, and hands over the cgroup.

use super::{Command, plain_name};

/// systemd waits this much longer for progress than the ranks' own limit: dslaunch finds a hang between ranks by itself,
/// and starting them again takes its time too.
const WATCHDOG_MARGIN_SECONDS: u64 = 300;

/// The unit that runs `command`.
pub fn unit(command: &Command) -> String {
    let file = format!("{}.service", plain_name(&command.name));
    let description = specifiers(&command.name);
    // systemd looks the program up as it is written: variables are replaced in arguments only.
    let mut exec = vec![quoted(&specifiers(&command.program))];
    exec.extend(command.args.iter().map(|word| quoted(&specifiers(word).replace('$', "$$"))));
    let exec = exec.join(" ");
    let folder = specifiers(&command.folder);
    let watchdog = command.comm_timeout_seconds + WATCHDOG_MARGIN_SECONDS;
    format!(
        "# For yourself: save as ~/.config/systemd/user/{file}, then
#   systemctl --user daemon-reload && systemctl --user start {file}
# For the machine: save as /etc/systemd/system/{file}, add User= below, then
#   systemctl daemon-reload && systemctl start {file}
[Unit]
Description=dslaunch: {description}
StartLimitIntervalSec=6h
StartLimitBurst=5

[Service]
Type=notify
NotifyAccess=all
ExecStart={exec}
WorkingDirectory={folder}
# Started means that the first step is done; preparing data and loading a model take as long as they take.
TimeoutStartSec=infinity
# Fed by training progress alone, a layer at a time: longer than comm.timeout_seconds, and to be longer than any
# checkpoint takes.
WatchdogSec={watchdog}
# Failures that another start may help; not wrong input (2), nor an environment that cannot run the job (3).
Restart=on-failure
RestartSec=10
RestartPreventExitStatus=2 3
# 75: stopped in good order with a checkpoint, to be started again unless it was systemctl that stopped it.
RestartForceExitStatus=75
SuccessExitStatus=75 130 143
# The launcher stops its ranks, and systemd what is left; a checkpoint at the stop asks for more time as it goes on.
KillMode=mixed
TimeoutStopSec=300
# A rank that runs out of memory is the launcher's business.
OOMPolicy=continue
Delegate=yes

[Install]
WantedBy=default.target
"
    )
}

/// `%` begins a specifier nearly everywhere in a unit.
fn specifiers(text: &str) -> String {
    text.replace('%', "%%")
}

/// One word of a command line.
fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_./:=,@+-%".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        return word.to_owned();
    }
    format!("\"{}\"", word.replace('\\', "\\\\").replace('"', "\\\""))
}

#[cfg(test)]
mod tests {
    use super::super::example;
    use super::*;

    #[test]
    fn words_are_quoted_as_systemd_reads_them() {
        let unit = unit(&example("/srv/a b".as_ref()));
        let exec = "ExecStart=\"/srv/a b/dslaunch\" --nproc=2 \
                    \"--set=job.name=\\\"it's $$HOME; \\\\n 100%%\\\"\" -- \"/srv/a b/train it's.toml\"\n";
        assert!(unit.contains(exec), "{unit}");
        assert!(unit.contains("\nWorkingDirectory=/srv/a b\n"), "{unit}");
        assert!(unit.contains("\nDescription=dslaunch: a \"job\" 100%%\n"), "{unit}");
        assert!(unit.contains("/a--job--100-.service"), "{unit}");
        assert!(unit.contains("\nWatchdogSec=900\n"), "{unit}");
    }

    #[test]
    fn a_word_is_never_lost() {
        assert_eq!(quoted(""), "\"\"");
        assert_eq!(quoted(";"), "\";\"");
        assert_eq!(quoted("/a/b-c.toml"), "/a/b-c.toml");
    }

    /// systemd itself reads the unit, where it is installed.
    #[test]
    #[allow(clippy::disallowed_methods, reason = "a tool that checks what is made")]
    fn systemd_finds_nothing_wrong_with_it() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::Builder::new().prefix("a b").tempdir().unwrap();
        let program = dir.path().join("dslaunch");
        std::fs::write(&program, "#!/bin/sh\n").unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let path = dir.path().join("job.service");
        std::fs::write(&path, unit(&example(dir.path()))).unwrap();
        // Without --man=no it looks for manual pages of units that are none of ours.
        let verify = std::process::Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&path).output();
        let Ok(output) = verify else {
            println!("SKIPPED systemd_finds_nothing_wrong_with_it: systemd-analyze is missing (Debian: systemd)");
            return;
        };
        let said = String::from_utf8_lossy(&output.stderr);
        // Of other units on this machine it complains too.
        let about_ours: Vec<_> = said.lines().filter(|line| line.contains("job.service")).collect();
        assert!(output.status.success() && about_ours.is_empty(), "{}: {said}", output.status);
    }
}
