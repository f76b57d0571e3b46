//! The main function of `dslaunch`. It connects the parts, and it alone turns results into exit codes.

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Instant;

use launcher::cli::Cli;
use launcher::error::LaunchError;
use launcher::listening::descriptors;
use launcher::output::terminal::{Item, Stream, Terminal};
use launcher::process::guardian::{self, Side};

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
    if let Some(job_control) = task.job_control() {
        match guardian::split(job_control) {
            // With fewer descriptors it runs as well, only not as many ranks.
            Ok(Side::Launcher) => drop(descriptors::raise()),
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
    let code = task.run(&terminal, start).unwrap_or_else(|error| {
        terminal.show(Item::Text(Stream::Err, error.explanation()));
        if matches!(error, LaunchError::Interrupted(_)) {
            terminal.hurry();
        }
        error.exit_code()
    });
    terminal.finish();
    ExitCode::from(code)
}
