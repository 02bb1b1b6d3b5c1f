//! The log, to standard error.

use std::io::IsTerminal;

use tracing_subscriber::{EnvFilter, Layer, fmt, layer::SubscriberExt, reload, util::SubscriberInitExt};

use super::trace::{self, Tracer};
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

/// Starts logging as configured, and with a tracer traces.
pub fn init(log: &Log, tracer: Option<Tracer>) -> Result<LogFilter, String> {
    let (filter, handle) = reload::Layer::new(filter(&log.level)?);
    let lines = fmt::layer()
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    let lines = match log.format.as_str() {
        "json" => lines.json().boxed(),
        _ => lines.boxed(),
    };
    tracing_subscriber::registry()
        .with(lines.with_filter(filter))
        .with(tracer.map(trace::layer))
        .try_init()
        .map_err(|e| e.to_string())?;
    Ok(LogFilter(Box::new(move |filter| {
        handle.reload(filter).map_err(|e| e.to_string())
    })))
}
