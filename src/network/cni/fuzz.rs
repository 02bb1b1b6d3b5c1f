//! What CNI plugins print.

use serde_json::Value;

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
    if is_exact(&value) {
        assert_eq!(again.as_ref(), Ok(&value));
    }
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

/// Fractions, and what does not fit 64 bits, may be off in their last digit when they
/// are written and read; nothing in an answer is a fraction.
fn is_exact(value: &Value) -> bool {
    match value {
        Value::Number(number) => !number.is_f64(),
        Value::Array(all) => all.iter().all(is_exact),
        Value::Object(all) => all.values().all(is_exact),
        Value::Null | Value::Bool(_) | Value::String(_) => true,
    }
}
