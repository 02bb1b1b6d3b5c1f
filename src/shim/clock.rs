//! The wall clock, for stamps and records.

use rustix::time::{ClockId, clock_gettime};

use crate::proto::google::protobuf::Timestamp;

/// Nanoseconds since the epoch.
pub fn now() -> i64 {
    let time = clock_gettime(ClockId::Realtime);
    time.tv_sec
        .saturating_mul(1_000_000_000)
        .saturating_add(time.tv_nsec)
}

/// As a protobuf timestamp; 0 is no time.
pub fn timestamp(nanoseconds: i64) -> Option<Timestamp> {
    (nanoseconds != 0).then(|| Timestamp {
        seconds: nanoseconds.div_euclid(1_000_000_000),
        nanos: i32::try_from(nanoseconds.rem_euclid(1_000_000_000)).unwrap_or(0),
    })
}
