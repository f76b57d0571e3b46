//! Call sites that `tests/io_faults` has recorded: where in dslaunch's programs the operating system is asked for something that
//! it can refuse.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use crate::program;

/// A place in a program, and what it asks for there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Site {
    /// Its name, the same in every run of this build.
    pub id: String,
    /// The program.
    pub role: String,
    /// The operation.
    pub operation: String,
    /// The error that it is given.
    pub errno: i32,
    /// The file, or the descriptor and what it is open on, when this was written.
    pub object: String,
    /// Return addresses, innermost first.
    frames: Vec<String>,
}

impl Site {
    /// The sites in a file that the library has written, each once; none if there is no file.
    pub fn read(path: &Path) -> Vec<Site> {
        let text = fs::read_to_string(path).unwrap_or_default();
        let sites = text.lines().map(|line| Site::parse(line).unwrap_or_else(|| panic!("{line:?}")));
        let by_id: BTreeMap<String, Site> = sites.map(|site| (site.id.clone(), site)).collect();
        by_id.into_values().collect()
    }

    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.split('\t').map(str::to_owned);
        let mut next = || fields.next();
        let (id, role, operation) = (next()?, next()?, next()?);
        let (errno, object) = (next()?.parse().ok()?, next()?);
        let frames = next()?.split(' ').map(str::to_owned).collect();
        Some(Self { id, role, operation, errno, object, frames })
    }

    /// What the operating system is made to say.
    pub fn error(&self) -> String {
        let text = io::Error::from_raw_os_error(self.errno).to_string();
        text.split(" (os error").next().unwrap_or_default().to_owned()
    }

    /// Whether it writes to standard output or standard error.
    pub fn is_speech(&self) -> bool {
        self.operation == "write" && ["1=", "2="].iter().any(|stream| self.object.starts_with(stream))
    }

    /// The functions of this repository on the way there, innermost first, as far as the program's symbols tell.
    fn functions(&self) -> String {
        let symbols = symbols(&self.role);
        let offset = |frame: &str| u64::from_str_radix(frame.strip_prefix("0x")?, 16).ok();
        let named = |frame: &String| Some(symbols.range(..=offset(frame)?).next_back()?.1.as_str());
        let names: Vec<&str> = self.frames.iter().filter_map(named).collect();
        let crates = ["launcher::", "proto::", "rank::", "comm::", "dslaunch"];
        let is_ours = |name: &&&str| crates.iter().any(|path| name.trim_start_matches('<').starts_with(path));
        let ours: Vec<&str> = names.iter().filter(is_ours).take(3).copied().collect();
        match (ours.is_empty(), names.is_empty()) {
            (false, _) => ours.join(" < "),
            (true, false) => names[..names.len().min(4)].join(" < "),
            (true, true) => self.frames.join(" "),
        }
    }
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Site { role, operation, object, id, .. } = self;
        write!(f, "{role}: {operation} of {object}: {} at {} [{id}]", self.error(), self.functions())
    }
}

/// The functions of a program by address; none where no nm says them.
fn symbols(role: &str) -> &'static BTreeMap<u64, String> {
    static OF: OnceLock<[BTreeMap<u64, String>; 2]> = OnceLock::new();
    let [launcher, rank] = OF.get_or_init(|| ["dslaunch", "dslaunch-rank"].map(|name| read_symbols(&program(name))));
    if role == "dslaunch" { launcher } else { rank }
}

#[allow(clippy::disallowed_methods, reason = "tests ask the linker's tools")]
fn read_symbols(program: &Path) -> BTreeMap<u64, String> {
    let listed = Command::new("nm").args(["--demangle", "--defined-only"]).arg(program).output();
    let text = listed.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    let symbol = |line: &str| {
        let (address, rest) = line.split_once(' ')?;
        let name = rest.get(2..)?;
        Some((
            u64::from_str_radix(address, 16).ok()?,
            name.rsplit_once("::h").map_or(name, |(name, _)| name).to_owned(),
        ))
    };
    text.lines().filter_map(symbol).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_library_is_a_site() {
        let line = "00ff\tdslaunch\twrite\t28\t2=/tmp/x y\t0x12 libc10.so+0x3";
        let site = Site::parse(line).unwrap();
        assert_eq!((site.error().as_str(), site.is_speech()), ("No space left on device", true));
        assert_eq!(site.frames, ["0x12", "libc10.so+0x3"]);
        assert_eq!(Site::parse("00ff\tdslaunch"), None);
    }
}
