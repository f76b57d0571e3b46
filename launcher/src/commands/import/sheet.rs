//! A configuration that is being imported: what is read of it, the train.toml in the making, and what is said. Also what is
//! asked of the disk, behind one trait, so that all else is pure.

use std::path::{Path, PathBuf};

use crate::commands::mapping::document::Node;
use crate::commands::mapping::lines::Lines;
use crate::commands::mapping::remarks::Remarks;
use crate::commands::mapping::rule::{Setting, Verdict};
use crate::commands::mapping::snippet::Snippet;

/// What a configuration names may lie beside it: other configurations, lists of data sets, models.
pub(super) trait Beside {
    /// The text of a file, if there is one of that name.
    fn read(&self, path: &Path) -> Option<Vec<u8>>;

    /// Whether there is a folder of that name.
    fn is_folder(&self, path: &Path) -> bool;
}

/// The file that is imported.
pub(super) struct Source<'s> {
    /// Its name.
    pub path: &'s Path,
    /// What it says.
    pub config: &'s Node,
    /// Where it says it.
    pub lines: &'s Lines,
    pub disk: &'s dyn Beside,
}

impl Source<'_> {
    /// The value of a key, unless nothing is set by it.
    pub fn get(&self, key: &str) -> Option<&Node> {
        self.config.get(key).filter(|value| !value.is_empty())
    }

    /// The text of a key.
    pub fn text(&self, key: &str) -> Option<&str> {
        self.get(key).and_then(Node::as_str)
    }

    /// Whether a key is switched on.
    pub fn is_on(&self, key: &str) -> bool {
        self.get(key).and_then(Node::as_flag) == Some(true)
    }

    /// The file of that name: as a tool that is started in some folder above the configuration would find it. With its text.
    pub fn find(&self, name: &str) -> Option<(PathBuf, Vec<u8>)> {
        const MOST_LEVELS: usize = 6;
        let folder = self.path.parent().unwrap_or(Path::new(""));
        let above = folder.ancestors().take(MOST_LEVELS).map(|folder| folder.join(name));
        let mut places = std::iter::once(PathBuf::from(name)).chain(above);
        places.find_map(|path| Some((path.clone(), self.disk.read(&path)?)))
    }
}

/// What becomes of a configuration.
#[derive(Debug, Default)]
pub(super) struct Sheet {
    pub snippet: Snippet,
    pub remarks: Remarks,
}

impl Sheet {
    /// Records a key's verdict: what is honoured goes into the train.toml, and what cannot go there is refused.
    pub fn record(&mut self, key: &str, value: &Node, verdict: Verdict) {
        let verdict = match &verdict {
            Verdict::Honoured(settings) | Verdict::Noted(settings, _) => match self.add_all(settings, key) {
                Ok(()) => verdict,
                Err(why) => Verdict::Refused(why),
            },
            _ => verdict,
        };
        match verdict {
            Verdict::Honoured(settings) if settings.is_empty() => self.remarks.without_effect(key, "other keys say it"),
            Verdict::Honoured(settings) => {
                let settings = settings.iter().map(|Setting { key, value }| format!("{key} = {value}"));
                self.remarks.mapped(key, settings.collect::<Vec<_>>().join(", "));
            }
            Verdict::Noted(_, what) => self.remarks.noted(key, value, &what),
            Verdict::NoEffect(why) => self.remarks.without_effect(key, &why),
            Verdict::Open(ours, _) => self.remarks.without_effect(key, &format!("{ours} has its default")),
            Verdict::Refused(why) => self.remarks.refused(key, value, &why),
        }
    }

    fn add_all(&mut self, settings: &[Setting], key: &str) -> Result<(), String> {
        settings.iter().try_for_each(|setting| self.snippet.add(setting.clone(), key))
    }

    /// Sets what the other tool's default is and train.toml's is not, unless something has said it.
    pub fn imply(&mut self, key: &'static str, value: &str, whose: &str) {
        if self.snippet.says(key).is_none() {
            let added = self.snippet.add(Setting::new(key, value), whose);
            added.unwrap_or_else(|why| panic!("{key} = {value} is implied, and yet: {why}"));
        }
    }

    /// Writes a key as a comment, for the user to fill in.
    pub fn leave_to_user(&mut self, key: &'static str, value: &str, what: &str) {
        let (section, name) = key.split_once('.').expect("section.key");
        self.snippet.comment(section, format!("{name} = {value}"), what);
    }
}
