//! Image volumes: mounts of a request whose content is an image.
//!
//! In config.json they are overlay mounts without an upper folder, as any runtime
//! knows them, with one option of our own for the part that is mounted.

use oci_spec::runtime::Mount;

use super::{Error, Inputs, mounts};
use crate::proto::cri::{self, MountPropagation};

/// "x-berth-subpath=PATH", resolved inside of the image.
pub(super) const SUB_PATH: &str = "x-berth-subpath";
pub(super) const LOWER: &str = "lowerdir";

/// The mount of an image volume, the `index`-th of the request; its layers are in
/// the inputs. Read-only but executable; of device nodes and setuid bits in an image
/// that is only looked at, nothing good can come.
pub(super) fn requested(index: usize, asked: &cri::Mount, inputs: &Inputs<'_>) -> Result<Mount, Error> {
    check(asked)?;
    let field = |name: &str| format!("mounts[{:?}].{name}", asked.container_path);
    let target = mounts::target_of(&asked.container_path)
        .map_err(|message| Error::invalid(field("container_path"), message))?;
    if target == "/proc" || target.starts_with("/proc/") {
        return Err(Error::invalid(
            field("container_path"),
            "an image cannot be mounted in /proc",
        ));
    }
    let volume = inputs.volume_images.iter().find(|volume| volume.mount == index);
    let Some(volume) = volume else {
        return Err(Error::precondition(
            field("image"),
            "the image's layers are not there",
        ));
    };
    let layers: Vec<String> = volume
        .layers
        .iter()
        .map(|layer| escape(&layer.to_string_lossy()))
        .collect();
    let mut options = vec!["ro".to_owned(), "nosuid".to_owned(), "nodev".to_owned()];
    options.extend(mounts::extra_options(asked)?.into_iter().map(str::to_owned));
    options.push(format!("{LOWER}={}", layers.join(":")));
    if !asked.image_sub_path.is_empty() {
        options.push(format!("{SUB_PATH}={}", asked.image_sub_path));
    }
    let mut mount = Mount::default();
    mount
        .set_destination(target.into())
        .set_typ(Some("overlay".into()))
        .set_source(Some("overlay".into()))
        .set_options(Some(options));
    Ok(mount)
}

/// Whether an option is for the launcher, and not one that every mount may have.
pub(super) fn is_own(option: &str) -> bool {
    let key = option.split('=').next().unwrap_or_default();
    [LOWER, SUB_PATH].contains(&key)
}

/// What a mount of an image must not ask for.
pub(super) fn check(asked: &cri::Mount) -> Result<(), Error> {
    let field = |name: &str| format!("mounts[{:?}].{name}", asked.container_path);
    let wrong = |name: &str, message: &str| Err(Error::invalid(field(name), message));
    if asked.image.as_ref().is_none_or(|image| image.image.is_empty()) {
        return wrong("image", "names no image");
    }
    if !asked.host_path.is_empty() {
        return wrong(
            "host_path",
            "not possible together with image; leave one of them out",
        );
    }
    if !asked.readonly {
        return wrong("readonly", "an image volume is read-only; set readonly to true");
    }
    if asked.propagation != i32::from(MountPropagation::PropagationPrivate) {
        return wrong(
            "propagation",
            "an image volume has no mount of the host; use private",
        );
    }
    if asked.image_sub_path.contains('\0') {
        return wrong("image_sub_path", "not a path");
    }
    if asked.image_sub_path.split('/').any(|part| part == "..") {
        return wrong("image_sub_path", "must not contain \"..\"");
    }
    Ok(())
}

/// Colons separate layers, commas separate options; a backslash takes that from them.
fn escape(layer: &str) -> String {
    let mut escaped = String::with_capacity(layer.len());
    for letter in layer.chars() {
        if matches!(letter, ':' | ',' | '\\') {
            escaped.push('\\');
        }
        escaped.push(letter);
    }
    escaped
}

/// The layers of a `lowerdir` option.
pub(super) fn layers(option: &str) -> Vec<String> {
    let mut layers = vec![String::new()];
    let mut letters = option.chars();
    while let Some(letter) = letters.next() {
        let escaped = if letter == '\\' { letters.next() } else { None };
        match (letter, escaped, layers.last_mut()) {
            (_, Some(letter), Some(layer)) => layer.push(letter),
            (':', None, _) => layers.push(String::new()),
            (letter, None, Some(layer)) => layer.push(letter),
            _ => {}
        }
    }
    layers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_keep_their_colons() {
        let paths = ["/a:b/1", "/c,d/2", "/e\\f/3"];
        let option = paths.map(escape).join(":");
        assert_eq!(layers(&option), paths);
    }
}
