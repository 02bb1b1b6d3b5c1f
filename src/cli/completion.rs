//! Completions for shells, made from the definitions of the commands.

use std::io::Write as _;

use clap::CommandFactory;

use super::{
    arguments::{Arguments, Completion},
    error::Error,
};

pub fn print(args: &Completion) -> Result<u8, Error> {
    // Made whole first: the generator panics when its writer fails.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Arguments::command(), "berth", &mut script);
    let mut out = std::io::stdout().lock();
    out.write_all(&script)
        .and_then(|()| out.flush())
        .map_err(|source| Error::Io {
            step: "write the completions",
            source,
        })?;
    Ok(0)
}
