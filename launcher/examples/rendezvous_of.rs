//! How long a rendezvous of many ranks takes, for `scripts/bench.sh launch`: `rendezvous_of 1000` prints seconds. Each rank has
//! a connection of its own to the launcher's service, as it would from a process of its own.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "an example tells what it finds")]

use std::time::{Duration, Instant};

use launcher::ranks::rendezvous::Rendezvous;
use launcher::ranks::service::Server;
use launcher::ranks::token::Token;
use proto::control::control_client::ControlClient;
use proto::control::{Caller, RegisterRequest, TOKEN_KEY};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tonic::transport::Endpoint;
use tonic::{Request, Status};

type Failure = Box<dyn std::error::Error + Send + Sync>;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let num_ranks: usize = std::env::args().nth(1).ok_or("usage: rendezvous_of RANKS")?.parse()?;
    let token = Token::random()?;
    let (sender, _notices) = mpsc::unbounded_channel();
    let rendezvous = Rendezvous::new(0, num_ranks, Duration::from_secs(60), Instant::now());
    let server = Server::start(rendezvous, token.clone(), sender).await?;
    let start = Instant::now();
    let mut ranks = JoinSet::new();
    for rank in 0..num_ranks as u32 {
        ranks.spawn(register(server.address(), token.clone(), rank));
    }
    while let Some(registered) = ranks.join_next().await {
        registered??;
    }
    println!("{:.4}", start.elapsed().as_secs_f64());
    Ok(())
}

async fn register(address: String, token: Token, rank: u32) -> Result<(), Failure> {
    let channel = Endpoint::from_shared(format!("http://{address}"))?.connect().await?;
    let token = token.expose().parse::<tonic::metadata::MetadataValue<_>>()?;
    let add_token = move |mut request: Request<()>| -> Result<Request<()>, Status> {
        request.metadata_mut().insert(TOKEN_KEY, token.clone());
        Ok(request)
    };
    let mut client = ControlClient::with_interceptor(channel, add_token);
    client.register(RegisterRequest { caller: Some(Caller { attempt: 0, rank }), pid: rank + 1 }).await?;
    Ok(())
}
