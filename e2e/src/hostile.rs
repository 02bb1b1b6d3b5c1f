//! The program that attacks from inside of a container: `hostile/attack.c`.

use std::fs;

use anyhow::Context;

use crate::{Image, Result, node, tar::Entry};

/// busybox and `attack`.
pub fn image() -> Result<Image> {
    let program = node::binary("attack");
    let bytes =
        fs::read(&program).with_context(|| format!("read {}; `make build` makes it", program.display()))?;
    Ok(Image::busybox().layer(&[Entry::file("bin/attack", bytes).mode(0o755)]))
}
