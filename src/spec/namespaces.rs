//! Which namespaces a container has of its own, joins or shares with the host.

use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxNamespace, LinuxNamespaceType};

use super::{Error, Inputs, user_namespace};
use crate::proto::cri::{NamespaceMode, NamespaceOption};

const FIELD: &str = "linux.security_context.namespace_options";

/// The options of the request; of the sandbox when it has none.
pub(super) fn options(inputs: &Inputs<'_>) -> NamespaceOption {
    let of_container = super::context(inputs.request).and_then(|context| context.namespace_options.clone());
    of_container.or_else(|| of_sandbox(inputs)).unwrap_or_default()
}

fn of_sandbox(inputs: &Inputs<'_>) -> Option<NamespaceOption> {
    inputs
        .sandbox
        .config
        .linux
        .as_ref()?
        .security_context
        .as_ref()?
        .namespace_options
        .clone()
}

/// A type that is not listed is shared with the host.
pub(super) fn namespaces(inputs: &Inputs<'_>) -> Result<Vec<LinuxNamespace>, Error> {
    let options = options(inputs);
    user_namespace::check(&options, inputs)?;
    let sandbox = inputs.sandbox;
    let mut list = vec![new(LinuxNamespaceType::Mount)];
    let user = sandbox.user.as_ref();
    list.extend(user.map(|user| join(LinuxNamespaceType::User, &user.path)));
    list.extend(pid(inputs, &options)?);
    list.extend(of_pod(
        "network",
        options.network,
        LinuxNamespaceType::Network,
        sandbox.net_ns.as_deref(),
    )?);
    list.extend(of_pod(
        "ipc",
        options.ipc,
        LinuxNamespaceType::Ipc,
        sandbox.ipc_ns.as_deref(),
    )?);
    list.extend(
        sandbox
            .uts_ns
            .as_deref()
            .map(|path| join(LinuxNamespaceType::Uts, path)),
    );
    // As containerd: on v1 and for privileged containers the host's tree is shown. In a
    // user namespace nobody may mount that.
    let privileged = super::context(inputs.request).is_some_and(|context| context.privileged);
    if inputs.host.unified && (!privileged || user.is_some()) {
        list.push(new(LinuxNamespaceType::Cgroup));
    }
    Ok(list)
}

fn pid(inputs: &Inputs<'_>, options: &NamespaceOption) -> Result<Option<LinuxNamespace>, Error> {
    let field = format!("{FIELD}.pid");
    let kind = LinuxNamespaceType::Pid;
    match mode(&field, options.pid)? {
        NamespaceMode::Container => Ok(Some(new(kind))),
        NamespaceMode::Node => Ok(None),
        NamespaceMode::Target => match &inputs.sandbox.target_pid_ns {
            Some(path) => Ok(Some(join(kind, path))),
            None => Err(Error::precondition(
                format!("{FIELD}.target_id"),
                format!("container {:?} is not running in this pod", options.target_id),
            )),
        },
        NamespaceMode::Pod => match &inputs.sandbox.pid_ns {
            Some(path) => Ok(Some(join(kind, path))),
            None if of_sandbox(inputs).is_some_and(|pod| pod.pid() == NamespaceMode::Node) => Ok(None),
            None => Err(Error::invalid(
                field,
                format!(
                    "sandbox {} was made without a PID namespace to share; set pid to POD there or to CONTAINER here",
                    inputs.sandbox.id
                ),
            )),
        },
    }
}

/// A namespace that belongs to the pod: `path` is `None` when the pod has the host's.
fn of_pod(
    name: &str,
    asked: i32,
    kind: LinuxNamespaceType,
    path: Option<&Path>,
) -> Result<Option<LinuxNamespace>, Error> {
    let field = format!("{FIELD}.{name}");
    match (mode(&field, asked)?, path) {
        (NamespaceMode::Pod | NamespaceMode::Node, None) => Ok(None),
        (NamespaceMode::Pod, Some(path)) => Ok(Some(join(kind, path))),
        (NamespaceMode::Node, Some(_)) => Err(Error::invalid(
            field,
            "NODE, but the pod has a namespace of its own; a container cannot leave it",
        )),
        (other, _) => Err(Error::invalid(
            field,
            format!("{} is not possible here", other.as_str_name()),
        )),
    }
}

fn mode(field: &str, value: i32) -> Result<NamespaceMode, Error> {
    NamespaceMode::try_from(value)
        .map_err(|_| Error::invalid(field, format!("{value} is not a namespace mode")))
}

fn new(kind: LinuxNamespaceType) -> LinuxNamespace {
    namespace(kind, None)
}

fn join(kind: LinuxNamespaceType, path: &Path) -> LinuxNamespace {
    namespace(kind, Some(path.to_owned()))
}

fn namespace(kind: LinuxNamespaceType, path: Option<PathBuf>) -> LinuxNamespace {
    let mut namespace = LinuxNamespace::default();
    namespace.set_typ(kind).set_path(path);
    namespace
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        kind::{HasKind, Kind},
        proto::cri::{LinuxPodSandboxConfig, LinuxSandboxSecurityContext, UserNamespace},
        spec::tests::Case,
    };

    /// "kind=path", path empty for a new one.
    fn made(case: &Case) -> Result<Vec<String>, Error> {
        let list = case.with(namespaces)?;
        let show = |n: &LinuxNamespace| {
            let path = n.path().as_deref().unwrap_or(Path::new(""));
            format!("{:?}={}", n.typ(), path.display())
        };
        Ok(list.iter().map(show).collect())
    }

    fn with_options(options: NamespaceOption) -> Case {
        let mut case = Case::new();
        case.context().namespace_options = Some(options);
        case
    }

    fn pod_with_pid(mode: NamespaceMode) -> Option<LinuxPodSandboxConfig> {
        Some(LinuxPodSandboxConfig {
            security_context: Some(LinuxSandboxSecurityContext {
                namespace_options: Some(NamespaceOption {
                    pid: mode.into(),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        })
    }

    #[test]
    fn of_a_usual_container() {
        let mut case = with_options(NamespaceOption {
            pid: NamespaceMode::Container.into(),
            ..Default::default()
        });
        let expected = [
            "Mount=",
            "Pid=",
            "Network=/sb/ns/net",
            "Ipc=/sb/ns/ipc",
            "Uts=/sb/ns/uts",
            "Cgroup=",
        ];
        assert_eq!(made(&case).unwrap(), expected);
        case.host.unified = false;
        assert_eq!(made(&case).unwrap(), expected[..5]);
        case.host.unified = true;
        case.context().privileged = true;
        assert_eq!(made(&case).unwrap(), expected[..5]);
    }

    #[test]
    fn of_a_container_on_the_host() {
        let node = NamespaceMode::Node.into();
        let mut case = with_options(NamespaceOption {
            network: node,
            pid: node,
            ipc: node,
            ..Default::default()
        });
        case.sandbox.net_ns = None;
        case.sandbox.ipc_ns = None;
        case.sandbox.uts_ns = None;
        assert_eq!(made(&case).unwrap(), ["Mount=", "Cgroup="]);
    }

    #[test]
    fn pid_of_pod_and_target() {
        let mut case = with_options(NamespaceOption::default());
        assert_eq!(made(&case).unwrap_err().kind(), Kind::InvalidArgument);
        case.sandbox.pid_ns = Some("/proc/7/ns/pid".into());
        assert_eq!(made(&case).unwrap()[1], "Pid=/proc/7/ns/pid");
        case.sandbox.pid_ns = None;
        case.sandbox.config.linux = pod_with_pid(NamespaceMode::Node);
        assert_eq!(made(&case).unwrap()[1], "Network=/sb/ns/net");

        let mut case = with_options(NamespaceOption {
            pid: NamespaceMode::Target.into(),
            target_id: "abc".into(),
            ..Default::default()
        });
        let error = made(&case).unwrap_err();
        assert_eq!(error.kind(), Kind::FailedPrecondition);
        assert!(error.to_string().contains("abc"), "{error}");
        case.sandbox.target_pid_ns = Some("/proc/8/ns/pid".into());
        assert_eq!(made(&case).unwrap()[1], "Pid=/proc/8/ns/pid");
    }

    #[test]
    fn no_options_are_those_of_the_pod() {
        let mut case = Case::new();
        case.request.linux = None;
        case.sandbox.config.linux = pod_with_pid(NamespaceMode::Container);
        assert_eq!(made(&case).unwrap()[1], "Pid=");
    }

    #[test]
    fn impossible_modes() {
        let with = |change: fn(&mut NamespaceOption)| {
            let mut options = NamespaceOption {
                pid: NamespaceMode::Container.into(),
                ..Default::default()
            };
            change(&mut options);
            made(&with_options(options)).unwrap_err().kind()
        };
        assert_eq!(
            with(|o| o.network = NamespaceMode::Container.into()),
            Kind::InvalidArgument
        );
        assert_eq!(
            with(|o| o.network = NamespaceMode::Node.into()),
            Kind::InvalidArgument
        );
        assert_eq!(
            with(|o| o.ipc = NamespaceMode::Target.into()),
            Kind::InvalidArgument
        );
        assert_eq!(with(|o| o.pid = 9), Kind::InvalidArgument);
        let user = |mode: NamespaceMode| {
            Some(UserNamespace {
                mode: mode.into(),
                ..Default::default()
            })
        };
        for (mode, expected) in [
            (NamespaceMode::Container, Some(Kind::InvalidArgument)),
            (NamespaceMode::Target, Some(Kind::InvalidArgument)),
            (NamespaceMode::Node, None),
        ] {
            let case = with_options(NamespaceOption {
                pid: NamespaceMode::Container.into(),
                userns_options: user(mode),
                ..Default::default()
            });
            assert_eq!(made(&case).err().map(|e| e.kind()), expected);
        }
    }
}
