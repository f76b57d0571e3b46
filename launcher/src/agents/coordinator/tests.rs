use super::*;
use crate::agents::HOLD;
use crate::process::exit::Exit;
use crate::process::signals::Interrupt;

const JOIN_TIMEOUT: Duration = Duration::from_secs(300);

/// A coordinator with a clock of its own.
struct Run {
    coordinator: Coordinator,
    now: Instant,
}

fn run(num_nodes: u32, max_restarts: u32) -> Run {
    let now = Instant::now();
    let terms = Terms { run_id: "id".into(), num_nodes, max_restarts, join_timeout: JOIN_TIMEOUT };
    Run { coordinator: Coordinator::new(terms, now), now }
}

/// `agent`: the node's rank, and a letter for which of its agents: `0a`.
fn caller(agent: &str, round: u32) -> Caller {
    let node_rank = agent[..agent.len() - 1].parse().unwrap();
    Caller { run_id: "id".into(), node_rank, incarnation: agent.into(), round }
}

fn meeting() -> Meeting {
    Meeting { addr: "10.0.0.1".into(), port: 4000 }
}

fn failed(rank: u32) -> Report {
    let exit = Some(Exit::Code(7));
    Report::Failed(Cause { node: 99, rank: Some(rank), exit, message: "boom".into(), round: 99 })
}

impl Run {
    fn call(&mut self, agent: &str, round: u32, call: Call) -> Result<Answer, Refusal> {
        self.coordinator.call(&caller(agent, round), call, self.now)
    }

    /// Node k has k + 1 ranks.
    fn join(&mut self, agent: &str, round: u32) -> Result<Answer, Refusal> {
        let node = caller(agent, 0).node_rank;
        let num_nodes = self.coordinator.terms.num_nodes;
        let offer = Offer { num_nodes, num_workers: node + 1, meeting: (node == 0).then(meeting) };
        self.call(agent, round, Call::Join(offer))
    }

    fn beat(&mut self, agent: &str, round: u32) -> Result<Answer, Refusal> {
        self.call(agent, round, Call::Heartbeat)
    }

    fn report(&mut self, agent: &str, round: u32, report: Report) {
        assert_eq!(self.call(agent, round, Call::Report(report)), Ok(Answer::Noted));
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.coordinator.tick(self.now);
    }

    /// All of them join the round, which begins once whoever was replaced is gone.
    fn begin(&mut self, agents: &[&str], round: u32) {
        loop {
            let mut answers: Vec<_> = agents.iter().map(|agent| self.join(agent, round)).collect();
            match answers.pop() {
                Some(Ok(Answer::Place(place))) => return assert_eq!(place.round, round),
                answer => assert_eq!(answer, Some(Ok(Answer::Wait))),
            }
            assert!(answers.iter().all(|answer| *answer == Ok(Answer::Wait)), "{answers:?}");
            assert!(self.coordinator.free_at().is_some_and(|at| at > self.now), "nobody is waited for");
            self.pass(HOLD);
        }
    }

    /// Returns the reason that the round ended, as `agent` is told.
    fn again(&mut self, agent: &str, round: u32) -> Cause {
        match self.beat(agent, round) {
            Ok(Answer::Word(Word::Again(Some(cause)))) => cause,
            other => panic!("{agent}: {other:?}"),
        }
    }

    fn ending(&mut self, agent: &str, round: u32) -> Ending {
        match self.beat(agent, round) {
            Ok(Answer::Word(Word::Over(ending))) => ending,
            other => panic!("{agent}: {other:?}"),
        }
    }
}

#[test]
fn a_round_begins_when_all_have_joined() {
    let mut run = run(3, 5);
    assert_eq!(run.join("2a", 0), Ok(Answer::Wait));
    assert_eq!(run.join("2a", 0), Ok(Answer::Wait), "asked again");
    assert_eq!(run.join("0a", 0), Ok(Answer::Wait));
    let before = run.coordinator.generation();
    let place = |first_rank| {
        Ok(Answer::Place(NodePlace { round: 0, first_rank, world_size: 6, max_restarts: 5, meeting: meeting() }))
    };
    assert_eq!(run.join("1a", 0), place(1));
    assert_ne!(run.coordinator.generation(), before, "those who wait are woken");
    // The answers of those who waited, and one that got lost.
    assert_eq!((run.join("0a", 0), run.join("2a", 0), run.join("1a", 0)), (place(0), place(3), place(1)));
    assert_eq!(run.beat("1a", 0), Ok(Answer::Wait));
}

#[test]
fn all_done_is_over() {
    let mut run = run(2, 0);
    run.begin(&["0a", "1a"], 0);
    run.report("1a", 0, Report::Done);
    run.report("1a", 0, Report::Done);
    assert_eq!(run.beat("1a", 0), Ok(Answer::Wait));
    run.report("0a", 0, Report::Done);
    assert_eq!((run.ending("0a", 0), run.ending("1a", 0)), (Ending::Done, Ending::Done));
}

#[test]
fn the_first_failure_ends_the_round_everywhere() {
    let mut run = run(2, 1);
    run.begin(&["0a", "1a"], 0);
    run.report("0a", 0, Report::Done);
    run.report("1a", 0, failed(2));
    run.report("0a", 0, failed(0));
    let cause = Cause { node: 1, rank: Some(2), exit: Some(Exit::Code(7)), message: "boom".into(), round: 0 };
    assert_eq!((run.again("0a", 0), run.again("1a", 0)), (cause.clone(), cause));
    // The last round: there is no other one, and the cause is its own.
    run.begin(&["1a", "0a"], 1);
    run.report("0a", 1, failed(0));
    let Ending::Failed { cause, reason } = run.ending("1a", 1) else { panic!() };
    assert_eq!((cause.node, cause.rank, cause.round), (0, Some(0), 1));
    assert_eq!(reason, "the restart budget is used up (--max-restarts = 1)");
    assert_eq!(run.join("1b", 0), Ok(Answer::Word(Word::Over(Ending::Failed { cause, reason }))));
}

#[test]
fn a_silent_node_ends_the_round() {
    let mut run = run(3, 1);
    run.begin(&["0a", "1a", "2a"], 0);
    run.pass(SILENCE - Duration::from_millis(1));
    assert_eq!((run.beat("0a", 0), run.beat("2a", 0)), (Ok(Answer::Wait), Ok(Answer::Wait)));
    assert_eq!(run.coordinator.next_deadline(), Some(run.now + Duration::from_millis(1)));
    run.pass(Duration::from_millis(1));
    let cause = run.again("0a", 0);
    assert_eq!((cause.node, cause.rank), (1, None));
    assert_eq!(cause.message, "its dslaunch has not been heard for 5.0 s");
    // It comes back, as itself or as another one.
    assert!(matches!(run.beat("1a", 0), Ok(Answer::Word(Word::Again(Some(_))))));
    run.begin(&["0a", "2a", "1b"], 1);
    assert_eq!(run.beat("1a", 1), Err(Refusal::Replaced(1)));
}

#[test]
fn a_broken_connection_shortens_the_wait() {
    let mut run = run(2, 2);
    run.begin(&["0a", "1a"], 0);
    run.coordinator.hung_up(&caller("1a", 0), HangUp::Closed, run.now);
    assert_eq!(run.beat("1a", 0), Ok(Answer::Wait), "it has made another one");
    run.coordinator.hung_up(&caller("1a", 0), HangUp::Closed, run.now);
    run.pass(SILENCE_AFTER_HANGUP);
    let cause = run.again("0a", 0);
    assert_eq!(cause.message, "its dslaunch is gone: the connection broke, and there is no other one");
    assert_eq!(cause.node, 1);
}

#[test]
fn a_coordinator_that_was_stopped_itself_blames_nobody() {
    let mut run = run(2, 2);
    run.begin(&["0a", "1a"], 0);
    run.pass(SILENCE * 3);
    run.pass(SILENCE / 2);
    assert_eq!(run.beat("0a", 0), Ok(Answer::Wait));
    run.pass(SILENCE / 2);
    assert_eq!(run.again("0a", 0).node, 1, "now it is node 1 that is silent");
}

#[test]
fn the_run_is_over_with_node_0s_dslaunch() {
    let mut run = run(2, 2);
    run.begin(&["0a", "1a"], 0);
    run.report("0a", 0, failed(0));
    run.coordinator.close();
    let Ending::Failed { cause, reason } = run.ending("1a", 0) else { panic!() };
    assert_eq!((cause.rank, reason.as_str()), (Some(0), "node 0's dslaunch has ended"));
    // What is over stays as it is.
    let mut done = self::run(1, 0);
    done.begin(&["0a"], 0);
    done.report("0a", 0, Report::Done);
    done.coordinator.close();
    assert_eq!(done.ending("0a", 0), Ending::Done);
}

/// AGT-3.
#[test]
fn a_failure_beside_a_broken_connection_is_not_the_cause() {
    let mut run = run(2, 2);
    run.begin(&["0a", "1a"], 0);
    run.coordinator.hung_up(&caller("1a", 0), HangUp::Closed, run.now);
    run.report("0a", 0, failed(0));
    let cause = run.again("0a", 0);
    assert_eq!((cause.node, cause.rank), (1, None));
    // A node's own broken connection is no excuse.
    run.begin(&["0a", "1b"], 1);
    run.coordinator.hung_up(&caller("1b", 1), HangUp::Closed, run.now);
    run.report("1b", 1, failed(1));
    assert_eq!(run.again("0a", 1).rank, Some(1));
}

#[test]
fn a_node_whose_work_is_done_may_go() {
    let mut run = run(2, 0);
    run.begin(&["0a", "1a"], 0);
    run.report("1a", 0, Report::Done);
    run.coordinator.hung_up(&caller("1a", 0), HangUp::Closed, run.now);
    for _ in 0..10 {
        run.pass(Duration::from_secs(4));
        assert_eq!(run.beat("0a", 0), Ok(Answer::Wait));
    }
    run.report("0a", 0, Report::Done);
    assert_eq!(run.ending("0a", 0), Ending::Done);
}

/// AGT-1.
#[test]
fn the_newest_agent_of_a_node_is_the_one() {
    let mut run = run(2, 3);
    // While nodes join.
    assert_eq!(run.join("1a", 0), Ok(Answer::Wait));
    assert_eq!(run.join("1b", 0), Ok(Answer::Wait));
    assert_eq!(run.join("1a", 0), Err(Refusal::Replaced(1)));
    assert!(matches!(run.join("0a", 0), Ok(Answer::Place(_))));
    // While ranks run: the ranks of the older one are gone, or must go.
    assert_eq!(run.join("1c", 0), Ok(Answer::Wait));
    assert_eq!(run.again("0a", 0).message, "its dslaunch was started again");
    assert_eq!(run.call("1b", 0, Call::Report(Report::Done)), Err(Refusal::Replaced(1)));
    assert_eq!(run.join("0a", 1), Ok(Answer::Wait));
    // It has killed them, and goes.
    assert_eq!(run.call("1b", 0, Call::Leave), Ok(Answer::Noted));
    assert!(matches!(run.join("0a", 1), Ok(Answer::Place(place)) if place.round == 1));
}

/// How long a round waits whose nodes have all joined: node 1's agent was replaced after `how` it was heard last.
fn wait_after(how: impl FnOnce(&mut Run)) -> Duration {
    let mut run = run(2, 3);
    run.begin(&["0a", "1a"], 0);
    let since = run.now;
    how(&mut run);
    assert_eq!(run.join("1b", 0), Ok(Answer::Wait));
    run.begin(&["0a", "1b"], 1);
    run.now - since
}

#[test]
fn agt_5_whoever_is_replaced_has_stopped_before() {
    let about = |wait: Duration, expected: Duration| assert!(wait >= expected && wait < expected + HOLD, "{wait:?}");
    // It may run on, unheard: cut off, or stopped.
    about(wait_after(|_| {}), REPLACED);
    about(wait_after(|run| run.pass(SILENCE)), REPLACED);
    let lost = |run: &mut Run| run.coordinator.hung_up(&caller("1a", 0), HangUp::Lost, run.now);
    about(wait_after(lost), REPLACED);
    // Its system says that it is gone, or says so later, or it says so itself.
    let closed = |run: &mut Run| run.coordinator.hung_up(&caller("1a", 0), HangUp::Closed, run.now);
    about(wait_after(closed), SILENCE_AFTER_HANGUP);
    about(
        wait_after(|run| {
            assert_eq!(run.join("1b", 0), Ok(Answer::Wait));
            run.pass(HOLD);
            closed(run);
        }),
        HOLD + SILENCE_AFTER_HANGUP,
    );
    about(
        wait_after(|run| {
            assert_eq!(run.join("1b", 0), Ok(Answer::Wait));
            assert_eq!(run.call("1a", 0, Call::Leave), Ok(Answer::Noted));
        }),
        Duration::ZERO,
    );
    // It has made another connection, and is cut off after that.
    about(
        wait_after(|run| {
            closed(run);
            run.pass(HOLD);
            assert_eq!(run.beat("1a", 0), Ok(Answer::Wait));
        }),
        HOLD + REPLACED,
    );
    // No rank of its is left: its work is done, or it has joined the next round.
    about(wait_after(|run| run.report("1a", 0, Report::Done)), Duration::ZERO);
    about(
        wait_after(|run| {
            run.report("0a", 0, failed(0));
            assert_eq!(run.join("1a", 1), Ok(Answer::Wait));
        }),
        Duration::ZERO,
    );
}

#[test]
fn agt_5_a_round_that_waits_for_a_replaced_agent_misses_nobody() {
    let now = Instant::now();
    let terms = Terms { run_id: "id".into(), num_nodes: 2, max_restarts: 3, join_timeout: Duration::from_secs(1) };
    let mut run = Run { coordinator: Coordinator::new(terms, now), now };
    run.begin(&["0a", "1a"], 0);
    assert_eq!(run.join("1b", 0), Ok(Answer::Wait));
    run.begin(&["0a", "1b"], 1);
    // One that waits and is not heard any more is missing.
    assert_eq!(run.join("1c", 1), Ok(Answer::Wait));
    assert_eq!(run.join("0a", 2), Ok(Answer::Wait));
    run.pass(REPLACED);
    let Ok(Answer::Word(Word::Over(Ending::Missing(told)))) = run.join("0a", 2) else { panic!() };
    assert!(told.contains("0/2 nodes after 1s, missing nodes 0, 1"), "{told}");
}

#[test]
fn what_is_of_an_earlier_round_or_of_nobody_changes_nothing() {
    let mut run = run(2, 3);
    run.begin(&["0a", "1a"], 0);
    run.report("1a", 0, failed(2));
    run.begin(&["0a", "1a"], 1);
    for (agent, round) in [("1a", 0), ("1x", 1), ("1a", 2)] {
        run.report(agent, round, failed(2));
        run.report(agent, round, Report::Done);
        assert_eq!(run.call(agent, round, Call::Leave), Ok(Answer::Noted));
        run.coordinator.hung_up(&caller("1x", round), HangUp::Closed, run.now);
    }
    run.report("1x", 1, Report::Stopped(Interrupt::Terminate));
    assert_eq!((run.beat("0a", 1), run.beat("1a", 1)), (Ok(Answer::Wait), Ok(Answer::Wait)));
    assert_eq!(run.beat("1x", 1), Ok(Answer::Word(Word::Again(None))), "it may join");
    run.report("0a", 1, Report::Done);
    assert_eq!(run.beat("0a", 1), Ok(Answer::Wait), "node 1 has not said so");
}

#[test]
fn other_runs_and_sizes_are_refused_in_words() {
    let mut run = run(2, 3);
    let mut check = |caller: Caller, num_nodes: u32, text: &str| {
        let offer = Offer { num_nodes, num_workers: 1, meeting: None };
        let refusal = run.coordinator.call(&caller, Call::Join(offer), run.now).unwrap_err();
        assert_eq!(refusal.to_string(), text);
    };
    let other = Caller { run_id: "other".into(), ..caller("1a", 0) };
    check(other, 2, "this is run \"id\", not \"other\": --rdzv-id must be the same on all nodes");
    check(caller("1a", 0), 3, "node 1 was started with --nnodes 3, node 0 with --nnodes 2");
    check(caller("2a", 0), 2, "--node-rank 2: with --nnodes 2 the last one is 1");
    assert_eq!(run.join("0a", 0), Ok(Answer::Wait), "nobody has joined");
}

/// AGT-4.
#[test]
fn missing_nodes_are_named_at_the_deadline() {
    let mut run = run(4, 3);
    assert_eq!(run.join("1a", 0), Ok(Answer::Wait));
    assert_eq!(run.join("3a", 0), Ok(Answer::Wait));
    assert_eq!(run.coordinator.next_deadline(), Some(run.now + JOIN_TIMEOUT));
    run.pass(JOIN_TIMEOUT - Duration::from_secs(6));
    // Node 3 has joined and died since.
    assert_eq!(run.join("1a", 0), Ok(Answer::Wait));
    run.pass(Duration::from_secs(4));
    assert_eq!(run.join("1a", 0), Ok(Answer::Wait));
    run.pass(Duration::from_secs(2));
    let missing = Ending::Missing("rendezvous: 1/4 nodes after 300s, missing nodes 0, 2, 3".into());
    assert_eq!(run.join("1a", 0), Ok(Answer::Word(Word::Over(missing))));
}

#[test]
fn a_node_that_dies_while_others_join_is_waited_for() {
    let mut run = run(2, 0);
    assert_eq!(run.join("1a", 0), Ok(Answer::Wait));
    run.pass(SILENCE);
    assert_eq!(run.join("0a", 0), Ok(Answer::Wait), "node 1 was heard, but not lately");
    assert!(matches!(run.join("1b", 0), Ok(Answer::Place(place)) if place.round == 0), "no restart is spent");
}

#[test]
fn the_user_stops_all_nodes_from_any() {
    for interrupt in Interrupt::BY_SIGNAL {
        let mut running = run(2, 3);
        running.begin(&["0a", "1a"], 0);
        running.report("1a", 0, Report::Stopped(interrupt));
        assert_eq!(running.ending("0a", 0), Ending::Stopped(interrupt));
        // One that was started again may not know yet which round it has joined.
        let mut later = run(2, 3);
        assert_eq!(later.join("1a", 2), Ok(Answer::Wait));
        assert!(matches!(later.join("0a", 0), Ok(Answer::Place(place)) if place.round == 2));
        later.report("0a", 0, Report::Stopped(interrupt));
        assert_eq!(later.ending("1a", 2), Ending::Stopped(interrupt));
        let mut joining = run(2, 3);
        assert_eq!(joining.join("0a", 0), Ok(Answer::Wait));
        joining.report("1a", 0, Report::Stopped(interrupt));
        assert_eq!(joining.ending("0a", 0), Ending::Stopped(interrupt));
    }
}

#[test]
fn an_agent_that_has_lost_sight_of_the_coordinator_joins_again() {
    let mut run = run(2, 1);
    run.begin(&["0a", "1a"], 0);
    assert_eq!(run.join("1a", 1), Ok(Answer::Wait));
    assert_eq!(run.again("0a", 0).message, "it lost sight of node 0");
    assert!(matches!(run.join("0a", 1), Ok(Answer::Place(place)) if place.round == 1));
}

#[test]
fn a_coordinator_that_was_started_again_goes_on_counting() {
    let mut fresh = run(2, 2);
    assert_eq!(fresh.join("0b", 0), Ok(Answer::Wait));
    assert_eq!(fresh.beat("1a", 1), Ok(Answer::Word(Word::Again(None))), "it knows nothing of that round");
    assert!(matches!(fresh.join("1a", 2), Ok(Answer::Place(place)) if place.round == 2));
    // The budget is counted too.
    let mut fresh = run(2, 1);
    let Ok(Answer::Word(Word::Over(Ending::Failed { cause, .. }))) = fresh.join("1a", 2) else { panic!() };
    assert_eq!(cause.to_string(), "node 0 failed in attempt 1: its dslaunch ended");
}

#[test]
fn the_end_is_known_when_all_that_live_have_left() {
    let mut run = run(3, 0);
    run.begin(&["0a", "1a", "2a"], 0);
    assert_eq!(run.call("1a", 0, Call::Leave), Ok(Answer::Noted));
    run.report("1a", 0, Report::Stopped(Interrupt::Interrupt));
    assert_eq!(run.coordinator.known_by(), Some(run.now + SILENCE));
    for agent in ["0a", "1a"] {
        assert_eq!(run.call(agent, 0, Call::Leave), Ok(Answer::Noted));
    }
    // Node 2 may be dead.
    assert_eq!(run.coordinator.known_by(), Some(run.now + SILENCE));
    run.coordinator.hung_up(&caller("2a", 0), HangUp::Closed, run.now);
    assert_eq!(run.coordinator.known_by(), Some(run.now + SILENCE_AFTER_HANGUP));
    assert_eq!(run.call("2a", 0, Call::Leave), Ok(Answer::Noted));
    assert_eq!(run.coordinator.known_by(), None);
}

#[test]
fn many_nodes_join_in_linear_time() {
    // With a look at every node for each that joins, this would take minutes.
    let num_nodes = 100_000;
    let mut run = run(num_nodes, 0);
    let since = Instant::now();
    let agents: Vec<_> = (0..num_nodes).map(|node| format!("{node}a")).collect();
    for agent in &agents {
        let offer = Offer { num_nodes, num_workers: 8, meeting: None };
        run.call(agent, 0, Call::Join(offer)).unwrap();
    }
    assert_eq!(run.coordinator.generation(), 1, "those who wait are woken once");
    let Ok(Answer::Place(place)) = run.join(&agents[1000], 0) else { panic!() };
    assert_eq!((place.first_rank, place.world_size), (8000, 800_000));
    assert!(since.elapsed() < Duration::from_secs(10), "{:?}", since.elapsed());
}
