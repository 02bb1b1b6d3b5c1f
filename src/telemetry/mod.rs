//! What berthd says about itself. So far the log, to standard error.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::config::Log;

/// Starts logging as configured. An error names the filter that is wrong.
pub fn init(log: &Log) -> Result<(), String> {
    let filter = EnvFilter::try_new(&log.level).map_err(|e| format!("log.level {:?}: {e}", log.level))?;
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
