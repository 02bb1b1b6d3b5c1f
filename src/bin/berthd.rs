//! berthd: the life of the agent in order. Flags and configuration, logs,
//! folders, records, network, images, recovery, the socket, and a drain at the end.

use std::{
    fs,
    os::{
        fd::AsFd,
        unix::fs::{DirBuilderExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result};
use berth::{
    audit,
    boot::Boot,
    config::{Config, Place, SHIPPED},
    cri::{self, ImageApi, Node, Paths, Reload, RuntimeApi, handover, server},
    flags::{Command, ConfigCommand, Flags},
    image::Images,
    instance::Instance,
    network::Network,
    pod::Pods,
    purge,
    runtime::{CgroupDriver, ForkServer, Handlers, ShimBinary, Surroundings},
    spec::Host,
    store::Store,
    stream::Server,
    telemetry::{self, log::LogFilter, serve::Listener, trace::Traces},
};
use clap::Parser;
use rustix::{
    fs::{FlockOperation, flock},
    process::{Resource, Rlimit, getrlimit, setrlimit},
};
use sd_notify::NotifyState;
use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// How long calls under way may take after SIGTERM.
const DRAIN: Duration = Duration::from_secs(20);

/// How long an upgrade waits for a moment in which nothing is under way.
const QUIET: Duration = Duration::from_secs(30);

/// How long streaming sessions may hold an upgrade up; the longer ones break.
const SESSIONS: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    match run(&Flags::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("berthd: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(flags: &Flags) -> Result<ExitCode> {
    match &flags.command {
        Some(Command::Config(command)) => {
            return configuration(flags, command).map(|()| ExitCode::SUCCESS);
        }
        Some(Command::Audit { json }) => return look_around(flags, *json),
        Some(Command::Purge { yes: false, .. }) => {
            look_around(flags, false)?;
            println!("nothing is removed: --yes does it");
            return Ok(ExitCode::FAILURE);
        }
        Some(Command::Purge { grace, force, .. }) => {
            return take_all_away(flags, Duration::from_secs(*grace), *force).map(|()| ExitCode::SUCCESS);
        }
        None => {}
    }
    let config = flags.load()?.config;
    raise_open_files();
    let runtime = runtime()?;
    let entered = runtime.enter();
    let traces = Traces::begin(&config.tracing).map_err(anyhow::Error::msg)?;
    let log = telemetry::log::init(&config.log, traces.as_ref().map(Traces::tracer));
    let log = log.map_err(anyhow::Error::msg)?;
    drop(entered);
    let served = runtime.block_on(serve(flags, config, log));
    if let Some(traces) = traces {
        traces.end();
    }
    served.map(|()| ExitCode::SUCCESS)
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("berthd")
        // Those that work for one pod work for the next one too, if it comes soon.
        .thread_keep_alive(Duration::from_secs(2))
        .enable_all()
        .build()
        .context("start the runtime")
}

/// `berthd config`.
fn configuration(flags: &Flags, command: &ConfigCommand) -> Result<()> {
    match command {
        ConfigCommand::Default => print!("{SHIPPED}"),
        ConfigCommand::Check => {
            let files = flags.load()?.files;
            let names: Vec<_> = files.iter().map(|path| path.display().to_string()).collect();
            match &names[..] {
                [] => println!("no configuration file: every value is its default"),
                names => println!("right: {}", names.join(", ")),
            }
        }
        ConfigCommand::Show => print!("{}", flags.load()?.show()?),
    }
    Ok(())
}

/// `berthd audit`.
fn look_around(flags: &Flags, json: bool) -> Result<ExitCode> {
    let report = audit::audit(&audit::Subject {
        root: absolute(&flags.root)?,
        state: absolute(&flags.state)?,
        config: flags.load()?.config,
    })?;
    if json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{}", report.text());
    }
    Ok(if report.orphans.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// `berthd purge --yes`.
fn take_all_away(flags: &Flags, grace: Duration, force: bool) -> Result<()> {
    let subject = audit::Subject {
        root: absolute(&flags.root)?,
        state: absolute(&flags.state)?,
        config: flags.load()?.config,
    };
    let mut log = subject.config.log.clone();
    log.level = "warn".into();
    telemetry::log::init(&log, None).map_err(anyhow::Error::msg)?;
    raise_open_files();
    let recorded = subject.root.join("berth.db").exists();
    let _lock = subject.root.exists().then(|| lock(&subject.root)).transpose()?;
    if recorded {
        let paths = Paths {
            root: subject.root.clone(),
            state: subject.state.clone(),
        };
        let runtime = runtime()?;
        let orderly = runtime.block_on(async {
            let node = open(paths, subject.config.clone()).await?;
            cri::recover(&node).await.context("recover from the records")?;
            let (pods, containers) = (node.pods.sandboxes().len(), node.pods.containers().len());
            println!("removing {pods} pods with {containers} containers");
            let left = cri::purge(&node, grace).await;
            anyhow::ensure!(left.is_empty(), "{}", left.join("; "));
            Ok(())
        });
        runtime.shutdown_timeout(Duration::from_secs(1));
        match orderly {
            Err(error) if force => tracing::warn!(error = format!("{error:#}"), "goes on by force"),
            orderly => orderly.context(
                "pods that could not be removed stay recorded: purge again, or go on without them with --force",
            )?,
        }
    }
    Ok(purge::rest(&subject)?)
}

/// Folders, records and all that the verbs work on.
async fn open(paths: Paths, config: Config) -> Result<Arc<Node>> {
    for folder in [
        &paths.root,
        &paths.root.join("containers"),
        &paths.state,
        &paths.state.join("sandboxes"),
        &paths.state.join("containers"),
    ] {
        private_folder(folder)?;
    }
    let instance = Instance::of(&paths.state);
    let store = Arc::new(Store::open(&paths.root.join("berth.db"))?);
    let boot = Boot::begin(&store, &paths.state)?;
    if boot.was_unclean() {
        store.verify()?;
    }
    let images = Arc::new(Images::open(&paths.root, store.clone(), &config)?);
    match boot.was_unclean() {
        true => images.check(move || boot.in_order())?,
        false => boot.in_order(),
    }
    let network = Arc::new(Network::open(
        &config.network,
        config.handlers_cni_conf_dirs(),
        &instance,
        store.clone(),
    )?);
    let program = ShimBinary::load(&shim_path(&config)?)?;
    let surroundings = Surroundings::detect(&paths.state);
    let handlers = Handlers::new(&config, &paths.state);
    for folder in handlers.own_roots() {
        private_folder(folder)?;
    }
    handlers.look().await;
    let host = Host::detect(&config)?;
    if host.oom_score_adj_min > -1000 {
        tracing::warn!(
            least = host.oom_score_adj_min,
            "berthd lacks CAP_SYS_RESOURCE: a lower oom_score_adj of a pod is raised to this"
        );
    }
    let cgroup = &config.cgroup;
    let cgroups = CgroupDriver::choose(&cgroup.driver, &cgroup.parent, &instance.name).await?;
    let shim = ForkServer::new(program, cgroups.shims());
    Ok(Arc::new(Node {
        config,
        instance,
        paths,
        store,
        images,
        network,
        shim,
        surroundings,
        handlers,
        host,
        pods: Pods::default(),
        cgroups,
        cgroup_parents: Default::default(),
        events: Default::default(),
        operations: Arc::default(),
    }))
}

async fn serve(flags: &Flags, config: Config, log: LogFilter) -> Result<()> {
    // First of all: whoever is told that we are ready may stop us at once.
    let mut signals = Signals::listen()?;
    let socket = server::socket_path(&flags.address)?;
    let paths = Paths {
        root: absolute(&flags.root)?,
        state: absolute(&flags.state)?,
    };
    private_folder(&paths.root)?;
    let _lock = lock(&paths.root)?;
    // Before anything is started: whose children they are is then plain.
    let inherited = handover::inherited()?;
    if inherited.is_some() {
        handover::reap_inherited();
    }
    let group = config.grpc.group;
    let node = open(paths, config).await?;
    let mut reload = Reload {
        path: flags.config().to_owned(),
        named: flags.config.is_some(),
        config: node.config.clone(),
        images: node.images.clone(),
        log,
    };

    if socket.parent() == Some(&node.paths.state) {
        let_through(&node.paths.state, group)?;
    }
    let listener = match inherited {
        Some(listener) => {
            tracing::info!("took over from the berthd before this one");
            UnixListener::from_std(listener).context("take over the socket")?
        }
        None => server::bind(&socket, group).await?,
    };
    // For the berthd after this one; it holds the socket open until then.
    let kept = listener.as_fd().try_clone_to_owned()?;
    cri::recover(&node).await.context("recover from the records")?;
    tokio::spawn(cri::upkeep(node.clone()));
    let streams = cri::Streams { node: node.clone() };
    let metrics = bind_metrics(&node.config).await?;
    let streaming = Server::bind(&node.config.streaming, Arc::new(streams)).await?;
    let urls = streaming.urls();
    tracing::info!(address = %flags.address, root = %node.paths.root.display(), "serving");
    // Without a service manager there is nobody to tell.
    let _ = sd_notify::notify(&[NotifyState::Ready]);

    if let Some(listener) = metrics {
        tokio::spawn(telemetry::serve::serve(listener, cri::page(&node)));
    }
    let runtime = RuntimeApi {
        node: node.clone(),
        urls,
    };
    let image = ImageApi { node: node.clone() };
    let asked = Arc::new(tokio::sync::Notify::new());
    let stop = asked.clone();
    let (stop_streams, streams_asked) = tokio::sync::oneshot::channel::<()>();
    let mut streaming = tokio::spawn(streaming.serve(async move {
        // Sent, or dropped with berthd.
        let _ = streams_asked.await;
    }));
    let mut serving = tokio::spawn(async move {
        server::serve(
            listener,
            group,
            runtime,
            image,
            async move { stop.notified().await },
        )
        .await
    });
    let own = socket.clone();
    let watchdog = tokio::spawn(async move { cri::feed_watchdog(&own).await });
    let end = tokio::select! {
        ended = &mut serving => return Ok(ended??),
        end = signals.end(&mut reload) => end,
    };
    if end == End::HandOver {
        tracing::info!("handing over: calls under way are finished first");
        // Served all the while: what takes long is not in the way of anybody.
        let _ = tokio::time::timeout(QUIET, node.operations.drain()).await;
    }
    // The watchdog rests while a service stops, and the socket is about to close.
    watchdog.abort();
    if end == End::Stop {
        let _ = sd_notify::notify(&[NotifyState::Stopping]);
        tracing::info!("stopping: calls under way are finished, containers run on");
    }
    // Those who listen would stay for ever.
    node.events.close();
    asked.notify_one();
    let _ = stop_streams.send(());
    let drained = tokio::time::timeout(DRAIN, async {
        node.operations.drain().await;
        let _ = (&mut serving).await;
        let left = match end {
            End::Stop => DRAIN,
            // Nobody is served until they are over.
            End::HandOver => SESSIONS,
        };
        let _ = tokio::time::timeout(left, &mut streaming).await;
    });
    if drained.await.is_err() {
        tracing::warn!(
            "calls were still under way after {} s; the next start finishes them",
            DRAIN.as_secs()
        );
    }
    if end == End::HandOver {
        match handover::replace(kept) {
            Ok(never) => match never {},
            Err((path, error)) => {
                let _ = fs::remove_file(&socket);
                return Err(error).with_context(|| format!("execute {}", path.display()));
            }
        }
    }
    if node.images.is_checked()
        && let Err(error) = node.store.take_leave()
    {
        tracing::warn!(%error, "all layers are read at the start after the machine's next stop");
    }
    let _ = fs::remove_file(&socket);
    if let Ok(Some(Place::Unix(path))) = node.config.metrics.place() {
        let _ = fs::remove_file(path);
    }
    Ok(())
}

/// Where metrics are served; None: nowhere.
async fn bind_metrics(config: &Config) -> Result<Option<Listener>> {
    let listener = match config.metrics.place().map_err(anyhow::Error::msg)? {
        None => return Ok(None),
        Some(Place::Tcp(address)) => {
            let listener = TcpListener::bind(address)
                .await
                .with_context(|| format!("serve metrics on {address}"))?;
            tracing::info!(address = %listener.local_addr()?, "serving metrics");
            Listener::Tcp(listener)
        }
        Some(Place::Unix(path)) => {
            let listener = server::bind(&path, config.grpc.group).await?;
            tracing::info!(path = %path.display(), "serving metrics");
            Listener::Unix(listener)
        }
    };
    Ok(Some(listener))
}

/// What berthd was told to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Stop,
    /// The program that is at berthd's path now goes on in its place.
    HandOver,
}

/// The signals that concern berthd, heard from when this is made.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    upgrade: Signal,
}

impl Signals {
    fn listen() -> Result<Signals> {
        let listen = |kind| signal(kind).context("listen for signals");
        Ok(Signals {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            hangup: listen(SignalKind::hangup())?,
            upgrade: listen(SignalKind::user_defined2())?,
        })
    }

    /// SIGTERM or SIGINT, or SIGUSR2 for an upgrade. SIGHUP reloads the configuration,
    /// and never ends berthd.
    async fn end(&mut self, reload: &mut Reload) -> End {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return End::Stop,
                _ = self.interrupt.recv() => return End::Stop,
                _ = self.upgrade.recv() => return End::HandOver,
                _ = self.hangup.recv() => reload.run(),
            }
        }
    }
}

/// Layers and shims are held by descriptors: as many as the service manager allows,
/// not the 1024 that old programs are given. Containers get limits of their own.
fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, ?limit, "raise the limit of open files");
    }
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("folder {}", path.display()))
}

/// A folder that only its owner can enter.
fn private_folder(path: &Path) -> Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .with_context(|| format!("make folder {}", path.display()))
}

/// Lets the group that may use the socket get to it, and nobody else: what is in the
/// state folder cannot be listed, and is closed by itself.
fn let_through(state: &Path, group: Option<u32>) -> Result<()> {
    let mode = if group.is_some() { 0o710 } else { 0o700 };
    std::os::unix::fs::chown(state, None, group)
        .and_then(|()| fs::set_permissions(state, fs::Permissions::from_mode(mode)))
        .with_context(|| format!("let the group of grpc.group into {}", state.display()))
}

/// One berthd per root: the lock is the kernel's, it ends with the process.
fn lock(root: &Path) -> Result<fs::File> {
    let path = root.join("lock");
    let file = fs::File::create(&path).with_context(|| format!("make {}", path.display()))?;
    flock(&file, FlockOperation::NonBlockingLockExclusive).with_context(|| {
        format!(
            "root {} is used by another berthd: stop it, or use another --root",
            root.display()
        )
    })?;
    Ok(file)
}

/// The shim's binary: of the configuration, or beside this one.
fn shim_path(config: &Config) -> Result<PathBuf> {
    if !config.runtime.shim.as_os_str().is_empty() {
        return Ok(config.runtime.shim.clone());
    }
    let own = std::env::current_exe().context("find the folder of berthd")?;
    Ok(own.with_file_name("berth-shim"))
}
