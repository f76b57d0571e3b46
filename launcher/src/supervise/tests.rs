//! The state machine, event by event.

use super::*;

const SIGSEGV: Exit = Exit::Signal { number: libc::SIGSEGV, core_dumped: false };
const SIGKILL: Exit = Exit::Signal { number: libc::SIGKILL, core_dumped: false };
const SIGTERM: Exit = Exit::Signal { number: libc::SIGTERM, core_dumped: false };
const INTERRUPT: Event = Event::Interrupted(Interrupt::Interrupt);

fn exited(rank: usize, exit: Exit) -> Event {
    Event::RankExited { rank, exit }
}

fn reported(rank: usize, kind: Kind, message: &str) -> Event {
    Event::FailedReported { rank, kind, step: 5, message: message.into() }
}

fn missing(ranks: &[usize]) -> Event {
    Event::RendezvousTimedOut { missing: ranks.to_vec(), message: "rendezvous".into() }
}

fn detected(rank: usize, cause: &str) -> Action {
    Action::FailureDetected { rank, cause: cause.into() }
}

fn kill(ranks: &[usize]) -> Action {
    Action::Signal { ranks: ranks.to_vec(), signal: Signal::SIGKILL }
}

fn grace(duration: Duration) -> Action {
    Action::StartGrace(duration)
}

/// Feeds the events in order and compares what is done after each.
fn check(world_size: usize, steps: &[(Event, &[Action])]) {
    let mut supervisor = Supervisor::new(world_size, OnInterrupt::Kill);
    for (at, (event, actions)) in steps.iter().enumerate() {
        assert_eq!(supervisor.handle(event.clone()), *actions, "after event {at}: {event:?}");
    }
}

/// Feeds the events in order and returns the outcome of the last.
fn outcome(world_size: usize, events: &[Event]) -> Outcome {
    let mut supervisor = Supervisor::new(world_size, OnInterrupt::Kill);
    let mut actions: Vec<_> = events.iter().flat_map(|event| supervisor.handle(event.clone())).collect();
    match actions.pop() {
        Some(Action::Ended(outcome)) => outcome,
        other => panic!("not ended but {other:?} after {events:?}"),
    }
}

/// Asserts which rank and message the failure of these events is put down to.
fn blames(world_size: usize, events: &[Event], rank: usize, summary: &str) {
    match outcome(world_size, events) {
        Outcome::Failed { cause, .. } => assert_eq!((cause.rank, cause.summary().as_str()), (rank, summary)),
        other => panic!("{other:?} after {events:?}"),
    }
}

#[test]
fn a_job_is_done_when_every_rank_finished_and_exited() {
    check(
        2,
        &[
            (Event::Heartbeat { rank: 0, step: 1 }, &[]),
            (Event::Finished { rank: 1 }, &[]),
            (exited(1, Exit::Code(0)), &[]),
            (Event::Finished { rank: 0 }, &[]),
            (exited(0, Exit::Code(0)), &[Action::Ended(Outcome::Done)]),
            (exited(0, SIGSEGV), &[]),
            (INTERRUPT, &[]),
        ],
    );
}

#[test]
fn the_first_death_kills_the_others_at_once() {
    for (exit, cause) in [
        (SIGSEGV, "killed by SIGSEGV"),
        (SIGTERM, "killed by SIGTERM"),
        (Exit::Code(1), "exited with code 1"),
        (Exit::Code(0), "exited with code 0 before its work was done"),
    ] {
        check(
            3,
            &[
                (exited(1, exit), &[detected(1, cause), kill(&[0, 2]), grace(FAILURE_GRACE)]),
                (exited(0, SIGKILL), &[]),
                (Event::GraceOver, &[grace(KILL_DEADLINE)]),
            ],
        );
        blames(3, &[exited(1, exit), exited(0, SIGKILL), Event::GraceOver, exited(2, SIGKILL)], 1, cause);
    }
}

#[test]
fn a_rank_that_fails_after_others_finished_fails_the_job() {
    let events = [Event::Finished { rank: 0 }, exited(0, Exit::Code(0)), exited(1, SIGSEGV)];
    blames(2, &events, 1, "killed by SIGSEGV");
    let events = [Event::Finished { rank: 0 }, exited(0, Exit::Code(3)), exited(1, SIGTERM)];
    blames(2, &events, 0, "exited with code 3");
}

#[test]
fn a_rank_that_reported_is_left_to_exit_by_itself_until_the_grace_is_over() {
    check(
        3,
        &[
            (reported(2, Kind::Input, "bad row"), &[detected(2, "bad row"), kill(&[0, 1]), grace(FAILURE_GRACE)]),
            (exited(0, SIGTERM), &[]),
            (exited(1, SIGTERM), &[]),
            (Event::GraceOver, &[kill(&[2]), grace(KILL_DEADLINE)]),
        ],
    );
}

#[test]
fn a_report_and_the_exit_after_it_are_one_failure() {
    let outcome = outcome(2, &[reported(0, Kind::Internal, "boom"), exited(0, Exit::Code(1)), exited(1, SIGTERM)]);
    let cause =
        Failure { rank: 0, kind: Kind::Internal, step: 5, message: Some("boom".into()), exit: Some(Exit::Code(1)) };
    assert_eq!(outcome, Outcome::Failed { cause, follow_ons: vec![] });
    // A rank that spoke and then did not leave did not die of what we did about it.
    let killed = [reported(0, Kind::Internal, "boom"), Event::GraceOver, exited(0, SIGKILL)];
    let mut supervisor = Supervisor::new(1, OnInterrupt::Kill);
    let last = killed.into_iter().flat_map(|event| supervisor.handle(event)).last();
    assert!(matches!(last, Some(Action::Ended(Outcome::Failed { cause, .. })) if cause.exit.is_none()));
}

#[test]
fn a_peer_report_waits_for_the_real_cause() {
    check(
        3,
        &[
            (reported(0, Kind::Peer, "rank 1 is gone"), &[detected(0, "rank 1 is gone"), grace(SUSPECT_GRACE)]),
            (reported(2, Kind::Peer, "rank 1 is gone"), &[]),
            (exited(2, Exit::Code(1)), &[]),
            // Rank 0 is leaving already.
            (exited(1, SIGKILL), &[grace(FAILURE_GRACE)]),
            (Event::GraceOver, &[kill(&[0]), grace(KILL_DEADLINE)]),
        ],
    );
}

#[test]
fn a_peer_report_without_another_cause_stops_the_job_after_a_while() {
    check(
        3,
        &[
            (reported(0, Kind::Peer, "rank 1 hangs"), &[detected(0, "rank 1 hangs"), grace(SUSPECT_GRACE)]),
            (exited(0, Exit::Code(1)), &[]),
            (Event::GraceOver, &[kill(&[1, 2]), grace(FAILURE_GRACE)]),
            (exited(2, SIGTERM), &[]),
            (Event::GraceOver, &[grace(KILL_DEADLINE)]),
        ],
    );
    let all_blame = [reported(0, Kind::Peer, "rank 1 hangs"), reported(1, Kind::Peer, "rank 0 hangs")];
    let mut supervisor = Supervisor::new(2, OnInterrupt::Kill);
    let actions: Vec<_> = all_blame.into_iter().flat_map(|event| supervisor.handle(event)).collect();
    assert_eq!(actions.last(), Some(&grace(FAILURE_GRACE)), "nobody is left to say more");
}

#[test]
fn first_failure_is_the_reported_cause() {
    let peer = |rank| reported(rank, Kind::Peer, "rank 1 is gone");
    // Echoes may arrive before the cause, between its report and its exit, or after.
    blames(
        3,
        &[peer(0), peer(2), exited(1, SIGKILL), exited(0, Exit::Code(1)), exited(2, SIGTERM)],
        1,
        "killed by SIGKILL",
    );
    blames(2, &[peer(0), reported(1, Kind::Internal, "x"), exited(0, SIGTERM), exited(1, Exit::Code(1))], 1, "x");
    blames(2, &[exited(1, SIGSEGV), peer(0), exited(0, Exit::Code(1))], 1, "killed by SIGSEGV");
    // Of two real ones the earlier.
    let (first, second) = (reported(1, Kind::Internal, "first"), reported(0, Kind::Input, "second"));
    blames(2, &[first, second, exited(0, Exit::Code(1)), exited(1, Exit::Code(1))], 1, "first");
    // A peer report is the cause only if nothing else is known: deaths by our signals say nothing.
    blames(2, &[peer(0), Event::GraceOver, exited(1, SIGTERM), exited(0, Exit::Code(1))], 0, "rank 1 is gone");
    let killed = [peer(0), Event::GraceOver, Event::GraceOver, exited(1, SIGKILL), exited(0, SIGKILL)];
    blames(2, &killed, 0, "rank 1 is gone");
    // A death that we brought about is none; one before that is.
    blames(2, &[peer(0), Event::GraceOver, exited(1, SIGKILL), exited(0, Exit::Code(1))], 0, "rank 1 is gone");
    blames(2, &[peer(0), exited(1, SIGKILL), exited(0, Exit::Code(1))], 1, "killed by SIGKILL");
}

#[test]
fn a_rank_that_hangs_is_the_cause_and_is_killed_with_the_others() {
    let hung = |rank| Event::Hung { rank, step: 7, message: "stopped by a signal".into() };
    check(2, &[(hung(1), &[detected(1, "stopped by a signal"), kill(&[0, 1]), grace(FAILURE_GRACE)])]);
    let outcome = outcome(2, &[hung(1), exited(0, SIGKILL), exited(1, SIGKILL)]);
    let message = Some("stopped by a signal".to_owned());
    let cause = Failure { rank: 1, kind: Kind::Hung, step: 7, message, exit: None };
    assert_eq!(outcome, Outcome::Failed { cause, follow_ons: vec![] });
}

#[test]
fn a_rank_whose_port_was_taken_is_the_cause_and_is_killed_with_the_others() {
    let robbed = || Event::Robbed { rank: 0, message: "a thief".into() };
    check(2, &[(robbed(), &[detected(0, "a thief"), kill(&[0, 1]), grace(FAILURE_GRACE)])]);
    let cause = |exit| Failure { rank: 0, kind: Kind::Robbed, step: 0, message: Some("a thief".into()), exit };
    let killed = outcome(2, &[robbed(), exited(0, SIGKILL), exited(1, SIGKILL)]);
    assert_eq!(killed, Outcome::Failed { cause: cause(None), follow_ons: vec![] });
    // It fails of that at the same time, as others do.
    let code = Exit::Code(1);
    let failed = outcome(2, &[robbed(), exited(0, code), exited(1, SIGKILL)]);
    assert_eq!(failed, Outcome::Failed { cause: cause(Some(code)), follow_ons: vec![] });
    // Whoever has ended before has no port to lose.
    blames(2, &[exited(0, code), robbed(), exited(1, SIGKILL)], 0, "exited with code 1");
}

#[test]
fn follow_ons_keep_their_order_and_leave_out_what_we_killed() {
    let events = [
        reported(3, Kind::Peer, "a"),
        reported(1, Kind::Peer, "b"),
        exited(0, SIGSEGV),
        exited(2, SIGTERM),
        exited(3, Exit::Code(1)),
        exited(1, Exit::Code(1)),
    ];
    let Outcome::Failed { cause, follow_ons } = outcome(4, &events) else { panic!("failed") };
    assert_eq!(cause.rank, 0);
    assert_eq!(follow_ons.iter().map(|failure| failure.rank).collect::<Vec<_>>(), [3, 1]);
}

#[test]
fn ranks_that_do_not_register_are_the_cause() {
    check(
        3,
        &[
            (missing(&[1, 2]), &[detected(1, "rendezvous"), kill(&[0, 1, 2]), grace(FAILURE_GRACE)]),
            (reported(0, Kind::Peer, "rendezvous timed out"), &[]),
        ],
    );
    let events = [missing(&[1]), reported(0, Kind::Peer, "x"), exited(0, Exit::Code(1)), exited(1, SIGTERM)];
    blames(2, &events, 1, "rendezvous");
}

#[test]
fn an_interrupt_kills_ranks_that_have_nothing_to_save() {
    check(
        2,
        &[
            (INTERRUPT, &[kill(&[0, 1]), grace(OnInterrupt::Kill.grace())]),
            (exited(0, SIGKILL), &[]),
            (INTERRUPT, &[grace(KILL_DEADLINE)]),
            (INTERRUPT, &[]),
            (exited(1, SIGKILL), &[Action::Ended(Outcome::Interrupted(Interrupt::Interrupt))]),
        ],
    );
    let terminated = [Event::Interrupted(Interrupt::Terminate), exited(0, SIGTERM)];
    assert_eq!(outcome(1, &terminated), Outcome::Interrupted(Interrupt::Terminate));
}

#[test]
fn an_interrupt_during_a_failure_ends_the_job_as_interrupted() {
    check(
        2,
        &[
            (exited(0, SIGSEGV), &[detected(0, "killed by SIGSEGV"), kill(&[1]), grace(FAILURE_GRACE)]),
            (INTERRUPT, &[]),
            (exited(1, SIGTERM), &[Action::Ended(Outcome::Interrupted(Interrupt::Interrupt))]),
        ],
    );
    check(
        2,
        &[
            (reported(0, Kind::Peer, "x"), &[detected(0, "x"), grace(SUSPECT_GRACE)]),
            (INTERRUPT, &[kill(&[1]), grace(OnInterrupt::Kill.grace())]),
        ],
    );
}

#[test]
fn an_interrupt_that_comes_when_the_work_is_done_does_not_undo_it() {
    let events = [Event::Finished { rank: 0 }, INTERRUPT, exited(0, Exit::Code(0))];
    assert_eq!(outcome(1, &events), Outcome::Done);
}

#[test]
fn a_rank_that_sigkill_does_not_end_is_given_up() {
    let events = [INTERRUPT, Event::GraceOver, exited(0, SIGKILL), Event::GraceOver];
    assert_eq!(outcome(2, &events), Outcome::Stuck { ranks: vec![1] });
}

#[test]
fn the_step_is_the_last_one_heard_of() {
    let mut supervisor = Supervisor::new(2, OnInterrupt::Kill);
    supervisor.handle(Event::Heartbeat { rank: 1, step: 17 });
    supervisor.handle(exited(1, SIGSEGV));
    let ended = supervisor.handle(exited(0, SIGTERM));
    assert!(matches!(&ended[..], [Action::Ended(Outcome::Failed { cause, .. })] if cause.step == 17), "{ended:?}");
    assert_eq!(supervisor.step(0), 0);
}

#[test]
fn last_words_do_not_take_a_step_back() {
    for (heartbeat, step) in [(4, 5), (17, 17)] {
        let mut supervisor = Supervisor::new(1, OnInterrupt::Kill);
        supervisor.handle(Event::Heartbeat { rank: 0, step: heartbeat });
        supervisor.handle(reported(0, Kind::Internal, "boom"));
        let ended = supervisor.handle(exited(0, Exit::Code(1)));
        assert!(
            matches!(&ended[..], [Action::Ended(Outcome::Failed { cause, .. })] if cause.step == step),
            "{ended:?}"
        );
    }
}

/// Every event in every reachable state of two ranks: all sequences of five events.
#[test]
fn every_sequence_keeps_the_invariants() {
    let hung = Event::Hung { rank: 0, step: 1, message: "hangs".into() };
    let mut alphabet = vec![INTERRUPT, Event::GraceOver, missing(&[1]), hung];
    for rank in 0..2 {
        alphabet.extend([Exit::Code(0), Exit::Code(1), SIGTERM, SIGKILL].map(|exit| exited(rank, exit)));
        alphabet.extend([Kind::Peer, Kind::Internal].map(|kind| reported(rank, kind, "x")));
        alphabet.push(Event::Finished { rank });
    }
    let mut ended = 0;
    let mut open = vec![(Watched::default(), Supervisor::new(2, OnInterrupt::Kill))];
    for _ in 0..5 {
        let mut next = vec![];
        for (watched, supervisor) in open {
            for event in alphabet.iter().filter(|event| watched.can_happen(event)) {
                let (mut watched, mut supervisor) = (watched.clone(), supervisor.clone());
                watched.apply(event, &supervisor.handle(event.clone()));
                if watched.ended {
                    ended += 1;
                    assert_eq!(supervisor.handle(Event::GraceOver), [], "nothing follows the end");
                } else {
                    next.push((watched, supervisor));
                }
            }
        }
        open = next;
    }
    assert!(ended > 1000 && !open.is_empty(), "{ended} sequences ended, {} are open", open.len());
}

/// The facts that an observer of two ranks knows, to check the invariants from outside.
#[derive(Clone, Default)]
struct Watched {
    gone: [bool; 2],
    finished: [bool; 2],
    killed: [bool; 2],
    graces: usize,
    ended: bool,
}

impl Watched {
    fn can_happen(&self, event: &Event) -> bool {
        match event {
            Event::RankExited { rank, .. } | Event::FailedReported { rank, .. } | Event::Finished { rank } => {
                !self.gone[*rank]
            }
            Event::GraceOver => self.graces > 0,
            _ => true,
        }
    }

    fn apply(&mut self, event: &Event, actions: &[Action]) {
        match event {
            Event::RankExited { rank, .. } => self.gone[*rank] = true,
            Event::Finished { rank } => self.finished[*rank] = true,
            _ => {}
        }
        for action in actions {
            assert!(!self.ended, "{action:?} after the end");
            match action {
                Action::Signal { ranks, signal } => {
                    assert!(ranks.iter().all(|&rank| !self.gone[rank]), "a dead rank is signalled: {action:?}");
                    assert!(ranks.iter().all(|&rank| !self.killed[rank]), "a signal after SIGKILL: {action:?}");
                    ranks.iter().for_each(|&rank| self.killed[rank] = *signal == Signal::SIGKILL);
                }
                Action::StartGrace(_) => self.graces += 1,
                Action::Ended(Outcome::Stuck { .. }) => self.ended = true,
                Action::Ended(outcome) => {
                    assert_eq!(self.gone, [true; 2], "ended while a rank runs");
                    assert!(*outcome != Outcome::Done || self.finished == [true; 2], "done without being finished");
                    self.ended = true;
                }
                Action::FailureDetected { .. } => {}
            }
        }
        assert!(self.graces <= 3, "SUP-2: at most suspect, stop and kill");
        assert!(self.ended || self.gone != [true; 2], "all are gone and it goes on");
    }
}

#[test]
fn any_program_gets_the_users_signal_and_time_to_save() {
    for (interrupt, signal) in [(Interrupt::Interrupt, Signal::SIGINT), (Interrupt::Terminate, Signal::SIGTERM)] {
        let mut supervisor = Supervisor::new(2, OnInterrupt::Forward);
        let passed_on = Action::Signal { ranks: vec![0, 1], signal };
        assert_eq!(supervisor.handle(Event::Interrupted(interrupt)), [passed_on, grace(Duration::from_secs(30))]);
        assert_eq!(supervisor.handle(exited(0, Exit::Code(0))), []);
        assert_eq!(supervisor.handle(Event::Interrupted(interrupt)), [kill(&[1]), grace(KILL_DEADLINE)]);
        let by_us = Exit::Signal { number: signal as i32, core_dumped: false };
        assert_eq!(supervisor.handle(exited(1, by_us)), [Action::Ended(Outcome::Interrupted(interrupt))]);
    }
    // A failure is no time to save anything.
    let mut supervisor = Supervisor::new(2, OnInterrupt::Forward);
    let actions = supervisor.handle(exited(0, SIGSEGV));
    assert_eq!(actions, [detected(0, "killed by SIGSEGV"), kill(&[1]), grace(FAILURE_GRACE)]);
}

#[test]
fn ranks_are_killed_when_the_attempt_has_ended_elsewhere() {
    let deadline = grace(KILL_DEADLINE);
    check(
        2,
        &[
            (Event::Recalled, &[kill(&[0, 1]), deadline]),
            (Event::Recalled, &[]),
            (exited(1, SIGKILL), &[]),
            (exited(0, SIGKILL), &[Action::Ended(Outcome::Recalled)]),
        ],
    );
    // Nothing of it was wrong here; what was before that is.
    assert_eq!(outcome(1, &[Event::Recalled, exited(0, Exit::Code(0))]), Outcome::Recalled);
    blames(2, &[exited(0, SIGSEGV), Event::Recalled, exited(1, SIGKILL)], 0, "killed by SIGSEGV");
    assert_eq!(outcome(1, &[Event::Finished { rank: 0 }, Event::Recalled, exited(0, Exit::Code(0))]), Outcome::Done);
    // Whom the user stops keeps the time that he has.
    let stopped = [INTERRUPT, Event::Recalled, exited(0, SIGKILL)];
    assert_eq!(outcome(1, &stopped), Outcome::Interrupted(Interrupt::Interrupt));
}
