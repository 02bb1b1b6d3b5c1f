//! What CNI plugins print.

use super::result;

/// An answer that is taken has a version, says the same when the next plugin is told
/// it, and has its IPv4 addresses first.
pub fn cni_result(data: &[u8]) {
    let value = match result::read(data, "1.0.0") {
        Ok(value) => value,
        Err(message) => return assert!(!message.is_empty()),
    };
    assert!(
        value
            .get("cniVersion")
            .is_some_and(|version| !version.is_null() && version != "")
    );
    let again = result::read(value.to_string().as_bytes(), "0.3.0");
    assert_eq!(again.as_ref(), Ok(&value));
    match result::addresses(&value, "eth0") {
        Ok(addresses) => {
            let given = value
                .get("ips")
                .and_then(|ips| ips.as_array())
                .map_or(0, Vec::len);
            assert!(addresses.len() <= given);
            assert!(addresses.is_sorted_by_key(|address| address.is_ipv6()));
        }
        Err(message) => assert!(!message.is_empty()),
    }
}
