//! `berth`: the command for people. Reads its arguments, speaks CRI over the
//! socket, and leaves with a code that a script can use.

use std::process::ExitCode;

use berth::cli;
use clap::Parser;

fn main() -> ExitCode {
    let arguments = cli::Arguments::parse();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("berth: start the event loop: {error}");
            return ExitCode::from(cli::FAILED);
        }
    };
    match runtime.block_on(cli::run(arguments)) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("berth: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}
