//! A world that counts and delays: every operation is under way when its call returns, and ends on another thread.

#![allow(unsafe_code, reason = "a world vouches for its pointers")]

use std::cell::{Cell, RefCell};
use std::fmt;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;
use std::rc::Rc;
use std::time::Duration;

use comm::{
    Buffer, Channel, Collective, CommError, DType, FlightEntry, Pending, ReduceOp, Result, ShmOptions, UseOf, Work,
    World,
};
use proto::progress::{CALL, Call, CallState, LINE_WORDS};

use crate::transport::{Line, Pace, Ticket, Transport};

/// A rank's place in the world.
pub struct DelayedWorld(Rc<Place>);

/// What a rank's groups and works share.
struct Place {
    rank: usize,
    world_size: usize,
    line: Line,
    num_jobs: Cell<u64>,
    on_arrival: RefCell<Box<dyn Fn()>>,
    page: File,
    /// Gathers that were started and not waited for.
    gathers: RefCell<Vec<u64>>,
    /// Those of them that were not done when the rank went on to compute after it had waited for one.
    beside: RefCell<Vec<u64>>,
    tally: Cell<Tally>,
}

/// What a rank did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Gathers of more than one rank.
    pub gathers: u64,
    /// How often the rank computed, from one gather that it had waited for to its next exchange, while another was under way.
    pub computed_beside_gathers: u64,
    /// How often it waited for something that was under way.
    pub waits: u64,
}

impl DelayedWorld {
    /// Joins. `page`: the progress page, on which whoever waits is to be seen.
    pub fn join(options: ShmOptions, pace: Pace, page: File) -> Result<Self> {
        let (rank, world_size) = (options.rank, options.world_size);
        Ok(Self(Rc::new(Place {
            rank,
            world_size,
            line: Line::connect(options, pace)?,
            num_jobs: Cell::new(0),
            on_arrival: RefCell::new(Box::new(|| ())),
            page,
            gathers: RefCell::default(),
            beside: RefCell::default(),
            tally: Cell::default(),
        })))
    }

    /// What the rank has done so far.
    pub fn tally(&self) -> impl Fn() -> Tally + use<> {
        let place = self.0.clone();
        move || place.tally.get()
    }
}

impl Place {
    fn submit<T: Send + 'static>(&self, job: impl FnOnce(&Transport) -> T + Send + 'static) -> Ticket<T> {
        self.num_jobs.set(self.num_jobs.get() + 1);
        self.line.submit(self.num_jobs.get(), job)
    }

    /// Has something done at once that concerns no other rank.
    fn ask<T: Send + 'static>(&self, job: impl FnOnce(&Transport) -> T + Send + 'static) -> T {
        self.submit(job).wait()
    }

    /// This rank has handed its part of an operation over.
    fn arrive(&self) {
        (self.on_arrival.borrow())();
    }

    fn count(&self, count: impl FnOnce(&mut Tally)) {
        let mut tally = self.tally.get();
        count(&mut tally);
        self.tally.set(tally);
    }

    /// The rank has computed and comes to an exchange.
    fn end_computing(&self) {
        if self.beside.take().iter().any(|&gather| !self.line.is_finished(gather)) {
            self.count(|tally| tally.computed_beside_gathers += 1);
        }
    }

    /// The rank has waited for a gather and goes on to compute.
    fn begin_computing(&self, waited_for: u64) {
        let mut gathers = self.gathers.borrow_mut();
        gathers.retain(|&gather| gather != waited_for);
        *self.beside.borrow_mut() = gathers.iter().copied().filter(|&gather| !self.line.is_finished(gather)).collect();
    }

    /// Whoever waits is seen inside an exchange that it has come to.
    fn assert_seen(&self) {
        let mut word = [0; 8];
        let at = (self.rank * LINE_WORDS + CALL) * 8;
        self.page.read_exact_at(&mut word, at as u64).expect("the page is there");
        assert_eq!(Call::from_word(u64::from_ne_bytes(word)).state, CallState::Arrived);
        self.count(|tally| tally.waits += 1);
    }
}

// SAFETY: memory is that of a `ShmWorld` in the same process, which vouches for it until the process ends, and its addresses
// hold on every thread.
unsafe impl World for DelayedWorld {
    fn rank(&self) -> usize {
        self.0.rank
    }

    fn world_size(&self) -> usize {
        self.0.world_size
    }

    fn alloc(&self, dtype: DType, numel: usize) -> Result<Buffer> {
        self.0.ask(move |transport| transport.world.alloc(dtype, numel))
    }

    fn as_ptr(&self, buf: Buffer) -> NonNull<u8> {
        let address = self.0.ask(move |transport| transport.world.as_ptr(buf).as_ptr().expose_provenance());
        NonNull::new(std::ptr::with_exposed_provenance_mut(address)).expect("it was not null")
    }

    fn world(&self) -> Rc<dyn Collective> {
        self.0.ask(|transport| {
            transport.groups.borrow_mut().insert(0, transport.world.world());
        });
        Rc::new(DelayedGroup { place: self.0.clone(), slot: 0, rank: self.0.rank, size: self.0.world_size })
    }

    fn group(&self, slot: usize, ranks: &[usize], use_of: UseOf) -> Result<Rc<dyn Collective>> {
        let ranks = ranks.to_vec();
        let (rank, size) = self.0.ask(move |transport| {
            let group = transport.world.group(slot, &ranks, use_of)?;
            let place = (group.rank(), group.size());
            transport.groups.borrow_mut().insert(slot, group);
            Ok::<_, CommError>(place)
        })?;
        Ok(Rc::new(DelayedGroup { place: self.0.clone(), slot, rank, size }))
    }

    fn on_arrival(&self, arrived: Box<dyn Fn()>) {
        *self.0.on_arrival.borrow_mut() = arrived;
    }

    fn flight(&self, rank: usize) -> FlightEntry {
        self.0.ask(move |transport| transport.world.flight(rank))
    }

    fn check(&self) -> Result<()> {
        self.0.ask(|transport| transport.world.check())
    }

    fn abort(&self, reason: &str) {
        let reason = reason.to_owned();
        self.0.ask(move |transport| transport.world.abort(&reason));
    }

    fn set_timeout(&self, timeout: Duration) -> Duration {
        self.0.ask(move |transport| transport.world.set_timeout(timeout))
    }

    fn leave(&self) {
        self.0.ask(|transport| transport.world.leave());
    }
}

/// A group whose operations end later.
struct DelayedGroup {
    place: Rc<Place>,
    slot: usize,
    rank: usize,
    size: usize,
}

impl DelayedGroup {
    fn start<T: Send + 'static>(&self, call: impl FnOnce(&dyn Collective) -> T + Send + 'static) -> Ticket<T> {
        self.place.end_computing();
        let slot = self.slot;
        let ticket = self.place.submit(move |transport| {
            let group = transport.groups.borrow()[&slot].clone();
            call(&*group)
        });
        self.place.arrive();
        ticket
    }

    /// An operation on a buffer.
    fn operate(&self, call: impl FnOnce(&dyn Collective) -> Result<Work> + Send + 'static) -> Operation {
        let ticket = self.start(|group| call(group)?.wait());
        Operation { place: self.place.clone(), ticket, is_gather: false }
    }
}

impl Collective for DelayedGroup {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn all_reduce(&self, buf: Buffer, op: ReduceOp) -> Result<Work> {
        Ok(Work::pending(self.operate(move |group| group.all_reduce(buf, op))))
    }

    fn reduce_scatter(&self, buf: Buffer, op: ReduceOp) -> Result<Work> {
        Ok(Work::pending(self.operate(move |group| group.reduce_scatter(buf, op))))
    }

    fn all_gather(&self, buf: Buffer) -> Result<Work> {
        let gather = Operation { is_gather: true, ..self.operate(move |group| group.all_gather(buf)) };
        self.place.gathers.borrow_mut().push(gather.ticket.number());
        self.place.count(|tally| tally.gathers += 1);
        Ok(Work::pending(gather))
    }

    fn all_to_all(&self, buf: Buffer) -> Result<Work> {
        Ok(Work::pending(self.operate(move |group| group.all_to_all(buf))))
    }

    fn broadcast(&self, buf: Buffer, root: usize) -> Result<Work> {
        Ok(Work::pending(self.operate(move |group| group.broadcast(buf, root))))
    }

    fn barrier(&self) -> Result<()> {
        let ticket = self.start(|group| group.barrier());
        self.place.assert_seen();
        ticket.wait()
    }

    fn send(&self, buf: Buffer, to: usize, channel: Channel) -> Result<Work> {
        self.place.end_computing();
        let (slot, number) = (self.slot, self.place.num_jobs.get() + 1);
        let ticket = self.place.submit(move |transport| {
            let group = transport.groups.borrow()[&slot].clone();
            let work = group.send(buf, to, channel)?;
            transport.sent.borrow_mut().insert(number, work);
            Ok(())
        });
        self.place.arrive();
        Ok(Work::pending(Message { place: self.place.clone(), ticket }))
    }

    fn recv(&self, buf: Buffer, from: usize, channel: Channel) -> Result<Work> {
        Ok(Work::pending(self.operate(move |group| group.recv(buf, from, channel))))
    }

    fn all_reduce_scalars(&self, values: &mut [f64], op: ReduceOp) -> Result<()> {
        let mut own = values.to_vec();
        let ticket = self.start(move |group| {
            group.all_reduce_scalars(&mut own, op)?;
            Ok::<_, CommError>(own)
        });
        self.place.assert_seen();
        values.copy_from_slice(&ticket.wait()?);
        Ok(())
    }
}

/// An operation under way.
struct Operation {
    place: Rc<Place>,
    ticket: Ticket<Result<()>>,
    is_gather: bool,
}

impl Pending for Operation {
    fn is_done(&self) -> bool {
        self.ticket.is_done()
    }

    fn wait(self: Box<Self>) -> Result<()> {
        let Operation { place, ticket, is_gather } = *self;
        place.end_computing();
        if !ticket.is_done() {
            place.assert_seen();
        }
        let number = ticket.number();
        ticket.wait()?;
        if is_gather {
            place.begin_computing(number);
        }
        Ok(())
    }
}

/// A message under way. It counts as such until it is waited for.
struct Message {
    place: Rc<Place>,
    ticket: Ticket<Result<()>>,
}

impl Pending for Message {
    fn is_done(&self) -> bool {
        false
    }

    fn wait(self: Box<Self>) -> Result<()> {
        let Message { place, ticket } = *self;
        place.assert_seen();
        let number = ticket.number();
        ticket.wait()?;
        place.ask(move |transport| {
            let work = transport.sent.borrow_mut().remove(&number).expect("it was sent");
            work.wait()
        })
    }
}

impl fmt::Debug for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "operation {} of rank {}", self.ticket.number(), self.place.rank)
    }
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "message {} of rank {}", self.ticket.number(), self.place.rank)
    }
}
