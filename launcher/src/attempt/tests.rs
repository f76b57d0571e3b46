//! Attempts of shells. None of them is cleared: that would end the children of other tests as well.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;

use super::*;
use crate::process::spawn::Sink;

/// Ranks that say nothing; those in `news` are what else happens, each once.
#[derive(Default)]
struct Shells {
    heard: Vec<Exited>,
    failing: Vec<(usize, String)>,
    news: Vec<Event>,
}

impl AttemptKind for Shells {
    type Notice = Exited;

    fn noticed(&mut self, notice: Exited) -> Vec<Event> {
        self.heard.push(notice);
        let Exited { rank, exit } = notice;
        let finished = (exit == Exit::Code(0)).then_some(Event::Finished { rank });
        finished.into_iter().chain([Event::RankExited { rank, exit }]).collect()
    }

    fn interrupted(&mut self, interrupt: Interrupt, _: &mut Signals) -> Option<Event> {
        Some(Event::Interrupted(interrupt))
    }

    async fn next(&mut self, _: &Ranks) -> Option<Event> {
        match self.news.pop() {
            Some(event) => Some(event),
            None => std::future::pending().await,
        }
    }

    fn failing(&mut self, rank: usize, cause: &str) {
        self.failing.push((rank, cause.to_owned()));
    }
}

fn shell(script: &str) -> Spec {
    Spec {
        program: "/bin/sh".into(),
        args: vec!["-c".into(), script.into()],
        env: vec![],
        stdout: Sink::Null,
        stderr: Sink::Null,
        ignore: vec![],
        cgroup: None,
        inherit: vec![],
    }
}

fn attempt(num_ranks: usize, reach: Reach) -> Attempt<Exited> {
    Attempt::new(Terms { number: 0, num_ranks, on_interrupt: OnInterrupt::Kill, reach })
}

/// Runs the scripts as ranks. Returns the outcome and what was heard.
async fn run(scripts: &[&str], reach: Reach, news: Vec<Event>) -> (Outcome, Shells) {
    let spawner = Spawner::start().unwrap();
    let mut signals = Signals::listen().unwrap();
    let mut attempt = attempt(scripts.len(), reach);
    attempt.start(&spawner, scripts.iter().map(|script| shell(script))).await.unwrap();
    let mut shells = Shells { news, ..Shells::default() };
    let outcome = attempt.supervise(&mut shells, &mut signals).await;
    (outcome, shells)
}

#[tokio::test]
async fn an_attempt_is_done_when_all_ranks_are() {
    let (outcome, shells) = run(&["exit 0", "exit 0"], Reach::Process, vec![]).await;
    assert_eq!(outcome, Outcome::Done);
    assert_eq!((shells.heard.len(), shells.failing), (2, vec![]));
}

#[tokio::test]
async fn the_first_failure_is_told_at_once_and_the_rest_is_killed() {
    for reach in [Reach::Process, Reach::ProcessGroup] {
        let (outcome, shells) = run(&["while :; do sleep 1000; done", "exit 3"], reach, vec![]).await;
        let Outcome::Failed { cause, follow_ons } = outcome else { panic!("{outcome:?}") };
        assert_eq!((cause.rank, cause.exit, follow_ons), (1, Some(Exit::Code(3)), vec![]));
        assert_eq!(shells.failing, [(1, cause.summary())]);
        assert!(shells.heard.iter().any(|end| end.rank == 0 && end.exit.is_signal(Signal::SIGKILL)));
    }
}

#[tokio::test]
async fn what_else_happens_reaches_the_supervisor() {
    let (outcome, shells) = run(&["while :; do sleep 1000; done"], Reach::Process, vec![Event::Recalled]).await;
    assert_eq!((outcome, shells.failing), (Outcome::Recalled, vec![]));
}

#[tokio::test]
async fn where_a_rank_cannot_be_started_none_is_left() {
    let (read, write) = io::pipe().unwrap();
    let mut lives = File::from(OwnedFd::from(read));
    let held = Spec { inherit: vec![Arc::new(write.into())], ..shell("while :; do sleep 1000; done") };
    let missing = Spec { program: "/no/such/program".into(), ..shell("") };
    let mut attempt = attempt(2, Reach::ProcessGroup);
    let started = attempt.start(&Spawner::start().unwrap(), [held, missing].into_iter()).await;
    assert!(started.unwrap_err().to_string().contains("/no/such/program"));
    assert_eq!(attempt.ranks().pids().len(), 1);
    // ATT-2. Would block for the shell's life if it were alive: it inherited the other end.
    assert_eq!(lives.read(&mut [0]).unwrap(), 0);
}
