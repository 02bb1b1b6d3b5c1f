//! Paths that are hidden or read-only.

use super::Error;
use crate::proto::cri::LinuxContainerSecurityContext;

const CONTEXT: &str = "linux.security_context";

/// Paths to mask and paths to make read-only: just those given, and none for a
/// privileged container, though the kubelet sends them there too.
pub(super) fn hidden(context: &LinuxContainerSecurityContext) -> Result<(Vec<String>, Vec<String>), Error> {
    if context.privileged {
        return Ok((Vec::new(), Vec::new()));
    }
    let lists = [
        ("masked_paths", &context.masked_paths),
        ("readonly_paths", &context.readonly_paths),
    ];
    for (name, paths) in lists {
        if let Some(path) = paths
            .iter()
            .find(|path| !path.starts_with('/') || path.contains('\0'))
        {
            return Err(Error::invalid(
                format!("{CONTEXT}.{name}"),
                format!("{path:?} is not an absolute path"),
            ));
        }
    }
    Ok((context.masked_paths.clone(), context.readonly_paths.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masked_and_read_only_paths() {
        let mut asked = LinuxContainerSecurityContext {
            masked_paths: vec!["/proc/kcore".into()],
            readonly_paths: vec!["/proc/sys".into()],
            ..Default::default()
        };
        let expected = (asked.masked_paths.clone(), asked.readonly_paths.clone());
        assert_eq!(hidden(&asked).unwrap(), expected);
        asked.privileged = true;
        assert_eq!(hidden(&asked).unwrap(), (Vec::new(), Vec::new()));
        asked.privileged = false;
        asked.masked_paths.push("proc".into());
        assert!(hidden(&asked).is_err());
    }
}
