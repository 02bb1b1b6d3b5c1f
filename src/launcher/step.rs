//! The steps of a launch, and how a child tells its parent which one failed:
//! numbers only, for after clone nothing may be allocated.

use rustix::io::Errno;

macro_rules! steps {
    ($($name:ident => $text:literal,)*) => {
        /// What was being done when something failed.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub enum Step { $($name,)* }

        impl Step {
            const ALL: &[Step] = &[$(Step::$name,)*];

            /// As it is written in messages.
            #[must_use]
            pub fn text(self) -> &'static str {
                match self { $(Step::$name => $text,)* }
            }
        }
    };
}

steps! {
    // In the parent.
    OpenNamespace => "open namespace file",
    OpenLayer => "open layer folder",
    Overlay => "make the overlay (fsopen, fsconfig)",
    OpenSource => "open mount source (open_tree)",
    ImageVolume => "make the overlay of image volume",
    SourceAttributes => "set attributes of mount source (mount_setattr)",
    UserNamespace => "make a user namespace for the owners of mount",
    MapOwners => "show the owners of mount source in the user namespace (mount_setattr)",
    MapLayers => "show the owners of layers in the user namespace (mount_setattr)",
    Channel => "make the channel to the child",
    JoinPid => "join the pid namespace (setns)",
    Clone => "clone3",
    LeavePid => "return from the pid namespace (setns)",
    Talk => "talk to the child",
    View => "make a mount namespace for the OCI runtime (unshare)",
    // In the child.
    Undumpable => "make the process undumpable (prctl)",
    CloseFiles => "close descriptors (close_range)",
    JoinCgroup => "join the cgroup (write to tasks)",
    Session => "start a session (setsid)",
    Keyring => "make a session keyring (keyctl)",
    JoinNamespace => "join namespace (setns)",
    CgroupNamespace => "make the cgroup namespace (unshare)",
    MountNamespace => "make the mount namespace (setns, unshare)",
    Hostname => "set the hostname",
    CutPropagation => "cut mount propagation from the host (mount_setattr)",
    AttachRoot => "mount the root",
    OpenRoot => "open the root",
    Procfs => "open a private procfs",
    MakeFileSystem => "make file system (fsopen, fsconfig, fsmount)",
    MakeTarget => "find or make mount target",
    CheckTarget => "follow the links of mount target",
    SubPath => "find the sub path of image volume",
    Attach => "attach mount (move_mount)",
    MountAttributes => "set attributes of mount (mount_setattr)",
    MakeDevice => "make device node",
    MakeLink => "make link in /dev",
    Console => "make the terminal from the container's devpts",
    Mask => "mask path",
    ReadOnly => "make path read-only",
    Sysctl => "write sysctl",
    MakeCwd => "make working folder",
    Pivot => "change the root (pivot_root)",
    DetachHost => "detach the host's root (umount2)",
    RootAttributes => "set attributes of the root (mount_setattr)",
    OomScore => "set oom_score_adj",
    OpenLabel => "open the security label file of the process",
    Stdio => "set up standard input and output",
    Limit => "set resource limit (setrlimit)",
    NoNewPrivs => "set no_new_privs (prctl)",
    Label => "set the security label for exec",
    Bounding => "drop capabilities from the bounding set (prctl)",
    Seccomp => "load the seccomp program",
    Groups => "set supplemental groups (setgroups)",
    Gid => "set the group (setresgid)",
    Uid => "set the user (setresuid)",
    BecomeRoot => "become root of the user namespace (setresuid)",
    Capabilities => "set capabilities (capset)",
    Ambient => "set ambient capabilities (prctl)",
    Cwd => "enter working folder (chdir)",
    Exec => "execute",
    Signals => "block signals",
}

/// Text from the kernel's file system context ("Unknown parameter 'x'"), cut to fit.
#[derive(Clone, Copy)]
pub struct Detail {
    bytes: [u8; Self::MAX],
    length: u8,
}

impl Detail {
    const MAX: usize = 112;
    pub const NONE: Self = Self {
        bytes: [0; Self::MAX],
        length: 0,
    };

    pub fn new(text: &[u8]) -> Self {
        let mut detail = Self::NONE;
        for (to, from) in detail.bytes.iter_mut().zip(text) {
            *to = *from;
        }
        detail.length = u8::try_from(text.len().min(Self::MAX)).unwrap_or(0);
        detail
    }

    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.length)).unwrap_or_default()
    }
}

/// A step that failed, on its way through the child or to the parent.
#[derive(Clone, Copy)]
pub struct Failure {
    pub step: Step,
    /// Which of the plan's mounts, devices, paths...; 0 when there is just one.
    pub index: u16,
    pub errno: Errno,
    pub detail: Detail,
}

impl std::fmt::Debug for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}[{}]: {}", self.step, self.index, self.errno)
    }
}

pub type Walk<T> = Result<T, Failure>;

impl Failure {
    pub fn new(step: Step, errno: Errno) -> Self {
        Self {
            step,
            index: 0,
            errno,
            detail: Detail::NONE,
        }
    }

    /// The exit code that shells and runtimes use for it.
    pub fn exit_code(&self) -> i32 {
        match (self.step, self.errno) {
            (Step::Exec, Errno::NOENT | Errno::NOTDIR) => 127,
            (Step::Exec, Errno::ACCESS | Errno::NOEXEC | Errno::PERM | Errno::ISDIR) => 126,
            _ => 128,
        }
    }

    /// Length of [`Failure::encode`]'s longest answer.
    pub const ENCODED: usize = 8 + Detail::MAX;

    /// Step, padding, index, errno, detail.
    pub fn encode(&self, buffer: &mut [u8; Self::ENCODED]) -> usize {
        let [low, high] = self.index.to_ne_bytes();
        let [a, b, c, d] = self.errno.raw_os_error().to_ne_bytes();
        let head = [self.step as u8, 0, low, high, a, b, c, d];
        let detail = self.detail.as_bytes();
        for (to, from) in buffer.iter_mut().zip(head.iter().chain(detail)) {
            *to = *from;
        }
        head.len() + detail.len()
    }

    pub fn decode(message: &[u8]) -> Option<Self> {
        let (&[step, _, low, high, a, b, c, d], detail) = message.split_first_chunk::<8>()?;
        Some(Self {
            step: *Step::ALL.get(usize::from(step))?,
            index: u16::from_ne_bytes([low, high]),
            errno: Errno::from_raw_os_error(i32::from_ne_bytes([a, b, c, d])),
            detail: Detail::new(detail),
        })
    }
}

/// Names the step at the place of the call.
pub trait At<T> {
    fn at(self, step: Step) -> Walk<T>;
    fn at_index(self, step: Step, index: usize) -> Walk<T>;
}

impl<T> At<T> for Result<T, Errno> {
    fn at(self, step: Step) -> Walk<T> {
        self.map_err(|errno| Failure::new(step, errno))
    }

    fn at_index(self, step: Step, index: usize) -> Walk<T> {
        let index = u16::try_from(index).unwrap_or(u16::MAX);
        self.map_err(|errno| Failure {
            index,
            ..Failure::new(step, errno)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_survive_the_channel() {
        for step in Step::ALL {
            let failure = Failure {
                index: 513,
                detail: Detail::new(b"why"),
                ..Failure::new(*step, Errno::NOENT)
            };
            let mut buffer = [0; Failure::ENCODED];
            let length = failure.encode(&mut buffer);
            let back = Failure::decode(&buffer[..length]).unwrap();
            assert_eq!((back.step, back.index, back.errno), (*step, 513, Errno::NOENT));
            assert_eq!(back.detail.as_bytes(), b"why");
        }
        assert!(Failure::decode(&[1, 2]).is_none());
        assert!(Failure::decode(&[255; 8]).is_none());
    }

    #[test]
    fn exit_codes_are_those_of_shells() {
        assert_eq!(Failure::new(Step::Exec, Errno::NOENT).exit_code(), 127);
        assert_eq!(Failure::new(Step::Exec, Errno::ACCESS).exit_code(), 126);
        assert_eq!(Failure::new(Step::Exec, Errno::NOEXEC).exit_code(), 126);
        assert_eq!(Failure::new(Step::Cwd, Errno::NOENT).exit_code(), 128);
    }
}
