use super::*;

const SECOND: Duration = Duration::from_secs(1);

struct Clock {
    start: Instant,
    state: Rendezvous,
    tickets: Ticket,
}

fn attempt(world_size: usize) -> Clock {
    let start = Instant::now();
    Clock { start, state: Rendezvous::new(2, world_size, 60 * SECOND, start), tickets: 0 }
}

impl Clock {
    /// Calls with the next ticket (counted from 1), `at` seconds after the start.
    fn call(&mut self, at: u32, attempt: u32, rank: usize, call: Call) -> Replies {
        self.tickets += 1;
        self.state.call(self.tickets, Caller { attempt, rank }, call, self.start + at * SECOND)
    }

    fn register(&mut self, rank: usize) -> Replies {
        self.call(0, 2, rank, Call::Register { pid: 100 + rank as u32 })
    }

    fn barrier(&mut self, at: u32, rank: usize) -> Replies {
        self.call(at, 2, rank, Call::Barrier { name: "save".into(), timeout: 10 * SECOND })
    }

    fn put(&mut self, value: &[u8]) -> Replies {
        self.call(0, 2, 0, Call::Put { key: "id".into(), value: value.into() })
    }

    fn get(&mut self, rank: usize) -> Replies {
        self.call(0, 2, rank, Call::Get { key: "id".into(), timeout: SECOND })
    }

    fn expire(&mut self, at: u32) -> Vec<(Ticket, String)> {
        let replies = self.state.expire(self.start + at * SECOND);
        let mut texts: Vec<_> = replies.into_iter().map(|(ticket, reply)| (ticket, text(reply))).collect();
        texts.sort();
        texts
    }
}

fn text(reply: Reply) -> String {
    reply.expect_err("a refusal").to_string()
}

fn done(tickets: impl IntoIterator<Item = Ticket>) -> Replies {
    tickets.into_iter().map(|ticket| (ticket, Ok(Answer::Done))).collect()
}

#[test]
fn time_in_which_nobody_ran_does_not_count() {
    let mut clock = attempt(3);
    clock.register(2);
    for at in [1, 2, 3] {
        clock.state.tick(clock.start + at * SECOND);
    }
    // Stopped for 200 s, longer than the 60 that ranks have.
    clock.state.tick(clock.start + 204 * SECOND);
    assert_eq!(clock.expire(204), []);
    assert_eq!(clock.state.overdue(clock.start + 204 * SECOND), None);
    for at in 205..=260 {
        clock.state.tick(clock.start + at * SECOND);
    }
    assert_eq!(clock.expire(260).len(), 1, "60 s in which it ran");
}

#[test]
fn registration_is_answered_when_all_have_come() {
    let mut clock = attempt(3);
    assert_eq!(clock.register(2), []);
    assert_eq!(clock.register(0), []);
    assert_eq!(clock.state.missing(), [1]);
    assert_eq!(clock.register(1), done([2, 3, 1]), "in order of ranks");
    assert_eq!(clock.state.overdue(clock.start + 60 * SECOND), None);
    assert_eq!(clock.state.next_deadline(), None);
}

#[test]
fn the_deadline_names_the_missing_ranks() {
    let mut clock = attempt(8);
    for rank in [0, 1, 2, 4, 6, 7] {
        clock.register(rank);
    }
    assert_eq!(clock.state.next_deadline(), Some(clock.start + 60 * SECOND));
    assert_eq!(clock.expire(59), []);
    let message = "rendezvous: 6/8 after 60s, missing ranks 3, 5".to_owned();
    assert_eq!(clock.state.overdue(clock.start + 59 * SECOND), None);
    assert_eq!(clock.state.overdue(clock.start + 60 * SECOND), Some((vec![3, 5], message.clone())));
    assert_eq!(clock.expire(60), (1..=6).map(|ticket| (ticket, message.clone())).collect::<Vec<_>>());
    assert_eq!(clock.expire(61), []);
}

#[test]
fn a_call_from_another_attempt_or_an_unknown_rank_changes_nothing() {
    let mut clock = attempt(1);
    let refused = |replies: Replies| text(replies.into_iter().next().unwrap().1);
    for other in [1, 3] {
        let reply = refused(clock.call(0, other, 0, Call::Register { pid: 1 }));
        assert_eq!(reply, format!("this is attempt 2, the call is from attempt {other}"));
    }
    assert_eq!(refused(clock.register(1)), "rank 1 is outside the job's 1 ranks");
    refused(clock.call(0, 1, 0, Call::Put { key: "id".into(), value: vec![1] }));
    assert_eq!(clock.state.missing(), [0]);
    assert_eq!(clock.put(&[2]), done([5]), "the key is still free");
}

#[test]
fn a_rank_registers_once_but_may_repeat_itself() {
    let mut clock = attempt(2);
    assert_eq!(clock.register(0), []);
    let stranger = clock.call(0, 2, 0, Call::Register { pid: 7 });
    assert_eq!(stranger, [(2, Err(Refusal::RankTaken { rank: 0, pid: 100 }))]);
    assert_eq!(clock.register(0), [(1, Err(Refusal::Superseded))]);
    assert_eq!(clock.register(1), done([3, 4]));
    assert_eq!(clock.register(0), done([5]), "the reply was lost");
}

#[test]
fn a_barrier_opens_for_all_and_can_be_used_again() {
    let mut clock = attempt(2);
    for round in [0, 2] {
        assert_eq!(clock.barrier(0, 1), []);
        assert_eq!(clock.barrier(0, 0), done([2 + round, 1 + round]));
    }
    assert_eq!(clock.state.next_deadline(), None);
}

#[test]
fn a_barrier_times_out_for_the_one_that_waited_too_long() {
    let mut clock = attempt(3);
    clock.barrier(0, 0);
    clock.barrier(5, 2);
    let message = "barrier \"save\": 2/3 after 10s, missing rank 1".to_owned();
    assert_eq!(clock.expire(10), [(1, message)]);
    let message = "barrier \"save\": 1/3 after 10s, missing ranks 0, 1".to_owned();
    assert_eq!(clock.expire(15), [(2, message)]);
}

#[test]
fn a_key_is_written_once_and_read_by_all() {
    let mut clock = attempt(3);
    assert_eq!(clock.get(1), []);
    assert_eq!(clock.get(2), []);
    let value = || Ok(Answer::Value(vec![9]));
    assert_eq!(clock.put(&[9]), [(1, value()), (2, value()), (3, Ok(Answer::Done))]);
    assert_eq!(clock.get(0), [(4, value())]);
    assert_eq!(clock.put(&[9]), done([5]), "a repeated call");
    assert_eq!(clock.put(&[8]), [(6, Err(Refusal::KeyTaken { key: "id".into() }))]);
}

#[test]
fn a_key_that_nobody_puts_times_out() {
    let mut clock = attempt(2);
    clock.get(1);
    assert_eq!(clock.expire(1), [(1, "key \"id\": no rank has put it after 1s".to_owned())]);
    assert_eq!(clock.put(&[9]), done([2]));
}

#[test]
fn a_wait_without_end_is_cut() {
    let mut clock = attempt(2);
    clock.call(0, 2, 0, Call::Get { key: "id".into(), timeout: Duration::MAX });
    assert_eq!(clock.state.next_deadline(), Some(clock.start + WAIT_MAX));
}
