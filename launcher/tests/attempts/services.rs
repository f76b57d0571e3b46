//! Tests of dslaunch under a service manager, of the files it prints for schedulers, and of `dslaunch doctor`.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::harness::Run;

pub const CHECKS: [(&str, fn()); 3] = [
    ("the_service_manager_hears_of_training_and_of_the_stop", the_service_manager_hears_of_training_and_of_the_stop),
    ("schedulers_get_a_job_with_absolute_paths", schedulers_get_a_job_with_absolute_paths),
    ("the_doctor_names_what_is_missing", the_doctor_names_what_is_missing),
];

fn the_service_manager_hears_of_training_and_of_the_stop() {
    let run = Run::new("wait at 3");
    let address = run.beside("notify.sock");
    let manager = UnixDatagram::bind(&address).unwrap();
    manager.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let next = || {
        let mut buffer = [0; 4096];
        let length = manager.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    };
    // No pid: the variable means whoever reads it, as systemd's does for its main process.
    let env = [("NOTIFY_SOCKET", address.to_str().unwrap()), ("WATCHDOG_USEC", "1000")];
    let launch = run.start_with(&["--nproc", "2", "train.toml"], "service", &env);
    let before = std::iter::repeat_with(next).take_while(|message| !message.contains("READY=1"));
    let before: Vec<_> = before.collect();
    assert!(before.iter().all(|message| message == "WATCHDOG=1\n"), "{before:?}");
    for pid in launch.wait_for_step(2) {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap();
        let environment = String::from_utf8_lossy(&environment);
        assert!(environment.contains("RANK=") && !environment.contains("NOTIFY_SOCKET"), "ranks speak for nobody");
    }
    let end = launch.stop(Signal::SIGTERM);
    assert_eq!(end.code, 75, "{end:?}");
    assert_eq!(run.events().last().unwrap(), "preempted");
    let stop = std::iter::repeat_with(next).find(|message| message.contains("STOPPING=1")).unwrap();
    assert!(stop.contains("\nEXTEND_TIMEOUT_USEC="), "{stop}");
}

fn schedulers_get_a_job_with_absolute_paths() {
    let run = Run::new("");
    let (dslaunch, toml) = (run.beside("dslaunch"), run.beside("train.toml"));
    let (code, unit, stderr) = run.command(&["systemd", "--nproc", "2", "train.toml"]);
    assert_eq!((code, stderr.as_str()), (0, ""));
    assert!(unit.contains(&format!("ExecStart={} --nproc=2 -- {}\n", dslaunch.display(), toml.display())), "{unit}");
    let options = ["--time", "1:00:00", "--partition", "gpu", "--sbatch", "--gpus-per-node=2", "train.toml"];
    let (code, script, stderr) = run.command(&[&["slurm"], &options[..]].concat());
    assert_eq!((code, stderr.as_str()), (0, ""));
    for line in ["#SBATCH --time=1:00:00\n", "#SBATCH --partition=gpu\n", "#SBATCH --gpus-per-node=2\n"] {
        assert!(script.contains(line), "{script}");
    }
    assert!(script.contains(&format!("    '{}' '--' '{}'\n", dslaunch.display(), toml.display())), "{script}");
    assert!(!run.path("").exists(), "nothing was written");
    for (args, said) in [
        (&["slurm", "--set", "checkpoint.resume=\"never\"", "train.toml"][..], "checkpoint.resume = \"never\""),
        (&["systemd", "--set", "train.stpes=3", "train.toml"][..], "train.stpes"),
        (&["slurm", "--sbatch", "x", "train.toml"], "--sbatch \"x\" is no option of sbatch"),
        (&["slurm", "--time", "1\n2", "train.toml"], "has control characters"),
    ] {
        let (code, stdout, stderr) = run.command(args);
        assert!(code == 2 && stdout.is_empty() && stderr.contains(said), "{args:?}: {code} {stdout} {stderr}");
    }
}

fn the_doctor_names_what_is_missing() {
    // The stand-in for the worker needs no libtorch: to the doctor it is another program.
    let run = Run::new("");
    let (code, stdout, stderr) = run.command(&["doctor"]);
    assert_eq!((code, stderr.as_str()), (1, "measuring the disk of .\n"));
    assert!(stdout.contains("MISSING  libtorch    the worker does not ask for it"), "{stdout}");
    for name in ["cpu", "memory", "memfd", "limits", "disk", "cgroup", "schedulers"] {
        assert!(stdout.lines().any(|line| line.split_whitespace().nth(1) == Some(name)), "{name}: {stdout}");
    }
    fs::remove_file(run.worker()).unwrap();
    let (code, stdout, _) = run.command(&["doctor", "--json", "--disk", "nowhere"]);
    let report: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((code, &report["ok"]), (1, &Value::Bool(false)));
    let finding = |name: &str| {
        let findings = report["findings"].as_array().unwrap();
        findings.iter().find(|finding| finding["name"] == name).unwrap().clone()
    };
    assert_eq!(finding("worker")["verdict"], "missing");
    assert!(finding("disk")["text"].as_str().unwrap().starts_with("cannot be measured: nowhere: "), "{stdout}");
}
