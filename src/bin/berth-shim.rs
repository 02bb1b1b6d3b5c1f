//! `berth-shim -id ID`: owns one container. Started by berthd, with a listening
//! socket as standard input, in the container's state folder. `berth-shim -hold`
//! waits for the end of its standard input.

use std::process::ExitCode;

fn main() -> ExitCode {
    // The process that keeps a scope of systemd from being empty until the init is in it.
    if std::env::args().skip(1).eq(["-hold"]) {
        return match std::io::copy(&mut std::io::stdin(), &mut std::io::sink()) {
            Ok(_) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        };
    }
    let mut arguments = std::env::args().skip(1);
    let (Some("-id"), Some(id), None) = (arguments.next().as_deref(), arguments.next(), arguments.next())
    else {
        eprintln!("usage: berth-shim -id ID, with a listening socket as standard input; berthd starts it");
        return ExitCode::from(2);
    };
    match berth::shim::run(id) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("berth-shim: {error}");
            ExitCode::FAILURE
        }
    }
}
