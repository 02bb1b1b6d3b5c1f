//! Imports go downward only, and the shim stays small: the rules of
//! ARCHITECTURE.md that the compiler does not hold by itself.

use std::{
    collections::BTreeSet,
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

/// The layers, top first. A module may use what is in a layer below its own, and
/// none of its siblings.
const LAYERS: &[&[&str]] = &[
    &["bin"],
    // Not in any program: it feeds all of them.
    &["fuzz"],
    &["purge"],
    &["audit", "cli", "cri"],
    &["pod", "image", "spec", "stream"],
    &["boot", "network", "runtime"],
    // Records are kept for both of them.
    &["store"],
    &["shim"],
    &["launcher"],
    &["cgroup"],
    &["sys"],
];
/// Usable by every module of the agent; among themselves too.
const SHARED: &[&str] = &[
    "config",
    "failpoint",
    "flags",
    "instance",
    "kind",
    "proto",
    "telemetry",
];
/// The right side of the wall: what the shim's binary is made of. Of the shared
/// modules it has the messages only.
const SHIM_SIDE: &[&str] = &["shim", "launcher", "cgroup", "sys"];

#[test]
fn imports_go_downward_only() {
    let mut wrong = Vec::new();
    for file in sources() {
        let text = fs::read_to_string(&file).expect("source reads");
        let module = module_of(&file);
        let root = if module == "bin" { "berth::" } else { "crate::" };
        for used in paths_from(root, &text) {
            if used != module && !allowed(&module, &used) {
                wrong.push(format!("{}: {module} uses {used}", file.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn no_file_is_longer_than_500_lines() {
    let mut wrong = Vec::new();
    for file in sources() {
        let lines = fs::read_to_string(&file).expect("source reads").lines().count();
        if lines > 500 {
            wrong.push(format!("{}: {lines} lines", file.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn unsafe_code_is_in_sys_only() {
    let mut wrong = Vec::new();
    for file in sources().into_iter().filter(|file| module_of(file) != "sys") {
        let text = fs::read_to_string(&file).expect("source reads");
        for (number, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            if code
                .split(|c: char| !c.is_alphanumeric() && c != '_')
                .any(|word| word == "unsafe")
            {
                wrong.push(format!("{}:{}", file.display(), number + 1));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_shim_is_built_without_the_agents_crates() {
    let tree = Command::new(env::var("CARGO").unwrap_or_else(|_| "cargo".into()))
        .args(["tree", "--offline", "-p", "berth", "--no-default-features"])
        .args(["-e", "normal", "--prefix", "none", "--format", "{p}"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo tree runs");
    assert!(tree.status.success(), "{}", String::from_utf8_lossy(&tree.stderr));
    let text = String::from_utf8_lossy(&tree.stdout);
    let crates: BTreeSet<&str> = text.lines().filter_map(|line| line.split(' ').next()).collect();
    assert!(crates.contains("prost"), "not a tree: {text}");
    for banned in [
        "tokio",
        "tonic",
        "tracing",
        "serde",
        "serde_json",
        "hyper",
        "rustls",
    ] {
        assert!(!crates.contains(banned), "the shim depends on {banned}");
    }
}

#[test]
fn the_built_shim_has_no_tokio_in_it() {
    let folder = env::var_os("BERTH_BIN").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("target/berth"),
        PathBuf::from,
    );
    let shim = folder.join("berth-shim");
    let Ok(bytes) = fs::read(&shim) else {
        eprintln!("skipped: {} is not built; `make build` does", shim.display());
        return;
    };
    for word in ["tokio", "tonic", "serde_json"] {
        assert!(
            !bytes.windows(word.len()).any(|window| window == word.as_bytes()),
            "{} is in {}",
            word,
            shim.display()
        );
    }
}

fn allowed(module: &str, used: &str) -> bool {
    if used == "proto" {
        return true;
    }
    if SHIM_SIDE.contains(&module) {
        return layer(module) < layer(used);
    }
    if SHARED.contains(&used) || SHARED.contains(&module) {
        return SHARED.contains(&used) || used == "sys";
    }
    // What people type goes over the socket as everybody's does.
    module != "cli" && layer(module) < layer(used)
}

/// Position in the layers. A shared module is above all of them, so that the
/// shim's side cannot use one.
fn layer(module: &str) -> usize {
    if SHARED.contains(&module) {
        return 0;
    }
    LAYERS
        .iter()
        .position(|layer| layer.contains(&module))
        .unwrap_or_else(|| panic!("the module {module} is in no layer of tests/layers.rs"))
}

/// The module a file belongs to: the first folder or file name below `src`.
fn module_of(file: &Path) -> String {
    let below = file.strip_prefix(source_root()).expect("below src");
    let first = below.components().next().expect("not empty");
    let name = first.as_os_str().to_string_lossy();
    name.trim_end_matches(".rs").to_owned()
}

/// The first segment of every path that starts at `root`: `use crate::a::b`,
/// `use crate::{a, b::c}`, `crate::a::f()`.
fn paths_from(root: &str, text: &str) -> BTreeSet<String> {
    let code: String = text
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .collect::<Vec<_>>()
        .join("\n");
    let mut used = BTreeSet::new();
    for (at, _) in code.match_indices(root) {
        let before = code[..at].chars().next_back();
        if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':' || c == '"') {
            continue;
        }
        let rest = &code[at + root.len()..];
        if let Some(group) = rest.strip_prefix('{') {
            used.extend(first_segments(group));
        } else {
            used.insert(identifier(rest));
        }
    }
    used.retain(|name| lower_case(name));
    used
}

/// The first segments of `a, b::{c, d}, e}` up to the brace that closes it.
fn first_segments(group: &str) -> Vec<String> {
    let mut found = Vec::new();
    let (mut depth, mut start) = (0, true);
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => start = true,
            c if start && !c.is_whitespace() => {
                found.push(identifier(&group[at..]));
                start = false;
            }
            _ => {}
        }
    }
    found
}

fn identifier(text: &str) -> String {
    text.chars()
        .take_while(|c| c.is_alphanumeric() || *c == '_')
        .collect()
}

/// Modules are lower case; what else stands at the root (macros, types) is not one.
fn lower_case(name: &str) -> bool {
    !name.is_empty() && name.chars().all(|c| c.is_ascii_lowercase() || c == '_')
}

fn source_root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// Every source file but lib.rs, which names all modules.
fn sources() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![source_root()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("folder reads") {
            let path = entry.expect("entry reads").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") && path != source_root().join("lib.rs") {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

#[test]
fn paths_are_found_however_they_are_written() {
    let text = "use crate::{a, b::{c, d}, e};\nlet x = crate::f::g();\n// crate::no\nuse crate::H;\npub(crate) fn i() {}";
    let found: Vec<_> = paths_from("crate::", text).into_iter().collect();
    assert_eq!(found, ["a", "b", "e", "f"]);
}
