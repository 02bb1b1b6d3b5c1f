//! Joining the stdio of a container's init, beside whoever else has.

use std::os::fd::OwnedFd;

use super::{Error, Shim, exec::new_id, shim_client::any};
use crate::{
    proto::{plan, task},
    shim::{attach::ATTACH, ttrpc::Code},
};

/// The shim's ends of the client's pipes, closed here once it has them. What is
/// absent is not joined.
#[derive(Debug, Default)]
pub struct AttachIo {
    pub stdin: Option<OwnedFd>,
    pub stdout: Option<OwnedFd>,
    /// Never with a terminal.
    pub stderr: Option<OwnedFd>,
}

/// A client at a container's stdio. It leaves by closing its pipes; nothing is to
/// be done when this is dropped.
#[derive(Debug)]
pub struct Attachment {
    shim: Shim,
    id: String,
}

impl Shim {
    /// Joins the init's stdio. `terminal` is that of the container. Each output
    /// pipe is also the client's queue; what it does not read in time is said in
    /// `shim/attach.rs`.
    pub async fn attach(&self, terminal: bool, stdio: AttachIo) -> Result<Attachment, Error> {
        let mut fds = Vec::new();
        let mut name = |fd: Option<OwnedFd>| match fd {
            Some(fd) => {
                fds.push(fd);
                format!("fd:{}", fds.len() - 1)
            }
            None => String::new(),
        };
        let request = task::ExecProcessRequest {
            id: self.id().into(),
            exec_id: new_id(),
            terminal,
            stdin: name(stdio.stdin),
            stdout: name(stdio.stdout),
            stderr: name(stdio.stderr),
            spec: Some(any(ATTACH, &plan::Attach {})),
        };
        let id = request.exec_id.clone();
        let _: () = self.call_quick("Exec", &request, fds).await?;
        Ok(Attachment {
            shim: self.clone(),
            id,
        })
    }
}

impl Attachment {
    /// Returns when the container has closed its output or has ended; all of its
    /// output is in the pipes by then. An error when the client was dropped, for
    /// it did not read.
    pub async fn ended(&self) -> Result<(), Error> {
        let request = task::WaitRequest {
            id: self.shim.id().into(),
            exec_id: self.id.clone(),
        };
        match self
            .shim
            .call_with::<task::WaitResponse>("Wait", None, &request, Vec::new())
            .await
        {
            Ok(_) => Ok(()),
            Err(error) if error.is_gone() || error.is_remote(Code::NotFound) => Ok(()),
            Err(error) => Err(error),
        }
    }
}
