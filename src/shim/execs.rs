//! The execs of a container, and the cgroups that forgotten ones have left.

use super::{
    exec::Exec,
    fault::{self, Fault},
    state::State,
    ttrpc::Code,
};
use crate::{cgroup::Cgroup, launcher::ExecTarget, proto::task::DeleteResponse};

/// Execs that may be known at a time.
const MAX_EXECS: usize = 128;

#[derive(Debug, Default)]
pub struct Execs {
    list: Vec<Exec>,
    /// Cgroups of forgotten execs in which children live on.
    leftovers: Vec<Cgroup>,
}

impl Execs {
    pub fn add(&mut self, exec: Exec) -> Result<(), Fault> {
        if self.list.iter().any(|other| other.id == exec.id) {
            return Err(fault::new(
                Code::AlreadyExists,
                format!("exec {} exists", exec.id),
            ));
        }
        if self.list.len() >= MAX_EXECS {
            let message = format!("the container has {MAX_EXECS} execs: wait for one to end");
            return Err(fault::new(Code::ResourceExhausted, message));
        }
        self.list.push(exec);
        Ok(())
    }

    /// Runs an exec that was added; its pid. One that cannot be run is forgotten.
    pub fn start(&mut self, id: &str, target: &ExecTarget<'_>) -> Result<i32, Fault> {
        let at = self.find(id)?;
        let created = self.list[at].state() == State::Created;
        let started = self.list[at].start(target);
        if started.is_err() && created {
            self.list.remove(at);
        }
        started
    }

    pub fn get(&self, id: &str) -> Result<&Exec, Fault> {
        self.find(id).map(|at| &self.list[at])
    }

    pub fn get_mut(&mut self, id: &str) -> Result<&mut Exec, Fault> {
        self.find(id).map(|at| &mut self.list[at])
    }

    fn find(&self, id: &str) -> Result<usize, Fault> {
        let found = self.list.iter().position(|exec| exec.id == id);
        found.ok_or_else(|| fault::new(Code::NotFound, format!("the container has no exec {id}")))
    }

    /// Forgets an exec that does not run.
    pub fn delete(&mut self, id: &str) -> Result<DeleteResponse, Fault> {
        let at = self.find(id)?;
        if self.list[at].is_running() {
            return Err(fault::new(
                Code::FailedPrecondition,
                format!("exec {id} is running: kill it first"),
            ));
        }
        let mut exec = self.list.remove(at);
        self.sweep(exec.take_cgroup());
        Ok(exec.deleted())
    }

    /// A child of the shim was reaped, of this or of no exec.
    pub fn reaped(&mut self, pid: i32, code: i32) {
        if let Some(exec) = self
            .list
            .iter_mut()
            .find(|exec| exec.is_running() && exec.pid() == Some(pid))
        {
            exec.reaped(code);
            self.forget_orphans();
        }
    }

    pub fn any_running(&self) -> bool {
        self.list.iter().any(Exec::is_running)
    }

    /// To be called before exits are given out, and [`Execs::any_dying`] is asked.
    pub fn look(&mut self) {
        self.list.iter_mut().for_each(Exec::look);
    }

    /// The process of an exec has ended, its descendants, which were killed, have not.
    pub fn any_dying(&self) -> bool {
        self.list
            .iter()
            .any(|exec| exec.has_ended() && exec.exit().is_none())
    }

    /// A client has gone: terminals of its execs are let go, and those of its
    /// execs that do not run are forgotten. The others run on.
    pub fn client_gone(&mut self, client: u32) {
        for exec in self.list.iter_mut().filter(|exec| exec.owner == Some(client)) {
            exec.owner = None;
            exec.close_console();
        }
        self.forget_orphans();
    }

    /// Forgets execs that do not run and whose client has gone.
    fn forget_orphans(&mut self) {
        while let Some(at) = self
            .list
            .iter()
            .position(|exec| exec.owner.is_none() && !exec.is_running())
        {
            let cgroup = self.list.remove(at).take_cgroup();
            self.sweep(cgroup);
        }
    }

    /// Removes the cgroups of forgotten execs in which nothing lives any more.
    fn sweep(&mut self, more: Option<Cgroup>) {
        self.leftovers.extend(more);
        self.leftovers
            .retain(|cgroup| !(is_empty(cgroup) && cgroup.remove().is_ok()));
    }
}

/// Nothing lives in it: zombies do not count.
pub fn is_empty(cgroup: &Cgroup) -> bool {
    cgroup.pids().is_ok_and(|pids| pids.is_empty())
}
