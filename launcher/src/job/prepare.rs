//! A job's data: which parts there are, what each is prepared from, and how the user sees that it takes a while.

use std::error::Error;

use proto::config::{ConfigErrors, DataSource};
use proto::manifest::Progress;
use proto::resolve::PreparedData;

use crate::data::{
    self, Checked, Classes, DataError, DataJob, DataProgress, Look, Origin, Portion, Prepared, ShownSample, Split,
};
use crate::error::LaunchError;
use crate::job::setup::Setup;
use crate::job::training_data::{note_on_long_samples, planned, wait_for, wait_for_rows};
use crate::output::console::Console;
use crate::process::signals::Signals;

impl Setup {
    /// The validation sets.
    pub fn validation_splits(&self) -> Vec<Split> {
        let named = self.config.validation.source.iter().map(|set| Split::Set(set.name.clone()));
        let data = &self.config.data;
        let has_unnamed = !data.validation.is_empty() || data.holds_out();
        let unnamed = has_unnamed.then_some(Split::Validation);
        unnamed.into_iter().chain(named).collect()
    }

    /// The first `count` samples of a split, prepared as for training. The caller holds the run directory's lock.
    pub async fn samples(
        &self,
        split: &Split,
        count: usize,
        signals: &mut Signals,
        console: &mut Console,
    ) -> Result<Vec<ShownSample>, LaunchError> {
        let prepared = if *split == Split::Train && self.config.data.streaming {
            let stream = self.stream(Progress::default(), signals, console).await?;
            let spot = wait_for_rows(&stream, 0, signals, console).await?;
            stream.prepared(spot, &self.data_job(split))?
        } else {
            self.prepare(split, signals, console).await?
        };
        Ok(data::samples(&prepared, &self.model_file("tokenizer.json"), count, self.cores)?)
    }

    /// Prepares a split as for training and looks for what is lost, doubled or not trained; of each kind the first `limit` are
    /// named. The caller holds the run directory's lock.
    pub async fn check(
        &self,
        split: &Split,
        limit: usize,
        signals: &mut Signals,
        console: &mut Console,
    ) -> Result<Result<Checked, DataError>, LaunchError> {
        if *split == Split::Train && self.config.data.streaming {
            let rule = "what is streamed is not looked through: all of it would have to be prepared first";
            let problem = self.config.origins.problem("data.streaming", rule);
            return Err(ConfigErrors::from(problem.suggest("--set data.streaming=false")).into());
        }
        let prepared = match self.try_prepare(split, signals, console).await? {
            Ok(prepared) => prepared,
            Err(error) => return Ok(Err(error)),
        };
        let job = self.data_job(split);
        let what = format!("checking {} data", split.name());
        let told = Look { limit, packs_batches: *split == Split::Train && self.config.data.packs_batches() };
        let look = move |progress: &DataProgress| data::check(&job, prepared, told, progress);
        wait_for(&what, look, signals, console).await
    }

    /// Prepares every validation set.
    pub(super) async fn prepare_validation(
        &self,
        signals: &mut Signals,
        console: &mut Console,
    ) -> Result<Vec<(Split, Prepared)>, LaunchError> {
        let mut sets = vec![];
        for split in self.validation_splits() {
            let prepared = self.prepare(&split, signals, console).await?;
            sets.push((split, prepared));
        }
        Ok(sets)
    }

    /// Prepares a split.
    pub(super) async fn prepare(
        &self,
        split: &Split,
        signals: &mut Signals,
        console: &mut Console,
    ) -> Result<Prepared, LaunchError> {
        Ok(self.try_prepare(split, signals, console).await??)
    }

    fn sources_of(&self, split: &Split) -> Vec<DataSource> {
        let set = |name: &str| self.config.validation_sets().into_iter().find(|set| set.name == name);
        match split {
            Split::Train => self.config.data.sources(),
            Split::Validation if self.config.data.holds_out() => self.config.data.sources(),
            Split::Validation => self.config.validation_sets().iter().map(|set| set.source()).collect(),
            Split::Set(name) => set(name).iter().map(|set| set.source()).collect(),
        }
    }

    fn portion_of(&self, split: &Split) -> Portion {
        match (split, self.config.data.validation_share) {
            (_, 0.0) | (Split::Set(_), _) => Portion::All,
            (Split::Train, share) => Portion::Rest(share),
            (Split::Validation, share) => Portion::HeldOut(share),
        }
    }

    /// Validation scores all samples alike.
    fn classes_of(&self, split: &Split) -> Classes {
        let data = &self.config.data;
        match (split, data.class_key()) {
            (Split::Train, Some(key)) => Classes::Key(key.to_owned()),
            (Split::Train, None) if data.source.len() > 1 => Classes::Sources,
            _ => Classes::None,
        }
    }

    pub(super) fn data_job(&self, split: &Split) -> DataJob {
        let data = &self.config.data;
        DataJob {
            split: split.clone(),
            from: self.sources_of(split),
            portion: self.portion_of(split),
            classes: self.classes_of(split),
            chat_template: data.chat_template.clone(),
            model_folder: self.current_dir.join(&self.config.model.path),
            train_on: data.train_on,
            long_samples: data.long_samples,
            seq_len: data.seq_len as usize,
            packing: if *split == Split::Train { data.packs_rows() } else { data.packing },
            vocab_size: self.model.vocab_size,
            end_tokens: self.end_tokens.clone(),
            tokenizer: Some(self.model_file("tokenizer.json")),
            cache_dir: self.run_dir().data(),
            threads: self.cores,
        }
    }

    async fn try_prepare(
        &self,
        split: &Split,
        signals: &mut Signals,
        console: &mut Console,
    ) -> Result<Result<Prepared, DataError>, LaunchError> {
        let job = self.data_job(split);
        let what = format!("preparing {} data", split.name());
        let prepare = move |progress: &DataProgress| data::prepare(&job, progress);
        let prepared = match wait_for(&what, prepare, signals, console).await? {
            Ok(prepared) => prepared,
            Err(error) => return Ok(Err(error)),
        };
        if let Origin::MadeInsteadOf(error) = &prepared.origin {
            let why = error.source().map_or(String::new(), |source| format!(": {source}"));
            console.warn(&format!("warning: the {} data was prepared anew: {error}{why}", split.name()));
        }
        if let Some(note) = note_on_long_samples(split, prepared.summary.long, self.config.data.seq_len) {
            console.warn(&note);
        }
        Ok(Ok(prepared))
    }
}

/// Notes files that the key `of` names more than once.
pub(super) fn note_repeated(of: &str, repeated: Vec<&str>, console: &mut Console) {
    for name in repeated {
        console.warn(&format!("note: {of}: {name} is named more than once, and its rows count as often"));
    }
}

/// What the plan knows of validation sets, by their names in metrics.
pub(super) fn planned_sets(sets: Vec<(Split, Prepared)>) -> Vec<(String, PreparedData)> {
    let name = |split: Split| match split {
        Split::Set(name) => name,
        other => other.name(),
    };
    sets.into_iter().map(|(split, prepared)| (name(split), planned(prepared))).collect()
}
