//! Which servers there are, their programs, folders, networks and configurations.
//! All are told the same where they have the same setting.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, ensure};
use e2e::{Result, node};

use crate::{
    accounting::Group,
    content::Images,
    enclosure,
    server::{Chain, Plan, Server},
    table,
};

/// Where programs of the peers are.
struct Programs {
    folders: Vec<PathBuf>,
}

/// Where Debian and the plugins' own releases put CNI plugins.
const PLUGIN_FOLDERS: [&str; 2] = ["/usr/lib/cni", "/opt/cni/bin"];
/// Beside PATH: users that are not root often lack them.
const SYSTEM_FOLDERS: [&str; 2] = ["/usr/sbin", "/sbin"];

impl Programs {
    fn find(&self, name: &str, package: &str) -> Result<PathBuf> {
        let mut paths = self.folders.iter().map(|folder| folder.join(name));
        paths
            .find(|path| path.is_file())
            .with_context(|| format!("{name} is missing: install {package}, or name its folder in PEER_BIN"))
    }

    /// The folder with the plugins of the chain.
    fn plugins(&self) -> Result<PathBuf> {
        // iproute2 has a program with the name of the plugin bridge.
        let portmap = self.find("portmap", "containernetworking-plugins")?;
        let folder = portmap.parent().unwrap_or(Path::new("/")).to_path_buf();
        for name in ["bridge", "host-local", "loopback"] {
            let path = folder.join(name);
            ensure!(path.is_file(), "the CNI plugin {} is missing", path.display());
        }
        Ok(folder)
    }

    /// PATH for the servers.
    fn path(&self) -> String {
        let folders: Vec<_> = self.folders.iter().map(|f| f.display().to_string()).collect();
        folders.join(":")
    }
}

/// Folders of the run, one a server.
struct Ground<'a> {
    run: &'a Path,
    programs: Programs,
    images: &'a Images,
}

enum Kind {
    Berth(Chain),
    /// With which OCI runtime.
    Containerd(&'static str),
}

/// In the order of a round.
const SERVERS: &[(&str, Kind)] = &[
    ("berth", Kind::Berth(Chain::None)),
    ("berth-cni", Kind::Berth(Chain::Added)),
    ("containerd-runc", Kind::Containerd("runc")),
    ("containerd-crun", Kind::Containerd("crun")),
];

/// None is started yet.
pub fn servers(run: &Path, peer_bin: &str, only: &str, images: &Images) -> Result<Vec<Server>> {
    let path = env::var("PATH").unwrap_or_default();
    let folders = peer_bin.split(':').chain(path.split(':')).chain(SYSTEM_FOLDERS);
    let folders = folders.chain(PLUGIN_FOLDERS).filter(|folder| !folder.is_empty());
    let ground = Ground {
        run,
        programs: Programs {
            folders: folders.map(PathBuf::from).collect(),
        },
        images,
    };
    // A whole name means that one, not the variant of it.
    let exact = SERVERS.iter().any(|(name, _)| *name == only);
    let mut servers = Vec::new();
    for (number, (name, kind)) in (1..).zip(SERVERS) {
        if *name != only && (exact || !name.contains(only)) {
            continue;
        }
        let plan = match kind {
            Kind::Berth(chain) => ground.berth(name, number, *chain)?,
            Kind::Containerd(runtime) => ground.containerd(name, number, runtime)?,
        };
        let group = Group::make(&enclosure::group(run), plan.name)?;
        servers.push(Server::new(plan, group, images));
    }
    ensure!(!servers.is_empty(), "no server's name holds {only:?}");
    Ok(servers)
}

impl Ground<'_> {
    /// The folder of a server, with what all of them have in it. `number` tells
    /// their bridges and subnets apart.
    fn folder(&self, name: &str, number: u8, chain: bool) -> Result<PathBuf> {
        let folder = self.run.join(name);
        let host = self.images.host();
        let hosts = folder.join("certs.d").join(&host);
        for path in [&hosts, &folder.join("cni"), &folder.join("logs")] {
            fs::create_dir_all(path).with_context(|| format!("make {}", path.display()))?;
        }
        let registry = format!(
            "server = \"http://{host}\"\n[host.\"http://{host}\"]\ncapabilities = [\"pull\", \"resolve\"]\n"
        );
        fs::write(hosts.join("hosts.toml"), registry)?;
        if chain {
            let text = format!(
                r#"{{"cniVersion": "1.0.0", "name": "bench{number}", "plugins": [
  {{"type": "bridge", "bridge": "bench{number}", "isGateway": true, "ipMasq": true,
    "ipam": {{"type": "host-local", "dataDir": "{}/ipam",
      "ranges": [[{{"subnet": "10.{}.0.0/16"}}]], "routes": [{{"dst": "0.0.0.0/0"}}]}}}},
  {{"type": "portmap", "capabilities": {{"portMappings": true}}}}]}}"#,
                folder.display(),
                210 + number
            );
            fs::write(folder.join("cni/10-bench.conflist"), text)?;
        }
        Ok(folder)
    }

    fn berth(&self, name: &'static str, number: u8, chain: Chain) -> Result<Plan> {
        let folder = self.folder(name, number, chain != Chain::None)?;
        let shown = folder.display();
        let config = format!(
            "[network]\ncni_conf_dir = \"{shown}/cni\"\ncni_bin_dirs = [\"{}\"]\nbridge = \"bench{number}\"\n\
            subnets = [\"10.{}.0.0/16\"]\n[cgroup]\ndriver = \"cgroupfs\"\n[registry]\nconfig_path = \"{shown}/certs.d\"\n",
            self.programs.plugins()?.display(),
            210 + number
        );
        let file = folder.join("config.toml");
        fs::write(&file, config)?;
        let program = std::path::absolute(node::binary("berthd"))?;
        let programs = vec![program.clone()];
        let mut command = vec![program, "--config".into(), file];
        command.extend(["--root".into(), folder.join("root")]);
        command.extend(["--state".into(), state(name)]);
        let socket = state(name).join("berth.sock");
        command.extend(["--address".into(), format!("unix://{}", socket.display()).into()]);
        Ok(Plan {
            name,
            column: table::OURS.into(),
            chain,
            folder,
            socket,
            command,
            programs,
            path: self.programs.path(),
        })
    }

    fn containerd(&self, name: &'static str, number: u8, runtime: &str) -> Result<Plan> {
        let folder = self.folder(name, number, true)?;
        let shown = folder.display();
        let socket = folder.join("containerd.sock");
        self.programs.find("containerd-shim-runc-v2", "containerd")?;
        self.programs.find("iptables", "iptables")?;
        let program = self.programs.find(runtime, runtime)?;
        // Version 2 is read by every release since 1.3.
        let config = format!(
            r#"version = 2
root = "{shown}/root"
state = "{state}"
disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.btrfs"]
[grpc]
address = "{socket}"
[ttrpc]
address = "{socket}.ttrpc"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{pause}"
disable_tcp_service = true
restrict_oom_score_adj = {restrict}
netns_mounts_under_state_dir = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{plugins}"
conf_dir = "{shown}/cni"
[plugins."io.containerd.grpc.v1.cri".registry]
config_path = "{shown}/certs.d"
[plugins."io.containerd.grpc.v1.cri".containerd]
default_runtime_name = "oci"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.oci]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.oci.options]
BinaryName = "{program}"
SystemdCgroup = false
"#,
            socket = socket.display(),
            state = state(name).display(),
            pause = self.images.pause,
            plugins = self.programs.plugins()?.display(),
            program = program.display(),
            restrict = !may_lower_oom_score()?,
        );
        let file = folder.join("config.toml");
        fs::write(&file, config)?;
        let containerd = self.programs.find("containerd", "containerd")?;
        let programs = vec![containerd.clone(), program];
        let command = vec![containerd, "--config".into(), file];
        Ok(Plan {
            name,
            column: format!("containerd + {runtime}"),
            chain: Chain::Always,
            folder,
            socket,
            command,
            programs,
            path: self.programs.path(),
        })
    }
}

/// The state of a server is in memory, as it is on nodes.
fn state(name: &str) -> PathBuf {
    Path::new("/run").join(name)
}

/// Without CAP_SYS_RESOURCE nobody may give a sandbox the score that peers ask for.
fn may_lower_oom_score() -> Result<bool> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let mask = u64::from_str_radix(line.context("no CapEff")?.trim(), 16)?;
    Ok(mask & (1 << 24) != 0)
}
