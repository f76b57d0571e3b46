//! `dslaunch report`: a page that shows a run, or several one over the other. It reads what runs have left on the disk, also while they
//! run; it changes nothing there but the page itself.
//!
//! In reading order: `read` and `timeline` (what there is), `series` and `chart` (how curves are drawn), `charts` (which),
//! `page` and `compare` (where they stand), `html` (of what pages are made).

mod chart;
mod charts;
mod compare;
mod html;
mod page;
mod read;
mod series;
mod timeline;

use std::path::{Path, PathBuf};

use clap::Args;

use self::read::Run;
use crate::error::LaunchError;
use crate::files::write_atomically;
use crate::output::console::Console;
use crate::output::terminal::Terminal;

/// Show a run, or several one over the other, on one page of HTML that needs no network
///
/// Works while a job runs, and after failures: what is damaged is left out and named. Exit codes: 0 written; 2 no run there.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct ReportArgs {
    /// Run directories: output_dir of a job each. Several are compared
    #[arg(value_name = "RUN_DIR", required_unless_present = "compare")]
    dirs: Vec<PathBuf>,
    /// More run directories, for whoever looks for this word
    #[arg(long, value_name = "RUN_DIR", num_args = 1..)]
    compare: Vec<PathBuf>,
    /// The page to write; default: report.html in the run directory or, of several runs, in the current folder
    #[arg(short, long, value_name = "FILE.html")]
    output: Option<PathBuf>,
    /// Write the chart of the loss, too, as a file of its own
    #[arg(long, value_name = "FILE.svg")]
    svg: Option<PathBuf>,
}

/// There is nothing to show.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// The folder is no run directory.
    #[error("{}: there is no run (neither metrics.jsonl nor events.jsonl is there)", .dir.display())]
    NoRun {
        /// The folder that was named.
        dir: PathBuf,
    },
}

impl From<ReportError> for LaunchError {
    fn from(error: ReportError) -> Self {
        Self::refused(error, 2)
    }
}

/// Does what the command line asks for. Returns the exit code.
pub fn run(args: &ReportArgs, terminal: &Terminal) -> Result<u8, LaunchError> {
    let mut console = Console::new(terminal.clone(), true);
    let runs = args.dirs.iter().chain(&args.compare).map(|dir| Run::read(dir)).collect::<Result<Vec<_>, _>>()?;
    for run in &runs {
        run.notes.iter().for_each(|note| console.warn(&format!("note: {note}")));
    }
    let made = jiff::Zoned::now().strftime("%Y-%m-%d %H:%M %Z").to_string();
    let (page, chart, default) = match runs.as_slice() {
        [run] => (page::of(run, &made), charts::loss(run), run.dir.join("report.html")),
        runs => {
            let names: Vec<String> = runs.iter().map(|run| run.name.clone()).collect();
            let chart = charts::compared(runs, &names).into_iter().next().unwrap_or_default();
            (compare::of(runs, &made), chart, PathBuf::from("report.html"))
        }
    };
    let path = args.output.clone().unwrap_or(default);
    write(&path, &page)?;
    if let Some(svg) = &args.svg {
        write(svg, &chart.svg_file())?;
    }
    console.say(&format!("{}", path.display()));
    Ok(0)
}

fn write(path: &Path, text: &str) -> Result<(), LaunchError> {
    write_atomically(path, text.as_bytes()).map_err(LaunchError::io(format!("write {}", path.display())))
}
