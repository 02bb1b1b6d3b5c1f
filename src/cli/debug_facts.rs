//! What `debug` takes from the node itself.

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::Stdio,
};

use tokio::process::Command;

use super::{
    arguments,
    debug::{Bundle, PATIENCE, contents},
};

/// Most shims that are looked at.
const MOST_SHIMS: usize = 200;

/// Of a process: what it is doing, also inside the kernel.
const OF_PROCESS: [&str; 6] = ["cmdline", "status", "wchan", "stack", "cgroup", "limits"];

const OF_NODE: [&str; 14] = [
    "/etc/os-release",
    "/proc/version",
    "/proc/cmdline",
    "/proc/uptime",
    "/proc/loadavg",
    "/proc/meminfo",
    "/proc/mounts",
    "/proc/filesystems",
    "/proc/pressure/cpu",
    "/proc/pressure/io",
    "/proc/pressure/memory",
    "/proc/sys/user/max_user_namespaces",
    "/sys/kernel/security/lsm",
    "/sys/fs/cgroup/cgroup.controllers",
];

/// berthd, and the shims whose bundle is below the state folder.
pub fn processes<W: Write>(bundle: &mut Bundle<W>, state: &Path) -> io::Result<()> {
    let mut shims = 0;
    for entry in fs::read_dir("/proc")?.flatten() {
        let folder = entry.path();
        let pid = entry.file_name().to_string_lossy().into_owned();
        if !pid.bytes().all(|b| b.is_ascii_digit()) {
            continue;
        }
        let line = fs::read(folder.join("cmdline")).unwrap_or_default();
        let first = line.split(|byte| *byte == 0).next().unwrap_or_default();
        let program = String::from_utf8_lossy(first);
        let name = program.rsplit('/').next().unwrap_or_default();
        match name {
            "berthd" => {}
            "berth-shim" if is_below(&folder, state) && shims < MOST_SHIMS => shims += 1,
            _ => continue,
        }
        let mut text = String::new();
        for file in OF_PROCESS {
            // One that ends meanwhile has less to say.
            let found = fs::read(folder.join(file)).unwrap_or_default();
            let found = String::from_utf8_lossy(&found).replace('\0', " ");
            text.push_str(&format!("== {file}\n{}\n", found.trim_end()));
        }
        let open = fs::read_dir(folder.join("fd")).map_or(0, Iterator::count);
        text.push_str(&format!("== open files\n{open}\n"));
        for thread in fs::read_dir(folder.join("task")).into_iter().flatten().flatten() {
            let read = |file: &str| fs::read_to_string(thread.path().join(file)).unwrap_or_default();
            let tid = thread.file_name().to_string_lossy().into_owned();
            text.push_str(&format!(
                "== thread {tid} {} {}\n{}",
                read("comm").trim(),
                read("wchan"),
                read("stack")
            ));
        }
        bundle.add(&format!("processes/{name}-{pid}.txt"), Ok(text.into()))?;
    }
    Ok(())
}

/// Whether a process is in a bundle of the state folder, which is two folders up.
fn is_below(process: &Path, state: &Path) -> bool {
    let place = |path: &Path| fs::metadata(path).map(|found| (found.dev(), found.ino()));
    let above = place(&process.join("cwd/../.."));
    above.is_ok_and(|above| place(state).is_ok_and(|state| state == above))
}

/// What programs say: berthd's own, and systemd's.
pub async fn programs<W: Write>(bundle: &mut Bundle<W>, args: &arguments::Debug) -> io::Result<()> {
    let berthd = berthd();
    let mut flags = vec![
        "--root".into(),
        args.root.clone(),
        "--state".into(),
        args.state.clone(),
    ];
    if let Some(config) = &args.config {
        flags.extend(["--config".into(), config.clone()]);
    }
    let with = |words: &[&str]| -> Vec<PathBuf> {
        let words = words.iter().map(PathBuf::from);
        words.chain(flags.iter().cloned()).collect()
    };
    let audit = run(&berthd, &with(&["audit", "--json"])).await;
    bundle.add("audit.json", audit)?;
    let config = run(&berthd, &with(&["config", "show"])).await;
    bundle.add("config.toml", config)?;
    let lines = args.lines.to_string();
    for (name, line) in [
        (
            "log.txt",
            &["journalctl", "--no-pager", "-u", "berthd", "-n", &lines][..],
        ),
        (
            "kernel-log.txt",
            &["journalctl", "--no-pager", "-k", "-n", "1000"],
        ),
        ("unit.txt", &["systemctl", "--no-pager", "status", "berthd"]),
        (
            "unit-settings.txt",
            &["systemctl", "--no-pager", "show", "berthd"],
        ),
        ("links.txt", &["ip", "-d", "address"]),
        ("routes.txt", &["ip", "route", "show", "table", "all"]),
        ("nft.txt", &["nft", "list", "ruleset"]),
        ("disks.txt", &["df", "-PT"]),
    ] {
        let words: Vec<_> = line.iter().skip(1).map(PathBuf::from).collect();
        let said = run(Path::new(line.first().unwrap_or(&"")), &words).await;
        bundle.add(name, said.map(without_variables))?;
    }
    Ok(())
}

/// Settings of a unit without its variables: a proxy there may have a password.
fn without_variables(said: Vec<u8>) -> Vec<u8> {
    let lines = said.split_inclusive(|byte| *byte == b'\n');
    lines
        .filter(|line| !line.starts_with(b"Environment="))
        .flatten()
        .copied()
        .collect()
}

/// The program beside this one, as they are installed.
fn berthd() -> PathBuf {
    let own = std::env::current_exe().unwrap_or_default();
    let beside = own.with_file_name("berthd");
    if beside.exists() { beside } else { "berthd".into() }
}

/// What a program prints, whatever its status: that of an audit that finds something
/// is not 0.
async fn run(program: &Path, words: &[PathBuf]) -> Result<Vec<u8>, String> {
    let child = Command::new(program)
        .args(words)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = match tokio::time::timeout(PATIENCE, child).await {
        Ok(output) => output.map_err(|error| format!("run {}: {error}", program.display()))?,
        Err(_) => {
            return Err(format!(
                "{} was not done in {} s",
                program.display(),
                PATIENCE.as_secs()
            ));
        }
    };
    if output.stdout.is_empty() && !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!(
            "{}: {}: {}",
            program.display(),
            output.status,
            said.trim()
        ));
    }
    Ok(output.stdout)
}

/// Facts about the node.
pub fn node<W: Write>(bundle: &mut Bundle<W>) -> io::Result<()> {
    for path in OF_NODE {
        bundle.add(&format!("node{path}"), contents(Path::new(path)))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_of_the_unit_are_left_out() {
        let said = b"Id=berthd.service\nEnvironment=HTTPS_PROXY=http://me:secret@proxy\nMainPID=7\n";
        assert_eq!(
            without_variables(said.to_vec()),
            b"Id=berthd.service\nMainPID=7\n"
        );
    }
}
