//! CDI specifications.

use oci_spec::runtime::{Linux, Process};

use super::*;

/// A specification that is taken has names as the format wants them, and its edits
/// leave a spec whose variables, mounts and devices are well-formed, or refuse.
pub fn cdi(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    for yaml in [false, true] {
        let file = match format::File::parse(text, yaml) {
            Ok(file) => file,
            Err(message) => {
                assert!(!message.is_empty());
                continue;
            }
        };
        assert!(
            file.kind.is_ascii() && file.kind.matches('/').count() == 1,
            "{:?}",
            file.kind
        );
        for device in &file.devices {
            assert!(Asked::parse("it", &format!("{}={}", file.kind, device.name)).is_ok());
            let mut spec = Spec::default();
            spec.set_process(Some(Process::default()))
                .set_linux(Some(Linux::default()));
            let edits = [&file.container_edits, &device.container_edits];
            if edits
                .into_iter()
                .try_for_each(|edits| edit::apply(&mut spec, edits))
                .is_ok()
            {
                check(&spec);
            }
        }
    }
}

fn check(spec: &Spec) {
    let process = spec.process().as_ref().expect("it was set");
    for entry in process.env().iter().flatten() {
        assert!(
            entry.split_once('=').is_some_and(|(key, _)| !key.is_empty()),
            "{entry:?}"
        );
    }
    for mount in spec.mounts().iter().flatten() {
        let path = mount.destination();
        assert!(path.is_absolute(), "{path:?}");
        assert!(
            path.components()
                .all(|part| part != std::path::Component::ParentDir),
            "{path:?}"
        );
    }
    for hook in spec
        .hooks()
        .iter()
        .filter_map(|hooks| hooks.prestart().as_ref())
        .flatten()
    {
        assert!(hook.path().is_absolute() && hook.timeout().is_none_or(|seconds| seconds > 0));
    }
}
