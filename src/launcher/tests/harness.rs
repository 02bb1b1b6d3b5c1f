//! A container for a test.

use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{WaitId, WaitIdOptions, waitid};

use super::super::overlay::Way;
use super::super::{Error, ExecProcess, ExecTarget, Init, Stdio, create_by, exec};
use crate::cgroup;
use crate::proto::plan::{
    Capabilities, Cgroup, Device, LaunchPlan, Mount, Namespace, Process, Rootfs, mount, namespace,
};

/// The capabilities that containers have by default.
pub const DEFAULT_CAPABILITIES: u64 = 0xa804_25fb;

/// False, with the reason printed, when launches cannot be tested here.
pub fn possible() -> bool {
    let reason = if !rustix::process::geteuid().is_root() {
        "not root"
    } else if !Path::new("/bin/busybox").exists() {
        "no /bin/busybox (busybox-static)"
    } else {
        return true;
    };
    eprintln!("skipped: {reason}");
    false
}

/// Folders of one container and its plan, to be changed by the test before [`Container::create`].
pub struct Container {
    pub folder: tempfile::TempDir,
    pub plan: LaunchPlan,
    pub way: Way,
}

pub fn mount(kind: mount::Kind, target: &str) -> Mount {
    Mount {
        kind: kind.into(),
        target: target.into(),
        ..Mount::default()
    }
}

pub fn bind(source: &Path, target: &str) -> Mount {
    Mount {
        source: source.to_str().unwrap().into(),
        bind_recursive: true,
        ..mount(mount::Kind::Bind, target)
    }
}

pub fn process(script: &str) -> Process {
    let all = DEFAULT_CAPABILITIES;
    Process {
        args: ["/bin/busybox", "sh", "-c", script].map(String::from).to_vec(),
        env: vec![b"PATH=/bin".to_vec()],
        cwd: "/".into(),
        capabilities: Some(Capabilities {
            bounding: all,
            effective: all,
            permitted: all,
            ..Capabilities::default()
        }),
        ..Process::default()
    }
}

fn device(path: &str, minor: u32) -> Device {
    Device {
        path: path.into(),
        major: 1,
        minor,
        mode: 0o666,
        ..Device::default()
    }
}

/// A layer with busybox under all its names that tests use.
pub fn layer(at: &Path) {
    for folder in ["bin", "proc", "sys", "dev", "tmp", "etc"] {
        std::fs::create_dir_all(at.join(folder)).unwrap();
    }
    std::fs::copy("/bin/busybox", at.join("bin/busybox")).unwrap();
    for name in [
        "sh", "cat", "ls", "sleep", "mount", "readlink", "id", "stat", "true",
    ] {
        std::os::unix::fs::symlink("busybox", at.join("bin").join(name)).unwrap();
    }
    std::fs::write(at.join("bin/not-executable"), "x").unwrap();
    std::fs::write(at.join("bin/not-a-program"), "x").unwrap();
    let mode = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(at.join("bin/not-a-program"), mode).unwrap();
}

impl Container {
    pub fn new(script: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        layer(&at("layers/1"));
        for name in ["layers/2", "upper", "work", "bundle"] {
            std::fs::create_dir_all(at(name)).unwrap();
        }
        std::fs::set_permissions(at("upper"), std::fs::Permissions::from_mode(0o755)).unwrap();
        let text = |name: &str| at(name).to_str().unwrap().to_owned();
        let kinds = [
            namespace::Kind::Pid,
            namespace::Kind::Network,
            namespace::Kind::Mount,
            namespace::Kind::Ipc,
            namespace::Kind::Uts,
            namespace::Kind::Cgroup,
        ];
        let mut pts = mount(mount::Kind::Devpts, "/dev/pts");
        pts.data = ["newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]
            .map(String::from)
            .to_vec();
        let mut dev = mount(mount::Kind::Tmpfs, "/dev");
        dev.data = ["mode=755", "size=65536k"].map(String::from).to_vec();
        dev.attr_set = 2;
        let plan = LaunchPlan {
            id: format!("test-{}-{number}", std::process::id()),
            rootfs: Some(Rootfs {
                lower: vec![text("layers/2"), text("layers/1")],
                upper: text("upper"),
                work: text("work"),
                ..Rootfs::default()
            }),
            namespaces: kinds
                .map(|kind| Namespace {
                    kind: kind.into(),
                    path: String::new(),
                })
                .to_vec(),
            mounts: vec![
                Mount {
                    attr_set: 14,
                    ..mount(mount::Kind::Proc, "/proc")
                },
                dev,
                pts,
                Mount {
                    attr_set: 14,
                    ..mount(mount::Kind::Mqueue, "/dev/mqueue")
                },
                Mount {
                    attr_set: 15,
                    ..mount(mount::Kind::Sysfs, "/sys")
                },
                Mount {
                    attr_set: 15,
                    ..mount(mount::Kind::Cgroup, "/sys/fs/cgroup")
                },
            ],
            devices: vec![device("/dev/null", 3), device("/dev/zero", 5)],
            process: Some(process(script)),
            cgroup: Some(Cgroup {
                path: format!("/berth-test-{}-{number}/container", std::process::id()),
                resources: None,
                delegated: false,
            }),
            ..LaunchPlan::default()
        };
        Self {
            folder,
            plan,
            way: Way::Newest,
        }
    }

    pub fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn process(&mut self) -> &mut Process {
        self.plan.process.as_mut().unwrap()
    }

    pub fn create(&self) -> Result<Running, Error> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let stdio = Stdio {
            stdin: null(),
            stdout: write.try_clone().unwrap(),
            stderr: write,
        };
        let init = create_by(&self.plan, &self.at("bundle"), stdio, self.way)?;
        Ok(Running { init, output: read })
    }

    pub fn start(&self) -> Running {
        let mut running = self.create().unwrap();
        running.init.start().unwrap();
        running
    }

    /// Runs it to its end: what it wrote, and its exit code.
    pub fn run(&self) -> (String, i32) {
        self.start().finish()
    }

    /// The text of a create or start that must fail, and its exit code. Nothing may be left.
    pub fn fail(&self) -> (String, i32) {
        let error = match self.create() {
            Err(error) => error,
            Ok(mut running) => {
                let error = running.init.start().unwrap_err();
                assert_eq!(running.wait(), error.exit_code());
                error
            }
        };
        assert_eq!(self.cgroup_folders(), Vec::<PathBuf>::new());
        (error.to_string(), error.exit_code())
    }

    /// Folders of this container's cgroup that exist, its own parent included.
    pub fn cgroup_folders(&self) -> Vec<PathBuf> {
        let path = &self.plan.cgroup.as_ref().unwrap().path;
        let parent = path.rsplit_once('/').unwrap().0;
        let layout = cgroup::Layout::detect().unwrap();
        let folders = layout
            .hierarchies
            .iter()
            .flat_map(|h| [h.folder(path), h.folder(parent)]);
        folders.filter(|folder| folder.exists()).collect()
    }
}

pub fn null() -> OwnedFd {
    std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")
        .unwrap()
        .into()
}

/// The exit code of a child of ours, as shells say it.
pub fn wait(pidfd: &OwnedFd) -> i32 {
    let status = waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED)
        .unwrap()
        .unwrap();
    status
        .exit_status()
        .unwrap_or_else(|| 128 + status.terminating_signal().unwrap())
}

pub fn read_all(from: &OwnedFd) -> String {
    let mut text = Vec::new();
    // A terminal says EIO when its last slave is closed.
    let _ = std::fs::File::from(from.try_clone().unwrap()).read_to_end(&mut text);
    String::from_utf8_lossy(&text).into_owned()
}

/// A created container; killed and removed when dropped.
pub struct Running {
    pub init: Init,
    pub output: OwnedFd,
}

impl Running {
    pub fn wait(&self) -> i32 {
        wait(&self.init.pidfd)
    }

    pub fn finish(self) -> (String, i32) {
        let text = read_all(&self.output);
        (text, self.wait())
    }

    /// Waits for a line that the container writes when it is where the test wants it.
    pub fn line(&self) -> String {
        let mut line = Vec::new();
        let mut byte = [0u8];
        while rustix::io::read(&self.output, &mut byte).unwrap() == 1 && byte[0] != b'\n' {
            line.push(byte[0]);
        }
        String::from_utf8(line).unwrap()
    }

    pub fn try_exec(&self, id: &str, process: &Process) -> Result<(ExecProcess, OwnedFd), Error> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let stdio = Stdio {
            stdin: null(),
            stdout: write.try_clone().unwrap(),
            stderr: write,
        };
        let target = ExecTarget {
            runtime: None,
            pidfd: self.init.pidfd.as_fd(),
            cgroup: &self.init.cgroup,
            user: self.init.user.as_ref(),
        };
        exec(&target, process, id, stdio).map(|started| (started, read))
    }

    pub fn exec(&self, id: &str, script: &str) -> (String, i32) {
        let (started, output) = self.try_exec(id, &process(script)).unwrap();
        let text = read_all(&output);
        let code = wait(&started.pidfd);
        if let Some(cgroup) = &started.cgroup {
            cgroup.remove().unwrap();
        }
        (text, code)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.init.cgroup.kill();
        let _ = waitid(WaitId::PidFd(self.init.pidfd.as_fd()), WaitIdOptions::EXITED);
        let removed = self.init.cgroup.remove();
        cgroup::remove_empty_parents(self.init.cgroup.parents_made());
        if !std::thread::panicking() {
            removed.unwrap();
        }
    }
}
