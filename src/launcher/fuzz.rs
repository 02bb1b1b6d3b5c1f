//! Launch plans, read and checked; nothing is launched.

use prost::Message;

use super::prepare;
use crate::proto::plan::LaunchPlan;

/// A plan that can be read survives being written, and can be checked: what is wrong
/// is an error with words, and what passes has a command.
pub fn plan(data: &[u8]) {
    let Ok(mut plan) = LaunchPlan::decode(data) else {
        return;
    };
    let bytes = plan.encode_to_vec();
    assert_eq!(LaunchPlan::decode(&bytes[..]).as_ref(), Ok(&plan));
    // The check opens the namespaces that are joined: not any file of this machine.
    for namespace in &mut plan.namespaces {
        if !namespace.path.is_empty() {
            namespace.path = "/proc/self/ns/uts".into();
        }
    }
    match prepare::check(&plan) {
        Ok(_) => {
            let command = plan.process.as_ref().and_then(|process| process.args.first());
            assert!(plan.sandbox_init || command.is_some_and(|command| !command.is_empty()));
            for path in plan.masked_paths.iter().chain(&plan.readonly_paths) {
                assert!(path.starts_with('/') && !path.contains('\0'), "{path:?}");
            }
        }
        Err(problem) => assert!(!format!("{problem:?}").is_empty()),
    }
}
