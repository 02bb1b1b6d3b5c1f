//! The arguments of berthd, as clap reads them.

use std::path::{Path, PathBuf};

use clap::{Parser, Subcommand};

use crate::config::{self, Config, DEFAULT_PATH, Loaded};

/// Berth's agent: serves the Container Runtime Interface and runs the pods of this node.
#[derive(Debug, Parser)]
#[command(name = "berthd", version)]
pub struct Flags {
    /// Configuration file; config.d/*.toml beside it are read too.
    #[arg(long, value_name = "FILE", global = true)]
    pub config: Option<PathBuf>,
    /// Where records, images and writable layers are kept.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/berth", global = true)]
    pub root: PathBuf,
    /// What does not outlive a reboot: namespaces, sockets, bundles.
    #[arg(long, value_name = "DIR", default_value = "/run/berth", global = true)]
    pub state: PathBuf,
    /// Where the CRI is served: unix:///ABSOLUTE/PATH.
    #[arg(long, value_name = "ADDRESS", default_value = "unix:///run/berth/berth.sock")]
    pub address: String,
    #[command(subcommand)]
    pub command: Option<Command>,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Look at the configuration.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// List every kernel object and folder of the berthd with this root and state,
    /// and every one that no record owns; exit status 1 when there is one of these.
    Audit {
        /// Print as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Stop and remove everything of the berthd with this root and state: pods,
    /// images, links, rules, cgroups, mounts and both folders. It must not run.
    Purge {
        /// Do it; without this, only list what would go.
        #[arg(long)]
        yes: bool,
        /// Seconds between the stop signal of containers and the kill.
        #[arg(long, value_name = "SECONDS", default_value_t = 10)]
        grace: u64,
        /// Go on when records are damaged or a CNI plugin fails: what that plugin
        /// has given out (addresses, rules) may stay.
        #[arg(long)]
        force: bool,
    },
}

#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Print the configuration as it is shipped: every key with its default.
    Default,
    /// Read the configuration, and name file, line and key of what is wrong with it.
    Check,
    /// Print the configuration that all files make together, each value with where
    /// it came from.
    Show,
}

impl Flags {
    /// The file that is read, with those beside it.
    pub fn config(&self) -> &Path {
        self.config.as_deref().unwrap_or(Path::new(DEFAULT_PATH))
    }

    /// Reads it; only one that was named has to be there.
    pub fn load(&self) -> Result<Loaded, config::Error> {
        Config::load(self.config(), self.config.is_some())
    }
}
