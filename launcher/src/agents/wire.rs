//! Converts the agents' messages to protobuf and back. Pure.

use proto::agents::{self, exit, heartbeat_reply, join_reply, over, report_request};
use tonic::Status;

use super::coordinator::Caller;
use super::{Cause, Ending, Meeting, NodePlace, Offer, Report, Word};
use crate::process::exit::Exit;
use crate::process::signals::Interrupt;

impl From<Caller> for agents::Caller {
    fn from(caller: Caller) -> Self {
        let Caller { run_id, node_rank, incarnation, round } = caller;
        Self { run_id, node_rank, incarnation, round }
    }
}

/// Reads the caller.
pub fn caller(caller: Option<agents::Caller>) -> Result<Caller, Status> {
    let agents::Caller { run_id, node_rank, incarnation, round } = caller.ok_or_else(|| incomplete("who calls"))?;
    Ok(Caller { run_id, node_rank, incarnation, round })
}

/// Makes the request of an agent that joins.
pub fn join_request(caller: Caller, offer: Offer) -> agents::JoinRequest {
    let master = offer.meeting.map(master);
    let Offer { num_nodes, num_workers, .. } = offer;
    agents::JoinRequest { caller: Some(caller.into()), num_nodes, num_workers, master }
}

/// Reads the offer of the agent.
pub fn offer(request: &agents::JoinRequest) -> Result<Offer, Status> {
    let meeting = request.master.clone().map(meeting).transpose()?;
    Ok(Offer { num_nodes: request.num_nodes, num_workers: request.num_workers, meeting })
}

fn master(meeting: Meeting) -> agents::Master {
    agents::Master { addr: meeting.addr, port: meeting.port.into() }
}

fn meeting(master: agents::Master) -> Result<Meeting, Status> {
    let port = master.port.try_into().map_err(|_| incomplete("a port below 65536"))?;
    Ok(Meeting { addr: master.addr, port })
}

/// A node's place.
pub fn place_answer(place: NodePlace) -> join_reply::Answer {
    let NodePlace { round, first_rank, world_size, max_restarts, meeting } = place;
    join_reply::Answer::Place(agents::Place {
        round,
        first_rank,
        world_size,
        max_restarts,
        master: Some(master(meeting)),
    })
}

/// The same, read.
pub fn place(place: agents::Place) -> Result<NodePlace, Status> {
    let agents::Place { round, first_rank, world_size, max_restarts, master } = place;
    let meeting = meeting(master.ok_or_else(|| incomplete("where rank 0 listens"))?)?;
    Ok(NodePlace { round, first_rank, world_size, max_restarts, meeting })
}

impl From<Word> for heartbeat_reply::Answer {
    fn from(word: Word) -> Self {
        match word {
            Word::Again(cause) => Self::Again(agents::Again { cause: cause.map(Into::into) }),
            Word::Over(ending) => Self::Over(ending.into()),
        }
    }
}

/// Reads the reason that the round has ended.
pub fn again(again: agents::Again) -> Word {
    Word::Again(again.cause.map(cause))
}

impl From<Ending> for agents::Over {
    fn from(ending: Ending) -> Self {
        let ending = match ending {
            Ending::Done => over::Ending::Done(agents::Done {}),
            Ending::Failed { cause, reason } => {
                over::Ending::Failed(agents::Failed { cause: Some(cause.into()), reason })
            }
            Ending::Stopped(interrupt) => over::Ending::Stopped(interrupt.into()),
            Ending::Missing(sentence) => over::Ending::Missing(sentence),
        };
        Self { ending: Some(ending) }
    }
}

/// How the run has ended.
pub fn ending(over: agents::Over) -> Result<Ending, Status> {
    match over.ending {
        Some(over::Ending::Done(agents::Done {})) => Ok(Ending::Done),
        Some(over::Ending::Failed(agents::Failed { cause: Some(failed), reason })) => {
            Ok(Ending::Failed { cause: cause(failed), reason })
        }
        Some(over::Ending::Stopped(stopped)) => Ok(Ending::Stopped(interrupt(stopped)?)),
        Some(over::Ending::Missing(sentence)) => Ok(Ending::Missing(sentence)),
        Some(over::Ending::Failed(_)) | None => Err(incomplete("how the run ended")),
    }
}

impl From<Cause> for agents::Cause {
    fn from(cause: Cause) -> Self {
        let Cause { node, rank, exit, message, round } = cause;
        let exit = exit.map(|exit| match exit {
            Exit::Code(code) => agents::Exit { how: Some(exit::How::Code(code)), core_dumped: false },
            Exit::Signal { number, core_dumped } => agents::Exit { how: Some(exit::How::Signal(number)), core_dumped },
        });
        Self { node, rank, exit, message, round }
    }
}

fn cause(cause: agents::Cause) -> Cause {
    let agents::Cause { node, rank, exit, message, round } = cause;
    let exit = exit.and_then(|agents::Exit { how, core_dumped }| {
        how.map(|how| match how {
            exit::How::Code(code) => Exit::Code(code),
            exit::How::Signal(number) => Exit::Signal { number, core_dumped },
        })
    });
    Cause { node, rank, exit, message, round }
}

impl From<Interrupt> for agents::Stopped {
    fn from(interrupt: Interrupt) -> Self {
        Self { signal: interrupt.signal() as i32 }
    }
}

fn interrupt(stopped: agents::Stopped) -> Result<Interrupt, Status> {
    let known = Interrupt::BY_SIGNAL.into_iter().find(|interrupt| interrupt.signal() as i32 == stopped.signal);
    known.ok_or_else(|| incomplete("a signal that stops a run"))
}

impl From<Report> for report_request::Event {
    fn from(report: Report) -> Self {
        match report {
            Report::Done => Self::Done(agents::Done {}),
            Report::Failed(cause) => Self::Failed(cause.into()),
            Report::Stopped(interrupt) => Self::Stopped(interrupt.into()),
        }
    }
}

/// How a round goes on a node.
pub fn report(event: Option<report_request::Event>) -> Result<Report, Status> {
    match event {
        Some(report_request::Event::Done(agents::Done {})) => Ok(Report::Done),
        Some(report_request::Event::Failed(failed)) => Ok(Report::Failed(cause(failed))),
        Some(report_request::Event::Stopped(stopped)) => Ok(Report::Stopped(interrupt(stopped)?)),
        None => Err(incomplete("what it reports")),
    }
}

/// A message that lacks what it must have.
pub fn incomplete(what: &str) -> Status {
    Status::invalid_argument(format!("the message does not say {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_read_as_they_were_written() {
        let exits = [None, Some(Exit::Code(3)), Some(Exit::Signal { number: 9, core_dumped: true })];
        let causes = exits.map(|exit| Cause { node: 1, rank: exit.map(|_| 5), exit, message: "m".into(), round: 2 });
        for cause in causes {
            let Word::Again(read) = again(agents::Again { cause: Some(cause.clone().into()) }) else { panic!() };
            assert_eq!(read.as_ref(), Some(&cause));
            let failed = Ending::Failed { cause: cause.clone(), reason: "r".into() };
            assert_eq!(ending(failed.clone().into()).unwrap(), failed);
            assert_eq!(report(Some(Report::Failed(cause.clone()).into())).unwrap(), Report::Failed(cause));
        }
        for interrupt in Interrupt::BY_SIGNAL {
            assert_eq!(ending(Ending::Stopped(interrupt).into()).unwrap(), Ending::Stopped(interrupt));
            assert_eq!(report(Some(Report::Stopped(interrupt).into())).unwrap(), Report::Stopped(interrupt));
        }
        for plain in [Ending::Done, Ending::Missing("n".into())] {
            assert_eq!(ending(plain.clone().into()).unwrap(), plain);
        }
        let met = Meeting { addr: "::1".into(), port: 65_535 };
        let offered = Offer { num_nodes: 2, num_workers: 8, meeting: Some(met.clone()) };
        let who = Caller { run_id: "id".into(), node_rank: 1, incarnation: "x".into(), round: 4 };
        let request = join_request(who.clone(), offered.clone());
        assert_eq!(offer(&request).unwrap(), offered);
        assert_eq!(caller(request.caller).unwrap(), who);
        let placed = NodePlace { round: 1, first_rank: 8, world_size: 16, max_restarts: 3, meeting: met };
        let join_reply::Answer::Place(sent) = place_answer(placed.clone()) else { panic!() };
        assert_eq!(place(sent).unwrap(), placed);
    }

    #[test]
    fn what_is_incomplete_is_refused() {
        assert!(caller(None).is_err() && report(None).is_err());
        assert!(ending(agents::Over { ending: None }).is_err());
        assert!(ending(agents::Over { ending: Some(over::Ending::Stopped(agents::Stopped { signal: 9 })) }).is_err());
        let far = agents::Master { addr: "a".into(), port: 65_536 };
        assert!(place(agents::Place { master: Some(far), ..Default::default() }).is_err());
    }
}
