//! `berth-shim -id ID`: owns one container. Started by berthd, with a listening
//! socket as standard input, in the container's state folder.

use std::process::ExitCode;

fn main() -> ExitCode {
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
