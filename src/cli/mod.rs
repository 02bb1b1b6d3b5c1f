//! What the command `berth` does: everything goes over the CRI socket, as a
//! kubelet's requests do. No module of the agent is used here but the messages.
//!
//! Objects are named by id, by the start of an id when only one has it, or by
//! name. Errors are one line that names the object, the step and the remedy.

use std::io::ErrorKind;

mod arguments;
mod client;
mod completion;
mod containers;
mod debug;
mod debug_facts;
mod error;
mod find;
mod follow;
mod images;
mod logline;
mod node;
mod parse;
mod run;
mod table;
mod waterfall;
mod why;

pub use arguments::{Arguments, Command};
pub use client::Client;
pub use error::{Error, FAILED};
pub use logline::{LogLine, Stream};

/// Exit code of a command whose reader went away, as a shell shows SIGPIPE.
const PIPE_CLOSED: u8 = 141;

/// Does what the arguments say; the value is the exit code of the command.
pub async fn run(arguments: Arguments) -> Result<u8, Error> {
    match Box::pin(dispatch(arguments)).await {
        Err(Error::Io { source, .. }) if source.kind() == ErrorKind::BrokenPipe => Ok(PIPE_CLOSED),
        other => other,
    }
}

async fn dispatch(arguments: Arguments) -> Result<u8, Error> {
    let client = || Client::connect(&arguments.address);
    match arguments.command {
        Command::Completion(args) => completion::print(&args),
        // It is wanted most when berthd does not answer.
        Command::Debug(args) => debug::debug(&arguments.address, &args).await,
        Command::Version => node::version(client().await?).await,
        Command::Info(args) => node::info(client().await?, &args).await,
        Command::Pull(args) => images::pull(client().await?, &args).await,
        Command::Images(args) => images::list(client().await?, &args).await,
        Command::Rmi(args) => images::remove(client().await?, &args).await,
        Command::Run(args) => Box::pin(run::run(client().await?, args))
            .await
            .map_err(Error::of_run),
        Command::Ps(args) => containers::list(client().await?, &args).await,
        Command::Logs(args) => containers::logs(client().await?, &args).await,
        Command::Exec(args) => containers::exec(client().await?, &args).await,
        Command::Stop(args) => containers::stop(client().await?, &args).await,
        Command::Why(args) => why::why(client().await?, &args).await,
        Command::Rm(args) => containers::remove(client().await?, &args).await,
    }
}
