//! What berthd says about itself. So far the log, to standard error.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::config::Log;

/// Crates below us that talk much, and what is kept of them.
const OTHERS: &str = "h2=warn,hyper=warn,hyper_util=warn,rustls=warn,tower=warn";

/// Starts logging as configured. An error names the filter that is wrong.
pub fn init(log: &Log) -> Result<(), String> {
    // A bare level is meant for our own words: the frames of HTTP/2 would drown them.
    let directives = if log.level.contains(['=', ',']) {
        log.level.clone()
    } else {
        format!("{},{OTHERS}", log.level)
    };
    let filter = EnvFilter::try_new(directives).map_err(|e| format!("log.level {:?}: {e}", log.level))?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    let done = if log.format == "json" {
        builder.json().try_init()
    } else {
        builder.try_init()
    };
    done.map_err(|e| e.to_string())
}
