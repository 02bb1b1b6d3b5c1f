//! The wall clock, for stamps and records.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::proto::google::protobuf::Timestamp;

/// Nanoseconds since the epoch.
pub fn now() -> i64 {
    // The C library's call, not rustix's: that one insists on a vDSO, which User Mode
    // Linux does not give to static programs.
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// As a protobuf timestamp; 0 is no time.
pub fn timestamp(nanoseconds: i64) -> Option<Timestamp> {
    (nanoseconds != 0).then(|| Timestamp {
        seconds: nanoseconds.div_euclid(1_000_000_000),
        nanos: i32::try_from(nanoseconds.rem_euclid(1_000_000_000)).unwrap_or(0),
    })
}
