//! `dslaunch generate`: writes on, or talks, with a model. A rank computes and this process does the rest: it links no libtorch.
//!
//! `source` finds the model, `ground` what it computes on and whether there is room, `worker` is the rank, `asking` where prompts come
//! from, `answer` one prompt's text as it comes, for which `text` makes texts of tokens, `stops` finds where they end (both are pure),
//! and `report` says how it went.

mod answer;
mod args;
mod asking;
mod error;
mod ground;
mod report;
mod source;
mod stops;
mod text;
mod worker;

use std::io::{self, IsTerminal};

use proto::generate::{Load, Request};

use self::answer::{Answer, Finish, Writer};
pub use self::args::GenerateArgs;
use self::asking::{Asking, Next};
use self::error::GenerateError;
use self::ground::Ground;
use self::report::Totals;
use self::source::Source;
use self::worker::Worker;
use crate::data::{Message, Prompter, Speaker, end_tokens};
use crate::error::LaunchError;
use crate::output::console::Console;
use crate::output::terminal::Terminal;
use crate::process::signals::{Interrupt, Signals};
use crate::runtime::on_runtime;

/// Does it. Returns the exit code.
pub fn run(args: &GenerateArgs, terminal: &Terminal) -> Result<u8, LaunchError> {
    let mut console = Console::new(terminal.clone(), io::stdout().is_terminal());
    let asking = Asking::new(args)?;
    let source = Source::find(&args.model, args.base.as_deref())?;
    source.notes.iter().for_each(|note| console.warn(&format!("note: {note}")));
    let prompter = Prompter::load(&source.files, source.config.vocab_size, args.template());
    let prompter = prompter.map_err(GenerateError::from)?;
    let ends = end_tokens(&source.folders(), prompter.tokenizer()).map_err(GenerateError::from)?;
    let ground = Ground::choose(args)?;
    ground.notes.iter().for_each(|note| console.warn(&format!("note: {note}")));
    let longest = asking.longest(&prompter).map_err(GenerateError::from)?;
    ground.check_room(&source, longest + args.new_tokens_max())?;
    on_runtime(async {
        let mut signals = Signals::listen().map_err(LaunchError::io("listen for signals"))?;
        let worker = Worker::start(&ground, load(&source, &ground))?;
        let generation = Generation {
            args,
            source: &source,
            ends: ends.into_iter().collect(),
            prompter: &prompter,
            terminal,
            console,
            worker,
            totals: Totals::default(),
            asked: 0,
            has_told_of_length: false,
        };
        generation.run(asking, &mut signals).await
    })
}

fn load(source: &Source, ground: &Ground) -> Load {
    Load {
        model: source.model.display().to_string(),
        adapter: source.adapter.as_ref().map_or_else(String::new, |adapter| adapter.display().to_string()),
        on_gpu: ground.is_gpu(),
        bf16: ground.is_bf16(),
    }
}

/// The model, which is being loaded or is there, and what was asked of it so far.
struct Generation<'a> {
    args: &'a GenerateArgs,
    source: &'a Source,
    /// Any of these ends a text.
    ends: Vec<u32>,
    prompter: &'a Prompter,
    terminal: &'a Terminal,
    console: Console,
    worker: Worker,
    totals: Totals,
    /// Prompts so far.
    asked: u64,
    /// Whether it has said that texts are longer than the model was made for.
    has_told_of_length: bool,
}

impl Generation<'_> {
    /// Takes one prompt after the other until there are none.
    async fn run(mut self, mut asking: Asking, signals: &mut Signals) -> Result<u8, LaunchError> {
        if let Some(interrupt) = self.worker.loaded(&mut self.console, signals).await? {
            return Err(LaunchError::Interrupted(interrupt));
        }
        let mut conversation = self.opening();
        let code = loop {
            let words = match asking.next(self.terminal, signals).await? {
                Next::Prompt(words) => words,
                Next::End => break 0,
                Next::Interrupt(interrupt) => break interrupt.exit_code(),
            };
            if asking.has_conversations_of_one_message() {
                conversation = self.opening();
            }
            let prompt = if self.args.chat {
                conversation.push(Message { speaker: Speaker::User, words: words.clone() });
                self.prompter.conversation(&conversation)
            } else {
                self.prompter.text(&words)
            };
            let prompt = prompt.map_err(GenerateError::from)?;
            let answer = self.answer(prompt, signals).await?;
            self.show_end(&words, &answer, asking.is_interactive())?;
            if self.terminal.lost() > 0 {
                // Nobody reads what is written.
                break 0;
            }
            if answer.finish == Finish::Interrupted && !asking.is_interactive() {
                break Interrupt::Interrupt.exit_code();
            }
            conversation.push(Message { speaker: Speaker::Assistant, words: answer.text });
        };
        if !asking.is_interactive() && self.asked > 0 {
            self.console.warn(&self.totals.text());
        }
        Ok(code)
    }

    /// What a conversation begins with.
    fn opening(&self) -> Vec<Message> {
        let system = self.args.system.iter();
        system.map(|words| Message { speaker: Speaker::System, words: words.clone() }).collect()
    }

    async fn answer(&mut self, prompt: Vec<u32>, signals: &mut Signals) -> Result<Answer, LaunchError> {
        let most = self.source.config.max_position_embeddings;
        if prompt.len() + self.args.new_tokens_max() > most && !self.has_told_of_length {
            self.has_told_of_length = true;
            let rule =
                format!("the model was made for {most} tokens (max_position_embeddings), and may write badly beyond");
            self.console.warn(&format!("note: {rule}"));
        }
        let request = Request {
            id: self.asked,
            prompt,
            new_tokens_max: self.args.new_tokens_max() as u64,
            end_tokens: self.ends.clone(),
            sampling: self.args.sampling(self.asked),
        };
        self.asked += 1;
        let streams = if self.args.json { None } else { Some(self.terminal) };
        let writer = Writer::new(self.prompter.tokenizer(), &request, &self.args.stop, streams)?;
        let answer = writer.write(&mut self.worker, request, signals).await?;
        self.totals.add(&answer);
        Ok(answer)
    }

    fn show_end(&mut self, words: &str, answer: &Answer, is_interactive: bool) -> Result<(), LaunchError> {
        if self.args.json {
            self.console.say(&report::json(words, answer));
        } else {
            self.console.say("");
        }
        if is_interactive {
            self.console.warn(&Totals::of(answer).text());
        }
        Ok(())
    }
}
