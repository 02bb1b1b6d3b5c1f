//! How long the client of a call waits: the `grpc-timeout` header.

use std::time::Duration;

use tonic::Request;

use super::error::Error;
use crate::pod::Interrupted;

/// Least and most time in which a client is told that its own is up. The least is
/// two ticks of the timer: tonic itself answers CANCELLED at the very deadline,
/// where a client must hear DEADLINE_EXCEEDED.
const MARGIN: [Duration; 2] = [Duration::from_millis(2), Duration::from_millis(500)];

/// The time the client gives this call, less a margin in which to tell it at
/// which step the work is. None: it waits for ever.
pub fn limit<T>(request: &Request<T>) -> Option<Duration> {
    let given = parse(request.metadata().get("grpc-timeout")?.to_str().ok()?)?;
    Some(given.saturating_sub((given / 20).clamp(MARGIN[0], MARGIN[1])))
}

/// Waits for `work`, at most for `limit`; `key` says what it is: "pull image x".
pub async fn within<T, E: Into<Error>>(
    limit: Option<Duration>,
    key: impl FnOnce() -> String,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, Error> {
    match limit {
        None => work.await.map_err(E::into),
        Some(limit) => match tokio::time::timeout(limit, work).await {
            Ok(done) => done.map_err(E::into),
            Err(_) => Err(Interrupted {
                key: key(),
                stage: "work",
            }
            .into()),
        },
    }
}

/// At most eight digits and a unit: gRPC over HTTP/2, "Timeout".
fn parse(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let n: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(n.checked_mul(3600)?),
        "M" => Duration::from_secs(n.checked_mul(60)?),
        "S" => Duration::from_secs(n),
        "m" => Duration::from_millis(n),
        "u" => Duration::from_micros(n),
        "n" => Duration::from_nanos(n),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header() {
        assert_eq!(parse("100m"), Some(Duration::from_millis(100)));
        assert_eq!(parse("2H"), Some(Duration::from_secs(7200)));
        assert_eq!(parse("5"), None);
        assert_eq!(parse(""), None);
        assert_eq!(parse("xS"), None);
        let mut request = Request::new(());
        assert_eq!(limit(&request), None);
        request.set_timeout(Duration::from_secs(10));
        assert_eq!(limit(&request), Some(Duration::from_millis(9500)));
        request.set_timeout(Duration::from_millis(1));
        assert_eq!(limit(&request), Some(Duration::ZERO));
    }
}
