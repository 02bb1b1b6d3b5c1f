//! What the story tests of the shim stand on: a busybox root in a folder of its
//! own, the real binary, real containers; gone when the test ends, however.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    sync::{
        LazyLock,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use berth::{
    proto::plan::{self, Capabilities, LaunchPlan, mount, namespace},
    runtime::{ForkServer, Shim, ShimBinary},
};

static BINARY: LazyLock<ShimBinary> =
    LazyLock::new(|| ShimBinary::load(Path::new(env!("CARGO_BIN_EXE_berth-shim"))).unwrap());

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A container's folders and plan.
pub struct Fixture {
    pub id: String,
    pub dir: PathBuf,
    pub log: PathBuf,
    pub plan: LaunchPlan,
    root: tempfile::TempDir,
    /// Of its own, for each test has a runtime of its own.
    server: ForkServer,
}

impl Fixture {
    /// A container that runs `script` with busybox's sh.
    pub fn new(script: &str) -> Fixture {
        Fixture::with_args(&["/bin/sh", "-c", script])
    }

    pub fn with_args(args: &[&str]) -> Fixture {
        let root = tempfile::Builder::new()
            .prefix("berth-shim-test-")
            .tempdir()
            .unwrap();
        let lower = root.path().join("lower");
        for folder in ["bin", "dev", "proc", "tmp"] {
            fs::create_dir_all(lower.join(folder)).unwrap();
        }
        fs::copy("/bin/busybox", lower.join("bin/busybox")).unwrap();
        for name in [
            "sh", "cat", "sleep", "seq", "echo", "setsid", "printf", "stty", "true", "ls", "dd", "yes",
            "head",
        ] {
            symlink("busybox", lower.join("bin").join(name)).unwrap();
        }
        for folder in ["upper", "work", "state/rootfs"] {
            fs::create_dir_all(root.path().join(folder)).unwrap();
        }
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let id = format!("{:064x}", u64::from(std::process::id()) << 32 | u64::from(number));
        let log = root.path().join("0.log");
        let path = |name: &str| root.path().join(name).to_str().unwrap().to_owned();
        let plan = LaunchPlan {
            id: id.clone(),
            rootfs: Some(plan::Rootfs {
                lower: vec![path("lower")],
                upper: path("upper"),
                work: path("work"),
                ..Default::default()
            }),
            namespaces: [
                namespace::Kind::Pid,
                namespace::Kind::Mount,
                namespace::Kind::Ipc,
                namespace::Kind::Uts,
            ]
            .map(|kind| plan::Namespace {
                kind: kind.into(),
                path: String::new(),
            })
            .into(),
            mounts: vec![
                mount_of(mount::Kind::Proc, "/proc", &[]),
                mount_of(mount::Kind::Tmpfs, "/dev", &["mode=755", "size=65536k"]),
                mount_of(
                    mount::Kind::Devpts,
                    "/dev/pts",
                    &["newinstance", "ptmxmode=0666", "mode=0620"],
                ),
            ],
            devices: vec![
                device("/dev/null", 3),
                device("/dev/zero", 5),
                device("/dev/full", 7),
            ],
            process: Some(process(args)),
            cgroup: Some(plan::Cgroup {
                path: format!("/berth-shim-test-{}-{number}", std::process::id()),
                resources: None,
                delegated: false,
            }),
            log: Some(plan::Log {
                path: log.to_str().unwrap().to_owned(),
            }),
            hostname: "test".into(),
            ..Default::default()
        };
        Fixture {
            id,
            dir: root.path().join("state"),
            log,
            plan,
            root,
            server: ForkServer::new(BINARY.clone(), None),
        }
    }

    pub fn path(&self) -> &Path {
        self.root.path()
    }

    /// The host's PID namespace instead of an own one.
    pub fn in_host_pids(mut self) -> Fixture {
        self.plan
            .namespaces
            .retain(|ns| ns.kind() != namespace::Kind::Pid);
        self
    }

    pub async fn spawn(&self) -> Shim {
        Shim::spawn(&self.server, &self.id, &self.dir).await.unwrap()
    }

    pub async fn create(&self) -> Shim {
        let shim = self.spawn().await;
        shim.create(&self.plan, &self.dir).await.unwrap();
        shim
    }

    pub async fn start(&self) -> Shim {
        let shim = self.create().await;
        shim.start().await.unwrap();
        shim
    }

    /// Waits until the log has a line with `text`.
    pub async fn await_log(&self, text: &str) {
        until(text, || {
            fs::read_to_string(&self.log).unwrap_or_default().contains(text)
        })
        .await;
    }

    /// Stream, tag and content of each line of the log.
    pub fn lines(&self) -> Vec<String> {
        lines(&self.log)
    }

    /// The folders of the container's cgroup that are there.
    pub fn cgroups(&self) -> Vec<PathBuf> {
        let path = &self.plan.cgroup.as_ref().unwrap().path;
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        mounts
            .lines()
            .filter(|line| line.contains(" - cgroup"))
            .map(|line| PathBuf::from(format!("{}{path}", line.split(' ').nth(4).unwrap())))
            .filter(|folder| folder.exists())
            .collect()
    }

    /// The shim has gone: no process, no zombie, no cgroup, nobody listens.
    pub async fn assert_gone(&self) {
        until("the shim to leave", || shims(&self.id).is_empty()).await;
        assert_eq!(self.cgroups(), Vec::<PathBuf>::new());
        assert!(Shim::connect(&self.id, &self.dir).await.unwrap_err().is_gone());
    }
}

impl Drop for Fixture {
    /// What a failed test has left: the shim, then all that is in its cgroup.
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        println!(
            "shim.log: {}",
            fs::read_to_string(self.dir.join("shim.log")).unwrap_or_default()
        );
        for pid in shims(&self.id) {
            let _ = rustix::process::kill_process(
                rustix::process::Pid::from_raw(pid).unwrap(),
                rustix::process::Signal::KILL,
            );
        }
        if let Ok(cgroup) = berth::cgroup::Cgroup::open(&self.plan.cgroup.as_ref().unwrap().path) {
            let _ = cgroup.kill();
            let _ = cgroup.remove();
        }
    }
}

/// The pids of shims, zombies too, of the container `id`, or of no id any more.
pub fn shims(id: &str) -> Vec<i32> {
    processes(|pid| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.starts_with(b"berth-shim\0") && line.windows(id.len()).any(|part| part == id.as_bytes())
    })
}

/// Zombies that are children of `parent`.
pub fn zombies(parent: u32) -> Vec<i32> {
    let me = parent.to_string();
    processes(|pid| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let mut fields = stat.rsplit(") ").next().unwrap_or_default().split(' ');
        fields.next() == Some("Z") && fields.next() == Some(&me)
    })
}

pub fn processes(wanted: impl Fn(i32) -> bool) -> Vec<i32> {
    fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid| wanted(*pid))
        .collect()
}

pub fn lines(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap();
    assert!(text.is_empty() || text.ends_with('\n'), "a torn line at the end");
    // Not lines(), which would drop a carriage return.
    text.split_terminator('\n')
        .map(|line| {
            let (stamp, rest) = line.split_at(31);
            assert!(
                stamp.ends_with("Z ") && stamp.as_bytes()[10] == b'T',
                "stamp of {line:?}"
            );
            rest.to_owned()
        })
        .collect()
}

pub async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < end, "waited 20 s for: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub fn process(args: &[&str]) -> plan::Process {
    let all = Capabilities {
        bounding: 0xa804_25fb,
        effective: 0xa804_25fb,
        permitted: 0xa804_25fb,
        ..Default::default()
    };
    plan::Process {
        args: args.iter().map(|arg| (*arg).to_owned()).collect(),
        env: vec![b"PATH=/bin".to_vec()],
        cwd: "/".into(),
        capabilities: Some(all),
        no_new_privs: true,
        ..Default::default()
    }
}

pub fn shell(script: &str) -> plan::Process {
    process(&["/bin/sh", "-c", script])
}

fn mount_of(kind: mount::Kind, target: &str, data: &[&str]) -> plan::Mount {
    plan::Mount {
        kind: kind.into(),
        target: target.into(),
        data: data.iter().map(|option| (*option).to_owned()).collect(),
        ..Default::default()
    }
}

fn device(path: &str, minor: u32) -> plan::Device {
    plan::Device {
        path: path.into(),
        kind: plan::device::Kind::Char.into(),
        major: 1,
        minor,
        mode: 0o666,
        ..Default::default()
    }
}
