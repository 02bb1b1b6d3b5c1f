//! `berth-shim -fork-server`: makes the shims that berthd asks for on standard input, a
//! socket; each is a copy of it, and owns one container. `berth-shim -hold` waits for the
//! end of its standard input.

use std::process::ExitCode;

use berth::shim::{fork_server, run};

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    match (arguments.next().as_deref(), arguments.next().as_deref()) {
        // The process that keeps a scope of systemd from being empty until the init is in it.
        (Some("-hold"), None) => match std::io::copy(&mut std::io::stdin(), &mut std::io::sink()) {
            Ok(_) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        },
        (Some(fork_server::FLAG), Some(fork_server::ROOM)) => {
            let made = fork_server::serve();
            match made.and_then(|shim| shim.map_or(Ok(()), |(id, listener)| run(id, listener))) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    eprintln!("berth-shim: {error}");
                    ExitCode::FAILURE
                }
            }
        }
        _ => {
            eprintln!("berth-shim is started by berthd, and by nobody else: see berth-shim(8)");
            ExitCode::from(2)
        }
    }
}
