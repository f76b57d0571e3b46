//! Collectives between the rank processes of one job.
//!
//! Rank code sees three things: a [`World`], the rank's place among all, which has an *arena* of memory from which
//! [`Buffer`]s are allocated; *groups* of ranks that implement [`Collective`]; and [`Work`], the handle of an operation. The
//! crate knows nothing of tensors, meshes or gRPC: the launcher hands a descriptor down, the rank says who it is, and `comm`
//! moves and sums bytes.
//!
//! Backends:
//! - [`shm`]: the ranks of one machine over one memfd. All but `send` finish inside the call.
//! - [`nccl`]: ranks on a GPU each. Calls enqueue, and [`Work::wait`] has the GPU wait rather than the host.
//! - [`SoloWorld`]: one rank, over memory of whatever device it computes on.
//! - [`SoloGroup`]: a group of one, where every operation is the identity.
//!
//! The traits leave room for what is not built here:
//! - **TCP between hosts**: a group whose members are spread over hosts, as reduce-scatter inside the host, an exchange
//!   of slices between hosts, all-gather inside the host; [`Work`] then waits for the transport's thread.
//! - **Sub-groups** are groups: a backend numbers them (`slot` here, `ncclCommSplit` there), callers hold `dyn Collective`.
//!
//! Invariants:
//! - COM-1: every rank sees the same bits from a reduction, in every run: over shared memory sums are taken in rank order, and NCCL
//!   has an order of its own that the machine's links, the number of ranks and the size decide.
//! - COM-2: every wait ends: with data, with a [`CommError`] that names the rank to blame, or at its deadline.

pub mod bf16;
mod buffer;
mod collective;
mod cursor;
mod error;
mod flight;
pub mod nccl;
mod op;
mod ranks;
pub mod shm;
mod solo;
mod work;
mod world;

pub use buffer::{Buffer, DType};
pub use collective::{CHANNEL_CAPACITY, Collective, MAX_SCALARS};
pub use error::{CommError, Result, Setting};
pub use flight::{FlightEntry, FlightState};
pub use op::{Channel, Op, OpDesc, ReduceOp};
pub use ranks::{MAX_RANKS, MAX_SLOTS};
pub use shm::{ShmOptions, ShmWorld};
pub use solo::{SoloGroup, SoloWorld};
pub use work::{Pending, Work};
pub use world::{ALIGN_BYTES, UseOf, World};
