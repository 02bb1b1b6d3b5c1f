//! Where, when and with what it was measured: no figure means anything without.

use std::{fs, path::Path};

use e2e::kernel;

use crate::{Flags, server::Server};

/// The load of the machine, as the kernel tells it.
pub fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').take(3).collect::<Vec<_>>().join(" ")
}

/// Lines of Markdown. `begun` is the load from before.
pub async fn about(servers: &mut [Server], folder: &Path, begun: &str, flags: &Flags) -> String {
    let release = kernel::output("uname", &["-sr"]);
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = field(&info, "model name").unwrap_or("unknown processor");
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let memory = field(&memory, "MemTotal").unwrap_or_default();
    let date = kernel::output("date", &["-u", "+%Y-%m-%d %H:%M"]);
    let shown = folder.to_string_lossy();
    let disk = kernel::output("df", &["--output=fstype", &shown]);
    let disk = disk.lines().last().unwrap_or_default();
    let unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let mut lines = vec![
        format!(
            "- machine: {cores} cores ({model}), {memory}, {}, cgroup {}, disk {disk}",
            release.trim(),
            if unified { "v2" } else { "v1" }
        ),
        format!(
            "- date: {} UTC; load before {begun}, after {}",
            date.trim(),
            load()
        ),
        format!(
            "- rounds: {} after one that warms up, {} for slow parts",
            flags.rounds,
            flags.few()
        ),
    ];
    for server in servers {
        let version = match server.version().await {
            Ok(told) => format!("{} {}", told.runtime_name, told.runtime_version),
            Err(error) => format!("no answer: {error:#}"),
        };
        let programs: Vec<_> = server.programs().iter().map(|path| described(path)).collect();
        lines.push(format!(
            "- {}: {version} ({})",
            server.name(),
            programs.join(", ")
        ));
    }
    lines.push(String::new());
    lines.join("\n")
}

fn field<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    let line = text.lines().find(|line| line.starts_with(key))?;
    Some(line.split_once(':')?.1.trim())
}

/// A program's name, its version and the size of its file.
fn described(path: &Path) -> String {
    let text = kernel::output(&path.to_string_lossy(), &["--version"]);
    let words: Vec<_> = text.lines().next().unwrap_or("?").split(' ').collect();
    // The last word of containerd's is a commit.
    let version = words
        .iter()
        .find(|word| word.starts_with(|c: char| c.is_ascii_digit()));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let bytes = fs::metadata(path).map(|meta| meta.len()).unwrap_or_default();
    format!(
        "{name} {}, {:.1} MiB",
        version.unwrap_or(&"of unknown version"),
        bytes as f64 / f64::from(1 << 20)
    )
}
