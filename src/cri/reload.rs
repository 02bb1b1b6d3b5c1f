//! SIGHUP: the configuration is read again, and what can change at run time does.

use std::{path::PathBuf, sync::Arc};

use crate::{config::Config, image::Images, telemetry::log::LogFilter};

/// What a reload reads and reaches.
#[derive(Debug)]
pub struct Reload {
    pub path: PathBuf,
    /// The file was named by the user: it has to be there.
    pub named: bool,
    /// The configuration that is in force.
    pub config: Config,
    pub images: Arc<Images>,
    pub log: LogFilter,
}

impl Reload {
    /// A configuration with an error changes nothing, and is told.
    pub fn run(&mut self) {
        if let Err(error) = self.apply() {
            tracing::error!(error, "the configuration is not reloaded, nothing is changed");
        }
    }

    fn apply(&mut self) -> Result<(), String> {
        let new = Config::load(&self.path, self.named)
            .map_err(|e| e.to_string())?
            .config;
        let mut next = self.config.clone();
        next.adopt(&new);
        self.images.configure(&next).map_err(|e| e.to_string())?;
        // Found right with the rest, before anything was changed.
        self.log.set(&next.log.level)?;
        let changed = self.config.changes(&next);
        let restart = next.changes(&new);
        self.config = next;
        tracing::info!(?changed, "the configuration is reloaded");
        if !restart.is_empty() {
            tracing::warn!(keys = ?restart, "these changes need a restart of berthd");
        }
        Ok(())
    }
}
