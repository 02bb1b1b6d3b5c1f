//! The network on the real kernel. Each test has a node of its own: a thread in
//! a fresh network namespace, whose runtime and commands inherit it. The
//! machine's own network is never touched.

mod bridge;
mod cni;
mod hostport;
mod netns;

use std::{
    collections::BTreeMap,
    future::Future,
    io::{ErrorKind, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use super::{
    Network, PodNetwork, PortMapping, Protocol,
    host::{inside, open_netns},
    netlink::{LOOPBACK, Netlink},
    netns::{Wanted, create, remove},
};
use crate::{config, instance::Instance, store::Store, sys::unshare::unshare};

const SHORT: Duration = Duration::from_millis(300);
const LONG: Duration = Duration::from_secs(10);

/// A node of a test.
struct Node {
    dir: tempfile::TempDir,
    runtime: tokio::runtime::Runtime,
    config: config::Network,
    /// The CNI folders of runtime handlers.
    cni_conf_dirs: BTreeMap<String, PathBuf>,
    store: Arc<Store>,
    network: Network,
}

/// Runs a test on a node of its own.
fn on_a_node(test: impl FnOnce(&mut Node) + Send) {
    on_a_node_with(|_| {}, test);
}

fn on_a_node_with(change: impl FnOnce(&mut config::Network) + Send, test: impl FnOnce(&mut Node) + Send) {
    thread::scope(|scope| {
        let node = scope.spawn(|| {
            unshare(true, false, false).unwrap();
            Netlink::open().unwrap().set_up("lo", LOOPBACK).unwrap();
            let dir = tempfile::tempdir().unwrap();
            let mut config = config::Network {
                cni_conf_dir: dir.path().join("net.d"),
                ..config::Network::default()
            };
            change(&mut config);
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            let store = Arc::new(Store::open(&dir.path().join("berth.db")).unwrap());
            let network =
                Network::open(&config, BTreeMap::new(), &instance(dir.path()), store.clone()).unwrap();
            let mut node = Node {
                dir,
                runtime,
                config,
                cni_conf_dirs: BTreeMap::new(),
                store,
                network,
            };
            test(&mut node);
        });
        if let Err(panic) = node.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

fn instance(dir: &Path) -> Instance {
    Instance::of(&dir.join("state"))
}

impl Drop for Node {
    fn drop(&mut self) {
        for entry in std::fs::read_dir(self.dir.path().join("pods"))
            .into_iter()
            .flatten()
            .flatten()
        {
            let _ = remove(&entry.path());
        }
    }
}

impl Node {
    fn run<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }

    fn bridge(&self) -> String {
        instance(self.dir.path()).bridge
    }

    fn table(&self) -> String {
        instance(self.dir.path()).table
    }

    /// As after a restart of berthd.
    fn restart(&mut self) {
        let instance = instance(self.dir.path());
        self.network = Network::open(
            &self.config,
            self.cni_conf_dirs.clone(),
            &instance,
            self.store.clone(),
        )
        .unwrap();
    }

    /// A pod with namespaces and without a network.
    fn pod(&self, id: &str) -> PodNetwork {
        self.pod_with(id, &[])
    }

    fn pod_with(&self, id: &str, sysctls: &[(&str, &str)]) -> PodNetwork {
        let dir = self.dir.path().join("pods").join(id);
        std::fs::create_dir_all(&dir).unwrap();
        let sysctls: BTreeMap<String, String> = sysctls
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect();
        create(&dir, &wanted(&sysctls)).unwrap();
        PodNetwork {
            id: id.to_owned(),
            name: format!("name-{id}"),
            namespace: "default".into(),
            uid: format!("uid-{id}"),
            netns: dir.join("net"),
            ..PodNetwork::default()
        }
    }

    fn attach(&self, pod: &PodNetwork) -> Vec<IpAddr> {
        self.run(self.network.attach(pod)).unwrap().ips
    }

    fn detach(&self, id: &str) {
        self.run(self.network.detach(id)).unwrap();
    }

    /// Nothing of berth is in the kernel or the records.
    fn assert_clean(&self) {
        let names: Vec<String> = Netlink::open()
            .unwrap()
            .links()
            .unwrap()
            .into_iter()
            .map(|l| l.name)
            .collect();
        let ours = names
            .iter()
            .filter(|name| name.starts_with("bv") || **name == self.bridge());
        assert_eq!(ours.count(), 0, "{names:?}");
        assert_eq!(shell("nft list tables"), "");
        assert_eq!(self.store.network_sandboxes().unwrap(), Vec::<String>::new());
        assert_eq!(self.store.network_addresses(None).unwrap(), []);
        assert_eq!(self.store.network_ports(None).unwrap(), []);
    }
}

fn wanted(sysctls: &BTreeMap<String, String>) -> Wanted<'_> {
    Wanted {
        net: true,
        ipc: false,
        uts: false,
        user: None,
        hostname: "",
        sysctls,
    }
}

fn port(protocol: Protocol, host_port: u16, container_port: u16, host_ip: Option<&str>) -> PortMapping {
    PortMapping {
        protocol,
        container_port,
        host_port,
        host_ip: host_ip.map(|ip| ip.parse().unwrap()),
    }
}

/// Runs a command line in the calling thread's namespace; it must succeed.
fn shell(line: &str) -> String {
    let output = Command::new("sh").args(["-c", line]).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{line}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

/// Runs in the namespace at the path.
fn within<T: Send>(netns: &Path, work: impl FnOnce() -> T + Send) -> T {
    let fd = open_netns(netns).unwrap();
    inside(&fd, netns, || Ok::<T, super::host::Error>(work())).unwrap()
}

/// A server inside a namespace that says who it is and who called.
struct Server {
    _thread: thread::JoinHandle<()>,
}

fn tcp_server(netns: Option<&Path>, address: &str, name: &'static str) -> Server {
    let listen = || TcpListener::bind(address).unwrap();
    let listener = netns.map_or_else(listen, |netns| within(netns, listen));
    let serve = move || {
        while let Ok((mut stream, peer)) = listener.accept() {
            let _ = write!(stream, "{name} {}", peer.ip());
        }
    };
    Server {
        _thread: thread::spawn(serve),
    }
}

fn udp_server(netns: &Path, address: &str, name: &'static str) -> Server {
    let socket = within(netns, || UdpSocket::bind(address).unwrap());
    let serve = move || {
        let mut buffer = [0; 64];
        while let Ok((length, peer)) = socket.recv_from(&mut buffer) {
            let question = String::from_utf8_lossy(&buffer[..length]);
            let _ = socket.send_to(format!("{name} {} {question}", peer.ip()).as_bytes(), peer);
        }
    };
    Server {
        _thread: thread::spawn(serve),
    }
}

/// What the server says to who connects from the calling thread's namespace. A socket
/// keeps the source address that it took at first, and the node's own may still be looked
/// for duplicates then: the next one takes another.
fn ask(ip: IpAddr, port: u16) -> std::io::Result<String> {
    let end = Instant::now() + LONG;
    let mut stream = loop {
        match TcpStream::connect_timeout(&SocketAddr::new(ip, port), Duration::from_secs(2)) {
            Err(error) if error.kind() == ErrorKind::TimedOut && Instant::now() < end => {}
            answer => break answer?,
        }
    };
    stream.set_read_timeout(Some(LONG))?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// As [`ask`] where nothing should answer.
fn refused(ip: IpAddr, port: u16) -> bool {
    TcpStream::connect_timeout(&SocketAddr::new(ip, port), SHORT).is_err()
}

/// What the server says to this question: a late answer to an earlier one, perhaps of
/// another server, is passed over.
fn ask_udp(socket: &UdpSocket, ip: IpAddr, port: u16) -> std::io::Result<String> {
    static QUESTIONS: AtomicU32 = AtomicU32::new(0);
    let question = format!("?{}", QUESTIONS.fetch_add(1, Ordering::Relaxed));
    socket.set_read_timeout(Some(SHORT))?;
    socket.send_to(question.as_bytes(), SocketAddr::new(ip, port))?;
    let mut buffer = [0; 64];
    loop {
        let (length, _) = socket.recv_from(&mut buffer)?;
        let answer = String::from_utf8_lossy(&buffer[..length]);
        if let Some(answer) = answer.strip_suffix(&format!(" {question}")) {
            return Ok(answer.to_owned());
        }
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn id(n: u32) -> String {
    format!("{n:011x}").repeat(6)
}

/// The outside of a node: a namespace that its link "up0" leads to. The node is
/// 198.51.100.1 and 2001:db8::1, the outside .2 and ::2; it has no routes.
fn outside(node: &Node) -> PathBuf {
    let netns = node.pod("outside").netns;
    let path = netns.display();
    shell(&format!(
        "ip link add up0 mtu 1400 type veth peer name out0 && ip link set out0 netns {path} &&
         ip addr add 198.51.100.1/24 dev up0 && ip addr add 2001:db8::1/64 dev up0 nodad &&
         ip link set up0 up && ip route add default via 198.51.100.2 &&
         nsenter --net={path} sh -ec 'ip addr add 198.51.100.2/24 dev out0
            ip addr add 2001:db8::2/64 dev out0 nodad; ip link set out0 up' &&
         ip -6 route add default via 2001:db8::2"
    ));
    netns
}
