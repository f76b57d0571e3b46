//! The control service: a thin adapter from gRPC to [`rendezvous`](crate::ranks::rendezvous) and to the job's notices.
//!
//! Owns the waiting calls. It decides nothing: rendezvous says who waits and for what, and the job says what a notice means.
//! One server per attempt, behind a [hatch] of its own, so that nobody but this attempt's ranks reaches it (and
//! a rank of another would be refused by its attempt number if it did).

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use proto::control::control_server::{Control, ControlServer};
use proto::control::{self, get_window_reply, report_request};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{sleep_until, timeout};
use tonic::{Code, Request, Response, Status};

use crate::process::timer::SLICE;
use crate::ranks::hatch;
use crate::ranks::notice::{Notice, Receipt, WindowAsk};
use crate::ranks::rendezvous::{Answer, Call, Caller, Refusal, Rendezvous, Replies, Reply, Ticket};
use crate::supervise::{Event, Kind};

/// Calls of one rank at a time. It makes one after the other; those that it has given up may still be here.
const CALLS: u32 = 64;

/// A running control service. Dropping it takes nobody any more.
#[derive(Debug)]
pub struct Server {
    waiting_calls: Arc<Mutex<WaitingCalls>>,
    task: JoinHandle<Result<(), tonic::transport::Error>>,
}

impl Server {
    /// Serves whoever has the descriptor that comes with it, the outside of its hatch ([`proto::dial`]): for the ranks to
    /// inherit. Needs a tokio runtime.
    pub fn start(rendezvous: Rendezvous, notices: mpsc::UnboundedSender<Notice>) -> io::Result<(Self, OwnedFd)> {
        let (connections, outside) = hatch::connections()?;
        let waiting_calls = Arc::new(Mutex::new(WaitingCalls {
            rendezvous,
            tickets: 0,
            waiting: HashMap::new(),
            reports: HashMap::new(),
        }));
        let service = ControlServer::new(Service { waiting_calls: waiting_calls.clone(), notices });
        let serve =
            tonic::transport::Server::builder().max_concurrent_streams(CALLS).serve_with_incoming(service, connections);
        Ok((Self { waiting_calls, task: tokio::spawn(serve) }, outside))
    }

    /// The event of ranks that have not registered although the time is over.
    pub fn overdue(&self) -> Option<Event> {
        lock(&self.waiting_calls).overdue()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The rendezvous and those who wait at it.
#[derive(Debug)]
struct WaitingCalls {
    rendezvous: Rendezvous,
    /// The last ticket drawn.
    tickets: Ticket,
    /// Calls that have not been answered. A caller that has hung up is answered into the void.
    waiting: HashMap<Ticket, oneshot::Sender<Reply>>,
    /// The number of each rank's latest report.
    reports: HashMap<usize, u64>,
}

impl WaitingCalls {
    fn call(&mut self, caller: Caller, call: Call) -> oneshot::Receiver<Reply> {
        let (sender, reply) = oneshot::channel();
        self.tickets += 1;
        self.waiting.insert(self.tickets, sender);
        let replies = self.rendezvous.call(self.tickets, caller, call, Instant::now());
        self.send(replies);
        reply
    }

    /// Whether this report of `rank` has not come before.
    fn is_new(&mut self, rank: usize, number: u64) -> bool {
        let latest = self.reports.entry(rank).or_default();
        let is_new = number == 0 || number > *latest;
        *latest = number.max(*latest);
        is_new
    }

    fn overdue(&self) -> Option<Event> {
        let overdue = self.rendezvous.overdue(Instant::now());
        overdue.map(|(missing, message)| Event::RendezvousTimedOut { missing, message })
    }

    fn expire(&mut self) {
        let replies = self.rendezvous.expire(Instant::now());
        self.send(replies);
    }

    fn send(&mut self, replies: Replies) {
        for (ticket, reply) in replies {
            if let Some(sender) = self.waiting.remove(&ticket) {
                let _ = sender.send(reply);
            }
        }
    }
}

fn lock(waiting_calls: &Mutex<WaitingCalls>) -> MutexGuard<'_, WaitingCalls> {
    waiting_calls.lock().expect("no code panics while it holds the waiting_calls")
}

struct Service {
    waiting_calls: Arc<Mutex<WaitingCalls>>,
    notices: mpsc::UnboundedSender<Notice>,
}

impl Service {
    /// Puts a call to the rendezvous and waits for its reply.
    async fn ask(&self, caller: Option<control::Caller>, call: Call) -> Result<Answer, Status> {
        let caller = known(caller)?;
        let mut reply = lock(&self.waiting_calls).call(caller, call);
        loop {
            let deadline = lock(&self.waiting_calls).rendezvous.next_deadline();
            let over = async {
                match deadline {
                    Some(deadline) => sleep_until(deadline.min(Instant::now() + SLICE).into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                reply = &mut reply => return reply.map_err(|_| Status::aborted("the attempt is over"))?.map_err(status),
                () = over => {
                    let mut waiting_calls = lock(&self.waiting_calls);
                    waiting_calls.rendezvous.tick(Instant::now());
                    // Before the ranks that did come are told, and fail because of it.
                    waiting_calls.overdue().into_iter().for_each(|event| self.tell(Notice::Supervise(event)));
                    waiting_calls.expire();
                }
            }
        }
    }

    /// The rank that calls, if it belongs to this attempt.
    fn rank(&self, caller: Option<control::Caller>) -> Result<usize, Status> {
        let caller = known(caller)?;
        lock(&self.waiting_calls).rendezvous.admit(caller).map_err(status)?;
        Ok(caller.rank)
    }

    fn tell(&self, notice: Notice) {
        // Nobody listens any more when the attempt is over.
        let _ = self.notices.send(notice);
    }
}

#[tonic::async_trait]
impl Control for Service {
    async fn register(
        &self,
        request: Request<control::RegisterRequest>,
    ) -> Result<Response<control::RegisterReply>, Status> {
        let control::RegisterRequest { caller, pid, version } = request.into_inner();
        if version != control::VERSION {
            return Err(Status::failed_precondition(format!(
                "dslaunch speaks version {} of the control protocol, dslaunch-rank version {version}: both must be of one build",
                control::VERSION
            )));
        }
        self.ask(caller, Call::Register { pid }).await?;
        // All are answered at once: one of them is told of.
        if caller.is_some_and(|caller| caller.rank == 0) {
            self.tell(Notice::Assembled);
        }
        let world_size = lock(&self.waiting_calls).rendezvous.world_size() as u32;
        Ok(Response::new(control::RegisterReply { world_size, version: control::VERSION }))
    }

    async fn barrier(
        &self,
        request: Request<control::BarrierRequest>,
    ) -> Result<Response<control::BarrierReply>, Status> {
        let control::BarrierRequest { caller, name, timeout_ms } = request.into_inner();
        self.ask(caller, Call::Barrier { name, timeout: Duration::from_millis(timeout_ms) }).await?;
        Ok(Response::new(control::BarrierReply {}))
    }

    async fn put_key(
        &self,
        request: Request<control::PutKeyRequest>,
    ) -> Result<Response<control::PutKeyReply>, Status> {
        let control::PutKeyRequest { caller, key, value } = request.into_inner();
        self.ask(caller, Call::Put { key, value }).await?;
        Ok(Response::new(control::PutKeyReply {}))
    }

    async fn get_key(
        &self,
        request: Request<control::GetKeyRequest>,
    ) -> Result<Response<control::GetKeyReply>, Status> {
        let control::GetKeyRequest { caller, key, timeout_ms } = request.into_inner();
        match self.ask(caller, Call::Get { key, timeout: Duration::from_millis(timeout_ms) }).await? {
            Answer::Value(value) => Ok(Response::new(control::GetKeyReply { value })),
            Answer::Done => Err(Status::internal("a get is answered with a value")),
        }
    }

    async fn get_window(
        &self,
        request: Request<control::GetWindowRequest>,
    ) -> Result<Response<control::GetWindowReply>, Status> {
        let control::GetWindowRequest { caller, position, timeout_ms } = request.into_inner();
        self.rank(caller)?;
        let (ask, mut answer) = WindowAsk::new(position);
        self.tell(Notice::Window(ask));
        let answer = match timeout(Duration::from_millis(timeout_ms), answer.recv()).await {
            Ok(Some(Some(window))) => get_window_reply::Answer::Window(window),
            Ok(Some(None)) => get_window_reply::Answer::Failed(control::WindowFailed {}),
            Ok(None) => return Err(Status::aborted("the attempt is over")),
            Err(_) => return Err(Status::deadline_exceeded(format!("the row at {position} is not prepared yet"))),
        };
        Ok(Response::new(control::GetWindowReply { answer: Some(answer) }))
    }

    async fn heartbeat(
        &self,
        request: Request<control::HeartbeatRequest>,
    ) -> Result<Response<control::HeartbeatReply>, Status> {
        let control::HeartbeatRequest { caller, step, phase: _ } = request.into_inner();
        let rank = self.rank(caller)?;
        self.tell(Notice::Supervise(Event::Heartbeat { rank, step }));
        Ok(Response::new(control::HeartbeatReply {}))
    }

    async fn report(&self, request: Request<control::ReportRequest>) -> Result<Response<control::ReportReply>, Status> {
        let control::ReportRequest { caller, event, number } = request.into_inner();
        let rank = self.rank(caller)?;
        let notice = match event {
            Some(report_request::Event::Started(started)) => Notice::Started(started),
            Some(report_request::Event::Step(step)) => Notice::Step(step),
            Some(report_request::Event::Skipped(skipped)) => Notice::Skipped(skipped),
            Some(report_request::Event::Eval(eval)) => Notice::Eval(eval),
            Some(report_request::Event::Samples(samples)) => Notice::Samples(samples),
            Some(report_request::Event::Checkpoint(checkpoint)) => Notice::Checkpoint(checkpoint),
            Some(report_request::Event::Finished(report)) => Notice::Finished { rank, report },
            None => return Err(Status::invalid_argument("the report is empty")),
        };
        {
            // Under the lock: the receipt of a repeat comes after the notice, whichever call comes first.
            let mut calls = lock(&self.waiting_calls);
            if calls.is_new(rank, number) {
                self.tell(notice);
            }
        }
        // A checkpoint or snapshot after it may outlive this launcher, and the steps before it are not reported again.
        let (receipt, acknowledgement) = Receipt::new();
        self.tell(Notice::Receipt(receipt));
        if acknowledgement.came().await {
            Ok(Response::new(control::ReportReply {}))
        } else {
            Err(Status::aborted("the attempt is over"))
        }
    }

    async fn failed(&self, request: Request<control::FailedRequest>) -> Result<Response<control::FailedReply>, Status> {
        let request = request.into_inner();
        let rank = self.rank(request.caller)?;
        let kind = Kind::from(request.kind());
        let (step, message) = (request.step, request.message);
        self.tell(Notice::Supervise(Event::FailedReported { rank, kind, step, message }));
        Ok(Response::new(control::FailedReply {}))
    }
}

fn known(caller: Option<control::Caller>) -> Result<Caller, Status> {
    let caller = caller.ok_or_else(|| Status::invalid_argument("the call does not say who calls"))?;
    Ok(Caller { attempt: caller.attempt, rank: caller.rank as usize })
}

fn status(refusal: Refusal) -> Status {
    let code = match refusal {
        Refusal::WrongAttempt { .. } => Code::FailedPrecondition,
        Refusal::NoSuchRank { .. } => Code::InvalidArgument,
        Refusal::RankTaken { .. } | Refusal::KeyTaken { .. } => Code::AlreadyExists,
        Refusal::Superseded => Code::Aborted,
        Refusal::TimedOut(_) => Code::DeadlineExceeded,
    };
    Status::new(code, refusal.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    use proto::control::control_client::ControlClient;
    use proto::dial;
    use tonic::transport::Channel;

    type Client = ControlClient<Channel>;

    struct Job {
        server: Server,
        outside: OwnedFd,
        notices: mpsc::UnboundedReceiver<Notice>,
    }

    fn job(world_size: usize, timeout: Duration) -> Job {
        let (sender, mut all) = mpsc::unbounded_channel();
        let rendezvous = Rendezvous::new(2, world_size, timeout, Instant::now());
        let (server, outside) = Server::start(rendezvous, sender).unwrap();
        let (written, notices) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Some(notice) = all.recv().await {
                match notice {
                    Notice::Receipt(receipt) => receipt.acknowledge(),
                    other => drop(written.send(other)),
                }
            }
        });
        Job { server, outside, notices }
    }

    impl Job {
        async fn rank(&self) -> Client {
            ControlClient::new(dial::channel(self.outside.as_raw_fd()).await.unwrap())
        }
    }

    fn caller(attempt: u32, rank: u32) -> Option<control::Caller> {
        Some(control::Caller { attempt, rank })
    }

    fn register(attempt: u32, rank: u32) -> control::RegisterRequest {
        control::RegisterRequest { caller: caller(attempt, rank), pid: 100 + rank, version: control::VERSION }
    }

    fn failed(attempt: u32) -> control::FailedRequest {
        let kind = control::FailureKind::Input.into();
        control::FailedRequest { caller: caller(attempt, 0), kind, step: 3, message: "bad row".into() }
    }

    #[tokio::test]
    async fn a_connection_that_breaks_is_dialled_again_and_nothing_counts_twice() {
        let mut job = job(1, Duration::from_secs(60));
        let (sender, mut connections) = mpsc::unbounded_channel();
        let outside = job.outside.as_raw_fd();
        let dial = move || {
            let stream = dial::dial(outside)?;
            sender.send(stream.try_clone()?).map_err(io::Error::other)?;
            Ok(stream)
        };
        let mut client = ControlClient::new(dial::channel_by(dial).await.unwrap());
        let report = |number| {
            let event = Some(report_request::Event::Started(control::Started { resumed_step: number }));
            control::ReportRequest { caller: caller(2, 0), event, number }
        };
        client.report(report(1)).await.unwrap();
        for number in 2..5 {
            connections.recv().await.unwrap().shutdown(std::net::Shutdown::Both).unwrap();
            while client.report(report(number)).await.is_err() {}
            client.report(report(number)).await.unwrap();
        }
        for number in 1..5 {
            let started = control::Started { resumed_step: number };
            assert_eq!(job.notices.try_recv(), Ok(Notice::Started(started)));
        }
        assert!(job.notices.try_recv().is_err());
    }

    #[tokio::test]
    async fn once_the_attempt_is_over_nobody_is_reached() {
        let Job { server, outside, notices } = job(1, Duration::from_secs(60));
        drop((server, notices));
        // The runtime ends the task when it comes to it.
        while dial::channel(outside.as_raw_fd()).await.is_ok() {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn another_attempt_is_a_failed_precondition_and_changes_nothing() {
        let mut job = job(1, Duration::from_secs(60));
        let mut client = job.rank().await;
        let statuses =
            [client.register(register(1, 0)).await.unwrap_err(), client.failed(failed(3)).await.unwrap_err()];
        for status in statuses {
            assert_eq!(status.code(), Code::FailedPrecondition);
        }
        assert_eq!(client.failed(control::FailedRequest::default()).await.unwrap_err().code(), Code::InvalidArgument);
        assert_eq!(lock(&job.server.waiting_calls).rendezvous.missing(), [0]);
        assert!(job.notices.try_recv().is_err());
    }

    #[tokio::test]
    async fn a_rank_of_another_version_is_refused_by_name() {
        let job = job(1, Duration::from_secs(60));
        let mut client = job.rank().await;
        let other = control::RegisterRequest { version: 0, ..register(2, 0) };
        let status = client.register(other).await.unwrap_err();
        assert_eq!(status.code(), Code::FailedPrecondition);
        let told = format!(
            "dslaunch speaks version {} of the control protocol, dslaunch-rank version 0: both must be of one build",
            control::VERSION
        );
        assert_eq!(status.message(), told);
        assert_eq!(lock(&job.server.waiting_calls).rendezvous.missing(), [0], "it changes nothing");
        assert_eq!(client.register(register(2, 0)).await.unwrap().into_inner().version, control::VERSION);
    }

    #[tokio::test]
    async fn ranks_meet_and_share_a_key() {
        let job = job(2, Duration::from_secs(60));
        let (mut zero, mut one) = (job.rank().await, job.rank().await);
        let (a, b) = tokio::join!(zero.register(register(2, 0)), one.register(register(2, 1)));
        assert_eq!((a.unwrap().into_inner().world_size, b.unwrap().into_inner().world_size), (2, 2));
        let barrier = |rank| control::BarrierRequest { caller: caller(2, rank), name: "a".into(), timeout_ms: 60_000 };
        let (a, b) = tokio::join!(zero.barrier(barrier(0)), one.barrier(barrier(1)));
        assert!(a.is_ok() && b.is_ok());
        let get = control::GetKeyRequest { caller: caller(2, 1), key: "id".into(), timeout_ms: 60_000 };
        let put = control::PutKeyRequest { caller: caller(2, 0), key: "id".into(), value: vec![1, 2] };
        let (got, put) = tokio::join!(one.get_key(get), zero.put_key(put));
        assert_eq!(got.unwrap().into_inner().value, [1, 2]);
        assert!(put.is_ok());
    }

    #[tokio::test]
    async fn a_wait_that_is_over_names_the_missing_ranks() {
        let mut job = job(3, Duration::from_millis(20));
        let status = job.rank().await.register(register(2, 1)).await.unwrap_err();
        assert_eq!(status.code(), Code::DeadlineExceeded);
        let message = "rendezvous: 1/3 after 0.02s, missing ranks 0, 2";
        assert_eq!(status.message(), message);
        let event = Event::RendezvousTimedOut { missing: vec![0, 2], message: message.into() };
        assert_eq!(job.notices.try_recv(), Ok(Notice::Supervise(event.clone())), "the job knows before the rank does");
        assert_eq!(job.server.overdue(), Some(event));
        let barrier = control::BarrierRequest { caller: caller(2, 0), name: "a".into(), timeout_ms: 1 };
        let status = job.rank().await.barrier(barrier).await.unwrap_err();
        assert_eq!(status.message(), "barrier \"a\": 1/3 after 0.001s, missing ranks 1, 2");
    }

    #[tokio::test]
    async fn a_report_is_taken_once_it_is_written_down_again_or_not() {
        let (sender, mut notices) = mpsc::unbounded_channel();
        let rendezvous = Rendezvous::new(2, 1, Duration::from_secs(60), Instant::now());
        let (_server, outside) = Server::start(rendezvous, sender).unwrap();
        let event = Some(report_request::Event::Step(control::StepMetrics { step: 1, ..Default::default() }));
        let report = control::ReportRequest { caller: caller(2, 0), event, number: 1 };
        let mut client = ControlClient::new(dial::channel(outside.as_raw_fd()).await.unwrap());
        let (mut again, repeated) = (client.clone(), report.clone());
        let first = tokio::spawn(async move { client.report(report).await.is_ok() });
        let Some(Notice::Step(_)) = notices.recv().await else { panic!("a step") };
        let Some(Notice::Receipt(receipt)) = notices.recv().await else { panic!("a receipt") };
        let second = tokio::spawn(async move { again.report(repeated).await });
        let Some(Notice::Receipt(unwritten)) = notices.recv().await else { panic!("a receipt and no step") };
        assert!(!first.is_finished() && !second.is_finished(), "not written yet");
        receipt.acknowledge();
        assert!(first.await.unwrap());
        drop(unwritten);
        assert_eq!(second.await.unwrap().unwrap_err().code(), Code::Aborted, "the attempt is over");
    }

    #[tokio::test]
    async fn a_rank_that_waits_for_rows_gets_an_answer_or_asks_again() {
        let mut job = job(1, Duration::from_secs(60));
        let client = job.rank().await;
        let ask = |timeout_ms| {
            let request = control::GetWindowRequest { caller: caller(2, 0), position: 40, timeout_ms };
            let mut client = client.clone();
            tokio::spawn(async move { client.get_window(request).await })
        };
        let late = ask(1).await.unwrap().unwrap_err();
        assert_eq!((late.code(), late.message()), (Code::DeadlineExceeded, "the row at 40 is not prepared yet"));
        let Some(Notice::Window(gone)) = job.notices.recv().await else { panic!("an ask") };
        assert!(gone.is_gone());
        let window = control::Window { number: 3, pass: 1, first_position: 32 };
        for answer in [Some(window), None] {
            let asked = ask(60_000);
            let Some(Notice::Window(waiting)) = job.notices.recv().await else { panic!("an ask") };
            assert!(waiting.position == 40 && !waiting.is_gone());
            waiting.answer(answer);
            let expected = answer
                .map_or(get_window_reply::Answer::Failed(control::WindowFailed {}), get_window_reply::Answer::Window);
            assert_eq!(asked.await.unwrap().unwrap().into_inner().answer, Some(expected));
        }
    }

    #[tokio::test]
    async fn what_ranks_say_reaches_the_job_in_order() {
        let mut job = job(1, Duration::from_secs(60));
        let mut client = job.rank().await;
        let step = control::StepMetrics { step: 1, loss: 2.5, logged: true, ..Default::default() };
        let event = Some(report_request::Event::Step(step));
        for number in [1, 1] {
            let request = control::ReportRequest { caller: caller(2, 0), event: event.clone(), number };
            client.report(request).await.unwrap();
        }
        client
            .heartbeat(control::HeartbeatRequest { caller: caller(2, 0), step: 2, phase: "load".into() })
            .await
            .unwrap();
        client.failed(failed(2)).await.unwrap();
        let event = Event::FailedReported { rank: 0, kind: Kind::Input, step: 3, message: "bad row".into() };
        assert_eq!(job.notices.recv().await, Some(Notice::Step(step)));
        assert_eq!(job.notices.recv().await, Some(Notice::Supervise(Event::Heartbeat { rank: 0, step: 2 })));
        assert_eq!(job.notices.recv().await, Some(Notice::Supervise(event)));
    }
}
