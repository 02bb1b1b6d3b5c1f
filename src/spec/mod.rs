//! What to run: an image's config and a CRI request merged into an OCI runtime
//! spec, and that spec turned into the numeric [`LaunchPlan`] of the shim.
//!
//! In two steps, so that edits of the spec between them (CDI, NRI) take effect:
//!
//! 1. [`build`] merges and checks everything; it reads host files (device nodes,
//!    seccomp profiles, the mount table) and changes nothing.
//! 2. [`plan`] turns the spec into a plan: pure, besides compiling seccomp.
//!
//! The order of merges is in `build.rs`; each other file is one part of the spec.
//! This module never writes to the host, except [`prepare_host_paths`], which is
//! called by name.

pub mod apparmor;
mod bpf;
mod build;
mod capability;
mod cdi;
mod devices;
mod error;
mod exec;
#[cfg(any(test, feature = "fuzz"))]
pub mod fuzz;
mod hidden_paths;
mod hooks;
mod host;
mod image_volumes;
mod mounts;
mod namespaces;
mod oci;
mod plan;
mod plan_mounts;
mod process;
mod propagation;
mod resources;
mod seccomp;
mod seccomp_compact;
mod seccomp_compile;
mod seccomp_prelude;
mod selinux;
mod signal;
mod user;
mod user_namespace;

#[cfg(test)]
mod tests;

use std::{
    collections::BTreeSet,
    io,
    path::{Path, PathBuf},
};

pub use oci_spec::runtime::Spec;

use crate::{
    launcher::Ranges,
    proto::{cri, plan as wire},
};

pub use self::{
    build::{build, sandbox_plan},
    error::Error,
    exec::{exec_process, exec_template, oci_exec_process},
    hooks::{LaterHooks, later_hooks},
    host::Host,
    mounts::prepare_host_paths,
    plan::plan,
    resources::{Update, limits, resources, update_resources},
    selinux::{Defaults as SelinuxDefaults, check_selinux, new_level, pod_label},
    signal::{parse_signal, signal_number, signal_of},
    user_namespace::user_ranges,
};

/// What [`build`] is made from.
#[derive(Clone, Copy)]
pub struct Inputs<'a> {
    /// The container's id, 64 hex digits.
    pub id: &'a str,
    /// The container's cgroup below the root of each hierarchy: "/berth/pod1/ID".
    pub cgroup: &'a str,
    pub sandbox: &'a SandboxView,
    pub request: &'a cri::ContainerConfig,
    pub image: &'a ImageView,
    pub rootfs: &'a RootfsView,
    /// Reads a file of the image by absolute path (`/etc/passwd`, `/etc/group`):
    /// bounded, regular files only, links resolved inside the image. `None`: the
    /// image has no such file.
    pub read_image_file: &'a dyn Fn(&str) -> io::Result<Option<Vec<u8>>>,
    /// Where the folders of the image's volumes are made, `ROOT/containers/ID/volumes`.
    pub volumes_dir: &'a Path,
    /// The layers of the images that the request mounts.
    pub volume_images: &'a [VolumeImage],
    pub handler: &'a HandlerView<'a>,
    pub host: &'a Host,
}

/// What the runtime handler of the pod has to say.
#[derive(Clone, Copy, Debug, Default)]
pub struct HandlerView<'a> {
    /// Patterns of annotations that config.json gets: of the pod, of the container.
    pub pod_annotations: &'a [String],
    pub container_annotations: &'a [String],
    pub privileged_without_host_devices: bool,
    /// The OCI runtime that makes the container; `None`: the launcher does.
    pub oci: Option<OciView<'a>>,
}

/// An OCI runtime, as far as a spec can ask too much of it.
#[derive(Clone, Copy, Debug)]
pub struct OciView<'a> {
    /// The handler's name, for messages.
    pub handler: &'a str,
    /// The container's bundle.
    pub bundle: &'a Path,
    /// The options of bind mounts that it knows.
    pub mount_options: &'a BTreeSet<String>,
    pub id_mapped_mounts: bool,
}

impl std::fmt::Debug for Inputs<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inputs")
            .field("id", &self.id)
            .field("image", &self.image.name)
            .finish_non_exhaustive()
    }
}

/// The sandbox, as far as its containers see it. Paths are absolute host paths.
#[derive(Clone, Debug, Default)]
pub struct SandboxView {
    pub id: String,
    /// The config the sandbox was made with.
    pub config: cri::PodSandboxConfig,
    /// The pod's host name: of the request, or of the node when that has none.
    pub hostname: String,
    /// Pinned namespaces; `None`: the pod uses the host's.
    pub net_ns: Option<PathBuf>,
    pub ipc_ns: Option<PathBuf>,
    pub uts_ns: Option<PathBuf>,
    /// `None`: the node's.
    pub user: Option<UserNamespace>,
    /// The PID namespace that the pod's containers share, `/proc/PID/ns/pid` of the
    /// sandbox's init; `None`: the pod shares none.
    pub pid_ns: Option<PathBuf>,
    /// The PID namespace of the container that the request's `target_id` names; set
    /// by the caller when the request asks for mode TARGET.
    pub target_pid_ns: Option<PathBuf>,
    /// The pod's `/dev/shm`; `None`: a tmpfs of the container's own.
    pub shm: Option<PathBuf>,
    /// Files bound into `/etc`; `None`: the image's own stays.
    pub resolv_conf: Option<PathBuf>,
    pub hostname_file: Option<PathBuf>,
    pub hosts: Option<PathBuf>,
    /// The SELinux level of the pod; empty without SELinux.
    pub selinux_level: String,
}

/// The user namespace of a pod.
#[derive(Clone, Debug)]
pub struct UserNamespace {
    pub path: PathBuf,
    pub ranges: Ranges,
}

/// An image's config, as far as it says how to run. Written by whoever made the
/// image: nothing in it is trusted.
#[derive(Clone, Debug, Default)]
pub struct ImageView {
    /// What the user calls the image; for messages.
    pub name: String,
    /// "KEY=value"
    pub env: Vec<String>,
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    pub user: String,
    pub working_dir: String,
    /// Container paths.
    pub volumes: Vec<String>,
    /// A name ("SIGQUIT", "QUIT", "RTMIN+3"), a number, or empty.
    pub stop_signal: String,
}

/// The folders of the overlay. Absolute host paths.
#[derive(Clone, Debug, Default)]
pub struct RootfsView {
    /// Layers, the top one first.
    pub lower: Vec<PathBuf>,
    pub upper: PathBuf,
    pub work: PathBuf,
}

/// The image of a mount.
#[derive(Clone, Debug, Default)]
pub struct VolumeImage {
    /// Which of the request's mounts.
    pub mount: usize,
    /// The top one first; absolute host paths.
    pub layers: Vec<PathBuf>,
}

/// What the plan needs besides the spec.
#[derive(Clone, Copy, Debug)]
pub struct Launch<'a> {
    pub id: &'a str,
    pub rootfs: &'a RootfsView,
    /// Absolute; `None`: output is discarded.
    pub log_path: Option<&'a Path>,
    pub stdin: bool,
    pub stdin_once: bool,
}

/// What [`build`] made.
#[derive(Clone, Debug)]
pub struct Built {
    /// The bundle's config.json.
    pub spec: Spec,
    /// The plan of that spec. After an edit of the spec make it anew with [`plan`].
    pub plan: wire::LaunchPlan,
    /// A signal number, 1 to 64.
    pub stop_signal: i32,
    /// The user, for ContainerStatus: supplemental groups with the primary one.
    pub user: cri::LinuxContainerUser,
    /// Volumes of the image that no request mount covers: the caller makes each host
    /// folder and copies the image's content up.
    pub volumes: Vec<Volume>,
    /// Host paths that get the SELinux label of the container's files before it is made,
    /// [`crate::image::relabel`].
    pub relabel: Vec<PathBuf>,
    /// The container's log file; `None`: no logging was asked for.
    pub log_path: Option<PathBuf>,
    /// What was asked for and is done differently; for the log, once.
    pub warnings: Vec<String>,
}

/// A volume that the image declares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// Absolute path in the container and in the image.
    pub container_path: String,
    /// Folder on the host, below [`Inputs::volumes_dir`].
    pub host_path: PathBuf,
}

/// The init of a sandbox that shares one PID namespace.
#[derive(Clone, Copy, Debug)]
pub struct SandboxInit<'a> {
    /// The sandbox's id, 64 hex digits.
    pub id: &'a str,
    /// `None`: the host's.
    pub net_ns: Option<&'a Path>,
    pub ipc_ns: Option<&'a Path>,
    pub uts_ns: Option<&'a Path>,
    pub user: Option<&'a UserNamespace>,
    pub cgroup: &'a str,
}

/// The security context of a request.
fn context(request: &cri::ContainerConfig) -> Option<&cri::LinuxContainerSecurityContext> {
    request.linux.as_ref()?.security_context.as_ref()
}
