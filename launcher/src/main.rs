//! `dslaunch`: wiring, and the one place that turns results into exit codes.

use std::error::Error;
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Instant;

use launcher::cli::{Cli, Task};
use launcher::commands::detach::Place;
use launcher::commands::{checkpoint, deepspeed, detach, doctor, run, schedulers};
use launcher::error::LaunchError;
use launcher::output::terminal::{Item, Stream, Terminal};
use launcher::process::guardian::{self, Side};
use launcher::{control_socket, job};

fn main() -> ExitCode {
    let start = Instant::now();
    let task = match Cli::parse_task(&std::env::args_os().collect::<Vec<_>>()) {
        Ok(task) => task,
        Err(usage) => {
            // Help goes to standard output, mistakes to standard error; either may be closed.
            let _ = usage.print();
            return ExitCode::from(usage.exit_code() as u8);
        }
    };
    let place = match task {
        Task::Train(_) | Task::Run(_) => Some(Place::Foreground),
        Task::TrainInBackground(_) => Some(Place::Background),
        _ => None,
    };
    if let Some(place) = place {
        match guardian::split(place) {
            Ok(Side::Launcher) => {}
            Ok(Side::Guardian(code)) => return ExitCode::from(code),
            Err(error) => {
                let _ = writeln!(io::stderr(), "error: cannot start a process\n  {error}");
                return ExitCode::from(3);
            }
        }
    }
    let terminal = match Terminal::start() {
        Ok(terminal) => terminal,
        Err(error) => {
            let _ = writeln!(io::stderr(), "error: cannot start a thread\n  {error}");
            return ExitCode::from(3);
        }
    };
    let result = match task {
        Task::Train(args) => job::train(&args, Place::Foreground, &terminal, start),
        Task::Detach(args) => detach::run(&args, &terminal),
        Task::TrainInBackground(args) => job::train(&args, Place::Background, &terminal, start),
        Task::Run(args) => run::run(*args, &terminal),
        Task::Plan(args) => job::print_plan(&args, &terminal),
        Task::MapDeepspeed(args) => deepspeed::run(&args, &terminal),
        Task::Checkpoint(task) => checkpoint::run(&task, &terminal),
        Task::Control(task) => control_socket::command::run(&task, &terminal),
        Task::Systemd(args) => schedulers::print_systemd(&args, &terminal),
        Task::Slurm(args) => schedulers::print_slurm(&args, &terminal),
        Task::Doctor(args) => doctor::run(&args, &terminal),
    };
    let code = result.unwrap_or_else(|error| {
        terminal.show(Item::Text(Stream::Err, explanation(&error)));
        if matches!(error, LaunchError::Interrupted(_)) {
            terminal.hurry();
        }
        error.exit_code()
    });
    terminal.finish();
    ExitCode::from(code)
}

/// One line per cause.
fn explanation(error: &LaunchError) -> String {
    // Problems in train.toml say by themselves that they are errors.
    let prefix = if matches!(error, LaunchError::Config(_)) { "" } else { "error: " };
    let mut text = format!("{prefix}{error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        text += &format!("\n  {error}");
        cause = error.source();
    }
    text
}
