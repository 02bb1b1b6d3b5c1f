//! The log, to standard error.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::config::Log;

/// Crates below us that talk much, and what is kept of them.
const OTHERS: &str = "h2=warn,hyper=warn,hyper_util=warn,rustls=warn,tower=warn";

/// The filter of the log that is written, which may change.
pub struct LogFilter(Box<dyn Fn(EnvFilter) -> Result<(), String> + Send + Sync>);

impl std::fmt::Debug for LogFilter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LogFilter")
    }
}

impl LogFilter {
    /// Writes what `level` says from now on.
    pub fn set(&self, level: &str) -> Result<(), String> {
        (self.0)(filter(level)?)
    }
}

/// The filter that a level means. An error says what is wrong with it.
pub fn filter(level: &str) -> Result<EnvFilter, String> {
    // A bare level is meant for our own words: the frames of HTTP/2 would drown them.
    let directives = if level.contains(['=', ',']) {
        level.to_owned()
    } else {
        format!("{level},{OTHERS}")
    };
    EnvFilter::try_new(directives).map_err(|e| format!("{level:?}: {e}"))
}

/// Starts logging as configured.
pub fn init(log: &Log) -> Result<LogFilter, String> {
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter(&log.level)?)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    if log.format == "json" {
        let builder = builder.json().with_filter_reloading();
        let handle = builder.reload_handle();
        builder.try_init().map_err(|e| e.to_string())?;
        Ok(LogFilter(Box::new(move |filter| {
            handle.reload(filter).map_err(|e| e.to_string())
        })))
    } else {
        let builder = builder.with_filter_reloading();
        let handle = builder.reload_handle();
        builder.try_init().map_err(|e| e.to_string())?;
        Ok(LogFilter(Box::new(move |filter| {
            handle.reload(filter).map_err(|e| e.to_string())
        })))
    }
}
