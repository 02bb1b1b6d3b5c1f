//! The arguments of every command, as clap reads them.

use std::{env, path::PathBuf};

use clap::{Args, Parser, Subcommand};

use super::parse::{Cpus, Credentials, EnvVar, Memory, Network, Port, User, Volume};

/// Run and inspect containers on a node of Berth.
#[derive(Debug, Parser)]
#[command(name = "berth", version)]
pub struct Arguments {
    /// The socket of berthd; BERTH_ADDRESS sets another default.
    #[arg(long, global = true, value_name = "unix://PATH", default_value_t = default_address())]
    pub address: String,
    #[command(subcommand)]
    pub command: Command,
}

fn default_address() -> String {
    env::var("BERTH_ADDRESS").unwrap_or_else(|_| "unix:///run/berth/berth.sock".into())
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show the versions of this command, of berthd and of the interface.
    Version,
    /// Show whether the node is ready, and its runtime handlers.
    Info(Info),
    /// Pull an image and print its id.
    Pull(Pull),
    /// List images.
    Images(Images),
    /// Run a command in a new container, in a pod of its own.
    Run(Box<Run>),
    /// List containers.
    Ps(Ps),
    /// Print what a container wrote.
    Logs(Logs),
    /// Run a command in a running container and print its output.
    Exec(Exec),
    /// Stop containers.
    Stop(Stop),
    /// Remove containers, with their pods when `berth run` made these.
    Rm(Rm),
    /// Remove images.
    Rmi(Rmi),
    /// Show where the time of a pod's start went.
    Why(Why),
    /// Print the completions for a shell: what the package installs.
    Completion(Completion),
    /// Put what a bug report needs into one file: states, the audit, what berthd and its
    /// shims wait for, the log, the node. Neither variables, annotations nor the output
    /// of containers are in it.
    Debug(Debug),
}

#[derive(Args, Debug)]
pub struct Info {
    /// Print as JSON, with all that berthd tells about itself.
    #[arg(short, long, value_name = "FORMAT", value_parser = ["json"])]
    pub output: Option<String>,
}

#[derive(Args, Debug)]
pub struct Pull {
    /// Name of the image: [HOST/]REPOSITORY[:TAG][@DIGEST].
    pub reference: String,
    /// Credentials for the registry; BERTH_CREDS is used when this is not given.
    #[arg(long, value_name = "USER:PASSWORD")]
    pub creds: Option<Credentials>,
}

#[derive(Args, Debug)]
pub struct Why {
    /// The pod, by name, NAMESPACE/NAME, id or start of an id.
    pub pod: String,
    /// Write a picture to this file instead.
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub struct Completion {
    pub shell: clap_complete::Shell,
}

#[derive(Args, Debug)]
pub struct Debug {
    /// The file; a new one in this folder, named after the node and the time, when not
    /// given. It is a gzipped tar archive.
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// As given to berthd.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/berth")]
    pub root: PathBuf,
    /// As given to berthd.
    #[arg(long, value_name = "DIR", default_value = "/run/berth")]
    pub state: PathBuf,
    /// As given to berthd.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// How many of the last lines of the log are taken.
    #[arg(long, value_name = "N", default_value_t = 5000)]
    pub lines: u32,
}

#[derive(Args, Debug)]
pub struct Images {
    /// Print ids only.
    #[arg(short, long)]
    pub quiet: bool,
}

#[derive(Args, Debug)]
pub struct Rmi {
    /// Ids, tags or digests.
    #[arg(required = true)]
    pub images: Vec<String>,
}

#[derive(Args, Debug)]
pub struct Run {
    /// Print the container's id and leave it running.
    #[arg(short, long)]
    pub detach: bool,
    /// Remove container and pod when the command has ended.
    #[arg(long, conflicts_with = "detach")]
    pub rm: bool,
    /// Name of the container and its pod.
    #[arg(long)]
    pub name: Option<String>,
    /// Set a variable; without a value it is taken from the environment of this command.
    #[arg(short, long = "env", value_name = "KEY[=VALUE]")]
    pub env: Vec<EnvVar>,
    /// Mount a file or folder of the host: ro, rslave and rshared may follow.
    #[arg(short, long = "volume", value_name = "HOST:CONTAINER[:OPTIONS]")]
    pub volume: Vec<Volume>,
    /// Forward a port of the host.
    #[arg(short, long = "publish", value_name = "[IP:]HOST:CONTAINER[/PROTOCOL]")]
    pub publish: Vec<Port>,
    /// "pod" for a network of its own, "host" for the host's.
    #[arg(long, default_value = "pod")]
    pub network: Network,
    /// Run as this user of the image, by name or by id.
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub user: Option<User>,
    /// Limit of memory: bytes, or with k, m, g behind.
    #[arg(short, long, value_name = "BYTES")]
    pub memory: Option<Memory>,
    /// Limit of processor time, in processors: 0.5, 2.
    #[arg(long, value_name = "NUMBER")]
    pub cpus: Option<Cpus>,
    /// Working folder in the container.
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<String>,
    /// Replaces the entrypoint of the image.
    #[arg(long, value_name = "PROGRAM")]
    pub entrypoint: Option<String>,
    /// Give the container all that the node may do.
    #[arg(long)]
    pub privileged: bool,
    /// Make the container's root read-only.
    #[arg(long)]
    pub read_only: bool,
    /// Runtime handler; the node's default when not given.
    #[arg(long, value_name = "NAME", default_value = "")]
    pub runtime: String,
    /// Credentials for the registry; BERTH_CREDS is used when this is not given.
    #[arg(long, value_name = "USER:PASSWORD")]
    pub creds: Option<Credentials>,
    /// Folder in which the container's log is kept, in a folder of its own.
    #[arg(long, value_name = "DIR", default_value = "/var/log/berth")]
    pub log_dir: PathBuf,
    /// Pulled when the node does not have it.
    pub image: String,
    /// Replaces the command of the image.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<String>,
}

#[derive(Args, Debug)]
pub struct Ps {
    /// Show containers that are not running too.
    #[arg(short, long)]
    pub all: bool,
    /// Print ids only.
    #[arg(short, long)]
    pub quiet: bool,
}

#[derive(Args, Debug)]
pub struct Logs {
    /// Go on until the container exits.
    #[arg(short, long)]
    pub follow: bool,
    /// Begin with the last N lines.
    #[arg(short = 'n', long, value_name = "N")]
    pub tail: Option<usize>,
    /// Print the time of each line.
    #[arg(short, long)]
    pub timestamps: bool,
    pub container: String,
}

#[derive(Args, Debug)]
pub struct Exec {
    /// Seconds after which the command is killed; 0: never.
    #[arg(long, default_value_t = 0, value_name = "SECONDS")]
    pub timeout: u32,
    pub container: String,
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<String>,
}

#[derive(Args, Debug)]
pub struct Stop {
    /// Seconds between the stop signal and the kill.
    #[arg(short, long, default_value_t = 10, value_name = "SECONDS")]
    pub time: u32,
    #[arg(required = true)]
    pub containers: Vec<String>,
}

#[derive(Args, Debug)]
pub struct Rm {
    /// Kill a container that is running.
    #[arg(short, long)]
    pub force: bool,
    #[arg(required = true)]
    pub containers: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_arguments_are_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn options_behind_the_image_belong_to_the_container() {
        let parsed = Arguments::parse_from(["berth", "run", "--rm", "busybox", "sh", "-c", "echo -d"]);
        let Command::Run(run) = parsed.command else {
            panic!("not run");
        };
        assert!(run.rm && !run.detach);
        assert_eq!(run.command, ["sh", "-c", "echo -d"]);
    }
}
