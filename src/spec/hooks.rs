//! Hooks of the spec: those of the launcher as the plan has them, those of later for
//! whoever runs them.

use oci_spec::runtime::{Hook, Spec};

use super::{Error, cdi};
use crate::proto::plan as wire;

/// The hooks of later: when the container runs, and when it is gone.
#[derive(Clone, Debug, Default)]
pub struct LaterHooks {
    pub poststart: Vec<wire::Hook>,
    pub poststop: Vec<wire::Hook>,
    /// For the state that they read: a JSON object.
    pub annotations: String,
}

/// Those that the agent runs itself.
pub fn later_hooks(spec: &Spec) -> Result<LaterHooks, Error> {
    let Some(hooks) = spec.hooks() else {
        return Ok(LaterHooks::default());
    };
    Ok(LaterHooks {
        poststart: list("poststart", hooks.poststart().as_deref())?,
        poststop: list("poststop", hooks.poststop().as_deref())?,
        annotations: cdi::annotations(spec),
    })
}

/// Those that the launcher runs.
pub(super) fn plan(spec: &Spec) -> Result<Option<wire::Hooks>, Error> {
    let Some(hooks) = spec.hooks() else {
        return Ok(None);
    };
    Ok(Some(wire::Hooks {
        prestart: list("prestart", hooks.prestart().as_deref())?,
        create_runtime: list("createRuntime", hooks.create_runtime().as_deref())?,
        create_container: list("createContainer", hooks.create_container().as_deref())?,
        start_container: list("startContainer", hooks.start_container().as_deref())?,
        annotations: cdi::annotations(spec),
    }))
}

fn list(name: &str, hooks: Option<&[Hook]>) -> Result<Vec<wire::Hook>, Error> {
    let field = format!("hooks.{name}");
    let one = |hook: &Hook| {
        if !hook.path().is_absolute() {
            return Err(Error::spec(
                &field,
                format!("{} is not absolute", hook.path().display()),
            ));
        }
        let timeout = u32::try_from(hook.timeout().unwrap_or(0));
        Ok(wire::Hook {
            path: super::plan::text(&field, hook.path())?,
            args: hook.args().clone().unwrap_or_default(),
            env: hook.env().clone().unwrap_or_default(),
            timeout: timeout.map_err(|_| Error::spec(&field, "the timeout is out of range"))?,
        })
    };
    hooks.unwrap_or_default().iter().map(one).collect()
}
