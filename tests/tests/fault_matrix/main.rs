//! The fault matrix: breaks a job in every way, with every kind of fault, in every phase, to every victim.
//!
//! In each cell the job ends before its deadline, leaves no process behind, exits with the right code, names the right
//! culprit and, where it goes on, gives the result of a quiet run bit for bit. Without arguments some cells are run; with
//! `--all` all of them, and a table for the documentation is printed. Another argument names the cells to run.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "tests tell how they go")]

mod cell;
mod scene;
mod special;
mod table;

use std::num::NonZeroUsize;
use std::panic;
use std::process::ExitCode;
use std::sync::Mutex;
use std::thread;
use std::time::Instant;

use cell::Cell;
use scene::{Outcome, Scene};

fn main() -> ExitCode {
    // What is wrong is told once, at the end.
    panic::set_hook(Box::new(|_| {}));
    let args: Vec<String> = std::env::args().skip(1).collect();
    let all = args.iter().any(|arg| arg == "--all");
    let filter = args.iter().find(|arg| !arg.starts_with('-'));
    let cells = if all || filter.is_some() { Cell::all() } else { Cell::some() };
    let wanted = |name: &str| filter.is_none_or(|filter| name.contains(filter.as_str()));
    let cells: Vec<Cell> = cells.into_iter().filter(|cell| wanted(&cell.to_string())).collect();
    let (scene, start) = (Scene::new(), Instant::now());
    let mut outcomes = run(&scene, &cells);
    for (name, check) in special::CHECKS.into_iter().filter(|(name, _)| wanted(name)) {
        let outcome = scene::caught(|| check(&scene));
        println!("{name}: {}", if outcome.is_ok() { "ok" } else { "FAILED" });
        outcomes.push(Outcome::special(name, outcome));
    }
    if all {
        println!("\n{}", table::markdown(&outcomes));
    }
    let failed: Vec<_> = outcomes.iter().filter(|outcome| outcome.problem.is_some()).collect();
    let (num_cells, seconds) = (outcomes.len(), start.elapsed().as_secs_f64());
    println!("{num_cells} cells in {seconds:.0} s, {} failed", failed.len());
    for outcome in &failed {
        println!("\nFAILED {}: {}", outcome.name, outcome.problem.as_deref().unwrap_or_default());
    }
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn run(scene: &Scene, cells: &[Cell]) -> Vec<Outcome> {
    let (next, outcomes) = (Mutex::new(cells.iter()), Mutex::new(vec![]));
    thread::scope(|scope| {
        // Two ranks each, that wait as much as they compute.
        for _ in 0..thread::available_parallelism().map_or(1, NonZeroUsize::get) {
            scope.spawn(|| {
                loop {
                    let Some(cell) = next.lock().expect("no panic while it is held").next() else { return };
                    let outcome = scene.play(cell);
                    let verdict = if outcome.problem.is_none() { "ok" } else { "FAILED" };
                    println!("{cell}: {verdict} ({:.1} s)", outcome.seconds);
                    outcomes.lock().expect("no panic while it is held").push(outcome);
                }
            });
        }
    });
    outcomes.into_inner().expect("all threads have ended")
}
