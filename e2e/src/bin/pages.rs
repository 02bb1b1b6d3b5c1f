//! pages FOLDER: the man pages and shell completions that the package installs, made
//! from the definitions of the commands and from the shipped configuration, so that
//! they say what the programs do.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use berth::{cli::Arguments, config::SHIPPED, flags::Flags};
use clap::CommandFactory;
use clap_complete::Shell;
use e2e::pages;

fn main() -> Result<()> {
    let folder: PathBuf = std::env::args_os().nth(1).context("usage: pages FOLDER")?.into();
    for part in ["man", "bash", "zsh", "fish"] {
        let part = folder.join(part);
        fs::create_dir_all(&part).with_context(|| format!("make {}", part.display()))?;
    }
    let man = folder.join("man");
    write(&man.join("berthd.8"), pages::command(Flags::command(), "8")?)?;
    write(&man.join("berth.1"), pages::command(Arguments::command(), "1")?)?;
    write(&man.join("berth-config.toml.5"), pages::configuration(SHIPPED)?)?;
    write(&man.join("berth-shim.8"), pages::SHIM)?;
    for (name, mut command) in [("berth", Arguments::command()), ("berthd", Flags::command())] {
        for (shell, file) in [
            (Shell::Bash, format!("bash/{name}")),
            (Shell::Zsh, format!("zsh/_{name}")),
            (Shell::Fish, format!("fish/{name}.fish")),
        ] {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut command, name, &mut script);
            write(&folder.join(file), script)?;
        }
    }
    Ok(())
}

fn write(path: &Path, text: impl AsRef<[u8]>) -> Result<()> {
    fs::write(path, text).with_context(|| format!("write {}", path.display()))
}
