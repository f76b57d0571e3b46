//! Makes a job from flags: fills every default and checks every product. Pure.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use proto::env::{SlurmStep, program_defaults};

use super::error::RunError;
use super::flags::RunFlags;
use super::nodes::Nodes;
use super::num_workers::{Devices, NumWorkers};
use super::rendezvous::{Backend, Master};
use super::streams::{Mode, RankStreams, Streams};

/// The command line of `dslaunch run`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunArgs {
    /// As typed.
    pub flags: RunFlags,
    /// The command's form there.
    pub form: CommandForm,
}

impl RunArgs {
    /// `words` is the command line, whose end is the command.
    pub fn new(flags: RunFlags, words: &[OsString]) -> Self {
        let before = words.len().checked_sub(flags.command.len() + 1).and_then(|at| words.get(at));
        let form = if before.is_some_and(|word| word == "--") { CommandForm::Verbatim } else { CommandForm::Script };
        Self { flags, form }
    }
}

/// The command's form on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommandForm {
    /// After `--`: it runs as it is.
    Verbatim,
    /// As torchrun takes it: a script that ends in .py is run by Python.
    Script,
}

/// A command to be run as ranks, complete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandJob {
    /// The program that each rank runs.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<OsString>,
    /// Ranks on this machine.
    pub num_workers: usize,
    /// This machine among several; `None`: alone.
    pub nodes: Option<Nodes>,
    /// Their role, which names them in their lines.
    pub role: String,
    /// The run's name for them.
    pub run_id: String,
    /// Rank 0's address and port for its peers.
    pub master: Master,
    /// Restart budget.
    pub max_restarts: u32,
    /// The destinations of their streams.
    pub streams: Streams,
    /// The folder for logs; `None`: one of their own.
    pub log_dir: Option<PathBuf>,
    /// The beginning of a rank's line on the terminal; `None`: role and rank.
    pub prefix_template: Option<String>,
    /// Variables that the user has not set and ranks should have.
    pub defaults: Vec<(&'static str, OsString)>,
}

impl CommandJob {
    /// Completes what was typed with `lookup`, the user's environment. `fresh_id` is a name that no other run has.
    pub fn new(
        args: RunArgs,
        devices: Devices,
        fresh_id: String,
        lookup: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Self, RunError> {
        let flags = args.flags.or_variables(&lookup)?;
        let nodes = Nodes::resolve(&flags, SlurmStep::read(&lookup), &lookup)?;
        let num_workers = flags.nproc_per_node.unwrap_or(NumWorkers::Exactly(1)).count(devices)?;
        let (program, words) = command(&flags, args.form, lookup("PYTHON_EXEC"))?;
        let master = master(&flags, nodes.as_ref());
        let name = nodes.as_ref().and_then(|nodes| nodes.name.clone()).unwrap_or_else(|| "none".to_owned());
        let none = || RankStreams::All(Mode::Neither);
        Ok(Self {
            program,
            args: words,
            num_workers,
            nodes,
            role: flags.role.unwrap_or_else(|| "default".to_owned()),
            run_id: if flags.standalone { fresh_id } else { flags.rdzv_id.unwrap_or(name) },
            master,
            max_restarts: flags.max_restarts.unwrap_or(0),
            streams: Streams {
                redirects: flags.redirects.unwrap_or_else(none),
                tee: flags.tee.unwrap_or_else(none),
                filter: flags.local_ranks_filter,
            },
            log_dir: flags.log_dir,
            prefix_template: lookup("TORCHELASTIC_LOG_LINE_PREFIX_TEMPLATE")
                .map(|template| template.to_string_lossy().into_owned()),
            defaults: program_defaults(num_workers, lookup),
        })
    }

    /// Returns the beginning of a terminal line of this machine's rank `local_rank`, which is `rank` among all:
    /// `[default0]:`.
    pub fn prefix(&self, local_rank: usize, rank: usize) -> String {
        match &self.prefix_template {
            None => format!("[{}{local_rank}]:", self.role),
            Some(template) => {
                let (rank, local_rank) = (rank.to_string(), local_rank.to_string());
                let values = [("role_name", self.role.as_str()), ("rank", &rank), ("local_rank", &local_rank)];
                values.iter().fold(template.clone(), |text, (name, value)| text.replace(&format!("${{{name}}}"), value))
            }
        }
    }
}

/// The program and its arguments.
fn command(
    flags: &RunFlags,
    form: CommandForm,
    python: Option<OsString>,
) -> Result<(PathBuf, Vec<OsString>), RunError> {
    if flags.module && flags.no_python {
        return Err(RunError::ModuleWithoutPython);
    }
    let words = flags.command.clone();
    let is_script = Path::new(&words[0]).extension() == Some(OsStr::new("py"));
    let options: &[&str] = match form {
        _ if flags.module => &["-u", "-m"],
        CommandForm::Script if is_script && !flags.no_python => &["-u"],
        CommandForm::Script | CommandForm::Verbatim => {
            let mut words = words.into_iter();
            let program = words.next().expect("clap asks for a command");
            return Ok((program.into(), words.collect()));
        }
    };
    let python = python.filter(|python| !python.is_empty()).unwrap_or_else(|| "python3".into());
    Ok((python.into(), options.iter().map(OsString::from).chain(words).collect()))
}

/// With several machines, and nobody else naming their meeting point, `--master-port` is that, and rank 0's is another one.
fn master(flags: &RunFlags, nodes: Option<&Nodes>) -> Master {
    if let Some(nodes) = nodes {
        let is_elsewhere = flags.rendezvous.is_some() || flags.rdzv_endpoint.is_some();
        let port = flags.master_port.filter(|&port| is_elsewhere && port != 0);
        return Master { addr: flags.master_addr.clone().unwrap_or_else(|| nodes.hosts[0].clone()), port };
    }
    let backend = if flags.standalone { Backend::C10d } else { flags.rdzv_backend.unwrap_or(Backend::Static) };
    let (addr, port) = match (backend, &flags.rdzv_endpoint) {
        (Backend::C10d, _) => (flags.local_addr.clone(), None),
        (Backend::Static, Some(endpoint)) => (Some(endpoint.host.clone()), endpoint.port),
        (Backend::Static, None) => (flags.master_addr.clone(), flags.master_port),
    };
    Master { addr: addr.unwrap_or_else(|| "127.0.0.1".to_owned()), port: port.filter(|&port| port != 0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::commands::run::flags::tests::parse;

    fn job(line: &str, vars: &[(&str, &str)]) -> Result<CommandJob, RunError> {
        let form = if line.contains("-- ") { CommandForm::Verbatim } else { CommandForm::Script };
        let flags = parse(line);
        let lookup = |name: &str| vars.iter().find(|(var, _)| *var == name).map(|(_, value)| value.into());
        CommandJob::new(RunArgs { flags, form }, Devices { gpus: 0, cores: 4 }, "fresh".into(), lookup)
    }

    #[test]
    fn defaults_are_torchruns() {
        let job = job("-- cmd", &[]).unwrap();
        assert_eq!((job.num_workers, job.max_restarts, job.log_dir.clone()), (1, 0, None));
        assert_eq!((job.role.as_str(), job.run_id.as_str()), ("default", "none"));
        assert_eq!(job.master, Master { addr: "127.0.0.1".into(), port: None });
        assert!(!job.streams.any_file(1));
        assert_eq!(job.defaults, [("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1".into())]);
    }

    #[test]
    fn a_script_is_run_by_python_and_a_command_as_it_is() {
        let check = |line: &str, vars: &[(&str, &str)], expected: &str| {
            let job = job(line, vars).unwrap();
            let words = [job.program.into_os_string()].into_iter().chain(job.args);
            let words: Vec<_> = words.map(|word| word.into_string().unwrap()).collect();
            assert_eq!(words.join(" "), expected, "{line}");
        };
        check("train.py --lr 3", &[], "python3 -u train.py --lr 3");
        check("train.py", &[("PYTHON_EXEC", "/venv/bin/python")], "/venv/bin/python -u train.py");
        check("-- ./train.py --lr 3", &[], "./train.py --lr 3");
        check("--no-python train.py", &[], "train.py");
        check("train.py", &[("PET_NO_PYTHON", "1")], "train.py");
        check("train.sh -x", &[], "train.sh -x");
        check("-m pkg.train -x", &[], "python3 -u -m pkg.train -x");
        check("-m -- pkg.train -x", &[], "python3 -u -m pkg.train -x");
        assert_eq!(job("-m cmd", &[("PET_NO_PYTHON", "1")]), Err(RunError::ModuleWithoutPython));
    }

    #[test]
    fn rank_0_listens_where_the_flags_say() {
        let check = |flags: &str, addr: &str, port| {
            let expected = Master { addr: addr.into(), port };
            assert_eq!(job(&format!("{flags} -- cmd"), &[]).unwrap().master, expected, "{flags}");
        };
        check("--master-port 0", "127.0.0.1", None);
        check("--master-addr host --master-port 29500", "host", Some(29500));
        check("--rdzv-endpoint host:1 --master-addr other", "host", Some(1));
        check("--rdzv-backend c10d --rdzv-endpoint host:1", "127.0.0.1", None);
        check("--rdzv-backend c10d --local-addr ::1", "::1", None);
        check("--standalone --rdzv-endpoint host:1", "127.0.0.1", None);
    }

    #[test]
    fn rank_0_listens_where_nodes_meet() {
        let check = |flags: &str, addr: &str, port| {
            let line = format!("--nnodes 2 --node-rank 0 {flags} -- cmd");
            assert_eq!(job(&line, &[]).unwrap().master, Master { addr: addr.into(), port }, "{flags}");
        };
        check("--rendezvous h:1", "h", None);
        check("--rdzv-endpoint h:1 --master-addr m --master-port 7", "m", Some(7));
        check("--master-addr m --master-port 7", "m", None);
        check("--rendezvous h:1 --master-port 0", "h", None);
    }

    #[test]
    fn a_standalone_run_has_a_name_of_its_own() {
        assert_eq!(job("--standalone --rdzv-id mine -- cmd", &[]).unwrap().run_id, "fresh");
        assert_eq!(job("--rdzv-id mine -- cmd", &[]).unwrap().run_id, "mine");
    }

    #[test]
    fn a_line_begins_with_its_rank() {
        let template = [("TORCHELASTIC_LOG_LINE_PREFIX_TEMPLATE", "<${role_name}:${rank}/${local_rank}> ")];
        assert_eq!(job("-- cmd", &[]).unwrap().prefix(12, 28), "[default12]:");
        assert_eq!(job("--role trainer -- cmd", &template).unwrap().prefix(3, 11), "<trainer:11/3> ");
    }
}
